#!/usr/bin/env python
"""Classifiers trained from scratch on the reference alone: the suite's own baseline. Widths, epochs and parts of the data vary.

    python scratch.py    # ten seconds to three minutes a model on one core; a line of results.csv each, and those that have theirs are skipped
"""
import csv, sys, time, warnings
from pathlib import Path
import numpy as np, pandas as pd, torch
from open_clip.modified_resnet import ModifiedResNet

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from runs import fit, logits, pixels, provenance
from wiseft.datasets import load_suite
from wiseft.loaders import clip_dataloaders
from wiseft.metrics import accuracy
from wiseft.clips import load_clip
from wiseft.heads import random_head
from wiseft.classifiers import ImageClassifier

RESULTS = HERE/'results.csv'
LR = 1e-3
MODELS = [dict(width=16, part=p, epochs=e) for p in (.25, .5, 1.) for e in (10, 30)] + [dict(width=32, part=1., epochs=e) for e in (10, 25)] \
    + [dict(width=16, part=p, epochs=60) for p in (.25, .5, 1.)]


def untrained(width, classnames, seed=0):
    "The embedded CLIP's architecture of some width, with random weights and a random head."
    clip, v = load_clip(), load_clip().config['vision_cfg']
    torch.manual_seed(seed)
    clip.model.visual = ModifiedResNet(v['layers'], clip.dim, heads=width*32//v['head_width'], image_size=v['image_size'], width=width)
    return ImageClassifier(clip, random_head(clip, classnames), classnames, alpha=1.)


def part_of(images, part):
    "A random part of each class, the same for every model."
    return images if part == 1 else images.split((part,))[1]


def main():
    suite = load_suite('icons')
    done = set(map(tuple, pd.read_csv(RESULTS)[['width', 'part', 'epochs']].to_numpy())) if RESULTS.exists() else set()
    sets = {(k, d): s for k in ('test', 'validation') for d, s in suite.datasets(k).items()}
    x = {key: pixels(load_clip(), [s]) for key, s in sets.items()}
    for m in MODELS:
        if tuple(m.values()) in done: continue
        began, start = time.time(), untrained(m['width'], suite.classnames)
        images = part_of(suite.train, m['part'])
        dls = clip_dataloaders(images, start, 54, suite.validation, crop_scale=(.6, 1.))
        trained = fit(dls, start, m['epochs'], LR, seed=0, train_batchnorm=True).classifier
        row = m | dict(images=len(images), seconds=round(time.time()-began))
        row |= {f'{k} {d}': round(accuracy(logits(trained, x[k, d], 'fp32'), s.labels), 5) for (k, d), s in sets.items()}
        with open(RESULTS, 'a', newline='') as f:
            out = csv.DictWriter(f, list(row), lineterminator='\n')
            if not done: out.writeheader()
            out.writerow(row)
        done.add(tuple(m.values()))
        print(row, flush=True)


if __name__ == '__main__':
    warnings.filterwarnings('ignore', 'A random head knows nothing')
    with provenance(__file__, seeds=[0]): main()
