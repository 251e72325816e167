"What all commands share, and what `--help` says of their options."
import pydoc
import subprocess
import sys

import pytest
from typer.main import get_command

import wiseft
from wiseft.base import progress
from wiseft.shell.app import chosen_device
from wiseft.shell.cli import app

COMMANDS = get_command(app).commands


def test_a_command_says_once_where_it_computes(monkeypatch, capsys):
    "The library, in a terminal, says it again to nobody who has read it."
    monkeypatch.setattr(progress, "has_visible_bar", lambda: True)
    monkeypatch.setattr(progress, "SAID", set())
    device, _ = chosen_device("cpu")
    progress.say_device(device)
    assert not capsys.readouterr().err
    progress.say_device(device, "bf16")
    assert "bfloat16" in capsys.readouterr().err


def options(name): return {o: p for p in COMMANDS[name].params for o in p.opts}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text(name):
    assert not [o for o, p in options(name).items() if not p.help]


@pytest.mark.parametrize("name", [name for name in COMMANDS if "--output" in options(name)])
def test_output_says_what_is_written(name):
    text = options(name)["--output"].help
    assert any(word in text for word in ("Folder", "File", "table", "CSV", "Page")), text


def test_an_ensemble_is_evaluated_like_a_classifier():
    assert options("ensemble").keys() - options("evaluate").keys() == {"--average"}
    assert options("evaluate").keys() <= options("ensemble").keys()


def test_help_in_python_shows_types_alone():
    text = pydoc.render_doc(wiseft.run)
    assert "epochs: int = 10" in text and "OptionInfo" not in text


COLLECTIONS = """
import atexit, gc
atexit.register(lambda: print("frozen", gc.get_freeze_count() > 100_000))  # registered first, called last
from wiseft.shell.cli import app
n = []
gc.callbacks.append(lambda phase, info: n.append(phase))
try: app(["data"])
finally: print("collections", n.count("stop"))
"""


def test_a_command_hardly_collects_garbage_among_what_it_imports():
    done = subprocess.run([sys.executable, "-c", COLLECTIONS], capture_output=True, text=True)
    *_, collections, frozen = done.stdout.splitlines()
    assert int(collections.split()[1]) < 100 and frozen == "frozen True"  # of 500,000 objects
