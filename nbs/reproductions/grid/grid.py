#!/usr/bin/env python
"""Fine-tune with many hyperparameters, each run with its curve over alpha: learning rate × epochs × regulariser, one seed.

    python grid.py    # about half a minute a run on one core; a line of runs.jsonl each, and those that have theirs are skipped

The protocol's own setting is run with three seeds. Runs come in a random order, so that a part of them is a sample of the grid.
"""
import random, sys, time
from pathlib import Path
import numpy as np, torch
from fastai.callback.core import Callback

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from runs import along, finished, fit, logits, looked_at, narrow_start, pixels, provenance, record
from wiseft.datasets import protocol
from wiseft.methods.ema import EMA
from wiseft.loaders import clip_dataloaders

RUNS = HERE/'runs.jsonl'
LRS, EPOCHS = (1e-4, 3e-4, 1e-3, 3e-3), (5, 10, 20)
REGULARISERS = {'none': dict(wd=0.), 'weight decay': dict(wd=.1), 'L2 to zero-shot': dict(wd=0., l2=.1), 'label smoothing': dict(wd=0., label_smoothing=.1),
                'EMA': dict(wd=0., decay=.95)}


class PullBack(Callback):
    "Add the gradient of strength/2·‖θ − θ₀‖² before gradients are scaled down."
    order = -10
    def __init__(self, start, strength): self.start, self.strength = [p.detach().clone() for p in start], strength
    def before_step(self):
        for p, p0 in zip(self.model.parameters(), self.start): p.grad.add_(p.detach()-p0, alpha=self.strength)


def settings():
    "Every run, as dicts: the protocol's with three seeds, then the grid."
    r = protocol()['recipe']
    main = [dict(lr=r['lr'], epochs=r['epochs'], regulariser='weight decay', seed=s) for s in (0, 1, 2)]
    grid = [dict(lr=lr, epochs=e, regulariser=k, seed=0) for lr in LRS for e in EPOCHS for k in REGULARISERS]
    random.Random(0).shuffle(grid)
    return main + [g for g in grid if g not in main]


def tune(s, dls, start):
    "The classifier that a fine-tuning ends with, or its moving average."
    o = dict(REGULARISERS[s['regulariser']])
    l2, decay = o.pop('l2', None), o.pop('decay', None)
    cbs = [PullBack(start.parameters(), l2)] if l2 else [EMA(decay)] if decay else []
    last = fit(dls, start, s['epochs'], s['lr'], s['seed'], cbs, **o).classifier
    return cbs[0].classifier if decay else last


def run(s, dls, start, x, labels):
    "One fine-tuning: (method, alpha) of each classifier, and which images it got right."
    tuned = tune(s, dls, start)
    right = {('weight-space', a): z.argmax(1) == labels for a, z in along(start, tuned, x)} | {('fine-tuned', 1.): logits(tuned, x).argmax(1) == labels}
    return list(right), torch.stack(list(right.values())).numpy()


def main():
    suite, start = narrow_start()
    sets = looked_at(suite).values()
    dls, x = clip_dataloaders(suite, start, protocol()['recipe']['batch_size']), pixels(start.clip, sets)
    labels = torch.as_tensor(np.concatenate([s.labels for s in sets]))
    if 'zero-shot' not in finished(RUNS): record(RUNS, 'zero-shot', {}, [('zero-shot', 0.)], (logits(start, x).argmax(1) == labels)[None].numpy(), time.time())
    for s in settings():
        name = ' '.join(f'{k}={v}' for k, v in s.items())
        if name not in finished(RUNS):
            began = time.time()
            record(RUNS, name, s, *run(s, dls, start, x, labels), began)


if __name__ == '__main__':
    with provenance(__file__, seeds=[0, 1, 2]): main()
