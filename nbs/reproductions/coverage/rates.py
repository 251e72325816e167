#!/usr/bin/env python
"""Three rules for a grid that was extended by one step, on the committed trials of ../campaign (and ../bench).

    python rates.py    # writes rates.csv; half a minute on one core

Where the best value of a grid lies at its edge, a bench tries one more value past it. Which value is then set?

- *old*: the most cautious value within one standard error of the best, the new one among them.
- *new*: the same over the grid as planned. The new value competes only if it is the best of all.
- *best*: the most accurate value.

Validation images are drawn anew, and each rule chooses again; in draws whose best is not at that edge, the grid stays
as it was planned. A row of the table is a value: its accuracy on all validation images (the best point of its curve),
how often each rule takes it, and what classifiers with it get right in the tests, at the α that validation chooses
(all seeds), where both runs are committed.
"""
import json, sys
from functools import cache
from pathlib import Path
import numpy as np
import pandas as pd
from wiseft.base.files import atomic_path
from wiseft.bench.plan import can_compete, one_further, rates_around
from wiseft.bench.trial import TRAINED, Trial, strengths, strengths_around
from wiseft.infer.rules import alpha_by_rule, nearly_best
from wiseft.methods.index import all_methods

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from answers import unpacked

CAMPAIGN, BENCH = unpacked(HERE.parent/'campaign'), unpacked(HERE.parent/'bench')
PARTS = sorted(p.parent.name for p in CAMPAIGN.glob('*/plan.json'))
RULES, DRAWS = ('old', 'new', 'best'), 2000


def curve_file(part, trial, split):
    "Of the campaign, by either rule, else of the bench, whose trials it went on with; None where none has it."
    files = [folder/part/f'{trial.name}.{split}.npz' for folder in (CAMPAIGN, CAMPAIGN/'first-rule', BENCH)]
    return next((f for f in files if f.exists()), None)


@cache
def validation(part, trial):
    "(alphas, images): which validation images each point of a curve gets right; None where it is not committed."
    file = curve_file(part, trial, 'validation')
    return file and np.load(file)['right reference']


def chosen(rule, accuracies, n, past_edge):
    "Position of the value that a rule takes; accuracies most cautious first, `past_edge` the position of the new one."
    order = np.arange(len(accuracies))
    if rule == 'best': return int(np.argmax(accuracies))
    planned = order[order != past_edge]
    if rule == 'new' and past_edge is not None and accuracies[past_edge] <= accuracies[planned].max(): order = planned
    return int(order[nearly_best(accuracies[order], n).argmax()])


def extended(part, values, trial, around):
    "A grid in its order, and the position of its new value: None if it has none. None where a curve is missing."
    right = {v: validation(part, trial(v)) for v in values}
    if any(r is None for r in right.values()): return None
    best = max(values, key=lambda v: right[v].mean(1).max())
    further = one_further(values, best, around)
    if further is None or validation(part, trial(further)) is None: return values, None
    order = sorted([*values, further], reverse=values[0] > values[-1])
    return order, order.index(further)


def grids(part):
    "Method, what is chosen, values, position of the new one, and their trials: learning rates, then strengths."
    plan = json.loads((CAMPAIGN/part/'plan.json').read_text())
    seed, lrs = plan['seeds'][0], sorted(plan['lrs'])
    methods = [m for m in all_methods().values() if can_compete(m) and m.kind in TRAINED]
    for method in [None, *methods]:
        name = method.name if method else 'plain'
        own = strengths(method) if method else [None]
        def rate(lr, strength=own[len(own)//2]): return Trial(lr, seed, name, strength)
        found = extended(part, lrs, rate, rates_around)
        if found is None: continue
        yield name, 'learning rate', *found, [rate(v) for v in found[0]]
        if len(own) == 1: continue
        accuracies = np.array([validation(part, rate(v)).mean(1).max() for v in found[0]])
        lr = found[0][chosen('old', accuracies, validation(part, rate(lrs[0])).shape[1], found[1])]
        found = extended(part, own[::-1], lambda v: rate(lr, v), lambda v: strengths_around(method, v))
        if found is not None: yield name, 'strength', *found, [rate(lr, v) for v in found[0]]


def frequencies(right, past_edge, rng): # right: (values, alphas, images)
    "rule -> how often it takes each value"
    n, values = right.shape[2], np.arange(len(right))
    planned = values[values != past_edge]
    edge = planned[0] if past_edge == 0 else planned[-1]
    taken = {rule: np.zeros(len(right)) for rule in RULES}
    for _ in range(DRAWS):
        accuracies = (right @ rng.multinomial(n, np.full(n, 1/n)) / n).max(1)
        goes_on = planned[accuracies[planned].argmax()] == edge
        tried, at = (values, past_edge) if goes_on else (planned, None)
        for rule in RULES: taken[rule][tried[chosen(rule, accuracies[tried], n, at)]] += 1/DRAWS
    return taken


def tested(part, trial, seeds, alphas):
    "α that validation chooses by the mean of all seeds, and accuracy on the reference and under shift; {} if unknown."
    trials = [Trial(trial.lr, s, trial.tuning, trial.strength) for s in seeds]
    files = [(curve_file(part, t, 'validation'), curve_file(part, t, 'test')) for t in trials]
    if not all(all(pair) for pair in files): return {}
    def mean(file): # set -> (alphas,)
        with np.load(file) as kept:
            return {k.removeprefix('right '): kept[k].mean(1) for k in kept.files if k.startswith('right ')}
    own = np.mean([mean(v)['reference'] for v, _ in files], 0)
    alpha = alpha_by_rule(pd.Series(own, alphas), validation(part, trial).shape[1])
    curves = [mean(t) for _, t in files]
    def at(d): return np.mean([c[d][list(alphas).index(alpha)] for c in curves])
    shifts = json.loads((BENCH/'plan.json').read_text())['shifts']
    return dict(alpha=alpha, reference=at('reference'), shifted=np.mean([at(d) for d in shifts]))


def rows_of(part):
    plan = json.loads((CAMPAIGN/part/'plan.json').read_text())
    for name, choice, values, past_edge, trials in grids(part):
        if past_edge is None: continue
        right = np.stack([validation(part, t) for t in trials]).astype(float)
        accuracies, n = right.mean(2).max(1), right.shape[2]
        often = frequencies(right, past_edge, np.random.default_rng(len(values)))
        said = {rule: chosen(rule, accuracies, n, past_edge) for rule in RULES}
        for i, (value, t) in enumerate(zip(values, trials)):
            row = dict(part=part, method=name, choice=choice, value=float(f'{value:.6g}'), past_edge=i == past_edge)
            row |= dict(validation=accuracies[i]) | {f'chosen_{rule}': i == at for rule, at in said.items()}
            yield row | {rule: often[rule][i] for rule in RULES} | tested(part, t, plan['seeds'], plan['alphas'])


def main():
    table = pd.DataFrame([row for part in PARTS for row in rows_of(part)])
    with atomic_path(HERE/'rates.csv', force=True) as tmp: table.round(5).to_csv(tmp, index=False)


if __name__ == '__main__': main()
