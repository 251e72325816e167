#!/usr/bin/env python
"""Classifiers trained from scratch on the reference alone, of several widths, epochs and parts of the data: the suite's
own baseline.

    python scratch.py    # minutes a model on one core, the last an hour; a line of results.csv each, or skipped if done
    python scratch.py --repeat 16 0.25 10 0.6    # a model of this width, part, epochs and crops again, beside its line
"""
import argparse, sys, time, warnings
from pathlib import Path
import numpy as np, pandas as pd, torch
from open_clip.modified_resnet import ModifiedResNet
from wiseft.models.classifier import ImageClassifier
from wiseft.models.clip import load_clip
from wiseft.data.suites import load_suite
from wiseft.infer.evaluation import evaluate
from wiseft.base.files import atomic_path
from wiseft.models.head import ClassificationHead
from wiseft.train.learner import finetune
from wiseft.stats.table import MEAN

sys.path.append(str(Path(__file__).resolve().parents[1]))
from runs import provenance

RESULTS = Path(__file__).resolve().parent/'results.csv'
LR = 1e-3
CHECKPOINTS = Path(__file__).resolve().parents[3]/'build'/'scratch'
KEYS = ['width', 'part', 'epochs', 'crop'] # crop: the smallest part of an image that is shown
MODELS = [(16, part, epochs, .6) for part in (.25, .5, 1.) for epochs in (10, 30)]
MODELS += [(32, 1., epochs, .6) for epochs in (10, 25)]
MODELS += [(16, part, 60, .6) for part in (.25, .5, 1.)]
MODELS += [(32, 1., 100, .3)]


def untrained(width, classnames, seed=0):
    "The embedded CLIP's architecture of some width, with random weights and a random head."
    clip = load_clip()
    v = clip.config['vision_cfg']
    torch.manual_seed(seed)
    heads = width*32//v['head_width']
    clip.model.visual = ModifiedResNet(v['layers'], clip.dim, heads, image_size=v['image_size'], width=width)
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((len(classnames), clip.dim))).float()
    head = ClassificationHead(clip.logit_scale*torch.nn.functional.normalize(rows, dim=-1)).to(clip.device)
    return ImageClassifier(clip, head, classnames, alpha=1.)


def part_of(images, part):
    "A random part of each class, the same for every model."
    return images if part == 1 else images.split((part,))[1]


def accuracies(classifier, suite):
    "Accuracy on every test and validation set."
    for split in ('test', 'validation'):
        table = evaluate(classifier, suite, split, progress=False)
        for row in table[table.dataset != MEAN].itertuples(): yield f'{split} {row.dataset}', round(row.value, 5)


def train(suite, width, part, epochs, crop):
    "A row of the table; a training that was stopped goes on."
    began, images = time.time(), part_of(suite.train, part)
    start = untrained(width, suite.classnames)
    at = CHECKPOINTS/f'width {width}, part {part}, epochs {epochs}, crop {crop}'
    trained = finetune(start, images, suite.validation, epochs, LR, batch_size=54, crop_scale=(crop, 1.),
                       train_batchnorm=True, seed=0, progress=False, checkpoint_dir=at, resume=True)
    model = dict(zip(KEYS, (width, part, epochs, crop))) | dict(images=len(images), seconds=round(time.time()-began))
    return model | dict(accuracies(trained, suite))


def main(repeat):
    suite = load_suite('icons')
    table = pd.read_csv(RESULTS) if RESULTS.exists() else pd.DataFrame(columns=KEYS)
    if repeat:
        before = table[(table[KEYS] == repeat).all(axis=1)].iloc[0]
        width, part, epochs, crop = repeat
        now = pd.Series(train(suite, int(width), part, int(epochs), crop))
        print(pd.DataFrame(dict(before=before, now=now)))
        return
    for model in MODELS:
        if (table[KEYS] == model).all(axis=1).any(): continue
        table = pd.concat([table, pd.DataFrame([train(suite, *model)])], ignore_index=True)
        with atomic_path(RESULTS, force=True) as tmp: table.to_csv(tmp, index=False, lineterminator='\n')
        print(*model, flush=True)


if __name__ == '__main__':
    warnings.filterwarnings('ignore', 'A random head knows nothing')
    parser = argparse.ArgumentParser()
    parser.add_argument('--repeat', nargs=4, type=float, metavar=('WIDTH', 'PART', 'EPOCHS', 'CROP'))
    repeat = parser.parse_args().repeat
    if repeat: main(repeat)
    else:
        with provenance(__file__, seeds=[0]): main(None)
