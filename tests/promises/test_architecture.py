"The house is as its folders say: the sidebar, the opening pages, and the names of wings and rooms."
import re
import sys

import pytest
from conftest import ROOT, python

sys.path.insert(0, str(ROOT / "tools"))
from wings import NBS, WINGS, folder, read, rooms, source

MOST = 16  # rooms in a wing


def test_every_folder_is_a_wing():
    folders = {p.name for p in (NBS / "api").iterdir() if p.is_dir() and p.name != ".ipynb_checkpoints"}
    assert folders == set(WINGS) - {"methods"}
    packages = {p.parent.name for p in (ROOT / "wiseft").glob("*/__init__.py")}
    assert packages == set(WINGS)


@pytest.mark.parametrize("wing", [w for w in WINGS if w != "methods"])
def test_rooms_are_few_and_numbered_without_a_gap(wing):
    assert len(rooms(wing)) <= MOST
    assert [p.name[:3] for p in rooms(wing)] == [f"{i:02d}_" for i in range(len(rooms(wing)))]


@pytest.mark.parametrize("wing", WINGS)
def test_the_opening_page_names_every_room(wing):
    page = "\n".join(source(c) for c in read(folder(wing) / "index.ipynb")["cells"])
    there = {p.name for p in folder(wing).glob("*.ipynb")} - {"index.ipynb"}
    assert set(re.findall(r"^\| \[[^\]]+\]\((\w+\.ipynb)\)", page, re.M)) == there


def test_the_house_names_every_wing():
    intro = source(read(NBS / "api/index.ipynb")["cells"][1])
    assert re.findall(r"\[(\w+)\]\([./]*\1/index\.ipynb\)", intro) == list(WINGS)


def test_lists_are_in_step():
    python(ROOT / "tools/wings.py", "--check")


@pytest.mark.parametrize("path, old, new", [
    ("nbs/api/base/index.ipynb", "| [base.", "| [other."),
    ("_quarto.yml", "- section: weights", "- section: widths"),
])
def test_a_stale_list_is_found(copy, path, old, new):
    text = (copy / path).read_text()
    assert old in text
    (copy / path).write_text(text.replace(old, new, 1))
    assert path in python(copy / "tools/wings.py", "--check", ok=False).stderr
