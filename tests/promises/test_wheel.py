"The wheel works without the source tree, beside the libraries here and in an empty environment with the newest ones."
import csv
import json
import os
import re
import shutil
from importlib import import_module
from sysconfig import get_path

import pytest
from conftest import ROOT, copy_tree, python, run, slow_except, tree
from tests.promises.test_jupyter import FEW_IMAGES, ONE_EPOCH

SOURCES = [p for p in tree() if p.parts[0] == "wiseft" and p.suffix == ".py" and p.stem not in ("__main__", "_modidx")]
MODULES = sorted(".".join((p.parent if p.stem == "__init__" else p.with_suffix("")).parts) for p in SOURCES)


def clean_environment(home):
    "The environment of this process without what would let the source tree in."
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "WISEFT"))}
    return dict(keep, HOME=str(home), WISEFT_CACHE=str(home / "cache"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The wheel, by way of the source distribution."
    work = tmp_path_factory.mktemp("package")
    copy_tree(work / "source")
    python("-m", "build", "--outdir", work / "dist", work / "source", env=clean_environment(work))
    return next((work / "dist").glob("*.whl"))


@pytest.fixture(scope="module", params=slow_except(["beside what is here", "in an empty environment"],
                                                   ["beside what is here"]))
def installed(wheel, tmp_path_factory, request):
    "(an environment with the wheel, working folder, environment variables)."
    work = tmp_path_factory.mktemp("installed")
    (work / "home").mkdir()
    env, venv = clean_environment(work / "home"), work / "venv"
    python("-m", "venv", venv, env=env)
    needs = []
    if request.param == "beside what is here":  # this environment's libraries, behind the wheel
        needs = ["--no-deps"]
        site, = venv.glob("lib/*/site-packages")
        (site / "libraries.pth").write_text(get_path("purelib"))
    # what is imported is compiled then; of all that comes along little is
    run(venv / "bin/python", "-m", "pip", "install", "--quiet", "--no-compile", *needs, wheel, env=env, timeout=3600)
    yield venv / "bin", work / "home", env
    shutil.rmtree(venv)


def test_every_module_comes_from_the_wheel(installed):
    bin, home, env = installed
    code = f"""
import importlib, json, sys
for m in {MODULES}: importlib.import_module(m)
print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.partition(".")[0] == "wiseft"]))
"""
    files = json.loads(run(bin / "python", "-I", "-W", "ignore", "-c", code, cwd=home, env=env).stdout.splitlines()[-1])
    assert len(files) == len(MODULES)
    assert not [f for f in files if not f.startswith(str(bin.parent))]


def test_metadata(installed):
    bin, home, env = installed
    code = (
        "import json; from importlib.metadata import metadata as m; "
        "keys = ['Version', 'Description', 'Requires-Python', 'License-Expression', 'License-File', 'Classifier']; "
        "print(json.dumps({k: m('wiseft').get_all(k) for k in keys}))"
    )
    data = json.loads(run(bin / "python", "-I", "-c", code, cwd=home, env=env).stdout)
    version = run(bin / "python", "-I", "-c", "import wiseft; print(wiseft.__version__)", cwd=home,
                  env=env).stdout.strip()
    assert data["Version"] == [version]
    texts = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "LICENSES").iterdir())
    assert sorted(data["License-File"]) == sorted(["LICENSE", "NOTICE", *texts])
    assert "MIT" in data["License-Expression"][0].split(" AND ")
    site = bin.parent / "lib"
    assert len([*site.glob("*/site-packages/wiseft-*.dist-info/licenses/LICENSES/*.txt")]) == len(texts)
    assert [*site.glob("*/site-packages/wiseft/data/ATTRIBUTION.md")]
    assert [*site.glob("*/site-packages/wiseft/py.typed")], "type checkers read annotations only where it is"
    language = "Programming Language :: Python :: "
    versions = [c.removeprefix(language) for c in data["Classifier"] if c.startswith(language)]
    assert versions == ["3", "3.11", "3.12", "3.13", "3.14"] and data["Requires-Python"] == [">=3.11"]
    assert "](docs/" not in data["Description"][0] and "](nbs/" not in data["Description"][
        0], "a relative link leads nowhere from the page of the package"


def test_demo(installed):
    bin, home, env = installed
    assert "wiseft" in run(bin / "wiseft", "--version", cwd=home, env=env).stdout
    code = ONE_EPOCH + FEW_IMAGES + "from wiseft.shell.cli import app\napp(['demo', '-o', 'out'])"
    done = run(bin / "python", "-W", "ignore", "-c", code, cwd=home, env=env, timeout=3600)
    names = {p.name for p in (home / "out").iterdir()}
    assert {"results.csv", "report.html"} <= names and any(n.endswith(".png") for n in names), names
    assert "mean over shifts" in done.stdout


def script(installed, code):
    "Run code as a reader would, outside the source tree, training an epoch; returns what it prints."
    bin, home, env = installed
    (home / "script.py").write_text(ONE_EPOCH + code)
    return run(bin / "python", "-W", "ignore", "script.py", cwd=home, env=dict(env, MPLBACKEND="agg"),
               timeout=3600).stdout


def cells(path, kind):
    return ["".join(c["source"]) for c in json.loads((ROOT / path).read_text())["cells"] if c["cell_type"] == kind]


def landing_page(language):
    "Blocks of code in the text of the landing page."
    return re.findall(rf"```{language}\n(.*?)```", "\n".join(cells("nbs/index.ipynb", "markdown")), re.S)


def own_images():
    "The Python on the landing page for a reader's own images."
    [own] = [block for block in landing_page("python") if "folder_suite" in block]
    return own


PHOTOS = """
from pathlib import Path
from wiseft.all import *
icons = load_suite('icons')
for folder, images in ('photos', icons.test), ('other-photos', icons.shifts['solid']):
    for i, label in enumerate(images.labels):
        if label < 12:
            file = Path(folder, images.classnames[label], f'{i}.jpg')
            file.parent.mkdir(parents=True, exist_ok=True)
            images.open(i).resize((160, 160)).save(file)
            images.open(i).save('picture.jpg')
"""


@pytest.mark.slow
@pytest.mark.parametrize("installed", ["in an empty environment"], indirect=True)
def test_landing_page_with_images_of_ones_own(installed):
    "The lines as they stand, but for the CLIP of photographs, which would have to be downloaded."
    own = own_images()
    script(installed, PHOTOS)
    photographs = "load_clip('ViT-B-32', 'laion2b_s34b_b79k')"
    assert photographs in own
    assert "mean over shifts" in script(installed, own.replace(photographs, "load_clip()"))
    assert (installed[1] / "averaged-classifier").is_dir()


def test_the_lowest_versions_were_proved(monkeypatch):
    "What `make lowest` found is of the bounds that are in force, and CONTRIBUTING.md gives reasons for the same."
    monkeypatch.syspath_prepend(ROOT / "tools")
    bounds = import_module("lowest").requirements()
    rows = list(csv.DictReader((ROOT / "tools/lowest.csv").open(encoding="utf-8")))
    proved = {r["what"]: r["lowest"] for r in rows if r["kind"] == "requirement"}
    assert proved == bounds and all(bounds.values())
    outcomes = {r["what"]: r["found"] for r in rows if r["kind"] == "outcome"}
    assert len(outcomes) > 3 and set(outcomes.values()) == {"passed"}, outcomes
    reasons = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Why a version is the lowest")[1]
    for names, versions in re.findall(r"^\| ([a-z][\w, ]+) \| ([\d., ]+) \|", reasons, re.M):
        given = dict(zip(names.split(", "), versions.split(", ")))
        assert given.items() <= bounds.items(), given
