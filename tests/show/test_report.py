"The report of the embedded suite in a real browser: small pictures, without scripts, on a phone, in print."
import pandas as pd
import pytest
from conftest import ROOT
from tests.promises.test_site import browser, findings  # noqa: F401

ICONS = ROOT / "nbs/reproductions/icons"
SEED = 0

STICKING_OUT = """() => {
    const scrolls = e => ["auto", "scroll"].includes(getComputedStyle(e).overflowX) || e != document.body && scrolls(e.parentElement);
    const out = [...document.querySelectorAll("main *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e));
    return out.map(e => e.outerHTML.slice(0, 200)).concat(document.documentElement.scrollWidth > innerWidth ? ["the page"] : []);
}"""

BROKEN = r"""cells => cells.filter(cell => {
    const text = document.createRange();
    text.selectNodeContents(cell);
    return /^[+-]?[\d.]+$/.test(cell.innerText) && new Set([...text.getClientRects()].map(r => r.top)).size > 1;
}).map(cell => cell.outerHTML)"""


def kept(suite):
    "What the committed predictions say of one seed, as `sweep` would have kept it."
    import numpy as np
    from wiseft.infer.scores import KeptPredictions, image_rows

    sets = suite.datasets()
    rows = image_rows(sets, "test")
    classes = rows.label.cat.categories
    table = pd.read_csv(ICONS / "predictions.csv.gz", dtype=str, keep_default_na=False).set_index(["dataset", "file"])
    table = table.loc[list(zip(rows.dataset, rows.file))]

    def of(column, method, alpha):
        tuning = "" if method == "zero-shot" else "plain"
        who = dict(classifier="iconclip", tuning=tuning, method=method, alpha=alpha, precision="fp32", seed=SEED)
        return who, classes.get_indexer(table[column]), dict(confidence=np.full(len(rows), 0.5))

    methods = {"zero-shot": ("zero-shot", 0.0), f"weight-space seed {SEED}": ("weight-space", 0.5),
               f"fine-tuned seed {SEED}": ("fine-tuned", 1.0)}
    return KeptPredictions(rows, [of(column, *who) for column, who in methods.items()]), table


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    "The page's file, the table that it is made of, and the predictions."
    from wiseft.data.suites import load_suite
    from wiseft.stats.table_io import read_results
    from wiseft.show.report import write_report

    suite, results = load_suite("icons"), read_results(ICONS / "results.csv")
    results = results[(results.seed == SEED)
                      | (results.method == "zero-shot")].drop_duplicates(["method", "alpha", "dataset", "metric"])
    predictions, table = kept(suite)
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(results, path, "Icons", predictions=predictions, images=suite.datasets(),
                 recipe=dict(lr=3e-4, epochs=10))
    return path, results, table


@pytest.fixture
def page(browser, report):  # noqa: F811
    "The page in a tab; what goes wrong there, and any request, fails the test."
    context = browser.new_context(viewport=dict(width=1100, height=900))
    page, wrong = context.new_page(), []
    page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.on("request", lambda r: wrong.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
    page.goto(report[0].as_uri())
    yield page
    context.close()
    assert not wrong


def test_small_pictures_are_of_the_predictions(page, report):
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    table, shown = report[2], page.locator(".cards li").evaluate_all(
        "all => all.map(e => [e.dataset.file, e.className, e.innerText, e.querySelector('img').naturalWidth])")
    by_file = table.reset_index().set_index("file")
    assert shown
    for file, kind, text, width in shown:
        row = by_file.loc[file]
        end = "fine-tuned" if " fine-tuned " in text else "zero-shot"
        before, after = row["zero-shot" if end == "zero-shot"
                            else f"fine-tuned seed {SEED}"], row[f"weight-space seed {SEED}"]
        assert text.startswith(f"{row.label}: {end} {before} (") and f"averaged {after} (" in text and 0 < width <= 64
        assert (kind == "gained") == (after == row.label) != (before == row.label)
    assert report[0].stat().st_size < 5e6


@pytest.mark.parametrize("width", [1100, 390])
@pytest.mark.parametrize("colors", ["light", "dark"])
def test_everybody_can_read_it(page, width, colors):
    page.emulate_media(color_scheme=colors)
    page.set_viewport_size(dict(width=width, height=800))
    assert not findings(page)
    assert not page.evaluate(STICKING_OUT)


def test_the_answer_comes_first(page):
    "Verdict, what changed, slider and frontier, pictures, folded tables; and the contents lead there."
    order = page.evaluate("""() => ['.verdict', '#what-changed', '.stops', '[data-kind=frontier]', '[data-kind=shifts]',
        '#accuracy-in-percent'].map(e => document.querySelector(e).getBoundingClientRect().top)""")
    assert order == sorted(order)
    assert page.locator(".numbers dd").count() == 3 and page.locator(".numbers small").count() == 3
    page.set_viewport_size(dict(width=1280, height=800))
    links, main = page.locator("nav").bounding_box(), page.locator("main").bounding_box()
    assert links["x"] + links["width"] <= main["x"] and main["x"] + main["width"] <= 1280
    for link in page.locator("nav a").all():
        link.click()
        anchor = page.evaluate("decodeURIComponent(location.hash.slice(1))")
        assert page.locator(f"[id=\"{anchor}\"]").is_visible()


def test_every_classifier_from_the_keyboard(page, report):
    "Each stop shows its accuracies, recalls, and place in the frontier; nothing of another one"
    table = report[1].query("metric == 'accuracy' and dataset == 'reference'")
    page.locator(".stops input").first.focus()
    page.keyboard.press("Home")
    page.keyboard.press("Space")
    names, rings = [], set()
    for _ in range(page.locator(".stops input").count()):
        panel, ring = (page.locator(e).locator("visible=true") for e in (".panel", ".ring"))
        assert panel.count() == ring.count() == 1
        names.append(panel.locator("b").inner_text())
        rings.add((ring.get_attribute("cx"), ring.get_attribute("cy")))
        alpha = {"Zero-shot": 0, "Fine-tuned": 1}.get(names[-1]) or float(names[-1].partition("α = ")[2] or 0)
        own = table[(table.alpha - alpha).abs() < 1e-9]
        own = own[own.method.isin(["zero-shot", "fine-tuned", "weight-space"])]
        assert f": {100 * own.value.iloc[0]:.1f}\N{NO-BREAK SPACE}%" in panel.inner_text()
        page.keyboard.press("ArrowRight")
    assert len({*names}) == len(rings) == len(names) == 11
    assert page.locator("[data-kind=reliability]").count() == 3, "of those whose answers are there"


def test_two_classes_and_one_shift(browser, tmp_path):  # noqa: F811
    "A confusion matrix and a ROC curve; the single shifted set isn't shown a second time as a mean."
    import numpy as np
    from wiseft.data.images import ImageSet
    from wiseft.infer.scores import KeptPredictions, image_rows, score
    from wiseft.show.report import write_report

    rng, names, labels = np.random.default_rng(0), ["cat", "dog"], np.repeat([0, 1], [60, 40])
    sets = {name: ImageSet(name, [f"{name}/{i}.png" for i in range(100)], labels, names, role=role,
                           pixels=np.zeros((100, 2, 2, 3), np.uint8))
            for name, role in (("photos", "reference"), ("sketch", "shift"))}
    members = []
    for method, alpha, right in ("zero-shot", 0.0, 0.7), ("weight-space", 0.5, 0.85), ("fine-tuned", 1.0, 0.8):
        who = dict(classifier="tiny", tuning="", method=method, alpha=alpha, precision="fp32", seed=0)
        codes = np.where(rng.random(200) < right, np.tile(labels, 2), 1 - np.tile(labels, 2))
        members.append((who, codes, dict(confidence=rng.uniform(0.5, 1, 200))))
    kept = KeptPredictions(image_rows(sets, "test"), members)
    path = write_report(score(kept.frame()), tmp_path / "two.html", predictions=kept)
    page = browser.new_page()
    page.goto(path.as_uri())
    assert "mean over shifts" not in page.locator("main").evaluate("e => e.textContent")
    assert page.locator("[data-kind=roc]").count() == 3
    right = members[1][1][:100] == labels
    cells = page.locator(".confused").locator("visible=true").locator("td").all_inner_texts()
    a, b = right[:60].sum(), right[60:].sum()
    assert cells == [f"{v}" for v in (a, 60 - a, 40 - b, b)]
    for width in 390, 1280:
        page.set_viewport_size(dict(width=width, height=800))
        assert not page.evaluate(STICKING_OUT)
    page.close()


@pytest.mark.parametrize("kind, least", [("alpha", 4 * 140), ("frontier", 460), ("shifts", 460)])  # four in a row
def test_pictures_stay_legible_on_a_phone(page, kind, least):
    page.set_viewport_size(dict(width=390, height=800))
    region = page.locator(f"[data-kind={kind}] .scroll")
    assert region.locator("img").bounding_box()["width"] >= least
    assert region.bounding_box()["width"] <= 390


def test_without_scripts_and_in_print(browser, report):  # noqa: F811
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report[0].as_uri())
    assert page.locator(".lead").is_visible() and page.locator(".panel table").locator("visible=true").count() == 1
    page.emulate_media(media="print")
    assert page.locator("figure img").first.is_visible()
    assert page.locator("details td").first.is_visible(), "folded tables are on paper"
    assert not page.locator("nav").is_visible()
    page.set_viewport_size(dict(width=720, height=1000))  # A4 but for its margins
    assert not page.locator("td").evaluate_all(BROKEN), "numbers over two lines"
    assert not page.evaluate(STICKING_OUT)
    context.close()
