#!/usr/bin/env python
"""Labels where classifiers disagree: how often the intervals hold, how wide they are, and which images to ask about.

    python asked.py answers    # fine-tune and sweep; writes {gentle,harsh}.predictions.csv.gz, half an hour on one core
    python asked.py            # ask, label and judge hundreds of times; writes results.csv, some minutes on one core

Of each set of drawings that are not the reference's, a pool of as many images is drawn, with replacement: other images
of the same kind. In the pool images are asked about, their labels are looked up, and what is said of accuracy is held
against the whole set. Three designs draw images on which not all of the classifiers agree: each as likely, each as
likely of those on which the ends disagree, or more likely the more of the α say something else than most. Beside them
stand labels of random images, and no labels.
"""
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from wiseft.analysis.predictions import read_predictions, write_predictions
from wiseft.analysis.label_intervals import asked_difference, exact_difference, simultaneous_differences

HERE = Path(__file__).resolve().parent
RECIPES = dict(gentle=dict(lr=3e-4, epochs=8), harsh=dict(lr=3e-3, epochs=4))
LABELS, DRAWS = (20, 50, 100), 60
HALF, END = 5, 10 # α = 0.5 and 1 among 0, 0.1, … 1


def write_answers():
    "What averages of fine-tunings say of each image."
    from wiseft.data.suites import load_suite
    from wiseft.infer.ensembles import sweep
    from wiseft.models.classifier import zeroshot_classifier
    from wiseft.models.clip import load_clip
    from wiseft.train.learner import finetune

    suite, clip = load_suite('icons'), load_clip('iconclip')
    start = zeroshot_classifier(clip, suite.classnames, 'icons')
    for name, recipe in RECIPES.items():
        finetuned = finetune(start, suite.train, suite.validation, seed=0, **recipe)
        _, kept = sweep(start, finetuned, suite, by=['weight-space'], seed=0, keep_predictions=True)
        write_predictions(kept, HERE/f'{name}.predictions.csv.gz', force=True)


def answers(name):
    "Set -> (answers (11, n), labels (n,)), of the shifted sets"
    kept = read_predictions(HERE/f'{name}.predictions.csv.gz')
    members = sorted(kept.members, key=lambda m: m[0]['alpha'])
    said, labels = np.stack([codes for _, codes, _ in members]), kept.images.label.cat.codes.to_numpy()
    names = kept.images.dataset[kept.images.role == 'shift'].unique()
    return {d: (said[:, kept.images.dataset == d], labels[kept.images.dataset == d]) for d in names}


# ---------- designs: which images of a pool, and how much each counts for ----------


def uniform(said, m, rng):
    "Any on which not all agree, each as likely"
    pool = rng.permutation(np.flatnonzero((said != said[0]).any(0)))
    return pool[:m], np.ones(min(m, len(pool))), len(pool)


def ends(said, m, rng):
    "Any on which the ends disagree; what α say where the ends agree is never seen"
    pool = rng.permutation(np.flatnonzero(said[0] != said[-1]))
    return pool[:m], np.ones(min(m, len(pool))), len(pool)


def proportional(said, m, rng):
    "The more α say something else than most, the likelier: systematic draws, in random order"
    pool = rng.permutation(np.flatnonzero((said != said[0]).any(0)))
    others = np.array([len(said) - np.bincount(column).max() for column in said[:, pool].T])
    if m >= len(pool): return pool, np.ones(len(pool)), len(pool)
    chance = m*others/others.sum()
    while chance.max() > 1 + 1e-9: # what is sure to be drawn leaves the rest to the others
        sure = chance >= 1
        chance = np.where(sure, 1, (m - sure.sum())*others/others[~sure].sum())
    steps = np.floor(np.cumsum(chance) - rng.random() + 1e-9)
    drawn = np.flatnonzero(np.diff(steps, prepend=-1) > 0)
    weights = 1/chance[drawn]
    return pool[drawn], weights/weights.mean(), weights.sum()


def random(said, m, rng):
    "Any image at all"
    n = said.shape[1]
    return rng.permutation(n)[:m], np.ones(min(m, n)), n


DESIGNS = [uniform, ends, proportional, random]


def all_pairs(right, weights, disagree, n):
    "Differences that hold together, as the package has them where images count alike"
    if weights.std() < 1e-9: return simultaneous_differences(right.T, disagree, n)
    k, m = right.shape
    rows, columns = np.triu_indices(k, 1)
    y = disagree/n*weights[:, None]*(right.T[:, columns].astype(float) - right.T[:, rows])
    middle = y.sum(0)/(m+2)
    square = ((y - middle)**2).sum(0) + 2*((disagree/n)**2 + middle**2)
    error = np.sqrt(square/(m+1)/(m+2) + middle**2*(1/disagree - 1/n))
    drawn = np.random.default_rng(0).standard_normal((2000, m)) @ (y - y.mean(0))/m
    reach = max(np.quantile(np.abs(drawn/error).max(1), .95), 1.96)*stats.t.ppf(.975, m+1)/1.96*error
    out = [np.zeros((k, k)) for _ in range(3)]
    for matrix, values in zip(out, (y.mean(0), middle - reach, middle + reach)): matrix[rows, columns] = values
    out[0].T[rows, columns], out[1].T[rows, columns], out[2].T[rows, columns] = (
        -y.mean(0), -middle - reach, -middle + reach)
    return out


def of_two(said, right, truth, design, m, rng):
    "α = 0.5 and 1: (held, width, sign found)"
    pair = said[[HALF, END]]
    drawn, _, disagree = design(pair, m, rng)
    first, second = right[END][drawn], right[HALF][drawn]
    wins, losses, n = int((second & ~first).sum()), int((first & ~second).sum()), said.shape[1]
    if design is random: low, high = exact_difference(wins, losses, len(drawn))
    else: _, low, high = asked_difference(wins, losses, len(drawn), disagree, n)
    return low <= truth <= high, high - low, (low > 0) if truth > 0 else (high < 0)


def of_several(said, right, truth, design, m, rng):
    "The best of eleven α: (all of its differences held, mean width, regret)"
    drawn, weights, disagree = design(said, m, rng)
    difference, low, high = all_pairs(right[:, drawn], weights, disagree, said.shape[1])
    best = difference[0].argmax()
    true = truth[best] - truth
    held = (low[:, best] <= true + 1e-12) & (true <= high[:, best] + 1e-12)
    return held.all(), np.delete(high[:, best] - low[:, best], best).mean(), truth.max() - truth[best]


def main():
    rows = []
    for name in RECIPES:
        sets = answers(name)
        right = [(said == labels).mean(1) for said, labels in sets.values()]
        regret = np.mean([r.max() - r[HALF] for r in right])
        rows.append(dict(recipe=name, labels=0, what='the best of eleven', design='0.5', regret=regret))
        for m in LABELS:
            for design in DESIGNS: rows += one(name, sets, m, design)
            pd.DataFrame(rows).to_csv(HERE/'results.csv', index=False, float_format='%.5f', lineterminator='\n')


def one(name, sets, m, design):
    "Two rows of the table, means over sets"
    pairs, several = [], []
    for d, (said, labels) in sets.items():
        rng, right = np.random.default_rng([m, DESIGNS.index(design), len(labels)]), said == labels
        truth = right.mean(1)
        for _ in range(DRAWS):
            pool = rng.integers(len(labels), size=len(labels))
            drawn = said[:, pool], right[:, pool]
            if design in (uniform, random): pairs.append((d, *of_two(*drawn, truth[HALF] - truth[END], design, m, rng)))
            several.append((d, *of_several(*drawn, truth, design, m, rng)))
    out = []
    for what, found, last in (('0.5 less 1', pairs, 'sign'), ('the best of eleven', several, 'regret')):
        if not found: continue
        t = pd.DataFrame(found, columns=['set', 'held', 'width', last]).groupby('set').mean()
        out.append(dict(recipe=name, labels=m, what=what, design=design.__name__, draws=len(found),
                        held=t.held.mean(), least_held=t.held.min(), width=t.width.mean(), **{last: t[last].mean()}))
    return out


if __name__ == '__main__': write_answers() if sys.argv[1:] == ['answers'] else main()
