#!/usr/bin/env python
"""How often our intervals hold a truth that we know, because we make the data.

    python coverage.py                # every setting, some five minutes on one core; those with a line are skipped
    python coverage.py worst_group    # those of one function

Each experiment has a generator of its own, seeded by its setting and number, so that a part of the table can be had
again in a minute, to the last digit.
"""
import csv, sys, zlib
from functools import cache
from itertools import product
from pathlib import Path
import numpy as np, pandas as pd
from scipy import special, stats

from wiseft.stats import intervals as m
from wiseft.stats.calibration import expected_calibration_error
from wiseft.stats.class_metrics import worst_group
from wiseft.infer.scores import MIN_PER_CLASS, Truth, mean_with_interval, metric_numbers, numbers_per_image
from wiseft.infer.scores import one_metric, span_of, units_of
from wiseft.stats.robustness import fit_baseline, from_axis, to_axis

sys.path.append(str(Path(__file__).resolve().parents[1]))
from linesearch import AlphaCurve, alpha_intervals

# experiments that tests/promises/test_coverage.py does again
RESULTS, FIRST = Path(__file__).resolve().parent/'results.csv', 30
HEADER = ['function', 'setting', 'experiments', 'covered', 'truth_below', 'truth_above', f'held_of_first_{FIRST}']
SETTINGS = {} # (function, setting) -> (experiment, how many)


def setting(function, name, experiments=1000):
    "Register an experiment: generator -> (truth, low, high)."
    def register(experiment):
        SETTINGS[function, name] = experiment, experiments
        return experiment
    return register


def run(function, name, experiments=None, widths=False):
    """For each experiment whether the truth was inside (0), below (-1) or above (1) the interval; NaN is never inside.
    With `widths` the width of each interval, too."""
    experiment, n = SETTINGS[function, name]
    seed, out, width = zlib.crc32(f'{function} {name}'.encode()), [], []
    for i in range(experiments or n):
        truth, low, high = experiment(np.random.default_rng([seed, i]))
        out.append(0 if low <= truth <= high else 1 if truth > high else -1)
        width.append(high-low)
    return (np.array(out), np.array(width)) if widths else np.array(out)


# ---------- one set, and means over sets: images ----------

for n, p in ((10, .9), (50, .98), (1000, .7)):
    @setting('clopper_pearson', f'{n} images at {p:.0%}')
    def exact(rng, n=n, p=p): return p, *m.clopper_pearson(rng.binomial(n, p), n)


def flips(rng, n, p): return rng.random(n) < p


def over_images(name, sets):
    @setting('mean_over_sets', name)
    def experiment(rng):
        interval = m.mean_over_sets({i: flips(rng, *s) for i, s in enumerate(sets)})
        return np.mean([p for _, p in sets]), *interval[1:]


over_images('images: 20 at 90%', [(20, .9)])
over_images('images: 50 at 98%', [(50, .98)])
over_images('images: 200 at 99%', [(200, .99)])
over_images('images: 1000 at 70%', [(1000, .7)])
over_images('images: 200 at 70% and 50 at 50%', [(200, .7), (50, .5)])
over_images('images: five sets of 50 at 98%', [(50, .98)]*5)
over_images('images: 50 at 70%, 70% and 99%', [(50, .7), (50, .7), (50, .99)])
over_images('images: 5000 at 90% and 20 at 95%', [(5000, .9), (20, .95)])
over_images('images: seven sets of 250, 30% to 90%', [(250, p) for p in np.linspace(.3, .9, 7)])


@setting('mean_over_sets', 'images: 200 at 70% and recoloured copies')
def copies(rng):
    hard, names = rng.random(200), list(range(200))
    values = {'original': hard < .7, 'copy': np.clip(hard + .1*rng.standard_normal(200), 0, 1) < .7}
    truth = (.7 + COPY)/2
    return truth, *m.mean_over_sets(values, {s: names for s in values})[1:]


GRID = (np.arange(100_000) + .5)/100_000
COPY = stats.norm.cdf((.7 - GRID)/.1).mean() # accuracy on the copies


@setting('mean_over_sets', 'images: 100, shares of three seeds')
def shares(rng):
    hard = rng.beta(2, 1, 100)
    return 2/3, *m.mean_over_sets({'a': rng.binomial(3, hard)/3})[1:]


for n, experiments in ((50, 1000), (1000, 200)):
    @setting('mean_over_sets', f'images: log-likelihoods of {n}, heavy-tailed', experiments)
    def nll(rng, n=n):
        return np.exp(.5), *m.mean_over_sets({'a': rng.lognormal(0, 1, n)}, bounded=False)[1:]


# ---------- means over sets: families ----------

def families(rng, n, p, scatter, size=12, unequal=0.):
    "Right or wrong of each image, and its family, whose accuracy is beta-distributed around `p`."
    own = rng.beta(*(np.array([p, 1-p])*(p*(1-p)/scatter**2 - 1)), n) if scatter else np.full(n, p)
    sizes = np.maximum(1, np.round(size*rng.lognormal(-unequal**2/2, unequal, n))).astype(int)
    family = np.repeat(np.arange(n), sizes)
    return rng.random(len(family)) < own[family], family


def own_units(s, families): return [(s, u) for u in families]


def over_families(name, n, ps, scatter=.15, shared=False, **kwargs):
    @setting('mean_over_sets', name)
    def experiment(rng):
        drawn = [families(rng, n, p, scatter, **kwargs) for p in ps]
        units = {s: own_units(None if shared else s, f) for s, (_, f) in enumerate(drawn)}
        values = {s: v for s, (v, _) in enumerate(drawn)}
        return np.mean(ps), *m.mean_over_sets(values, units)[1:]


for n in (5, 9, 10, 30): over_families(f'families: {n} at 70%', n, [.7])
for n in (5, 9, 10, 30): over_families(f'families: {n} of unequal size', n, [.7], unequal=.7)
for n in (5, 10): over_families(f'families: {n} of very unequal size', n, [.7], unequal=1.2)
for n in (5, 10): over_families(f'families: {n} in each of two sets', n, [.6, .8])
over_families('families: 6 shared by three sets', 6, [.6, .7, .8], shared=True, unequal=.5)
over_families('families: 5 alike at 70%', 5, [.7], scatter=0)
over_families('families: 5 at 90%', 5, [.9], scatter=.07)
over_families('families: 5 at 97%', 5, [.97], scatter=.03)
over_families('families: 20 at 97%', 20, [.97], scatter=.03)


@setting('mean_over_sets', 'families: 8, one in ten fails')
def one_in_ten(rng):
    own = np.where(rng.random(8) < .1, .1, .9)
    family = np.repeat(np.arange(8), 12)
    return .82, *m.mean_over_sets({'a': rng.random(96) < own[family]}, {'a': family})[1:]


# ---------- images that belong together, in one set, in several, and in pairs ----------

SIZES = {n: {'': np.full(n, 50), ' of unequal size': np.round(np.linspace(.2, 1.8, n)*50).astype(int)}
         for n in (5, 10, 20)}


def of_groups(rng, p, correlation, sizes):
    "Right or wrong of each image, and its group: images of a group are alike with an intra-group correlation"
    if correlation in (0, 1): own = p if correlation == 0 else rng.random(len(sizes)) < p
    else: own = rng.beta(*(np.array([p, 1-p])*(1/correlation - 1)), len(sizes))
    group = np.repeat(np.arange(len(sizes)), sizes)
    return rng.random(len(group)) < np.broadcast_to(own, len(sizes))[group], group


for n, p, correlation, unequal in product(SIZES, (.5, .8, .95), (0, .3, 1), ('', ' of unequal size')):
    @setting('mean_of_set', f'{n} groups{unequal} at {p:.0%}, correlation {correlation}', 3000)
    def one_set(rng, p=p, correlation=correlation, sizes=SIZES[n][unequal]):
        right, group = of_groups(rng, p, correlation, sizes)
        return p, *m.mean_of_set(right, group.tolist())[1:]


for n, correlation in product(SIZES, (0, .3, 1)):
    @setting('mean_over_sets', f'groups: {n} in each of three sets at 80% to 97%, correlation {correlation}')
    def three_sets(rng, correlation=correlation, sizes=SIZES[n]['']):
        drawn = [of_groups(rng, p, correlation, sizes) for p in (.8, .9, .97)]
        units = {s: own_units(s, group) for s, (_, group) in enumerate(drawn)}
        return .89, *m.mean_over_sets({s: right for s, (right, _) in enumerate(drawn)}, units)[1:]

    @setting('mean_over_sets', f'groups: {n} shared by three sets at 80%, correlation {correlation}')
    def same_groups(rng, correlation=correlation, sizes=3*SIZES[n]['']):
        right, group = of_groups(rng, .8, correlation, sizes)
        sets, units = ({s: of_all[s::3] for s in range(3)} for of_all in (right, group))
        return .8, *m.mean_over_sets(sets, units)[1:]

    @setting('mean_over_sets', f'groups: {n}, Brier scores, correlation {correlation}')
    def brier(rng, correlation=correlation, sizes=SIZES[n]['']):
        right, group = of_groups(rng, .7, correlation, sizes)
        score = np.where(right, .1, 1.2) + .1*rng.random(len(right))
        return .1*.7 + 1.2*.3 + .05, *m.mean_over_sets({0: score}, {0: group}, bounded=False)[1:]

    @setting('mean_difference', f'groups: {n}, 6% repaired and 2% broken, correlation {correlation}')
    def pairs_of_groups(rng, correlation=correlation, sizes=SIZES[n]['']):
        differs, group = of_groups(rng, .08, correlation, sizes)
        up, _ = of_groups(rng, .75, correlation, sizes)
        a = np.where(differs, ~up, True)
        b = np.where(differs, up, True)
        return .04, *m.mean_difference({0: a}, {0: b}, {0: group})[1:]


# ---------- pairs ----------

def pairs(name, n, gains, losses, sets=1):
    @setting('mean_difference', name)
    def experiment(rng):
        u = rng.random((sets, n))
        a, b = u > .3 + gains, np.where(u < .3, False, u < 1 - losses) # B repairs some of A's errors, and makes others
        interval = m.mean_difference(*(dict(enumerate(x)) for x in (a, b)))
        return gains - losses, *interval[1:]


pairs('images: 1000, 4% repaired and 2% broken', 1000, .04, .02)
pairs('images: 100, 4% repaired and 2% broken', 100, .04, .02)
pairs('images: 50, 1% repaired', 50, .01, 0)
pairs('images: 50, 10% repaired', 50, .1, 0)
pairs('images: three sets of 250, 4% repaired and 2% broken', 250, .04, .02, sets=3)


def pairs_of_families(n, sets=1, unequal=0.):
    name = f'families: {n}{" of unequal size" if unequal else ""}{" in each of two sets" if sets == 2 else ""}'
    @setting('mean_difference', name)
    def experiment(rng):
        a, b, units = {}, {}, {}
        for s in range(sets):
            a[s], family = families(rng, n, .7, .15, size=40, unequal=unequal)
            gain = rng.normal(.1, .15, n)[family]
            b[s] = np.where(rng.random(len(family)) < np.abs(gain), gain > 0, a[s])
            units[s] = [(s, u) for u in family]
        return TRUE_GAIN, *m.mean_difference(a, b, units)[1:]


SHIFT = stats.norm.ppf(GRID, .1, .15)
TRUE_GAIN = np.where(SHIFT > 0, .3*SHIFT, .7*SHIFT).mean() # of wrong images some turn right, or of right ones wrong
for n in (5, 9, 10, 30): pairs_of_families(n)
pairs_of_families(5, unequal=.7)
pairs_of_families(6, sets=2)


# ---------- metrics that are one number per image ----------

def answers(rng, n, classes, groups=0, other=0.):
    "Labels of unequal classes, 5 : 1, the rare ones harder; logits of two classifiers; ids of groups of unequal ease"
    share = np.geomspace(5, 1, classes)
    labels = rng.choice(classes, n, p=share/share.sum())
    group = np.arange(n) % groups if groups else np.arange(n)
    signal = np.sqrt(2*np.log(classes)) + np.linspace(1.5, .5, classes)[labels]
    if groups: signal = signal + rng.normal(0, .7, groups)[group]
    both = rng.normal(size=(n, classes)) + signal[:, None]*np.eye(classes)[labels]
    return labels, [both + rng.normal(0, .5, both.shape) + k*other*np.eye(classes)[labels] for k in (0, 1)], group


def rows_of(labels, logits, group, metric, grouped):
    "As `score` has them, with the column of a metric that needs one"
    n, classes = logits.shape
    names = [f'class {c}' for c in range(classes)]
    categories = [pd.Categorical.from_codes(codes, names) for codes in (labels, logits.argmax(1))]
    rows = pd.DataFrame(dict(dataset='a', role='shift', label=categories[0], predicted=categories[1], group=None,
                             unit=np.arange(n).astype(str)))
    if grouped: rows['group'] = group.astype(str)
    rows['correct'] = logits.argmax(1) == labels
    if metric.per_image:
        column = special.log_softmax(logits, 1) if metric.name != 'quadratic kappa' else logits.argmax(1)
        units = rows.group.tolist() if grouped else None
        rows[metric.column], _ = metric_numbers(metric, column, Truth(labels, names, units)) # no bias: not mAP
    return rows


def correlation(scores, truth): return np.corrcoef(scores.argmax(1), truth)[0, 1]


@cache
def true_values(metric, classes, groups, other): # of both classifiers, from 400,000 images
    labels, both, group = answers(np.random.default_rng(0), 400_000, classes, groups and 20_000, other)
    return [numbers_per_image(rows_of(labels, z, group, one_metric(metric), False), one_metric(metric)).mean()
            for z in both]


def of_metric(kind, metric, n, classes, groups=0, sets=1, other=0.):
    "An interval of a metric; draws in which a class has fewer than five images, which have none, are drawn again"
    name = getattr(metric, '__name__', metric)
    words = f'{name}: {n} images of {classes} classes{f" in {groups} groups" if groups else ""}'
    @setting(kind, f'{words}, {sets} sets' if sets > 1 else words, 500)
    def experiment(rng):
        one, drawn = one_metric(metric), {}
        while len(drawn) < sets:
            labels, both, group = answers(rng, n, classes, groups, other)
            if np.bincount(labels, minlength=classes).min() < MIN_PER_CLASS: continue
            drawn[str(len(drawn))] = [rows_of(labels, z, group, one, groups) for z in both]
        a, b = ({d: pair[k] for d, pair in drawn.items()} for k in (0, 1))
        if kind == 'mean_with_interval':
            return true_values(metric, classes, groups, 0.)[0], *mean_with_interval(a, one)[1:]
        values = [{d: numbers_per_image(r, one) for d, r in part.items()} for part in (a, b)]
        units, spans = {d: units_of(r) for d, r in a.items()}, {d: span_of(r, one) for d, r in a.items()}
        truth = np.subtract(*true_values(metric, classes, groups, other)[::-1]) if other else 0
        return truth, *m.mean_difference(*values, units, spans)[1:]


SMOOTH = 'balanced accuracy', 'macro-F1', 'AUROC', 'quadratic kappa', correlation
SIZES = (100, 2), (400, 2), (400, 10), (1500, 2), (1500, 10), (1500, 50)
for metric, (n, classes) in product(SMOOTH, SIZES): of_metric('mean_with_interval', metric, n, classes)
for n, classes in SIZES: of_metric('mean_with_interval', f'recall of class {classes-1}', n, classes)
for metric in SMOOTH:
    of_metric('mean_with_interval', metric, 400, 10, sets=3)
    of_metric('mean_with_interval', metric, 1500, 10, groups=40)
    for n, classes in SIZES: of_metric('paired difference', metric, n, classes, other=.3)
    for n, classes in ((100, 2), (400, 10), (1500, 50)): of_metric('null pair', metric, n, classes)
    of_metric('paired difference', metric, 400, 10, sets=3, other=.3)
    of_metric('paired difference', metric, 1500, 10, groups=40, other=.3)


# ---------- worst group ----------

def worst(name, ps, n):
    @setting('worst_group', name, 500)
    def experiment(rng):
        sizes = np.broadcast_to(n, len(ps))
        groups = np.repeat(np.arange(len(ps)), sizes)
        return min(ps), *worst_group(rng.random(len(groups)) < np.asarray(ps)[groups], groups)[1:]


worst('one group of 200', [.7], 200)
worst('5 groups of 200, all at 70%', [.7]*5, 200)
worst('5 groups of 200, one at 50%, others at 80%', [.5] + [.8]*4, 200)
worst('5 groups of 30 to 1000, 60% to 72%', [.6, .63, .66, .69, .72], [30, 100, 300, 600, 1000])
worst('20 groups of 50, all at 90%', [.9]*20, 50)


# ---------- calibration ----------

def gap_of(confidence, right, bins=15):
    b = np.clip(np.ceil(confidence*bins).astype(int) - 1, 0, bins-1)
    return np.abs(np.bincount(b, confidence-right, bins)).sum()/len(confidence)


def ece(name, n, truly, a=4, b=1.5, groups=0, experiments=300):
    grid = stats.beta.ppf(GRID, a, b)
    truth = gap_of(grid, truly(grid))
    @setting('expected_calibration_error', name.format(truth), experiments)
    def experiment(rng):
        confidence = rng.beta(a, b, n)
        group = np.arange(n) % groups if groups else None
        right = truly(confidence) + (.1*rng.choice([-1, 1], groups)[group] if groups else 0)
        hit = rng.random(n) < right
        return truth, *expected_calibration_error(confidence, hit, units=group, n_resamples=1000, rng=rng)[1:]


def calibrated(c): return c
def sure(c): return special.expit(.5*special.logit(c))


for n, k in ((200, 300), (1000, 200), (5000, 60)): ece(f'{n} images, calibrated', n, calibrated, experiments=k)
ece('200 images, calibrated, mostly above 99%', 200, calibrated, a=60, b=.5)
ece('1000 images, ECE {:.3f}', 1000, lambda c: special.expit(.9*special.logit(c)))
ece('5000 images, ECE {:.3f}', 5000, lambda c: special.expit(.9*special.logit(c)), experiments=60)
for n, k in ((200, 300), (1000, 200), (5000, 60)): ece(f'{n} images, ECE {{:.3f}}', n, sure, experiments=k)
ece('500 images, ECE {:.3f}, half of the bins calibrated', 500, lambda c: np.where(c < .75, c, c - .1))
for n in (10, 30): ece(f'{n} groups of 50 images, ECE {{:.3f}}', 50*n, lambda c: np.clip(c, .1, .9)-.05, groups=n)


# ---------- lines, and the best α ----------

def line(name, n, scatter=lambda x: .1, of=1):
    for part in ('slope', 'intercept'):
        @setting('fit_baseline', f'{part}: {name}')
        def experiment(rng, part=part):
            x = np.repeat(rng.uniform(.4, .85, n//of), of)
            shifted = from_axis(.9*to_axis(x) - 1.2 + np.repeat(rng.standard_normal(n//of), of)*scatter(x))
            x = from_axis(to_axis(x) + .01*rng.standard_normal(n)*(of > 1))
            fitted = fit_baseline(x, shifted).lines[0]
            return (.9, *fitted.slope_ci95) if part == 'slope' else (-1.2, *fitted.intercept_ci95)


for n in (5, 11, 40): line(f'{n} models', n)
line('11 models, scatter three times as wide at the low end', 11, lambda x: .05 + .1*(.85-x)/.45)
line('12 models, three of each kind', 12, of=3)


def outputs(rng, n, classes=10):
    "Labels, and outputs of two classifiers that err on different images."
    labels = rng.integers(0, classes, n)
    return labels, *(rng.standard_normal((n, classes)) + s*np.eye(classes)[labels] for s in (1.4, 1.7))


def bootstrap_best(curve, n_resamples, rng):
    "Best α of resampled images (n_resamples,): each draw walks along the curve's steps again"
    low, high, i = curve.intervals
    at, _ = curve.steps()
    middle = (at[1:]+at[:-1])/2
    begins = np.searchsorted(middle, low) # the first step that an image is right at
    ends = np.searchsorted(middle, high) # and the first after
    best = np.empty(n_resamples)
    for r in range(n_resamples):
        times = np.bincount(rng.integers(curve.n, size=curve.n), minlength=curve.n)[i]
        begun, over = (np.bincount(steps, times, len(at)) for steps in (begins, ends))
        best[r] = middle[(begun - over).cumsum()[:-1].argmax()]
    return best


@setting('bootstrap_best', '400 images: middle 95% of draws', 300)
def best_alpha(rng):
    labels, u, v = outputs(rng, 400)
    draws = bootstrap_best(AlphaCurve(*alpha_intervals(u, v, labels)), 400, rng)
    return 1.7/(1.4+1.7), *np.quantile(draws, [.025, .975]) # independent errors: each in proportion to its strength


# ---------- the table ----------

def main(functions):
    there = {tuple(r[:2]) for r in csv.reader(RESULTS.open())} if RESULTS.exists() else set()
    for function, name in SETTINGS:
        if (function, name) in there or functions and function not in functions: continue
        out = run(function, name)
        with RESULTS.open('a', newline='') as f:
            w = csv.writer(f, lineterminator='\n')
            if f.tell() == 0: w.writerow(HEADER)
            shares = [round((out == k).mean(), 4) for k in (0, -1, 1)]
            w.writerow([function, name, len(out), *shares, (out[:FIRST] == 0).sum()])
        print(function, name, round((out == 0).mean(), 3), flush=True)


if __name__ == '__main__':
    from runs import provenance
    with provenance(__file__, seeds=['of each setting']): main(sys.argv[1:])
