#!/usr/bin/env python
"""Recompute the headline tables of the results pages from the answers to single images, and compare every digit.

  audit.py            fails where a page says something else than its answers
  audit.py PAGE ...   only some pages, such as explanations/path

No code of the package takes part, only numpy and scipy. Three sections: estimates with their intervals, the answers
that the repository keeps of every run, and what a page prints; then the pages, an entry each. An estimate has to agree
to its last digit. Where a page draws its intervals at random, an end may be off by the error of that.
"""

import base64
import csv
import gzip
import html
import io
import json
import re
import sys
from collections import defaultdict
from fractions import Fraction
from functools import cache, partial
from itertools import count
from pathlib import Path
from time import perf_counter
from zipfile import ZipFile

import numpy as np
from scipy.special import stdtrit

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "nbs/reproductions"
sys.path.append(str(HERE))
from answers import AS_RUN, unpacked

SHIFTS = ["colour", "duotone", "emoji", "hand-drawn", "pixel", "recoloured", "solid"]
SIX, FOUR = [d for d in SHIFTS if d != "recoloured"], ["colour", "duotone", "recoloured", "solid"]
BOTH, CONTROL = ("reference", "shift"), "other-icons"


# ---------- estimates ----------

UNITS = defaultdict(count().__next__)  # name of a unit -> its number, the same in all archives


class Images:
    "Of each image its set and its unit: images of one unit are drawn together."

    def __init__(self, sets, units):
        self.of = {d: np.flatnonzero(np.asarray(sets) == d) for d in dict.fromkeys(sets)}
        self.units = np.array([UNITS[u] for u in units])
        self.shifts = [d for d in self.of if d not in ("validation", "reference", CONTROL)]

    def weights(self, on):
        "Set -> its weight in a mean: over one set, over all shifts, over a list; or as given."
        some = self.shifts if on == "shift" else [on] if isinstance(on, str) else on
        return some if isinstance(some, dict) else dict.fromkeys(some, 1 / len(some))

    def per_image(self, on):
        each = np.zeros(len(self.units))
        for d, weight in self.weights(on).items():
            each[self.of[d]] = weight / len(self.of[d])
        return each


class Right:
    "Which images several runs get right, (runs, images), or a difference of two of these."

    def __init__(self, values, images):
        self.values, self.images = np.asarray(values, float), images

    def __add__(self, other):
        return Right(self.values + other.values, self.images)

    def __sub__(self, other):
        return Right(self.values - other.values, self.images)

    def __mul__(self, factor):
        return Right(self.values * factor, self.images)

    def n(self, on):
        return sum(len(self.images.of[d]) for d in self.images.weights(on))

    def means(self, on):
        "Of each run, over sets."
        return self.values @ self.images.per_image(on)

    def mean(self, on):
        return 100 * self.means(on).mean()

    def over_images(self, on, lowest=-100):
        "Mean over runs and sets in percent, with its 95 % interval over images."
        own = [self.images.of[d] for d in self.images.weights(on)]
        values, units = 100 * self.values.mean(0), self.images.units
        return [self.mean(on), *t_interval([values[i] for i in own], [units[i] for i in own], lowest, 100)]

    def over_both(self, on, draws=None, **how):
        "The same over images and runs."
        return interval(*estimate(self.part(on, **how)), draws)

    def part(self, on, groups=None, without=None):
        "A mean, how each image changes it, the images' units, the mean without each run or group, the smallest set."
        each, share = self.images.per_image(on), self.values.mean(0)
        own = [self.images.of[d] for d in self.images.weights(on)]
        groups = np.arange(len(self.values)) if groups is None else groups
        if without is None and len(set(groups)) > 1:
            without = [self.values[groups != g].mean(0) @ each for g in sorted(set(groups))]
        changes = np.concatenate([each[i] * (share[i] - share[i].mean()) for i in own])
        return share @ each, changes, self.images.units[np.concatenate(own)], without or [], min(map(len, own))


def estimate(*parts):
    """Mean of independent parts, its standard error over images and runs, and degrees of freedom.

    The variance is that over images, where those of one unit are drawn together, plus that over runs, which are left
    out one at a time, or a group of them. For the degrees of freedom, that over runs is at least that over images.
    """
    values, changes, units, without, fewest = zip(*parts)
    place = np.unique(np.concatenate(units), return_inverse=True)[1]
    of_images = np.sum(np.bincount(place, np.concatenate(changes)) ** 2) / len(parts) ** 2
    of_runs = sum((len(w) - 1) * np.var(w) for w in without if w) / len(parts) ** 2
    runs_free = sum(len(w) - 1 for w in without if w)
    felt = max(of_images, of_runs) if runs_free else 0
    uncertain = of_images**2 / (min(fewest) - 1) + felt**2 / max(runs_free, 1)
    df = (of_images + felt) ** 2 / uncertain if uncertain else min(fewest) - 1
    return np.mean(values), np.sqrt(of_images + of_runs), df


def interval(value, error, df, draws=None):
    "In percent. If the page draws the images so many times, an end may be off by 3.5 standard errors of that."
    half = 100 * error * stdtrit(df, 0.975)
    ends = Drawn(100 * value - half), Drawn(100 * value + half)
    for end in ends:
        end.margin = 3.5 * half / np.sqrt(2 * draws) if draws else 0
    return [100 * value, *ends]


class Drawn(float):
    "An end of an interval; the page's may be off by `margin`."


def t_of(values):
    "Mean and its 95 % interval by Student's t."
    half = stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(len(values))
    return [np.mean(values), np.mean(values) - half, np.mean(values) + half]


def t_interval(values, units, lowest, highest):
    """95 % interval of the mean over the means of sets: Student's t, with each unit left out in turn.

    Two units at each end are added if values are shares, one if they are differences, a part of it in each set.
    """
    center = variance = known = 0
    for sets in sharing(units):
        x, names = (np.concatenate([some[i] for i in sets]) for some in (values, units))
        which = np.repeat(np.arange(len(sets)), [len(values[i]) for i in sets])
        unit, added = np.unique(names, return_inverse=True)[1], np.arange(2 * len(sets))
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
    half = stdtrit(variance**2 / known, 0.975) * np.sqrt(variance)
    mean = np.mean([v.mean() for v in values])
    return [min(mean, max(lowest, center - half)), max(mean, min(highest, center + half))]


def counts_as_one(values, names):
    "How many images of units say as much as one: a unit of equal values is one, others by the variance of the mean."
    values, unit = np.asarray(values, float), np.unique(names, return_inverse=True)[1]
    size, total, n = np.bincount(unit), np.bincount(unit, values), len(values)
    if len(size) == n:
        return 1.0
    without = (values.sum() - total) / (n - size)
    spread = np.sum((without - values.mean()) ** 2) * (1 - 1 / len(size))
    ratio = max(1.0, spread * (n - 1) / max(np.var(values), 1e-30))
    one = np.zeros(len(size))
    one[unit] = values  # of each unit
    equal = np.bincount(unit, values != one[unit]) == 0
    return float(np.exp(np.average(np.log(np.where(equal, size, ratio)), weights=size)))


def sharing(units):
    "Places of sets, together where they share units, directly or by others."
    groups = []
    for i, names in enumerate(map(set, units)):
        near = [g for g in groups if g[1] & names]
        groups = [g for g in groups if not g[1] & names]
        groups.append((sum([g[0] for g in near], []) + [i], names.union(*[g[1] for g in near])))
    return [g[0] for g in groups]


# ---------- the answers ----------


class Runs:
    "Settings of each classifier, and which images each gets right."

    def __init__(self, settings, right, images):
        self.settings, self.right = settings, Right(right, images)

    def rows(self, places):
        return Right(self.right.values[places], self.right.images)

    def __call__(self, **wanted):
        "Those with some settings."
        places = [i for i, s in enumerate(self.settings) if all(s.get(k) == v for k, v in wanted.items())]
        assert places, wanted
        return self.rows(places)


def table_of(path, **wanted):
    with (HERE / path).open(encoding="utf-8") as file:
        return [r for r in csv.DictReader(file) if all(r[k] == v for k, v in wanted.items())]


@cache
def icons(reference="reference"):
    "The images that runs on icons are judged by, in the order of their answers."
    with ZipFile(ROOT / "wiseft/data/icons.zip") as z:
        rows = list(csv.DictReader(io.TextIOWrapper(z.open("icons/icons.csv"), "utf-8")))
    shifts = SHIFTS if reference == "reference" else ["outline", *[d for d in SHIFTS if d != reference]]
    parts = [("validation", reference, "validation"), ("reference", reference, "test")]
    parts += [(d, d.replace("outline", "reference"), "test") for d in shifts]
    own = [(name, r) for name, folder, split in parts for r in sorted(rows, key=lambda r: r["file"])
           if (r["file"].split("/")[1], r["split"]) == (folder, split)]
    images = Images([name for name, _ in own], [r["original"] or r["file"] for _, r in own])
    images.classes = np.unique([r["class"] for _, r in own], return_inverse=True)[1]
    return images


@cache
def runs(name):
    "A file of runs, such as grid/runs.jsonl, or domains/runs-solid.jsonl."
    images, settings, right = icons("solid" if "solid" in name else "reference"), [], []
    for line in (HERE / f"{name if '/' in name else f'{name}/runs'}.jsonl").read_text().splitlines():
        run = json.loads(line)
        bits = np.frombuffer(base64.b64decode(run.pop("correct")), np.uint8).reshape(len(run["classifiers"]), -1)
        right.append(np.unpackbits(bits, axis=1, count=len(images.units)))
        settings += [run | dict(method=m, alpha=a) for m, a in run["classifiers"]]
    return Runs(settings, np.concatenate(right), images)


@cache
def five_seeds():
    "The first protocol, whose table of predictions has an answer of each method and seed."
    with gzip.open(HERE / "icons/predictions.csv.gz", "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [k for k in rows[0] if k == "zero-shot" or " seed " in k]
    right = [[r[k] == r["label"] for r in rows] for k in names]
    images = Images([r["dataset"] for r in rows], [r["unit"] for r in rows])
    return Runs([dict(method=k.partition(" seed ")[0]) for k in names], right, images)


unpacked = cache(unpacked)  # each folder once


@cache
def curve(folder, *names):
    "Files of the bench or campaign, one a run: points along α; None where there is no such file."
    files = [unpacked(HERE / folder) / f"{name}.test.npz" for name in names]
    if not all(f.exists() for f in files):
        return None
    kept = [{k[6:]: v for k, v in np.load(f).items() if k.startswith("right ")} for f in files]
    sets = [d for d, v in kept[0].items() for _ in range(v.shape[1])]
    images = Images(sets, [f"{d} {i}" for i, d in enumerate(sets)])
    points = np.stack([np.concatenate([*k.values()], 1) for k in kept], 1)
    return [Right(p, images) for p in points]


@cache
def photographs(style, folder):
    "(method, α) -> right or wrong in runs with a style as their reference, whose test images no other run has."
    kept = [np.load(unpacked(HERE / folder) / f"{style}, seed {seed}.npz") for seed in (10, 11, 12)]
    sets, right = kept[0]["datasets"], np.stack([f["answers"] == f["labels"] for f in kept], 1)
    seen = defaultdict(count)
    images = Images(sets, [f"{style if d == 'reference' else ''} {d} {next(seen[d])}" for d in sets])
    return {tuple(k): Right(r, images) for k, r in zip(json.loads(str(kept[0]["classifiers"])), right)}


# ---------- what a page prints ----------

NUMBER = r"[−-]?\d[\d,]*(?:\.\d+)?"


def number(text):
    return float(text.replace("−", "-").replace(",", ""))


def unit(text):
    "Of the last digit."
    return 10.0 ** -len(text.partition(".")[2])


class Page:
    "The prose and the stored outputs of a notebook; what is wrong in them, and how many numbers were compared."

    def __init__(self, name, cells):
        self.name, self.cells, self.wrong, self.compared = name, cells, [], 0
        prose = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
        self.text = "\n\n".join([*prose, *(text_of(o) for c in cells for o in c.get("outputs", []))])

    def report(self, what):
        self.wrong.append(f"{self.name}: {what}")

    def compare(self, what, printed, values):
        self.compared += len(printed)
        if len(printed) != len(values):
            self.report(f"{what}: {len(printed)} numbers printed, {len(values)} recomputed")
        for p, v in zip(printed, values):
            if not abs(number(p) - v) <= 0.505 * unit(p) + getattr(v, "margin", 0):  # some are rounded twice
                self.report(f"{what}: printed {p}, recomputed {v:.4f}")

    def rows(self, start):
        "Name and entries of each row of a table that the code or the heading has in its words."
        found = [c for c in self.cells if start in "".join(c["source"])]
        if len(found) != 1:
            self.report(f"{len(found)} tables with {start}")
            return []
        if found[0]["cell_type"] == "code":
            return [r for o in found[0]["outputs"] for r in html_rows(o)]
        table = "".join(found[0]["source"]).partition(start)[2].split("\n\n")[0]
        rows = [[entry.strip() for entry in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
        return [(first, rest) for first, *rest in rows]

    def table(self, start, rows, columns=None):
        "A table: numbers of each row, or a function of its name. None passes a row over; words between don't matter."
        shown = self.rows(start)
        rows = [rows(name) for name, _ in shown] if callable(rows) else list(rows)
        if len(shown) != len(rows):
            self.report(f"{start}: {len(shown)} rows printed, {len(rows)} recomputed")
        for place, ((name, entries), values) in enumerate(zip(shown, rows), 1):
            if values is not None:
                some = entries if columns is None else [entries[i] for i in columns]
                self.compare(f"{start}, row {place} ({name})", re.findall(NUMBER, " ".join(some)), values)

    def says(self, template, *values):
        "A sentence, of the prose or printed, with {} for each number."
        found = re.findall(re.escape(template).replace(r"\{\}", f"({NUMBER})"), self.text)
        if len(found) != 1:
            return self.report(f"{len(found)} times in the text: {template}")
        self.compare(template, [found[0]] if len(values) == 1 else found[0], values)

    def holds(self, words, truth):
        if words not in self.text or not truth:
            self.report(f"not {'so' if words in self.text else 'in the text'}: {words}")


def text_of(output):
    "What a cell has printed, or shown as Markdown."
    return "".join(output.get("text", output.get("data", {}).get("text/markdown", "")))


def html_rows(output):
    "Name and entries of each row of a stored table."
    for row in re.findall(r"<tr.*?</tr>", "".join(output.get("data", {}).get("text/html", "")), re.S):
        names, entries = (re.findall(rf"<{kind}.*?>(.*?)</{kind}>", row, re.S) for kind in ("th", "td"))
        if entries:
            yield html.unescape(names[-1] if names else ""), [html.unescape(e).strip() for e in entries]


PAGES = {}


def page(*names):
    "Registers what is recomputed of some pages."
    return lambda entry: PAGES.update(dict.fromkeys(names, entry))


def read(name):
    if name == "README":
        return [dict(cell_type="markdown", source=(ROOT / "README.md").read_text(encoding="utf-8"))]
    return json.loads((ROOT / "nbs" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def audited(name, cells=None):
    "A page, with what is wrong in it."
    judged = Page(name, cells or read(name))
    PAGES[name](judged)
    return judged


# ---------- pages of runs on icons ----------

E2E, LINEAR = "end to end", "linear classifier"
GENTLE = dict(kind=E2E, lr=3e-4)
PROTOCOL = dict(lr=3e-4, epochs=20, regulariser="weight decay")


def ends_runs(alpha, kind=E2E, lr=3e-4, method="weight-space"):
    return runs("ends")(kind=kind, lr=lr, method=method, alpha=alpha)


def accuracies(right, ons=BOTH):
    "With intervals over images."
    return [v for on in ons for v in right.over_images(on, lowest=0)]


def changes(right, ons=BOTH):
    "Numbers of images, and points with intervals over images."
    return [v for on in ons for v in (right.n(on), *right.over_images(on))]


ENDS_AND_HALF = lambda s: s["alpha"] in (0, 0.5, 1)
HALF_AND_END = lambda s: s["alpha"] in (0.5, 1)
ONE_PATH = lambda s: s["method"] == "weight-space" or s["method"] in ("logits", "probabilities") and s["alpha"] == 0.5
TABLES = [  # page, file of runs, code of the table, settings that its rows share, which classifiers, order of rows
    ("grid/grid", "grid", "accuracy_table(shown", "method alpha lr epochs", ENDS_AND_HALF, "alpha lr epochs"),
    ("ends/ends", "ends", "accuracy_table(shown", "kind lr method alpha",
     lambda s: ENDS_AND_HALF(s) and ONE_PATH(s), "kind lr alpha"),
    ("shots/shots", "shots", "accuracy_table(runs", "kind alpha k", HALF_AND_END, "kind alpha k"),
    ("averages/averages", "averages", "accuracy_table(runs", "batchnorm method alpha", HALF_AND_END, ""),
    ("why/why", "why", "accuracy_table(runs", "kind lr method alpha", ENDS_AND_HALF, "kind lr method alpha"),
    ("names/names", "names", "accuracy_table(runs", "unknown alpha", ENDS_AND_HALF, ""),
]


def accuracy_table(file, start, by, some, order, page):
    "Of classifiers that share settings: how many they are, and how accurate."
    of, groups = runs(file), defaultdict(list)
    own = [i for i, s in enumerate(of.settings) if some(s)]
    key = lambda i, names: (*(of.settings[i].get(k, 0) for k in names.split()),)
    for i in sorted(own, key=lambda i: key(i, order)):
        groups[key(i, by)].append(i)
    page.table(start, [[len(same), *accuracies(of.rows(same))] for same in groups.values()])


for name, *how in TABLES:
    page(f"reproductions/{name}")(partial(accuracy_table, *how))


@page("reproductions/domains/domains")
def _(page):
    of = runs("domains/runs-solid")
    sets = "reference", "shift", *of.right.images.shifts
    page.table("accuracy_table(runs", np.transpose([[3, *accuracies(of(alpha=a), sets)] for a in (0, 0.5, 1)]))


@page("explanations/tradeoff")
def _(page):
    zs, half, ft = map(ends_runs, (0, 0.5, 1))
    page.table("found = pd.DataFrame([row(*c, d)",
               [changes(v, [on]) for on in BOTH for v in (ft - zs, half - zs, half - ft)], range(2, 6))


@page("explanations/linear_end_to_end")
def _(page):
    (zs, ft, half), (start, end, middle) = ([ends_runs(a, kind, lr) for a in (0, 1, 0.5)]
                                            for kind, lr in ((E2E, 3e-4), (LINEAR, 1e-2)))
    pairs = end - start, ft - zs, ft - end, half - middle
    page.table("compared = [('linear − zero-shot'", [v.over_images(on) for on in BOTH for v in pairs], [2, 3, 4])


KS = 1, 2, 4, 8, 16, 25  # images a class


@page("explanations/few_images")
def _(page):
    zs, shots = runs("grid")(method="zero-shot"), runs("shots")
    gains = {(kind, a, k): shots(kind=kind, k=k, alpha=a) - zs for kind in (LINEAR, E2E) for a in (1, 0.5) for k in KS}
    page.table("| images per class", [[gains[E2E, a, k].mean("shift") for a in (1, 0.5)] for k in KS])
    page.table("table = change_table(images, pairs, ['kind'", map(changes, gains.values()))


@page("explanations/path")
def _(page):
    zs, half, ft = map(ends_runs, (0, 0.5, 1))
    page.table("rows.append(dict(on=d, n=int", [changes(half - (zs + ft) * 0.5, [on]) for on in BOTH], range(1, 5))


@page("explanations/weights_outputs")
def _(page):
    recipes = (E2E, 3e-4), (E2E, 3e-3), ("BatchNorm trained", 1e-3), (E2E, 1e-2)
    page.table("verdict = pd.DataFrame(rows)", [(ends_runs(0.5, *r) - ends_runs(0.5, *r, other)).over_images("shift")
                                                for r in recipes for other in ("logits", "probabilities")])


@page("explanations/averages_over_time")
def _(page):
    at = lambda kind, m, a: runs("averages")(batchnorm=kind, method=m, alpha=a)
    alone = [at("frozen", m, a) - at("frozen", "last", a) for m in ("SWA", "EMA") for a in (1, 0.5)]
    alone += [at("frozen", m, 0.5) - at("frozen", m, 1) for m in ("last", "SWA", "EMA")]
    page.table("alone = change_table(images", map(changes, alone))
    rows = [(m, a) for m in ("last", "SWA", "EMA") for a in (1, 0.5)]
    norm = [at("trained", f"{m}, recomputed", a) - at("trained", m, a) for m, a in rows]
    page.table("norm = change_table(images", map(changes, norm + [at("trained", *r) - at("frozen", *r) for r in rows]))


@page("explanations/domains")
def _(page):
    grid, solid, rows = runs("grid"), runs("domains/runs-solid"), []
    for at in (lambda a: grid(**PROTOCOL, alpha=a) if a else grid(method="zero-shot"), lambda a: solid(alpha=a)):
        for on in BOTH:
            pooled = lambda a: at(a).values[:, at(a).images.per_image(on) > 0].mean()
            best = max([a / 10 for a in range(11)], key=pooled)
            gain = (at(0.5) - at(1)).over_images(on)
            rows.append([at(0).n(on), *(at(a).mean(on) for a in (0, 1, 0.5)), *gain, best, at(best).mean(on)])
    page.table("ours = pd.DataFrame(rows)", rows)


# ---------- pages of the grid of fine-tunings ----------


@cache
def grid_paths():
    "Places of the 62 runs' classifiers from α = 0 to 1, (62, 11), and the cell of each run."
    grid, places, cells = runs("grid"), defaultdict(list), {}
    for i, s in enumerate(grid.settings[1:], 1):  # the first is the zero-shot classifier, and fine-tuned ones end a run
        places[s["run"]].append(i)
        cells[s["run"]] = f"{s['lr']} {s['epochs']}"
    assert all([grid.settings[i]["alpha"] for i in p] == [a / 10 for a in range(1, 11)] for p in places.values())
    return np.array([[0, *p] for p in places.values()]), np.array([*cells.values()])


def along_grid(on):
    "Accuracies of the 62 runs from α = 0 to 1."
    return runs("grid").right.means(on)[grid_paths()[0]]


def over_cells(values):
    "Mean of cells of learning rate × epochs, in percent, with its interval."
    cells = grid_paths()[1]
    return t_of([100 * values[cells == c].mean() for c in sorted(set(cells))])


@page("explanations/hyperparameters")
def _(page):
    grid, rows = runs("grid"), []
    for on in ("shift", "reference"):
        gain = along_grid(on)[:, 5] - along_grid(on)[:, 10]
        rows.append([62, *(grid(alpha=0.5) - grid(alpha=1)).over_images(on), *over_cells(gain), sum(gain > 0)])
    page.table("gain = pd.DataFrame(rows).set_index('where')", rows)
    page.table("| α = 0.5 − fine-tuned |", [[*row[1:4], row[7], 62] for row in rows])


def lost_by_rules():
    "Rule -> mean α, and what each run of the grid loses against its best α, on the reference and under shift."
    n, greedy = len(icons().of["validation"]), lambda v: 10 - np.argmax([*(np.diff(v[::-1]) < 0), True])
    rules = {"fine-tuned": lambda v: 10, "half": lambda v: 5, "best": np.argmax,
             "one standard error": lambda v: np.argmax(v >= v.max() - np.sqrt(v.max() * (1 - v.max()) / n)),
             "greedy": greedy}
    places = {k: np.array([*map(rule, along_grid("validation"))]) for k, rule in rules.items()}
    places["*oracle*"] = along_grid("shift").argmax(1)
    lost = lambda on, at: along_grid(on).max(1) - along_grid(on)[np.arange(62), at]
    return {k: (at.mean() / 10, *(lost(on, at) for on in BOTH)) for k, at in places.items()}


@page("explanations/choosing_alpha")
def _(page):
    found = lost_by_rules()
    page.table("| rule | α |", lambda rule: [100 * lost.mean() for lost in found[rule][1:]], [1, 2])
    page.table("regret = pd.DataFrame(rows)", [[62, alpha, *(x for v in lost for x in (
        100 * v.mean(), *over_cells(v)[1:]))] for alpha, *lost in found.values()])


def kept_by_half():
    "Of the 62 runs: whether α = 0.5 keeps the reference, the shifts, and both."
    reference, shift = along_grid("reference"), along_grid("shift")
    better = shift[:, [0, 10]].max(1)
    both = reference[:, 5] > reference[:, 10] - 1e-11, shift[:, 5] > better - 1e-11
    return np.array([*both, both[0] & both[1]])


@page("explanations/averaging_fails")
def _(page):
    grid, names, cells = runs("grid"), runs("names"), grid_paths()[1]
    lrs = np.array([float(c.split()[0]) for c in cells])
    some = [*(lrs == lr for lr in sorted(set(lrs))), lrs > 0]
    page.table("counts = ours[kept].groupby", [[*kept_by_half()[:, own].sum(1), sum(own)] for own in some])
    gains = [grid(**PROTOCOL, alpha=0.5) - grid(**PROTOCOL, alpha=1)]
    gains += [names(unknown=s, alpha=0.5) - names(unknown=s, alpha=1) for s in (0.25, 0.5, 0.75, 1)]
    page.table("cost = change_table(images", map(changes, gains))
    loss = (ends_runs(0, lr=1e-2) - ends_runs(0.5, lr=1e-2)).mean("reference")
    page.says("learning rate | {} on the reference, compared with", loss)


# ---------- the protocols, the findings, and the front page ----------


@page("reproductions/icons/robustness")
def _(page):
    zs, half, logits, mixed, ft = (five_seeds()(method=m) for m in (
        "zero-shot", "weight-space", "logits", "probabilities", "fine-tuned"))
    page.table("| | reference | under shift |", [[v.mean(on) for on in BOTH] for v in (zs, ft, half)])
    page.table("mean = combine_seeds(results)", [[v.mean(on) for on in (*BOTH, *SHIFTS)]
                                                 for v in (zs, half, logits, mixed, ft)])


def protocol2(families, lr, alpha):
    "Which images each seed gets right; the zero-shot classifier has none."
    own = runs("protocol2")(families=families, lr=lr, alpha=alpha)
    return own if alpha else Right(own.values[:1], own.images)


@page("reproductions/protocol2/protocol2")
def _(page):
    plan, where = json.loads((ROOT / "wiseft/data/protocol-2.json").read_text())["hypotheses"]["list"], {"shift": SIX}
    main = {m: protocol2(4, 3e-3, a) for m, a in {"zero-shot": 0, "weight-space": 0.5, "fine-tuned": 1}.items()}
    over = lambda v, on: v.over_both(where.get(on, on))
    rows = [[h["margin"], *over(main[h["b"]] - main[h["a"]], h["where"])] for h in plan]
    page.table("verdict['', 'holds'] = verdict", rows, [2, 3, 8, 9])
    cells = {(f, lr): [protocol2(f, lr, a) for a in (0, 0.5, 1)] for f in (4, 8) for lr in (3e-4, 1e-3, 3e-3)}
    gains = [(ft - zs, half - ft, half - zs) for zs, half, ft in cells.values()]
    page.table("def gains(c, where)", [[x for v in own for x in over(v, on)] for on in (*BOTH, "recoloured")
                                       for own in gains])


@page("explanations/findings")
def _(page):
    grid, solid = runs("grid"), runs("domains/runs-solid")
    zs, half, ft, logits = *map(ends_runs, (0, 0.5, 1)), ends_runs(0.5, method="logits")
    again, last = (runs("averages")(batchnorm="trained", method=m, alpha=0.5)
                   for m in ("last, recomputed", "last"))
    places, cells = grid_paths()
    best = grid.rows(places[np.arange(62), 1 + along_grid("validation")[:, 1:].argmax(1)])
    outlines, solids = (of(**how, alpha=0.5) - of(**how, alpha=1) for of, how in ((grid, PROTOCOL), (solid, {})))
    rows = [(ft - zs, "shift"), (ft - zs, FOUR), (half - zs, "shift"), (half - ft, "shift"), (half - ft, "reference"),
            (half - logits, "shift"), (half - (zs + ft) * 0.5, "shift"), (again - last, "shift"),
            (outlines, "reference"), (outlines, "shift"), (solids, "reference"), (solids, "shift")]
    rows = [[*v.over_both(on), 3] for v, on in rows]
    middle, end = grid(alpha=0.5), grid(alpha=1)
    rows[7:7] = [[*v.over_both(on, groups=cells), 12]
                 for v, on in ((middle - end, "shift"), (middle - end, "reference"), (middle - best, "shift"))]
    page.table("rows = {'fine-tuned − zero-shot'", rows)
    start, few = grid(method="zero-shot"), [[runs("shots")(kind=E2E, k=k, alpha=a) for a in (1, 0.5)] for k in KS]
    page.table("def of_k(k)", [[x for v in (full - start, half - start, half - full) for x in v.over_both("shift")]
                               for full, half in few])
    page.table("| recipe | |", [[protocol2(*cell, a).mean(on) for a in (0, 1, 0.5)]
                                for cell in ((8, 3e-4), (4, 3e-3)) for on in ("reference", SIX)])
    page.says("suite has {} test images of the reference and {} under", zs.n("reference"), zs.n("shift"))
    page.says("lose {} points of plain accuracy ({} to {}†)", *lost_on_untaught_classes())
    page.says("restores the shifts in {} of {}", sum(kept_by_half()[2]), 62)
    page.says("one-standard-error rule lose {} points", 100 * lost_by_rules()["half"][2].mean())
    lost = [(start - f).mean("shift") for f, _ in few[:3]]
    page.says("end to end loses {} to {} points under shift, and", min(lost), max(lost))
    page.says("with outline ({}) and with solid icons ({})", rows[-3][0], rows[-1][0])
    page.says("another task loses {} to {} points; α = 0.5 restores {} to {} %", *lost_and_restored())
    zs, _, ft = paper_path()
    page.says("gains {} on the reference and costs {} under shift |", ft[0] - zs[0], zs[1] - ft[1])


def lost_on_untaught_classes():
    "What fine-tuning on half of the classes loses on the others under shift. A seed trains on each half in turn."
    of, settings = runs("why"), dict(kind=E2E, lr=3e-4, method="all classes")
    lost, classes = of(**settings, alpha=0) - of(**settings, alpha=1), of.right.images.classes
    for values, run in zip(lost.values, [s for s in of.settings if s | settings == s and s["alpha"] == 1]):
        n = classes.max() + 1
        first = np.random.default_rng(run["seed"]).permutation(n) < n // 2
        values[(first == (run["half"] == 0))[classes]] = 0  # taught
    return (lost * 2).over_images("shift")


def paper_path():
    "CLIP ViT-B/16, fine-tuned end to end in the paper: on ImageNet and under shift at α = 0, 0.5, and 1, in percent."
    rows = table_of("published/paper.csv", classifier="CLIP ViT-B/16 end-to-end")
    at = {(float(r["alpha"]), r["dataset"]): 100 * float(r["value"]) for r in rows if "Table 5" in r["source"]}
    shifts = "imagenet-v2", "imagenet-r", "imagenet-sketch", "objectnet", "imagenet-a"
    return [(at[a, "reference"], np.mean([at[a, d] for d in shifts])) for a in (0, 0.5, 1)]


def on_front_page(method, on):
    "Accuracy of each seed, in percent."
    rows = table_of("front_page/results.csv", method=method, dataset=on)
    return np.array([100 * float(r["value"]) for r in sorted(rows, key=lambda r: r["seed"])])


def ahead_on_front_page():
    "Averaged probabilities over averaged weights."
    return on_front_page("probabilities", "reference") - on_front_page("weight-space", "reference")


@page("index", "README")
def _(page):
    zs, _, ft = paper_path()
    page.says("gains {} points there and loses {} points on five shifted sets", ft[0] - zs[0], zs[1] - ft[1])
    at, ahead = on_front_page, ahead_on_front_page()
    page.says("*probabilities* takes two passes and is {} points better on the reference", ahead.mean())
    page.holds("nine of ten seeds", (sum(ahead > 0), len(ahead)) == (9, 10))
    for words, on, n in (("loses accuracy under shift with all of", "mean over shifts", 10),
                         ("on the reference with four", "reference", 4)):
        page.holds(words, sum(at("fine-tuned", on) < at("zero-shot", on)) == n)
        above = [at("weight-space", on) > at(end, on) for end in ("zero-shot", "fine-tuned")]
        page.holds("is always more accurate than both models on both", np.all(above))
    page.says("averaging [costs {} points]", -apart_on_photographs(HALF, [END], "shift")[0])


# ---------- photographs ----------

START, HALF, END = ("start", 0.0), ("weight-space", 0.5), ("fine-tuned", 1.0)
LOGITS, EMA, AGAIN, HALF_AGAIN = ("logits", 0.5), ("EMA", 1.0), ("recomputed", 1), ("recomputed", 0.5)


def apart_on_photographs(a, b, on, folder="photographs"):
    "Points between classifiers of the six runs, over images and runs; of several, `b`, the mean counts."
    less = lambda of: of[a] - sum((of[k] for k in b[1:]), of[b[0]]) * (1 / len(b))
    return interval(*estimate(*(less(photographs(style, folder)).part(on) for style in ("art_painting", "photo"))))


@page("explanations/photographs")
def _(page):
    apart = lambda a, *b, **how: [x for on in BOTH[::-1] for x in apart_on_photographs(a, b, on, **how)]
    pairs = [(HALF, END), (HALF_AGAIN, AGAIN), (HALF, START), (HALF, START, END), (END, START), (HALF, LOGITS),
             (HALF_AGAIN, HALF), (AGAIN, END), (EMA, END)]
    page.table("changes = pd.concat", [apart(*pair) for pair in pairs])
    pairs = (HALF, END), (HALF, START), (END, START), (HALF, LOGITS)
    page.table("word_pairs = ", [apart(*pair, folder="words") for pair in pairs])


# ---------- what an ImageNet model still knows ----------

OLD, ALPHAS = ("ImageNet samples", "Caltech-101", "others"), (0, 0.1, 0.2, 0.3, 0.5, 0.75, 1)
TAUGHT = [101, *range(151, 269), 339, 385, 386, 402, 546, 981, 982, 983]  # dogs, elephants, a horse, guitars, people
PACS = "cartoon", "sketch", "art_painting", "photo"


@cache
def remembered(*styles):
    "Points along α: of three seeds and each new image right or wrong, and of an old one the mean over styles."
    def kept(style, seed):
        with np.load(unpacked(HERE / "remembered") / f"lite0, {style}, seed {seed}.npz") as f:
            keys, right = json.loads(str(f["classifiers"])), f["answers"] == f["labels"]
            right = right[[keys.index(["plain", a]) for a in ALPHAS]]
            own = {d: right[:, f["datasets"] == d] for d in ("reference", *OLD[:2])}
            return own | {"others": np.delete(own[OLD[0]], TAUGHT, 1)}
    runs = [[kept(style, seed) for style in styles] for seed in (20, 21, 22)]
    new = [np.concatenate([of["reference"] for of in seed], 1) for seed in runs]
    old = [np.concatenate([np.mean([of[d] for of in seed], 0) for d in OLD], 1) for seed in runs]
    points = np.concatenate([np.stack(new, 1), np.stack(old, 1)], 2)
    sets = ["reference"] * new[0].shape[1] + [d for d in OLD for _ in range(runs[0][0][d].shape[1])]
    return [Right(p, Images(sets, range(len(sets)))) for p in points]


def kept_by_limit(style, seed, half):
    "α by a limit of a point on half of the old images, and in points what it loses and gains elsewhere."
    held = np.load(unpacked(HERE / "remembered") / f"lite0, {style}, seed {seed}.validation.npz")
    keys = json.loads(str(held["classifiers"]))
    right = (held["answers"] == held["labels"]).mean(1)
    points = remembered(style)
    run = [p.values[seed - 20] for p in points]
    at = {d: points[0].images.of[d] for d in ("reference", *OLD[:2])}
    lost = lambda i, part: 100 * np.mean([(run[0] - run[i])[at[d][part::2]].mean() for d in OLD[:2]])
    allowed = [i for i in range(len(ALPHAS)) if lost(i, half) < 1 + 1e-6]
    i = max(allowed, key=lambda i: (right[keys.index(["plain", ALPHAS[i]])], -abs(ALPHAS[i] - 0.5)))
    new = [100 * run[j][at["reference"]].mean() for j in (0, i, -1)]
    return ALPHAS[i], lost(i, 1 - half), lost(-1, 1 - half), new[1] - new[0], new[2] - new[1]


@page("explanations/remembered")
def _(page):
    every = remembered(*PACS)
    above = lambda i, d, *styles: (remembered(*styles)[i] - remembered(*styles)[-1]).over_both(d, DRAWS)
    page.table("points = restored", [above(i, d, *PACS) for d in ("reference", *OLD) for i in range(6)])
    page.table("own = restored", [above(4, d, style) for style in PACS for d in ("reference", *OLD[:2])])
    limit = [np.array([kept_by_limit(style, seed, half) for seed in (20, 21, 22) for half in (0, 1)]) for style in PACS]
    page.table("by_style = limit", [[t[:, 0].min(), t[:, 0].max(), t[:, 1].mean(), t[:, 1].max(), *t[:, 2:].mean(0)]
                                    for t in limit])
    means = np.concatenate(limit).mean(0)
    page.says("lost {} points of old knowledge where fine-tuning lost {}", *means[1:3])
    page.says("kept {} of the {} points that fine-tuning gained", means[3], means[3] + means[4])
    lost, back = (every[0] - every[-1]).mean(OLD[0]), [(p - every[-1]).mean(OLD[0]) for p in every[1:-1]]
    page.table("part = restored", [[100 * b / lost] for b in back], [0])
    page.says("lost {} points ({} to {}) on ImageNet", *above(0, OLD[0], *PACS))
    page.says("restored {} points ({} to {}) of them", *above(4, OLD[0], *PACS))
    for i, words in (4, "cost {} points ({} to {}) on new images"), (5, "no established cost: {} points ({} to {})"):
        page.says(words, *(every[-1] - every[i]).over_both("reference", DRAWS))


# ---------- the bench, the campaign, and what was forgotten ----------

SIDES = {"reference": 0.5} | dict.fromkeys(SIX, 0.5 / 6)
SEEDS, DRAWS = range(30, 35), 2000


class Bench:
    "A part of the bench or of the campaign: its rows, at the settings that validation chose."

    def __init__(self, folder, rows):
        self.folder, self.rows = folder, {AS_RUN.get(r["method"], r["method"]): r for r in rows if not r["why"]}

    def curve(self, name, but=None):
        "A row's curve along α of five seeds, or without one of them."
        row, seeds = self.rows[name], [s for s in SEEDS if s != but]
        strength = f" {float(Fraction(row['strength']).limit_denominator(99)):g}" if row["strength"] else ""
        own, lr = row["method"].removesuffix(", best validation rate"), f"lr {float(row['lr']):g}"
        if float(row["runs"]) > 1:
            return curve(self.folder, f"{own} of {len(seeds)} plain, {lr}{f', without seed {but}' if but else ''}")
        own += " of plain" if row["kind"] in ("merge", "mix", "search") else strength
        return curve(self.folder, *[f"{own}, {lr}, seed {s}" for s in seeds])

    def chosen(self, name, but=None):
        "Of its points, the one that validation chose."
        alpha, points = self.rows[name]["alpha"], self.curve(name, but)
        return points and points[round(10 * float(alpha or 0))]

    def ahead(self, name, baseline="plain"):
        "Lead over the chosen average of plain fine-tuning, in the mean of reference and shift, over images and seeds."
        if name not in self.rows or name.startswith("plain"):
            return []
        if float(self.rows[name]["runs"]) == 1:
            return (self.chosen(name) - self.chosen(baseline)).over_both(SIDES, DRAWS)
        mean = lambda name, but: Right(self.chosen(name, but).values.mean(0, keepdims=True), self.chosen(name).images)
        less = lambda but=None: mean(name, but) - mean(baseline, but)
        known = self.chosen(name, SEEDS[0]) is not None
        return less().over_both(SIDES, DRAWS, without=[less(s).means(SIDES)[0] for s in SEEDS] if known else None)

    def ends(self, ons):
        "Zero-shot, averaged, and fine-tuned, over images and seeds."
        plain = self.curve("plain")
        return [[of.over_both(on, DRAWS) for on in ons] for of in (plain[0], self.chosen("plain"), plain[-1])]


@cache
def bench(tower):
    return Bench(f"bench/{tower}-harsh", table_of("bench/gains.csv", tower=tower, recipe="harsh"))


@page("reproductions/bench/bench")
def _(page):
    of = bench("resnet")
    ends = of.ends(("reference", *SIX, "shift"))
    page.table("print(f'chosen: α", [[x for e in on for x in e] for on in zip(*ends)])
    page.table("| plain fine-tuning |", [[e[0][0], e[-1][0]] for e in ends])
    row = lambda n: None if n == "plain, other seeds" else [*map(of.chosen(n).mean, BOTH), *of.ahead(n)]
    page.table("shown(own.sort_values('ahead'", row, [0, 1, 5, 6])


@page("reproductions/bench/towers")
def _(page):
    both = bench("resnet"), bench("vit")
    page.table("def ends(made)", [[x for e in row for x in e] for of in both for row in of.ends(BOTH)])
    page.table("table, averaged = shown(", lambda n: both[0].ahead(n) + both[1].ahead(n), [0, 1])


@cache
def best_plan():
    return json.loads((HERE / "best_settings/plan.json").read_text())


def planned(part, name=None, what="best", averaged=True):
    "A row of best_settings/plan.json at the α that validation chose, or not averaged; without a name, of plain."
    plan = best_plan()
    own = next((n for n in plan["parts"][part] if AS_RUN.get(n, n) == name), "plain")
    lr, strength = plan["parts"][part][own][what] if name else (plan["plain"], None)
    folder = f"best_settings/{part.replace(', ', '-')}"
    names = [f"{own}{'' if strength is None else f' {strength:g}'}, lr {lr:g}, seed {s}" for s in plan["seeds"]]
    held = [np.load(unpacked(HERE / folder) / f"{n}.validation.npz")["right reference"] for n in names]
    means = np.mean(held, (0, 2))
    close = means.max() - np.sqrt(means.max() * (1 - means.max()) / held[0].shape[1])
    return curve(folder, *names)[min(np.flatnonzero(means >= close), key=lambda i: abs(i - 5)) if averaged else -1]


def at_best_setting(part, name):
    "Lead over averaged plain fine-tuning, and over the method's own average at the rule's setting."
    best = planned(part, name)
    return [x for other in (planned(part), planned(part, name, "rule")) for x in (best - other).over_both(SIDES, DRAWS)]


@page("reproductions/evidence/evidence")
def _(page):
    resnet, vit = bench("resnet"), bench("vit")
    for first in ("*sorted(both", "'LiNeS'", "'plain'", "'FLYP'", "'Model Stock'", "'logits'"):
        page.table(f"evidence({first}", lambda n: resnet.ahead(n) + vit.ahead(n), [3, 4])
    for part, best in (("vit-harsh", []), ("resnet-harsh", []), ("resnet-gentle", ["plain, best validation rate"])):
        of = Bench(f"campaign/{part}", table_of("campaign/gains.csv", part=part))
        page.table(f"eight('{part}')", lambda n: [x for baseline in ("plain", *best) for x in of.ahead(n, baseline)],
                   range(1, 2 + len(best)))
    page.table("at_best('vit, harsh')", lambda n: at_best_setting("vit, harsh", n), [0, 2])
    page.says("its lead is {} points ({} to {})", *at_best_setting("vit, harsh", "LDIFS")[:3])
    ten = [AS_RUN.get(n, n) for n in best_plan()["parts"]["vit, harsh"]]
    ahead = lambda what: np.mean([(planned("vit, harsh", n, what) - planned("vit, harsh")).mean(SIDES) for n in ten])
    page.says("they are {} points behind averaged plain fine-tuning at the settings of the rule, and {} at their best",
              -ahead("rule"), -ahead("best"))
    costs = {n: at_best_setting("vit, harsh", n)[3:] for n in ten}
    most = max(costs, key=lambda n: costs[n][0])
    page.says(f"The rule costs {most} the most, {{}} points ({{}} to {{}}); {{}} of ten", *costs[most],
              sum(low > 0 for _, low, _ in costs.values()))


@cache
def five_kinds():
    "Curves of plain fine-tuning, by what was fine-tuned and how."
    kinds = [("vit-harsh", "0.00033"), ("vit-harsh", "0.001"), ("resnet-harsh", "0.001"), ("resnet-gentle", "0.0003"),
             ("resnet-gentle", "0.001")]
    return [curve(f"campaign/{part}", *[f"plain, lr {lr}, seed {s}" for s in SEEDS]) for part, lr in kinds]


def restored(along, on=CONTROL):
    "Share of what fine-tuning lost on a set that α = 0.5 restores: linear in images about its value."
    gained, lost = along[5] - along[10], along[0] - along[10]
    ratio = gained.mean(on) / lost.mean(on)
    off = (gained - lost * ratio) * (100 / lost.mean(on))
    return Right(ratio + off.values, off.images)


def lost_and_restored():
    "The least and the most of five kinds: points lost on the control set, and percent of them that α = 0.5 restores."
    lost = [(along[0] - along[10]).mean(CONTROL) for along in five_kinds()]
    back = [restored(along).mean(CONTROL) for along in five_kinds()]
    return min(lost), max(lost), min(back), max(back)


@page("explanations/forgotten")
def _(page):
    page.says("worse at another, by {} to {} points. **Averaging the weights at α = 0.5 restored {} to {} % of that**",
              *lost_and_restored())
    pairs = [(10, 0, CONTROL), (5, 0, CONTROL), (10, 0, "reference"), (5, 0, "reference"), (5, 10, "reference"),
             (10, 0, "shift"), (5, 0, "shift"), (5, 7, CONTROL), (5, 7, "shift")]
    rows = [[x for of in five_kinds() for x in (of[i] - of[j]).over_both(on, DRAWS)] for i, j, on in pairs]
    back = [x for of in five_kinds() for x in restored(of).over_both(CONTROL, DRAWS)]
    page.table("pd.DataFrame(rows)", [*rows[:2], back, *rows[2:]])


# ---------- what we learned ----------


def leads_of_trained(part):
    "Of methods with a training of their own: leads over plain fine-tuning, not averaged and averaged."
    of = Bench(f"campaign/{part}", table_of("campaign/gains.csv", part=part))
    own = [n for n, r in of.rows.items() if r["kind"] in ("start", "loss", "pull", "average", "train")
           and not re.search("plain|on validation|multi-positive", n)]
    alone = [(of.curve(n)[10] - of.curve("plain")[10]).mean(SIDES) for n in own]
    return alone, [(of.chosen(n) - of.chosen("plain")).mean(SIDES) for n in own]


@page("explanations/learned")
def _(page):
    seeds = lambda part, name, some=SEEDS: curve(part, *[f"{name}, seed {s}" for s in some])
    later = seeds("best_settings/vit-harsh", "plain, lr 0.001", range(35, 40))
    both = lambda difference, *ons: [x for on in ons for x in difference.over_both(on, DRAWS)]
    slow, fast = five_kinds()[:2]
    page.says("3.3e-4 gains {} ({} to {}) points under shift and {} ({} to {}) on another task",
              *both(slow[10] - fast[10], "shift", CONTROL))
    page.says("gains {} ({} to {}) and {} ({} to {}); again: {} ({} to {}) and {} ({} to {}).",
              *(x for of in (fast, later) for x in both(of[5] - of[10], "shift", CONTROL)))
    alone, averaged = fast[10] - slow[10], fast[5] - slow[5]
    page.says("by {} ({} to {}) points without averaging, and by {} ({} to {}) averaged: {} ({} to {}) more",
              *(x for of in (alone, averaged, averaged - alone) for x in both(of, "reference")))

    alone, averaged = leads_of_trained("vit-harsh")
    page.says("{} of {} other methods are ahead of plain fine-tuning, by up to {} points",
              sum(a > 0 for a in alone), len(alone), max(alone))
    page.says("the largest lead is {}, and none is established", max(averaged))
    best = best_plan()["parts"]["vit, harsh"]
    ahead = lambda n, how: (planned("vit, harsh", n, averaged=how) - planned("vit, harsh", averaged=how)).mean(SIDES)
    again = [max(ahead(AS_RUN.get(n, n), how) for n in best) for how in (False, True)]
    resnet = zip(*map(leads_of_trained, ("resnet-harsh", "resnet-gentle")))
    page.says("at their best settings: {} and {}. On a ResNet: {} and {}.", *again, *(max(sum(r, [])) for r in resnet))

    outputs = seeds("campaign/vit-harsh", "probabilities of plain, lr 0.001")
    page.says("{} ({} to {}) points on the reference, {} ({} to {}) under shift, {} ({} to {}) on another task",
              *both(outputs[5] - fast[5], *BOTH, CONTROL))
    page.says("with ten seeds: {} ({} to {}, over seeds)", *t_of(ahead_on_front_page()))

    losing = lambda along, on=CONTROL: ((along[0] - along[10]).mean(on), restored(along, on).over_both(on, DRAWS))
    halves = [("vit-harsh-half", "0.001"), ("vit-harsh-half", "0.003"), ("resnet-gentle-half", "0.001")]
    untaught = [losing(seeds(f"campaign/{part}", f"plain, lr {lr}"), "untaught") for part, lr in halves]
    said = lambda some: [x for lost, back in (min(some), max(some)) for x in (*back, lost)]
    page.says("from {} % ({} to {}) of {} points to {} % ({} to {}) of {} points; again",
              *said([losing(k) for k in five_kinds()]))
    page.says("again: {} % ({} to {}) of {} points", *said([losing(later)])[:4])
    page.says("the same task: from {} % ({} to {}) of {} points to {} % ({} to {}) of {} points", *said(untaught))

    known = remembered(*PACS)
    page.says("lost {} ({} to {}) points of ImageNet", *both(known[0] - known[-1], OLD[0]))
    page.says("{} ({} to {}) and cost {} ({} to {}) on new images",
              *both(known[4] - known[-1], OLD[0]), *both(known[-1] - known[4], "reference"))
    cost, low, high = apart_on_photographs(HALF, [END], "shift")
    page.says("[cost](photographs.ipynb) {} points ({} to {})", -cost, -high, -low)


# ---------- retrieval ----------

GALLERIES, WAYS = ("icons", "other icons"), ("image to text", "text to image")


@cache
def recalls(method):
    "Points along α: of three seeds and each image the mean of recall@1 in both directions."
    kept = [np.load(unpacked(HERE / "retrieval") / f"{method}, seed {seed}.npz") for seed in (40, 41, 42)]
    of = {g: np.stack([np.mean([k[f"{g} | {w} recall@1"] for w in WAYS], 0) for k in kept], 1) for g in GALLERIES}
    sets = [g for g in GALLERIES for _ in range(of[g].shape[2])]
    images = Images(sets, [f"{g} {i}" for i, g in enumerate(sets)])
    return [Right(p, images) for p in np.concatenate([of[g] for g in GALLERIES], 2)]


@page("explanations/retrieval")
def _(page):
    plain, flyp = map(recalls, ("plain", "FLYP, multi-positive"))
    page.table("shown = differences", [(along[5] - along[end]).over_both(g, DRAWS) for g in GALLERIES
                                       for along in (plain, flyp) for end in (10, 0)], range(3))
    page.says("recall@1 fell from {} % to {} %", *(plain[i].mean("other icons") for i in (0, 10)))
    page.says("forgot less, down to {} %", flyp[10].mean("other icons"))
    page.says("restored {} points ({} to {})", *(plain[5] - plain[10]).over_both("other icons", DRAWS))


# ---------- several labels ----------


@cache
def several(metric="mAP"):
    "Points along α: of three seeds and each picture the number whose mean is the metric; families are the units."
    kept = [np.load(unpacked(HERE / "multi_icons") / f"seed {seed}.npz") for seed in (61, 62, 63)]
    names = ["reference", "solid", "duotone", "colour", "emoji", "recoloured"]
    points = np.concatenate([np.stack([k[f"{d} | {metric}"] for k in kept], 1) for d in names], 2)
    families = [kept[0][f"{d} | family"] for d in names]
    images = Images([d for d, f in zip(names, families) for _ in f], np.concatenate(families))
    return [Right(p, images) for p in points]


def over_families(of, ons, seeds=True):
    "A mean over sets with its interval: few families vary more than they show, and the set with fewest counts."
    value, changes, units, without, _ = of.part(ons)
    n = len(set(units))
    fewest = min(len({*of.images.units[of.images.of[d]]}) for d in of.images.weights(ons))
    part = value, changes * np.sqrt(n / (n - 1)), units, without if seeds else [], fewest
    return interval(*estimate(part))


@page("explanations/several_labels")
def _(page):
    along, both = several(), ("reference", "shift")
    sets = [*both, *(d for d in along[0].images.of if d != "reference")]
    apart = lambda i, j, on: over_families(along[i] - along[j], on)
    page.table("shown = differences", [apart(*ij, on) for on in sets for ij in ((5, 10), (5, 0), (10, 0))], range(3))
    one = lambda of, k: Right(of.values[[k]], of.images)
    page.table("null.set_index", [over_families(one(along[i], a) - one(along[i], b), on, seeds=False) for on in both
                                  for a, b in ((0, 1), (1, 2), (2, 0)) for i in (5, 10)])
    page.table("some.pivot", [[several(m)[i].mean(on) for i in (0, 3, 5, 7, 9, 10)]
                              for m in ("mAP", "hit@1") for on in sets])
    page.says("an mAP of {} % on the reference and {} % in other styles", *(along[0].mean(on) for on in both))
    page.says("gained {} points ({} to {}) and {} points ({} to {})", *(x for on in both for x in apart(10, 0, on)))
    page.says("costs {} points ({} to {}) on the reference", *apart(10, 5, "reference"))
    page.says("established: {} points ({} to {})", *apart(10, 5, "shift"))


# ---------- without labels ----------


def over_confidence():
    """By how much confidence loses more than validation images and than α = 0.5, of thirty runs, and their parts.

    Half of each set chooses the α of confidence, and the other half judges; each half counts as much.
    """
    parts, apart = [], []
    for file in sorted((HERE / "campaign/labels").glob("*.json")):
        run, by_set = json.loads(file.read_text()), []
        along = curve(f"campaign/{re.sub(', | ', '-', run['part'])}", f"plain, lr {run['lr']:g}, seed {run['seed']}")
        for d in SIX:
            right = np.stack([point.values[0, point.images.of[d]] for point in along])
            less, n = np.zeros((2, right.shape[1])), right.shape[1]
            order = np.random.default_rng(0).permutation(n)
            for half, other in zip(run["sets"][d]["halves"], (order[n // 2 :], order[: n // 2])):
                at, *rules = (run["alphas"].index(a) for a in (half["confident"], run["validation"], 0.5))
                less[:, other] = (right[rules] - right[at])[:, other] * n / len(other) / 2
            by_set.append(less)
        parts.append(run["part"])
        apart.append(np.concatenate(by_set, 1))
    sets = [d for d, less in zip(SIX, by_set) for _ in less[0]]
    return np.array(parts), [Right(v, Images(sets, range(len(sets)))) for v in np.swapaxes(apart, 0, 1)]


@page("explanations/without_labels")
def _(page):
    (parts, apart), near = over_confidence(), ["solid", "duotone"]
    rows = []
    for sets in (SIX, near, [d for d in SIX if d not in near]):
        for value, error, df in [estimate(of.part(sets)) for of in apart]:
            rows.append([*interval(value, error, df), 100 * error * (stdtrit(df, 0.975) + stdtrit(df, 0.8))])
    page.table("primary.round(2)", rows)
    by_part = lambda of: [100 * of.means(SIX)[parts == p].mean() for p in sorted(set(parts))]
    page.table("kinds = pd.DataFrame(", [t_of(by_part(of)) for of in apart])


def main():
    began, total, wrong = perf_counter(), 0, 0
    for judged in map(audited, sys.argv[1:] or PAGES):
        total, wrong = total + judged.compared, wrong + len(judged.wrong)
        print(f"{judged.name}: {judged.compared} numbers", *judged.wrong, sep="\n  WRONG ")
    print(f"{total} numbers of {len(PAGES)} pages, {perf_counter() - began:.0f} s")
    sys.exit(f"{wrong} say something else than the answers" if wrong else None)


if __name__ == "__main__":
    main()
