#!/usr/bin/env python
"""How often a bench of 24 rows without a difference calls one better, by the number of test images and seeds.

    python many.py    # writes many.csv, some minutes on one core

Each row is plain fine-tuning with other seeds. With the suite's own number of test images, most of the uncertainty
is theirs. With twenty times as many it is the seeds', of which there are few. Seeds come from the five that a part
has, or from two distributions with the same variance: normal, and two-humped (a run ends in one of two modes).
"""
import csv
import numpy as np
from functools import cache
from itertools import product
from seeds import HERE, PLAN, RATES, ROWS, both_sides, world
from wiseft.bench.chance import both_chances, holm_among, two_sided_p, seed_variance

TIMES, SEEDS, KINDS, BENCHES = (1, 3, 10, 20), (3, 4, 5, 6, 8), ('committed', 'normal', 'two-humped'), 1000
ADDED = (2,) # later than TIMES, so that the random numbers of the other cells stay
HEADER = ['part', 'kind', 'images', 'seeds', 'benches', 'better', 'worse']


@cache
def right(part):
    "set -> (5 seeds, images): right or wrong at the α that validation chooses."
    w = world(part)
    return {d: w.right[d][:, w.chosen([*range(5)])] for d in w.sets}


def committed(part, times, n, rng):
    "(rows, seeds) of scores with images drawn anew; and each row's variance over images."
    seeds, scores, variances = rng.integers(5, size=(ROWS+1, n)), {}, {}
    for d, r in right(part).items():
        size = times*r.shape[1]
        scores[d] = (r @ rng.multinomial(size, np.full(r.shape[1], 1/r.shape[1]))/size)[seeds]
        means = np.stack([np.bincount(s, minlength=5) for s in seeds]) @ r/n
        variances[d] = (means[1:]-means[0]).var(1)/size
    reference, shifts = both_sides(variances)
    return np.mean(both_sides(scores), 0), (reference + shifts/len(PLAN['shifts']))/4


def drawn(part, kind, times, n, rng):
    "The same for seeds from a distribution with the variance of the committed ones."
    scores, of_images = committed(part, 20, 5, rng)
    spread = np.mean(both_sides({d: r.mean(1) for d, r in right(part).items()}), 0).std(ddof=1)
    effects = rng.normal(0, 1, (ROWS+1, n))
    if kind == 'two-humped': effects = .3*effects + .95*rng.choice([-1, 1], (ROWS+1, n))
    variance = np.full(ROWS, of_images.mean()*20/times*5/n)
    return spread*effects + rng.normal(0, np.sqrt(variance[0]/2), (ROWS+1, 1)), variance


def bench(part, kind, times, n, rng):
    "Whether a bench without a difference calls a row better, or worse."
    runs, images = (committed(part, times, n, rng) if kind == 'committed' else drawn(part, kind, times, n, rng))
    each = runs[1:]-runs[0]
    without = [np.delete(each, i, 1).mean(1) for i in range(n)]
    fewest = times*min(r.shape[1] for r in right(part).values())
    error, df = both_chances(images, seed_variance(without), fewest, n)
    value = each.mean(1)
    significant = holm_among(two_sided_p(value, error, df), ROWS) < .05
    return (significant & (value > 0)).any(), (significant & (value < 0)).any()


def main():
    with (HERE/'many.csv').open('w', newline='') as f:
        w = csv.writer(f, lineterminator='\n')
        w.writerow(HEADER)
        cells = [*product(RATES, KINDS, TIMES, SEEDS), *product(RATES, KINDS, ADDED, SEEDS)]
        for i, (part, kind, times, n) in enumerate(cells):
            rng = np.random.default_rng([9, i])
            better, worse = np.mean([bench(part, kind, times, n, rng) for _ in range(BENCHES)], 0)
            w.writerow([part, kind, times, n, BENCHES, f'{better:.3f}', f'{worse:.3f}'])
            f.flush()


if __name__ == '__main__': main()
