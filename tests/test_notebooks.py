"Every notebook, run for real in a process of its own; what is stored is what it prints."
import pytest
from conftest import ROOT, python, tree

NOTEBOOKS = [p for p in tree() if p.suffix == ".ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=str)
def test_notebook(path):
    python(ROOT / "tools/refresh.py", "--here", "--check", ROOT / path, timeout=600)
