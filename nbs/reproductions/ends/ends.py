#!/usr/bin/env python
"""A zero-shot classifier and what fine-tuning makes of it, end to end and by the head alone: the path between them,
ensembles, measures of diversity.

    python ends.py    # some three minutes a run on one core; a line of runs.jsonl each, what is done is skipped
    python ends.py --repeat "kind=end to end lr=0.01 seed=0"    # what share comes out otherwise

The linear classifier's learning rate is the one of LINEAR_LRS that is best on the reference's validation images.
"""
import sys, warnings
from itertools import product
from pathlib import Path
import numpy as np, torch
import torch.nn.functional as F
from wiseft.data.suites import protocol
from wiseft.infer.ensembles import members, average_logits, average_probabilities
from wiseft.infer.evaluation import evaluate
from wiseft.train.learner import finetune
from wiseft.stats.metrics import correct
from wiseft.infer.inference import common_transform, extract_features, outputs_for_all

sys.path.append(str(Path(__file__).resolve().parents[1]))
from diversity import cka_complement, kappa_complement, margins, mean_kl, overrides, prediction_diversity
from runs import judged_sets, protocol_zeroshot, run_script

PATH = [-.25, -.1, 0., .1, .2, .3, .4, .5, .6, .7, .8, .9, 1., 1.1, 1.25]
STEP = .01 # of α, for the slope at the zero-shot end
LINEAR_LRS = 1e-3, 3e-3, 1e-2, 3e-2


def settings():
    "Every run: the protocol's recipe and linear classifiers with three seeds, then recipes that strain the path."
    kinds = [('end to end', protocol()['recipe']['lr']), ('linear classifier', None)]
    runs = [dict(kind=kind, lr=lr, seed=seed) for seed, (kind, lr) in product((0, 1, 2), kinds)]
    straining = [('end to end', 3e-3), ('BatchNorm trained', 1e-3), ('end to end', 1e-2)]
    return runs + [dict(kind=kind, lr=lr, seed=0) for kind, lr in straining]


def tune(start, suite, kind, lr, seed):
    "The fine-tuned classifier of one run, and its learning rate."
    recipe = protocol()['recipe'] | dict(seed=seed, progress=False)
    if kind != 'linear classifier':
        return finetune(start, suite, **recipe | dict(lr=lr, train_batchnorm=kind == 'BatchNorm trained')), lr
    found = {lr: finetune(start, suite, **recipe | dict(lr=lr, train='head')) for lr in LINEAR_LRS}
    said = {lr: evaluate(c, suite.validation, progress=False).value[0] for lr, c in found.items()}
    lr = max(said, key=said.get)
    return found[lr], lr


def path_logits(start, finetuned, images):
    "α -> logits of weight-space ensembles, of the two ends too; NaN where trained BatchNorm is extrapolated too far."
    alphas = [*PATH, -STEP, STEP]
    between = {m.identity['alpha']: m for m in members(start, finetuned, alphas, ['weight-space']).values()}
    return outputs_for_all(between, images, common_transform(between), progress=False)[0]


def outputs(z):
    "(method, α) -> logits: the path of weights, its linearised model, ensembles of outputs."
    slope = (z[STEP]-z[-STEP])/(2*STEP)
    out = {('weight-space', a): z[a] for a in PATH}
    out |= {('linearised', a): z[0.] + a*slope for a in PATH}
    out |= {('logits', a): average_logits(z[0.], z[1.], a) for a in PATH}
    return out | {('probabilities', a): average_probabilities(z[0.], z[1.], a).log() for a in PATH if 0 <= a <= 1}


def margin_medians(z0, z1, labels):
    "Median margins of either end, where it is right and where it is wrong."
    for name, z in (('zero-shot', z0), ('fine-tuned', z1)):
        right = correct(z, labels)
        yield f'margin, {name} right', float(np.median(margins(z)[right]))
        yield f'margin, {name} wrong', float(np.median(margins(z)[~right]))


def measures(z, labels, features):
    "What differs between the two ends on one set."
    z0, z1, f0, f1 = z[0.], z[1.], *features
    row = dict(diversity=prediction_diversity(z0, z1, labels), kappa=kappa_complement(z0, z1), kl=mean_kl(z0, z1))
    row |= dict(cka=cka_complement(f0, f1)) | dict(margin_medians(z0, z1, labels))
    return {k: round(v, 5) for k, v in (row | overrides(z0, z1, z[.5], labels)).items()}


def main():
    suite, start = protocol_zeroshot()

    def run(s):
        finetuned, lr = tune(start, suite, **s)
        sets = {d if split == 'test' else split: images for (split, d), images in judged_sets(suite).items()}
        right, losses, measured = [], {}, []
        for name, images in sets.items():
            z, labels = path_logits(start, finetuned, images), torch.as_tensor(images.labels)
            features = [extract_features(c, images, progress=False).features for c in (start, finetuned)]
            out = outputs(z)
            right.append(np.stack([correct(v.nan_to_num(), labels) for v in out.values()]))
            losses[name] = [round(F.cross_entropy(v, labels).item(), 4) for v in out.values()]
            measured.append(dict(dataset=name) | measures(z, labels, features))
        losses = [dict(zip(losses, values)) for values in zip(*losses.values())]
        return dict(lr=lr, losses=losses, measures=measured, classifiers=list(out),
                    correct=np.concatenate(right, axis=1))

    run_script(__file__, settings(), run)


if __name__ == '__main__':
    warnings.filterwarnings('ignore', 'alpha=.* extrapolates')
    main()
