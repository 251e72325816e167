#!/usr/bin/env python
"""The protocol's recipe from zero-shot classifiers that are weak: the CLIP doesn't know the names of some classes.

    python names.py    # two minutes or three a run on one core; a line of runs.jsonl each, what is done is skipped
    python names.py --repeat "unknown=0.25 seed=0"    # what share comes out otherwise

A quarter, half, three quarters or all of the classes go by a part number instead of their name.
"""
import sys, warnings
from pathlib import Path
import numpy as np
from wiseft.models.classifier import ImageClassifier
from wiseft.data.suites import protocol
from wiseft.models.head import zeroshot_head
from wiseft.train.learner import finetune

sys.path.append(str(Path(__file__).resolve().parents[1]))
from runs import judge, judged_sets, protocol_zeroshot, run_script

ALPHAS = [round(a/10, 1) for a in range(11)]


def settings():
    "Every run; its seed picks the names, too."
    return [dict(unknown=share, seed=0) for share in (.25, .5, .75, 1.)]


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
    suite, start = protocol_zeroshot()
    sets = judged_sets(suite)

    def run(s):
        weak = start_with(start, part_numbers(suite.classnames, s['unknown'], s['seed']))
        finetuned = finetune(weak, suite, seed=s['seed'], progress=False, **protocol()['recipe'])
        return judge(weak, finetuned, sets, ALPHAS)

    run_script(__file__, settings(), run)


if __name__ == '__main__': main()
