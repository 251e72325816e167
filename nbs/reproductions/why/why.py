#!/usr/bin/env python
"""Why fine-tuning costs no accuracy under shift on icons: what happens to classes that it doesn't teach; linear classifiers from gentle to harsh.

    python why.py    # some ten minutes on one core; a line of runs.jsonl or runs-heads.jsonl each, and those that have theirs are skipped

Half of the classes are taught and the others not, and then the other way round, so that every image is once of a taught class and once of an untaught one.
"""
import sys, time
from pathlib import Path
import numpy as np, torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from runs import along, finished, fit, logits, looked_at, narrow_start, pixels, provenance, record
from wiseft.datasets import protocol
from wiseft.ensembles import mix_logits
from wiseft.loaders import clip_dataloaders

HALVES, HEADS, ALPHAS = HERE/'runs.jsonl', HERE/'runs-heads.jsonl', [.25, .5, .75]
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


def by_taught(runs, correct, images, taught, kind, lr, alpha):
    "Share of halvings in which each image is right among its own half, when its class was taught, or when it wasn't."
    t = runs[(runs.kind == kind) & (runs.lr == lr) & (runs.method == 'own half') & (runs.alpha == alpha)]
    labels, n = images.label.cat.codes.to_numpy(), len(images.label.cat.categories)
    mask = np.array([halves(n, s)[h][labels] == taught for s, h in zip(t.seed, t.half)])
    return (correct[t.index]*mask).sum(0)/mask.sum(0)


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
