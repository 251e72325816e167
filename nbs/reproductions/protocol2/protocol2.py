#!/usr/bin/env python
"""Measure wiseft/data/protocol-2.json: thirty fine-tunings, each averaged with the zero-shot classifier at every α.

    python protocol2.py                 # about a minute a run on one core; what is done is not done again
    python protocol2.py --seeds 21 22   # the runs of these seeds alone, so that several processes can share the work
    python protocol2.py --only-tune     # no image is classified: the fine-tuned classifiers are kept for a later call
    python protocol2.py --table         # from runs.jsonl, in seconds: accuracies.csv, which the front page draws
    python protocol2.py --repeat "families=4 lr=0.001 seed=23"    # what share comes out otherwise

A run's classifier and results are kept in build/protocol-2. A call that ends writes what is there to runs.jsonl, a line
a run: which images of validation, test and reserve each of eleven classifiers got right. In accuracies.csv five seeds
are one row: an image counts as the share of them that classify it rightly. Recoloured icons are no part of the mean.
"""
import argparse, sys
from itertools import product
from pathlib import Path
import pandas as pd
from wiseft.models.classifier import zeroshot_classifier
from wiseft.models.clip import load_clip
from wiseft.data.suites import load_suite, protocol
from wiseft.stats.table_io import write_results
from wiseft.base.files import atomic_path
from wiseft.train.learner import finetune
from wiseft.models.load import load_classifier
from wiseft.stats.table import MEAN, REFERENCE, results_table

sys.path.append(str(Path(__file__).resolve().parents[1]))
from runs import judge, judged_sets, make_runs, provenance, read_runs, repeat_run, run_name, share_interval, test_rows

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[2]/'build'/'protocol-2'
RUNS = HERE/'runs.jsonl'
ALPHAS = [round(a/10, 1) for a in range(11)]


# ---------- the runs ----------

def read_plan():
    "The protocol, its numbers of families as numbers."
    plan = protocol(2)
    return plan | dict(families={int(n): names for n, names in plan['families'].items()})


def settings(plan, seeds):
    "Every run: the cell that the hypotheses are about first, then the gentle one, then the others."
    main, gentle = plan['hypotheses']['cell'], plan['gentle']
    cells = [dict(families=f, lr=lr) for f, lr in product(plan['families'], plan['lrs'])]
    cells.sort(key=lambda c: (c != main, c != gentle))
    return [c | dict(seed=s) for c in cells for s in seeds]


def reserve(suite):
    "What the protocol keeps in reserve: (split, dataset) -> images of families that no run is fine-tuned on."
    files = set(pd.read_csv(HERE/'reserve.csv').file)
    sets = {('reserve outline', 'reference'): suite.train, ('reserve solid', 'solid'): suite.shift_train['solid']}
    return {k: s.subset(pd.Series(s.files()).isin(files)) for k, s in sets.items()}


def judged_by(suite):
    "All images that classifiers are judged by: the reference's validation images, the test images, the reserve."
    return judged_sets(suite) | reserve(suite)


class Runs:
    "What all runs share."
    def __init__(self, plan):
        self.plan, self.suite = plan, load_suite('icons')
        self.start = zeroshot_classifier(load_clip(), self.suite.classnames, plan['templates']).eval()
        self.sets = judged_by(self.suite)

    def tune(self, s):
        "A run's fine-tuned classifier."
        narrow = self.suite.restrict_train(self.plan['families'][s['families']])
        return finetune(self.start, narrow, lr=s['lr'], seed=s['seed'], progress=False, **self.plan['recipe'])

    def kept(self, s):
        "A run's fine-tuned classifier, computed or read."
        folder = BUILD/run_name(s)/'finetuned'
        if not folder.exists(): self.tune(s).save(folder)
        return load_classifier(folder)

    def judge(self, s): return judge(self.start, self.kept(s), self.sets, ALPHAS)
    def again(self, s): return judge(self.start, self.tune(s), self.sets, ALPHAS)


def gather(plan):
    "What there is of all runs, into one file."
    files = [BUILD/run_name(s)/'line.jsonl' for s in settings(plan, plan['seeds'])]
    with atomic_path(RUNS, force=True) as tmp: tmp.write_text(''.join(f.read_text() for f in files if f.exists()))


# ---------- the table ----------

def rows_of(images, values, shifts):
    "Rows of one classifier: reference, each shift, their mean."
    for d in (REFERENCE, *shifts, MEAN):
        rows = images[test_rows(images, 'shift' if d == MEAN else d)]
        value, low, high = share_interval(images, values, 'shift' if d == MEAN else d)
        fingerprint = '' if d == MEAN else rows.data_fingerprint.iloc[0]
        yield dict(dataset=d, value=value, low=low, high=high, n=len(rows), role=rows.role.iloc[0],
                   data_fingerprint=fingerprint)


def table(plan):
    "Accuracies of the harsh and of the gentle recipe at every α."
    suite, shifts = load_suite('icons'), plan['hypotheses']['shifts']
    runs, correct, images = read_runs(RUNS, suite, judged_by(suite))
    test = ((images.split == 'test') & images.dataset.isin([REFERENCE, *shifts])).to_numpy()
    images, correct, rows = images[test].reset_index(drop=True), correct[:, test], []
    for name, cell in (('harsh', plan['hypotheses']['cell']), ('gentle', plan['gentle'])):
        mine = runs[(runs.families == cell['families']) & (runs.lr == cell['lr'])]
        for (method, alpha), same in mine.groupby(['method', 'alpha'], sort=False):
            assert len(same) == len(plan['seeds'])
            tuning = '' if method == 'zero-shot' else 'plain'
            who = dict(classifier=f'iconclip, {name} recipe', tuning=tuning, method=method, alpha=alpha, split='test',
                       metric='accuracy', precision='bf16')
            rows += [who | r for r in rows_of(images, correct[same.index].mean(0), shifts)]
    return results_table(rows)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--seeds', type=int, nargs='+', help='default: all of the protocol')
    parser.add_argument('--only-tune', action='store_true', help='fine-tune and keep, classify no image')
    parser.add_argument('--table', action='store_true', help='write accuracies.csv')
    parser.add_argument('--repeat', metavar='RUN',
                        help='make this run again, and say what share of its answers differs')
    args, plan = parser.parse_args(), read_plan()
    if args.table: return write_results(table(plan), HERE/'accuracies.csv', force=True)
    runs, some = Runs(plan), settings(plan, args.seeds or plan['seeds'])
    if args.repeat:
        s = next(s for s in settings(plan, plan['seeds']) if run_name(s) == args.repeat)
        return print(f'{args.repeat}: {repeat_run(RUNS, s, runs.again):.4%} of the answers differ')
    with provenance(__file__, seeds=args.seeds or plan['seeds'], only_tune=args.only_tune):
        for s in some:
            if args.only_tune: runs.kept(s)
            else: make_runs(BUILD/run_name(s)/'line.jsonl', [s], runs.judge)
        if not args.only_tune: gather(plan)


if __name__ == '__main__': main()
