"""Attack everything that reads or writes files, and write down what came of it.

    python tests/attack.py                              changed files of each kind, kills of each writer
    python tests/attack.py --mutations 500 --kills 0    only files
    python tests/attack.py --table tests/attacks.csv    adds a row a reader and a writer; goes on in the same commit

Each is attacked in one of several processes, one for a core. Kills come before each system call, and at random moments;
of commands, which take seconds, at random moments. Nothing may be executed, take 10 s of the processor or a gigabyte,
be half-written or lost, leave junk, or raise an error that is not a BadFile with the file's name.
"""
import argparse
import ast
import csv
import datetime
import multiprocessing
import os
import random
import sys
import tempfile
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent), str(HERE), str(HERE / "fuzz")]  # as in pytest.ini
os.environ |= dict(HF_HUB_OFFLINE="1", WISEFT_DEVICE="cpu", WISEFT_CACHE=tempfile.mkdtemp())
COLUMNS = ["what", "seed", "tried", "read", "refused", "old kept", "new there", "wrong", "slowest, CPU s", "growth, MB",
           "lines reached", "date", "version"]


def reached(reader, folder, n=100):
    "How many lines of the functions in a reader's modules are run by some changed files."
    import coverage
    import wiseft
    from readers import changed_files, look

    paths = [str(Path(wiseft.__file__).parent / f"{module}.py") for module in reader.modules]
    cover = coverage.Coverage(data_file=None, include=paths)
    rng = random.Random(0)
    files = [reader.files(parts) for parts in reader.seeds] + [changed_files(reader, rng) for _ in range(n)]
    cover.start()
    for f in files:
        with suppress(AssertionError):
            look(reader, f, folder)
    cover.stop()
    lines_by_module = []
    for path, module in zip(paths, reader.modules):
        _, lines, _, missing, _ = cover.analysis2(path)
        inside = set(lines) & within_functions(Path(path).read_text(encoding="utf-8"))
        lines_by_module.append(f"{module} {len(inside - set(missing))} of {len(inside)}")
    return ", ".join(lines_by_module)


def within_functions(source):
    "Numbers of the lines of functions' bodies."
    functions = [f for f in ast.walk(ast.parse(source)) if isinstance(f, ast.FunctionDef)]
    return {n for f in functions for n in range(f.body[0].lineno, f.end_lineno + 1)}


def fuzz(reader, n, seed):
    "A row about so many changed files, times the reader's share."
    from readers import attacked, grown

    before = grown()
    with tempfile.TemporaryDirectory() as d, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results, seconds = zip(*attacked(reader, int(n * reader.share), seed, Path(d)))
        lines = reached(reader, Path(d))
    outcomes = Counter(results)
    costs = {"slowest, CPU s": f"{max(seconds):.1f}", "growth, MB": f"{(grown() - before) / 1e6:.0f}"}
    counts = dict(tried=outcomes.total(), read=outcomes["read"], refused=outcomes["refused"], wrong=outcomes["wrong"])
    return counts | costs | {"lines reached": lines}


def kill(writer, n, seed):
    "A row about kills before calls and at so many random moments, times the writer's share."
    from crash import every_call, random_moments
    from programs import PROGRAMS

    new, wrong = [], 0
    try:
        new += every_call(writer, round(30 * writer.share)) if writer not in PROGRAMS.values() else []
        new += random_moments(writer, round(n * writer.share), random.Random(seed))
    except AssertionError as e:
        wrong = 1
        print(f"{writer.__doc__}: {e}", flush=True)
    return {"tried": len(new) + wrong, "old kept": len(new) - sum(new), "new there": sum(new), "wrong": wrong}


def show(row):
    print("  ".join(f"{k}: {v}" for k, v in row.items() if v not in ("", None)), flush=True)


def subjects():
    "What is attacked: its words, and what attacks it; what takes longest first"
    from crash import SLOW, WRITERS
    from programs import PROGRAMS
    from readers import READERS

    writers = PROGRAMS | SLOW | WRITERS
    return {w.__doc__: (kill, w) for w in writers.values()} | {kind.__doc__: (fuzz, kind) for kind in READERS}


def attack(what, numbers, seed):
    "The row of a reader or writer, and the seconds of the processor that it took, with those that were killed."
    import torch

    torch.set_num_threads(1)
    began = sum(os.times()[:4])
    task, subject = subjects()[what]
    result = task(subject() if task is fuzz else subject, numbers[task.__name__], seed)
    row = dict(what=what, seed=seed) | result | dict(date=datetime.date.today(), version=version())
    return row, sum(os.times()[:4]) - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=3500, help="of each reader, times its share")
    parser.add_argument("--kills", type=int, default=75,
                        help="of each writer at random moments, besides those before calls; 0: none at all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--only", help="readers and writers whose words hold this")
    parser.add_argument("--table", type=Path, help="CSV file to add rows to")
    args = parser.parse_args()
    numbers = dict(kill=args.kills, fuzz=args.mutations)
    rows = rows_of_this_commit(args.table) if args.table and args.table.exists() else []
    todo = [what for what, (task, _) in subjects().items() if numbers[task.__name__]]
    todo = [what for what in todo if not args.only or args.only.lower() in what.lower()]
    done = {row["what"] for row in rows}
    todo = [what for what in todo if what not in done]
    with ProcessPoolExecutor(args.processes, multiprocessing.get_context("spawn")) as pool:
        for one in as_completed([pool.submit(attack, what, numbers, args.seed) for what in todo]):
            row, seconds = one.result()
            rows.append(row)
            show(row | {"CPU s": round(seconds)})
            if args.table:
                add(args.table, row)
    kills = sum(int(row["tried"]) for row in rows if is_kill(row))
    files = sum(int(row["tried"]) for row in rows) - kills
    wrong = sum(int(row["wrong"]) for row in rows)
    print(f"{kills:,} kills, {files:,} changed files: {wrong} wrong")
    sys.exit(bool(wrong))


def add(table, row):
    with table.open("a", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, COLUMNS, lineterminator="\n")
        if not f.tell():
            writer.writeheader()
        writer.writerow(row)


def rows_of_this_commit(table):
    "What was found before; a table of another commit is begun anew."
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    if {row["version"] for row in rows} == {version()}:
        return rows
    table.unlink()
    return []


def is_kill(row):
    return str(row.get("old kept", "")) != ""


def version():
    "The commit that was attacked, with a plus where files differ from it."
    import subprocess

    def git(*words):
        return subprocess.run(["git", *words], cwd=HERE.parent, capture_output=True, text=True).stdout.strip()
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!tests/attacks.csv")
    commit = git("rev-parse", "--short", "HEAD")
    return f"{commit}+" if changed else commit


if __name__ == "__main__":
    main()
