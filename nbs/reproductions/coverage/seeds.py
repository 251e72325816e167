#!/usr/bin/env python
"""What a bench says of plain fine-tuning with other seeds, and of planted gains: by its rules, and by the old ones.

    python seeds.py             # every line, some ten minutes on one core; what has a line is skipped

The world is the committed curves of plain fine-tuning of nbs/reproductions/bench: its five seeds are all the seeds
that there are, and its test images (or its classes, with their images) all the images. From it seeds are drawn for
plain fine-tuning, and others for a *method* that is plain fine-tuning, too, or in which wrong images were turned
right; α is chosen for both by the validation images of the seeds that were drawn; and as many images are drawn as
there are. What the world says of the same points is the truth. Old rules: intervals over images alone, the best
plain average on the same images, p for those that aren't beyond it. Each experiment has a generator of its own.
"""
import csv, json, sys, zlib
from functools import cache
from pathlib import Path
import numpy as np
import pandas as pd
from scipy import stats
from wiseft.data.suites import load_suite
from wiseft.infer.rules import alpha_by_rule
from wiseft.bench.matched_accuracy import at_reference, matched_gains, resampled

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from answers import unpacked

BENCH = unpacked(HERE.parent/'bench')
PLAN = json.loads((BENCH/'plan.json').read_text())
RATES = {'resnet-harsh': .001, 'resnet-gentle': .0003, 'vit-harsh': .001} # chosen for plain fine-tuning
ALPHAS, ROWS = PLAN['alphas'], 24 # so many rows in a bench
FIRST = 3 # experiments that tests/promises/test_coverage.py does again
PLANTED = {'nothing': (0, 0)} # name -> points on the reference, points under shift
PLANTED |= {f'{n} under shift': (0, n) for n in (1, 2, 3)} | {f'{n} on both sides': (n, n) for n in (1, 2, 3)}
RULES = 'gain, old', 'gain', 'head to head'
HEADER = ['part', 'seeds', 'drawn', 'planted', 'rule', 'experiments', 'covered', 'truth_below', 'truth_above', 'worse',
          'better', 'told_worse', 'told_better', 'off', 'first']
WHOLE = ['part', 'seeds', 'rule', 'benches', 'told', 'first']


class World:
    "The committed curves of plain fine-tuning of a part."
    def __init__(self, part):
        files = [f'{BENCH}/{part}/plain, lr {RATES[part]:g}, seed {s}' for s in PLAN['seeds']]
        def read(split, d): return np.stack([np.load(f'{f}.{split}.npz')[f'right {d}'] for f in files])
        self.sets = ['reference', *PLAN['shifts']]
        self.validation = read('validation', 'reference').mean(2)
        self.n_validation = np.load(f'{files[0]}.validation.npz')['right reference'].shape[1]
        self.right = {d: read('test', d).astype(float) for d in self.sets} # (seeds, alphas, images)
        datasets, rng = load_suite('icons').datasets(), np.random.default_rng(0)
        self.classes = {d: datasets[d].labels for d in self.sets}
        self.order = {d: rng.permutation(r.shape[2]) for d, r in self.right.items()}
        self.known = {}
    def chosen(self, seeds):
        "Position of the α that validation images choose."
        right = pd.Series(self.validation[seeds].mean(0), ALPHAS)
        return ALPHAS.index(alpha_by_rule(right, self.n_validation))
    def planted(self, at):
        "dataset -> (rows, seeds, images): the point at a position, with so many more right."
        if at not in self.known: self.known[at] = {d: self._planted(d, at) for d in self.sets}
        return self.known[at]
    def _planted(self, d, at):
        point, order = self.right[d][:, at], self.order[d]
        def turned(points):
            "Images are turned right until the mean over seeds is so many points higher."
            gained = np.cumsum(1-point.mean(0)[order])/point.shape[1]
            out, n = point.copy(), np.searchsorted(gained, points/100)
            out[:, order[:n]] = 1
            return out
        return np.stack([turned(points[d != 'reference']) for points in PLANTED.values()])


@cache
def world(part): return World(part)


def drawn_images(world, drawn, rng):
    "Images of each set, and what is drawn: each image or each class anew."
    if drawn == 'images':
        index = {d: rng.integers(r.shape[2], size=r.shape[2]) for d, r in world.right.items()}
        return index, None
    n = 1 + max(c.max() for c in world.classes.values())
    some = rng.integers(n, size=n)
    def of(c): return [np.flatnonzero(c == k) for k in some]
    pieces = {d: of(c) for d, c in world.classes.items()}
    index = {d: np.concatenate(p) for d, p in pieces.items()}
    return index, {d: np.repeat(np.arange(n), [*map(len, p)]) for d, p in pieces.items()}


def drawn_bench(world, n_seeds, drawn, rng):
    "A curve and its rows: what was drawn of them, their points, and the units."
    plain, method = rng.integers(5, size=n_seeds), rng.integers(5, size=n_seeds)
    at, chosen = world.chosen(method), world.chosen(plain)
    index, units = drawn_images(world, drawn, rng)
    curve = {d: r[plain][..., index[d]] for d, r in world.right.items()}        # (seeds, alphas, images)
    rows = {d: r[:, method][..., index[d]] for d, r in world.planted(at).items()} # (rows, seeds, images)
    return curve, rows, at, chosen, units


def truth(world, at, chosen):
    "Gain and head-to-head of the rows on all seeds and images."
    accuracy = {d: r.mean((0, 2)) for d, r in world.right.items()}
    rows = {d: r.mean((1, 2)) for d, r in world.planted(at).items()}
    (reference, shifted), (r, s) = both_sides(accuracy), both_sides(rows)
    value, _ = at_reference(reference, shifted, r)
    return s-value, (r+s)/2 - (reference+shifted)[chosen]/2


def both_sides(accuracy): return accuracy['reference'], np.mean([accuracy[d] for d in PLAN['shifts']], 0)


def old_rules(curve, rows, rng):
    "Gain, its standard error over images, and whether it is beyond the curve."
    k = len(ALPHAS)
    both = {d: np.vstack([curve[d].mean(0), rows[d].mean(1)]) for d in curve}
    def gain(accuracy):
        reference, shifted = both_sides(accuracy)
        value, beyond = at_reference(reference[:, None, :k], shifted[:, None, :k], reference[:, k:])
        return shifted[:, k:]-value, beyond
    value, beyond = gain({d: b.mean(1)[None] for d, b in both.items()})
    spread, _ = gain(resampled(both, n_resamples=200, rng=rng))
    return np.where(beyond[0] > 0, np.nan, value[0]), spread.std(0, ddof=1)


def new_rules(curve, rows, chosen, units, rng, n_resamples=200):
    "As `Bench.gains` judges."
    names, n = range(len(rows['reference'])), len(curve['reference'])
    def mean(some):
        def row(i): return {d: r[i, some].mean(0) for d, r in rows.items()}
        return {i: row(i) for i in names}, {d: c[some].mean(0) for d, c in curve.items()}
    def others(one): return [s for s in range(n) if s != one]
    without = [mean(others(one)) for one in range(n)]
    return matched_gains(*mean([*range(n)]), chosen, units, without, ROWS, n_resamples, rng=rng)


def experiment(part, n_seeds, drawn, i):
    "Of each rule and row: value, low, high, truth, and p of a row that is the least of 24."
    rng = np.random.default_rng([zlib.crc32(f'{part} {n_seeds} {drawn}'.encode()), i])
    curve, rows, at, chosen, units = drawn_bench(world(part), n_seeds, drawn, rng)
    true_gain, true_ahead = truth(world(part), at, chosen)
    new = new_rules(curve, rows, chosen, units, rng)
    value, error = old_rules(curve, rows, rng)
    old_p = 2*stats.norm.sf(np.abs(value)/error)
    width = stats.norm.ppf(.975)*error
    none = np.full(len(new), np.nan)
    return np.stack([[value, value-width, value+width, true_gain, old_p*ROWS],
                     [new.gain, new.low, new.high, true_gain, none],
                     [new.ahead, new.ahead_low, new.ahead_high, true_ahead, new.p*ROWS]])


def shares(seen):
    "(experiments, 5): how often an interval held the truth and left out zero, and how often a row is told."
    value, low, high, truth, p = seen.T
    has = ~np.isnan(value)
    if not has.any(): return [*['']*3, *['0.0000']*4, ''] # always beyond the curve
    below, above = (truth < low)[has].mean(), (truth > high)[has].mean()
    told = p < .05
    excluded = (high < 0).mean(), (low > 0).mean()
    rates = [1-below-above, below, above, *excluded, (told & (value < 0)).mean(), (told & (value > 0)).mean()]
    return [f'{v:.4f}' for v in rates] + [f'{100*(value-truth)[has].mean():.3f}']


def whole_bench(part, n_seeds, i):
    "A bench of 24 rows that are all plain fine-tuning with seeds of their own: is anything told, by both rules?"
    rng, w = np.random.default_rng([zlib.crc32(f'{part} {n_seeds} whole'.encode()), i]), world(part)
    plain = rng.integers(5, size=n_seeds)
    index, _ = drawn_images(w, 'images', rng)
    methods = [rng.integers(5, size=n_seeds) for _ in range(ROWS)]
    def point(d, seeds): return w.right[d][seeds, w.chosen(seeds)][:, index[d]]
    def rows(d): return np.stack([point(d, seeds) for seeds in methods])
    curve, rows = {d: r[plain][..., index[d]] for d, r in w.right.items()}, {d: rows(d) for d in w.sets}
    value, error = old_rules(curve, rows, rng)
    new = new_rules(curve, rows, w.chosen(plain), None, rng, 100)
    old = 2*stats.norm.sf(np.abs(value)/error)*np.count_nonzero(~np.isnan(value))
    return (old < .05).any(), (new.p_holm < .05).any()


# ---------- the tables ----------

PARTS = [(part, n) for part in RATES for n in (3, 5)]
CELLS = [(*which, drawn, times) for drawn, times in (('images', 300), ('classes', 100)) for which in PARTS]
BENCHES = [(*which, 100) for which in PARTS]


def append(file, header, rows):
    with (HERE/file).open('a', newline='') as f:
        w = csv.writer(f, lineterminator='\n')
        if f.tell() == 0: w.writerow(header)
        w.writerows(rows)


def there(file):
    return pd.read_csv(HERE/file) if (HERE/file).exists() else pd.DataFrame(columns=HEADER)


def lines(part, n_seeds, drawn, times):
    "Of the table of rows: one a rule and what was planted; the last column is what the tests do again."
    seen = np.stack([experiment(part, n_seeds, drawn, i) for i in range(times)]) # (experiments, rules, 5, rows)
    def line(r, j):
        first = f'{np.nansum(seen[:FIRST, r, 0, j]):.5f}'
        return [part, n_seeds, drawn, [*PLANTED][j], RULES[r], times, *shares(seen[:, r, :, j]), first]
    return [line(r, j) for r in range(len(RULES)) for j in range(len(PLANTED))]


def main():
    known = there('seeds.csv')
    for part, n, drawn, times in CELLS:
        if ((known.part == part) & (known.seeds == n) & (known.drawn == drawn)).any(): continue
        append('seeds.csv', HEADER, lines(part, n, drawn, times))
        print(part, n, drawn, flush=True)
    known = there('benches.csv')
    for part, n, times in BENCHES:
        if ((known.part == part) & (known.seeds == n)).any(): continue
        told = np.array([whole_bench(part, n, i) for i in range(times)])
        append('benches.csv', WHOLE, [[part, n, rule, times, f'{told[:, r].mean():.4f}', told[:FIRST, r].sum()]
                                      for r, rule in enumerate((RULES[0], RULES[2]))])
        print(part, n, 'whole benches', flush=True)


if __name__ == '__main__': main()
