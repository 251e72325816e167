"Writing that is whole or not there, in processes that are killed, interrupted, out of space or not allowed."
import hashlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
import zipfile

import pytest

from wiseft.base.files import sha256_file

PRELUDE = """
import os, resource, signal, sys, time
from pathlib import Path
from wiseft.base.files import atomic_path, unzip_once
target = Path(sys.argv[1])
def ready(): print('ready', flush=True)
"""


def start(code, *args, **kwargs):
    "Start Python on `code`, which has `target` (the first argument) and `ready()`."
    return subprocess.Popen([sys.executable, "-c", PRELUDE + textwrap.dedent(code), *map(str, args)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)


def finish(process, code=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    return out, err


def names(folder):
    return sorted(p.name for p in folder.iterdir())


WRITE_AND_WAIT = """
with atomic_path(target, force=True) as tmp:
    with open(tmp, 'w') as f:
        f.write('half of the new'); f.flush()
        ready(); time.sleep(600)
"""


def test_killed_in_the_middle(tmp_path):
    target = tmp_path / "results.csv"
    target.write_text("old")
    p = start(WRITE_AND_WAIT, target)
    assert p.stdout.readline() == "ready\n"
    p.kill()
    finish(p, -signal.SIGKILL)
    assert target.read_text() == "old"
    assert all(n == "results.csv" or n.startswith(".results.") for n in names(tmp_path))


def test_killed_at_any_moment(tmp_path):
    "A process replaces a file over and over; whenever it is killed, the file is one of the two, whole."
    target, n = tmp_path / "weights.bin", 1 << 20
    wholes = {hashlib.sha256(c * n).hexdigest() for c in (b"a", b"b")}
    rng, seen = random.Random(0), 0
    for _ in range(8):
        p = start("""
            ready()
            while True:
                for c in (b'a', b'b'):
                    with atomic_path(target, force=True) as tmp: tmp.write_bytes(c*(1<<20))
            """, target)
        assert p.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.01, 0.1))
        p.kill()
        finish(p, -signal.SIGKILL)
        if target.exists():
            assert sha256_file(target) in wholes
            seen += 1
    assert seen


def test_interrupted(tmp_path):
    target = tmp_path / "results.csv"
    target.write_text("old")
    p = start(WRITE_AND_WAIT, target)
    assert p.stdout.readline() == "ready\n"
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=300)
    assert p.returncode and "KeyboardInterrupt" in err
    assert target.read_text() == "old"
    assert names(tmp_path) == ["results.csv"]


WRITE_MUCH = """
try:
    with atomic_path(target, force=True) as tmp: tmp.write_bytes(bytes(4<<20))
except OSError as e: print(type(e).__name__, e)
"""

SAVE_MUCH = """
import torch
from wiseft.weights.checkpoints import write_state_dict
try: write_state_dict({'w': torch.zeros(1<<20)}, target, force=True)
except OSError as e: print(type(e).__name__, e)
"""


@pytest.mark.parametrize("code", [WRITE_MUCH, SAVE_MUCH], ids=["bytes", "weights"])
def test_file_size_limit(tmp_path, code):
    "The system refuses to write more, as it does over quota."
    target = tmp_path / "model.safetensors"
    target.write_text("old")
    limit = (
        "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1<<20, 1<<20))\n"
    )
    out, _ = finish(start(limit + textwrap.dedent(code), target))
    assert f"Can't write {target}: File too large. What was there before is untouched." in out
    assert target.read_text() == "old"
    assert names(tmp_path) == ["model.safetensors"]


@pytest.fixture
def small_disk(tmp_path):
    "A file system of one megabyte."
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True,
                              text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"a small file system can't be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("code", [WRITE_MUCH, SAVE_MUCH], ids=["bytes", "weights"])
def test_full_disk(small_disk, code):
    target = small_disk / "model.safetensors"
    target.write_text("old")
    out, _ = finish(start(code, target))
    assert f"Can't write {target}: No space left on device. What was there before is untouched." in out
    assert target.read_text() == "old"
    assert names(small_disk) == ["model.safetensors"]


WRITE_WITHIN = """
try:
    with atomic_path(target) as folder:
        folder.mkdir()
        with atomic_path(folder/'weights') as tmp: tmp.write_bytes(bytes(4<<20))
except OSError as e: print(e)
"""


def test_the_full_disk_is_named(small_disk):
    "Of a file within a folder, once, and with the place that is full."
    target = small_disk / "classifier"
    out, _ = finish(start(WRITE_WITHIN, target))
    assert out.count("Can't write") == 1 and f"Can't write {target}: No space left on device." in out
    assert f"Free some space in {small_disk} or choose another place" in out
    assert names(small_disk) == []


def test_read_only_folder(tmp_path):
    "Permission bits don't stop root, so the writer becomes another user if it can."
    if os.geteuid():
        folder, become = tmp_path, ""
    else:
        folder, become = tmp_path, "os.setgid(65534); os.setuid(65534)"
        for p in [folder, *folder.parents][:4]:
            p.chmod(0o755)
    target = folder / "results.csv"
    target.write_text("old")
    folder.chmod(0o555)
    try:
        out, _ = finish(
            start(f"{become}\ntry: target.read_text()\nexcept OSError: sys.exit(3)\n" + textwrap.dedent(WRITE_MUCH),
                  target))
    finally:
        folder.chmod(0o755)
    said = f"PermissionError [Errno 13] Can't write {target}: Permission denied. What was there before is untouched."
    assert said in out
    assert target.read_text() == "old"
    assert names(tmp_path) == ["results.csv"]


def test_processes_unpacking_at_once(tmp_path):
    archive, cache = tmp_path / "suite.zip", tmp_path / "cache"
    with zipfile.ZipFile(archive, "w") as z:
        for i in range(300):
            z.writestr(f"icons/{i:03}.txt", str(i) * 100)
    digest = sha256_file(archive)
    code = """
        ready()
        sys.stdin.readline()
        found = unzip_once(target, sys.argv[2], sys.argv[3])
        print(found, len(list((found/'icons').iterdir())))
        """
    waiting = [start(code, archive, digest, cache, stdin=subprocess.PIPE) for _ in range(4)]
    assert [p.stdout.readline() for p in waiting] == ["ready\n"] * 4
    for p in waiting:
        p.stdin.write("go\n")
        p.stdin.flush()
    assert {finish(p)[0] for p in waiting} == {f"{cache / digest[:12]} 300\n"}
    assert names(cache) == [digest[:12]]
