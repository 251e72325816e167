"What is released is what continuous integration tests, and every file that names a version names the same one."
import re
from configparser import ConfigParser

import pytest
import yaml
from conftest import ROOT, python

CONFIG = ConfigParser()
CONFIG.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = CONFIG["DEFAULT"]
WORKFLOWS = {p.name: yaml.safe_load(p.read_text(encoding="utf-8")) for p in (ROOT / ".github/workflows").iterdir()}


def test_every_python_is_tested():
    "The classifiers list those of settings.ini."
    pythons = SETTINGS["pythons"].split()
    tested = WORKFLOWS["test.yaml"]["jobs"]["test"]["strategy"]["matrix"]["include"]
    assert [job["python"] for job in tested] == pythons
    assert pythons[0] == SETTINGS["min_python"]
    assert f'target-version = "py{pythons[0].replace(".", "")}"' in (ROOT / "ruff.toml").read_text()


def test_one_version_and_one_date():
    "A release is dated in the changelog and in the citation on the same day; before it, neither has a date."
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, date = re.search(r"^## (\S+) \((\S+)\)$", changelog, re.M).groups()
    assert version == citation["version"] == SETTINGS["version"]
    assert date == str(citation.get("date-released", "unreleased"))


def test_steps_of_a_release_are_those_of_the_workflow():
    "A person registers the names of the file and of the environments at PyPI, which refuses an upload from others."
    text = (ROOT / "RELEASING.md").read_text(encoding="utf-8")
    jobs = WORKFLOWS["release.yaml"]["jobs"]
    assert "`release.yaml`" in text
    publishing = [j for j in jobs.values() if "environment" in j]
    assert [j["environment"]["name"] for j in publishing] == ["testpypi", "pypi"]
    for job in publishing:
        assert f"`{job['environment']['name']}`" in text and job["permissions"] == {"id-token": "write"}


@pytest.mark.parametrize("name", ["bug.yml", "method.yml", "result.yml"])
def test_forms_of_issues(name):
    "GitHub shows no form that lacks one of these."
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE" / name).read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= form.keys()
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) and all(f["attributes"]["label"] for f in fields)


def test_one_line_says_how_to_install(copy):
    "README and the tutorials, for Colab, follow settings.ini."
    settings = copy / "settings.ini"
    text = settings.read_text(encoding="utf-8")
    pages = [copy / p for p in ("README.md", "nbs/tutorials/quickstart.ipynb", "nbs/tutorials/your_own_images.ipynb")]
    for source in "wiseft", "git+https://example.org/wiseft":
        settings.write_text(re.sub(r"^install = .*", f"install = {source}", text, flags=re.M), encoding="utf-8")
        python(copy / "tools/readme.py")
        for page in pages:
            assert re.findall(r"pip install(?: -q)? (\S*wiseft)\b", page.read_text(encoding="utf-8")) == [source]


def test_badges_open_what_the_settings_say(copy):
    "One line of settings.ini moves every Colab badge to another branch or tag; each opens its own page."
    settings = copy / "settings.ini"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(re.sub(r"^colab = .*", "colab = v0.1.0", text, flags=re.M), encoding="utf-8")
    python(copy / "tools/readme.py")
    badges = {}
    for page in (copy / "nbs").rglob("*.ipynb"):
        if found := re.findall(r"colab\.research\.google\.com/(.*?)\)", page.read_text(encoding="utf-8")):
            badges[page.relative_to(copy).as_posix()] = found
    assert badges.keys() >= {"nbs/tutorials/quickstart.ipynb", "nbs/tutorials/your_own_images.ipynb",
                             "nbs/reproductions/first_clip/first_clip.ipynb"}
    for page, found in badges.items():
        assert found == [f"github/wiseft/wiseft/blob/v0.1.0/{page}"]
