#!/usr/bin/env python
"""Measure wiseft/data/protocol.json on the test families of the icons suite: once, with every seed it names.

    python measure.py    # about a minute a seed; writes results.csv, comparisons.csv and predictions.csv.gz beside it

A seed that was finished before an interruption is not run again.
"""
from pathlib import Path
import pandas as pd
from wiseft.datasets import load_suite, protocol
from wiseft.ensembles import sweep
from wiseft.comparison import compare
from wiseft.files import atomic_path
from wiseft.learner import finetune
from wiseft.clips import load_clip
from wiseft.classifiers import zeroshot_classifier
from wiseft.exchange import write_results

HERE = Path(__file__).resolve().parent
SEEDS = HERE.parents[2]/'build'/'icons'/'seeds'
WHO = ['method', 'alpha', 'seed']


def run_seed(p, seed):
    "Table and per-image predictions of one fine-tuning, computed or read."
    folder = SEEDS/f'seed-{seed}'
    if not folder.exists():
        suite = load_suite('icons').restrict_train(p['narrow_reference']['families'])
        zeroshot = zeroshot_classifier(load_clip(), suite.classnames, p['templates'])
        tuned = finetune(zeroshot, suite, seed=seed, progress=False, **p['recipe'])
        table, kept = sweep(zeroshot, tuned, suite, p['alphas'], keep_predictions=True, seed=seed, progress=False)
        with atomic_path(folder) as tmp:
            tmp.mkdir()
            write_results(table, tmp/'results.csv')
            kept.frame().to_pickle(tmp/'predictions.pkl') # our own, read back by this script alone
    return pd.read_csv(folder/'results.csv'), pd.read_pickle(folder/'predictions.pkl')


def picked(p, predictions, method):
    "The columns that pick a comparison's classifier: an end point, or an ensemble at the protocol's alpha."
    return dict(method=method) if method in ('zero-shot', 'fine-tuned') else dict(method=method, alpha=p['alpha'])


def all_comparisons(p, predictions):
    "Every comparison of the protocol, over images and over families."
    for c in p['comparisons']:
        for groups in (False, True):
            t = compare(predictions, picked(p, predictions, c['a']), picked(p, predictions, c['b']), groups=groups)
            yield t.assign(claim=c['claim'], claim_dataset=c['dataset'], expect=c['expect'])


def compact(p, predictions):
    "One row an image, one column a classifier at the end points and the protocol's alpha: the predicted class."
    keep = predictions[(predictions.method.isin(['zero-shot', 'fine-tuned'])) | (predictions.alpha == p['alpha'])]
    keep = keep.assign(who=keep.method.astype(str) + ' seed ' + keep.seed.astype(str))
    wide = keep.pivot(index=['dataset', 'file', 'group', 'unit', 'label'], columns='who', values='predicted')
    same = [c for c in wide if c.startswith('zero-shot')]
    return wide.rename(columns={same[0]: 'zero-shot'}).drop(columns=same[1:]).reset_index()


def main():
    p = protocol()
    tables, predictions = zip(*(run_seed(p, s) for s in p['seeds']))
    predictions = pd.concat(predictions, ignore_index=True)
    write_results(pd.concat(tables, ignore_index=True), HERE/'results.csv', force=True)
    for name, table in (('comparisons.csv', pd.concat(all_comparisons(p, predictions))),
                        ('predictions.csv.gz', compact(p, predictions))):
        with atomic_path(HERE/name, force=True) as tmp:
            table.to_csv(tmp, index=False, lineterminator='\n',
                         compression=dict(method='gzip', mtime=0) if name.endswith('.gz') else None)


if __name__ == '__main__': main()
