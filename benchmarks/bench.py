"""How fast wiseft is, as ratios that are measured side by side in one run.

  bench.py [MEASURE ...]     run all measures, or some, and write their sections of RESULTS.md (`--list` names them)

Sweeps are compared with what a competent user writes in plain PyTorch: a `DataLoader` over the image files with the
model's own transform; two passes, whose logits give every output ensemble; and for every α in between a state dict
`{k: (1-α)*a[k] + α*b[k]}`, `load_state_dict`, and one more pass. wise-ft's own script makes the same pass for every α,
and no output ensembles. Nothing in the plain code is slowed down, and it has our batch size. Contestants take turns,
and their ratio is the median over the turns."""
import argparse
import ctypes
import datetime
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from wiseft.data.pixels import Pixels, ShortSide, decode_once
from wiseft.models.classifier import ImageClassifier, zeroshot_classifier
from wiseft.models.clip import load_clip
from wiseft.models.pooled import without_pooling_shortcut
from wiseft.bench.flops import operations
from wiseft.data.suites import Suite, load_suite, protocol
from wiseft.infer.ensembles import average_logits, average_probabilities, sweep
from wiseft.infer.evaluation import evaluate
from wiseft.infer.prefetch import Feeder
from wiseft.models.head import ClassificationHead
from wiseft.data.labels import image_folder
from wiseft.train.learner import clip_learner
from wiseft.train.loaders import clip_dataloaders, crop_box
from wiseft.models.load import load_classifier
from wiseft.weights.files import merge_files
from wiseft.stats.intervals import mean_difference
from wiseft.infer.inference import batches, fitting_batch_size, reuse_memory, outputs_for_all
from wiseft.data.transforms import ClipTransform
from wiseft.weights.path import WeightPath

HERE, MEASURES, IMAGES = Path(__file__).resolve().parent, {}, None
LIMITS = """
What binds where a bar isn't met:

- **bfloat16 over bare forward passes.** What is fixed weighs more where passes are short. For ResNet-50 on 128 images it is, in bfloat16, the agreement with fp32, for which 32 images are computed in fp32 at both ends; for the embedded CLIP it is the table, 31 classifiers on eight sets with exact and bootstrap intervals. Both weigh less the more images there are. In fp32 two runs of ResNet-50 gave 1.03, with batches of 32, and 1.18, with 64; why is not settled. Processors with AMX compute bfloat16 so fast that passes are shorter still: ResNet-50 1.33 and the embedded CLIP 1.18, where a processor without it gave 1.15 and 1.11; the share of the matrix product's speed falls for the same reason.
- **Fine-tuning the embedded CLIP.** The row of bare steps says what bfloat16 alone reaches on one batch that is in memory; between it and ours lie the crops, made by PIL on the same two cores, the clipping of gradients and fastai's loop. Crops of whole batches at once would move it. BatchNorm folded into the convolutions was tried and left out: it gained less than it would cost to explain.
- **Feeding.** A pass takes some hundredths of a second here, and other programs made its clock's ratio scatter (4.3 to 13.3 in eight runs); so the processor's time of all threads is compared. The hash of what the cache holds is no cause: it is checked when an entry is written, when that is opened, and once more two seconds later; in fifteen turns after that no file was hashed, the ratio in evaluation was 7.9 to 16.9 by the clock, and 10.5 to 17.2 by processor time, in the middle 12.3. Three batches are alive at a time, so that a pass of three, as it was measured before, is mostly the first touch of memory: normalized on the CPU the whole path then gained 1.8. Nine batches are measured now.
- **Accelerators.** Unseen: `gpu.py` has sweeps, fine-tuning and interpolation against wise-ft's way, a plain bf16 loop and the card's own limits, and has never met a GPU. Its logic is tried on a CPU with tiny towers, which says nothing about speed.
- **Memory.** Of each image stay the predicted classes of 31 classifiers and a row in the table; pixels, features and logits go with their batch.
"""
ALPHAS = [i/10 for i in range(11)]


def measure(f):
    "Register a measure: a generator of rows (what, bar, value)."
    MEASURES[f.__name__] = f
    return f


def seconds(f, clock=time.perf_counter):
    start = clock()
    f()
    return clock() - start


def ratio(usual, ours, turns=3, clock=time.perf_counter):
    "Median over turns of usual/ours, after a turn of each to warm up."
    usual(), ours()
    return median(seconds(usual, clock)/seconds(ours, clock) for _ in range(turns))


@contextmanager
def memory_growth():
    "A list that receives by how many bytes the process's own memory grew at most while the block ran (Linux)."
    def own():
        return 1024*next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # what the process has, but does not use, would be used first
    start, peak, over, growth = own(), [own()], threading.Event(), []

    def watch():
        while not over.wait(.002):
            peak.append(max(own(), peak.pop()))
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield growth
    finally:
        over.set(), thread.join()
        growth.append(peak[0] - start)


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


def tower(name, work, sets=4, n=128):
    "A CLIP with random weights, a second one near it, and a suite of photographs."
    model = open_clip.create_model(name, load_weights=False, pretrained_text=False)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(model.state_dict(), Path(folder, "random.pt"))
        clip = load_clip(name, Path(folder, "random.pt"),
                         preprocess="laion2b_s34b_b79k" if name.startswith("ViT") else "openai")
        start = ImageClassifier(clip, ClassificationHead(torch.randn(2, clip.dim)), ["a", "b"], alpha=0.)
    images = [photographs(Path(work, str(s)), n, s) for s in range(sets)]
    return start, nearby(start), Suite("photographs", ["a", "b"], None, images[0], images[0], images[0],
                                       {str(s): images[s] for s in range(1, sets)})


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


# ---------- plain PyTorch ----------

class Files(torch.utils.data.Dataset):
    def __init__(self, images, transform):
        self.images, self.transform = images, transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.transform(Image.open(self.images.paths[i]).convert("RGB")), self.images.labels[i]


@torch.no_grad()
def outputs(model, images, autocast=False):
    loader = DataLoader(Files(images, model.transform), batch_size=fitting_batch_size([model], model.transform))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return torch.cat([model(x) for x, _ in loader]).float()


def plain_sweep(start, end, suite, autocast=False):
    "Outputs of every ensemble at every α as a user of plain PyTorch gets them: (method, α, set) -> (n, n_classes)."
    a, b, model = start.state_dict(), end.state_dict(), start.copy().eval()
    inner, result = ALPHAS[1:-1], {}
    for name, images in suite.datasets().items():
        u, v = (outputs(c, images, autocast) for c in (start, end))
        result |= {("zero-shot", 0., name): u, ("fine-tuned", 1., name): v}
        for alpha in inner:
            result["logits", alpha, name] = average_logits(u, v, alpha)
            result["probabilities", alpha, name] = average_probabilities(u, v, alpha)
    for alpha in inner:
        model.load_state_dict({k: (1-alpha)*a[k] + alpha*b[k] if a[k].is_floating_point() else a[k] for k in a})
        for name, images in suite.datasets().items():
            result["weight-space", alpha, name] = outputs(model, images, autocast)
    return result


def ours(start, end, suite, alphas=ALPHAS, **kwargs):
    return sweep(start, end, suite, alphas, progress=False, keep_predictions=True, **kwargs)


def differing(plain, kept, margin=1e-4):
    "How many predictions differ although the two largest outputs are further apart than `margin`."
    count = 0
    for (method, alpha, name), z in plain.items():
        p = kept.frame(method=method, alpha=alpha)
        p = p[p.dataset == name]
        first, second = z.topk(2).values.T
        names = np.array(p.label.cat.categories)[z.argmax(1).numpy()]
        count += int(((names != p.predicted.to_numpy()) & ((first-second) > margin).numpy()).sum())
    return count


@contextmanager
def empty_cache():
    "A cache of its own, and empty."
    with tempfile.TemporaryDirectory() as folder:
        was, os.environ["WISEFT_CACHE"] = os.environ.get("WISEFT_CACHE"), folder
        try:
            yield
        finally:
            os.environ.pop("WISEFT_CACHE") if was is None else os.environ.update(WISEFT_CACHE=was)


# ---------- feeding ----------

def scaled(x, clip):
    "How pixels became floats before."
    mean, std = (torch.tensor(clip.preprocess[k]).view(3, 1, 1) for k in ("mean", "std"))
    return (x.float().div_(255) - mean)/std


def image_by_image(images, clip, batch_size=64):
    "How evaluation was fed before: decoded images one by one, stacked and normalized in the main process."
    def stack(items):
        return torch.stack([torch.from_numpy(np.array(a)) for a in items])
    for x in DataLoader(decode_once(Pixels(images, clip.transform), progress=False), batch_size, collate_fn=stack):
        scaled(x.permute(0, 3, 1, 2), clip)


def crops_one_by_one(source, clip, draws, batch_size=64):
    "How fine-tuning was fed before: one crop after the other, as floats and normalized in the main process."
    def crop(i):
        image = Image.fromarray(source.pixels(i, source.for_crops))
        box = crop_box(draws[i], *image.size, source.crop_scale)
        return np.asarray(image.resize(source.size[::-1], Image.Resampling.BICUBIC, box=box))
    for part in torch.arange(len(draws)).split(batch_size):
        x = torch.from_numpy(np.stack([crop(i) for i in part.tolist()])).permute(0, 3, 1, 2)
        scaled(x, clip)


class Unscaled(ClipTransform):
    "Pixels as they travel."
    def normalize(self, x):
        return x


def all_of(iterable):
    for _ in iterable:
        pass


# a pass takes some hundredths of a second, which other programs disturb: what its threads compute is counted instead
by_processor = partial(ratio, turns=7, clock=time.process_time)


def at_224():
    "A CLIP that takes pictures of 224 pixels, of which nothing but that is used."
    clip = load_clip("iconclip")
    clip.preprocess = dict(clip.preprocess, size=224)
    clip.transform = ClipTransform(clip.preprocess)
    return clip


@measure
def feeding(work):
    "Feeding, with no model: photographs of 224 pixels out of the cache, against the code of before, by processor time"
    clip, images = at_224(), photographs(work, 192, 0)
    images = images.subset([*range(192)]*3)  # nine batches: the first three are in memory that nobody has touched yet
    raw = Unscaled(clip.preprocess)
    old = lambda: reusing(image_by_image, images, clip)
    fed = lambda transform: reusing(all_of, batches(images, transform, [], 64, progress=False))
    fed(raw)
    time.sleep(4)  # the hash of a file that was just written is not remembered: the next pass checks it, no other does
    ready, whole = "8-bit pixels ready to travel", "the whole path, normalized on the CPU"
    yield f"evaluation: before / {ready}", "≥ 10", by_processor(old, lambda: fed(raw))
    yield f"evaluation: before / {whole}", "≥ 2", by_processor(old, lambda: fed(clip.transform))
    dl = clip_dataloaders(images, clip, 64, images.subset(range(8)), progress=False).train
    source, draws = dl.source, np.random.default_rng(0).random((len(images), 4))
    source.decode_once(crops=True)
    lists = [part.tolist() for part in torch.arange(len(images)).split(64)]
    old = lambda: reusing(crops_one_by_one, source, clip, draws)
    crops = lambda: reusing(all_of, Feeder(partial(source.batch, draws=draws), lists, "cpu"))
    yield f"training, with crops: before / {ready}", "≥ 4", by_processor(old, crops)
    yield f"training, with crops: before / {whole}", "≥ 2", by_processor(old, lambda: reusing(all_of, dl))


@measure
def kept_pixels(work):
    "An epoch of photographs without and with the cache, with crops and no model, by processor time"
    clip, images = at_224(), photographs(work, 384, 0)

    def epoch(cache_gb):
        os.environ["WISEFT_CACHE_GB"] = cache_gb
        dl = clip_dataloaders(images, clip, 64, images.subset(range(8)), progress=False).train
        dl.source.decode_once(crops=True)
        return dl
    without, kept = map(epoch, "01")
    yield ("time with nothing kept / with 100% of the images kept", "",
           by_processor(lambda: reusing(all_of, without), lambda: reusing(all_of, kept)))
    os.environ.pop("WISEFT_CACHE_GB")


@measure
def reading(work):
    "Reading: photographs that the cache has no room for, as crops of 224 pixels"
    clip, images = at_224(), photographs(work, 128, 0)
    source = clip_dataloaders(images, clip, 64, images.subset(range(8)), progress=False).train.source
    draws = np.random.default_rng(0).random((len(images), 4))

    def read(threads):
        with patch("wiseft.train.loaders.available_cores", return_value=threads):
            all_of(source.batch(part, draws) for part in np.arange(len(images)).reshape(-1, 64).tolist())

    def first_pass(threads):
        with patch("wiseft.data.pixels.available_cores", return_value=threads), empty_cache():
            decode_once(Pixels(images, clip.transform), progress=False)

    def hashes(threads):
        with ThreadPoolExecutor(threads) as pool:
            all_of(pool.map(sha256, [bytes(2**23)]*32))
    one_two = "time with one thread / with two"
    yield f"photographs: {one_two}", "≥ 1.6", ratio(lambda: read(1), lambda: read(2), 15)
    yield f"photographs into the cache: {one_two}", "≥ 1.6", ratio(lambda: first_pass(1), lambda: first_pass(2), 15)
    yield f"hashes of 256 MB, which is what the machine has to give: {one_two}", None, ratio(
        lambda: hashes(1), lambda: hashes(2), 15)


# ---------- sweeps ----------

def matrix_product(dtype, n=4096):
    "Operations a second in a large matrix product."
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    a @ b
    return 2*n**3/min(seconds(lambda: a @ b) for _ in range(5))


def forwards(model, x, batch_size):
    "Seconds of one pass of bare forward calls over all images."
    with torch.no_grad():
        model(x[:batch_size])
        return seconds(lambda: [model(b) for b in x.split(batch_size)])


def reusing(f, *args):
    with reuse_memory():
        return f(*args)


def by_turns(contestants, turns):
    "Processor seconds of each contestant (name -> function) in each turn; all take a turn before any takes its next."
    return [{name: seconds(f, time.process_time) for name, f in contestants.items()} for _ in range(turns)]


def against_plain(start, end, suite, what, turns=3):
    "Rows that compare a first sweep, decoding included, with plain PyTorch."
    results = {}

    def plainly(autocast):
        results["plain"] = plain_sweep(start, end, suite, autocast)

    def first_sweep(precision):
        with empty_cache():
            results[precision] = ours(start, end, suite, precision=precision)[1]
    times = by_turns({
        "bf16": lambda: plainly(True), "ours bf16": lambda: first_sweep("bf16"),
        "fp32": lambda: plainly(False), "ours fp32": lambda: first_sweep("fp32")}, turns)
    for plain, own in ("fp32", "fp32"), ("bf16", "bf16"), ("fp32", "bf16"):
        ratios = [t[plain]/t[f"ours {own}"] for t in times]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} turns"
        yield f"{what}: plain PyTorch in {plain} / ours in {own} ({spread})", None, median(ratios)
    differences = differing(results["plain"], results["fp32"])
    yield f"{what}: predictions in fp32 that differ at a margin above 1e-4", "0", differences


@measure
def plain_vit(work):
    "A first sweep of ViT-B/32 against plain PyTorch: 11 α, 2 sets of 64 photographs, processor time"
    yield from against_plain(*tower("ViT-B-32", work, sets=2, n=64), "ViT-B/32")


@measure
def plain_embedded(work):
    "The same with the embedded CLIP and suite"
    yield from against_plain(*icons(), "embedded CLIP", turns=2)


def sweep_and_limits(start, end, suite, what, bars, precisions=("fp32", "bf16")):
    "Rows that compare sweeps of one pair of classifiers over one suite with what the machine can do."
    n = sum(map(len, suite.datasets().values()))
    for precision in precisions:
        chosen, label = {} if precision == "fp32" else dict(precision=precision), f"{what}, ours in {precision}"
        with empty_cache():
            first = seconds(lambda: ours(start, end, suite, **chosen))
            second = seconds(lambda: ours(start, end, suite, **chosen))
            reading = seconds(
                lambda: [list(batches(s, start.transform, [], 256, progress=False)) for s in suite.datasets().values()])
            x = torch.cat(
                [b for s in suite.datasets().values() for _, b in batches(s, start.transform, [], 256, progress=False)])
        with empty_cache():
            decoding = seconds(
                lambda: [list(batches(s, start.transform, [], 256, progress=False)) for s in suite.datasets().values()])
        bare = forwards(start if precision == "fp32" else start.to_bf16(), x,
                        fitting_batch_size([start], start.transform))
        peak = matrix_product(torch.float32 if precision == "fp32" else torch.bfloat16)
        yield f"{label}: ours / (one decode + {len(ALPHAS)} bare forward passes)", bars.get("bare"), first/(decoding
            + len(ALPHAS)*bare)
        yield f"{label}: second sweep, share of the time that reading the decoded images takes", bars.get(
            "wait"), reading/second
        yield f"{label}: arithmetic of the second sweep / of a large matrix product", bars.get(
            ("arithmetic", precision)), operations(start)[0]*n*len(ALPHAS)/second/peak


@measure
def vit(work):
    "Sweep of ViT-B/32 over 4 sets of 128 photographs, against the limits of the machine"
    yield from sweep_and_limits(*tower("ViT-B-32", work), "ViT-B/32", {
        ("arithmetic", "fp32"): "≥ 0.85", ("arithmetic", "bf16"): "≥ 0.75", "bare": "≤ 1.10", "wait": "≤ 0.03"})


@measure
def rn50(work):
    "A sweep of CLIP's ResNet-50, 2 sets of 64 photographs"
    yield from sweep_and_limits(*tower("RN50", work, sets=2, n=64), "RN50", {"bare": "≤ 1.10", "wait": "≤ 0.03"})


@measure
def embedded(work):
    "A sweep of the embedded CLIP over the embedded suite, and how often bf16 predicts as fp32 does"
    start, end, suite = icons()
    yield from sweep_and_limits(start, end, suite, "embedded CLIP and suite", {"bare": "≤ 1.10", "wait": "≤ 0.03"})
    both, same = dict(fp32=start, bf16=start.to_bf16()), []
    for images in suite.datasets().values():
        out, *_ = outputs_for_all(both, images, start.transform, progress=False)
        same.append(out["fp32"].argmax(1) == out["bf16"].argmax(1))
    yield "embedded CLIP and suite: share of predictions in bf16 that are as in fp32", "≥ 0.99", torch.cat(same).float(
        ).mean().item()


@measure
def forward_pass(work):
    "Where a forward pass spends its time, and what the batch size does to it"
    kinds = {"matrix products": ("addmm", "mm", "bmm", "baddbmm"), "GELU": ("gelu",), "copies": ("copy_",),
             "attention": ("_scaled_dot_product_flash_attention_for_cpu",),
             "convolutions": ("mkldnn_convolution",), "BatchNorm": ("native_batch_norm",),
             "ReLU": ("clamp_min_", "relu_"), "pooling": ("avg_pool2d",)}
    towers = (("ViT-B/32", lambda: tower("ViT-B-32", work, sets=1, n=8)[0], 256),
              ("ResNet-50", lambda: tower("RN50", work, sets=1, n=8)[0], 64),
              ("embedded CLIP", lambda: icons()[0], 256))
    for name, make, n in towers:
        start = make()
        x, size = torch.randn(n, 3, *start.clip.image_size).contiguous(
            memory_format=torch.channels_last), fitting_batch_size([start], start.transform)
        for precision, model in (("fp32", start.eval()), ("bf16", start.to_bf16().eval())):
            @torch.no_grad()
            def all_images(batch_size):
                return [model(b) for b in x.split(batch_size)]
            yield f"{name}, {precision}: time, freed memory handed back / kept for the next layer", None, ratio(
                lambda: all_images(size), lambda: reusing(all_images, size))
            yield f"{name}, {precision}: time of {n} images at once / 32 at a time", None, ratio(
                lambda: reusing(all_images, n), lambda: reusing(all_images, 32))
            with torch.no_grad(), torch.profiler.profile() as profile:
                model(x[:size])
            spent = {e.key.removeprefix("aten::"): e.self_cpu_time_total for e in profile.key_averages()}
            for kind, operators in kinds.items():
                if share := sum(spent.get(o, 0) for o in operators)/sum(spent.values()):
                    yield f"{name}, {precision}: share of {kind}", None, share


@measure
def pooled(work):
    "A pass of an image tower that computes only what it pools, against open_clip's own"
    towers = (("ViT-B/32", lambda: tower("ViT-B-32", work, sets=1, n=8)[0], 32),
              ("ResNet-50", lambda: tower("RN50", work, sets=1, n=8)[0], 16),
              ("embedded CLIP", lambda: icons()[0], 64))
    for name, make, n in towers:
        start = make()
        x = torch.randn(n, 3, *start.clip.image_size).contiguous(memory_format=torch.channels_last)
        for precision, model in (("fp32", start.eval()), ("bf16", start.to_bf16().eval())):
            ours, theirs = model.visual, without_pooling_shortcut(deepcopy(model.visual))
            x = x.to(next(ours.parameters()).dtype)

            def forward(visual):
                with torch.no_grad():
                    visual(x)

            def step(visual):
                visual(x).float().square().mean().backward()

            for what, f in (("forward pass", forward), ("forward and backward pass", step)):
                spent = by_turns(dict(ours=partial(reusing, f, ours), theirs=partial(reusing, f, theirs)), 6)[1:]
                yield f"{name}, {precision}: {what}, ours / open_clip's", "< 1", median(
                    turn["ours"]/turn["theirs"] for turn in spent)


@measure
def shared_prefix(work):
    "What is gained where two classifiers agree in their first layers"
    start, end, suite = tower("ViT-B-32", work, sets=1, n=64)
    last = nearby(start, "visual.transformer.resblocks.11")
    what = "ViT-B/32, 64 photographs: sweep between unlike classifiers / between two that differ in the last block"
    yield what, "≥ 3", ratio(lambda: ours(start, end, suite), lambda: ours(start, last, suite), turns=1)


@measure
def growth(work):
    "How time and memory grow with images, α and shifts"
    start, end, suite = icons()
    name, images = max(suite.shifts.items(), key=lambda s: len(s[1]))
    part = lambda n, sets: replace(suite, validation=suite.validation, test=images.subset(range(n)),
                                   shifts={str(i): images.subset(range(n)) for i in range(sets)})
    sweeps = dict(images=[(n, part(n, 3), 6) for n in (300, 600, 1200)],
                  alphas=[(k, part(600, 3), k) for k in (4, 8, 16)], shifts=[(k+1, part(600, k), 6) for k in (1, 3, 7)])
    ours(start, end, part(300, 1))
    def time(suite, k): return seconds(lambda: ours(start, end, suite, np.linspace(0, 1, k), precision="bf16"))
    def median_of_three(suite, k): return median(time(suite, k) for _ in range(3))
    for of, runs in sweeps.items():
        times = [median_of_three(s, k) for _, s, k in runs]
        slope = np.polyfit(np.log([x for x, *_ in runs]), np.log(times), 1)[0]
        each = ", ".join(f"{x}: {t:.2f} s" for (x, *_), t in zip(runs, times))
        yield f"time against {of}: exponent ({each})", "≤ 1", slope
    grown = {300: [], 1200: []}
    for _ in range(5):
        for n in grown:
            some = part(n, 3)  # whose pixels are no part of what a sweep takes
            with memory_growth() as peak:
                sweep(start, end, some, ALPHAS, progress=False, batch_size=150)
            grown[n].append(peak[0])
    few, many = map(median, grown.values())
    yield f"memory that a sweep of 4,800 images takes / one of 1,200 ({few/1e6:.0f} MB)", "flat", many/few


@measure
def scores_memory(work):
    "Memory of a sweep with five metrics, four times the images"
    start, end, suite = icons()
    images = max(suite.shifts.values(), key=len)
    metrics = ["accuracy", "top-5", "NLL", "Brier", "ECE (15 bins)"]
    for precision in ("fp32", "bf16"):
        grown = {100: [], 400: []}
        for _ in range(3):
            for n in grown:
                some = replace(suite, test=images.subset(range(n)), shifts={})
                with memory_growth() as peak:
                    sweep(start, end, some, [0, .5, 1], metrics=metrics, precision=precision, progress=False,
                          batch_size=50)
                grown[n].append(peak[0])
        few, many = map(median, grown.values())
        yield f"{precision}: memory that 400 images take / 100 ({few/1e6:.0f} MB)", "≤ 1.1", many/few


# ---------- weights ----------

@measure
def interpolation(work):
    "Interpolating two ViT-B/32"
    a, b, target = (open_clip.create_model("ViT-B-32", load_weights=False, pretrained_text=False).visual
                    for _ in range(3))
    path, state = WeightPath(target, a.state_dict(), b.state_dict()), list(a.state_dict().values())
    into = [torch.empty_like(t) for t in state]
    yield "interpolating two ViT-B/32 image towers / copying the same bytes once", "≤ 1.6", ratio(lambda: path(.3),
        lambda: [t.copy_(s) for t, s in zip(into, state)], turns=9)


@measure
def merging(work):
    "Merging two files of 1 GB"
    paths = [Path(work, f"{c}.safetensors") for c in "ab"]
    for i, path in enumerate(paths):
        save_file({f"{k:02}": torch.full((1024, 4096), float(i+k)) for k in range(60)}, path)

    def copy():
        for path in paths:
            with open(path, "rb") as f:
                while f.read(1 << 24):
                    pass
        with open(paths[0], "rb") as f, open(Path(work, "copy"), "wb") as g:
            while piece := f.read(1 << 24):
                g.write(piece)
            g.flush(), os.fsync(g.fileno())
    merge = lambda: merge_files(paths, [.5, .5], Path(work, "out.safetensors"), force=True)
    with memory_growth() as peak:
        merge()
    yield "further memory, in MB, where 3 of the largest tensors + 50 MB are 100", "≤ 100", peak[0]/1e6
    yield "time / reading both files and writing one", "≤ 1.5", 1/ratio(copy, merge, turns=9)


# ---------- fine-tuning ----------

def usual_training(start, images, epochs, lr, batch_size=128):
    "A plain fp32 loop: DataLoader with the model's own training transform, AdamW, cosine."
    model = start.copy().train()
    for m in model.modules():
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm):
            m.eval()
    loader = DataLoader(Files(images, start.clip.train_transform), batch_size, shuffle=True)
    opt = torch.optim.AdamW(model.parameters(), lr, weight_decay=.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=epochs*len(loader), pct_start=.1)
    for _ in range(epochs):
        for x, y in loader:
            torch.nn.functional.cross_entropy(model(x), y).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
            opt.step(), opt.zero_grad(), schedule.step()
    return model.eval()


def our_training(start, images, epochs, lr, batch_size=128):
    learn = clip_learner(start, clip_dataloaders(images, start, batch_size, images.subset(range(8)), progress=False),
                         precision="bf16", progress=False)
    return learn.fit_cosine(epochs, lr).classifier.eval()


def bare_training(start, images, epochs, batch_size=128):
    "Nothing but the steps, in bf16, on one batch that is in memory: what no loop can go below"
    model = start.copy().eval()
    opt = torch.optim.AdamW(model.parameters(), 1e-6, fused=True)
    x, y = torch.randn(batch_size, 3, *start.clip.image_size).contiguous(
        memory_format=torch.channels_last), torch.zeros(batch_size, dtype=torch.long)
    for _ in range(epochs*len(images)//batch_size):
        with torch.autocast("cpu", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(x).float(), y)
        loss.backward()
        opt.step(), opt.zero_grad()


@measure
def shards(work):
    "Decoding photographs out of shards, against the same photographs as files"
    files = photographs(Path(work, "files"), 96, 0)
    for k in range(4):
        Path(work, "shards").mkdir(exist_ok=True)
        with tarfile.open(Path(work, f"shards/{k}.tar"), "w") as tar:
            for name in files.files()[k::4]:
                tar.add(files.root/name, name)
    packed, order = image_folder(Path(work, "shards")), np.random.default_rng(0).permutation(len(files))

    def into_the_cache(images, workers):
        with empty_cache():
            decode_once(Pixels(images, ShortSide(224)), workers, progress=False)
    in_order = lambda images: [images.open(i) for i in range(len(images))]
    at_random = lambda images: [images.open(i) for i in order]
    ways = {"one after the other": in_order, "in random order": at_random,
            "into the cache, with hashes": partial(into_the_cache, workers=0),
            "the same with two processes": partial(into_the_cache, workers=2)}
    for what, read in ways.items():
        yield f"{what}: time from files / from shards", "≥ 0.95", ratio(lambda: read(files), lambda: read(packed), 15)


@measure
def training(work):
    "Fine-tuning, images per second with bf16 autocast against a plain fp32 loop"
    start, _, suite = tower("ViT-B-32", work, sets=1, n=128)
    yield "ViT-B/32, 128 photographs: ours / plain fp32 loop", "≥ 1.5", ratio(
        lambda: usual_training(start, suite.train, 1, 1e-5, 64), lambda: our_training(start, suite.train, 1, 1e-5, 64),
        turns=1)
    start, _, suite = icons()
    plan = protocol()
    suite = suite.restrict_train(plan["narrow_reference"]["families"])
    made, recipe = {}, (suite.train, plan["recipe"]["epochs"], plan["recipe"]["lr"])
    train = lambda name, f: seconds(lambda: made.update({name: f(start, *recipe)}))
    turns = [
        (train("usual", usual_training), train("ours", our_training),
         seconds(lambda: bare_training(start, *recipe[:2]))) for _ in range(3)]
    yield "embedded CLIP, the protocol's fine-tuning of 20 epochs: ours / plain fp32 loop", "≥ 2", median(usual/ours
        for usual, ours, _ in turns)
    yield "embedded CLIP: as many bare steps in bf16, on one batch in memory / plain fp32 loop", None, median(usual/bare
        for usual, _, bare in turns)
    _, kept = evaluate(made, suite, keep_predictions=True, progress=False)
    p = kept.frame()
    right = [p[(p.classifier == name) & (p.role == "reference")].correct.to_numpy(float) for name in ("usual", "ours")]
    difference, low, high = mean_difference(*({"": r} for r in right))
    what = f"accuracy on the reference, ours − plain (interval {100*low:.1f} to {100*high:.1f}), points"
    yield what, "interval has 0", 100*difference


@measure
def real(work):
    "Real pictures, 227 pixels: the four styles of PACS, beside the plain ways"
    shifts = {s: image_folder(IMAGES/s).subset(range(256)) for s in ("cartoon", "photo", "sketch")}
    art = image_folder(IMAGES/"art_painting")
    suite = Suite("PACS", art.classnames, None, art, art.subset(range(0, len(art), 8)), art.subset(range(256)), shifts)
    clip, some = at_224(), art.subset(range(0, len(art), 4))
    read = {"plain": lambda: all_of(DataLoader(Files(some, clip.transform), 64)),
            "ours": lambda: all_of(batches(some, clip.transform, [], 64, progress=False))}

    def first_pass():
        with empty_cache():
            read["ours"]()
    yield "a first pass at 224 pixels: DataLoader with the model's transform / ours, into the cache", None, ratio(
        read["plain"], first_pass, 7)
    yield "a later pass: the same / ours, out of the cache", None, ratio(read["plain"], read["ours"], 7)
    start = zeroshot_classifier(load_clip("iconclip"), suite.classnames)
    yield "fine-tuning the embedded CLIP for five epochs, with decoding: plain fp32 loop / ours", None, ratio(
        lambda: usual_training(start, art, 5, 3e-4), lambda: our_training(start, art, 5, 3e-4), turns=1)
    yield from against_plain(start, nearby(start), suite, "embedded CLIP")


@measure
def loading(work):
    "Loading, with all that is verified"
    start, _, _ = tower("ViT-B-32", work, sets=1, n=2)
    embedded = load_clip("iconclip").save(Path(work, "icons"))
    folders = {"embedded CLIP": embedded, "ViT-B/32": start.clip.save(Path(work, "vit"))}

    def unverified(folder):
        "As it was before: no second look at the architecture, and random weights drawn before they are replaced."
        with patch("wiseft.models.clip.check_parameters"), patch("wiseft.models.build._NoDraws", nullcontext):
            load_clip(folder)
    for name, folder in folders.items():
        costs = 1/ratio(lambda: unverified(folder), lambda: load_clip(folder), turns=9)
        yield f"{name}: a folder loaded with its architecture verified / before that", "≤ 1.05", costs
    saved = zeroshot_classifier(load_clip("iconclip"), ["a", "b"], ["{}"]).save(Path(work, "classifier"))

    def unhashed():
        with patch("wiseft.models.load.check_saved"), patch("wiseft.models.load.sha256_file"):
            load_classifier(saved)
    costs = 1/ratio(unhashed, lambda: load_classifier(saved), turns=9)
    yield "embedded CLIP: a classifier loaded with its files' hashes compared / without", "≤ 1.05", costs


@measure
def start_up(work):
    "Starting the command"
    wiseft = Path(sys.executable).with_name("wiseft")
    yield "`wiseft --help` / `python -c pass`", "≤ 20", 1/ratio(
        lambda: subprocess.run([sys.executable, "-c", "pass"], check=True),
        lambda: subprocess.run([wiseft, "--help"], stdout=subprocess.DEVNULL, check=True), turns=9)


# ---------- the table ----------

def machine():
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
                 platform.processor()) if os.path.exists("/proc/cpuinfo") else platform.processor()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {versions}"


def shown(row):
    what, bar, value = row
    return f"| {what} | {bar or ''} | {value:.3g} |\n"


def write(new):
    "RESULTS.md with sections (heading -> text) added or replaced."
    before = (HERE/"RESULTS.md").read_text(encoding="utf-8") if (HERE/"RESULTS.md").exists() else ""
    sections = dict(part.rstrip("\n").split("\n", 1) for part in before.split("\n## ")[1:])
    titles = {f.__doc__ for f in MEASURES.values()} # what is no longer measured leaves the page
    sections = {title: text + "\n" for title, text in sections.items() if title in titles} | new
    made = "Made by `make bench`, or by `python benchmarks/bench.py MEASURE` for a part of them."
    head = f"# Results\n\n{made} See bench.py for what is measured against what.\n"
    text = "".join(f"\n## {title}\n{part}" for title, part in (sections | {"Limits": LIMITS}).items())
    (HERE/"RESULTS.md").write_text(head + text, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measures", nargs="*", choices=[*MEASURES, []])
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--images", type=Path, help="PACS, four folders, for `real`, which is left out without it")
    args = parser.parse_args()
    global IMAGES
    IMAGES = args.images
    if args.list:
        return print("\n".join(f"{name:15} {f.__doc__}" for name, f in MEASURES.items()))
    # each in a process of its own, so that none leaves anything to the next
    if len(names := args.measures or [name for name in MEASURES if name != "real" or IMAGES]) > 1:
        for name in names:
            subprocess.run([sys.executable, __file__, name, *(["--images", IMAGES] if IMAGES else [])], check=True)
        return
    title = MEASURES[names[0]].__doc__
    print(f"{names[0]}: {title}", flush=True)
    sections = {title: f"\n{datetime.date.today()}, {machine()}\n\n| measure | bar | measured |\n|---|---|---|\n"}
    with tempfile.TemporaryDirectory() as work, empty_cache():
        for row in map(shown, MEASURES[names[0]](work)):
            sections[title] += row
            print(row, end="", flush=True)
    write(sections)


if __name__ == "__main__":
    main()
