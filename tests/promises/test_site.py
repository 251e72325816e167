"The documentation, built offline and read in a real browser here; requests to other hosts are stopped and counted."
import http.server
import importlib
import inspect
import os
import re
import shutil
import threading
from functools import cache, partial
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest
from conftest import ROOT, copy_tree, later, python, slow_except, tree

Axe = later("axe_playwright_python.sync_playwright", "Axe")
sync_playwright = later("playwright.sync_api", "sync_playwright")
SOURCES = [p.relative_to("nbs") for p in tree() if p.parts[0] == "nbs" and p.suffix in (".ipynb", ".md")]
PAGES = [p.with_name(re.sub(r"^\d+_", "", p.name)).with_suffix(".html").as_posix() for p in SOURCES]
MODULES = [p.removeprefix("api/").removesuffix(".html") for p in PAGES
           if p.startswith("api/") and not p.endswith(("/index.html", "/architecture.html", "/reading.html"))]
LANDING, TUTORIAL, MODULE = "index.html", "tutorials/quickstart.html", "api/weights/tensors.html"
MOVED = {"explanations/evidence.html": "reproductions/evidence/evidence.html"}  # earlier addresses
MARKUP = r":::|#\||@fig-|\{target=|\\\(|\\\[|\$\$"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "Folder of the built site."
    copy = copy_tree(tmp_path_factory.mktemp("site") / "copy")
    python(copy / "tools/docs.py", timeout=3600)
    return copy / "_docs"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address(site):
    "Address of the site on this machine."
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    "Chromium without a window; its absence is a failure in continuous integration."
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if not executable:
        say = "no Chromium to read the site with (on Debian: apt install chromium)"
        pytest.fail(say) if os.environ.get("CI") else pytest.skip(say)
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=executable)


@pytest.fixture
def page(browser, address):
    "An empty tab; whatever goes wrong in it, and every request to another host, fails the test at its end."
    context = browser.new_context(base_url=address, permissions=["clipboard-read", "clipboard-write"])
    page, wrong = context.new_page(), []

    def only_here(route):
        if route.request.url.startswith((address, "data:")):
            return route.continue_()
        wrong.append(f"a request to {route.request.url}")
        route.abort()

    context.route("**/*", only_here)
    page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.on("response", lambda r: wrong.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    yield page
    context.close()
    assert not wrong


PHONE, LAPTOP = dict(width=390, height=844), dict(width=1280, height=800)

CUT = """() => {
    const scroller = e => e.matches("main") ? null : ["auto", "scroll"].includes(getComputedStyle(e).overflowX) ? e : scroller(e.parentElement);
    const found = [...document.querySelectorAll("main img, main svg")].filter(e => e.getBoundingClientRect().right > innerWidth);
    for (const e of document.querySelectorAll("main *")) {
        if (!e.getClientRects().length || e.closest("math *")) continue;
        const box = scroller(e);
        if (e.getBoundingClientRect().right > innerWidth + 1 && !box) found.push(e);
        if (box === e && e.scrollWidth > e.clientWidth + 1 && !e.matches(".more")) found.push(e);
    }
    return found.map(e => e.outerHTML.slice(0, 200)).concat(document.documentElement.scrollWidth > innerWidth ? ["the page"] : []);
}"""  # pictures always fit; what else is too wide scrolls, and fades where there is more


ALIKE = """() => {
    const path = e => !e || e.matches("main, nav, body") ? "" : `${path(e.parentElement)} > ${e.tagName}.${e.className}`;
    const bare = e => e.innerHTML.replace(/>[^<]*</g, "><").replace(/href="[^"]*"/, "");
    const seen = new Set();
    for (const e of document.querySelectorAll("pre span:not(:has(*)), nav li:not(:has(ul))")) {
        const kind = path(e) + (e.tagName == "LI" ? bare(e) : "");
        seen.has(kind) ? e.remove() : seen.add(kind);
    }
}"""  # thousands of words of code and hundreds of links in the bar differ in nothing but their text

OF_NEW_COLORS = """known => {
    const hash = styles => [...styles.join()].reduce((h, c) => Math.imul(h, 31) + c.charCodeAt() | 0, 0);
    const heads = [...document.querySelectorAll("head style, head link[rel=stylesheet]")];
    const whole = hash(heads.map(e => e.href || e.textContent));
    const own = e => hash([...e.children].filter(c => c.matches("style")).map(c => c.textContent));
    const row = e => e.matches("tr") && e.rowIndex % 2;
    const kind = e => [e.tagName, e.className, e.getAttribute("style"), row(e), own(e)].join();
    const above = e => e.matches("body") ? whole : path(e.parentElement);
    const path = e => e.matches("math *") ? path(e.closest("math")) : above(e) + kind(e);
    const seen = new Set(known), fresh = [];
    for (const e of document.querySelectorAll("body :not(:has(*), style, script)")) {
        const p = path(e);
        seen.has(p) ? e.remove() : (seen.add(p), fresh.push(p));
    }
    return fresh;
}"""  # the style sheets know elements by no more than that
COLORS = ["color-contrast", "link-in-text-block"]  # rules of axe-core
KNOWN = {"light": [], "dark": []}  # kinds of elements whose colors were looked at, on this page or one before


def findings(page, colors="light", colors_alone=False):
    "What axe-core holds against the page and calls serious or critical; against colors, of kinds that are new."
    page.add_style_tag(content="code > span { background: none !important }")  # the mark of a line that wraps
    violations = []

    def look(**some):
        options = dict(resultTypes=["violations"], preload=False, **some)
        violations.extend(Axe().run(page, options=options).response["violations"])
    if not colors_alone:
        page.evaluate(ALIKE)
        look(rules={rule: dict(enabled=False) for rule in COLORS})
    if fresh := page.evaluate(OF_NEW_COLORS, KNOWN[colors]):
        KNOWN[colors] += fresh
        look(runOnly=COLORS)
    return [f"{v['impact']} {v['id']}: {n['html']} {n['failureSummary']}" for v in violations
            if v["impact"] in ("serious", "critical") for n in v["nodes"]]


@pytest.mark.slow
def test_every_source_has_its_page(site):
    assert sorted([*PAGES, *MOVED]) == sorted(p.relative_to(site).as_posix() for p in site.rglob("*.html"))


@pytest.mark.parametrize("name", slow_except(PAGES, [LANDING]))
def test_page(page, name):
    page.goto(name)
    marked = [urljoin(page.url, a.get_attribute("href")) for a in page.locator("#quarto-sidebar a.active").all()]
    assert marked == ([] if "/audit/" in name else [page.url]), "the current page is marked, and no other"
    assert page.locator("h1").count() == 1
    prose = page.evaluate("() => { const b = document.body.cloneNode(true); b.querySelectorAll('code, pre, "
                          "script').forEach(e => e.remove()); return b.textContent }")
    assert not re.findall(MARKUP, prose), "markup that was not read"
    assert not re.search(r"\]\((\.|http)", prose), "a link that was not read, or in another link"
    for picture in page.locator("main img").all():
        assert picture.evaluate("e => e.naturalWidth") > 0
    assert not findings(page)
    links = page.locator("#quarto-sidebar a[href]:visible").count()
    assert links <= 30, f"{links} links in the menu"
    for size in LAPTOP, PHONE:
        page.set_viewport_size(size)
        page.wait_for_timeout(50)  # fades follow the size
        assert not page.evaluate(CUT), size
    page.emulate_media(color_scheme="dark")
    page.reload()
    assert not findings(page, "dark", colors_alone=True), "in the dark nothing but colors is another"


@cache
def ids(page):
    return set(re.findall(r'\bid="([^"]+)"', page.read_text()))


@pytest.mark.slow
def test_no_dead_link(site):
    for name in PAGES:
        text = (site / name).read_text()
        for link in re.findall(r'\b(?:href|src)="([^"]+)"', text):
            if re.match(r"[a-z]+:", link):
                assert not link.startswith("https://wiseft.github.io"), f"{name} leads to the published site: {link}"
                continue
            path, fragment = urldefrag(link)
            target = (site / name).parent / unquote(path) if path else site / name
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), f"{name} links to {link}"
            assert not fragment or unquote(fragment) in ids(target.resolve()), f"{name} links to {link}"


def own_names(module):
    "Functions and classes that a module shows, and no other has; plumbing is exported without being shown."
    module = importlib.import_module(f"wiseft.{module}".replace("/", "."))
    values = {name: getattr(module, name) for name in getattr(module, "__all__", [])}
    own = {n: v for n, v in values.items() if getattr(v, "__module__", None) == module.__name__}
    return [n for n, v in own.items() if inspect.isroutine(v) or inspect.isclass(v)]


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_every_function_is_on_its_page(site, module):
    anchors = ids(site / f"api/{module}.html")
    for name in own_names(module):
        assert name.lower() in anchors, f"{name} has no place on the page of {module}"


@pytest.mark.slow
@pytest.mark.parametrize("module", [m for m in MODULES if m != "all"])
def test_source_links_lead_to_the_line(site, module):
    text, lines = (site / f"api/{module}.html").read_text(), (ROOT / f"wiseft/{module}.py").read_text().splitlines()
    links = re.findall(r'/blob/main/wiseft/([\w/]+)\.py#L(\d+)"[^>]*>source</a></p>\s*<h3 [^>]*>(.*?)</h3>', text)
    assert links or not own_names(module)
    for file, line, name in links:
        assert file == module
        assert re.search(rf"\b(def|class) {name.split('.')[-1]}\b",
                         " ".join(lines[int(line) - 1:int(line) + 4])), f"{name} is not at line {line}"


@pytest.mark.slow
def test_navigation(page):
    page.goto(LANDING)
    page.locator(".navbar").get_by_role("link", name="API").click()
    assert page.url.endswith("/api/index.html")
    page.locator("#quarto-sidebar").get_by_text("Start", exact=True).click()  # sections are folded
    page.locator("#quarto-sidebar").get_by_role("link", name="Quickstart").click()
    assert page.url.endswith(TUTORIAL)


@pytest.mark.slow
def test_each_kind_of_page_is_in_the_bar(page):
    page.goto(LANDING)
    for name, start in {"Start": "tutorials/", "Guides": "howto/", "Methods": "explanations/which_method",
                        "What we measured": "explanations/", "API": "api/", "Help": "howto/"}.items():
        page.locator(".navbar").get_by_role("link", name=name, exact=True).click()
        assert f"/{start}" in page.url


@pytest.mark.slow
def test_navigation_on_a_phone(page):
    page.set_viewport_size(PHONE)
    page.goto(LANDING)
    link = page.locator(".navbar").get_by_role("link", name="Start")
    assert not link.is_visible()
    page.locator(".navbar-toggler").click()
    link.click()
    assert page.url.endswith(TUTORIAL)


@pytest.mark.slow
def test_search_finds_a_function(page):
    page.goto(LANDING)
    page.keyboard.press("/")
    page.keyboard.type("merge_files")
    page.locator("a.search-result", has_text="merge_files").first.click()
    assert "api/weights/files.html" in page.url


QUESTIONS = {  # what people type -> the page or section with the answer
    "how many images": "faq.html#how-many-images", "which alpha": "faq.html#which", "α": "faq.html#which",
    "patients": "howto/sites_and_patients", "hospital": "howto/sites_and_patients", "site": "howto/sites_and_patients",
    "groups": "howto/groups", "AUROC": "howto/your_metric", "sensitivity": "howto/your_metric",
    "SLURM": "howto/cluster", "ONNX": "howto/deploy", "W&B": "howto/log_your_runs", "wandb": "howto/log_your_runs",
    "crash": "faq.html#my-run-crashed", "LoRA": "methods/lora", "BatchNorm": "faq.html#my-model-has-batch",
    "multi-label": "faq.html#my-images-have-several-labels", "segmentation": "faq.html#my-images-have-several-labels",
    "out of memory": "faq.html#out-of-memory", "ViT": "howto/which_clip", "learning rate": "faq.html#which-learning-rate",
    "how do I cite": "faq.html#how-do-i-cite", "GPU": "howto/gpu", "merge_files": "api/weights/files",
}


def hits(page, query):
    "Where the search leads for a query, best first."
    page.get_by_role("searchbox").fill(query)
    page.locator(f'.search-results[data-of="{query}"]').wait_for()
    return [a.get_attribute("href") for a in page.locator("a.search-result").all()]


@pytest.mark.slow
def test_search_answers_questions(page):
    page.goto(LANDING)
    found = {query: hits(page, query)[:3] for query in QUESTIONS}
    assert not {query: some for query, some in found.items() if not any(QUESTIONS[query] in hit for hit in some)}


@pytest.mark.slow
def test_search_finds_no_word_that_is_not_there(page):
    page.goto(LANDING)
    assert not hits(page, "zebrafish")
    for href in hits(page, "patients"):
        page.goto(href)
        assert re.search("patient|hospital|clinic|site", page.locator("main").inner_text(), re.I)


@pytest.mark.slow
@pytest.mark.parametrize("colors", ["light", "dark"])
def test_what_the_search_finds_can_be_read(page, colors):
    page.goto(LANDING)
    if colors == "dark":
        page.locator(".quarto-color-scheme-toggle").click()
    page.keyboard.press("/")
    page.keyboard.type("average weights")
    page.locator("a.search-result").first.wait_for()
    assert not findings(page, colors)


@pytest.mark.slow
def test_code_has_room_and_wraps(page):
    "At 1440 px a line has 100 columns; a longer one takes a second line, and the page doesn't scroll."
    page.set_viewport_size(dict(width=1440, height=900))
    page.goto(MODULE)
    code = page.locator("div.sourceCode code.sourceCode").first
    line = code.locator("> span").first
    height = line.bounding_box()["height"]
    for columns, rows in (98, 1), (130, 2):
        line.evaluate("(e, n) => { e.textContent = 'x '.repeat(n / 2) }", columns)
        assert round(line.bounding_box()["height"] / height) == rows
    assert not page.evaluate(CUT)


@pytest.mark.slow
@pytest.mark.parametrize("earlier, now", MOVED.items())
def test_a_page_that_moved_is_found_at_its_earlier_address(page, earlier, now):
    page.goto(earlier)
    page.wait_for_url(f"**/{now}")
    assert page.locator("h1.title").inner_text() == "Which method: the evidence"


@pytest.mark.slow
def test_code_of_explanations_is_folded(page):
    page.goto("reproductions/evidence/evidence.html")
    code = page.locator("div.sourceCode").first
    assert not code.is_visible()
    page.get_by_role("button", name="Show all code").click()
    assert code.is_visible()
    page.get_by_role("button", name="Hide all code").click()
    assert not code.is_visible()
    for name in "explanations/sixty_lines.html", TUTORIAL:
        page.goto(name)
        assert page.locator("div.sourceCode").first.is_visible()


@pytest.mark.slow
def test_copy_button(page):
    page.goto(LANDING)
    page.get_by_role("button", name="Copy").first.click()
    assert page.evaluate("() => navigator.clipboard.readText()").startswith("pip install")


@pytest.mark.slow
def test_light_and_dark(page):
    page.goto(LANDING)
    color = lambda: page.evaluate("() => getComputedStyle(document.body).backgroundColor")  # noqa: E731
    light = color()
    page.locator(".quarto-color-scheme-toggle").click()
    assert color() != light
    page.goto(MODULE)
    assert color() != light, "the choice is forgotten on the next page"


@pytest.mark.slow
def test_the_first_screen(page):
    "What it is, what it does, and how to start it are seen without scrolling."
    page.set_viewport_size(LAPTOP)
    page.goto(LANDING)
    seen = [page.locator("h1"), page.locator(".hero img"), page.get_by_text("pip install").first,
            *(page.locator(".hero").get_by_role("link", name=name) for name in ("Quickstart", "GitHub"))]
    for each in seen:
        box = each.bounding_box()
        assert box["y"] + box["height"] <= LAPTOP["height"]


@pytest.mark.slow
def test_methods_are_sorted_and_filtered(page):
    page.goto("methods/index.html")
    cards = page.locator(".gallery .method:visible")
    pages = {p.removeprefix("methods/") for p in PAGES if p.startswith("methods/")} - {"index.html"}
    assert {a.get_attribute("href") for a in cards.all()} == pages
    page.get_by_role("button", name="merge").click()
    assert 5 < cards.count() < len(pages) and cards.all_inner_texts() == [t for t in cards.all_inner_texts() if "merge" in t]
    page.get_by_role("button", name="all").click()
    page.get_by_label("Sort by").select_option("lead")
    assert "soup" in cards.first.inner_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", [LANDING, TUTORIAL, MODULE, "explanations/tradeoff.html", "methods/index.html"])
def test_nothing_moves_while_a_page_loads(page, name):
    page.add_init_script("""window.moved = 0;
        new PerformanceObserver(list => list.getEntries().forEach(e => moved += e.value))
            .observe({ type: "layout-shift", buffered: true })""")
    for size in LAPTOP, PHONE:
        page.set_viewport_size(size)
        page.goto(name, wait_until="networkidle")
        assert page.evaluate("moved") < 0.1  # what browsers call good


@pytest.mark.slow
def test_pages_are_light(site):
    "A page and its pictures stay below a megabyte."
    def weight(name):
        pictures = re.findall(r'<img src="([^":]+)"', (site / name).read_text())
        return sum((site / name).parent.joinpath(p).stat().st_size for p in pictures) + (site / name).stat().st_size
    assert not {name: weight(name) for name in PAGES if weight(name) > 1e6}


@pytest.mark.slow
def test_it_works_from_a_folder(browser, site):
    page, wrong = browser.new_page(), []
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.goto((site / LANDING).as_uri())
    page.locator(".navbar").get_by_role("link", name="API").click()
    assert page.locator("h1").inner_text() == "API"
    assert not wrong


@pytest.mark.slow
def test_markdown_copies(site):
    index = (site / "llms.txt").read_text()
    for name in PAGES:
        copy = name.removesuffix(".html") + ".llms.md"
        assert f"/{copy})" in index
        text = (site / copy).read_text()
        assert re.match(r"# \S", text) and "{target=" not in text


@pytest.mark.slow
@pytest.mark.parametrize("name", [LANDING, TUTORIAL, MODULE])
def test_screenshots(page, name):
    "Not a test: pictures to look at, in screenshots/."
    for width in 1280, 375:
        page.set_viewport_size(dict(width=width, height=900))
        page.goto(name)
        page.screenshot(path=ROOT / f"screenshots/{Path(name).stem}-{width}.png", full_page=True)
