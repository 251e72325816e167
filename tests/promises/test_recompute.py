"What the pages print is recomputed from the committed predictions by code of its own, and a wrong digit is noticed."
import json
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import pages
import recompute


@pytest.mark.slow
@pytest.mark.parametrize("name", list(recompute.CHECKS))
def test_page_says_what_its_data_say(name, record_property):
    page = recompute.judge(pages.read_page(name))
    assert not page.wrong
    record_property("numbers", recompute.summary(recompute.counted(page)))


@pytest.mark.slow
def test_every_explanation_is_recomputed():
    explanations = {f"explanations/{p.stem}" for p in (ROOT / "nbs/explanations").glob("*.ipynb")}
    # test_coverage; no results; its own data; its own measurements, which no predictions tell
    elsewhere = ("coverage", "glossary", "sixty_lines", "scaling")
    assert explanations - set(recompute.CHECKS) == {f"explanations/{n}" for n in elsewhere}


PLANTED = {
    "explanations/findings": [
        ("lose 18.9 points", "lose 18.8 points"),                     # an estimate
        ("accuracy (17.2 to 20.5†)", "accuracy (16.2 to 20.5†)"),          # an end of an interval
        ("in 50 of 62", "in 51 of 62"),                                    # a count
        ("(an oracle)", "(no oracle)"),                                    # words
        ("<td>-0.2</td>", "<td>0.1</td>"),                                 # an interval in a table
        ("gains 0.2 points (−2.2 to 2.7)", "gains 2.2 points (−2.2 to 2.7)"),    # of protocol 2
        ("points under shift (0.8 to 7.3)", "points under shift (2.1 to 7.3)"),  # an interval over images alone
    ],
    "explanations/few_images": [("<td>-4.0</td>", "<td>-4.1</td>")],       # a stored table
    "explanations/path": [
        ("| 3.6 (2.6 to 4.6) |", "| 3.7 (2.6 to 4.6) |"),                  # an estimate that no row of a table shows
        ("| 2.6 (1.8 to 3.5) |", "| 2.6 (1.9 to 3.5) |"),                  # an end of its interval
        ("There is no barrier", "There is no barrier of 0.1 points"),      # a number that nothing checks
    ],
    "explanations/domains": [("'solid': '793 training", "'solid': '794 training")],  # a printed line
    "README": [
        ("gains 13.0 points", "gains 13.1 points"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_each_planted_wrong_number_is_caught(name):
    page = pages.read_page(name)
    text = json.dumps(page.cells, ensure_ascii=False)
    for old, new in PLANTED[name]:
        assert old in text
        text = text.replace(old, new, 1)
    planted = recompute.judge(pages.Page(name, json.loads(text)))
    assert len(planted.wrong) == len(PLANTED[name]), planted.wrong


@pytest.mark.slow
def test_none_of_our_own_statistics():
    source = "".join((ROOT / "tools" / f"{name}.py").read_text() for name in ("recompute", "pages", "kept"))
    assert "import wiseft" not in source and "from wiseft" not in source and "runs import" not in source
