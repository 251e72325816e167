#!/usr/bin/env python
"""Published intervals for means over sets, in the settings of coverage.py: how often they cover, and how wide they are.

    python procedures.py    # writes procedures.csv; some five minutes on one core
"""
import csv
from pathlib import Path

import numpy as np
from scipy import stats

import coverage
from coverage import SETTINGS, m

N_EXPERIMENTS = 300
LEVEL = .95
RESULTS = Path(__file__).resolve().parent/'procedures.csv'
chosen = m._mean_interval


def resampled_means(values, units, n_resamples=1000):
    "Mean over sets of resampled units, in groups of sets that share units: (n_resamples,)"
    sums, counts, _, groups = m._unit_rows(values, units)
    rng, means = np.random.default_rng(0), np.zeros(n_resamples)
    for u, s in groups:
        rows = np.hstack([sums[np.ix_(u, s)], counts[np.ix_(u, s)]])
        distinct, times = np.unique(rows, axis=0, return_counts=True) # units with the same outcome are drawn together
        drawn = rng.multinomial(len(rows), times/len(rows), n_resamples)
        c, n = np.hsplit(drawn @ distinct, 2)
        with np.errstate(invalid='ignore'): means += (c/n).sum(1)/len(values)
    return means[~np.isnan(means)]


def percentile(values, units, *_, **__):
    "Cluster bootstrap, percentiles (Efron 1979)"
    return mean_of(values), *np.quantile(resampled_means(values, units), [(1-LEVEL)/2, (1+LEVEL)/2])


def bca(values, units, *_, **__):
    "Cluster bootstrap, bias-corrected and accelerated (Efron 1987)"
    mean, means = mean_of(values), resampled_means(values, units)
    sums, counts, _, groups = m._unit_rows(values, units)
    changes = []
    for u, s in groups:
        c, n = sums[np.ix_(u, s)], counts[np.ix_(u, s)]
        with np.errstate(all='ignore'): without = ((c.sum(0)-c)/(n.sum(0)-n)).sum(1)
        changes.append(without[np.isfinite(without)].mean() - without[np.isfinite(without)])
    d = np.concatenate(changes)
    acceleration = (d**3).sum()/(6*(d**2).sum()**1.5) if d.any() else 0.
    below = ((means < mean).mean() + (means <= mean).mean())/2
    bias = stats.norm.ppf(np.clip(below, 1e-4, 1-1e-4))
    z = bias + stats.norm.ppf([(1-LEVEL)/2, (1+LEVEL)/2])
    return mean, *np.quantile(means, stats.norm.cdf(bias + z/(1-acceleration*z)))


def cluster_t(values, units, spans, *more, **named):
    "Jackknife over clusters, t with Satterthwaite's degrees of freedom (Bell and McCaffrey 2002)"
    return chosen(values, units, None, *more, **named)


def adjusted_t(*args, **named):
    "The same with two successes and two failures added (Price and Bonett 2004), as large as the design effect"
    return chosen(*args, **named)


def mean_of(values): return float(np.mean([v.mean() for v in values.values()]))


def main():
    with RESULTS.open('w', newline='') as f:
        table = csv.writer(f, lineterminator='\n')
        table.writerow(['function', 'setting', 'procedure', 'experiments', 'covered', 'width'])
        for procedure in (percentile, bca, cluster_t, adjusted_t):
            m._mean_interval = procedure
            for (function, name), (experiment, n) in SETTINGS.items():
                if function not in ('mean_over_sets', 'mean_difference'): continue
                n = min(n, N_EXPERIMENTS)
                held, widths = coverage.run(function, name, n, widths=True)
                row = function, name, procedure.__name__, n, round((held == 0).mean(), 4), round(widths.mean(), 4)
                table.writerow(row)
            print(procedure.__doc__, flush=True)


if __name__ == '__main__': main()
