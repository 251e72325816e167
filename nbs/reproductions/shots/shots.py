#!/usr/bin/env python
"""Few images a class: linear classifier, end to end, and the average of each with the zero-shot classifier.

    python shots.py    # 20 to 90 seconds a run on one core; a line of runs.jsonl each, and those that have theirs are skipped

Images are drawn from all families of the reference's training images; classes with fewer than k give all they have.
Nothing is tuned for k: the protocol's recipe end to end, and one learning rate for heads.
"""
import sys, time
from pathlib import Path
import numpy as np, torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from runs import along, finished, fit, logits, looked_at, narrow_start, pixels, provenance, record
from wiseft.datasets import load_suite, protocol
from wiseft.loaders import clip_dataloaders

RUNS, SHOTS, LINEAR_LR = HERE/'runs.jsonl', (1, 2, 4, 8, 16, 25), 1e-2


def settings(): return [dict(k=k, kind=kind, seed=s) for s in (0, 1) for kind in ('linear classifier', 'end to end') for k in SHOTS]


def few(images, k, seed):
    "At most `k` images of each class, drawn with the seed."
    rng = np.random.default_rng(seed)
    return images.subset(np.concatenate([rng.permutation(np.flatnonzero(images.labels == c))[:k] for c in range(len(images.classnames))]))


def main():
    suite, (_, start) = load_suite('icons'), narrow_start()
    sets, r = looked_at(suite).values(), protocol()['recipe']
    x, labels = pixels(start.clip, sets), torch.as_tensor(np.concatenate([s.labels for s in sets]))
    for s in settings():
        name = ' '.join(f'{k}={v}' for k, v in s.items())
        if name in finished(RUNS): continue
        began, images, linear = time.time(), few(suite.train, s['k'], s['seed']), s['kind'] == 'linear classifier'
        dls = clip_dataloaders(images, start, r['batch_size'], suite.validation)
        tuned = fit(dls, start, r['epochs'], LINEAR_LR if linear else r['lr'], s['seed'], train='head' if linear else 'all', wd=r['wd']).classifier
        z = {('weight-space', a): z for a, z in along(start, tuned, x, [.25, .5, .75])} | {('fine-tuned', 1.): logits(tuned, x)}
        record(RUNS, name, s | dict(images=len(images)), list(z), torch.stack([v.argmax(1) == labels for v in z.values()]).numpy(), began)


if __name__ == '__main__':
    with provenance(__file__, seeds=[0, 1]): main()
