#!/usr/bin/env python
"""Labels one by one, with a look after each: how often a sign is announced, and what that costs in labels.

    python stopping.py    # writes stopping.csv; a minute on one core

`ask` looks at anytime intervals before all planned labels are there, and at the exact interval then.
"""
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import special

from wiseft.analysis.label_intervals import SPENT, _likeliest, _score

RESULTS = Path(__file__).resolve().parent/'stopping.csv'
PLANNED, MOST, RUNS = 50, 80, 2000 # labels planned, labels drawn to find the price, and series
SHARES = (.1, .1), (.25, .25), (.45, .45), (.4, .3), (.5, .3), (.5, .2), (.6, .1) # of wins and losses


def tails(n): # (n+1, n+1): of wins and losses, how improbable so extreme a score is where there is no difference
    w, l = np.divmod(np.arange((n+1)**2), n+1)
    w, l = w[w+l <= n], l[w+l <= n]
    counts, p = np.stack([w, l, n-w-l], 1), np.linspace(0, .5, 42)[1:-1]
    ways = special.gammaln(n+1) - special.gammaln(counts+1).sum(1)
    probability = np.exp(ways[:, None] + counts @ np.log([p, p, 1-2*p]))
    z = np.round(_score(w, l, n, 0.), 9)
    order = np.argsort(-z, kind='stable')
    sums = probability[order].cumsum(0).max(1)
    last = np.searchsorted(-z[order], -z, 'right') - 1 # of those with an equal score
    out = np.full((n+1, n+1), np.nan)
    out[w, l] = sums[last]
    return out


def beyond(w, l, n, delta, level):
    "Whether a difference is outside the anytime interval"
    counts = np.stack([w, l, n-w-l], -1)
    prior = 3*special.gammaln(.5) - special.gammaln(1.5)
    log_beta = special.gammaln(counts+.5).sum(-1) - special.gammaln(n + 1.5) - prior
    p = _likeliest(w, l, n, delta)
    shares = np.stack([p+delta, p, 1-2*p-delta], -1).clip(0, 1)
    return log_beta - special.xlogy(counts, shares).sum(-1) > -np.log(1-level)


def series(p_w, p_l, tail_of):
    "How often a sign is announced, and how soon"
    rng, shares = np.random.default_rng(0), [p_w, p_l, 1-p_w-p_l]
    draws = np.hstack([rng.choice([1, -1, 0], (RUNS, n), p=shares) for n in (PLANNED, MOST-PLANNED)])
    w, l, n = (draws > 0).cumsum(1), (draws < 0).cumsum(1), np.arange(1, MOST+1)
    tail = np.stack([np.minimum(t[w[:, k], l[:, k]], t[l[:, k], w[:, k]]) for k, t in enumerate(tail_of)], 1)
    seen = beyond(w, l, n, 0., 1-SPENT)

    def announced(planned): return seen[:, :planned-1].any(1) | (tail[:, planned-1] < (.05-SPENT)/2)
    early, once = seen[:, :PLANNED-1], (tail[:, PLANNED-1] < .025).mean()
    row = dict(wins=p_w, losses=p_l, fixed_each_time=(tail[:, :PLANNED] < .025).any(1).mean(), fixed_once=once,
               both=announced(PLANNED).mean(), labels=np.where(early.any(1), early.argmax(1)+1, PLANNED).mean(),
               misses=beyond(w, l, n, p_w-p_l, 1-SPENT)[:, :PLANNED].any(1).mean())
    if p_w != p_l: row['planned'] = next(k for k in range(PLANNED, MOST+1) if announced(k).mean() >= once)
    return row


if __name__ == '__main__':
    tail_of = [tails(n) for n in range(1, MOST+1)]
    pd.DataFrame([series(*p, tail_of) for p in SHARES]).round(4).to_csv(RESULTS, index=False, lineterminator='\n')
