#!/usr/bin/env python
"""Averages over time: SWA and EMA of one fine-tuning, alone and averaged with the zero-shot classifier; BatchNorm trained or not, recomputed or not.

    python averages.py    # about a minute and a half a run on one core; a line of runs.jsonl each, and those that have theirs are skipped
"""
import sys, time
from copy import deepcopy
from pathlib import Path
import numpy as np, torch
from fastai.callback.core import Callback
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from runs import along, finished, fit, logits, looked_at, narrow_start, pixels, provenance, record
from wiseft.datasets import protocol
from wiseft.finetune import clip_dataloaders
from wiseft.weights import recompute_batchnorm

RUNS, LR, ALPHAS = HERE/'runs.jsonl', 1e-3, [.25, .5, .75]


def settings(): return [dict(batchnorm=b, seed=s) for s in (0, 1, 2) for b in ('frozen', 'trained')]


class TimeAverage(Callback):
    "Average of the weights after every step (EMA), or after every epoch of the second half (SWA), kept beside the model."
    order = 60
    def __init__(self, decay=None): self.decay = decay
    def before_fit(self):
        self.mean = AveragedModel(self.model, multi_avg_fn=self.decay and get_ema_multi_avg_fn(self.decay), use_buffers=True)
        if self.decay: self.mean.update_parameters(self.model)
    def after_batch(self):
        if self.training and self.decay: self.mean.update_parameters(self.model)
    def after_epoch(self):
        if not self.decay and 2*(self.epoch+1) > self.n_epoch: self.mean.update_parameters(self.model)


def averages(dls, start, s):
    "Name -> classifier: what the fit ends with, and its averages over time."
    swa, ema = TimeAverage(), TimeAverage(decay=.95)
    tuned = fit(dls, start, protocol()['recipe']['epochs'], LR, s['seed'], [swa, ema], train_batchnorm=s['batchnorm'] == 'trained').classifier
    out = dict(last=tuned, SWA=swa.mean.module, EMA=ema.mean.module)
    return out | ({f'{k}, recomputed': recompute_batchnorm(deepcopy(c), list(dls.train.new(shuffle=False))) for k, c in out.items()} if s['batchnorm'] == 'trained' else {})


def main():
    suite, start = narrow_start()
    sets = looked_at(suite).values()
    x, labels = pixels(start.clip, sets), torch.as_tensor(np.concatenate([s.labels for s in sets]))
    dls = clip_dataloaders(suite, start, protocol()['recipe']['batch_size'])
    for s in settings():
        name = ' '.join(f'{k}={v}' for k, v in s.items())
        if name in finished(RUNS): continue
        began, z = time.time(), {}
        for k, c in averages(dls, start, s).items():
            z |= {(k, a): v for a, v in along(start, c, x, ALPHAS)} | {(k, 1.): logits(c, x)}
        record(RUNS, name, s, list(z), torch.stack([v.argmax(1) == labels for v in z.values()]).numpy(), began)


if __name__ == '__main__':
    with provenance(__file__, seeds=[0, 1, 2]): main()
