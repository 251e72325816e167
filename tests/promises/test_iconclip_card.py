"The card of the embedded CLIP says what its files, its log, and the results table say."
import json
import re

import pandas as pd
from conftest import ROOT

from wiseft.base.files import package_data
from wiseft.models.clip import load_clip

FOLDER = package_data("iconclip")
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")


def test_size_and_data():
    clip, about = load_clip("iconclip"), json.loads((FOLDER / "iconclip.json").read_text(encoding="utf-8"))
    parameters = sum(p.numel() for p in clip.model.parameters())
    assert f"{parameters / 1e6:.1f} million parameters" in CARD
    assert f"{round((FOLDER / 'open_clip_model.safetensors').stat().st_size / 1e6)} MB" in CARD
    for words in (f"{about['pairs']:,} icons with {about['distinct_names']:,} names",
                  f"{len(about['families'])} families", f"`@iconify/json` {about['data'].split()[1]}",
                  f"{about['trained_steps']:,} steps of {about['batch']} pairs", f"seed {about['seed']}",
                  f"{about['seen_tokens']:,} tokens", about["date"]):
        assert words in CARD, words


def test_accuracy():
    table = pd.read_csv(ROOT / "nbs/reproductions/icons/results.csv")
    rows = table[(table.method == "zero-shot") & (table.dataset != "mean over shifts") & (table.metric == "accuracy")]
    rows = rows[rows.seed == 0]  # the zero-shot classifier is the same for each
    assert len(rows) == 8
    for r in rows.itertuples():
        name = "outline (the reference)" if r.dataset == "reference" else r.dataset
        low, value, high = (f"{100 * v:.1f}" for v in (r.low, r.value, r.high))
        assert f"| {name} | {r.n:,} | {value} ({low}–{high}) |" in CARD


def test_pages_that_introduce_it_link_the_card():
    for page in "tutorials/quickstart", "howto/which_clip", "reproductions/icons/icons":
        text = (ROOT / f"nbs/{page}.ipynb").read_text(encoding="utf-8")
        assert re.search(r"blob/main/wiseft/data/iconclip/README\.md", text), page
