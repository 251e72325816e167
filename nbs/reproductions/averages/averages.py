#!/usr/bin/env python
"""Averages over time: SWA and EMA of one fine-tuning, alone and averaged with the zero-shot classifier; BatchNorm trained or not, recomputed or not.

    python averages.py    # one to three minutes a run on one core; a line of runs.jsonl each, and those that have theirs are skipped
"""
import sys, time
from pathlib import Path
import numpy as np, torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from runs import finished, fit, logits, looked_at, narrow_start, pixels, provenance, record
from wiseft.datasets import protocol
from wiseft.methods.ema import EMA
from wiseft.methods.swa import SWA
from wiseft.loaders import clip_dataloaders
from wiseft.merging import WeightPath, recompute_batchnorm

RUNS, LR, ALPHAS = HERE/'runs.jsonl', 1e-3, [.25, .5, .75, 1.]


def settings(): return [dict(batchnorm=b, seed=s) for s in (0, 1, 2) for b in ('frozen', 'trained')]


def averages(dls, start, s):
    "Name -> classifier: what the fit ends with, and its averages over time."
    swa, ema = SWA(), EMA(decay=.95)
    last = fit(dls, start, protocol()['recipe']['epochs'], LR, s['seed'], [swa, ema], train_batchnorm=s['batchnorm'] == 'trained').classifier
    return {'last': last, 'SWA': swa.classifier, 'EMA': ema.classifier}


def judged(start, classifier, x, batches=()):
    "(alpha, logits) of averages with the zero-shot classifier; BatchNorm statistics of each recomputed on the batches, if there are any."
    path = WeightPath(start.copy(), start.state_dict(), classifier.state_dict())
    for a in ALPHAS: yield a, logits(recompute_batchnorm(path(a), batches) if batches else path(a), x)


def main():
    suite, start = narrow_start()
    sets = looked_at(suite).values()
    x, labels = pixels(start.clip, sets), torch.as_tensor(np.concatenate([s.labels for s in sets]))
    dls = clip_dataloaders(suite, start, protocol()['recipe']['batch_size'])
    batches = [torch.Tensor(b) for b, _ in dls.train.new(shuffle=False)]
    for s in settings():
        name = ' '.join(f'{k}={v}' for k, v in s.items())
        if name in finished(RUNS): continue
        began, z = time.time(), {}
        for k, c in averages(dls, start, s).items():
            z |= {(k, a): v for a, v in judged(start, c, x)}
            if s['batchnorm'] == 'trained': z |= {(f'{k}, recomputed', a): v for a, v in judged(start, c, x, batches)}
        record(RUNS, name, s, list(z), torch.stack([v.argmax(1) == labels for v in z.values()]).numpy(), began)


if __name__ == '__main__':
    with provenance(__file__, seeds=[0, 1, 2]): main()
