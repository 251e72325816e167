"The tree is in step with its notebooks, and the notebooks are as CONTRIBUTING.md says."
import ast
import json
import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT, needs_history, python, tree

sys.path.insert(0, str(ROOT / "tools"))
from subpackages import SUBPACKAGES

NOTEBOOKS = [p for p in tree() if p.suffix == ".ipynb"]
FINETUNING = {"train.loaders", "train.callbacks", "train.losses", "train.resume", "train.record", "train.learner",
              "train.large_batches",
              "train.weight_averages", "bench.flops", "bench.trial"}
SHELL = {"shell.app", "shell.data", "shell.train", "shell.merge", "shell.evaluate", "shell.report", "shell.bench",
         "shell.show", "shell.run", "shell.cli"}
PLOTTING = {"show.bench_plots", "show.style", "show.plots"}
# package -> its only importers
ALONE = dict(fastai=FINETUNING, seaborn=PLOTTING, matplotlib=PLOTTING, typer=SHELL, rich=SHELL)


def cells(path, kind):
    "Sources of the cells of one kind."
    return ["".join(c["source"]) for c in json.loads((ROOT / path).read_text(encoding="utf-8"))["cells"]
            if c["cell_type"] == kind]


def options(source):
    return [o.strip() for o in re.findall(r"^#\|(.+)", source, re.M)]


def exported(path):
    "Sources of the cells that go into the module."
    return [s for s in cells(path, "code") if re.search(r"^#\|\s*export[si]?\b", s, re.M)]


def parsed(source):
    "Syntax tree of a cell, without its magics."
    return ast.parse(re.sub(r"^[ \t]*[%!].*$", "", source, flags=re.M))


def module_of(path):
    "The module that a notebook exports to, in a list; those that explain export to none."
    return [o.split()[1] for s in cells(path, "code") for o in options(s) if o.startswith("default_exp")]


INDEX = Path("nbs/methods/index.ipynb")  # finds the methods, and is none


def place(path):
    "Place of a notebook in the architecture: by subpackage, then by number; methods don't know each other."
    subpackage = path.parent.name
    number = path.stem if subpackage != "methods" or path == INDEX else ""
    return SUBPACKAGES.index(subpackage) if subpackage in SUBPACKAGES else len(SUBPACKAGES), number


API = [p for p in NOTEBOOKS if p.parts[1] == "api" and module_of(p)]
METHODS = [p for p in NOTEBOOKS if p.parts[1] == "methods" and p != INDEX]
PLACES = {name: place(p) for p in [*API, INDEX, *METHODS] for name in module_of(p)}


def imports(source):
    "(module, names) of every import in a cell, within functions too."
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            yield from ((a.name, []) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "wiseft." * bool(node.level) + (node.module or ""), [a.name for a in node.names]


def test_there_are_notebooks():
    on_disk = [p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
    assert 0 < len(NOTEBOOKS) == len(on_disk)
    assert 0 < len(API) < len(PLACES)
    assert Path("nbs/index.ipynb") in NOTEBOOKS


def test_modules_are_the_notebooks():
    files = [p for p in tree() if p.parts[0] == "wiseft" and p.suffix == ".py"]
    inits = [p for p in files if p.stem == "__init__" and len(p.parts) > 2]  # those of subpackages are empty
    modules = {".".join(p.with_suffix("").parts[1:]) for p in files if p not in inits and p.stem != "_modidx"}
    assert modules == set(PLACES)


def test_export_and_clean_change_nothing(copy):
    files = tree()
    for command in "nbdev_export", "nbdev_clean":
        python("-c", f"from nbdev.{'doclinks' if 'export' in command else 'clean'} import {command}; {command}()",
               cwd=copy)
    now = {p.relative_to(copy) for p in copy.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    changed = [str(p) for p in files if not (copy / p).is_file() or (copy / p).read_bytes() != (ROOT / p).read_bytes()]
    assert not changed, f"run make export and make clean, and commit: {changed}"
    assert now == set(files), f"made by export or clean, or lost: {now ^ set(files)}"


def test_lint():
    python("-m", "ruff", "check", "--no-cache", ".", cwd=ROOT)


@needs_history
def test_readme_is_the_index():
    python(ROOT / "tools/readme.py", "--check")


def test_readme_check_can_fail(copy):
    (copy / "README.md").write_text("other words\n")
    assert "README.md" in python(copy / "tools/readme.py", "--check", ok=False).stderr


FOR_USERS = [p for p in NOTEBOOKS if p.parts[1] in ("tutorials", "howto", "explanations")]


@pytest.mark.parametrize("path", FOR_USERS, ids=str)
def test_pages_for_users_show_no_checks(path):
    for source in cells(path, "code"):
        if "hide" not in options(source):
            assert not any(isinstance(node, ast.Assert) for node in parsed(source).body), source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=str)
def test_headings(path):
    markdown = cells(path, "markdown")
    assert re.fullmatch(r"# .+\n+> .+\n*",
                        markdown[0]), "the first cell is an H1 and a > subtitle alone: its page loses the rest"
    text = re.sub(r"^```.*?^```", "", "\n".join(markdown), flags=re.M | re.S)
    assert len(re.findall(r"^# ", text, re.M)) == 1, "one H1 a notebook"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=str)
def test_imports_stand_alone(path):
    for source in cells(path, "code"):
        kinds = {isinstance(node, (ast.Import, ast.ImportFrom)) for node in parsed(source).body}
        assert kinds != {True, False}, f"a cell with imports holds imports alone:\n{source}"
        if source not in exported(path):
            alone = True in kinds or not list(imports(source))
            assert alone, f"make docs runs cells with imports: those of a function stand in a cell before it:\n{source}"


def check_imports(path, name):
    "What a module imports comes before it, by name; some packages are for some modules alone."
    for module, names in [pair for source in exported(path) for pair in imports(source)]:
        own = module.removeprefix("wiseft.") if module.startswith("wiseft.") else None
        if own:
            assert names and "*" not in names, f"{name} imports {own} without naming what"
            for each in [f"{own}.{n}" for n in names] if own in SUBPACKAGES else [own]:
                assert each in PLACES, f"{each} is no module of ours"
                assert PLACES[each] < place(path), f"{name} imports {each}, which does not come before it"
        only = ALONE.get(module.partition(".")[0], {name})
        assert name in only, f"{module} is imported by {only} alone"


@pytest.mark.parametrize("path", API, ids=str)
def test_layout(path):
    folders = ".".join(path.parts[2:-1])
    name = f"{folders}.{path.stem[3:]}".lstrip(".")
    assert re.fullmatch(r"\d\d_\w+", path.stem)
    assert cells(path, "markdown")[0].split("\n")[0] == f"# {name}"
    assert module_of(path) == [name]
    check_imports(path, name)


@pytest.mark.parametrize("path", METHODS, ids=str)
def test_layout_of_a_method(path):
    """Pages of methods that other modules stand on, such as plain fine-tuning and WiSE-FT, export nothing: their code
    lies below, in the API."""
    assert re.fullmatch(r"[a-z]\w*", path.stem)
    source = "\n".join(exported(path))
    if not module_of(path):
        assert not source, "a page without default_exp explains a method of the API and exports nothing"
        assert "](../api/" in "".join(cells(path, "markdown")), "say where the code of the method is"
        return
    assert module_of(path) == [f"methods.{path.stem}"]
    assert "@method(" in source, "a page defines a method that the registry knows"
    check_imports(path, f"methods.{path.stem}")


def test_no_import_upwards_by_string():
    "A module that is named in a string is imported later, and comes before all the same; `wiseft.all` is on top."
    for path in [*API, INDEX]:
        source = "\n".join(exported(path))
        for own in set(re.findall(r"import_module\(['\"]wiseft\.([\w.]+)", source)) & set(PLACES):
            assert PLACES[own] < place(path), f"{path} imports {own}, which does not come before it"


def is_method(node):
    "Whether a function is decorated as a method that the registry knows."
    calls = [d.func for d in getattr(node, "decorator_list", []) if isinstance(d, ast.Call)]
    return any(isinstance(f, ast.Name) and f.id == "method" for f in calls)


def test_methods_of_the_api_have_a_page():
    "Of its own a method has one anyway, in the notebook that it is defined in."
    nodes = [n for p in API for s in exported(p) for n in ast.walk(parsed(s))]
    without = [p for p in METHODS if not module_of(p)]
    on_pages = {name for p in without for s in cells(p, "code") for _, names in imports(s) for name in names}
    below = {n.name for n in nodes if is_method(n)}
    assert below and not below - on_pages, "its page imports the method and checks it"


def test_no_public_name_means_two_things():
    "Links between pages go by name."
    from wiseft._modidx import d

    names = [symbol.removeprefix(f"{module}.") for module, symbols in d["syms"].items() for symbol in symbols]
    assert not {n for n in names if names.count(n) > 1 and not n.startswith("_")}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=str)
def test_pictures_have_alternative_text(path):
    for cell in json.loads((ROOT / path).read_text(encoding="utf-8"))["cells"]:
        if any("image/png" in o.get("data", {}) for o in cell.get("outputs", [])):
            source = "".join(cell["source"])
            assert re.search(r"^#\| fig-alt: .{20}", source,
                             re.M), f'say in words what is to be seen: #| fig-alt: "..."\n{source}'


@pytest.mark.parametrize("path", NOTEBOOKS, ids=str)
def test_stored_outputs_are_fit_to_read(path):
    for cell in json.loads((ROOT / path).read_text(encoding="utf-8"))["cells"]:
        for o in cell.get("outputs", []):
            assert o["output_type"] != "error", o.get("evalue")
            assert o.get("name") != "stderr", f"warnings or progress among the outputs: {o['text']}"
            text = "".join(o.get("text", [])) + "".join("".join(v) for k, v in o.get("data", {}).items()
                                                        if k.startswith("text"))
            assert not re.search(r"(?<![\w.])/(home|root|tmp|number|Users|usr|var|private)/|[A-Z]:\\",
                                 text), f"an absolute path:\n{text}"
            assert not re.search(r"\r|it/s\b|\d+%\||<progress|█", text), f"a progress bar:\n{text}"
            assert not re.search(r"\w*Warning: ", text), f"a warning:\n{text}"


def test_every_notebook_is_in_the_sidebar():
    sidebar = (ROOT / "_quarto.yml").read_text().split("  sidebar:")[1]
    listed = re.findall(r"^ *(?:-|href:) (\S+\.ipynb)$", sidebar, re.M)
    assert sorted(listed) == sorted(p.relative_to("nbs").as_posix() for p in NOTEBOOKS)


def test_importing_the_package_loads_nothing_heavy():
    python("-c", "import sys, wiseft; assert not {'torch', 'fastai', 'pandas', 'open_clip'} & set(sys.modules), "
                 "sys.modules.keys()")


@needs_history
def test_quarto_link(copy):
    assert (copy / "nbs/_quarto.yml").readlink() == Path("../_quarto.yml")


HEAVY = {"fastai", "open_clip", "torchvision", "timm", "transformers", "matplotlib", "sklearn", "scipy.stats"}
COLLECTED = """
import sys
import pytest
assert pytest.main(["--collect-only", "-qq", "tests"]) == 0
print("heavy:", *sorted(set(sys.argv[1:]) & set(sys.modules)))
"""


@pytest.mark.slow
def test_tests_of_a_module_are_named_after_it():
    tested = [p for p in tree() if re.fullmatch(rf"tests/({'|'.join(SUBPACKAGES)})/test_\w+\.py", p.as_posix())]
    modules = [ROOT / "wiseft" / p.parent.name / f"{p.stem.removeprefix('test_')}.py" for p in tested]
    assert tested and not [m for m in modules if not m.exists()]


@pytest.mark.slow
def test_collecting_the_tests_imports_nothing_heavy():
    done = python("-c", COLLECTED, *HEAVY, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "heavy:", "a test module takes such functions by conftest's `later`"
