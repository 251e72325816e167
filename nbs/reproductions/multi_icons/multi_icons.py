#!/usr/bin/env python
"""Several labels along α: fine-tuning on pictures of several icons, by plan.json.

    python multi_icons.py             # some minutes a run; what is done is not done again
    python multi_icons.py --start     # what the start gets, before any fine-tuning
    python multi_icons.py --tables    # curves.csv, differences.csv, and null.csv

What each average answers to each picture lies here, a file per run, and is committed as an archive (../answers.py
--pack).
"""
import argparse, json, sys
import numpy as np
import pandas as pd
from functools import cache
from pathlib import Path
from scipy.stats import t
from PIL.Image import Resampling
from wiseft.base.files import atomic_path
from wiseft.bench.chance import both_chances, holm_among, seed_variance, two_sided_p
from wiseft.data.objects import image_set
from wiseft.data.suites import folder_suite, load_suite, protocol
from wiseft.infer.ensembles import members
from wiseft.infer.evaluation import evaluate
from wiseft.models.classifier import zeroshot_classifier
from wiseft.models.clip import load_clip
from wiseft.train.learner import finetune

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from answers import unpacked
from runs import provenance

unpacked(HERE)
PLAN = json.loads((HERE/'plan.json').read_text())
ALPHAS, SEEDS, RATES, SHIFTS = PLAN['alphas'], PLAN['seeds'], PLAN['rates'], PLAN['shifts']
TEMPLATES = protocol(2)['templates']
NOT_USED = 'si' # Sargam, whose license is open


# ---------- pictures ----------

def pictures(images, classes, n, name):
    "Pictures of two to four icons, each of another class in another quarter; `n` of each family that has the classes."
    rng, side = np.random.default_rng(PLAN['pictures']), 48
    families, number = np.array(images.groups), {images.classnames.index(c): c for c in classes}
    pixels, labels, groups = [], [], []
    for family in sorted(set(families) - {NOT_USED}):
        of = {c: np.flatnonzero((images.labels == c) & (families == family)) for c in number}
        there = [c for c in number if len(of[c])]
        if len(there) < PLAN['fewest_classes']: continue
        for _ in range(n):
            picture = np.full((2*side, 2*side, 3), 255, np.uint8)
            chosen = rng.choice(there, rng.integers(2, 5), replace=False)
            for c, place in zip(chosen, rng.permutation(4)):
                y, x = (side*v for v in divmod(place, 2))
                icon = images.open(rng.choice(of[c])).resize((side-4, side-4), Resampling.BICUBIC)
                picture[y+2:y+side-2, x+2:x+side-2] = icon
            pixels.append(picture)
            labels.append([number[c] for c in chosen])
            groups.append(family)
    return image_set((np.stack(pixels), labels), list(classes), name, groups=groups)


@cache
def suite():
    "Fine-tuning on four outline families; other families judge, in outline and in other styles."
    icons = load_suite('icons')
    narrow = icons.restrict_train(protocol(2)['families']['4'])
    judged = [icons.validation, icons.test, *(icons.shifts[s] for s in SHIFTS)]
    fewest = np.min([np.bincount(s.labels, minlength=len(icons.classnames)) for s in judged], 0)
    classes = [icons.classnames[c] for c in np.argsort(-fewest, kind='stable')[:PLAN['classes']]]
    def made(images, n, name): return pictures(images, classes, n, name)
    n = PLAN['per_family']
    reference = dict(train=made(narrow.train, n['train'], 'train'), test=made(icons.test, n['test'], 'test'),
                     validation=made(icons.validation, n['validation'], 'validation'))
    return folder_suite(reference, {s: made(icons.shifts[s], n['test'], s) for s in SHIFTS}, templates=TEMPLATES)


@cache
def start():
    "The embedded CLIP, taught pictures of several icons of other classes; zero-shot, as texts name the classes."
    others, recipe = load_suite('other-icons').test, PLAN['start']
    taught = pictures(others, others.classnames, recipe['per_family'], 'other icons')
    before = zeroshot_classifier(load_clip(), others.classnames, TEMPLATES, task='multi-label')
    after = finetune(before, taught, epochs=recipe['epochs'], lr=recipe['lr'], batch_size=128, seed=recipe['seed'],
                     progress=False)
    return zeroshot_classifier(after.clip, suite().classnames, TEMPLATES, task='multi-label')


# ---------- runs ----------

def run(lr, seed):
    "α -> the average of a fine-tuning."
    finetuned = finetune(start(), suite(), lr=lr, seed=seed, progress=False, **PLAN['recipe'])
    return {m.identity['alpha']: m for m in members(start(), finetuned, ALPHAS, ['weight-space']).values()}


def kept(points, file, split='test'):
    "Keep what is evaluated: dataset and metric -> (α, n) numbers, whose mean is the metric; and each picture's family."
    named = {f'{a:g}': points[a] for a in ALPHAS} # `members` has the ends first
    _, predictions = evaluate(named, suite(), split, metrics=['mAP', 'hit@1'], keep_predictions=True, progress=False)
    datasets, out = predictions.images.dataset.to_numpy(str), {}
    for d in dict.fromkeys(datasets):
        rows = datasets == d
        out[f'{d} | family'] = predictions.images.group.to_numpy(str)[rows]
        for metric, column in {'mAP': 'mAP', 'hit@1': 'right'}.items():
            out[f'{d} | {metric}'] = np.stack([numbers[column][rows] for *_, numbers in predictions.members])
    with atomic_path(HERE/file, force=True) as tmp, open(tmp, 'wb') as f: np.savez_compressed(f, **out)


def rate_file(lr): return f'lr {lr:g}.validation.npz'
def run_file(seed): return f'seed {seed}.npz'


def best_rate():
    "The rate with the best validation mAP of any α: the first, which is the lowest, of equal ones."
    return max(RATES, key=lambda lr: answers(rate_file(lr))['reference | mAP'].mean(1).max())


def make():
    "Make all files that are missing."
    for lr in RATES:
        if (HERE/rate_file(lr)).exists(): continue
        kept(run(lr, SEEDS[0]), rate_file(lr), 'validation')
        print(rate_file(lr), flush=True)
    lr = best_rate()
    print(f'learning rate {lr:g}', flush=True)
    for seed in SEEDS:
        if (HERE/run_file(seed)).exists(): continue
        kept(run(lr, seed), run_file(seed))
        print(run_file(seed), flush=True)


# ---------- tables ----------

def answers(file):
    with np.load(HERE/file) as arrays: return dict(arrays)


def shares(seeds=SEEDS):
    "Dataset and metric -> (α, n): mean over seeds."
    runs = [answers(run_file(s)) for s in seeds]
    return {k: np.mean([run[k] for run in runs], 0) for k in runs[0] if not k.endswith('family')}


def families(): return {k.split(' | ')[0]: v for k, v in answers(run_file(SEEDS[0])).items() if k.endswith('family')}


def over_families(gaps):
    "Mean over datasets of the mean gap, its variance over families, and how many the smallest dataset has."
    totals = {}
    for d, gap in gaps.items():
        for family, far in zip(families()[d], gap - gap.mean()):
            totals[family] = totals.get(family, 0) + far/len(gap)/len(gaps)
    n = len(totals)
    fewest = min(len(set(families()[d])) for d in gaps)
    return np.mean([gap.mean() for gap in gaps.values()]), n/(n-1)*sum(v**2 for v in totals.values()), fewest


def row(gaps, by_seeds=None, **who):
    "A number in points, with its interval over families, and over seeds if it is given without each of them."
    value, variance, fewest = over_families(gaps)
    among_seeds = np.nan
    if by_seeds is not None: among_seeds = seed_variance(np.array([over_families(g)[0] for g in by_seeds]))
    error, df = both_chances(variance, among_seeds, fewest, len(SEEDS))
    far = error*t.ppf(.975, df)
    return who | dict(value=100*value, low=100*(value-far), high=100*(value+far), p=two_sided_p(value, error, df))


WHERE = {'reference': ['reference'], 'mean over shifts': SHIFTS, **{s: [s] for s in SHIFTS}}


def differences():
    "α = 0.5 against both ends, and the ends; those of the plan's primary question are one family."
    rows = []
    for where, datasets in WHERE.items():
        for a, b in [(.5, 1), (.5, 0), (1, 0)]:
            def gaps(seeds):
                mean = shares(seeds)
                return {d: mean[f'{d} | mAP'][ALPHAS.index(a)] - mean[f'{d} | mAP'][ALPHAS.index(b)] for d in datasets}
            without_each = [gaps([s for s in SEEDS if s != out]) for out in SEEDS]
            rows.append(row(gaps(SEEDS), without_each, where=where, what=f'α = {a:g} less α = {b:g}'))
    table = pd.DataFrame(rows)
    primary = table['where'].isin(['reference', 'mean over shifts']) & (table.what != 'α = 1 less α = 0')
    table.loc[primary, 'p_holm'] = holm_among(table.p[primary], primary.sum())
    return table


def null_rows():
    "The same between two seeds, at α = 0.5 and 1, over families alone."
    rows = []
    for where in ('reference', 'mean over shifts'):
        for i, a in enumerate(SEEDS):
            b = SEEDS[(i + 1) % len(SEEDS)]
            for alpha in (.5, 1):
                at = ALPHAS.index(alpha)
                gaps = {d: (shares([a])[f'{d} | mAP'] - shares([b])[f'{d} | mAP'])[at] for d in WHERE[where]}
                rows.append(row(gaps, where=where, seeds=f'{a}, {b}', alpha=alpha))
    return pd.DataFrame(rows).drop(columns='p')


def curves():
    "Every number by dataset, metric, and α, in percent, with the mean over shifts."
    mean = shares()
    rows = [dict(where=where, metric=m, alpha=a, value=100*np.mean([mean[f'{d} | {m}'][i].mean() for d in datasets]))
            for where, datasets in WHERE.items() for m in ('mAP', 'hit@1') for i, a in enumerate(ALPHAS)]
    return pd.DataFrame(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--start', action='store_true', help='what the start gets, before any fine-tuning')
    parser.add_argument('--tables', action='store_true', help='train nothing')
    asked = parser.parse_args()
    if asked.start: return print(evaluate(start(), suite(), metrics=['mAP', 'hit@1'], progress=False))
    if not asked.tables:
        with provenance(__file__, seeds=SEEDS): make()
    for name, table in dict(curves=curves(), differences=differences(), null=null_rows()).items():
        with atomic_path(HERE/f'{name}.csv', force=True) as tmp: table.round(4).to_csv(tmp, index=False)


if __name__ == '__main__': main()
