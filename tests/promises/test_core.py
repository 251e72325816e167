"What runs in an everyday session is the core; extensions are loaded by those who use them."
import json
import sys

import pytest
from conftest import ROOT, python

sys.path.insert(0, str(ROOT / "tools"))
from subpackages import EXTENSIONS, NBS, SUBPACKAGES, folder, modules, source, tier

EVERYDAY = """
import inspect, sys, threading, tempfile
from pathlib import Path
import wiseft
from wiseft.all import *
import fastai.vision.all, open_clip

ran, package = set(), Path(wiseft.__file__).parent

def record(frame, event, _):
    code = frame.f_code
    if event == "call" and code.co_flags & inspect.CO_OPTIMIZED and code.co_filename.startswith(str(package)):
        ran.add(".".join(Path(code.co_filename).relative_to(package).with_suffix("").parts))

threading.setprofile(record)
sys.setprofile(record)
suite, folder = load_suite("icons"), Path(tempfile.mkdtemp()) / "average"
classifier = zeroshot_classifier(load_clip(), suite.classnames, "icons")
images, held_out = suite.train.subset(range(8)), suite.validation.subset(range(8))
tuned = finetune(classifier, images, held_out, epochs=1, batch_size=4, precision="fp32", progress=False)
sweep(classifier, tuned, images, alphas=[.5], progress=False)
alpha = choose_alpha(classifier, tuned, held_out, progress=False)
interpolate(classifier, tuned, alpha).save(folder)
evaluate(load_classifier(folder), images, progress=False)
sys.setprofile(None)
print("\\n", *sorted(ran))
print(*[m for m in sys.modules if m.startswith(("wiseft.bench", "wiseft.analysis.ask", "wiseft.show", "wiseft.shell"))])
"""


@pytest.fixture(scope="module")
def session():
    "Modules whose functions an everyday session calls; modules of extensions that it loads."
    ran, loaded = python("-c", EVERYDAY).stdout.split("\n")[-3:-1]
    return set(ran.split()), loaded.split()


def test_an_everyday_session_loads_no_extension(session):
    assert session[1] == []


def test_an_everyday_session_runs_the_core_alone(session):
    extensions = {f"{w}.{p.stem[3:]}": tier(w, p) for w in SUBPACKAGES for p in modules(w) if tier(w, p) != "core"}
    assert len(session[0]) > 40 and not {m: extensions[m] for m in session[0] & extensions.keys()}
    assert not [m for m in session[0] if m.startswith("methods.")]


def test_every_extension_has_modules():
    known = {f"{w}.{p.stem[3:]}" for w in SUBPACKAGES for p in modules(w)} | set(SUBPACKAGES)
    assert not {m for e in EXTENSIONS for m in e["modules"]} - known


def test_the_reading_path_names_modules_of_the_core():
    "Each of them by a function; the page itself checks that the session calls it."
    cells = json.loads((NBS / "api/reading.ipynb").read_text(encoding="utf-8"))["cells"]
    path, = [c for c in cells if source(c).startswith("#| echo: false\nPATH")]
    text = "".join(path["outputs"][0]["data"]["text/markdown"])
    linked = [line.split("](")[1].split(")")[0] for line in text.splitlines() if "](" in line]
    assert len(set(linked)) == 20
    assert {tier(folder(p.split("/")[0]).name, NBS / "api" / p) for p in linked} == {"core"}
