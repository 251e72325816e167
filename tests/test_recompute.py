"What the pages print is recomputed from the committed predictions by code of its own, and a wrong digit is noticed."
import json
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import pages
import recompute


@pytest.mark.parametrize("name", list(recompute.CHECKS))
def test_page_says_what_its_data_say(name, record_property):
    page = pages.read_page(name)
    recompute.CHECKS[name](page)
    assert not page.wrong
    record_property("numbers", recompute.summary(recompute.counted(page)))


def test_every_explanation_is_recomputed():
    explanations = {f"explanations/{p.stem}" for p in (ROOT / "nbs/explanations").glob("*.ipynb")}
    # test_coverage; no results; its own data; its own measurements, which no predictions tell
    elsewhere = ("coverage", "glossary", "sixty_lines", "scaling")
    assert explanations - set(recompute.CHECKS) == {f"explanations/{n}" for n in elsewhere}


@pytest.mark.parametrize("name, old, new", [
    ("explanations/findings", "they lose 18.9 points", "they lose 18.8 points"),       # an estimate
    ("explanations/findings", "accuracy (17.2 to 20.5†)", "accuracy (16.2 to 20.5†)"),   # an end of an interval
    ("explanations/findings", "in 50 of 62", "in 51 of 62"),                           # a count
    ("explanations/findings", "all of it on pixel", "half of it on pixel"),            # words
    ("explanations/few_images", "<td>-4.0</td>", "<td>-4.1</td>"),                     # a stored table
    ("explanations/domains", "'solid': '793 training", "'solid': '794 training"),      # a printed line
    ("README", "gains 13.0 points", "gains 13.1 points"),                              # the front page
    ("README", "gains 0.2 points (−2.2 to 2.7)", "gains 2.2 points (−2.2 to 2.7)"),              # of protocol 2
    ("README", "points under shift (0.8 to 7.3)", "points under shift (2.1 to 5.9)"),  # an interval over images alone
    ("explanations/findings", "<td>-0.2</td>", "<td>0.1</td>"),                        # the same in a table
])
def test_a_planted_wrong_number_is_caught(name, old, new):
    assert not of(name, str).wrong
    planted = of(name, lambda text: text.replace(old, new, 1))
    assert planted.wrong, f"{new!r} went unnoticed"


def of(name, change):
    "A page whose text was changed, recomputed."
    page = pages.read_page(name)
    text = json.dumps(page.cells, ensure_ascii=False)
    assert change is str or change(text) != text
    page = pages.Page(name, json.loads(change(text)))
    recompute.CHECKS[name](page)
    return page


def test_none_of_our_own_statistics():
    source = "".join((ROOT / "tools" / f"{name}.py").read_text() for name in ("recompute", "pages", "kept"))
    assert "import wiseft" not in source and "from wiseft" not in source and "runs import" not in source
