#!/usr/bin/env python
"""Run notebooks and store what they print.

  refresh.py [NOTEBOOK ...]           run in place and store the outputs (default: all of nbs/)
  refresh.py --check NOTEBOOK ...     run, store nothing, fail where the stored outputs are not what the code prints

Each notebook runs in a process of its own. Cells marked `#| eval: false` or with one of settings.ini's `tst_flags`
are not run and keep their outputs.
"""
import argparse
import os
import re
import subprocess
import sys
import time
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NUMBER = re.compile(r"-?\d+(\.\d+)?(e[-+]?\d+)?|nan|inf")


def notebooks():
    "All notebooks of the project."
    return sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if not any(o.startswith((".", "_")) for o in p.parts[len(ROOT.parts):]))


def skipped(cell, flags):
    "Whether a cell is not to be run."
    options = [o.strip() for o in re.findall(r"^#\|(.+)", cell.source, re.M)]
    return cell.cell_type != "code" or "eval: false" in options or bool(flags & {o.split(":")[0] for o in options})


def execute(path):
    "The notebook at `path` with fresh outputs; the first error ends the process with its traceback."
    from execnb.nbio import read_nb
    from execnb.shell import CaptureShell
    from nbdev.clean import clean_nb

    cfg = ConfigParser(delimiters=["="])
    cfg.read(ROOT / "settings.ini", encoding="utf-8")
    flags = set(cfg["DEFAULT"]["tst_flags"].split())
    nb = read_nb(path)
    for cell in nb.cells:
        if cell.cell_type == "code" and not skipped(cell, flags):
            cell.outputs = []
    shell = CaptureShell(path, mpl_format="png")
    os.chdir(path.parent)
    try:
        shell.run_all(nb, exc_stop=True, preproc=lambda c: skipped(c, flags))
    except BaseException:
        sys.exit(shell.prettytb(fname=path.name))
    clean_nb(nb)
    return nb


def printed(cell):
    "What a reader sees of a cell's outputs, by kind: text, and for pictures that there is one."
    seen = []
    for o in cell.get("outputs", []):
        if "text" in o:
            seen.append((o["name"], "".join(o["text"])))
        for kind, data in sorted(o.get("data", {}).items()):
            seen.append((kind, "".join(data) if kind == "text/plain" else ""))
    return seen


def shape(seen):
    "Outputs without their numbers, whose last digits differ between processors, and without layout that follows from them."
    return [(kind, re.sub(r"[-\s]+", " ", NUMBER.sub("0", text)).strip()) for kind, text in seen]


def differences(old, new):
    "Cells whose stored outputs are not what the code prints today."
    for i, (a, b) in enumerate(zip(old["cells"], new["cells"])):
        a, b = printed(a), printed(b)
        if shape(a) != shape(b):
            yield f"cell {i} has stored\n{a}\nbut prints\n{b}"


def run_one(path, check):
    from execnb.nbio import read_nb, write_nb

    nb = execute(path)
    if not check:
        return write_nb(nb, path)
    stale = list(differences(read_nb(path), nb))
    if stale:
        sys.exit("\n".join(stale) + f'\nstored outputs are stale: make refresh NB={os.path.relpath(path, ROOT)}')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the process of one notebook
    args = parser.parse_args()
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
