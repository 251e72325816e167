"What the repository keeps of every run, read and counted by plain numpy: which image each classifier gets right."

import base64
import json
import re
import sys
import zipfile
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import scipy

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "nbs/reproductions"))
from answers import unpacked

unpacked()
SHIFTS = ["colour", "duotone", "emoji", "hand-drawn", "pixel", "recoloured", "solid"]
BOTH = ["reference", "shift"]
DRAWS = 4000


@cache
def icons():
    "Every image of the suite, as its own list says."
    with zipfile.ZipFile(ROOT / "wiseft/data/icons.zip") as z:
        table = pd.read_csv(z.open("icons/icons.csv"), keep_default_na=False)
    table["set"] = table.file.str.split("/").str[1]
    table["unit"] = np.where(table.original == "", table.file, table.original)
    return table


class Images:
    "The images that runs are judged by, in the order in which their answers are kept."

    def __init__(self, reference="reference", shifts=SHIFTS, reserve=False):
        t = icons()
        of = lambda folder, split: t[(t.set == folder) & (t.split == split)].sort_values("file").assign(on=split)
        parts = [of(reference, "validation").assign(name="validation"), of(reference, "test").assign(name="reference")]
        parts += [of("reference" if s == "outline" else s, "test").assign(name=s) for s in shifts]
        if reserve:  # training images of families that no run of the second protocol trains on
            kept = "icons/" + pd.read_csv(ROOT / "nbs/reproductions/protocol2/reserve.csv").file
            for folder, name in (("reference", "reserve outline"), ("solid", "reserve solid")):
                own = of(folder, "train")
                parts.append(own[own.file.isin(kept)].assign(name=name))
        self.table, self.shifts = pd.concat(parts, ignore_index=True), list(shifts)
        self.rows = {name: np.flatnonzero(self.table.name == name) for name in self.table.name.unique()}
        self.label = pd.Categorical(self.table["class"]).codes
        self.n = {k: len(v) for k, v in self.rows.items()} | {"shift": sum(len(self.rows[s]) for s in shifts)}
        self.weights = {}

    def sets(self, on):
        return self.shifts if on == "shift" else [on] if isinstance(on, str) else on

    def mean(self, values, on):
        "Of values, one an image, on one set, or over the means of several."
        return np.mean([np.nanmean(values[self.rows[d]]) for d in self.sets(on)])

    def drawn(self, d):
        "How often each image of a set is drawn: (DRAWS, n)."
        if d not in self.weights:
            unit, names = pd.factorize(self.table.unit.to_numpy()[self.rows[d]])
            rng = np.random.default_rng([7, *d.encode()])
            self.weights[d] = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), DRAWS)[:, unit].astype(
                np.float32
            )
        return self.weights[d]

    def resampled(self, values, on):
        "Means, DRAWS of them, with the images of each set drawn anew."
        means = []
        for d in self.sets(on):
            v, w = values[self.rows[d]].astype(np.float32), self.drawn(d)
            there = ~np.isnan(v)
            means.append(w[:, there] @ v[there] / w[:, there].sum(1))
        return np.mean(means, axis=0)

    def interval(self, values, on, lowest=-100, column="unit"):
        "95 % interval of a mean, over what a column says is independent; of values from `lowest` to 100."
        rows = [self.rows[d][~np.isnan(values[self.rows[d]])] for d in self.sets(on)]
        names = self.table[column].to_numpy()
        return t_interval([values[r] for r in rows], [names[r] for r in rows], lowest, 100)


def t_interval(values, units, lowest, highest):
    """95 % interval of the mean over the means of sets: Student's t, with each unit left out in turn.

    Two units at each end are added if values are shares, one if they are differences, a part of it in each set.
    """
    center = variance = known = 0
    for sets in sharing(units):
        x, names = (np.concatenate([some[i] for i in sets]) for some in (values, units))
        which = np.repeat(np.arange(len(sets)), [len(values[i]) for i in sets])
        unit, added = pd.factorize(names)[0], np.arange(2 * len(sets))
        size = np.tile([counts_as_one(values[i], units[i]) for i in sets], 2)  # of the added ones
        images = np.append(np.ones(len(x)), size)
        x = np.append(x, size * np.where(added < len(sets), lowest, highest))
        spans = max(size) > 1  # groups span the sets that share them, and so do added ones
        new = added // len(sets) if spans else added
        which, unit = np.append(which, added % len(sets)), np.append(unit, unit.max() + 1 + new)
        weight = np.ones(unit.max() + 1)  # of each unit: the added ones are fractions of one
        weight[-len({*new}) :] = 200 / (highest - lowest) / len(values) * (len(sets) if spans else 1)
        place = unit * len(sets) + which
        of_unit = lambda v: np.bincount(place, v, len(weight) * len(sets)).reshape(len(weight), -1)
        total, number = of_unit(x), of_unit(images)
        sums, sizes, n = weight @ total, weight @ number, weight.sum()
        without = ((sums - total) / (sizes - number)).sum(1)  # each unit
        of_these = (n - 1) / n * weight @ (without - (sums / sizes).sum()) ** 2 / len(values) ** 2
        share = (number / sizes).sum(1)
        df = (weight @ share) ** 2 / (weight @ share**2) - 1
        center, variance = center + (sums / sizes).sum() / len(values), variance + of_these
        known += of_these**2 / df
    half = scipy.stats.t.ppf(0.975, variance**2 / known) * np.sqrt(variance)
    mean = np.mean([v.mean() for v in values])
    return [min(mean, max(lowest, center - half)), max(mean, min(highest, center + half))]


def counts_as_one(values, names):
    "How many images of units say as much as one: a unit of equal values is one, others by the variance of the mean."
    of_unit = pd.Series(np.asarray(values, float)).groupby(np.asarray(names))
    n, size, mean = len(values), of_unit.size(), np.mean(values)
    if len(size) == n:
        return 1.0
    spread = ((n * mean - of_unit.sum()) / (n - size) - mean).pow(2).sum() * (1 - 1 / len(size))
    ratio = max(1.0, spread * (n - 1) / max(np.var(values), 1e-30))
    each = np.where(of_unit.nunique() == 1, size, ratio)
    return float(np.exp(np.average(np.log(each), weights=size)))


def sharing(units):
    "Places of sets, together where they share units, directly or by others."
    groups = []
    for i, names in enumerate(map(set, units)):
        near = [g for g in groups if g[1] & names]
        groups = [g for g in groups if not g[1] & names]
        groups.append((sum([g[0] for g in near], []) + [i], names.union(*[g[1] for g in near])))
    return [g[0] for g in groups]


class Drawn(float):
    "An end of an interval, drawn at random here and on the page: it may be off by 3.5 standard errors of a quantile."

    def __new__(cls, value, margin=0.0):
        self = super().__new__(cls, value)
        self.margin = margin
        return self

    def __neg__(self):
        return Drawn(-float(self), self.margin)


def ends_of(draws):
    "95 % interval from draws; the pages make 2,000."
    error = np.sqrt(0.025 * 0.975 * (1 / 2000 + 1 / len(draws))) / 0.0584 * np.std(draws)
    return [Drawn(v, 3.5 * error) for v in np.quantile(draws, [0.025, 0.975])]


class Wide(float):
    "A number that may be off by one: the images were halved at random, fifty times."


class Runs:
    "A file of runs: a table with one row per classifier, and which images each got right."

    def __init__(self, path, images):
        self.images, rows, right = images, [], []
        for line in (ROOT / "nbs/reproductions" / path).read_text().splitlines():
            run = json.loads(line)
            bits = np.frombuffer(base64.b64decode(run.pop("correct")), np.uint8).reshape(len(run["classifiers"]), -1)
            right.append(np.unpackbits(bits, axis=1)[:, : len(images.table)])
            rows += [run | dict(method=m, alpha=a) for m, a in run["classifiers"]]
        self.table, self.right = pd.DataFrame(rows), np.concatenate(right).astype(float)
        for on in ("validation", "reference", "shift", *images.shifts):
            sets = images.sets(on)
            self.table[on] = np.mean([self.right[:, images.rows[d]].mean(1) for d in sets], axis=0)

    def which(self, **settings):
        "Places of the classifiers with some settings."
        t = self.table
        keep = np.ones(len(t), bool)
        for k, v in settings.items():
            keep &= t[k].isin(v) if isinstance(v, (list, tuple)) else (t[k] == v)
        return np.flatnonzero(keep)

    def share(self, **settings):
        "Of the classifiers with some settings, the share that gets each image right."
        found = self.which(**settings)
        assert len(found), settings
        return self.right[found].mean(0)


@cache
def outline():
    return Images()


@cache
def grid():
    return Runs("grid/runs.jsonl", outline())


@cache
def ends():
    return Runs("ends/runs.jsonl", outline())


@cache
def shots():
    return Runs("shots/runs.jsonl", outline())


@cache
def over_time():
    return Runs("averages/runs.jsonl", outline())


@cache
def halved():
    return Runs("why/runs.jsonl", outline())


@cache
def heads():
    return Runs("why/runs-heads.jsonl", outline())


@cache
def weak():
    return Runs("names/runs.jsonl", outline())


@cache
def second():
    return Runs("protocol2/runs.jsonl", Images(reserve=True))


@cache
def solid():
    return Runs("domains/runs-solid.jsonl", Images("solid", ["outline", *[s for s in SHIFTS if s != "solid"]]))


@cache
def measured():
    "The protocol's predictions: column -> right or wrong, in the order of `outline()`; and means over the seeds."
    kept = pd.read_csv(ROOT / "nbs/reproductions/icons/predictions.csv.gz")
    table = outline().table
    order = table.file.str.removeprefix("icons/").map({f: i for i, f in enumerate(kept.file)})
    columns = {c: (kept[c] == kept.label) for c in kept.columns[5:]}
    place = order.to_numpy()
    spread = {
        c: np.where(np.isnan(place), np.nan, v.to_numpy()[np.nan_to_num(place).astype(int)]) for c, v in columns.items()
    }
    names = ["fine-tuned", "weight-space", "logits", "probabilities"]
    mean = lambda m: np.mean([spread[f"{m} seed {s}"] for s in range(5)], axis=0)
    return spread | {m: mean(m) for m in names}


@cache
def published():
    return pd.read_csv(ROOT / "nbs/reproductions/published/paper.csv")


def points(a, b, on, images=None):
    return 100 * (images or outline()).mean(b - a, on)


def change(a, b, on, images=None):
    "Difference b − a in points, with its interval."
    images = images or outline()
    return [points(a, b, on, images), *images.interval(100 * (b - a), on)]


def over_classes(a, b, on):
    "95 % interval of b − a in points over classes."
    return outline().interval(100 * (b - a), on, column="class")


def drawn_by_class(a, b, on, images=None):
    "Differences b − a in points, DRAWS of them, with classes drawn anew."
    images, n = images or outline(), outline().label.max() + 1
    drawn = np.random.default_rng(11).multinomial(n, np.full(n, 1 / n), DRAWS)
    means = []
    for d in images.sets(on):
        rows = images.rows[d]
        sums = np.bincount(images.label[rows], 100 * (b - a)[rows], n)
        means.append(drawn @ sums / (drawn @ np.bincount(images.label[rows], minlength=n)))
    return np.mean(means, axis=0)


def changes(a, b, images=None):
    "A row of the tables of changes: number of images, points, interval; on the reference and under shift."
    images = images or outline()
    return [v for on in ("reference", "shift") for v in (images.n[on], *change(a, b, on, images))]


def accuracy(values, on, images=None):
    "In percent, with its interval."
    images = images or outline()
    return [100 * images.mean(values, on), *images.interval(100 * values, on, lowest=0)]


@cache
def zeroshot():
    return grid().share(method="zero-shot")


GENTLE = dict(kind="end to end", lr=3e-4, method="weight-space")


def end_to_end(alpha):
    return ends().share(**GENTLE, alpha=alpha)


def linear(alpha):
    return ends().share(kind="linear classifier", method="weight-space", alpha=alpha)


def halves(seed):
    "The classes that were taught in each half of a random division: (2, n_classes)."
    n = len(np.unique(outline().label))
    first = np.random.default_rng(seed).permutation(n) < n // 2
    return np.stack([first, ~first])


def in_halvings(taught, kind, lr, alpha, score):
    "For each of the four halvings: right or wrong where the class was taught (or wasn't), NaN elsewhere."
    h = halved()
    found = h.which(kind=kind, lr=lr, method=score, alpha=alpha)
    mask = [halves(h.table.seed[i])[h.table.half[i]][outline().label] == taught for i in found]
    return np.where(mask, h.right[found], np.nan)


def halving(taught, kind, lr, alpha, score):
    "Points, interval, lowest and highest halving; on the reference and under shift."
    before, after = (in_halvings(taught, kind, lr, a, score) for a in (0.0, alpha))
    out = []
    for on in ("reference", "shift"):
        single = [100 * outline().mean(a - b, on) for a, b in zip(after, before)]
        out += [*change(np.nanmean(before, axis=0), np.nanmean(after, axis=0), on), min(single), max(single)]
    return out


OWN, PLAIN = "own half", "all classes"
E2E, LC = "end to end", "linear classifier"


def both_chances(rows, on, images=None, groups=None):
    """Mean of values, (n_runs, n_images), its error over images and runs, and degrees of freedom, by sums alone.

    The variance is that over images, where those that belong together are drawn together, plus that over runs, which
    are left out one at a time, or a group of them. With one run it is that over images. What is known from few runs
    counts as if their part were as large as the images', at least.
    """
    images, rows = images or outline(), np.atleast_2d(rows)
    groups = np.arange(len(rows)) if groups is None else np.asarray(groups)
    own, names = images.sets(on), np.unique(groups)
    fewest, of_images = min(len(images.rows[d]) for d in own), over_units(rows.mean(0), own, images)
    value = images.mean(rows.mean(0), on)
    if len(names) == 1:
        return value, np.sqrt(of_images), fewest - 1
    apart = np.array([images.mean(rows[groups != g].mean(0), on) for g in names])
    of_runs = (len(names) - 1) / len(names) * np.sum((apart - apart.mean()) ** 2)
    felt = max(of_runs, of_images)
    known = of_images**2 / (fewest - 1) + felt**2 / (len(names) - 1)
    return value, np.sqrt(of_images + of_runs), (of_images + felt) ** 2 / known if known else fewest - 1


def over_units(values, sets, images):
    "Variance of the mean over the means of sets, with what belongs together drawn together."
    parts = []
    for d in sets:
        v = values[images.rows[d]]
        parts.append(pd.Series((v - v.mean()) / len(v) / len(sets), images.table.unit.to_numpy()[images.rows[d]]))
    return np.sum(pd.concat(parts).groupby(level=0).sum() ** 2)


def two_way(rows, on, images=None, groups=None):
    "Mean of values, (n_runs, n_images), in percent, with its 95 % interval over images and runs."
    from scipy.stats import t

    value, error, df = both_chances(rows, on, images, groups)
    half = error * t.ppf(0.975, df)
    return [100 * value, 100 * (value - half), 100 * (value + half)]


# ---------- the campaign ----------

CONTROL = "other-icons"


@cache
def campaign(part, setting, split="test"):
    "Of each of five seeds which images are right: set -> (11, n), α from 0 to 1."
    folder, out = ROOT / "nbs/reproductions/campaign" / part, []
    for seed in range(30, 35):
        out.append(read_curves(folder / f"{setting}, seed {seed}.{split}.npz"))
    return out


def only(runs, sets):
    "Runs with some of their sets."
    some = lambda run: {d: run[d] for d in sets}
    return [some(r) for r in runs]


class OfAll(list):
    "One classifier that several runs made, and what `without` each of them made."

    def __init__(self, whole, without):
        super().__init__([whole])
        self.without = without


@cache
def campaign_rows(part):
    "Name of a row -> its five runs, or `OfAll`; and the accuracies on validation images along its curve."
    folder, rows = ROOT / "nbs/reproductions/campaign" / part, {}
    every = lambda names: list(map(read_curves, sorted(folder.glob(names))))
    for file in sorted(folder.glob("*, seed 34.test.npz")):
        setting = file.name.removesuffix(", seed 34.test.npz")
        runs, seen = (every(f"{setting}, seed 3[0-4].{split}.npz") for split in ("test", "validation"))
        if len(runs) == 5:
            rows[setting] = runs, np.mean([v["reference"].mean(1) for v in seen], axis=0)
    for file in sorted(folder.glob("* of 5 plain, *.test.npz")):
        setting = file.name.removesuffix(".test.npz")
        fewer = every(f"{setting.replace(' of 5 ', ' of 4 ')}, without seed *.test.npz")
        (seen,) = every(f"{setting}.validation.npz")
        rows[setting] = OfAll(read_curves(file), fewer), seen["reference"].mean(1)
    return {setting if setting.startswith("plain,") else row_name(setting): r for setting, r in rows.items()}


def row_name(setting):
    "The row of a campaign that a file belongs to."
    if setting.startswith("LoRA 8, lr 0.01"):
        return "LoRA, best on validation"
    return re.split(r" of (?:\d )?plain,|(?: [\d.]+)?, lr", setting)[0]


def read_curves(file):
    "Set -> (k, n), which images the points of a curve get right."
    with np.load(file) as f:
        return {k.removeprefix("right "): f[k].astype(float) for k in f.files if k.startswith("right ")}


def but(runs, i):
    "Runs without one of them."
    return [runs.without[i]] if isinstance(runs, OfAll) else runs[:i] + runs[i + 1 :]


def shares(runs, sets):
    "Set -> (…, n), the share of runs that are right."
    mean = lambda d: np.mean([r[d] for r in runs], axis=0)
    return {d: mean(d) for d in sets}


def accuracies(right, weights=None):
    "Set -> accuracies, of all images once or as often as each row of weights says."
    if weights is None:
        return {d: v.mean(-1) for d, v in right.items()}
    return {d: weights[d] @ v.T for d, v in right.items()}


def over_seeds(number, *runs, draws=2000):
    """A number of accuracies, with its 95 % interval over images and seeds: bootstrap and jackknife.

    `number` takes for each of `runs` a dict, set -> (…, 11) accuracies. Images of a set are drawn together for all.
    """
    value, error, df = with_error(number, *runs, draws=draws)
    half = error * scipy.stats.t.ppf(0.975, df)
    margin = 3.5 * half / np.sqrt(draws)  # of a standard deviation that was drawn, here and on the page
    return [value, Drawn(value - half, margin), Drawn(value + half, margin)]


@lru_cache(2)
def times_drawn(sizes, draws, seed, kind=float):
    "How often an image is drawn, as a share of its set: set -> (draws, n). Many numbers of a page ask for the same."
    rng = np.random.default_rng(seed)
    return {d: (rng.multinomial(n, np.full(n, 1 / n), draws) / n).astype(kind) for d, n in sizes}


def with_error(number, *runs, draws=2000):
    "The number, its standard error, and degrees of freedom."
    sets, n = list(runs[0][0]), len(runs[0])
    whole = [shares(r, sets) for r in runs]
    value = number(*map(accuracies, whole))
    sizes = {d: v.shape[1] for d, v in whole[0].items()}
    weights = times_drawn((*sizes.items(),), draws, seed=5)
    of_images = np.var(number(*[accuracies(m, weights) for m in whole]), ddof=1)

    def without(i):
        rest = [shares(but(r, i), sets) for r in runs]
        return number(*map(accuracies, rest))

    of_seeds = (n - 1) * np.var([without(i) for i in range(n)])
    felt, fewest = max(of_seeds, of_images), min(sizes.values())
    df = (of_images + felt) ** 2 / (of_images**2 / (fewest - 1) + felt**2 / (n - 1))
    return value, np.sqrt(of_images + of_seeds), df


# ---------- photographs ----------


@cache
def photographs(name, folder="photographs"):
    "Which images each classifier of a run gets right: (method, α) -> set -> (n,)."
    with np.load(ROOT / f"nbs/reproductions/{folder}/{name}.npz") as f:
        right, sets = (f["answers"] == f["labels"]).astype(float), f["datasets"]
        names = [tuple(k) for k in json.loads(str(f["classifiers"]))]
    own = lambda row: {str(d): row[sets == d] for d in np.unique(sets)}
    return {k: own(row) for k, row in zip(names, right)}


def with_runs(rows, draws=2000):
    """Mean over references of the mean of each's runs and sets, with its 95 % interval over images and runs.

    rows: reference -> one dict a run, set -> (n,). Images of one name are drawn together, whichever reference has them.
    """
    k = len(rows)
    sizes = {d: len(v) for runs in rows.values() for d, v in runs[0].items()}
    times = times_drawn((*sizes.items(),), draws, seed=6, kind=np.float32)
    of_run = lambda run: np.mean([v.mean() for v in run.values()])
    by_run = {r: np.array(list(map(of_run, runs))) for r, runs in rows.items()}
    mean = lambda runs, d: np.mean([run[d] for run in runs], axis=0).astype(np.float32)
    of_draws = lambda runs: np.mean([times[d] @ mean(runs, d) for d in runs[0]], axis=0)
    drawn = list(map(of_draws, rows.values()))
    of_images, fewest = np.var(np.mean(drawn, axis=0), ddof=1), min(sizes.values())
    n = len(next(iter(by_run.values())))
    of_runs = sum(np.var(v, ddof=1) / n for v in by_run.values()) / k**2 if n > 1 else 0
    felt = max(of_runs, of_images) if n > 1 else 0
    df = (of_images + felt) ** 2 / (of_images**2 / (fewest - 1) + felt**2 / max(k * (n - 1), 1))
    value = np.mean([v.mean() for v in by_run.values()])
    half = np.sqrt(of_images + of_runs) * scipy.stats.t.ppf(0.975, df)
    margin = 3.5 * half / np.sqrt(2 * draws)  # of a standard deviation that is drawn here alone
    return [value, Drawn(value - half, margin), Drawn(value + half, margin)]
