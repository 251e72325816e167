#!/usr/bin/env python
"""Accuracies of the harsh and of the gentle recipe at every α, as the results table that the front page draws: accuracies.csv.

    python table.py    # from runs.jsonl, in seconds

Five seeds are one row: an image counts as the share of them that classify it rightly. Recoloured icons are no part of the mean.
"""
import sys
from pathlib import Path
import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from protocol2 import judged_by, read_plan
from runs import interval, read_runs
from wiseft.datasets import load_suite
from wiseft.exchange import write_results
from wiseft.results import MEAN, REFERENCE, results_table


def set_row(images, values, dataset):
    "Accuracy on one test set, or on all shifts, with its interval over images."
    value, low, high = interval(images, values, 'shift' if dataset == MEAN else dataset)
    return dict(dataset=dataset, value=value, low=low, high=high)


def rows_of(images, values, shifts):
    "Rows of one classifier: reference, each shift, their mean."
    for d in (REFERENCE, *shifts, MEAN):
        rows = images[images.is_shift] if d == MEAN else images[images.dataset == d]
        fingerprint = '' if d == MEAN else rows.data_fingerprint.iloc[0]
        yield set_row(images, values, d) | dict(n=len(rows), is_shift=d != REFERENCE, data_fingerprint=fingerprint)


def main():
    plan, suite = read_plan(), load_suite('icons')
    shifts = plan['hypotheses']['shifts']
    runs, correct, images = read_runs(HERE/'runs.jsonl', suite, judged_by(suite))
    test = ((images.split == 'test') & images.dataset.isin([REFERENCE, *shifts])).to_numpy()
    images, correct = images[test].reset_index(drop=True), correct[:, test]
    rows = []
    for name, cell in (('harsh', plan['hypotheses']['cell']), ('gentle', plan['gentle'])):
        mine = runs[(runs.families == cell['families']) & (runs.lr == cell['lr'])]
        for (method, alpha), same in mine.groupby(['method', 'alpha'], sort=False):
            assert len(same) == len(plan['seeds'])
            tuning = '' if method == 'zero-shot' else 'plain'
            who = dict(classifier=f'iconclip, {name} recipe', tuning=tuning, method=method, alpha=alpha, split='test', metric='accuracy', precision='bf16')
            rows += [who | r for r in rows_of(images, correct[same.index].mean(0), shifts)]
    write_results(results_table(rows), HERE/'accuracies.csv', force=True)


if __name__ == '__main__': main()
