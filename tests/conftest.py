"What all tests share: the tree as a copy, a cache of their own, processes."
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config):
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here may need a hub
    os.environ["WISEFT_DEVICE"] = "cpu"  # the same numbers everywhere


def pytest_terminal_summary(terminalreporter):
    said = [v for report in terminalreporter.getreports("passed") for k, v in report.user_properties
            if k == "stored outputs"]
    for line in said and ["", "stored outputs against fresh ones:", *said]:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    "One cache for the whole session, never the user's."
    os.environ["WISEFT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    return Path(os.environ["WISEFT_CACHE"])


def tree():
    "Paths of the project's files, relative: tracked ones, and new ones that git does not ignore."
    out = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                         capture_output=True, text=True, check=True)
    return sorted({Path(o) for o in out.stdout.split("\0") if o and os.path.lexists(ROOT / o)})


def copy_tree(target):
    "Copy the project's files to the folder `target`."
    for path in tree():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, target / path, follow_symlinks=False)
    return target


@pytest.fixture
def copy(tmp_path):
    "A copy of the project's files in an empty folder."
    return copy_tree(tmp_path / "copy")


def run(*command, ok=True, **kwargs):
    "Run a command; returns its process with `stdout` and `stderr` as text, which a failure shows unless `ok` is None."
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **kwargs)
    if ok is not None:
        assert (done.returncode == 0) == ok, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def python(*args, **kwargs):
    "Run this Python."
    return run(sys.executable, *args, **kwargs)


def check_notebook(path, record_property):
    "Run a notebook in a process of its own; what it has stored must be what it prints."
    done = python(ROOT / "tools/refresh.py", "--here", "--check", ROOT / path, timeout=900)
    record_property("stored outputs", f"{path}: {done.stdout.strip()}")
