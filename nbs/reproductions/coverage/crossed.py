#!/usr/bin/env python
"""Three procedures for a difference over crossed images and seeds: how often intervals cover, how wide they are, and
how often a bench of 24 rows without a difference calls one better or worse.

    python crossed.py    # writes crossed.csv, two minutes on one core

The difference is between plain fine-tuning and plain fine-tuning with other seeds, so its truth is 0 (many.py).
"""
import csv
from itertools import product

import numpy as np
from many import HERE, KINDS, RATES, ROWS, committed, drawn, right
from scipy import stats
from wiseft.bench.chance import both_chances, holm_among, two_sided_p, seed_variance

TIMES, SEEDS, BENCHES = (1, 20), (3, 5, 8), 400


def images_alone(images, seeds, n_images, n_seeds):
    "t over images; seeds are ignored"
    return np.sqrt(images), np.full(images.shape, n_images-1.)


def satterthwaite(images, seeds, n_images, n_seeds):
    "The sum of both variances, with Satterthwaite's degrees of freedom (1946)"
    with np.errstate(invalid='ignore'):
        df = (images+seeds)**2/(images**2/(n_images-1) + seeds**2/(n_seeds-1))
    return np.sqrt(images+seeds), np.nan_to_num(df, nan=1.) # no variance at all: nothing is told


def bench(part, kind, times, n, rng):
    "Of 24 rows without a difference: the differences, their variances over images, and over seeds"
    runs, of_images = committed(part, times, n, rng) if kind == 'committed' else drawn(part, kind, times, n, rng)
    each = runs[1:]-runs[0]
    without = [np.delete(each, seed, 1).mean(1) for seed in range(n)]
    return each.mean(1), of_images, seed_variance(without)


def judge(procedure, value, variances, n_images, n_seeds):
    "Shares of intervals that hold 0, their mean width, and whether a row is called better, and better or worse"
    error, df = procedure(*variances, n_images, n_seeds)
    half = stats.t.ppf(.975, df)*error
    told = holm_among(two_sided_p(value, error, df), ROWS) < .05
    return (abs(value) <= half).mean(), 100*half.mean(), (told & (value > 0)).any(), told.any()


def main():
    with (HERE/'crossed.csv').open('w', newline='') as f:
        table = csv.writer(f, lineterminator='\n')
        table.writerow(['part', 'kind', 'images', 'seeds', 'procedure', 'benches', 'covered', 'width', 'better',
                        'either'])
        for i, (part, kind, times, n) in enumerate(product(RATES, KINDS, TIMES, SEEDS)):
            rng = np.random.default_rng([10, i])
            fewest = times*min(r.shape[1] for r in right(part).values())
            benches = [bench(part, kind, times, n, rng) for _ in range(BENCHES)]
            for procedure in (images_alone, satterthwaite, both_chances):
                told = [judge(procedure, value, variances, fewest, n) for value, *variances in benches]
                numbers = [f'{v:.4f}' for v in np.mean(told, 0)]
                table.writerow([part, kind, times, n, procedure.__name__, BENCHES, *numbers])
            f.flush()


if __name__ == '__main__': main()
