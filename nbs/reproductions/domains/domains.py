#!/usr/bin/env python
"""Every style that has training families as the reference in turn, the others as its shifts: plain fine-tuning and WiSE-FT, three seeds.

    python domains.py    # about a minute a run on one core; a line of runs-STYLE.jsonl each, and those that have theirs are skipped

The recipe is the protocol's. The runs with outline as the reference, which is the protocol itself, are the first three of ../grid.
"""
import sys, time
from dataclasses import replace
from pathlib import Path
import numpy as np, torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from runs import along, finished, fit, logits, looked_at, narrow_start, pixels, provenance, record
from wiseft.datasets import protocol
from wiseft.loaders import clip_dataloaders


def as_reference(suite, style):
    "The suite with another style as its reference; the outline icons become a shift."
    named = lambda s, name: replace(s, name=name)
    shifts = {'outline': named(suite.test, 'outline')} | {d: s for d, s in suite.shifts.items() if d != style}
    own = [named(part[style], 'reference') for part in (suite.shift_train, suite.shift_validation, suite.shifts)]
    return replace(suite, train=own[0], validation=own[1], test=own[2], shifts=shifts, shift_train={}, shift_validation={})


def main():
    suite, start = narrow_start()
    r = protocol()['recipe']
    for style in suite.shift_train:
        mine, path = as_reference(suite, style), HERE/f'runs-{style}.jsonl'
        sets = looked_at(mine).values()
        x, labels = pixels(start.clip, sets), torch.as_tensor(np.concatenate([s.labels for s in sets]))
        dls = clip_dataloaders(mine, start, r['batch_size'])
        for seed in (0, 1, 2):
            if f'seed={seed}' in finished(path): continue
            began, tuned = time.time(), fit(dls, start, r['epochs'], r['lr'], seed, wd=r['wd']).classifier
            z = {('zero-shot', 0.): logits(start, x)} | {('weight-space', a): z for a, z in along(start, tuned, x)} | {('fine-tuned', 1.): logits(tuned, x)}
            record(path, f'seed={seed}', dict(style=style, seed=seed), list(z), torch.stack([v.argmax(1) == labels for v in z.values()]).numpy(), began)


if __name__ == '__main__':
    with provenance(__file__, seeds=[0, 1, 2]): main()
