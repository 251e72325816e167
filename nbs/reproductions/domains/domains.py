#!/usr/bin/env python
"""Solid icons as the reference, outline ones among its shifts: plain fine-tuning and WiSE-FT, three seeds.

    python domains.py    # about a minute a run on one core; a line of runs-solid.jsonl each, what is done is skipped
    python domains.py --repeat seed=2    # what share comes out otherwise

The recipe is the protocol's. Outline and solid are the styles that have training families; the runs with outline as the
reference, which is the protocol itself, are the first three of ../grid.
"""
import sys
from pathlib import Path
from wiseft.data.suites import protocol
from wiseft.train.learner import finetune

sys.path.append(str(Path(__file__).resolve().parents[1]))
from runs import judge, judged_sets, protocol_zeroshot, run_script

ALPHAS = [round(a/10, 1) for a in range(11)]
STYLE = 'solid'


def settings():
    "Every run."
    return [dict(seed=s) for s in (0, 1, 2)]


def main():
    suite, start = protocol_zeroshot()
    suite = suite.with_reference(STYLE, 'outline')
    sets = judged_sets(suite)

    def run(s):
        finetuned = finetune(start, suite, seed=s['seed'], progress=False, **protocol()['recipe'])
        return judge(start, finetuned, sets, ALPHAS) | dict(style=STYLE)

    run_script(__file__, settings(), run, 'runs-solid.jsonl')


if __name__ == '__main__': main()
