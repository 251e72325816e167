"The card of the embedded CLIP says what its files, its log, and the results table say."
import json
import re

import pandas as pd
from conftest import ROOT

from wiseft.base.files import package_data
from wiseft.models.classifier import zeroshot_classifier
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


def test_the_weights_have_the_license_of_the_code():
    "Said alike wherever somebody looks for it; the drawings whose license is unsettled stay named."
    assert re.search(r"^license: apache-2.0$", CARD.split("---")[1], re.M)
    def words(name):  # without the addresses of links
        return " ".join(re.sub(r"\]\(.*?\)", "]", (ROOT / name).read_text(encoding="utf-8")).split())

    pages = {name: words(name) for name in (
        "NOTICE", "README.md", "RELEASING.md", "nbs/howto/faq.ipynb", "nbs/index.ipynb", "wiseft/data/ATTRIBUTION.md",
        "wiseft/data/iconclip/README.md")}
    for name, text in pages.items():
        assert not re.search(r"no (other )?license (yet|is stated)|license for the weights", text, re.I), name
        if name != "RELEASING.md":
            assert re.search(r"weights [^.]*Apache|Apache [^.]*weights", text.replace("2.0", "2")), name
    assert all("Sargam" in pages[name] for name in ("NOTICE", "RELEASING.md", "wiseft/data/ATTRIBUTION.md"))
    assert re.search(r"one of these is unsettled", pages["README.md"])


def test_the_card_of_a_classifier_names_it(tmp_path):
    from wiseft.models.testing import pico_classifier
    from wiseft.show.card import write_card
    zeroshot_classifier(load_clip("iconclip"), ["star", "house"]).save(tmp_path / "ours")
    pico_classifier(["cat", "dog"]).save(tmp_path / "other")
    ours, other = ((write_card(tmp_path / name)).read_text(encoding="utf-8") for name in ("ours", "other"))
    assert "those of iconclip, are licensed under Apache 2.0: pass on\n[ATTRIBUTION.md](" in ours
    assert "Apache" not in other and "have licenses of\ntheir own: look there." in other
