#!/usr/bin/env python
"""The protocol's recipe from zero-shot classifiers that are weak, because the CLIP doesn't know the names of some classes.

    python names.py    # a minute or two a run on one core; a line of runs.jsonl each, and those that have theirs are skipped

A quarter, half, three quarters or all of the classes go by a part number instead of their name; the rest is as in the protocol.
"""
import sys, time, warnings
from itertools import product
from pathlib import Path
import numpy as np, torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from runs import along, finished, fit, logits, looked_at, narrow_start, pixels, provenance, record
from wiseft.datasets import protocol
from wiseft.loaders import clip_dataloaders
from wiseft.heads import zeroshot_head
from wiseft.classifiers import ImageClassifier

RUNS = HERE/'runs.jsonl'
SHARES, SEEDS = (.25, .5, .75, 1.), (0,)


def part_numbers(names, share, seed):
    "The class names, a random share of them replaced by numbers that say nothing."
    unknown = np.random.default_rng(seed).permutation(len(names)) < round(share*len(names))
    return [f'{1000 + i}' if u else name for i, (name, u) in enumerate(zip(names, unknown))]


def start_with(start, names):
    "A classifier with the zero-shot head of other names; its classes go on being called what they are."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # of words that the CLIP never saw, which is the point
        head = zeroshot_head(start.clip, names, protocol()['templates'])
    return ImageClassifier(start.clip, head, start.classnames, protocol()['templates'], alpha=0.)


def main():
    suite, start = narrow_start()
    r, sets = protocol()['recipe'], looked_at(suite).values()
    dls, x = clip_dataloaders(suite, start, r['batch_size']), pixels(start.clip, sets)
    labels = torch.as_tensor(np.concatenate([s.labels for s in sets]))
    for seed, share in product(SEEDS, SHARES):
        settings = dict(unknown=share, seed=seed)
        name = ' '.join(f'{k}={v}' for k, v in settings.items())
        if name in finished(RUNS): continue
        began, weak = time.time(), start_with(start, part_numbers(suite.classnames, share, seed))
        tuned = fit(dls, weak, r['epochs'], r['lr'], seed, wd=r['wd']).classifier
        z = {('zero-shot', 0.): logits(weak, x)} | {('weight-space', a): z for a, z in along(weak, tuned, x)} | {('fine-tuned', 1.): logits(tuned, x)}
        record(RUNS, name, settings, list(z), torch.stack([v.argmax(1) == labels for v in z.values()]).numpy(), began)


if __name__ == '__main__':
    with provenance(__file__, seeds=list(SEEDS)): main()
