#!/usr/bin/env python
"""A zero-shot classifier and what fine-tuning makes of it, end to end and by the head alone: the path between them, ensembles, measures of diversity.

    python ends.py    # about a minute and a half a run on one core; a line of runs.jsonl each, and those that have theirs are skipped

The linear classifier's learning rate is the one of LINEAR_LRS that is best on the reference's validation images.
"""
import sys, time, warnings
from pathlib import Path
import numpy as np, torch, torch.nn.functional as F

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from runs import along, finished, fit, logits, looked_at, narrow_start, pixels, provenance, record
from wiseft.datasets import protocol
from wiseft.diversity import cka_complement, kappa_complement, margins, mean_kl, overrides, prediction_diversity
from wiseft.ensembles import mix_logits, mix_probabilities
from wiseft.loaders import clip_dataloaders
from wiseft.metrics import accuracy, correct

RUNS = HERE/'runs.jsonl'
PATH = [-.25, -.1, 0., .1, .2, .3, .4, .5, .6, .7, .8, .9, 1., 1.1, 1.25]
LINEAR_LRS = (1e-3, 3e-3, 1e-2, 3e-2)


def settings():
    "Every run: the protocol's recipe and linear classifiers with three seeds, then recipes that strain the path."
    main = protocol()['recipe']['lr']
    runs = [dict(kind=k, lr=lr, seed=s) for s in (0, 1, 2) for k, lr in (('end to end', main), ('linear classifier', None))]
    return runs + [dict(kind='end to end', lr=3e-3, seed=0), dict(kind='BatchNorm trained', lr=1e-3, seed=0), dict(kind='end to end', lr=1e-2, seed=0)]


class Data:
    "What all runs look at: images and labels, where each set lies among them, what the zero-shot classifier says."
    def __init__(self):
        self.suite, self.start = narrow_start()
        sets = looked_at(self.suite)
        self.x, ends = pixels(self.start.clip, sets.values()), np.cumsum([len(s) for s in sets.values()])
        self.labels = torch.as_tensor(np.concatenate([s.labels for s in sets.values()]))
        self.at = {d if k == 'test' else k: slice(e-len(s), e) for ((k, d), s), e in zip(sets.items(), ends)}
        self.dls = clip_dataloaders(self.suite, self.start, protocol()['recipe']['batch_size'])
        self.features = features(self.start, self.x)
        self.zeroshot = self.start.head(self.features).detach()


@torch.inference_mode()
def features(classifier, x): return torch.cat([classifier.eval().features(b) for b in x.split(256)])


def tune(d, s):
    "The fine-tuned classifier of one run."
    r = protocol()['recipe']
    if s['kind'] != 'linear classifier': return fit(d.dls, d.start, r['epochs'], s['lr'], s['seed'], train_batchnorm=s['kind'] == 'BatchNorm trained').classifier
    found = {lr: fit(d.dls, d.start, r['epochs'], lr, s['seed'], train='head').classifier for lr in LINEAR_LRS}
    v = d.at['validation']
    s['lr'] = max(found, key=lambda lr: accuracy(found[lr].head(d.features[v]), d.labels[v]))
    return found[s['lr']]


def classifiers(d, tuned):
    "(method, alpha) -> logits: the path of weights, its linearised model, ensembles of outputs."
    z1 = logits(tuned, d.x, 'fp32')
    ahead, behind = (z for _, z in along(d.start, tuned, d.x, (.01, -.01), 'fp32'))
    path = {a: z for a, z in along(d.start, tuned, d.x, PATH, 'fp32')}
    out = {('weight-space', a): z for a, z in path.items()} | {('linearised', a): d.zeroshot + a*(ahead-behind)/.02 for a in PATH}
    out |= {('logits', a): mix_logits(d.zeroshot, z1, a) for a in PATH}
    return z1, out | {('probabilities', a): mix_probabilities(d.zeroshot, z1, a).log() for a in PATH if 0 <= a <= 1}


def losses(d, z):
    "Mean cross-entropy on each set."
    return {k: round(F.cross_entropy(z[i], d.labels[i]).item(), 4) for k, i in d.at.items()}


def measures(d, tuned, z1, averaged):
    "What differs between the two ends, on each set."
    f1 = features(tuned, d.x)
    for k, i in d.at.items():
        z0, z, y = d.zeroshot[i], z1[i], d.labels[i]
        row = dict(dataset=k, diversity=prediction_diversity(z0, z, y), kappa=kappa_complement(z0, z), kl=mean_kl(z0, z), cka=cka_complement(d.features[i], f1[i]))
        for name, t in (('zero-shot', z0), ('fine-tuned', z)):
            for right in (True, False): row[f'margin, {name} {"right" if right else "wrong"}'] = float(np.median(margins(t)[correct(t, y) == right]))
        yield {c: v if isinstance(v, str) else round(v, 5) for c, v in (row | overrides(z0, z, averaged[i], y)).items()}


def main():
    d = Data()
    for s in settings():
        name = ' '.join(f'{k}={v}' for k, v in s.items())
        if name in finished(RUNS): continue
        began = time.time()
        tuned = tune(d, s)
        z1, out = classifiers(d, tuned)
        right = np.stack([correct(z.nan_to_num(), d.labels) for z in out.values()])
        record(RUNS, name, s | dict(losses=[losses(d, z) for z in out.values()], measures=list(measures(d, tuned, z1, out['weight-space', .5]))), list(out), right, began)


if __name__ == '__main__':
    warnings.filterwarnings('ignore', 'alpha=.* extrapolates')
    with provenance(__file__, seeds=[0, 1, 2]): main()
