#!/usr/bin/env python
"""All methods of robust fine-tuning on icons, by plan.json: two recipes, two towers, five seeds.

    python bench.py --minutes 50          # as much as fits; what is done is not done again
    python bench.py --part resnet harsh   # this part alone
    python bench.py --tables              # tables (gains.csv, …) of what there is, in a minute

What is found lies in a folder a part, a file of some kilobytes for each curve: which images each of its points gets
right. They are committed, and a later call goes on from them; weights lie in build/bench and may be lost. Plain
fine-tunings are then made again where a merge asks for them.
"""
import argparse, json, sys
import numpy as np
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from scipy.stats import t
from time import perf_counter
from wiseft.bench.run import Busy, carry_out, plan_bench
from wiseft.models.classifier import zeroshot_classifier
from wiseft.models.clip import load_clip
from wiseft.bench.flops import arithmetic
from wiseft.data.suites import load_suite, protocol
from wiseft.base.files import atomic_path
from wiseft.methods.car_ft import context_head
from wiseft.bench.plan import Contender
from wiseft.shell.app import load_methods
from wiseft.bench.outcome import resampling_units
from wiseft.bench.trial import Trial, strengths
from wiseft.bench.chance import both_chances, seed_variance
from wiseft.bench.matched_accuracy import resampled
from wiseft.stats.table import REFERENCE

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from answers import unpacked

unpacked(HERE)
BUILD = HERE.parents[2]/'build'
VIT = HERE/'vit-12' # where pretrain.py --tower vit-12 leaves it is build/icons
PLAN = json.loads((HERE/'plan.json').read_text())
PLAINS_RATE, LONGER = "plain's lr", 'longer' # what the controls are called


def suite_of(recipe):
    "The embedded suite with the families of a recipe to train on."
    suite = load_suite('icons').restrict_train(protocol(2)['families'][str(PLAN['recipes'][recipe]['families'])])
    return replace(suite, shifts={d: suite.shifts[d] for d in PLAN['shifts']})


def start_of(tower, suite, templates):
    "The zero-shot classifier of a tower."
    clip = load_clip('iconclip' if tower == 'resnet' else str(VIT))
    return zeroshot_classifier(clip, suite.classnames, templates).eval()


class AtPlainsRate(Contender):
    "A method at its default strength, with the learning rate that was chosen for plain fine-tuning."
    def chosen_trial(self, work):
        grid = strengths(self.method)
        return replace(work.choose(None), tuning=self.method.name, strength=grid[len(grid)//2])


@dataclass(frozen=True)
class At(Contender):
    "A method at a setting that the plan names."
    lr:float=None
    strength:float=None
    def chosen_trial(self, work):
        return Trial(self.lr, work.plan.seeds[0], self.method.name if self.method else 'plain', self.strength)


class Longer(Contender):
    "Plain fine-tuning for as many epochs as the arithmetic of the dearest fine-tuning buys, with the first seed."
    def chosen_trial(self, work):
        trained = {n: e.curves for n, e in work.entries.items() if e.row.trains and not e.row.control}
        if not all(trained.values()): raise Busy(LONGER)
        took = {n: arithmetic(curves[0].cost, work.plan.operations) for n, curves in trained.items()}
        longer = round(max(took.values())/took['plain'], 2) if took['plain'] else 1.
        return replace(work.choose(None), longer=longer)


def with_controls(plan):
    "A plan with further rows, which tell what choices and arithmetic are worth."
    trained = [c.method for c in plan.contenders() if c.trains and c.method]
    named = [At(m, what, **how) for m in trained for what, how in PLAN['further'].get(m.name, {}).items()]
    plan.grids = None # it is older than grids that are extended
    plan.controls = [*[AtPlainsRate(m, PLAINS_RATE) for m in trained], Longer(control=LONGER), *named]
    return plan


def carried_out(tower, recipe, **how):
    "A part, or as much of it as fits."
    suite = suite_of(recipe)
    start, contexts = start_of(tower, suite, PLAN['templates']), start_of(tower, suite, suite.templates)
    given = {'CAR-FT': dict(contexts=context_head(contexts))}
    folder, lrs = HERE/f'{tower}-{recipe}', tuple(PLAN['recipes'][recipe]['lrs'])
    plan = plan_bench(suite, start, folder, PLAN['methods'], tuple(PLAN['seeds']), lrs, tuple(PLAN['alphas']), given,
                   progress=False, **PLAN['recipe'])
    return carry_out(with_controls(plan), folder, **how)


def read(tower, recipe):
    "What is there of a part, by the seeds that all rows have. Trains and judges nothing, whatever weights there are."
    load_methods()
    with TemporaryDirectory() as empty:
        return carried_out(tower, recipe, minutes=1e-9, weights=empty, say=lambda line: None)


def run(tower, recipe, minutes=None):
    "A part, or as much of it as fits, and its tables."
    folder = HERE/f'{tower}-{recipe}'
    found = carried_out(tower, recipe, minutes=minutes, weights=BUILD/'bench'/folder.name)
    if not found.entries: return found
    tables = dict(gains=found.gains(), curves=found.curves(), accuracies=found.accuracies(), choices=found.choices(),
                  costs=found.costs())
    for name, table in tables.items():
        with atomic_path(folder/f'{name}.csv', force=True) as tmp: table.to_csv(tmp, index=False)
    return found


def on_both_sides(accuracy): # dataset -> (…, m)
    "On the reference, and the mean under shift."
    return accuracy[REFERENCE], np.mean([v for d, v in accuracy.items() if d != REFERENCE], 0)


def with_chance(of, right, without=(), units=None):
    """Numbers, their standard errors over images and seeds, and degrees of freedom.

    `of` makes numbers of accuracies (dataset -> (…, m)); `right`: dataset -> (m, n), shares of right seeds;
    `without`: for each bench that is in it a list of the same without each seed; none: over images alone.
    """
    def once(shares): return np.asarray(of({d: s.mean(1) for d, s in shares.items()}))
    images = np.var(of(resampled(right, units)), axis=0, ddof=1)
    known = [seed_variance([*map(once, each)]) for each in without if each]
    seeds = np.sum(known, 0) if known else np.full(images.shape, np.nan)
    fewest = min(s.shape[1] for s in right.values())
    return once(right), *both_chances(images, seeds, fewest, min(map(len, without), default=0))


def in_words(of, right, without=(), units=None):
    "Numbers in points with their 95 % intervals, as `with_chance` has them."
    value, error, df = with_chance(of, right, without, units)
    low, high = value-error*t.ppf(.975, df), value+error*t.ppf(.975, df)
    return np.vectorize(lambda *v: '{:.1f} ({:.1f} to {:.1f})'.format(*(100*x for x in v)))(value, low, high)


def stacked(found, points, but=None):
    "dataset -> (m, n): shares of seeds that get an image right at some points, (name of a row, position); or None."
    shares = [(found.shares(found.entries[n], but), i) for n, i in points]
    if not all(s for s, _ in shares): return None
    def right(d): return np.stack([s[d][i] for s, i in shares])
    return {d: right(d) for d in found.sets}


def of_points(of, found, points):
    "Numbers of some points of a bench, in words: `of` makes them of accuracies, dataset -> (…, m)."
    seeds = range(len(found.entries['plain'].curves))
    left_out = [stacked(found, points, i) for i in seeds]
    without = [w for w in left_out if w]
    return in_words(of, stacked(found, points), [without] if without else (), resampling_units(found.plan.suite, False))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, help='stop after so many; default: when all is done')
    parser.add_argument('--part', nargs=2, metavar=('TOWER', 'RECIPE'), help='resnet or vit, harsh or gentle')
    parser.add_argument('--tables', action='store_true', help='train nothing')
    args, began = parser.parse_args(), perf_counter()
    if args.part and args.part not in PLAN['parts']:
        parts = ', '.join(map(' '.join, PLAN['parts']))
        parser.error(f'the plan has the parts {parts}; got {" ".join(args.part)}')
    load_methods()
    for tower, recipe in [args.part] if args.part else PLAN['parts']:
        left = 1e-9 if args.tables else args.minutes and args.minutes - (perf_counter()-began)/60
        if left is not None and left <= 0: break
        if tower == 'vit' and not VIT.exists():
            print(f'{tower}, {recipe}: waits for {VIT}, which pretrain.py --tower vit-12 makes in build/icons')
            continue
        print(f'{tower}, {recipe}', flush=True)
        print(run(tower, recipe, left), flush=True)


if __name__ == '__main__': main()
