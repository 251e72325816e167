#!/usr/bin/env python
"""Measure wiseft/data/protocol-2.json: thirty fine-tunings, each averaged with the zero-shot classifier at every α.

    python protocol2.py                 # about a minute a run on one core; what is done is not done again
    python protocol2.py --seeds 21 22   # the runs of these seeds alone, so that several processes can share the work
    python protocol2.py --only-tune     # no image is classified: the fine-tuned classifiers are kept for a later call

A run's classifier and results are kept in build/protocol-2. A call that ends writes what is there to runs.jsonl, a line
a run: which images of validation, test and reserve each of eleven classifiers got right.
"""
import argparse, json, sys, time
from itertools import product
from pathlib import Path
import numpy as np, pandas as pd, torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from runs import along, logits, looked_at, pack, pixels, provenance
from wiseft.datasets import load_suite, protocol
from wiseft.files import atomic_path
from wiseft.learner import finetune
from wiseft.clips import load_clip
from wiseft.classifiers import ImageClassifier, zeroshot_classifier

BUILD = HERE.parents[2]/'build'/'protocol-2'


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


def name(s): return f'families={s["families"]} lr={s["lr"]:g} seed={s["seed"]}'


def reserve(suite):
    "What the protocol keeps in reserve: (split, dataset) -> images of families that no run is fine-tuned on."
    files = set(pd.read_csv(HERE/'reserve.csv').file)
    sets = {('reserve outline', 'reference'): suite.train, ('reserve solid', 'solid'): suite.shift_train['solid']}
    return {k: s.subset([i for i, f in enumerate(s.files()) if f in files]) for k, s in sets.items()}


def judged_by(suite):
    "All images that classifiers are judged by: the reference's validation images, the test images, the reserve."
    return looked_at(suite) | reserve(suite)


def tuned(plan, suite, start, s):
    "A run's fine-tuned classifier, computed or read."
    folder = BUILD/name(s)/'finetuned'
    if not folder.exists():
        began, narrow = time.time(), suite.restrict_train(plan['families'][s['families']])
        finetune(start, narrow, lr=s['lr'], seed=s['seed'], progress=False, **plan['recipe']).save(folder)
        print(time.strftime('%H:%M:%S'), name(s), 'fine-tuned', round(time.time()-began, 1), flush=True)
    return ImageClassifier.load(folder)


def line_of(s): return BUILD/name(s)/'line.json'


def judge(plan, suite, start, s, x, labels, zeroshot):
    "Write a run's line of results; `zeroshot` says which images the zero-shot classifier gets right."
    began, end = time.time(), tuned(plan, suite, start, s)
    right = {('zero-shot', 0.): zeroshot}
    right |= {('weight-space', a): z.argmax(1) == labels for a, z in along(start, end, x)}
    right['fine-tuned', 1.] = logits(end, x).argmax(1) == labels
    correct = pack(torch.stack(list(right.values())).numpy())
    line = dict(run=name(s), **s, seconds=round(time.time()-began, 1), classifiers=list(right), correct=correct)
    with atomic_path(line_of(s)) as tmp: tmp.write_text(json.dumps(line))
    print(time.strftime('%H:%M:%S'), name(s), 'judged', line['seconds'], flush=True)


def main(seeds, only_tune):
    plan, suite = read_plan(), load_suite('icons')
    start = zeroshot_classifier(load_clip(), suite.classnames, plan['templates']).eval()
    runs = settings(plan, seeds)
    if only_tune: return [tuned(plan, suite, start, s) for s in runs]
    sets = judged_by(suite).values()
    x, labels = pixels(start.clip, sets), torch.as_tensor(np.concatenate([s.labels for s in sets]))
    zeroshot = logits(start, x).argmax(1) == labels
    for s in runs:
        if not line_of(s).exists(): judge(plan, suite, start, s, x, labels, zeroshot)
    lines = [line_of(s).read_text() for s in settings(plan, plan['seeds']) if line_of(s).exists()]
    with atomic_path(HERE/'runs.jsonl', force=True) as tmp: tmp.write_text(''.join(l + '\n' for l in lines))


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, nargs='+', help='default: all of the protocol')
    p.add_argument('--only-tune', action='store_true', help='fine-tune and keep, classify no image')
    args = p.parse_args()
    seeds = args.seeds or read_plan()['seeds']
    with provenance(__file__, seeds=seeds, only_tune=args.only_tune): main(seeds, args.only_tune)
