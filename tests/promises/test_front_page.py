"README is short, and prints what its lines print; so do the cards, which only the site has."
import json
import re
import shlex

import numpy as np
import pytest
from conftest import ROOT, python

README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = re.search(r"```python\n(.*?)```", README, re.S)[1]
ROW = re.compile(r"^\s*(?:iconclip|plain)?\s+(zero-shot|fine-tuned|weight-space|logits|probabilities)\s+"
                 r"[\d.]+\s+([\d.]+)\s+([\d.]+)$", re.M)


def table(text):
    "Accuracy on the reference and under shift by method."
    return {method: np.array([float(reference), float(shift)]) for method, reference, shift in ROW.findall(text)}


def test_the_first_screen_is_short():
    text = re.sub(r"!\[[^]]*\]\([^)]*\)|\$\$.*?\$\$|\]\([^)]*\)", " ", README, flags=re.S)
    assert len(text.split()) <= 700
    assert len(text[:text.index("```sh")].split()) <= 100


def test_what_stands_beside_the_table_follows_from_it():
    shown = table(README)
    assert len(shown) == 5
    assert shown["fine-tuned"][1] < shown["zero-shot"][1] - 3
    for end in "zero-shot", "fine-tuned":
        assert (shown["weight-space"] > shown[end]).all()
    for outputs in "logits", "probabilities":
        assert (abs(shown["weight-space"] - shown[outputs]) < 1.5).all()


def test_the_cards_run():
    "Three lines each: commands with options that exist, and Python that averages two classifiers."
    import wiseft.all
    from typer.main import get_command
    from wiseft.models.testing import pico_classifier
    from wiseft.shell.cli import app

    cells = json.loads((ROOT / "nbs/index.ipynb").read_text(encoding="utf-8"))["cells"]
    cards = "".join(line for c in cells for line in c["source"]).split("{.site .cards}")[1].split("\n::::")[0]
    assert "{.card-of}" not in README
    blocks = re.findall(r"```(\w+)\n(.*?)```", cards, re.S)
    assert [(kind, text.count("\n")) for kind, text in blocks] == [("sh", 3), ("python", 3), ("sh", 3)]
    for text in (text for kind, text in blocks if kind == "sh"):
        _, name, *args = shlex.split(text)
        get_command(app).commands[name].make_context(name, args, resilient_parsing=True)
    space = vars(wiseft.all) | dict(load_classifier=lambda path: pico_classifier(["cat", "dog"]))
    exec(blocks[1][1], space)
    assert space["averaged"].alpha == 0.5


@pytest.mark.slow
def test_the_table_is_what_the_lines_print(tmp_path):
    "Another processor or number of threads rounds differently, and a training multiplies that: some points."
    printed = table(python("-W", "ignore", "-c", LINES, cwd=tmp_path).stdout)
    shown = table(README)
    assert list(printed) == list(shown)
    assert (abs(printed["zero-shot"] - shown["zero-shot"]) <= 0.2).all()
    for method in shown:
        assert (abs(printed[method] - shown[method]) <= 6).all(), (method, printed[method], shown[method])
