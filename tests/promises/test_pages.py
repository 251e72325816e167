"Every other notebook, as those of the modules: in a file of its own, since a file's tests stay in one process."
import pytest
from conftest import tree

PAGES = [p for p in tree() if p.suffix == ".ipynb" and "api" not in p.parts]


@pytest.mark.parametrize("path", PAGES, ids=str)
def test_page(path, check_notebook):
    check_notebook(path)
