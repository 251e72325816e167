"""What a step of training costs a device that isn't the CPU, counted on the tests' second device.

  counts.py LABEL     count, and put the rows of that label into counts.csv

For each method: waits, copies to the device and operations there a step (of a tiny transformer, 24 steps of 2 images),
and the bytes on the device after `finetune`, beside the weights that trained, and at most. Operations that work on
lists of tensors (`torch._foreach_…`) count once a tensor here, and once for some hundred tensors on a card.
"""
import argparse
import gc
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).resolve().parent
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # where pip puts ninja
os.environ["WISEFT_DEVICE"] = "other"
os.environ.setdefault("OTHER_DEVICE_BUILD", tempfile.mkdtemp())
sys.path.insert(0, os.environ.get("OTHER_DEVICE", str(HERE.parent/"tests/other_device")))

import numpy as np
import other_device
import pandas as pd
import torch
from fastai.callback.core import Callback
from PIL import Image

TABLE = HERE/"counts.csv"
METHODS = "plain", "EMA", "BMA", "SPD", "FLYP"


def ours(name, *modules):
    "What is called so now, or was before."
    for m in modules:
        try:
            return getattr(import_module(f"wiseft.{m}"), name)
        except (ImportError, AttributeError):
            pass
    raise ImportError(f"No {name} in {modules}.")


class Counts(Callback):
    "Counts of each step, from the end of the step before."
    order = 1000

    def before_train(self):
        self.steps, self.peak = [], 0
        other_device.core.reset()

    def after_batch(self):
        if self.training:
            self.steps.append(other_device.counts())
            self.peak = max(self.peak, self.steps[-1]["peak"])
            other_device.core.reset()


def images():
    rng, folder = np.random.default_rng(0), Path(tempfile.mkdtemp())
    for name in ("cat", "dog"):
        (folder/name).mkdir()
        for i in range(28):
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder/name/f"{i}.png")
    found = ours("image_folder", "data.labels", "labels", "datasets")(folder)
    return found.subset(range(4, 52)), found.subset([0, 1, 54, 55])


def counted(method):
    "A row of the table."
    clip = ours("pico_clip", "models.testing", "pico")()
    classify = ours("zeroshot_classifier", "models.classifier", "classifiers")
    start, counts = classify(clip, ["cat", "dog"], ["a {}", "the {}"]), Counts()
    kwargs = dict(cbs=[counts])
    if method in ("EMA", "BMA"):
        kwargs["cbs"] = [ours(method, f"methods.{method.lower()}")(), counts]
    elif method == "SPD":
        kwargs["constraint"] = ours("spd", "methods.spd")
    elif method == "FLYP":
        kwargs["loss"] = ours("flyp", "methods.flyp")
    finetune = ours("finetune", "train.learner", "learner")
    gc.collect()
    gc.disable()
    before = other_device.counts()["bytes"]
    finetuned = finetune(start, *images(), epochs=1, batch_size=2, lr=1e-4, precision="fp32", crop_scale=None,
                     progress=False, **kwargs)
    kwargs.clear()
    left = other_device.counts()["bytes"] - before
    gc.enable()
    trained, steps = sum(t.nbytes for t in finetuned.state_dict().values()), counts.steps[1:]
    each = pd.DataFrame(steps)
    return dict(method=method, steps=len(steps), waits=round(each.waits.mean(), 2), sent=int(each.sent.median()),
                operations=int(each.kernels.median()), left=round(left/trained, 2),
                most=round((counts.peak-before)/trained, 2))


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("label")
    label = parser.parse_args(args).label
    torch.set_num_threads(1)
    rows = pd.DataFrame([counted(method) for method in METHODS])
    rows.insert(0, "code", label)
    kept = pd.read_csv(TABLE) if TABLE.exists() else rows[:0]
    pd.concat([kept[kept.code != label], rows]).to_csv(TABLE, index=False)
    print(rows.to_string(index=False))


if __name__ == "__main__":
    main()
