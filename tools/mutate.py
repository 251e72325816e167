#!/usr/bin/env python
"""Plant bugs in modules, one at a time, and see which check catches each.

  mutate.py stats/intervals                           twenty bugs in wiseft.stats.intervals
  mutate.py stats weights/merge -n 50 -o mutants.csv  fifty in a subpackage and one more module, with a table

A bug is one small change to an exported cell; `bugs` lists the operators. It is planted in a copy of the tree, in the
notebook and in its module. The module's page is executed and compared with its stored outputs, as `make check` does.
If it passes, the tests follow: tests/SUBPACKAGE/test_MODULE.py or, without one, the files there that import the module.

A bug that passes everything has survived: a check is missing, or the change is equivalent. For the latter, write
`equivalent: REASON` into the column `caught by`; the next run with the same table keeps that row.
"""
import argparse
import ast
import csv
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import cache, partial
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from textwrap import shorten

from execnb.nbio import read_nb, write_nb
from nbdev.export import nb_export
from refresh import HEAVY, ROOT, run_one

SWAPS = {ast.Lt: ast.LtE, ast.Gt: ast.GtE, ast.Eq: ast.NotEq, ast.Is: ast.IsNot, ast.In: ast.NotIn,
         ast.Add: ast.Sub, ast.Mult: ast.Div, ast.BitAnd: ast.BitOr, ast.And: ast.Or}
SWAPS |= {b: a for a, b in SWAPS.items()} | {ast.FloorDiv: ast.Div, ast.Mod: ast.Mult, ast.Pow: ast.Mult}
FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any"}


def bugs(node):
    "Every bug of one syntax node: the operator, the node that it replaces, and the new code."
    def changed(**fields):
        return ast.unparse(type(node)(**dict(ast.iter_fields(node)) | fields))

    match node:
        case ast.Compare(ops=[op, *others]):
            yield "comparison swapped", node, changed(ops=[SWAPS[type(op)](), *others])
        case ast.BinOp(op=op) | ast.AugAssign(op=op) | ast.BoolOp(op=op) if type(op) in SWAPS:
            yield "operator swapped", node, changed(op=SWAPS[type(op)]())
        case ast.UnaryOp(op=ast.USub() | ast.Not()):
            yield "minus or not dropped", node, ast.unparse(node.operand)
        case ast.Constant(value=bool()):
            yield "boolean negated", node, str(not node.value)
        case ast.Constant(value=int() | float()):
            yield "constant + 1", node, str(node.value + 1)
            yield "constant - 1", node, str(node.value - 1)
        case ast.Name(id=name) if name in FUNCTIONS:
            yield "function swapped", node, FUNCTIONS[name]
        case ast.Call(keywords=keywords):
            for dropped in keywords:
                kept = [k for k in keywords if k is not dropped]
                yield f"argument {dropped.arg} dropped", node, changed(keywords=kept)
        case ast.Slice():
            for bound in filter(None, (node.lower, node.upper)):
                yield "slice off by one", bound, f"{ast.unparse(bound)} + 1"
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test) | ast.comprehension(ifs=[test, *_]):
            yield "condition negated", test, f"not ({ast.unparse(test)})"
        case ast.Return(value=ast.expr()):
            yield "return value replaced", node, "return None"
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "statement deleted", node, "pass"


def nodes(node):
    "The syntax nodes below one, without annotations and the inside of f-strings, whose places Python 3.11 gets wrong."
    yield node
    for name, field in ast.iter_fields(node):
        if name not in ("annotation", "returns", "pattern") and not isinstance(node, ast.JoinedStr):
            for child in field if isinstance(field, list) else [field]:
                yield from nodes(child) if isinstance(child, ast.AST) else ()


def replaced(source, node, new):
    "A cell's code with new code in the place of a syntax node, whose columns count bytes."
    lines = source.encode().splitlines(keepends=True)
    before = b"".join(lines[:node.lineno - 1]) + lines[node.lineno - 1][:node.col_offset]
    after = lines[node.end_lineno - 1][node.end_col_offset:] + b"".join(lines[node.end_lineno:])
    return (before + (new if isinstance(node, ast.stmt) else f"({new})").encode() + after).decode()


@cache
def page(module):
    "The notebook from which a module is exported, relative to the tree."
    path = ROOT / "wiseft" / module
    notebook = path.parent / re.search(r"File to edit: (\S+ipynb)", path.read_text())[1]
    return str(notebook.resolve().relative_to(ROOT))


def drawn(names, n, seed):
    "`n` bugs of modules and subpackages: module, change, number of the cell, and its new code."
    found, package = [], ROOT / "wiseft"
    for path in [p for name in names for p in package.glob(f"{name}.py" if "/" in name else f"{name}/[!_]*.py")]:
        module = path.relative_to(package).as_posix()
        for i, cell in enumerate(read_nb(ROOT / page(module)).cells):
            exported = cell.cell_type == "code" and cell.source.startswith("#| export")
            for operator, old, new in [b for n in nodes(ast.parse(cell.source)) for b in bugs(n)] if exported else ():
                code = replaced(cell.source, old, new)
                shown = (cell.source if isinstance(old, ast.stmt) else code).splitlines()[old.lineno - 1]
                found.append((module, f"{operator}: {shorten(shown, 120)}", i, code))
    # in the order of hashes: a change to other code does not alter the draw
    return sorted(sorted(found, key=lambda bug: sha256(f"{seed} {bug[0]} {bug[3]}".encode()).digest())[:n])


def checks(module):
    "The page of a module, then its tests, relative to the tree."
    folder, name = module.removesuffix(".py").split("/")
    imports = re.compile(rf"\bwiseft\.{folder}(\.| import .*){name}\b")
    own = list(ROOT.glob(f"tests/{folder}/test_{name}.py"))
    users = [p for p in sorted(ROOT.glob(f"tests/{folder}/test_*.py")) if imports.search(p.read_text())]
    return [page(module), *(str(p.relative_to(ROOT)) for p in own or users)]


def execute(check):
    "Execute a page or a test file of the current folder, silently; the whole life of a process."
    os.setpgrp()
    for standard in 1, 2:
        os.dup2(os.open(os.devnull, os.O_WRONLY), standard)
    if check.endswith(".ipynb"):
        sys.exit(run_one(Path(check).resolve(), check=True))
    sys.exit(import_module("pytest").main(["-q", "-x", "-p", "no:cacheprovider", check]))


def outcome(check, limit):
    "How a check ends ('' if well) and its seconds, in a fork of this process, which has imported what is heavy."
    begun, process = time.time(), multiprocessing.get_context("fork").Process(target=execute, args=[check])
    process.start()
    process.join(limit)
    ended = "timeout" if process.is_alive() else "failed" if process.exitcode else ""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # with all that it started
    process.join()
    return ended, time.time() - begun


@cache
def limit(check):
    "Seconds that a check may take with a bug; 0 where it fails without one, and so catches nothing."
    ended, seconds = outcome(check, 900)
    return 0 if ended else 30 + 5 * seconds


def row(known, bug):
    "Plant a bug in the current folder, a copy of the tree; its row in the table."
    module, operator, cell, code = bug
    if bug[:2] in known:
        return known[bug[:2]]
    files, line, ended, total = (page(module), f"wiseft/{module}"), "", "", 0
    for check in filter(limit, checks(module)):
        nb, texts = read_nb(files[0]), [Path(f).read_text() for f in files]
        nb.cells[cell].source = code
        write_nb(nb, files[0])
        nb_export(files[0], lib_path="wiseft")
        lines = zip(texts[1].splitlines(), Path(files[1]).read_text().splitlines())
        line = next(i for i, (old, new) in enumerate(lines, 1) if old != new)
        ended, seconds = outcome(check, limit(check))
        total += seconds
        for f, text in zip(files, texts):
            Path(f).write_text(text)
        if ended:
            break
    return f"{module}:{line}", operator, ended and f"{check} {ended}", round(total)


def prepare():
    "Give a process a copy of the tree of its own, and import what is heavy."
    folder = tempfile.mkdtemp()
    sys.path[:0] = [folder, str(ROOT / "tests")]
    import_module("conftest").copy_tree(Path(folder))
    del sys.modules["conftest"]  # the copy's tests import their own
    os.chdir(folder)
    os.environ.update(PYTHONPATH=folder, WISEFT_CACHE=f"{folder}/cache", HF_HUB_OFFLINE="1", WISEFT_DEVICE="cpu")
    for name in HEAVY.split():
        import_module(name)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="+", help="modules or subpackages, as stats/intervals or stats")
    parser.add_argument("-n", type=int, default=20, help="how many bugs (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="which ones are drawn (default: 0)")
    parser.add_argument("-o", "--output", type=Path, default=os.devnull, help="a table (CSV)")
    args = parser.parse_args()
    old = list(csv.reader(args.output.read_text().splitlines() if args.output.is_file() else []))
    known = {(r[0].split(":")[0], r[1]): r for r in old if r[2].startswith("equivalent")}
    todo, rows = drawn(args.modules, args.n, args.seed), []
    table = args.output.open("w", buffering=1)
    write = csv.writer(table, lineterminator="\n").writerow
    write(["place", "operator", "caught by", "seconds"])
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as tempfile.tempdir, \
            ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork"), prepare) as pool:
        for r in pool.map(partial(row, known), todo):
            rows.append(r)
            write(r)
            print(*r, sep="  ", flush=True)
    print(f"{sum(r[2] != '' for r in rows)} of {len(rows)} bugs are caught or equivalent")


if __name__ == "__main__":
    main()
