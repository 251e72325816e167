#!/usr/bin/env python
"""The ten lines of the front page with ten seeds: accuracies of both ends and of what averages them at α = 0.5.

    python front_page.py            # writes results.csv; half an hour on one core
    python front_page.py 0 1 2      # only these seeds; those in the file are kept
"""
import sys
from pathlib import Path

import pandas as pd

from wiseft.all import finetune, load_clip, load_suite, sweep, zeroshot_classifier
from wiseft.stats.table import MEAN, REFERENCE

RESULTS = Path(__file__).resolve().parent/'results.csv'
COLUMNS = ['seed', 'method', 'alpha', 'dataset', 'value', 'n']


def accuracies(seed): # DataFrame of COLUMNS
    "What the front page shows, with another seed."
    suite = load_suite('icons').restrict_train(['feather', 'bi', 'griddy-icons', 'jam'])
    zeroshot = zeroshot_classifier(load_clip('iconclip'), suite)
    finetuned = finetune(zeroshot, suite, lr=3e-3, epochs=20, seed=seed, progress=False)
    table = sweep(zeroshot, finetuned, suite, alphas=[0, .5, 1], progress=False)
    table = table[(table.metric == 'accuracy') & table.dataset.isin([REFERENCE, MEAN])]
    return table.assign(seed=seed)[COLUMNS]


def main():
    for seed in map(int, sys.argv[1:] or range(10)):
        rows = accuracies(seed)
        done = pd.read_csv(RESULTS) if RESULTS.exists() else rows[:0]
        both = pd.concat([done[done.seed != seed], rows]).sort_values(['seed', 'method', 'alpha', 'dataset'])
        both.round(4).to_csv(RESULTS, index=False, lineterminator='\n')


if __name__ == '__main__': main()
