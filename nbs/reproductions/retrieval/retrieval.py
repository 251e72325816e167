#!/usr/bin/env python
"""Recall of captions and images along α, of plain fine-tuning and of FLYP, by plan.json.

    python retrieval.py             # a minute or two a run; what is done is not done again
    python retrieval.py --tables    # curves.csv and differences.csv

What each average answers to each image lies here, a file per run, and is committed as an archive (../answers.py
--pack).
"""
import argparse, json, sys
import numpy as np
import pandas as pd
from pathlib import Path
from scipy.stats import t
from wiseft.base.files import atomic_path
from wiseft.bench.chance import holm_among
from wiseft.data.retrieval import retrieval_set
from wiseft.data.suites import load_suite, protocol
from wiseft.infer.ensembles import members
from wiseft.infer.evaluation import evaluate
from wiseft.methods.flyp import flyp_multi_positive
from wiseft.models.classifier import zeroshot_classifier
from wiseft.models.clip import load_clip
from wiseft.train.learner import finetune

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent), str(HERE.parent/'bench')]
from answers import unpacked
from bench import with_chance
from runs import provenance

unpacked(HERE)
PLAN = json.loads((HERE/'plan.json').read_text())
ALPHAS, SEEDS, RATES = PLAN['alphas'], PLAN['seeds'], PLAN['rates']
METHODS = {'plain': None, 'FLYP, multi-positive': flyp_multi_positive}
DIRECTIONS = 'image to text', 'text to image'
METRICS = [f'{way} recall@{k}' for k in (1, 5) for way in DIRECTIONS]


# ---------- images ----------

def gallery(images, name):
    "Images with two captions each: their class, and the words of the file's name."
    def captions(i):
        words = Path(images.paths[i]).stem.split('.', 1)[-1].replace('-', ' ')
        return list(dict.fromkeys([f'an icon of a {images.classnames[images.labels[i]]}', words]))
    return retrieval_set([(images.open(i), captions(i)) for i in range(len(images))], name=name)


def galleries(suite):
    "Both of the plan."
    others = load_suite('other-icons').test
    left = np.setdiff1d(np.arange(len(others)), others.spread(PLAN['how_to_images']))
    return [gallery(suite.test, 'icons'), gallery(others.subset(left), 'other icons')]


# ---------- runs ----------

def run(method, lr, seed, suite, start):
    "α -> the average of a fine-tuning."
    recipe = protocol(2)['recipe']
    finetuned = finetune(start, suite, lr=lr, seed=seed, loss=METHODS[method], progress=False, **recipe)
    return {m.identity['alpha']: m for m in members(start, finetuned, ALPHAS, ['weight-space']).values()}


def kept(points, file, *args, **kwargs):
    "Keep what is evaluated: dataset and metric -> (α, n) numbers, whose mean is the metric."
    named = {f'{a:g}': points[a] for a in ALPHAS} # `members` has the ends first
    _, predictions = evaluate(named, *args, keep_predictions=True, progress=False, **kwargs)
    datasets, labels = predictions.images.dataset.to_numpy(str), predictions.images.label.cat.codes.to_numpy()
    out = {}
    for d in dict.fromkeys(datasets):
        rows = datasets == d
        if any(d == name for name in PLAN['galleries']):
            out |= {f'{d} | {m}': np.stack([numbers[m][rows] for *_, numbers in predictions.members]) for m in METRICS}
        else:
            out[f'{d} | accuracy'] = np.stack([(codes == labels)[rows] for _, codes, _ in predictions.members])
    with atomic_path(HERE/file, force=True) as tmp, open(tmp, 'wb') as f: np.savez_compressed(f, **out)


def rate_file(method, lr): return f'{method}, lr {lr:g}.validation.npz'
def run_file(method, seed): return f'{method}, seed {seed}.npz'


def best_rate(method):
    "The rate with the best validation accuracy of any α: the first, which is the lowest, of equal ones."
    return max(RATES, key=lambda lr: answers(rate_file(method, lr))['reference | accuracy'].mean(1).max())


def make():
    "Make all files that are missing."
    suite = load_suite('icons').restrict_train(protocol(2)['families']['4'])
    start = zeroshot_classifier(load_clip(), suite.classnames, protocol(2)['templates'])
    missing = [f for f in all_files() if not (HERE/f).exists()]
    if not missing: return
    sets = galleries(suite)
    for method in METHODS:
        for lr in RATES:
            if rate_file(method, lr) not in missing: continue
            kept(run(method, lr, SEEDS[0], suite, start), rate_file(method, lr), suite, 'validation')
            print(rate_file(method, lr), flush=True)
        lr = best_rate(method)
        print(f'{method}: learning rate {lr:g}', flush=True)
        for seed in SEEDS:
            if run_file(method, seed) not in missing: continue
            kept(run(method, lr, seed, suite, start), run_file(method, seed), suite, control=sets)
            print(run_file(method, seed), flush=True)


def all_files():
    return [*(rate_file(m, lr) for m in METHODS for lr in RATES), *(run_file(m, s) for m in METHODS for s in SEEDS)]


# ---------- tables ----------

def answers(file):
    with np.load(HERE/file) as arrays: return dict(arrays)


def shares(method, seeds=SEEDS):
    "What -> (α, n): mean over seeds; recall@k of a gallery is the mean of both directions."
    runs = [answers(run_file(method, s)) for s in seeds]
    mean = {k: np.mean([run[k] for run in runs], 0) for k in runs[0]}
    for g in PLAN['galleries']:
        for k in (1, 5): mean[f'{g} | recall@{k}'] = np.mean([mean[f'{g} | {way} recall@{k}'] for way in DIRECTIONS], 0)
    return mean


def without_each(make): return [make([s for s in SEEDS if s != out]) for out in SEEDS]


def row(of, curve, **who):
    "A number with its interval over images and seeds, in points."
    value, error, df = with_chance(lambda a: of(next(iter(a.values()))), curve(SEEDS), [without_each(curve)])
    far = error*t.ppf(.975, df)
    p = 2*t.sf(abs(value)/error, df)
    return who | dict(value=100*value, low=100*(value-far), high=100*(value+far), p=p)


def differences():
    "α = 0.5 against both ends, in each gallery; those on other icons are one family."
    half, rows = ALPHAS.index(.5), []
    for gallery in PLAN['galleries']:
        for method in METHODS:
            def curve(seeds): return {gallery: shares(method, seeds)[f'{gallery} | recall@1']}
            for end in (-1, 0):
                rows.append(row(lambda a: a[..., half]-a[..., end], curve, gallery=gallery, method=method,
                                against=f'α = {ALPHAS[end]}'))
    table = pd.DataFrame(rows)
    family = table.gallery == 'other icons'
    table.loc[family, 'p_holm'] = holm_among(table.p[family], family.sum())
    return table


def null_rows():
    "The same between two seeds, at α = 0.5 and 1, over images alone."
    rows = []
    for method in METHODS:
        key = 'other icons | recall@1'
        for i, a in enumerate(SEEDS):
            b = SEEDS[(i + 1) % len(SEEDS)]
            for alpha in (.5, 1):
                at = ALPHAS.index(alpha)
                gap = shares(method, [a])[key][at] - shares(method, [b])[key][at]
                far = 1.96*gap.std(ddof=1)/np.sqrt(len(gap))
                rows.append(dict(method=method, seeds=f'{a}, {b}', alpha=alpha, value=100*gap.mean(),
                                 low=100*(gap.mean()-far), high=100*(gap.mean()+far)))
    return pd.DataFrame(rows)


def curves():
    "Every number by method and α, in percent; `shifted` is the mean over shifts."
    rows = []
    for method in METHODS:
        means = {k: 100*v.mean(1) for k, v in shares(method).items()}
        shifts = [v for k, v in means.items() if k.endswith('| accuracy') and not k.startswith('reference')]
        means['shifted | accuracy'] = np.mean(shifts, 0)
        rows += [dict(method=method, what=k, alpha=a, value=v) for k, vs in means.items() for a, v in zip(ALPHAS, vs)]
    return pd.DataFrame(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tables', action='store_true', help='train nothing')
    if not parser.parse_args().tables:
        with provenance(__file__, seeds=SEEDS): make()
    for name, table in dict(curves=curves(), differences=differences(), null=null_rows()).items():
        with atomic_path(HERE/f'{name}.csv', force=True) as tmp: table.round(4).to_csv(tmp, index=False)


if __name__ == '__main__': main()
