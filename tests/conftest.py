"What all tests share: the tree as a copy, a cache of their own, processes."
import gc
import html
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import cache as once
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LONGEST = "test_pages", "test_notebooks", "test_site", "test_wheel", "test_other_device"


def pytest_collection_modifyitems(items):
    "The longest files first: at the end one process would wait for the other."
    items.sort(key=lambda item: [*LONGEST, item.path.stem].index(item.path.stem))
    gc.freeze()  # pytest looks for garbage at its end: not among what was imported


def pytest_configure(config):
    default_signals_in_children(config)
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here may need a hub
    os.environ["WISEFT_DEVICE"] = "cpu"  # the same numbers everywhere


def default_signals_in_children(config):
    """A job in the background ignores signals, and so would all programs that it starts. One that handles a signal by
    doing nothing goes on as well, and what it starts has Python's default. Processes of xdist live as long as the first
    one."""
    for name in "SIGINT", "SIGHUP":
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        in_xdist = name == "SIGHUP" and hasattr(config, "workerinput")
        if number and (in_xdist or signal.getsignal(number) is signal.SIG_IGN):
            signal.signal(number, lambda *_: None)


def pytest_terminal_summary(terminalreporter):
    "Where the time went, and how many stored outputs were compared with fresh ones."
    reports = [r for some in terminalreporter.stats.values() for r in some if hasattr(r, "duration")]
    seconds = Counter()
    for report in reports:
        seconds[report.nodeid.partition("::")[0]] += report.duration
    folders = Counter()
    for file, spent in seconds.items():
        folders[str(Path(file).parent)] += spent
    terminalreporter.section("seconds by folder, and of the slowest files")
    for name, spent in [*folders.most_common(), *seconds.most_common(15)]:
        terminalreporter.write_line(f"{spent:6.0f}  {name}")
    compared = [f"{v}" for r in reports for k, v in getattr(r, "user_properties", ()) if k == "stored outputs"]
    for line in compared and ["", "stored outputs against fresh ones:", *sorted(set(compared))]:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    "One cache for the whole session, never the user's."
    os.environ["WISEFT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    return Path(os.environ["WISEFT_CACHE"])


HISTORY = (ROOT / ".git").exists()  # not so in a source distribution
needs_history = pytest.mark.skipif(not HISTORY, reason="a source distribution has neither history nor links")


@once
def tree():
    "Paths of the project's files, relative: tracked ones, and new ones that git does not ignore."
    if not HISTORY:
        listed = (ROOT / "wiseft.egg-info/SOURCES.txt").read_text(encoding="utf-8").splitlines()
        return sorted(p for p in set(map(Path, listed)) if p.parts[0] != "wiseft.egg-info" and (ROOT / p).exists())
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


def slow_except(values, quick):
    "Values of a parametrized test; `make test` takes the quick ones, `make test-all` all."
    return [v if v in quick else pytest.param(v, marks=pytest.mark.slow) for v in values]


def later(module, *names):
    "Functions of a module that is imported when one of them is called: whoever collects tests does not wait for it."
    def of(name):
        def call(*args, **kwargs):
            return getattr(import_module(module), name)(*args, **kwargs)
        call.__name__ = name
        return call
    return of(names[0]) if len(names) == 1 else [of(name) for name in names]


def run(*command, ok=True, **kwargs):
    "Run a command; returns its process with `stdout` and `stderr` as text, which a failure shows unless `ok` is None."
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **kwargs)
    if ok is not None:
        assert (done.returncode == 0) == ok, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def python(*args, **kwargs):
    "Run this Python."
    return run(sys.executable, *args, **kwargs)


def process(function, *args):
    "A call in a process of its own, forked from one that has imported what is heavy, which happens once."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["wiseft.bench.run", "wiseft.shell.app", "wiseft.methods.lp_ft", "open_clip"])
    child = context.Process(target=function, args=args)
    child.start()
    return child


class Forked:
    "Such a process, whose output goes to a file."

    def __init__(self, log, function, *args):
        self.log = Path(log)
        self.log.write_text("")
        self.process = process(printing, log, function, *args)

    def lines(self):
        "What it has printed so far."
        return self.log.read_text().splitlines()

    def wait(self, done):
        "Until it has printed what `done` wants, or has ended, or fifteen minutes have passed."
        deadline = time.time() + 900
        while not done(self.lines()) and self.process.is_alive() and time.time() < deadline:
            time.sleep(0.002)

    def end(self, sent=None):
        "Its exit status, after a signal if there is one; after fifteen more minutes it is killed."
        if sent:
            os.kill(self.process.pid, sent)
        self.process.join(900)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return self.process.exitcode


def command_line(folder, *args):
    "What `wiseft` does, in a folder."
    from wiseft.shell.cli import app

    os.chdir(folder)
    app(list(map(str, args)))


def wiseft_apart(*args, cwd, ok=True):
    "Run a command line in a process of its own; returns what it printed."
    done = Forked(cwd / "printed.txt", command_line, cwd, *args)
    assert (done.end() == 0) == ok, done.log.read_text()
    return done.log.read_text()


def unboxed(printed):
    "What a terminal shows, on one line, without the lines of boxes."
    return " ".join(re.sub("[╭╮╰╯│─]", " ", printed).split())


def plain(page):
    "Text of Markdown or HTML on one line, without markup, and with the characters of a terminal."
    text = re.sub(r"\\|\*\*|^> ?", "", re.sub(r"<[^>]+>", " ", page), flags=re.M)
    return " ".join(html.unescape(text).replace("−", "-").split())


def printing(log, function, *args):
    "Call a function that prints to a file, line by line."
    for standard in sys.stdout, sys.stderr:
        standard.flush()
    to = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(to, 1), os.dup2(to, 2)
    sys.stdout.reconfigure(line_buffering=True)
    function(*args)


@pytest.fixture(scope="session")
def refresh(cache, tmp_path_factory):
    "A function that runs a notebook in a fork of a process that has imported what is heavy and is not ours."
    command = [sys.executable, ROOT / "tools/refresh.py", "--serve"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    logs = [tmp_path_factory.mktemp("refresh") / name for name in ("stdout", "stderr")]

    def run_notebook(path, check=True, ok=True):
        print(json.dumps([str(ROOT / path), check, *map(str, logs)]), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        done = subprocess.CompletedProcess(path, code, *[log.read_text() for log in logs])
        assert (code == 0) == ok, f"{path} ended with {code}\n{done.stdout}\n{done.stderr}"
        return done

    yield run_notebook
    output = server.communicate()[1].partition("nanobind: leaked")[0]  # of Triton, at the end of some processes
    assert not output, "importing what is heavy and is not ours is silent"


@pytest.fixture
def check_notebook(refresh, record_property):
    "A function that runs a notebook; what it has stored must be what it prints."
    def check(path):
        record_property("stored outputs", f"{path}: {refresh(path).stdout.strip()}")
    return check
