#!/usr/bin/env python
"""Fine-tune with many hyperparameters, each run with its curve over alpha: learning rate × epochs × regulariser.

    python grid.py    # a minute a run on one core; a line of runs.jsonl each, what is done is skipped
    python grid.py --repeat "lr=0.003 epochs=5 regulariser=L2 to zero-shot seed=0"    # what share comes out otherwise

One seed, but for the protocol's own setting, which is run with three. Runs come in a random order, so that a part of
them is a sample of the grid.
"""
import random, sys
from functools import partial
from pathlib import Path
from wiseft.data.suites import protocol
from wiseft.train.learner import finetune
from wiseft.methods.ema import EMA
from wiseft.methods.l2sp import l2sp

sys.path.append(str(Path(__file__).resolve().parents[1]))
from runs import judge, judged_sets, protocol_zeroshot, run_script

ALPHAS = [round(a/10, 1) for a in range(1, 11)]
LRS, EPOCHS = (1e-4, 3e-4, 1e-3, 3e-3), (5, 10, 20)
REGULARISERS = {
    'none': dict(wd=0.),
    'weight decay': dict(wd=.1),
    'L2 to zero-shot': dict(wd=0., loss=partial(l2sp, strength=.1)),
    'label smoothing': dict(wd=0., label_smoothing=.1),
    'EMA': dict(wd=0.),
}


def settings():
    "Every run: none but the zero-shot classifier, the protocol's recipe with three seeds, then the grid."
    lr, epochs = (protocol()['recipe'][k] for k in ('lr', 'epochs'))
    main = [dict(lr=lr, epochs=epochs, regulariser='weight decay', seed=s) for s in (0, 1, 2)]
    grid = [dict(lr=lr, epochs=e, regulariser=k, seed=0) for lr in LRS for e in EPOCHS for k in REGULARISERS]
    random.Random(0).shuffle(grid)
    return [{}] + main + [g for g in grid if g not in main]


def tune(start, suite, lr, epochs, regulariser, seed):
    "The classifier that a fine-tuning ends with, or its moving average."
    cbs = [EMA(.95)] if regulariser == 'EMA' else []
    recipe = protocol()['recipe'] | dict(lr=lr, epochs=epochs, seed=seed) | REGULARISERS[regulariser]
    last = finetune(start, suite, cbs=cbs, progress=False, **recipe)
    return cbs[0].classifier if cbs else last


def main():
    suite, start = protocol_zeroshot()
    sets = judged_sets(suite)

    def run(s):
        if not s: return judge(start, start, sets, [0.])
        return judge(start, tune(start, suite, **s), sets, ALPHAS)

    run_script(__file__, settings(), run)


if __name__ == '__main__': main()
