#!/usr/bin/env python
"""Run notebooks and store what they print.

  refresh.py [NOTEBOOK ...]           run in place and store the outputs (default: all of nbs/)
  refresh.py --check NOTEBOOK ...     run, store nothing, fail where the stored outputs are not what the code prints

A check compares words exactly, numbers but for rounding, tables entry by entry, pictures by what they plot.

Each notebook runs in a process of its own; for the tests, in a fork of one that has imported what is heavy and is not
ours, which would take longer than most notebooks. Cells marked `#| eval: false` or with one of settings.ini's
`tst_flags` are not run and keep their outputs.
"""
import argparse
import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from base64 import b64decode, b64encode
from collections import Counter
from configparser import ConfigParser
from importlib import import_module
from io import BytesIO
from pathlib import Path

import inputs

os.environ.setdefault("OMP_NUM_THREADS", "1")  # training gives other numbers with two
ROOT = Path(__file__).resolve().parent.parent
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?: ?%)?")
ROOM = 0.02  # how far numbers that aren't whole may be apart, as a part of the larger: processors round differently
TRAINING = re.compile(
    r"\b(finetune|bench|run_trial)\(|\bfit(?!_baseline)\w*\(\w|\bbackward\(\)|wiseft\(f?'(finetune|demo|bench|run)"
)
# what is heavy and not ours; without fastai, which changes torch.Tensor for those who don't import it
HEAVY = ("execnb.shell nbdev.clean fastcore.test open_clip seaborn scipy.stats "
         "statsmodels.stats.proportion typer.testing")
LIMIT = 900  # seconds for one notebook


def notebooks():
    "All notebooks of the project."
    found = (p.relative_to(ROOT) for p in (ROOT / "nbs").rglob("*.ipynb"))
    return sorted(ROOT / p for p in found if not re.search(r"(^|/)[._]", p.as_posix()))


def flags():
    "Options that mark cells which are not to be run."
    cfg = ConfigParser(delimiters=["="])
    cfg.read(ROOT / "settings.ini", encoding="utf-8")
    return set(cfg["DEFAULT"]["tst_flags"].split())


def skipped(cell, flags):
    "Whether a cell is not to be run."
    options = [o.strip() for o in re.findall(r"^#\|(.+)", cell.source, re.M)]
    return cell.cell_type != "code" or "eval: false" in options or bool(flags & {o.split(":")[0] for o in options})


def execute(path):
    "The notebook at `path` with fresh outputs, and what it reads; its first error ends the process with a traceback."
    from execnb.nbio import read_nb
    from execnb.shell import CaptureShell
    from nbdev.clean import clean_nb

    os.environ.setdefault("WISEFT_DEVICE", "cpu")  # what is stored is the same everywhere
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")  # newer versions announce more
    marks = flags()
    nb = read_nb(path)
    for cell in nb.cells:
        if not skipped(cell, marks):
            cell.outputs = []
    shell = CaptureShell(path, mpl_format="retina")  # two dots for each pixel of a page
    plain = shell.display_formatter.formatters["text/plain"]
    plain.for_type_by_name("matplotlib.figure", "Figure", lambda fig, p, cycle: p.text(of_figure(fig)))
    plain.for_type_by_name("PIL.Image", "Image", lambda image, p, cycle: p.text(of_image(image)))
    os.chdir(path.parent)
    files = inputs.watch()
    try:
        shell.run_all(nb, exc_stop=True, preproc=lambda c: skipped(c, marks))
    except BaseException:
        sys.exit(shell.prettytb(fname=path.name))
    clean_nb(nb)
    for data in [o.get("data", {}) for cell in nb.cells for o in cell.get("outputs", [])]:
        if "image/png" in data:
            data["image/png"] = of_few_colors("".join(data["image/png"]))
    return nb, files()


def of_few_colors(png):
    "A large picture with the 256 colors that it has most of: a third of the bytes, and plots have no more."
    from PIL import Image

    if len(png) < 40_000:
        return png
    image, out = Image.open(BytesIO(b64decode(png))), BytesIO()
    image.convert("RGB").quantize(256).save(out, "png", optimize=True, dpi=image.info.get("dpi"))
    return b64encode(out.getvalue()).decode()


def of_figure(fig):
    "A figure in words and numbers: mean and spread of what it plots."
    import numpy as np
    from matplotlib.collections import PathCollection

    def spread(v):
        return f"{np.nanmean(v):.3g}±{np.nanstd(v):.2g}"

    lines = [line.get_xydata() for ax in fig.axes for line in ax.lines]
    for c in [c for ax in fig.axes for c in ax.collections]:
        lines += [c.get_offsets()] if isinstance(c, PathCollection) else [path.vertices for path in c.get_paths()]
    lines += [p.get_patch_transform().transform(p.get_path().vertices) for ax in fig.axes for p in ax.patches]
    images = [np.mean(image.get_array()) for ax in fig.axes for image in ax.images]
    seen = [f"Figure with {len(fig.axes)} axes"]
    if lines:
        x, y = np.concatenate([np.ma.filled(np.ma.asarray(a, float), np.nan) for a in lines]).T
        seen.append(f"{len(x)} points x {spread(x)} y {spread(y)}")
    if images:
        seen.append(f"{len(images)} images {spread(images)}")
    return f"<{', '.join(seen)}>"


def of_image(image):
    import numpy as np

    return f"<{image.mode} image, {image.width}×{image.height} pixels, mean {np.mean(image):.1f}>"


def printed(cell):
    """What a reader sees of a cell's outputs, as pairs of a kind and a list of texts: entries of a table, the text of
    anything else. A picture's text says what it plots."""
    for o in cell.get("outputs", []):
        data = {k: "".join(v) for k, v in o.get("data", {}).items()}
        if "text/html" in data:
            entries = re.split(r"<[^>]+>", re.sub(r"(?s)<style.*?</style>", "", data["text/html"]))
            yield "table", [e.strip() for e in entries if e.strip()]
        else:
            kind = "picture" if "image/png" in data else "text"
            yield kind, [data.get("text/plain") or "".join(o.get("text", [])) or data.get("text/markdown", "")]


def near(a, b):
    "Whether two numbers, as printed, are the same but for rounding; whole ones without a % are counts."
    if all(re.fullmatch(r"-?\d+", n) for n in (a, b)):
        return a == b
    a, b = (float(n.rstrip(" %")) for n in (a, b))
    return abs(a - b) <= ROOM * max(1e-9, abs(a), abs(b))


def same_words(a, b):
    "Whether two texts differ in their numbers and in layout alone."
    a, b = (re.sub(r"[-\s]+", " ", NUMBER.sub("0", t)).strip() for t in (a, b))
    return a == b


def same(a, b):
    "Whether two texts have the same words and near numbers."
    return same_words(a, b) and all(map(near, NUMBER.findall(a), NUMBER.findall(b)))


def alike(a, b):
    "Whether outputs that follow training agree in what doesn't hang on the last digits: of tables, the words."
    return a[0] == b[0] and len(a[1]) == len(b[1]) and (a[0] != "table" or all(map(same_words, a[1], b[1])))


def equal(a, b):
    return a[0] == b[0] and len(a[1]) == len(b[1]) and all(map(same, a[1], b[1]))


def compare(old, new):
    """Compare the stored outputs of a notebook with fresh ones: (what is stale, how many compared by kind).
    From the first cell that trains on, numbers are not compared: in training, the rounding of a processor grows."""
    stale, counts, agree, marks = [], Counter(), equal, flags()
    for i, (a, b) in enumerate(zip(old["cells"], new["cells"])):
        if skipped(a, marks):
            counts["in cells that are not to be run"] += len(a.get("outputs", []))
            continue
        if TRAINING.search(a.source) and "#| export" not in a.source:
            agree = alike
        a, b = list(printed(a)), list(printed(b))
        if len(a) != len(b) or not all(map(agree, a, b)):
            stale.append(f"cell {i} has stored\n{a}\nbut prints\n{b}")
        counts.update(f"{kind}s" if agree is equal else "after training" for kind, _ in a)
    return stale, counts


def run_one(path, check):
    from execnb.nbio import read_nb, write_nb

    nb, files = execute(path)
    if not check:
        write_nb(nb, path)
        if path.is_relative_to(ROOT / "nbs"):
            inputs.store(path.relative_to(ROOT), files)
        return
    stale, counts = compare(read_nb(path), nb)
    if stale:
        sys.exit("\n".join(stale) + f"\nstored outputs are stale: make refresh NB={os.path.relpath(path, ROOT)}")
    print(", ".join(f"{n} {what}" for what, n in counts.items() if n) or "no outputs")


def serve():
    "Run a notebook for each line of standard input, in a fork that goes on here and ends as a process of its own."
    for i, line in enumerate(sys.stdin):
        if i == 1:  # one notebook alone takes what it needs
            for name in HEAVY.split():
                import_module(name)
            sys.modules.pop("modulefinder", None)  # torchvision imports it; api/base/03_lazy.ipynb shows it imported
            gc.freeze()  # or each fork would go through all of it at its end
        path, check, *logs = json.loads(line)
        if pid := os.fork():
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
            continue
        signal.alarm(LIMIT)
        for standard, name in enumerate([os.devnull, *logs]):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), standard)
        return run_one(Path(path), check)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the process of one notebook
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)  # for the tests
    args = parser.parse_args()
    if args.serve:
        return serve()
    paths = [p.resolve() for p in args.notebooks] or notebooks()
    if args.here:
        return run_one(paths[0], args.check)
    failed = []
    for path in paths:
        start = time.time()
        command = [sys.executable, __file__, "--here", *(["--check"] if args.check else []), str(path)]
        if subprocess.run(command).returncode:
            failed.append(path.name)
        print(f"{os.path.relpath(path, ROOT)}: {time.time() - start:.0f} s", flush=True)
    sys.exit(f"failed: {', '.join(failed)}" if failed else None)


if __name__ == "__main__":
    main()
