#!/usr/bin/env python
"""Few images a class: linear classifier, end to end, and the average of each with the zero-shot classifier.

    python shots.py    # half a minute to two a run on one core; a line of runs.jsonl each, what is done is skipped
    python shots.py --repeat "k=4 kind=linear classifier seed=0"    # what share comes out otherwise

Images are drawn from all families of the reference's training images; classes with fewer than k give all they have.
Nothing is finetuned for k: the protocol's recipe end to end, and one learning rate for heads.
"""
import sys
from itertools import product
from pathlib import Path
import numpy as np
from wiseft.data.suites import load_suite, protocol
from wiseft.train.learner import finetune

sys.path.append(str(Path(__file__).resolve().parents[1]))
from runs import judge, judged_sets, protocol_zeroshot, run_script

SHOTS, LINEAR_LR = (1, 2, 4, 8, 16, 25), 1e-2
ALPHAS = [.25, .5, .75, 1.]


def settings():
    "Every run."
    return [dict(k=k, kind=kind, seed=s) for s, kind, k in product((0, 1), ('linear classifier', 'end to end'), SHOTS)]


def few(images, k, seed):
    "At most `k` images of each class, drawn with the seed."
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(images.labels == c))[:k] for c in range(len(images.classnames))]
    return images.subset(np.concatenate(drawn))


def main():
    suite, (_, start) = load_suite('icons'), protocol_zeroshot()
    sets = judged_sets(suite)

    def run(s):
        images = few(suite.train, s['k'], s['seed'])
        recipe = protocol()['recipe'] | dict(seed=s['seed'])
        if s['kind'] == 'linear classifier': recipe |= dict(train='head', lr=LINEAR_LR)
        finetuned = finetune(start, images, suite.validation, progress=False, **recipe)
        return judge(start, finetuned, sets, ALPHAS) | dict(images=len(images))

    run_script(__file__, settings(), run)


if __name__ == '__main__': main()
