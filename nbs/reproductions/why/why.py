#!/usr/bin/env python
"""Why no loss of accuracy under shift is to be seen on icons: what happens to classes that fine-tuning doesn't teach;
linear classifiers from gentle to harsh.

    python why.py            # ten to twenty minutes on one core; a line of runs.jsonl or runs-heads.jsonl each
    python why.py --table    # from runs.jsonl, in seconds: taught.csv
    python why.py --repeat "kind=linear classifier lr=0.01 seed=1 half=0"    # what share comes out otherwise

Half of the classes are taught and the others not, and then the other way round, so that every image is once of a taught
class and once of an untaught one.
"""
import argparse, sys
from itertools import product
from pathlib import Path
import numpy as np, pandas as pd, torch
from wiseft.data.suites import load_suite, protocol
from wiseft.infer.ensembles import members
from wiseft.base.files import atomic_path
from wiseft.train.learner import finetune
from wiseft.infer.inference import predict

sys.path.append(str(Path(__file__).resolve().parents[1]))
from runs import change_table, judge, judged_sets, make_runs, protocol_zeroshot, provenance
from runs import read_runs, repeat_run, run_name

HERE = Path(__file__).resolve().parent
HALVES, HEADS, ALPHAS = HERE/'runs.jsonl', HERE/'runs-heads.jsonl', [.25, .5, .75, 1.]
SCORES = {'own half': 'classes restricted', 'all classes': 'plain'} # among which classes an answer may be
KINDS = [('linear classifier', 1e-2), ('end to end', 3e-4), ('end to end', 3e-3)]


# ---------- the runs ----------

def half_settings():
    "Every run with half of the classes."
    kinds = [('end to end', 3e-4), ('end to end', 3e-3), ('linear classifier', 1e-2)]
    return [dict(kind=kind, lr=lr, seed=s, half=h) for s, (kind, lr), h in product((0, 1), kinds, (0, 1))]


def head_settings():
    "Every run of a linear classifier."
    lrs = 1e-3, 3e-3, 1e-2, 3e-2, 1e-1
    return [dict(kind='linear classifier', lr=lr, epochs=epochs, seed=0) for lr, epochs in product(lrs, (5, 20, 80))]


def halves(n_classes, seed):
    "Two random halves of the classes: (2, n_classes) bool."
    first = np.random.default_rng(seed).permutation(n_classes) < n_classes//2
    return np.stack([first, ~first])


def tune(start, images, validation, kind, lr, seed, epochs=protocol()['recipe']['epochs']):
    "A fine-tuned classifier."
    train = 'head' if kind == 'linear classifier' else 'all'
    recipe = protocol()['recipe'] | dict(train=train, lr=lr, seed=seed, epochs=epochs)
    return finetune(start, images, validation, progress=False, **recipe)


def restricted(logits, labels, taught):
    "Logits, those of the classes of the other half than an image's own taken out."
    same = taught[labels][:, None] == taught
    return logits.masked_fill(~same, -torch.inf)


def both_scores(start, finetuned, images, taught):
    "(score, α) -> which images are right, among all classes and among those of the image's own half."
    labels, between = torch.as_tensor(images.labels), members(start, finetuned, [0., *ALPHAS], ['weight-space'])
    z = predict(between, images, progress=False).logits
    for alpha, key in sorted((key[2], key) for key in between):
        yield ('all classes', alpha), z[key].argmax(1) == labels
        yield ('own half', alpha), restricted(z[key], labels, taught).argmax(1) == labels


class Runs:
    "What all runs share."
    def __init__(self):
        self.suite, self.start = protocol_zeroshot()
        self.sets = judged_sets(self.suite)

    def head(self, s):
        "A linear classifier that is taught all classes."
        finetuned = tune(self.start, self.suite.train, self.suite.validation, **s)
        result = judge(self.start, finetuned, self.sets, ALPHAS)
        return result | dict(classifiers=[('weight-space', a) for _, a in result['classifiers']])

    def half(self, s):
        "A classifier that is taught half of the classes."
        taught = halves(len(self.suite.classnames), s['seed'])[s['half']]
        images = self.suite.train.subset(np.flatnonzero(taught[self.suite.train.labels]))
        finetuned = tune(self.start, images, self.suite.validation, s['kind'], s['lr'], s['seed'])
        right = [dict(both_scores(self.start, finetuned, each, torch.as_tensor(taught))) for each in self.sets.values()]
        correct = np.concatenate([np.stack(list(r.values())) for r in right], axis=1)
        return dict(images=len(images), classifiers=list(right[0]), correct=correct)


# ---------- the table ----------

def in_halvings(runs, correct, images, taught, kind, lr, alpha, score):
    "In each of the four halvings: which images are right, and which are of taught, or untaught, classes; (4, n)."
    which = (runs.kind == kind) & (runs.lr == lr) & (runs.method == score) & (runs.alpha == alpha)
    t = runs[which].sort_values(['seed', 'half'])
    labels, n = images.label.cat.codes.to_numpy(), len(images.label.cat.categories)
    return correct[t.index], np.array([halves(n, s)[h][labels] == taught for s, h in zip(t.seed, t.half)])


def by_taught(*args):
    "Share of halvings in which each image is right when its class was taught, or when it wasn't; as `in_halvings`."
    right, mask = in_halvings(*args)
    return (right*mask).sum(0)/mask.sum(0)


def each_halving(runs, correct, images, taught, kind, lr, alpha, score):
    "Change from the zero-shot classifier in points, on each set and under shift: a row for each of the four halvings."
    before, mask = in_halvings(runs, correct, images, taught, kind, lr, 0., score)
    after, _ = in_halvings(runs, correct, images, taught, kind, lr, alpha, score)
    change = np.where(mask, 100*(after.astype(float) - before), np.nan)
    test = images.split == 'test'
    sets = images.dataset[test].unique()
    table = pd.DataFrame({d: np.nanmean(change[:, test & (images.dataset == d)], axis=1) for d in sets})
    return table.assign(shift=table.drop(columns='reference').mean(axis=1))


def taught_table(runs, correct, images):
    """Change from the zero-shot classifier in points, of taught and untaught classes, by both scores: with 95 %
    intervals over images, and the lowest and highest of the four halvings."""
    pairs, extremes = {}, {}
    for (kind, lr), alpha, taught, score in product(KINDS, (1., .5), (True, False), SCORES):
        row = kind, lr, alpha, 'taught' if taught else 'untaught', SCORES[score]
        pairs[row] = [by_taught(runs, correct, images, taught, kind, lr, a, score) for a in (0., alpha)]
        extremes[row] = each_halving(runs, correct, images, taught, kind, lr, alpha, score)
    table = change_table(images, pairs, ['kind', 'lr', 'α', 'classes', 'score']).drop(columns='n', level=1)
    for d in ('reference', 'shift'):
        table[d, 'lowest halving'] = [h[d].min() for h in extremes.values()]
        table[d, 'highest halving'] = [h[d].max() for h in extremes.values()]
    return table[['reference', 'shift']]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--repeat', metavar='RUN',
                        help='make this run again, and say what share of its answers differs')
    parser.add_argument('--table', action='store_true', help='write taught.csv')
    args = parser.parse_args()
    if args.table:
        table = taught_table(*read_runs(HALVES, load_suite('icons')))
        with atomic_path(HERE/'taught.csv', force=True) as tmp: table.to_csv(tmp, lineterminator='\n')
        return
    runs = Runs()
    parts = [(HEADS, head_settings(), runs.head), (HALVES, half_settings(), runs.half)]
    if args.repeat:
        file, s, run = next((f, s, r) for f, settings, r in parts for s in settings if run_name(s) == args.repeat)
        print(f'{args.repeat}: {repeat_run(file, s, run):.4%} of the answers differ')
        return
    with provenance(__file__, seeds=[0, 1]):
        for file, settings, run in parts: make_runs(file, settings, run)


if __name__ == '__main__': main()
