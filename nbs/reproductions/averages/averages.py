#!/usr/bin/env python
"""Weight averages during training: SWA and EMA, alone and averaged with the zero-shot classifier; BatchNorm
trained or not, recomputed or not.

    python averages.py    # two to five minutes a run on one core; a line of runs.jsonl each, what is done is skipped
    python averages.py --repeat "batchnorm=frozen seed=2"    # what share comes out otherwise
"""
import sys
from pathlib import Path
from wiseft.weights.batchnorm import recompute_batchnorm
from wiseft.data.suites import protocol
from wiseft.train.learner import finetune
from wiseft.train.loaders import clip_dataloaders
from wiseft.weights.merge import interpolate
from wiseft.methods.ema import EMA
from wiseft.methods.swa import SWA

sys.path.append(str(Path(__file__).resolve().parents[1]))
from runs import judged_sets, protocol_zeroshot, right_answers, run_script

LR, ALPHAS = 1e-3, [.25, .5, .75, 1.]


def settings():
    "Every run."
    return [dict(batchnorm=b, seed=s) for s in (0, 1, 2) for b in ('frozen', 'trained')]


def averages(start, suite, batchnorm, seed):
    "Name -> classifier: what the fit ends with, and its weight averages during training."
    swa, ema = SWA(), EMA(decay=.95)
    recipe = protocol()['recipe'] | dict(lr=LR, seed=seed, train_batchnorm=batchnorm == 'trained')
    last = finetune(start, suite, cbs=[swa, ema], progress=False, **recipe)
    return {'last': last, 'SWA': swa.classifier, 'EMA': ema.classifier}


def along(start, finetuned, batches):
    "Method, alpha -> classifier: averages with the zero-shot classifier; with batches, also of recomputed statistics."
    for name, classifier in finetuned.items():
        plain = {a: interpolate(start, classifier, a) for a in ALPHAS}
        yield from (((name, a), c) for a, c in plain.items())
        for a, c in plain.items():
            if batches: yield (f'{name}, recomputed', a), recompute_batchnorm(c.copy(), batches)


def main():
    suite, start = protocol_zeroshot()
    sets = judged_sets(suite)
    dls = clip_dataloaders(suite, start, protocol()['recipe']['batch_size'])
    batches = [x for x, _ in dls.train.new(shuffle=False)]

    def run(s):
        finetuned = averages(start, suite, **s)
        return right_answers(dict(along(start, finetuned, batches if s['batchnorm'] == 'trained' else [])), sets)

    run_script(__file__, settings(), run)


if __name__ == '__main__': main()
