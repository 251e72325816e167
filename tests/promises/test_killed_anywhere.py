"Two kills of each writer, and processes that write at once; `make crash` kills hundreds of times."
import os
import random
import signal
import sys
import time

import numpy as np
import pytest
from crash import WRITERS, ended, every_call, kill_before, once, random_moments, started, table
from PIL import Image
from programs import PROGRAMS

from wiseft.data.disk_cache import cache_table, clear_cache
from wiseft.data.pixels import Pixels, ShortSide, decode_once
from wiseft.stats.table_io import append_results, read_results
from wiseft.base.files import atomic_path
from wiseft.data.labels import image_folder

CALL = 3  # every writer has so many


@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
def test_killed_before_a_call(writer):
    died, _ = once(WRITERS[writer], kill_before, CALL)
    assert died


@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
def test_killed_at_a_random_moment(writer):
    assert len(list(random_moments(WRITERS[writer], 1, random.Random(0)))) <= 1


def test_a_command_is_killed():
    "The quickest; `make crash` kills each of them"
    assert len(list(random_moments(PROGRAMS["wiseft merge"], 1, random.Random(0)))) <= 1


def test_killed_between_two_renames():
    "A folder steps aside before the new one takes its place: wherever the kill comes, one of the two is found."
    assert set(every_call(WRITERS["folder"])) == {False, True}


def write_slowly(target, content, folder):
    "Write a new name, with a rest before it is given; ends the process with 3 if the name was taken."
    sys.addaudithook(lambda event, args: event in ("os.rename", "os.link") and time.sleep(0.1))
    try:
        with atomic_path(target) as tmp:
            if folder:
                tmp.mkdir()
            (tmp / "content" if folder else tmp).write_text(content)
    except FileExistsError:
        os._exit(3)


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_two_writers_of_one_new_name(tmp_path, folder):
    "One wins, the other is told, and what is there is the winner's."
    for i in range(5):
        target = tmp_path / str(i)
        writers = {content: started(write_slowly, target, content, folder) for content in "ab"}
        ends = {content: ended(child) for content, child in writers.items()}
        assert sorted(ends.values()) == [0, 3]
        text = (target / "content" if folder else target).read_text()
        assert ends[text] == 0
    assert len(list(tmp_path.iterdir())) == 5


def append(path, number, rows):
    for seed in range(rows):
        append_results(table(0.5).iloc[:1].assign(classifier=str(number), seed=seed), path)


@pytest.mark.slow
def test_processes_appending_at_once(tmp_path):
    "8 × 25 rows keep 200 of 200, and a column of the user's own."
    path, processes, rows = tmp_path / "results.csv", 8, 25
    append_results(table(0.5).assign(mine="own"), path)
    children = [started(append, path, number, rows) for number in range(processes)]
    assert [ended(child) for child in children] == [0] * processes
    results = read_results(path)
    assert set(results.mine[:6]) == {"own"}
    added = results[6:]
    assert sorted(zip(added.classifier, added.seed)) == [(str(i), s) for i in range(processes) for s in range(rows)]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".results.csv.lock", "results.csv"]


def read_again_and_again(folder, size, expected):
    "Pixels of a set, decoded or kept, twenty times; ends the process with 1 if they are others than expected."
    for _ in range(20):
        pixels = decode_once(Pixels(image_folder(folder), ShortSide(size)))
        assert np.array_equal([pixels[i] for i in range(len(pixels))], expected)


def clear_again_and_again():
    while True:
        clear_cache()
        time.sleep(0.01)


def test_readers_of_a_cache_that_is_evicted_and_cleared(tmp_path, monkeypatch):
    "Entries push each other out, and another process removes them all: the numbers stay."
    monkeypatch.setenv("WISEFT_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
    photos = image_folder(tmp_path / "photos")
    expected = {size: list(map(ShortSide(size).pixels, map(photos.open, range(12)))) for size in (8, 9)}
    monkeypatch.setenv("WISEFT_CACHE_GB", "0.000005")  # 5 kB: one entry, and not two
    for size in expected:
        decode_once(Pixels(photos, ShortSide(size)))
    assert len(cache_table()) == 1
    readers = [started(read_again_and_again, tmp_path / "photos", *e) for e in [*expected.items()] * 2]
    clearer = started(clear_again_and_again)
    try:
        assert [ended(child) for child in readers] == [0] * 4
    finally:  # a child that lives on holds pipes that others wait for
        os.kill(clearer, signal.SIGKILL)
        ended(clearer)
