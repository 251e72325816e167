#!/usr/bin/env python
"""FLYP with 2,048 pairs a batch, by gradient caching, against 128: the curve on icons. `protocol.md` was written first.

    python large_batches.py    # some minutes a run; a line of runs.jsonl each, what is done is skipped
    python large_batches.py --repeat "pairs=128 lr=0.0003 seed=0"    # what share comes out otherwise
"""
import json
import sys
from pathlib import Path

import torch
from wiseft.data.suites import load_suite
from wiseft.infer.inference import extract_features
from wiseft.methods.flyp import flyp_multi_positive
from wiseft.models.classifier import zeroshot_classifier
from wiseft.models.clip import load_clip
from wiseft.train.learner import finetune
from wiseft.weights.merge import interpolate

sys.path.append(str(Path(__file__).resolve().parents[1]))
from runs import judge, judged_sets, run_name, run_script

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
def found(classifier, images, k):
    "Share of a set's classes of whose caption an image of the class is among the k nearest."
    cached = extract_features(classifier, images, 128, progress=False)
    classes = cached.labels.unique()
    texts = classifier.clip.encode_text([CAPTION.format(classifier.classnames[c]) for c in classes])
    nearest = (texts @ cached.features.T).topk(k).indices
    return float((cached.labels[nearest] == classes[:, None]).any(1).float().mean())


def main():
    suite = load_suite('icons')
    start = zeroshot_classifier(load_clip(), suite.classnames, 'icons')
    sets = judged_sets(suite)
    searched = {('test', d): s for d, s in suite.datasets().items()}

    def run(s):
        parts = PARTS[s['pairs']]
        finetuned = finetune(start, suite.train, suite.validation, EPOCHS, s['lr'], s['pairs']//parts, precision='fp32',
                             seed=s['seed'], loss=flyp_multi_positive, accumulate=parts, progress=False)
        result = judge(start, finetuned, sets, ALPHAS)
        n = len(suite.validation) # which is the first of the sets
        retrieval = {}
        for alpha in ALPHAS:
            average = interpolate(start, finetuned, alpha)
            retrieval[alpha] = {d: [found(average, images, k) for k in (1, 5)] for (_, d), images in searched.items()}
        return result | dict(validation_best=float(result['correct'][:, :n].mean(1).max()), retrieval=retrieval)

    run_script(__file__, search(), run)
    rates = chosen_rates(Path(__file__).with_name('runs.jsonl'))
    run_script(__file__, [dict(pairs=n, lr=lr, seed=seed) for n, lr in rates.items() for seed in SEEDS[1:]], run)


if __name__ == '__main__': main()
