"Sidebar and opening pages agree with the folders of the notebooks."
import re
import sys

import pytest
from conftest import ROOT, python

sys.path.insert(0, str(ROOT / "tools"))
from subpackages import NBS, SUBPACKAGES, folder, modules, read, source


def test_every_folder_is_a_subpackage():
    folders = {p.name for p in (NBS / "api").iterdir() if p.is_dir() and p.name != ".ipynb_checkpoints"}
    assert folders == set(SUBPACKAGES) - {"methods"}
    packages = {p.parent.name for p in (ROOT / "wiseft").glob("*/__init__.py")}
    assert packages == set(SUBPACKAGES)


@pytest.mark.parametrize("subpackage", [w for w in SUBPACKAGES if w != "methods"])
def test_modules_are_numbered_without_a_gap(subpackage):
    assert [p.name[:3] for p in modules(subpackage)] == [f"{i:02d}_" for i in range(len(modules(subpackage)))]


@pytest.mark.parametrize("subpackage", [w for w in SUBPACKAGES if w != "methods"])
def test_the_opening_page_names_every_module(subpackage):
    page = "\n".join(source(c) for c in read(folder(subpackage) / "index.ipynb")["cells"])
    there = {p.name for p in folder(subpackage).glob("*.ipynb")} - {"index.ipynb"}
    assert set(re.findall(r"^\| \[[^\]]+\]\((\w+\.ipynb)\)", page, re.M)) == there


def test_the_architecture_page_names_every_subpackage():
    intro = source(read(NBS / "api/architecture.ipynb")["cells"][1])
    assert re.findall(r"\[(\w+)\]\([./]*\1/index\.ipynb\)", intro) == list(SUBPACKAGES)


def test_lists_are_in_step():
    python(ROOT / "tools/subpackages.py", "--check")


@pytest.mark.parametrize("path, old, new", [
    ("nbs/api/base/index.ipynb", "| [base.", "| [other."),
    ("_quarto.yml", "- section: weights", "- section: widths"),
])
def test_a_stale_list_is_found(copy, path, old, new):
    text = (copy / path).read_text()
    assert old in text
    (copy / path).write_text(text.replace(old, new, 1))
    assert path in python(copy / "tools/subpackages.py", "--check", ok=False).stderr
