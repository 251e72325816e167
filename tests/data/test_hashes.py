"Disks that are mounted in each other's place: what is remembered of one must not be used for the other."
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from wiseft.data.hashes import content_hashes, file_identity

PROGRAM = """
import sys
from wiseft.data.labels import image_folder
from wiseft.data.pixels import Pixels, ShortSide, decode_once
images = image_folder(sys.argv[1])
pixels = decode_once(Pixels(images, ShortSide(32)), progress=False)
assert pixels.kept is not None
print(*[int(pixels[i].mean()) for i in range(len(images))], *images.hashes())
"""


def program(*args):
    done = subprocess.run(list(map(str, args)), capture_output=True, text=True)
    assert done.returncode == 0, f"{args}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def mounted(image, at):
    try:
        done = subprocess.run(["mount", "-o", "loop,ro", image, at], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip(f"disk images can't be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        program("umount", at)


@pytest.fixture
def disks(tmp_path, monkeypatch):
    "Two images of disks whose files have other contents, and all else alike: inodes, sizes and times."
    if not shutil.which("mke2fs") or not shutil.which("tune2fs"):
        pytest.skip("there is no mke2fs")
    monkeypatch.setenv("WISEFT_CACHE", str(tmp_path / "cache"))
    contents = []
    for i in range(20):
        path = tmp_path / "photos" / ("cat" if i % 2 else "dog") / f"{i}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        pair = []
        for color in (10, 228):
            Image.new("RGB", (32, 32), (color, color, i)).save(path)
            pair.append(path.read_bytes())
        contents.append(pair)
        path.write_bytes(pair[0])
    program("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", tmp_path / "photos", tmp_path / "first.img", "8M")
    disk = (tmp_path / "first.img").read_bytes()
    for one, other in contents:
        assert disk.count(one) == 1
        disk = disk.replace(one, other)
    (tmp_path / "second.img").write_bytes(disk)
    program("tune2fs", "-U", "random", tmp_path / "second.img")
    (tmp_path / "disk").mkdir()
    time.sleep(2.1)  # the hash of a file that changed a moment ago isn't remembered
    return tmp_path


def on_the_disk(folder):
    "What the program has to print."
    files = sorted(p for p in folder.rglob("*.bmp"))
    means = [int(np.asarray(Image.open(p)).mean()) for p in files]
    return [*map(str, means), *[hashlib.sha256(p.read_bytes()).hexdigest() for p in files]]


@pytest.mark.slow
def test_another_disk_in_the_same_place(disks):
    times = []
    for name in ("first", "first", "second", "second", "first"):
        with mounted(disks / f"{name}.img", disks / "disk"):
            truth = on_the_disk(disks / "disk")
            assert program(sys.executable, "-c", PROGRAM, disks / "disk").split() == truth, name
            s = (disks / "disk/cat/1.bmp").stat()
            times.append((s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns))
    assert len(set(times)) == 1, "the files were alike in inode, size, and times"


@pytest.mark.skipif(not hasattr(os, "statvfs"), reason="the id of a file system")
def test_an_identity_begins_with_the_file_system(tmp_path):
    (tmp_path / "file").write_text("content")
    assert file_identity(tmp_path / "file").startswith(f"{os.statvfs(tmp_path).f_fsid:x} ")


def remember(cache, hashes):
    "Put hashes by identity into an empty cache."
    with sqlite3.connect(cache / "hashes.sqlite") as db:
        db.execute("CREATE TABLE hashes (identity TEXT PRIMARY KEY, sha256 TEXT) WITHOUT ROWID")
        db.executemany("INSERT INTO hashes VALUES (?, ?)", hashes.items())
    db.close()


def test_a_cache_of_an_earlier_version(tmp_path, monkeypatch):
    "Its identities have no file system: hashes are computed again."
    monkeypatch.setenv("WISEFT_CACHE", str(tmp_path))
    (tmp_path / "file").write_text("content")
    s = (tmp_path / "file").stat()
    remember(tmp_path, {f"{s.st_ino} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns}": "of another disk"})
    assert content_hashes([tmp_path / "file"]) == [hashlib.sha256(b"content").hexdigest()]
