#!/usr/bin/env python
"""Which α is chosen without labels, and what accuracies are estimated to be, of the campaign's plain fine-tunings.

    python labels.py [PART ...]   # on the machine where campaign.py ran: it needs the weights, in build/campaign

By plan.json, under `labels`. A file of some kilobytes a run, in the folder labels; what is done is not done again.
"""
import argparse, json
import numpy as np
import pandas as pd
import torch
import unlabelled as un
from campaign import BUILD, HERE, PLAN, folder_name, plan_of
from functools import partial
from wiseft.base.files import atomic_path
from wiseft.bench.trial import Trial
from wiseft.infer.ensembles import members
from wiseft.infer.evaluation import columns_per_image
from wiseft.infer.rules import alpha_by_rule
from wiseft.infer.scores import Metric
from wiseft.models.load import load_classifier
from wiseft.shell.app import load_methods

PARTS = ['vit, harsh', 'resnet, harsh', 'resnet, gentle', 'resnet, gentle, head', 'resnet, gentle, names 25',
         'resnet, gentle, names 50']
LOGITS = Metric('logits', lambda o: o.outputs)
N_DRAWS = 200


def passed(between, images):
    "(α, n, classes) logits, after a pass."
    columns = columns_per_image(between, images, [LOGITS], progress=False)
    return np.stack([c['logits'] for c in columns.values()]).astype(np.float32)


def regrets(choose, z, right):
    "Of each half: what is chosen without its labels, what each α has on the other half."
    order, n = np.random.default_rng(0).permutation(z.shape[1]), z.shape[1]//2
    for half, other in (order[:n], order[n:]), (order[n:], order[:n]):
        alpha = choose(torch.from_numpy(z[:, np.sort(half)]))
        yield dict(confident=alpha, accuracies=right[:, other].mean(1).round(6).tolist())


def calibrated(z, temperature):
    "(n, classes) probabilities."
    return torch.from_numpy(z/temperature).softmax(1).numpy()


def estimates(validation, new, right):
    "By each estimator the accuracy on new images, with its bootstrap interval, of (correct, p) and p."
    correct, p = validation
    scores = dict(confidence=lambda p: p.max(1), entropy=un.negative_entropy)
    both = {name: (f(p), f(new)) for name, f in scores.items()}
    def each(v, u):
        (c, n), (cv, nv) = both['confidence'], both['entropy']
        return [un.average_confidence(n[u]), un.difference_of_confidences(correct[v], c[v], n[u]),
                un.thresholded_confidence(correct[v], c[v], n[u]), un.thresholded_confidence(correct[v], cv[v], nv[u])]
    rng, nv, nu = np.random.default_rng(0), len(correct), len(new)
    whole = each(np.arange(nv), np.arange(nu))
    drawn = [each(rng.integers(nv, size=nv), rng.integers(nu, size=nu)) for _ in range(N_DRAWS)]
    low, high = np.quantile(drawn, (.025, .975), axis=0)
    names = 'average confidence', 'difference of confidences', 'ATC, confidence', 'ATC, entropy'
    rows = [dict(estimator=e, estimate=float(v), low=float(a), high=float(b), accuracy=float(right.mean()))
            for e, v, a, b in zip(names, whole, low, high)]
    return rows + [dict(estimator='nuclear norm', estimate=un.nuclear_norm(new), accuracy=float(right.mean()))]


def run(part, seed, lr):
    "All that is asked of a fine-tuning."
    plan, _ = plan_of(part)
    suite = plan.suite
    finetuned = load_classifier(BUILD/'campaign'/folder_name(part)/Trial(lr, seed).name)
    ways = members(plan.zeroshot, finetuned, plan.alphas, ['weight-space'], precision='fp32').values()
    between = dict(sorted((m.identity['alpha'], m) for m in ways))
    sets, alphas = dict(validation=suite.validation, **suite.shifts), list(between)
    z = {d: passed(between, s) for d, s in sets.items()}
    right = {d: z[d].argmax(2) == np.array(s.labels) for d, s in sets.items()}
    accuracies = pd.Series(right['validation'].mean(1), alphas)
    n, labels = len(suite.validation), torch.as_tensor(np.array(suite.validation.labels))
    choose = partial(un.confident, alphas, torch.from_numpy(z['validation']), labels)
    nll = [un.nll_by_temperature(torch.from_numpy(v), labels).numpy() for v in z['validation']]
    out = dict(part=part, seed=seed, lr=lr, alphas=alphas, validation=float(alpha_by_rule(accuracies, n)), sets={})
    for d, s in suite.shifts.items():
        found = dict(n=len(s), halves=[*regrets(choose, z[d], right[d])], estimates={})
        for a in (.5, 1.):
            i = alphas.index(a)
            t = un.best_temperature(nll[i])
            validation = right['validation'][i], calibrated(z['validation'][i], t)
            found['estimates'][str(a)] = estimates(validation, calibrated(z[d][i], t), right[d][i])
        found['agreement of the ends'] = un.agreement(z[d][0].argmax(1), z[d][-1].argmax(1))
        out['sets'][d] = found
    return out


def chosen_rate(part):
    "Of plain fine-tuning, as the bench chose it: the rate whose test images were judged with most seeds; None before."
    names = [f.name for f in (HERE/folder_name(part)).glob('plain, lr *.test.npz')]
    rates = [float(n.split(', ')[1].removeprefix('lr ')) for n in names]
    return max(rates, key=rates.count, default=None)


def main():
    load_methods()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('part', nargs='*', help=f'one of {PARTS}')
    for part in parser.parse_args().part or PARTS:
        lr = chosen_rate(part)
        for seed in PLAN['seeds'] if lr else ():
            file = HERE/'labels'/f'{part}, seed {seed}.json'
            if file.exists() or not (BUILD/'campaign'/folder_name(part)/Trial(lr, seed).name).exists(): continue
            file.parent.mkdir(exist_ok=True)
            with atomic_path(file) as tmp: tmp.write_text(json.dumps(run(part, seed, lr), indent=1) + '\n')
            print(file.stem, flush=True)


if __name__ == '__main__': main()
