"The headline tables of the results pages are recomputed by code of its own, and planted wrong numbers are noticed."
import re
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import audit

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", audit.PAGES)
def test_page_says_what_its_answers_say(name, record_property):
    page = audit.audited(name)
    assert not page.wrong
    record_property("numbers", page.compared)


NOT_AUDITED = {
    "coverage", "scaling", "asked",  # simulations and timings
    "scratch", "published", "diversity", "architectures",  # made of accuracies, published tables, or models
    "which_method",  # quotes the evidence
    "icons", "imagenet", "first_clip", "glossary", "sixty_lines",  # no results
}


def test_every_results_page_is_audited_or_listed():
    pages = {p.stem for folder in ("explanations", "reproductions") for p in (ROOT / "nbs" / folder).rglob("*.ipynb")
             if ".ipynb_checkpoints" not in p.parts}
    assert pages - NOT_AUDITED == {name.split("/")[-1] for name in audit.PAGES} - {"index", "README"}


def test_none_of_our_own_statistics():
    source = (ROOT / "tools/audit.py").read_text()
    assert not re.search(r"(import|from) (wiseft|runs|pandas|torch)", source)


def without_a_seed():
    "What the fourth row of averages/averages would say if the third seed were left out."
    runs = audit.runs("averages")
    own = [i for i, s in enumerate(runs.settings) if s["seed"] < 2 and s["alpha"] == 1
           and (s["batchnorm"], s["method"]) == ("frozen", "SWA")]
    return f"<td>{runs.rows(own).mean('shift'):.1f}<"


PLANTED = [  # page, code or heading of a table (or '' for prose), row, what it says, what it says then; or rows swapped
    ("README", "", 0, "gains 13.0 points", "gains 13.1 points"),  # another digit
    ("index", "", 0, "0.9 points better", "0.8 points better"),
    ("index", "", 0, "costs 1.6 points", "costs 1.3 points"),  # an end instead of the estimate
    ("explanations/findings", "rows = {'fine-tuned", 4, "<td>0.4<", "<td>0.6<"),  # of an interval over images alone
    ("explanations/findings", "rows = {'fine-tuned", 8, "<td>12<", "<td>62<"),  # groups
    ("explanations/findings", "", 0, "in 50 of 62", "in 51 of 62"),
    ("explanations/findings", "| recipe | |", 4, "52.0", "50.0"),  # digits swapped
    ("explanations/tradeoff", "found = pd.DataFrame([row(*c, d)", 4, "<td>1.7<", "<td>-1.7<"),  # a sign
    ("explanations/linear_end_to_end", "compared = [(", 8, "<td>2.4<", "<td>2.5<"),  # an end of an interval
    ("explanations/few_images", "| images per class", 3, "−2.2", "2.2"),
    ("explanations/few_images", "table = change_table(", (13, 14), "", ""),
    ("explanations/path", "rows.append(dict(on=d", 2, "<td>3838<", "<td>3383<"),  # a number of images
    ("explanations/weights_outputs", "verdict = pd", 6, "<td>-0.1<", "<td>0.1<"),  # an interval without zero
    ("explanations/averages_over_time", "norm = change_table(", 2, "<td>-4.3<", "<td>-4.4<"),
    ("explanations/domains", "ours = pd.DataFrame(rows)", 3, "<td>984<", "<td>1239<"),  # n of the other reference
    ("explanations/hyperparameters", "| α = 0.5 − fine-tuned |", 1, "60 of 62", "61 of 62"),
    ("explanations/choosing_alpha", "| rule | α |", 4, "| 0.3 |", "| 0.2 |"),
    ("explanations/choosing_alpha", "regret = pd.DataFrame(rows)", (2, 4), "", ""),
    ("explanations/averaging_fails", "counts = ours[kept]", 5, "<td>50<", "<td>49<"),
    ("explanations/photographs", "word_pairs = ", 3, "<td>20.8<", "<td>21.8<"),
    ("reproductions/evidence/evidence", "eight('resnet-harsh')", 4, "(+0.3 to +1.6)", "(-0.3 to +1.6)"),
    ("reproductions/evidence/evidence", "evidence('LiNeS'", (2, 4), "", ""),
    ("reproductions/evidence/evidence", "at_best('vit, harsh')", 2, "+0.3 (-0.4", "+0.3 (-0.7"),  # of the row above
    ("explanations/forgotten", "pd.DataFrame(rows)", 3, "86.2 (", "88.2 ("),
    ("explanations/learned", "", 0, "[cost](photographs.ipynb) 1.6", "[cost](photographs.ipynb) 1.3"),  # an end
    ("explanations/retrieval", "shown = differences", 5, "<td>5.1<", "<td>5.4<"),
    ("explanations/several_labels", "shown = differences", 4, "<td>0.3<", "<td>-0.3<"),  # over images: established
    ("explanations/remembered", "points = restored", 11, "<td>17.2<", "<td>20.8<"),  # of the α before
    ("explanations/remembered", "by_style = limit", 1, "<td>16.8<", "<td>14.3<"),  # of the row below
    ("explanations/forgotten", "pd.DataFrame(rows)", 7, "-3.3 (-5.4 to", "-3.3 (-4.9 to"),
    ("explanations/without_labels", "primary.round(2)", 1, "<td>0.26<", "<td>0.25<"),
    ("reproductions/protocol2/protocol2", "verdict['', 'holds']", 1, "<td>0.8061<", "<td>2.1315<"),  # over images
    ("reproductions/protocol2/protocol2", "def gains(c, where)", 9, "-4.0 (-7.3", "4.0 (-7.3"),
    ("reproductions/icons/robustness", "mean = combine_seeds(results)", (3, 4), "", ""),
    ("reproductions/bench/bench", "shown(own.sort_values", 1, "<td>0.7 to 1.8<", "<td>-0.7 to 1.8<"),
    ("reproductions/bench/towers", "def ends(made)", 6, "38.5 (", "38.4 ("),
    ("reproductions/grid/grid", "accuracy_table(shown", 7, "<td>7<", "<td>5<"),  # a number of runs
    ("reproductions/ends/ends", "accuracy_table(shown", 18, "<td>56.2<", "<td>58.8<"),  # of the row below
    ("reproductions/shots/shots", "accuracy_table(runs", 1, "<td>82.5<", "<td>82.4<"),
    ("reproductions/averages/averages", "accuracy_table(runs", 4, "<td>62.5<", without_a_seed),
    ("reproductions/why/why", "accuracy_table(runs", 3, "<td>51.1<", "<td>51.2<"),
    ("reproductions/names/names", "accuracy_table(runs", (10, 11), "", ""),
    ("reproductions/domains/domains", "accuracy_table(runs", 3, "<td>79.8<", "<td>79.7<"),
]


def planted(name, start, row, old, new):
    "Cells of a page with a wrong number, or with the entries of two rows swapped."
    cells = audit.read(name)
    cell = next(c for c in cells if (start or old) in "".join(c["source"]))
    stored = [o["data"] for o in cell.get("outputs", []) if "text/html" in o.get("data", {})]
    holder, key = (stored[0], "text/html") if stored else (cell, "source")
    text = "".join(holder[key])
    lines = re.findall(r"<tr.*?</tr>", text, re.S) if stored else text.partition(start or old)[2].splitlines()[2:]
    rows = [line for line in lines if "<td" in line or not stored]
    if isinstance(row, tuple):
        one, other = (rows[i - 1] for i in row)
        entries = lambda r: r[r.index("<td"):]
        changed = text.replace(one, one.replace(entries(one), entries(other)), 1)
        changed = changed.replace(other, other.replace(entries(other), entries(one)), 1)
    else:
        part = rows[row - 1] if row else text
        changed = text.replace(part, part.replace(old, new() if callable(new) else new, 1), 1)
    assert changed != text
    holder[key] = changed
    return cells


@pytest.mark.parametrize("plant", PLANTED, ids=lambda p: f"{p[0]}, {p[1]}, {p[2]}")
def test_a_planted_number_is_reported(plant):
    name, start, row, old, new = plant
    found = audit.audited(name, planted(*plant)).wrong
    number = re.findall(audit.NUMBER, new() if callable(new) else new)
    assert found and all(f.startswith(f"{name}: ") and " printed " in f for f in found)
    if isinstance(row, tuple):
        assert {int(re.search(r"row (\d+)", f)[1]) for f in found} == {*row}
    else:
        (report,) = found
        assert any(f"printed {n}, recomputed" in report for n in number)
        assert f"row {row} (" in report or not start


def test_every_audited_page_has_a_planted_number():
    assert {p[0] for p in PLANTED} == {*audit.PAGES}
