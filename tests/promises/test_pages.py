"Every other notebook, as those of the modules: in a file of its own, since a file's tests stay in one process."
import sys

import pytest
from conftest import ROOT, slow_except, tree

sys.path.insert(0, str(ROOT / "tools"))
from inputs import unchanged  # noqa: E402

PAGES = [p for p in tree() if p.suffix == ".ipynb" and "api" not in p.parts]


@pytest.mark.parametrize("path", slow_except(PAGES, [p for p in PAGES if not unchanged(p)]), ids=str)
def test_page(path, check_notebook):
    check_notebook(path)
