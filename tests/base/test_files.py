"Writing that is whole or not there, in processes that are killed, interrupted, out of space or not allowed."
import errno
import fcntl
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile

import pytest
from crash import table

from wiseft.base import files
from wiseft.base.files import atomic_path, check_replaceable, existing_folder, locked, sha256_file, tidy
from wiseft.stats.table_io import append_results, read_results

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
    out, err = process.communicate(timeout=900)
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
    hidden, name = names(tmp_path)
    assert name == "results.csv" and re.fullmatch(r"\.wiseft-[0-9a-f]{8}", hidden)
    tidy(tmp_path)
    assert names(tmp_path) == ["results.csv"]


def test_killed_at_any_moment(tmp_path):
    "A process replaces a file over and over; whenever it is killed, the file is one of the two, whole."
    target, n = tmp_path / "weights.bin", 1 << 20
    wholes = {hashlib.sha256(c * n).hexdigest() for c in (b"a", b"b")}
    rng, n_found = random.Random(0), 0
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
            n_found += 1
    assert n_found


def test_interrupted(tmp_path):
    target = tmp_path / "results.csv"
    target.write_text("old")
    p = start(WRITE_AND_WAIT, target)
    assert p.stdout.readline() == "ready\n"
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=900)
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

TRAIN_MUCH = """
import torch
from wiseft.train.resume import write_training
try: write_training(target, {'w': torch.zeros(1<<20)}, {'step': 1})
except OSError as e: print(type(e).__name__, e)
"""
MUCH = dict(argnames="code", argvalues=[WRITE_MUCH, SAVE_MUCH, TRAIN_MUCH], ids=["bytes", "weights", "training"])


@pytest.mark.parametrize(**MUCH)
def test_file_size_limit(tmp_path, code):
    "The system refuses to write more, as it does over quota."
    target = tmp_path / "model.safetensors"
    target.write_text("old")
    limit = (
        "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1<<20, 1<<20))\n"
    )
    out, _ = finish(start(limit + textwrap.dedent(code), target))
    assert f"File too large: '{target}'" in out
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


@pytest.mark.parametrize(**MUCH)
def test_full_disk(small_disk, code):
    target = small_disk / "model.safetensors"
    target.write_text("old")
    out, _ = finish(start(code, target))
    assert f"No space left on device: '{target}'" in out
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
    "Of a file within a folder."
    target = small_disk / "classifier"
    out, _ = finish(start(WRITE_WITHIN, target))
    assert out == f"[Errno 28] No space left on device: '{target}'\n"
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
    assert f"PermissionError You may not write into the folder {folder}. Choose another place" in out
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


def in_its_own_namespace():
    "The words that start a program in a namespace of processes, as a container has; skips where that can't be."
    words = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if not shutil.which("unshare") or subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces can be made here")
    return words


def test_a_writer_in_a_container(tmp_path):
    "A live one is left alone; what a killed one leaves is removed at once: process numbers mean nothing there."
    target = tmp_path / "results.csv"
    code = PRELUDE + textwrap.dedent(WRITE_AND_WAIT)
    p = subprocess.Popen([*in_its_own_namespace(), sys.executable, "-c", code, target], stdout=subprocess.PIPE,
                         text=True)
    assert p.stdout.readline() == "ready\n"
    tidy(tmp_path)
    assert len(names(tmp_path)) == 1, "the file of a live process was removed"
    p.kill()
    p.communicate(timeout=900)
    tidy(tmp_path)
    assert names(tmp_path) == []


def test_a_folder_moved_aside_is_put_back(tmp_path):
    "A process is killed between the two renames that replace a folder."
    target = tmp_path / "model"
    p = start("""
        def write(text):
            with atomic_path(target, force=True, kind='model') as tmp:
                tmp.mkdir()
                (tmp/'config.json').write_text(text)
        write('old')
        rename = os.rename
        os.rename = lambda old, new: os.kill(os.getpid(), signal.SIGKILL) if new == target else rename(old, new)
        write('new')
        """, target)
    finish(p, -signal.SIGKILL)
    assert not target.exists()
    assert (existing_folder(target) / "config.json").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_force_knows_what_killed_processes_leave(tmp_path):
    "A folder in which they were writing can be replaced; hidden files of others keep it."
    for _ in range(2):
        with atomic_path(tmp_path / "model", force=True, kind="model") as tmp:
            (tmp / "part").mkdir(parents=True)
        p = start(WRITE_AND_WAIT, tmp_path / "model/part/results.csv")
        assert p.stdout.readline() == "ready\n"
        p.kill()
        finish(p, -signal.SIGKILL)
    (tmp_path / "model/part/.notes").touch()
    with pytest.raises(FileExistsError, match="also holds 'part/.notes', not"):
        check_replaceable(tmp_path / "model", "model")


def test_a_temporary_folder_that_somebody_removed(tmp_path):
    "Where locks hold on one machine alone, another one may do so: an error, and never half a file."
    with pytest.raises(FileNotFoundError):
        with atomic_path(tmp_path / "a.bin") as tmp:
            tmp.write_text("half ")
            for hidden in tmp_path.glob(".*"):
                files.remove_path(hidden)
            with open(tmp, "a") as f:
                f.write("whole")
    assert names(tmp_path) == []


def test_links_of_strangers_are_not_followed(tmp_path):
    "A folder from elsewhere may hold what looks like a leftover of ours."
    own, strange = tmp_path / "own", tmp_path / "strange"
    for folder in (own / "new", own / "old/photos"):
        folder.mkdir(parents=True)
    (own / "lock").touch()
    (own / "new/notes.txt").touch()
    (strange / ".wiseft-00000001").mkdir(parents=True)
    (strange / ".wiseft-00000001/lock").touch()
    (strange / ".wiseft-00000001/old").symlink_to(own / "old")
    (strange / ".wiseft-00000002").symlink_to(own)
    tidy(strange)
    assert (own / "old/photos").exists() and (own / "new/notes.txt").exists()
    assert names(strange) == [".wiseft-00000002"]


def write(folder, name="a.txt", **how):
    with atomic_path(folder / name, **how) as tmp:
        tmp.write_text("whole")


NO_LOCKS = [errno.ENOLCK, errno.ENOTSUP, errno.EIO, errno.ENOSYS, errno.EACCES]


def failing(number, when=lambda *args: True, real=None):
    "A system call that fails, in some cases."
    def call(*args, **kwargs):
        if when(*args):
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)
    return call


@pytest.mark.parametrize("number", NO_LOCKS, ids=errno.errorcode.get)
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    "Writing works; what was left there is removed after a week."
    monkeypatch.setattr(fcntl, "flock", failing(number))
    write(tmp_path)
    assert names(tmp_path) == ["a.txt"]
    with atomic_path(tmp_path / "b.txt", force=True) as tmp:
        tmp.touch()
        tidy(tmp_path)
        hidden, _ = names(tmp_path)
    (tmp_path / hidden / "new").mkdir(parents=True)
    (tmp_path / hidden / "lock").touch()
    tidy(tmp_path)
    assert names(tmp_path) == [hidden, "a.txt", "b.txt"]
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 8 * 24 * 3600)
    tidy(tmp_path)
    assert names(tmp_path) == ["a.txt", "b.txt"]


@pytest.mark.parametrize("number", NO_LOCKS, ids=errno.errorcode.get)
def test_appending_without_locks(tmp_path, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", failing(number))
    with pytest.warns(UserWarning, match="results.csv can't be locked here"):
        for value in 0.25, 0.75:
            append_results(table(value), tmp_path / "results.csv")
    assert read_results(tmp_path / "results.csv").value.tolist() == [0.25] * 6 + [0.75] * 6


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF], ids=errno.errorcode.get)
def test_a_file_system_that_syncs_no_folders(tmp_path, monkeypatch, number):
    of_folder = lambda fd: os.path.isdir(f"/proc/self/fd/{fd}")
    monkeypatch.setattr(os, "fsync", failing(number, of_folder, os.fsync))
    write(tmp_path)
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EINVAL, errno.EPERM], ids=errno.errorcode.get)
def test_a_file_system_without_links(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "link", failing(number))
    write(tmp_path)
    with pytest.raises(FileExistsError, match="exists and is kept"):
        write(tmp_path)
    assert names(tmp_path) == ["a.txt"]


def test_a_name_that_is_too_long(tmp_path):
    name = "n" * 256
    with pytest.raises(OSError, match=f"File name too long: '{tmp_path}/{name}'"):
        write(tmp_path, name)
    assert names(tmp_path) == []


def test_waiting_for_a_lock_is_told(tmp_path, monkeypatch):
    "A process that holds the lock may be stopped: whoever waits learns what for."
    p = start("""
        from wiseft.base.files import locked
        with locked(target):
            ready()
            sys.stdin.readline()
        """, tmp_path / "results.csv", stdin=subprocess.PIPE)
    assert p.stdout.readline() == "ready\n"
    monkeypatch.setattr(files, "_PATIENCE", 0.1)
    real = time.sleep

    def rest(seconds):
        real(seconds)
        if time.monotonic() - began > 1 and p.poll() is None:
            p.communicate("go on\n")
    began = time.monotonic()
    monkeypatch.setattr(time, "sleep", rest)
    with pytest.warns(UserWarning, match="results.csv: waiting for another process that is writing it") as record:
        append_results(table(0.5), tmp_path / "results.csv")
    assert len(record) == 1 and time.monotonic() - began > 1
    assert len(read_results(tmp_path / "results.csv")) == 6


def test_a_disk_that_is_only_read(small_disk):
    target = small_disk / "results.csv"
    target.write_text("old")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for write_to in lambda: atomic_path(target, force=True), lambda: locked(target):
        with pytest.raises(OSError, match=f"You may not write into the folder {small_disk}"), write_to():
            pass


@pytest.mark.parametrize("name", ["n" * 251 + ".csv", "名" * 83 + ".csv"], ids=["ascii", "chinese"])
def test_long_names(tmp_path, name):
    "As long as a file system allows."
    for value in 0.25, 0.75:
        append_results(table(value), tmp_path / name)
    assert len(read_results(tmp_path / name)) == 12
    for _ in range(2):
        with atomic_path(tmp_path / name.replace(".csv", "_dir"), force=True, kind="model") as tmp:
            tmp.mkdir()
