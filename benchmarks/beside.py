"""How fast this checkout is beside another one of the repository, in turns on the same processor.

  git worktree add ../old e00125d
  beside.py [PIECE ...] --beside ../old     a row of beside.csv for each piece (`--list` names them)

Each checkout has a process of its own, with its own library and its own bench.py, and both stay while a piece is
measured; after a turn of each to warm up they take turns. What counts is processor time, which other work on the
machine disturbs less than the clock. A ratio above 1 says that this checkout is faster. `merging` writes a gigabyte a
turn, for which a disk's file system takes .5 to 3.9 s as it likes: put TMPDIR into memory (/dev/shm) for it.
"""
import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import pandas as pd

HERE, PIECES = Path(__file__).resolve().parent, {}


def piece(f):
    "Register a piece of work: a function of bench.py's module and a folder, which returns what is measured."
    PIECES[f.__name__] = f
    return f


@piece
def embedded_sweep(bench, work):
    "Sweep between two embedded CLIPs, 11 α, the embedded suite"
    return lambda: bench.ours(*bench.icons())


@piece
def vit_sweep(bench, work):
    "Sweep between two ViT-B/32, 11 α, 2 sets of 16 photographs"
    ends = bench.tower("ViT-B-32", work, sets=2, n=16)
    return lambda: bench.ours(*ends)


@piece
def training(bench, work):
    "Fine-tuning the embedded CLIP for two epochs in fp32"
    start, _, suite = bench.icons()
    narrow = suite.restrict_train(bench.protocol()["narrow_reference"]["families"]).train

    def train():
        dls = bench.clip_dataloaders(narrow, start, 128, narrow.subset(range(8)), progress=False)
        bench.clip_learner(start, dls, precision="fp32", progress=False).fit_cosine(2, 3e-4)
    return train


@piece
def interpolation(bench, work):
    "Interpolating two ViT-B/32 image towers, 20 times"
    a, b, target = (bench.open_clip.create_model("ViT-B-32", load_weights=False, pretrained_text=False).visual
                    for _ in range(3))
    path = bench.WeightPath(target, a.state_dict(), b.state_dict())
    return lambda: [path(i/20) for i in range(20)]


@piece
def merging(bench, work):
    "Merging two files of 1 GB"
    paths = [Path(work, f"{c}.safetensors") for c in "ab"]
    for i, path in enumerate(paths):
        bench.save_file({f"{k:02}": bench.torch.full((1024, 4096), float(i+k)) for k in range(60)}, path)
    return lambda: bench.merge_files(paths, [.5, .5], Path(work, "out.safetensors"), force=True)


@piece
def loading(bench, work):
    "Loading the embedded CLIP, 20 times"
    return lambda: [bench.load_clip("iconclip") for _ in range(20)]


@piece
def first_pass(bench, work):
    "A first pass over 300 JPEGs, into the cache for 224 pixels"
    images = bench.photographs(Path(work, "photographs"), 300, 0)
    transform = bench.ClipTransform(dict(bench.load_clip("iconclip").preprocess, size=224))

    def decode():
        with bench.empty_cache():
            bench.decode_once(bench.Pixels(images, transform), progress=False)
    return decode


# ---------- turns ----------

def work(name, root):
    "The process of a checkout: a turn for each line that comes in, and its processor seconds as a line that goes out"
    sys.path[:0] = [str(root), str(root/"benchmarks")]
    import bench
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as work, bench.empty_cache():
        run = PIECES[name](bench, work)
        for _ in sys.stdin:
            began = time.process_time()
            run()
            print(time.process_time() - began, flush=True)


class Checkout:
    "A checkout's process for one piece"
    def __init__(self, name, root):
        command = [sys.executable, __file__, name, "--work", str(root)]
        self.process = subprocess.Popen(command, cwd=root, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def turn(self):
        "Processor seconds"
        print(file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def commit(root):
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True,
                          check=True).stdout.strip()


def compared(name, other, turns):
    "A row: medians of both, and the median of their ratios"
    here, there = Checkout(name, HERE.parent), Checkout(name, other)
    there.turn(), here.turn()
    seconds = [(there.turn(), here.turn()) for _ in range(turns)]
    there.end(), here.end()
    before, now = map(median, zip(*seconds))
    return dict(piece=PIECES[name].__doc__, before=commit(other), now=commit(HERE.parent), turns=turns,
                seconds_before=round(before, 2), seconds_now=round(now, 2),
                ratio=round(median(b/n for b, n in seconds), 3))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pieces", nargs="*", choices=[*PIECES, []])
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="the other one")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.list:
        return print("\n".join(f"{name:15} {f.__doc__}" for name, f in PIECES.items()))
    if args.work:
        return work(args.pieces[0], args.work)
    out = HERE/"beside.csv"
    for name in args.pieces or PIECES:
        row = compared(name, args.beside.resolve(), args.turns)
        print(row, flush=True)
        rows = pd.DataFrame([row])
        if out.exists():
            others = pd.read_csv(out)
            rows = pd.concat([others[others.piece != row["piece"]], rows])
        rows.to_csv(out, index=False)


if __name__ == "__main__":
    main()
