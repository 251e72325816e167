#!/usr/bin/env python
"""Measure wiseft/data/protocol.json on the test families of the icons suite: once, with every seed it names.

    python measure.py    # about a minute a seed; writes results.csv, predictions.csv.gz and comparisons.csv beside it

A seed that was finished before an interruption is not run again. Where predictions.csv.gz is there, nothing is:
only the comparisons are made anew from it.
"""
from pathlib import Path
import pandas as pd
from wiseft.data.suites import load_suite, protocol
from wiseft.infer.ensembles import sweep
from wiseft.analysis.paired import compare
from wiseft.base.files import atomic_path
from wiseft.train.learner import finetune
from wiseft.models.clip import load_clip
from wiseft.models.classifier import zeroshot_classifier
from wiseft.stats.table_io import write_results

HERE = Path(__file__).resolve().parent
SEEDS = HERE.parents[2]/'build'/'icons'/'seeds'
WHO = ['method', 'alpha', 'seed']


def run_seed(p, seed):
    "Table and per-image predictions of one fine-tuning, computed or read."
    folder = SEEDS/f'seed-{seed}'
    if not folder.exists():
        suite = load_suite('icons').restrict_train(p['narrow_reference']['families'])
        zeroshot = zeroshot_classifier(load_clip(), suite.classnames, p['templates'])
        finetuned = finetune(zeroshot, suite, seed=seed, progress=False, **p['recipe'])
        table, kept = sweep(zeroshot, finetuned, suite, p['alphas'], keep_predictions=True, seed=seed, progress=False)
        with atomic_path(folder) as tmp:
            tmp.mkdir()
            write_results(table, tmp/'results.csv')
            kept.frame().to_pickle(tmp/'predictions.pkl') # our own, read back by this script alone
    return pd.read_csv(folder/'results.csv'), pd.read_pickle(folder/'predictions.pkl')


def picked(p, method):
    "The columns that pick a comparison's classifier: an end point, or an ensemble at the protocol's alpha."
    return dict(method=method) if method in ('zero-shot', 'fine-tuned') else dict(method=method, alpha=p['alpha'])


def all_comparisons(p, predictions):
    "Every comparison of the protocol, over images and over families; and over classes, which it does not name."
    for c in p['comparisons']:
        for groups in (False, True, 'label'):
            t = compare(predictions, picked(p, c['a']), picked(p, c['b']), groups=groups)
            yield t.assign(claim=c['claim'], claim_dataset=c['dataset'], expect=c['expect'])


def compact(p, predictions):
    "One row per image, one column per classifier at the end points and the protocol's alpha: the predicted class."
    keep = predictions[(predictions.method.isin(['zero-shot', 'fine-tuned'])) | (predictions.alpha == p['alpha'])]
    keep = keep.assign(who=keep.method.astype(str) + ' seed ' + keep.seed.astype(str))
    wide = keep.pivot(index=['dataset', 'file', 'group', 'unit', 'label'], columns='who', values='predicted')
    same = [c for c in wide if c.startswith('zero-shot')]
    return wide.rename(columns={same[0]: 'zero-shot'}).drop(columns=same[1:]).reset_index()


def as_kept(p, wide):
    "The rows that `compact` made wide, one for each image and classifier; the reference first."
    ids = ['dataset', 'role', 'file', 'group', 'unit', 'label']
    t = wide.assign(role=wide.dataset.map(load_suite('icons').roles()))
    t = t.sort_values('role', key=lambda r: r != 'reference', kind='stable').melt(ids, var_name='who',
        value_name='predicted')
    t[['method', 'seed']] = t.who.str.split(' seed ', expand=True)
    t['alpha'] = t.method.map({'zero-shot': 0., 'fine-tuned': 1.}).fillna(p['alpha'])
    t['correct'] = t.predicted.where(t.predicted.isna(), t.predicted == t.label)
    return t.assign(classifier='iconclip', tuning='', precision='fp32', split='test', data_fingerprint='')


def write_csv(table, path, **kwargs):
    with atomic_path(path, force=True) as tmp: table.to_csv(tmp, index=False, lineterminator='\n', **kwargs)


def measure(p):
    "Fine-tune and evaluate with every seed."
    tables, predictions = zip(*(run_seed(p, s) for s in p['seeds']))
    write_results(pd.concat(tables, ignore_index=True), HERE/'results.csv', force=True)
    predictions = compact(p, pd.concat(predictions, ignore_index=True))
    write_csv(predictions, HERE/'predictions.csv.gz', compression=dict(method='gzip', mtime=0))


def main():
    p = protocol()
    if not (HERE/'predictions.csv.gz').exists(): measure(p)
    predictions = as_kept(p, pd.read_csv(HERE/'predictions.csv.gz'))
    write_csv(pd.concat(all_comparisons(p, predictions)), HERE/'comparisons.csv')


if __name__ == '__main__': main()
