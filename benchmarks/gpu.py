"""How well an accelerator is used, as ratios that are measured in one run on one card.

  gpu.py [MEASURE ...]     run all measures, or some, on the best device and write their sections of RESULTS.md
  gpu.py --tiny            small towers and few images, on any device: does it run?

Opponents: wise-ft's way on the same card (a model, a DataLoader and a pass for every α, under autocast), a plain bf16
loop of PyTorch, and the card's own limits: bare forward passes or steps on one batch in its memory, and a large
matrix product.
"""
import argparse
import datetime
import json
import os
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import open_clip
import torch
from torch.utils.data import DataLoader

from bench import ALPHAS, Files, empty_cache, nearby, photographs, seconds, shown, write
from wiseft.models.classifier import ImageClassifier
from wiseft.models.clip import load_clip
from wiseft.bench.flops import operations
from wiseft.base.devices import best_device, describe_device
from wiseft.infer.ensembles import sweep
from wiseft.models.head import ClassificationHead
from wiseft.train.learner import clip_learner
from wiseft.train.loaders import clip_dataloaders
from wiseft.infer.inference import batches, evaluation_context
from wiseft.weights.path import WeightPath

MEASURES, SOME = {}, [.3, .7]
TINY = dict(embed_dim=32, vision_cfg=dict(image_size=32, layers=2, width=32, head_width=16, patch_size=16),
            text_cfg=dict(context_length=12, vocab_size=49408, width=16, heads=2, layers=1))
COLORS = dict(mean=[.48, .46, .41], std=[.27, .26, .28])


def measure(f):
    "Register a measure: a generator of rows (what, bar, value)."
    MEASURES[f.__name__] = f
    return f


class Card:
    "The device, and how much there is to do on it."
    def __init__(self, device, work, tiny=False):
        self.device, self.work, self.tiny = device, Path(work), tiny
        self.batch, n = (4, 8) if tiny else (256, 4096)
        self.towers = ["tiny"] if tiny else ["ViT-B-32", "ViT-B-16", "ViT-L-14"]
        self.workers = 0 if tiny else os.cpu_count()
        self.turns = 1 if tiny else 3
        self.pins = device.type == "cuda"  # elsewhere a copy that nobody waits for goes wrong
        if tiny:
            Path(work, "tiny.json").write_text(json.dumps(TINY))
            open_clip.add_model_config(Path(work, "tiny.json"))
        files = photographs(self.work/"photographs", min(n, 512), 0)
        # the same files again: they are decoded each time
        self.images = files.subset(np.resize(np.arange(len(files)), n))

    def wait(self):
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def seconds(self, f):
        "Of work that is over when the device is done with it, after a turn to warm up."
        def whole():
            f()
            self.wait()
        whole()
        return min(seconds(whole) for _ in range(self.turns))

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16)

    def ends(self, name):
        "A CLIP with random weights on the device, and a second one near it."
        model = open_clip.create_model(name, load_weights=False, pretrained_text=False)
        torch.save(model.state_dict(), self.work/"random.pt")
        clip = load_clip(name, self.work/"random.pt", preprocess=COLORS, quick_gelu=False, device=self.device)
        head = ClassificationHead(torch.randn(2, clip.dim)).to(self.device)
        start = ImageClassifier(clip, head, ["a", "b"], alpha=0.)
        end = nearby(start.to("cpu")).to(self.device)
        return start.to(self.device), end

    def one_batch(self, start):
        "Normalized pixels on the device."
        idx, x = next(batches(self.images, start.transform, [], self.batch, progress=False, device=self.device))
        return x, torch.zeros(len(idx), dtype=torch.long, device=self.device)


# ---------- sweeps ----------

def bare_passes(card, model, x):
    "As many forward passes as a sweep has to make, on one batch in the card's memory."
    with evaluation_context([model]):
        for _ in range(len(ALPHAS)*len(card.images)//len(x)):
            model(x)


@torch.no_grad()
def usual_sweep(card, start, end):
    "wise-ft's way: for every α a state dict, a DataLoader over the files and a pass, under autocast."
    a, b, model = start.state_dict(), end.state_dict(), start.copy().eval()
    for alpha in SOME:
        model.load_state_dict({k: (1-alpha)*a[k] + alpha*b[k] if a[k].is_floating_point() else a[k] for k in a})
        right = 0
        for x, y in DataLoader(Files(card.images, model.transform), card.batch, num_workers=card.workers,
                               pin_memory=card.pins):
            with card.autocast():
                right += (model(x.to(card.device)).argmax(1) == y.to(card.device)).sum().item()


def our_sweep(card, start, end, **kwargs):
    return sweep(start, end, card.images, ALPHAS, precision="bf16", by=("weight-space",), batch_size=card.batch,
                 progress=False, **kwargs)


@measure
def sweeps(card):
    "Sweep of 11 α in weight space, bf16"
    for name in card.towers:
        start, end = card.ends(name)
        x, _ = card.one_batch(start)
        half = start.to_bf16()
        bare = card.seconds(lambda: bare_passes(card, half, x))
        with empty_cache():
            decoded = card.seconds(lambda: our_sweep(card, start, end))
        with patch.dict(os.environ, WISEFT_CACHE_GB="0"):
            jpeg = card.seconds(lambda: our_sweep(card, start, end, workers=card.workers))
        usual = len(ALPHAS)/len(SOME)*card.seconds(lambda: usual_sweep(card, start, end))
        done = operations(start.copy().to("cpu"))[0]*len(card.images)*len(ALPHAS)
        yield f"{name}, decoded images: bare passes / ours", "≥ 0.9", bare/decoded
        yield f"{name}, decoded images: wise-ft's way / ours", "≥ 8", usual/decoded
        waits = f"{name}, JPEGs, {os.cpu_count()} cores: part of the time that images are waited for"
        yield waits, "< 0.5 for B/16", max(0, 1-decoded/jpeg)
        yield f"{name}: arithmetic of the sweep / of a large matrix product", None, done/decoded/peak(card)


@measure
def repeated(card):
    "A sweep made twice, and the memory it takes"
    for name in card.towers:
        start, end = card.ends(name)
        with empty_cache():
            (first, kept), (second, again) = (our_sweep(card, start, end, keep_predictions=True) for _ in "ab")
        different = int((kept.frame().predicted != again.frame().predicted).sum()) + (not first.equals(second))
        yield f"{name}: predictions that differ, of {len(kept.frame()):,}", "0", different
        if card.device.type == "cuda":
            yield f"{name}: most memory allocated on the card, GB", None, torch.cuda.max_memory_allocated()/1e9
            torch.cuda.reset_peak_memory_stats()


def peak(card, n=4096):
    "Operations a second of a bf16 matrix product."
    n = 256 if card.tiny else n
    a, b = (torch.randn(n, n, device=card.device, dtype=torch.bfloat16) for _ in "ab")
    return 2*n**3/card.seconds(lambda: a @ b)


# ---------- fine-tuning ----------

def step(card, model, opt, x, y):
    with card.autocast():
        loss = torch.nn.functional.cross_entropy(model(x).float(), y)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
    opt.step(), opt.zero_grad()


def bare_steps(card, start):
    "Steps on one batch in the card's memory."
    model, (x, y) = start.copy(), card.one_batch(start)
    opt = torch.optim.AdamW(model.parameters(), 1e-6, fused=True)
    for _ in range(len(card.images)//len(x)):
        step(card, model, opt, x, y)


def plain_training(card, start):
    "A plain bf16 loop over the files."
    model = start.copy()
    opt = torch.optim.AdamW(model.parameters(), 1e-6, fused=True)
    for x, y in DataLoader(Files(card.images, start.clip.train_transform), card.batch, shuffle=True,
                           num_workers=card.workers, pin_memory=card.pins):
        step(card, model, opt, *(t.to(card.device, non_blocking=card.pins) for t in (x, y)))


def our_training(card, start):
    dls = clip_dataloaders(card.images, start, card.batch, card.images.subset(range(4)), progress=False)
    clip_learner(start, dls, precision="bf16", progress=False).fit_cosine(1, 1e-6)


@measure
def training(card):
    "Fine-tuning, one epoch, bf16 autocast"
    for name in card.towers:
        start, _ = card.ends(name)
        bare, plain = card.seconds(lambda: bare_steps(card, start)), card.seconds(lambda: plain_training(card, start))
        with empty_cache():
            ours = card.seconds(lambda: our_training(card, start))
        yield f"{name}: bare steps / ours", "≥ 0.85", bare/ours
        yield f"{name}: plain bf16 loop over the files / ours", None, plain/ours


# ---------- without images ----------

@measure
def interpolation(card):
    "Interpolating two image towers on the card"
    start, end = card.ends(card.towers[0])
    path, state = WeightPath(start.copy(), start.state_dict(), end.state_dict()), list(start.state_dict().values())
    into = [torch.empty_like(t) for t in state]
    copying = card.seconds(lambda: [t.copy_(s) for t, s in zip(into, state)])
    yield f"{card.towers[0]}: interpolating / copying the same bytes once", "≤ 1.6", card.seconds(
        lambda: path(.3))/copying


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measures", nargs="*", choices=[*MEASURES, []])
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(args)
    device = best_device()
    if device.type == "cpu" and not args.tiny:
        parser.error("There is no accelerator here; --tiny tries whether everything runs.")
    with tempfile.TemporaryDirectory() as work, empty_cache():
        card, sections = Card(device, work, args.tiny), {}
        for name in args.measures or MEASURES:
            title = f"{MEASURES[name].__doc__}, {describe_device(device, 'bf16')}"
            print(title, flush=True)
            made = f"\n{datetime.date.today()}, torch {torch.__version__}\n"
            sections[title] = made + "\n| measure | bar | measured |\n|---|---|---|\n"
            for row in map(shown, MEASURES[name](card)):
                sections[title] += row
                print(row, end="", flush=True)
    if not args.tiny:
        write(sections)


if __name__ == "__main__":
    main()
