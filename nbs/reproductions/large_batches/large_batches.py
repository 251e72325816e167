#!/usr/bin/env python
"""FLYP with 2,048 pairs a batch, by gradient caching, against 128: the curve on icons. `protocol.txt` is older.

    python large_batches.py    # some minutes a run; a line of runs.jsonl each, what is done is skipped
    python large_batches.py --repeat "pairs=128 lr=0.0003 seed=0"    # what share comes out otherwise
    python large_batches.py --tables    # curves.csv and compared.csv, from the lines
"""
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from wiseft.base.files import atomic_path
from wiseft.data.suites import load_suite
from wiseft.infer.inference import extract_features
from wiseft.methods.flyp import flyp_multi_positive
from wiseft.models.classifier import zeroshot_classifier
from wiseft.models.clip import load_clip
from wiseft.train.learner import finetune
from wiseft.weights.merge import interpolate

sys.path.append(str(Path(__file__).resolve().parents[1]))
from runs import judge, judged_sets, read_runs, run_name, run_script, share_difference, share_interval, test_rows

PARTS = {128: 1, 2048: 16} # pairs of a batch -> parts of 128 that it is computed in
RATES, SEEDS, EPOCHS = (1e-4, 3e-4, 1e-3, 3e-3), (0, 1, 2), 40
ALPHAS = [0, .1, .2, .3, .4, .5, .6, .7, .8, .9, 1.]
CAPTION = 'an icon of a {}' # of a class, which is looked for among the images of a set


def search():
    "Runs with the first seed, of which each number of pairs takes its rate."
    return [dict(pairs=n, lr=lr, seed=SEEDS[0]) for n in PARTS for lr in RATES]


def chosen_rates(file):
    "The rate of each number of pairs with the best validation accuracy of any α; of equals the lowest."
    lines = {line['run']: line for line in map(json.loads, file.read_text().splitlines())}
    best = {}
    for s in search(): # rates ascend
        value = lines[run_name(s)]['validation_best']
        if s['pairs'] not in best or value > best[s['pairs']][0]: best[s['pairs']] = value, s['lr']
    return {n: lr for n, (_, lr) in best.items()}


@torch.no_grad()
def found(classifier, images):
    "Shares of a set's classes of whose caption an image of the class is the nearest, and is among the five nearest."
    cached = extract_features(classifier, images, 128, progress=False)
    classes = cached.labels.unique()
    texts = classifier.clip.encode_text([CAPTION.format(classifier.classnames[c]) for c in classes])
    right = cached.labels[(texts @ cached.features.T).topk(5).indices] == classes[:, None]
    return [float(right[:, :k].any(1).float().mean()) for k in (1, 5)]


# ---------- tables ----------

def read(file, suite):
    "Of the runs at the chosen rates: pairs -> (α, n) shares of right seeds, and pairs -> recall; and the images."
    table, correct, images = read_runs(file, suite)
    table = table[table.alpha.isin(ALPHAS)] # both ends are in it once
    lines = list(map(json.loads, file.read_text().splitlines()))
    shares, recalls = {}, {}
    for pairs, lr in chosen_rates(file).items():
        own = table[(table.pairs == pairs) & (table.lr == lr)]
        if set(own.seed) != set(SEEDS): continue
        shares[pairs] = np.stack([correct[own.index[own.alpha == a]].mean(0) for a in ALPHAS])
        found = [line['retrieval'] for line in lines if (line['pairs'], line['lr']) == (pairs, lr)]
        recalls[pairs] = np.mean([[f[str(a)]['reference'] for a in ALPHAS] for f in found], 0) # (α, 2)
    return shares, recalls, images


def best_alpha(share, images):
    "The α that is best on the reference's validation images; of equals the lowest."
    rows = (images.dataset == 'reference') & (images.split == 'validation')
    return int(share[:, rows].mean(1).argmax())


def write_tables():
    "Accuracy and recall by number of pairs and α; what 2,048 pairs have over 128, each at its α, and at α = 0.5."
    file, suite = Path(__file__).with_name('runs.jsonl'), load_suite('icons')
    shares, recalls, images = read(file, suite)
    curves, compared = [], []
    for pairs, share in shares.items():
        for i, alpha in enumerate(ALPHAS):
            for d in ('reference', 'shift'):
                value, low, high = share_interval(images, share[i], d)
                curves.append(dict(pairs=pairs, alpha=alpha, what=d, value=value, low=low, high=high))
            for k, value in zip((1, 5), recalls[pairs][i]):
                curves.append(dict(pairs=pairs, alpha=alpha, what=f'recall@{k}', value=value))
    few, many = (shares[n] for n in PARTS)
    zero = shares[128][0] # the same for both: the null row
    at = {n: best_alpha(shares[n], images) for n in PARTS}
    few_best, many_best = few[at[128]], many[at[2048]]
    pairs = {'2,048 less 128, each at its α': (few_best, many_best), '2,048 less 128, at α = 0.5': (few[5], many[5]),
             '2,048 less 128, at α = 0': (zero, many[0]), '128 less zero-shot, at its α': (zero, few_best),
             '2,048 less zero-shot, at its α': (zero, many_best)}
    for what, (a, b) in pairs.items():
        for d in ('reference', 'shift'):
            points, low, high = share_difference(images, a, b, d)
            n = int(test_rows(images, d).sum())
            compared.append(dict(what=what, dataset=d, n=n, points=points, low=low, high=high))
    chosen = [dict(pairs=n, lr=lr, alpha=ALPHAS[at[n]]) for n, lr in chosen_rates(file).items()]
    for name, rows in dict(curves=curves, compared=compared, chosen=chosen).items():
        with atomic_path(Path(__file__).with_name(f'{name}.csv'), force=True) as tmp:
            pd.DataFrame(rows).round(5).to_csv(tmp, index=False)


def main():
    if sys.argv[1:] == ['--tables']: return write_tables()
    suite = load_suite('icons')
    start = zeroshot_classifier(load_clip(), suite.classnames, 'icons')
    sets = judged_sets(suite)

    def run(s):
        parts = PARTS[s['pairs']]
        finetuned = finetune(start, suite.train, suite.validation, EPOCHS, s['lr'], s['pairs']//parts, precision='fp32',
                             seed=s['seed'], loss=flyp_multi_positive, accumulate=parts, progress=False)
        result = judge(start, finetuned, sets, ALPHAS)
        n = len(suite.validation) # which is the first of the sets
        retrieval = {a: dict(reference=found(interpolate(start, finetuned, a), suite.test)) for a in ALPHAS}
        return result | dict(validation_best=float(result['correct'][:, :n].mean(1).max()), retrieval=retrieval)

    run_script(__file__, search(), run)
    rates = chosen_rates(Path(__file__).with_name('runs.jsonl'))
    run_script(__file__, [dict(pairs=n, lr=lr, seed=seed) for n, lr in rates.items() for seed in SEEDS[1:]], run)


if __name__ == '__main__': main()
