#!/usr/bin/env python
"""Why fine-tuning costs no accuracy under shift on icons: what happens to classes that it doesn't teach; linear classifiers from gentle to harsh.

    python why.py    # some ten minutes on one core; a line of runs.jsonl or runs-heads.jsonl each, and those that have theirs are skipped

Half of the classes are taught and the others not, and then the other way round, so that every image is once of a taught class and once of an untaught one.
"""
import sys, time
from itertools import product
from pathlib import Path
import numpy as np, pandas as pd, torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from runs import along, changes, finished, fit, logits, looked_at, narrow_start, pixels, provenance, record
from wiseft.datasets import protocol
from wiseft.ensembles import mix_logits
from wiseft.loaders import clip_dataloaders

HALVES, HEADS, ALPHAS = HERE/'runs.jsonl', HERE/'runs-heads.jsonl', [.25, .5, .75]
SCORES = {'own half': 'classes restricted', 'all classes': 'plain'} # among which classes an answer may be
KINDS = [('end to end', 3e-4), ('end to end', 3e-3), ('linear classifier', 1e-2)]


def halves(n_classes, seed):
    "Two random halves of the classes: (2, n_classes) bool."
    first = np.random.default_rng(seed).permutation(n_classes) < n_classes//2
    return np.stack([first, ~first])


def half_settings(): return [dict(kind=k, lr=lr, seed=s, half=h) for s in (0, 1) for k, lr in KINDS for h in (0, 1)]
def head_settings(): return [dict(kind='linear classifier', lr=lr, epochs=e, seed=0) for lr in (1e-3, 3e-3, 1e-2, 3e-2, 1e-1) for e in (5, 20, 80)]


def among_all(z, labels, taught): return z.argmax(1) == labels
def among_own(z, labels, taught):
    "Right among the classes of the same half as the image's own."
    same = taught[labels][:, None] == taught
    return z.masked_fill(~same, -torch.inf).argmax(1) == labels


def in_halvings(runs, correct, images, taught, kind, lr, alpha, score):
    "In each of the four halvings: which images are right, and which are of classes that were taught, or that weren't; (4, n)."
    which = (runs.kind == kind) & (runs.lr == lr) & (runs.method == score) & (runs.alpha == alpha)
    t = runs[which].sort_values(['seed', 'half'])
    labels, n = images.label.cat.codes.to_numpy(), len(images.label.cat.categories)
    return correct[t.index], np.array([halves(n, s)[h][labels] == taught for s, h in zip(t.seed, t.half)])


def by_taught(runs, correct, images, taught, kind, lr, alpha, score='own half'):
    "Share of halvings in which each image is right, by a score, when its class was taught, or when it wasn't."
    right, mask = in_halvings(runs, correct, images, taught, kind, lr, alpha, score)
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


def changed(runs, correct, images, settings):
    """Change from the zero-shot classifier in points for each (kind, lr, alpha), of taught and untaught classes, by both scores:
    with 95 % intervals over images, and the lowest and highest of the four halvings."""
    pairs, extremes = {}, {}
    for (kind, lr, alpha), taught, score in product(settings, (True, False), SCORES):
        row = kind, lr, alpha, 'taught' if taught else 'untaught', SCORES[score]
        pairs[row] = [by_taught(runs, correct, images, taught, kind, lr, a, score) for a in (0., alpha)]
        extremes[row] = each_halving(runs, correct, images, taught, kind, lr, alpha, score)
    table = changes(images, pairs, ['kind', 'lr', 'α', 'classes', 'score']).drop(columns='n', level=1)
    for d in ('reference', 'shift'):
        table[d, 'lowest halving'] = [h[d].min() for h in extremes.values()]
        table[d, 'highest halving'] = [h[d].max() for h in extremes.values()]
    return table[['reference', 'shift']]


def main():
    suite, start = narrow_start()
    sets, r = looked_at(suite).values(), protocol()['recipe']
    x, labels = pixels(start.clip, sets), torch.as_tensor(np.concatenate([s.labels for s in sets]))
    features = torch.cat([start.features(b).detach() for b in x.split(256)])
    z0 = start.head(features).detach()

    def path(tuned, kind):
        "(alpha, logits): of a linear classifier, whose averages of weights are those of logits, from the features."
        if kind == 'end to end': return dict(along(start, tuned, x, ALPHAS)) | {1.: logits(tuned, x)}
        return {a: mix_logits(z0, tuned.head(features).detach(), a) for a in [*ALPHAS, 1.]}

    def tune(images, kind, lr, seed, epochs):
        dls = clip_dataloaders(images, start, r['batch_size'], suite.validation)
        return fit(dls, start, epochs, lr, seed, train='all' if kind == 'end to end' else 'head', wd=r['wd']).classifier

    for s in head_settings():
        name = ' '.join(f'{k}={v}' for k, v in s.items())
        if name in finished(HEADS): continue
        began, z = time.time(), path(tune(suite.train, s['kind'], s['lr'], s['seed'], s['epochs']), s['kind'])
        record(HEADS, name, s, [('weight-space', a) for a in z], np.stack([among_all(v, labels, None) for v in z.values()]), began)

    for s in half_settings():
        name = ' '.join(f'{k}={v}' for k, v in s.items())
        if name in finished(HALVES): continue
        began, taught = time.time(), halves(len(suite.classnames), s['seed'])[s['half']]
        images = suite.train.subset(np.flatnonzero(taught[suite.train.labels]))
        z = {0.: z0} | path(tune(images, s['kind'], s['lr'], s['seed'], r['epochs']), s['kind'])
        right = {(m, a): f(v, labels, torch.as_tensor(taught)) for a, v in z.items() for m, f in (('all classes', among_all), ('own half', among_own))}
        record(HALVES, name, s | dict(images=len(images)), list(right), np.stack(list(right.values())), began)


if __name__ == '__main__':
    with provenance(__file__, seeds=[0, 1]): main()
