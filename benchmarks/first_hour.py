"""The first hour on a card: what has to hold there is tried, and a page is written that can be sent.

  first_hour.py [-o PAGE] [PART ...]    all parts, or some, on the accelerator that PyTorch finds

Where there is none, the tests' second device takes its place, with tiny towers: that tries this program, and says
nothing of a card. What a part can't try it says; a part that fails doesn't keep the others from running.
"""
import argparse
import contextlib
import datetime
import io
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from socket import socket

HERE = Path(__file__).resolve().parent
CHECKS = HERE.parent/"tests/other_device"
sys.path.insert(0, str(CHECKS))
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # where pip puts ninja
os.environ.setdefault("OTHER_DEVICE_BUILD", tempfile.mkdtemp())

import torch

ON_CARD = torch.accelerator.is_available()
if not ON_CARD:
    import other_device  # noqa: F401, for what it registers
    os.environ["WISEFT_DEVICE"] = "other"

import gpu
from bench import seconds
from fastai.callback.core import Callback
from wiseft.base.devices import best_device, describe_device
from wiseft.infer.inference import evaluation_context
from wiseft.train.learner import finetune

PARTS = {}


class NotTried(Exception):
    "There is no reason to, or no way."


def part(f):
    "Register a part: a function of the card that gives lines for the page."
    PARTS[f.__name__] = f
    return f


def run(*command, **env):
    "The end of what a program says, if it succeeds."
    done = subprocess.run(list(map(str, command)), text=True, capture_output=True, env=os.environ | env, timeout=1800)
    said = (done.stdout + done.stderr).strip().splitlines()
    if done.returncode:
        raise RuntimeError("\n".join(said[-15:]))
    return said[-1:]


@part
def checks(card):
    "All that computes, beside the CPU: what the tests try on their second device"
    return run(sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider", CHECKS/"checks.py",
               WISEFT_CHECKED=card.device.type, WISEFT_DEVICE="cpu", OMP_NUM_THREADS="1")


# ---------- training ----------

def images_a_second(card, name, batch_size, **kwargs):
    "Of a fine-tuning of two epochs."
    start, _ = card.ends(name)
    watched = card.images.subset(range(8))
    took = seconds(lambda: finetune(start, card.images, watched, epochs=2, lr=1e-6, batch_size=batch_size,
                                    progress=False, **kwargs))
    return 2*len(card.images)/took


@part
def two_epochs(card):
    "Fine-tuning of two epochs, reading included"
    yield from (f"{name}: {images_a_second(card, name, card.batch//2):,.0f} images per second" for name in card.towers)


class NoWaits(Callback):
    "Errors for whoever waits for the card, in the steps between two looks at the numbers there."
    order, tried = -100, 0

    def before_batch(self):
        quiet = self.training and self.train_iter and len(self.learn.watch.steps) < 9
        torch.cuda.set_sync_debug_mode("error" if quiet else "default")
        self.tried += bool(quiet)

    def after_batch(self):
        torch.cuda.set_sync_debug_mode("default")


@part
def no_waits(card):
    "Ten steps, in which nothing may wait for the card (`torch.cuda.set_sync_debug_mode('error')`)"
    if card.device.type != "cuda":
        raise NotTried("There is no CUDA here; on the second device the tests count waits.")
    (start, _), watched, waits = card.ends(card.towers[0]), card.images.subset(range(8)), NoWaits()
    finetune(start, card.images.subset(range(20*8)), watched, epochs=1, lr=1e-6, batch_size=8, progress=False,
             cbs=waits)
    return [f"{waits.tried} steps without a wait; every tenth fetches its numbers"]


# ---------- two processes ----------

ENDS = """
import os, signal, sys, torch
from wiseft.base.distributed import distributed, from_all_processes, rank, start
from wiseft.base.devices import best_device
start()
device = best_device()
model, _ = distributed(torch.nn.Linear(1000, 1000).to(device))
for step in range(1000 if sys.argv[1] != 'none' else 20):
    if step == 10 and rank() == 1 and sys.argv[1] == 'killed': os.kill(os.getpid(), signal.SIGKILL)
    if step == 10 and rank() == 1 and sys.argv[1] == 'raising': raise ValueError('Enough.')
    model(torch.ones(8, 1000, device=device)).sum().backward()
    if sys.argv[1] != 'none': float(next(model.parameters()).grad.sum()) # waits in a kernel, as at a look
from_all_processes('done')
"""


def two_ranks(what, work):
    "Seconds until a launcher with two processes is done, whether it succeeded, and what was said."
    (work/"ends.py").write_text(ENDS)
    with socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {} if torch.cuda.device_count() > 1 else dict(WISEFT_DEVICE="cpu")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    began = time.perf_counter()
    done = subprocess.run([*command, str(work/"ends.py"), what], text=True, capture_output=True, timeout=600,
                          env=os.environ | env)
    return time.perf_counter()-began, done.returncode == 0, done.stderr


@part
def ranks(card):
    "Two processes: working, one killed, one raising; how long until all have ended"
    yield "with NCCL" if torch.cuda.device_count() > 1 else "with gloo, on the CPU: there are no two GPUs of CUDA"
    for what in ("none", "killed", "raising"):
        took, succeeded, said = two_ranks(what, card.work)
        if succeeded != (what == "none"):
            raise RuntimeError(f"{what}: {said[-1000:]}")
        if what == "raising" and said.count("ValueError: Enough.") != 1:
            raise RuntimeError(f"The message should be there once:\n{said[-1000:]}")
        yield f"{what}: over after {took:.0f} s"


# ---------- how fast ----------

@part
def measures(card):
    "How well the card is used (`benchmarks/gpu.py`)"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        gpu.main([] if ON_CARD else ["--tiny"])
    rows = [re.sub(r"^\| | \|$", "", line) for line in said.getvalue().splitlines() if line.startswith("|")]
    return [row.replace(" | ", " — ") for row in rows]


@part
def largest(card):
    "ViT-L/14 at 336 pixels, bf16"
    name = "ViT-L-14-336" if ON_CARD else "tiny"
    yield f"fine-tuning: {images_a_second(card, name, min(64, card.batch)):,.0f} images per second"
    start, _ = card.ends(name)
    half, (x, _) = start.to_bf16(), card.one_batch(start)
    with evaluation_context([half]):
        yield f"evaluation: {len(x)/card.seconds(lambda: half(x)):,.0f} images per second"
    if card.device.type == "cuda":
        yield f"most memory: {torch.cuda.max_memory_allocated()/1e9:.1f} GB"


@part
def compiled(card):
    "What torch.compile would be worth in a forward pass, bf16"
    if not ON_CARD:
        raise NotTried("PyTorch compiles nothing for the second device.")
    for name in card.towers:
        start, _ = card.ends(name)
        half, (x, _) = start.to_bf16().eval(), card.one_batch(start)
        with evaluation_context([half]):
            usual = card.seconds(lambda: half(x))
            half.visual.compile(mode="max-autotune-no-cudagraphs")
            yield f"{name}: {usual/card.seconds(lambda: half(x)):.2f} times as fast"


# ---------- the page ----------

def tried(name, card):
    "A section of the page, and whether all is well."
    began = time.perf_counter()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            lines, well = list(PARTS[name](card)), "passed"
    except NotTried as e:
        lines, well = [str(e)], "not tried"
    except Exception as e:
        last = "".join(traceback.format_exception_only(e)).strip().splitlines()
        lines, well = [f"`{line}`" for line in [*last[:1], *last[1:][-14:]]], "FAILED"
    listed = "\n".join(f"- {line}" for line in lines)
    return f"## {PARTS[name].__doc__}\n\n**{well}**, {time.perf_counter()-began:.0f} s\n\n{listed}\n", well


def about(card):
    "What this was run on."
    lines = [describe_device(card.device, "bf16"), f"torch {torch.__version__}, Python {sys.version.split()[0]}"]
    if card.device.type == "cuda":
        p, nccl = torch.cuda.get_device_properties(card.device), ".".join(map(str, torch.cuda.nccl.version()))
        lines += [f"{torch.cuda.device_count()} × {p.name}, {p.total_memory/1e9:.0f} GB, {p.major}.{p.minor}",
                  f"CUDA {torch.version.cuda}, NCCL {nccl}"]
    if not ON_CARD:
        lines += ["**No card: the tests' second device, with tiny towers. The numbers say nothing.**"]
    return "\n".join(f"- {line}" for line in [*lines, f"{os.cpu_count()} cores, {datetime.date.today()}"])


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []])
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu-report.md"))
    args = parser.parse_args(args)
    with tempfile.TemporaryDirectory() as work:
        card, found = gpu.Card(best_device(), work, tiny=not ON_CARD), {}
        page = f"# wiseft on a card\n\n{about(card)}\n"
        for name in args.parts or PARTS:
            section, found[name] = tried(name, card)
            page += f"\n{section}"
            args.output.write_text(page)
            print(f"{name}: {found[name]}", flush=True)
    print(f"wrote {args.output}: send it, whatever it says")
    return "FAILED" in found.values()


if __name__ == "__main__":
    sys.exit(main())
