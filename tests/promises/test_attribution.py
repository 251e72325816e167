"Every icon set in the package or in the pretraining of its model is attributed, and every license has its full text."
import csv
import io
import json
import re
import runpy
import zipfile

import pytest
from conftest import ROOT

from wiseft.base.files import package_data

ICONS = ROOT / "nbs/reproductions/icons"
COLUMNS = ["set", "author", "license", "address", "notes"]


def attributed(title):
    "Rows of one table of ATTRIBUTION.md: set -> columns."
    text = package_data("ATTRIBUTION.md").read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    rows = {}
    for line in text.splitlines():
        if name := re.search(r"\(`(.+)`\)", line):
            cells = map(str.strip, line.strip("|").split(" | "))
            rows[name[1]] = dict(zip(COLUMNS, cells, strict=True))
    return rows


def rows():
    return [*attributed("Suite and control set").values(), *attributed("Pretraining of iconclip").values()]


@pytest.mark.parametrize("name", ["icons", "other-icons"])
def test_every_set_of_an_archive_is_attributed(name):
    with zipfile.ZipFile(package_data(f"{name}.zip")) as archive:
        table = io.StringIO(archive.read(f"{name}/{name}.csv").decode())
    sets = {row["set"] for row in csv.DictReader(table)}
    assert sets and sets <= attributed("Suite and control set").keys()


def test_every_family_of_the_pretraining_is_attributed():
    families = json.loads((ICONS / "families.json").read_text(encoding="utf-8"))["families"]
    card = json.loads((package_data("iconclip") / "iconclip.json").read_text(encoding="utf-8"))
    sets = {s for family in card["families"] for s in families[family]["sets"]}
    assert len(card["families"]) == 36 and sets == attributed("Pretraining of iconclip").keys()


def test_every_set_has_an_author_a_license_and_an_address():
    for row in rows():
        assert row["author"] and re.fullmatch(r"https?://\S+", row["address"]), row


def test_every_license_has_its_full_text():
    texts = {p.stem: p.read_text(encoding="utf-8") for p in (ROOT / "LICENSES").glob("*.txt")}
    assert {row["license"] for row in rows()} == texts.keys()
    assert min(map(len, texts.values())) > 300


def test_the_metadata_name_the_licenses_of_what_the_package_contains():
    inside = {row["license"] for row in attributed("Suite and control set").values()}
    expression = re.search(r'^LICENSES = "(.+)"', (ROOT / "setup.py").read_text(encoding="utf-8"), re.M)[1]
    assert expression.split(" AND ") == sorted({"Apache-2.0", *inside}, key=str.lower)


def test_the_attribution_is_written_from_the_table():
    script = runpy.run_path(str(ICONS / "attribution.py"))
    assert script["attribution"]() == package_data("ATTRIBUTION.md").read_text(encoding="utf-8")

