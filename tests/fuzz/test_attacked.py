"""Nothing in the package reads or writes a file without being attacked, or without a reason why not.

The list is made from the package's code, and held against what runs when the attacks' own files are read and written.
"""
from contextlib import suppress
from pathlib import Path

import pytest
from crash import SLOW, WRITERS
from package import READS, WRITES, functions, watched
from readers import READERS, place

from conftest import ROOT, python

OURS = "it comes with the package"
SAME = "a folder or file by the same `atomic_path` as those that are killed"
LOCK = "an empty file, which is locked and not read"
COMMAND = "programs.py kills the command"
BENCH = "programs.py and bench/test_run.py kill benches, and several write at once"
READ_UNATTACKED = {
    "base/files.locked": LOCK, "base/files._remove_abandoned": LOCK,
    "base/files.unzip_once": OURS, "data/layouts.imagenet_subset": "timm's own",
    "data/labels.imagenet_classes": "timm's own",
    "data/suites.protocol": OURS, "data/suites._embedded_folder": OURS,
    "data/copies.training_thumbnails": "names beside a cache entry, which `open_entry` has checked",
    "stats/robustness.published_baseline": OURS, "methods/index.listed_methods": OURS,
    "shell/run._write_commands": "words of its own, compared and not read",
    "train/callbacks.core_wait": "the kernel's own count",
    "data/layouts.git_hash": "bytes, to be hashed",
    "data/layouts._download": "an archive whose checksum its authors publish",
}  # fmt: skip
WRITTEN_UNATTACKED = {
    "base/distributed.first_writes": SAME, "base/files.unzip_once": SAME, "bench/run._write_arrays": BENCH,
    "bench/run._write_or_check_plan": BENCH, "bench/run._update_families": BENCH,
    "shell/run._write_commands": COMMAND, "shell/run._do_steps": COMMAND, "shell/run.write": COMMAND,
    "show/ask.ask": COMMAND,
    "shell/bench._write_bench": BENCH,
    "shell/evaluate.predict_": COMMAND, "shell/evaluate.results_file": COMMAND,
    "shell/run.demo": SAME, "shell/report.plot": SAME, "shell/merge._merge_classifiers": COMMAND,
    "shell/train.finetune_": COMMAND, "shell/train.probe": SAME, "shell/train.zeroshot": COMMAND,
    "stats/table_io.write_clip_benchmark": SAME,
    "weights/recipes.merge_by_recipe": SAME, "weights/adapters.write_adapter": SAME,
}  # fmt: skip


def read(folder):
    for kind in READERS:
        reader, own = kind(), folder / kind.__name__
        own.mkdir()
        for parts in reader.seeds:
            place(reader.files(parts), own)
            with suppress(Exception):
                reader.read(own)


def write(folder):
    for name, writer in WRITERS.items():
        (folder / name).mkdir()
        writer.write(folder / name, 0.25)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("attack, calls, reasons",
                         [(read, READS, READ_UNATTACKED), (write, WRITES, WRITTEN_UNATTACKED)], ids=["read", "write"])
def test_all_is_attacked(attack, calls, reasons, tmp_path):
    reached = set()
    with watched(reached):
        attack(Path(tmp_path))
    left = functions(calls) - reached - {writer.writes for writer in SLOW.values()}
    new, stale = sorted(left - set(reasons)), sorted(set(reasons) - left)
    assert not new and not stale, f"attack these: {new}; attacked now, or gone: {stale}"


@pytest.mark.slow
def test_the_script_attacks():
    printed = python(ROOT / "tests/attack.py", "--only", "Recipes beside a table", "--kills", 1).stdout
    assert printed.endswith("0 changed files: 0 wrong\n")
