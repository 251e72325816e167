#!/usr/bin/env python
"""How fast wiseft is, as ratios that are measured side by side in one run.

  bench.py [MEASURE ...]     run all measures, or some, and write RESULTS.md (`--list` names them)

The opponent is how the field does it: for every mixing coefficient a state dict `{k: (1-α)*a[k] + α*b[k]}`, `load_state_dict`,
a `DataLoader` over the image files with the model's own transform, and fp32 forward passes; for output-space
ensembles both members once more at every α. Nothing in it is slowed down. Contestants take turns, and a ratio is
the median over the turns; above 1 means that wiseft is faster unless a row says otherwise.
"""
import argparse
import datetime
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import numpy as np
import open_clip
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset
from wiseft.all import (Suite, WeightPath, alpha_intervals, image_folder, load_clip, load_suite, mix_logits, mix_probabilities,
                        protocol, random_head, run_all, sweep, zeroshot_classifier, ImageClassifier)

HERE, MEASURES = Path(__file__).resolve().parent, {}
ALPHAS = [i/10 for i in range(11)]


def measure(bar):
    "Register a measure; `bar` is what it should reach."
    def register(f):
        MEASURES[f.__name__] = (f, bar)
        return f
    return register


def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def ratio(usual, ours, turns=3):
    "Median over turns of usual/ours, after a turn of each to warm up."
    usual(), ours()
    return median(seconds(usual)/seconds(ours) for _ in range(turns))


# ---------- what is measured on ----------

def photographs(folder, n, seed):
    "JPEGs of 500×375 pixels with as much detail as photographs have, in two class folders."
    rng = np.random.default_rng(seed)
    for i in range(n):
        small = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        path = Path(folder, "ab"[i % 2], f"{i:04}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        grain = rng.normal(0, 8, (375, 500, 3))
        pixels = np.asarray(Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC)) + grain
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return image_folder(folder)


def vit(room, sets=4, n=128):
    "ViT-B/32 with random weights, a second one near it, and a suite of photographs."
    model = open_clip.create_model("ViT-B-32", load_weights=False, pretrained_text=False)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(model.state_dict(), Path(folder, "random.pt"))
        clip = load_clip("ViT-B-32", Path(folder, "random.pt"), preprocess="laion2b_s34b_b79k")
        start = ImageClassifier(clip, random_head(clip, ["a", "b"]), ["a", "b"], alpha=0.)
    images = [photographs(Path(room, str(s)), n, s) for s in range(sets)]
    return start, nearby(start), Suite("photographs", ["a", "b"], None, images[0], images[0], images[0], {str(s): images[s] for s in range(1, sets)})


def icons():
    "The embedded CLIP, a second one near it, and the embedded suite."
    suite = load_suite("icons")
    start = zeroshot_classifier(load_clip("iconclip"), suite.classnames, protocol()["templates"])
    return start, nearby(start), suite


def nearby(start, layers=""):
    "A copy with noise on its weights (of the layers whose names begin so), which stands for a fine-tuned classifier."
    new, rng = start.copy(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in new.named_parameters():
            if name.startswith(layers):
                p += .1*p.std(correction=0)*torch.randn(p.shape, generator=rng)
    new.alpha = 1.
    return new


# ---------- the usual procedure ----------

class Files(torch.utils.data.Dataset):
    def __init__(self, images, transform):
        self.images, self.transform = images, transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.transform(Image.open(self.images.paths[i]).convert("RGB")), self.images.labels[i]


@torch.no_grad()
def outputs(model, images):
    loader = DataLoader(Files(images, model.transform), batch_size=128)
    return torch.cat([model(x) for x, _ in loader])


def usual_sweep(start, end, suite, output_space=True, alphas=ALPHAS):
    "Predicted classes of every ensemble at every α, one evaluation after the other."
    a, b, model, made = start.state_dict(), end.state_dict(), start.copy().eval(), {}
    for alpha in alphas:
        for name, images in suite.datasets().items():
            model.load_state_dict({k: (1-alpha)*a[k] + alpha*b[k] if a[k].is_floating_point() else a[k] for k in a})
            made["weight-space", alpha, name] = outputs(model, images).argmax(1)
            for method, mix in dict(logits=mix_logits, probabilities=mix_probabilities).items() if output_space else ():
                made[method, alpha, name] = mix(outputs(start, images), outputs(end, images), alpha).argmax(1)
    return made


def ours(start, end, suite, **kwargs):
    return sweep(start, end, suite, ALPHAS, progress=False, keep_predictions=True, **kwargs)


# ---------- measures ----------

@measure("≥ 2.7")
def vit_full_fp32(room):
    "Full comparison, 11 α × 4 sets × 128 photographs, ViT-B/32: usual / ours, fp32"
    start, end, suite = vit(room)
    return seconds(lambda: usual_sweep(start, end, suite))/seconds(lambda: ours(start, end, suite))


@measure("≥ 9")
def vit_full_bf16(room):
    "The same, ours in bf16 (the usual procedure on 2 of the 11 α, times 5.5: its cost is the same for each)"
    start, end, suite = vit(room)
    return 5.5*seconds(lambda: usual_sweep(start, end, suite, alphas=[.3, .7]))/seconds(lambda: ours(start, end, suite, precision="bf16"))


@measure("≥ 8")
def icons_full_bf16(room):
    "Embedded suite, full comparison, 11 α: usual / ours in bf16"
    start, end, suite = icons()
    return seconds(lambda: usual_sweep(start, end, suite))/seconds(lambda: ours(start, end, suite, precision="bf16"))


@measure("≥ 99 %")
def icons_agreement(room):
    "Share of bf16 predictions of iconclip, on all its test images, that are as in fp32 (no ratio of times)"
    start, _, suite = icons()
    both, same = dict(fp32=start, bf16=start.to_bf16()), []
    for images in suite.datasets().values():
        out, *_ = run_all(both, images, start.transform, progress=False)
        same.append(out["fp32"].argmax(1) == out["bf16"].argmax(1))
    return torch.cat(same).float().mean().item()


@measure("≥ 3")
def last_block(room):
    "Fine-tuned in the last block only, 11 α, weight space, ViT-B/32 on 64 photographs: full forward passes / shared prefix"
    start, _, suite = vit(room, sets=1, n=64)
    end = nearby(start, "visual.transformer.resblocks.11")
    return ratio(lambda: usual_sweep(start, end, suite, output_space=False), lambda: ours(start, end, suite), turns=1)


def stored_outputs(n=50_000, classes=1000):
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (n,), generator=rng)
    ends = [torch.randn(n, classes, generator=rng).scatter_add_(1, labels[:, None], torch.full((n, 1), 3.)) for _ in "ab"]
    return *ends, labels


@measure("≤ 10 (a cost)")
def curve(room):
    "Linear classifiers, 50,000 × 1,000 logits: exact curve for all α / one pass of argmax over both ends"
    u, v, labels = stored_outputs()
    return ratio(lambda: alpha_intervals(u, v, labels), lambda: (u.argmax(1), v.argmax(1)))


@measure("≥ 200")
def curve_against_grid(room):
    "The same for 101 α (the usual loop on 5 of them, times 20.2): a DataLoader of stored outputs, α by α / ours"
    u, v, labels = stored_outputs()
    loader = DataLoader(TensorDataset(u, v, labels), batch_size=128)

    def grid():
        for alpha in np.linspace(0, 1, 5):
            for a, b, y in loader:
                (((1-alpha)*a + alpha*b).argmax(1) == y).sum().item()
    return 20.2*ratio(grid, lambda: alpha_intervals(u, v, labels), turns=1)


@measure("≤ 1.6 (a cost)")
def interpolation(room):
    "Interpolating two ViT-B/32 image towers / copying the same bytes once"
    a, b, target = (open_clip.create_model("ViT-B-32", load_weights=False, pretrained_text=False).visual for _ in range(3))
    path, state = WeightPath(target, a.state_dict(), b.state_dict()), list(a.state_dict().values())
    into = [torch.empty_like(t) for t in state]
    return ratio(lambda: path(.3), lambda: [t.copy_(s) for t, s in zip(into, state)], turns=9)


@measure("≤ 20 (a cost)")
def help_page(room):
    "`wiseft --help` / `python -c pass`"
    wiseft = Path(sys.executable).with_name("wiseft")
    return ratio(lambda: subprocess.run([wiseft, "--help"], stdout=subprocess.DEVNULL, check=True), lambda: subprocess.run([sys.executable, "-c", "pass"], check=True), turns=9)


# ---------- the table ----------

def machine():
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.processor()) if os.path.exists("/proc/cpuinfo") else platform.processor()
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, Python {platform.python_version()}, torch {torch.__version__}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measures", nargs="*", choices=[*MEASURES, []])
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    if args.list:
        return print("\n".join(f"{n:20} {bar:16} {f.__doc__}" for n, (f, bar) in MEASURES.items()))
    rows = []
    for name in args.measures or MEASURES:
        f, bar = MEASURES[name]
        with tempfile.TemporaryDirectory() as room:
            rows.append(f"| {f.__doc__} | {bar} | {f(room):.3g} |")
        print(rows[-1], flush=True)
    if not args.measures:
        head = f"# Results\n\nMade by `make bench` on {datetime.date.today()}: {machine()}.\n\n| measure | bar | measured |\n|---|---|---|\n"
        (HERE/"RESULTS.md").write_text(head + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
