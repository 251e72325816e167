#!/usr/bin/env python
"""Sweeps that pass a sample: are they unbiased, do their intervals hold, and what do they save?

    python fast.py    # some minutes on one core; reads the answers that asked.py wrote, writes fast.csv

Of each shifted set a pool of as many images is drawn 400 times, with replacement, and of the pool those images that the
ends answer alike and that averages are shown. What a whole sweep of the pool says stands beside."""
from pathlib import Path

import numpy as np
import pandas as pd
from asked import END, HALF, RECIPES, answers

from wiseft.stats.intervals import mean_difference, mean_over_sets

HERE = Path(__file__).resolve().parent
SHARES, DRAWS = (.05, .1, .2), 400


def sampled_estimates(some, end, shown, chance, labels):
    """Right or wrong on all images, unbiased, of a classifier that predicts `some` on those shown, from one that
    predicts `end` on all"""
    right = (end == labels).astype(float)
    right[shown] += ((some == labels[shown]) - right[shown])/chance[shown]
    return right


def draw(said, labels, share, rng):
    "Of one pool: difference of α = 0.5 and 1 from all and from a sample, each with its interval, and passes"
    chance = np.where(said[0] != said[END], 1, share)
    shown = rng.random(len(labels)) < chance
    fast = sampled_estimates(said[HALF][shown], said[END], shown, chance, labels)
    whole, finetuned = said[HALF] == labels, said[END] == labels
    sampled = mean_over_sets({'': fast - finetuned}, bounded=False) # an estimate may lie beyond 0 to 1
    return mean_difference({'': finetuned}, {'': whole}), sampled, shown.mean()


def of_set(said, labels, share):
    "A row: bias, coverage, widths, passes"
    rng, found = np.random.default_rng([int(100*share), len(labels)]), []
    truth = (said[HALF] == labels).mean() - (said[END] == labels).mean()
    for _ in range(DRAWS):
        pool = rng.integers(len(labels), size=len(labels))
        (a, *full), (b, *part), passes = draw(said[:, pool], labels[pool], share, rng)
        held = [low <= truth <= high for low, high in (full, part)]
        found.append((b - a, *held, full[1] - full[0], part[1] - part[0], passes))
    found = np.array(found)
    names = ['bias', 'held_all', 'held_sample', 'width_all', 'width_sample', 'passes']
    return dict(zip(names, found.mean(0))) | dict(bias_error=found[:, 0].std()/np.sqrt(DRAWS))


def main():
    rows = []
    for name in RECIPES:
        for d, (said, labels) in answers(name).items():
            rows += [dict(recipe=name, set=d, n=len(labels), share=s) | of_set(said, labels, s) for s in SHARES]
    t = pd.DataFrame(rows)
    t['fewer_at_equal_width'] = 1/(t.passes*(t.width_sample/t.width_all)**2)
    t.to_csv(HERE/'fast.csv', index=False, float_format='%.5f', lineterminator='\n')


if __name__ == '__main__': main()
