#!/usr/bin/env python
"""Intervals for the accuracy on one set of images in groups: how often candidates cover, and how wide they are.

    python groups.py    # writes groups.csv; a minute on one core

Groups of 50 images, or of 10 to 90; images of a group are alike with an intra-group correlation.
"""
import csv
import zlib
from itertools import product
from pathlib import Path

import numpy as np
from scipy import special, stats

N_EXPERIMENTS = 4000
RESULTS = Path(__file__).resolve().parent/'groups.csv'


def drawn(rng, p, correlation, sizes):
    "Right answers of each group: (experiments, groups)"
    shape = N_EXPERIMENTS, len(sizes)
    if correlation == 0: own = np.full(shape, p)
    elif correlation == 1: own = (rng.random(shape) < p).astype(float)
    else: own = rng.beta(*(np.array([p, 1-p])*(1/correlation - 1)), shape)
    return rng.binomial(sizes, own)


# right: (experiments, groups), sizes: (groups,) -> (low, high) of each experiment

def exact(right, n): # of n images, which may be no whole number
    with np.errstate(all='ignore'):
        low = np.where(right <= 1e-9, 0, special.betaincinv(np.maximum(right, 1e-9), n-right+1, .025))
        high = np.where(right >= n-1e-9, 1, special.betaincinv(right+1, np.maximum(n-right, 1e-9), .975))
    return low, high


def jackknife(right, sizes):
    "Mean, and its variance over groups"
    n, k = sizes.sum(), len(sizes)
    mean = right.sum(1)/n
    without = (right.sum(1, keepdims=True) - right)/(n - sizes)
    return mean, (k-1)/k*((without - mean[:, None])**2).sum(1)


def freedom(sizes): return sizes.sum()**2/(sizes**2).sum() - 1 # effective number of groups − 1


def over_images(right, sizes):
    "Clopper–Pearson over images"
    return exact(right.sum(1), sizes.sum())


def plain_t(right, sizes):
    "t over groups"
    mean, variance = jackknife(right, sizes)
    half = stats.t.ppf(.975, freedom(sizes))*np.sqrt(variance)
    return mean - half, mean + half


def ratio(right, sizes): # where all are right or all wrong: images in a group
    mean, variance = jackknife(right, sizes)
    images = mean*(1-mean)/(sizes.sum()-1)
    return np.divide(variance, images, out=np.full(len(mean), sizes.mean()), where=images > 0)


def korn_graubard(right, sizes):
    "Clopper–Pearson at the effective number of images (Korn and Graubard 1998)"
    n = sizes.sum()
    effective = np.minimum(n/np.maximum(ratio(right, sizes), 1e-9), n)
    effective = effective*(stats.t.ppf(.975, n-1)/stats.t.ppf(.975, freedom(sizes)))**2
    return exact(right.sum(1)/n*effective, effective)


def upper_limit(right, sizes):
    "The same with the upper 95 % limit of the design effect, by the F distribution"
    n, k = sizes.sum(), len(sizes)
    effective = n/np.maximum(ratio(right, sizes)/stats.f.ppf(.05, k-1, n-k), 1)
    return exact(right.sum(1)/n*effective, effective)


def added(right, sizes, images): # images: (experiments,) of each added unit
    "t over groups with two right and two wrong units added"
    size = images[:, None]
    x = np.concatenate([right, 0*size, size], 1)
    n = np.concatenate([np.tile(sizes, (len(x), 1)), size, size], 1)
    times = np.append(np.ones(len(sizes)), [2, 2])
    total, number = n @ times, times.sum()
    center = x @ times/total
    change = (x - center[:, None]*n)/(total[:, None] - n)
    half = np.sqrt((number-1)/number*(change**2 @ times))
    half = half*stats.t.ppf(.975, 1/((n/total[:, None])**2 @ times) - 1)
    mean = right.sum(1)/sizes.sum()
    return np.minimum(mean, np.maximum(center - half, 0)), np.maximum(mean, np.minimum(center + half, 1))


def added_images(right, sizes):
    "t over groups, 2 + 2 images added (until now)"
    return added(right, sizes, np.ones(len(right)))


def added_groups(right, sizes):
    "t over groups, 2 + 2 groups added"
    return added(right, sizes, np.full(len(right), sizes.mean()))


def added_effective(right, sizes):
    "t over groups, 2 + 2 units as large as the design effect added (ours)"
    alike = (right == 0) | (right == sizes)
    effect = np.log(np.maximum(ratio(right, sizes), 1))[:, None]
    return added(right, sizes, np.exp((sizes*np.where(alike, np.log(sizes), effect)).sum(1)/sizes.sum()))


PROCEDURES = over_images, plain_t, added_images, korn_graubard, upper_limit, added_groups, added_effective


def main():
    with RESULTS.open('w', newline='') as f:
        table = csv.writer(f, lineterminator='\n')
        table.writerow(['procedure', 'groups', 'sizes', 'accuracy', 'correlation', 'experiments', 'covered', 'width'])
        for n, unequal, p, correlation in product((5, 10, 20), (False, True), (.5, .8, .95), (0, .3, 1)):
            sizes = np.round(np.linspace(.2, 1.8, n)*50).astype(int) if unequal else np.full(n, 50)
            rng = np.random.default_rng(zlib.crc32(f'{n} {unequal} {p} {correlation}'.encode()))
            right = drawn(rng, p, correlation, sizes)
            for procedure in PROCEDURES:
                low, high = procedure(right, sizes)
                covered, width = ((low <= p) & (p <= high)).mean(), (np.clip(high, 0, 1) - np.clip(low, 0, 1)).mean()
                row = procedure.__name__, n, 'unequal' if unequal else 'equal', p, correlation, N_EXPERIMENTS
                table.writerow([*row, round(covered, 4), round(width, 4)])


if __name__ == '__main__': main()
