"`wiseft ask` as a new user has it: a folder, fifty pictures labeled in a browser, a table, an answer."
import csv
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from conftest import later
from wiseft.data.images import ImageSet
from wiseft.analysis.ask import NONE, Questions, judged
from wiseft.models.testing import pico_classifier
from wiseft.shell.cli import app

finetune = later("wiseft.train.learner", "finetune")
Axe = later("axe_playwright_python.sync_playwright", "Axe")
sync_playwright = later("playwright.sync_api", "sync_playwright")

TAKEN = '</script><script>document.title = "taken"</script>'
CLASSES = ["red", TAKEN, *(f"color {i}, of some" for i in range(12)), "blue"]
CHANNELS = [0, 1, len(CLASSES) - 1]  # what is brightest -> class


def wiseft(*words, code=0):
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    "Eighty patches, a classifier that knows nothing of them, and the same after some steps of training."
    work = tmp_path_factory.mktemp("room")
    (work / "new").mkdir()
    colors = np.random.default_rng(0).integers(0, 256, (80, 3, 3, 3), dtype=np.uint8)
    names = [f'{i:02} <b>"a, b".png' for i in range(80)]
    for name, color in zip(names, colors):
        Image.fromarray(color).resize((40, 40), 0).save(work / "new" / name)
    labels = np.array(CHANNELS)[colors.mean((1, 2)).argmax(1)]
    patches = ImageSet("patches", [work / "new" / n for n in names], labels, CLASSES)
    start = pico_classifier(CLASSES, 2, transformer=True)
    finetuned = finetune(start, patches, epochs=4, lr=1e-3, batch_size=8, progress=False)
    start.save(work / "start")
    finetuned.save(work / "finetuned")
    wiseft("ask", work / "start", work / "finetuned", work / "new", "--labels", 50, "--random", 10, "-o", work / "ask")
    truth = dict(zip((str(p) for p in patches.paths), labels))
    return work, {f: CLASSES[c] for f, c in truth.items()}


@pytest.fixture(scope="module")
def browser():
    "Chromium without a window; its absence is a failure in continuous integration."
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if not executable:
        say = "no Chromium to label pictures in (on Debian: apt install chromium)"
        pytest.fail(say) if os.environ.get("CI") else pytest.skip(say)
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=executable)


@pytest.fixture
def page(browser, work):
    "The page, as a file; whatever goes wrong in it, and every request, fails the test."
    context = browser.new_context(accept_downloads=True)
    page, wrong, address = context.new_page(), [], (work[0] / "ask/index.html").as_uri()
    page.on("request", lambda r: wrong.append(r.url) if not r.url.startswith((address, "data:", "blob:")) else None)
    page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.goto(address)
    yield page
    context.close()
    assert not wrong


def findings(page):
    "What axe-core holds against the page and calls serious or critical."
    violations = Axe().run(page, options=dict(resultTypes=["violations"])).response["violations"]
    return [(v["id"], n["html"]) for v in violations if v["impact"] in ("serious", "critical") for n in v["nodes"]]


def questions(work): return json.loads((work / "ask/questions.json").read_text())


def saved(page, path):
    with page.expect_download() as download:
        page.get_by_text("save labels.csv").click()
    assert download.value.suggested_filename == "labels.csv"
    download.value.save_as(path)
    return list(csv.reader(path.open(encoding="utf-8")))


def choose(page, name):
    "By mouse: the button, or typed where there is none."
    button = page.locator("#buttons button").filter(has_text=name)
    if button.count():
        return button.first.click()
    page.get_by_label("Another class").fill(name)
    page.get_by_label("Another class").press("Tab")


@pytest.mark.slow
def test_fifty_pictures_by_mouse_and_keyboard(page, work, tmp_path):
    folder, truth = work
    files = questions(folder)["files"]
    assert len(files) >= 50 and "taken" not in page.title()
    for k, file in enumerate(files):
        assert page.locator("#name").inner_text() == file
        names = [b.inner_text().split("\n")[-1] for b in page.locator("#buttons button").all()]
        at = next((i for i, n in enumerate(names[:-1]) if n.endswith(truth[file])), None)
        if k % 2 and at is not None:  # by keyboard
            page.keyboard.press(str(at + 1))
            page.keyboard.press("Enter")
        else:
            choose(page, truth[file])
            page.get_by_text("next →").click()
        if k == 20:  # closed, and opened again: it goes on where it was
            page.reload()
            assert page.locator("#done").inner_text() == f"Picture 22 of {len(files)}; 21 have a label."
    table = saved(page, tmp_path / "labels.csv")
    assert {row[0]: row[1] for row in table[1:]} == {f: truth[f] for f in files}
    text = wiseft("ask", folder / "ask", "--answers", tmp_path / "labels.csv")
    assert f"{len(files)} of {len(files)} pictures have a label" in text and "start" in text and "finetuned" in text


def test_several_labels_none_and_another_mind(page, work, tmp_path):
    files = questions(work[0])["files"]
    for key in "120":  # two classes; then none of them, which takes their place
        page.keyboard.press(key)
    page.keyboard.press("ArrowRight")
    for key in "0", "1", "2", "2":  # none; a class takes its place; a second one, and back
        page.keyboard.press(key)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("/")
    page.keyboard.type("color 7, of some")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    page.reload()
    table = saved(page, tmp_path / "labels.csv")
    assert table[1] == [files[0], NONE, "", ""]
    assert [bool(cell) for cell in table[2]] == [True, True, False, False]
    assert table[3][1] == "color 7, of some" and table[3][2] and not table[3][3]
    assert not any(cell for row in table[4:] for cell in row[1:])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size(dict(width=390, height=800))
    page.reload()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#buttons button").first.click()
    page.get_by_text("next →").click()
    assert "1 have a label" in page.locator("#done").inner_text()
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == dict(light="rgb(255, 255, 255)", dark="rgb(23, 25, 28)")[scheme]
    assert not findings(page)


def test_asked_again_it_goes_on(work, tmp_path):
    folder, truth = work
    two = [folder / "start", folder / "finetuned", folder / "new"]
    target = tmp_path / "again"
    wiseft("ask", *two, "--labels", 5, "-o", target)
    table = (target / "labels.csv").read_text(encoding="utf-8-sig").splitlines()
    first = next(csv.reader([table[1]]))[0]
    quoted = '"' + first.replace('"', '""') + '"'
    (target / "labels.csv").write_text("\n".join([table[0], f"{quoted},blue,,", *table[2:]]), encoding="utf-8")
    assert "is kept" in wiseft("ask", *two, "--labels", 8, "-o", target, code=1)
    wiseft("ask", *two, "--labels", 8, "-o", target, "--force")
    rows = list(csv.reader((target / "labels.csv").open(encoding="utf-8-sig")))
    assert len(rows) == 9 and rows[1][:2] == [first, "blue"]
    assert '"blue"' in (target / "index.html").read_text()
    said = wiseft("ask", target, "--answers", target / "labels.csv")
    assert "1 of 8 pictures have a label" in said and "The plan was extended" in said
    wiseft("ask", *two, "--labels", 8, "-o", target, "--force")
    assert json.loads((target / "questions.json").read_text())["extended"]


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.45])
def test_a_plan_extended_again_and_again_tells_few_false_differences(share):
    "Of two equally good classifiers, with plans of 50, 60, … 100 labels, looked at whenever one is complete."
    rng, runs, told = np.random.default_rng(0), 200, 0
    for _ in range(runs):
        alone = rng.choice(["first", "second", "neither"], 100, p=[share, share, 1 - 2 * share])
        for n in range(50, 101, 10):
            files = [str(i) for i in range(n)]
            questions = Questions(names=["a", "b"], classnames=["first", "second", "neither"], files=files,
                                  predicted=[[0] * n, [1] * n], asked=[True] * n, random=[False] * n, disagree=200,
                                  n=1000, packed=False, pool="", extended=n > 50)
            row = judged(questions, {f: [right] for f, right in zip(files, alone)})[0].iloc[0]
            if row.low > 0 or row.high < 0:
                told += 1
                break
    assert told / runs <= 0.05


def test_what_vanished_is_named(work, tmp_path):
    folder, truth = work
    shutil.copytree(folder / "new", tmp_path / "new")
    wiseft("ask", folder / "start", folder / "finetuned", tmp_path / "new", "--labels", 5, "-o", tmp_path / "asked")
    files = json.loads((tmp_path / "asked/questions.json").read_text())["files"]
    os.remove(files[2])
    output = wiseft("ask", tmp_path / "asked", "--answers", tmp_path / "asked/labels.csv")
    assert f"Pictures that are no longer there: {files[2]!r}." in output
