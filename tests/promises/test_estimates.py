"An estimate with its interval in the prose of a results page stands in a table, on the same page or on a linked one."
import json
import re
import sys
from functools import cache
from itertools import chain

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
from audit import NUMBER, html_rows, number, text_of, unit

PAGES = [p for folder in ("explanations", "reproductions") for p in sorted((ROOT / "nbs" / folder).rglob("*.ipynb"))
         if ".ipynb_checkpoints" not in p.parts]
ESTIMATE = re.compile(  # with words of its own, and its interval: 1.6 points below (1.3 to 1.9)
    rf"(?:({NUMBER})[^()\d\n|;]{{0,55}})?\((?:95 % interval )?({NUMBER}) to ({NUMBER})(?=[†,)])"
    rf"|({NUMBER}), ({NUMBER}) to ({NUMBER})")
NO_ESTIMATE = r"`[^`]*`|\$[^$]*\$|\]\([^)]*\)|α from \S+ to [\d.]+"


def sources(path, kind):
    return ["".join(c["source"]) for c in cells(path) if c["cell_type"] == kind]


@cache
def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@cache
def rows(path):
    "Numbers of each row of the stored tables, and of each printed line."
    outputs = [*chain.from_iterable(c.get("outputs", []) for c in cells(path))]
    lines = [" ".join(entries) for o in outputs for _, entries in html_rows(o)]
    return [re.findall(NUMBER, line) for line in lines + [line for o in outputs for line in text_of(o).splitlines()]]


def rounds_to(shown, said, sign):
    "Whether a number of a table, which may have more digits, is what the prose says."
    margin = unit(said) / 2 if unit(shown) < unit(said) else 0
    return unit(shown) <= unit(said) and abs(number(shown) - sign * number(said)) <= margin + 1e-9


def stands_in(row, said):
    "Whether numbers stand one after another in a row; or as a loss instead of a gain."
    parts = [row[i:i + len(said)] for i in range(len(row) - len(said) + 1)]
    turned = [*said[:-2], said[-1], said[-2]]
    return any(all(rounds_to(p, s, sign) for p, s in zip(part, words))
               for part in parts for words, sign in ((said, 1), (turned, -1)))


def without_a_row(prose, tables):
    for m in ESTIMATE.finditer(re.sub(NO_ESTIMATE, "", prose)):
        said = [x for x in m.groups() if x]
        if not any(stands_in(row, said) for row in tables):
            yield m[0]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_estimates_of_the_prose_stand_in_a_table(path):
    prose = "\n\n".join(sources(path, "markdown"))
    linked = [path.parent / link for link in dict.fromkeys(re.findall(r"\]\(([^)#:]+\.ipynb)", prose))]
    tables = [*rows(path), *chain.from_iterable(rows(p) for p in linked if p.exists())]
    assert not [*without_a_row(prose, tables)]


def test_another_number_is_noticed():
    tables = [["1239", "-1.62", "-1.94", "-1.30"]]
    assert not [*without_a_row("It is 1.6 points below (1.3 to 1.9), or −1.6 (−1.9 to −1.3).", tables)]
    for wrong in "1.7 points below (1.3 to 1.9)", "1.6 points below (1.3 to 2.9)", "1.6 points above (−1.3 to 1.9)":
        assert [*without_a_row(wrong, tables)]
