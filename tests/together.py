"What test_processes.py has one, two or three processes do, and writes down from the first: together.py FOLDER RESULT."
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.optimizer import OptimWrapper
from PIL import Image
from wiseft.data.images import ImageSet
from wiseft.data.retrieval import retrieval_set
from wiseft.data.suites import folder_suite
from wiseft.infer.ensembles import sweep
from wiseft.train.learner import clip_learner, finetune
from wiseft.train.loaders import clip_dataloaders
from wiseft.models.load import load_classifier
from wiseft.methods.carot import carot
from wiseft.methods.ema import EMA
from wiseft.methods.flyp import flyp
from wiseft.methods.l2sp import decoupled_l2sp
from wiseft.methods.lora import lora
from wiseft.methods.sigmoid import sigmoid
from wiseft.infer.inference import extract_features
from wiseft.models.classifier import zeroshot_classifier
from wiseft.models.testing import pico_classifier, pico_clip
from wiseft.base.distributed import n_processes, rank

CLASSES = ["left", "right", "none"]
sgd = partial(OptimWrapper, opt=torch.optim.SGD)


def make_data(folder):
    "Pictures in class folders, in odd numbers, one of them broken, and a classifier."
    rng = np.random.default_rng(0)
    for split, n in {"photos/train": 121, "photos/validation": 13, "photos/test": 131, "shift": 7}.items():
        for i in range(n):
            picture = rng.integers(0, 200, (48, 48 + i % 2, 3), dtype=np.uint8)
            picture[:, 24*(i % 3):24*(i % 3 + 1)] += 55
            path = Path(folder, split, CLASSES[i % 3], f"{i}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
    for broken in ("train/right/4.png", "test/left/9.png"):
        Path(folder, "photos", broken).write_bytes(b"no picture")
    pico_classifier(CLASSES).save(Path(folder, "zeroshot"))


def given(folder):
    start, photos = load_classifier(Path(folder, "zeroshot")), Path(folder, "photos")
    return start, folder_suite(photos, [Path(folder, "shift")], classnames=CLASSES)


def weights(classifier):
    return {k: v.detach().numpy() for k, v in classifier.state_dict().items() if v.is_floating_point()}


def plain_training(start, suite):
    "Twelve steps, the sixth and the last of one image, with the numbers that fastai writes down."
    dls = clip_dataloaders(suite.train, start, 24, suite.validation, progress=False)
    learn = clip_learner(start, dls, opt_func=sgd, progress=False)
    learn.fit_cosine(2, lr=.01)
    losses = [float(loss) for loss in learn.recorder.losses]
    return weights(learn.classifier) | dict(losses=losses, epochs=learn.recorder.values, before=learn.initial_accuracy)


def finetuned(start, suite, **kwargs):
    settings = dict(epochs=2, lr=1e-4, batch_size=24, precision="fp32", progress=False) | kwargs
    return finetune(start, suite.train, suite.validation, **settings)


def averaged(start, suite):
    "A batch in three parts, a constraint, and a weight average during training."
    average = EMA(.5)
    finetuned(start, suite, accumulate=3, batch_size=8, constraint=decoupled_l2sp, cbs=average, opt_func=sgd)
    return weights(average.classifier)


def spoilt(start, suite):
    "NaN in one process alone: what all of them say."
    def breaks(step):
        mine = step.own(step.logits)*(float("nan") if step.step == 3 and rank() == n_processes()-1 else 1)
        return dict(ce=step.cross_entropy + step.gathered(mine).sum()*0)
    try:
        finetuned(start, suite, loss=breaks)
    except FloatingPointError as e:
        return dict(error=np.array(str(e)))


class Stop(Callback):
    "After the eighth of twelve steps"
    def after_batch(self):
        if self.training and self.train_iter == 8:
            raise KeyboardInterrupt


def until_stopped(start, suite, folder, **kwargs):
    "Training that keeps a checkpoint every third step."
    kept = dict(checkpoint_dir=folder, checkpoint_steps=3)
    return finetuned(start, suite, opt_func=sgd, lr=.01, **kept, **kwargs)


def several(name, n):
    "Pictures of several labels, or none, in the colors of theirs."
    rng = np.random.default_rng(n)
    labels = (rng.random((n, 3)) < .45).astype(int)
    pixels = rng.integers(0, 120, (n, 48, 48, 3)) + 100*labels[:, None, None]
    return ImageSet(name, [f"{i}.png" for i in range(n)], labels, CLASSES, pixels=pixels.astype(np.uint8))


def refused(start, suite):
    try:
        clip_learner(start, clip_dataloaders(suite.train, start, 24, progress=False), train_batchnorm=True)
    except ValueError as e:
        return dict(error=np.array(str(e)))
    return {}


def main(folder, result):
    start, suite = given(folder)
    results = dict(start=weights(start), plain=plain_training(start, suite), adamw=weights(finetuned(start, suite)))
    results["head"] = weights(finetuned(start, suite, train="head", lr=.01, opt_func=sgd))
    results["flyp"] = weights(finetuned(start, suite, loss=flyp, opt_func=sgd, lr=1e-3))
    results["carot"] = weights(finetuned(start, suite, loss=carot, opt_func=sgd, lr=1e-3))
    parts = dict(loss=flyp, accumulate=5, batch_size=5, opt_func=sgd, lr=1e-3)  # that don't divide a process's share
    results["flyp in parts"] = weights(finetuned(start, suite, **parts))
    siglip = zeroshot_classifier(pico_clip(bias=-10.), CLASSES, ["a {}", "the {}"])
    results["start of siglip"] = weights(siglip.with_text())
    for name, loss in {"sigmoid": sigmoid, "flyp of siglip": flyp}.items():
        results[name] = weights(finetuned(siglip, suite, loss=loss, opt_func=sgd, lr=1e-3))
    results["averaged"] = averaged(start, suite)
    vit = pico_classifier(CLASSES, transformer=True)
    results["start of lora"] = weights(vit)
    results["lora"] = weights(finetuned(vit, suite, train=lora, opt_func=sgd, lr=.1))
    colored, watched = several("colored", 61), several("watched", 37)
    several_start = zeroshot_classifier(pico_clip(), CLASSES, ["a {}", "the {}"], task="multi-label")
    several_start.clip.name = "pico"  # it names a temporary folder
    results["start of several labels"] = weights(several_start)
    results["several labels"] = weights(finetune(several_start, colored, watched, epochs=2, lr=.01, batch_size=24,
                                                 precision="fp32", progress=False, opt_func=sgd))
    results["spoilt"], results["refused"] = spoilt(start, suite), refused(start, suite)
    features = extract_features(start, suite.test, batch_size=10, progress=False)
    results["features"] = dict(rows=features.features.numpy(), labels=features.labels.numpy(), n=len(features.skipped))
    # the same weights for all, or rounding in training would be compared
    end = start.copy()
    end.head.weight.data.add_(.1*torch.randn(end.head.weight.shape, generator=torch.Generator().manual_seed(0)))
    table, kept = sweep(start, end, suite, [0, .3, 1], batch_size=10, keep_predictions=["ECE (15 bins)"],
                        progress=False)
    results["sweep"] = dict(table=np.array(table.to_csv()), kept=np.array(kept.frame().to_csv()))
    several_end = several_start.copy()
    several_end.head.weight.data.add_(end.head.weight.data)
    table, kept = sweep(several_start, several_end, watched, [0, .3, 1], batch_size=10, progress=False,
                        metrics=["hit@1", "mAP", "macro-F1"], keep_predictions=True)
    results["several labels"] |= dict(table=np.array(table.to_csv()), kept=np.array(kept.frame().to_csv()))
    few = suite.shifts["shift"]
    captions = [f"{a} {i}" for i in range(len(few)) for a in "ab"]
    pairs = retrieval_set(([p for p in few.paths for _ in range(2)], captions))
    table, kept = sweep(start, end, pairs, [0, .3, 1], batch_size=3, keep_predictions=True, progress=False)
    results["retrieval"] = dict(table=np.array(table.to_csv()), kept=np.array(kept.frame().to_csv()))
    try:
        until_stopped(start, suite, Path(folder, f"stopped-{n_processes()}"), cbs=Stop())
    except KeyboardInterrupt:
        results["whole"] = weights(finetuned(start, suite, opt_func=sgd, lr=.01))
    if rank() == 0:
        np.savez(result, **{f"{name}/{k}": v for name, what in results.items() for k, v in what.items()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    main(*sys.argv[1:])
