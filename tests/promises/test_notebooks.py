"Every module's notebook, run for real, each anew; what is stored is what it prints."
import json
import shutil
import sys

import pytest
from conftest import ROOT, python, slow_except, tree

sys.path.insert(0, str(ROOT / "tools"))
from inputs import unchanged as would_print_the_same  # noqa: E402

NOTEBOOKS = [p for p in tree() if p.suffix == ".ipynb" and "api" in p.parts]


@pytest.mark.parametrize("path", slow_except(NOTEBOOKS, [p for p in NOTEBOOKS if not would_print_the_same(p)]), ids=str)
def test_notebook(path, check_notebook):
    check_notebook(path)


def notebook(path, source, outputs=()):
    "Write a notebook of one code cell."
    cell = dict(cell_type="code", id="a", metadata={}, execution_count=None, source=[source], outputs=list(outputs))
    path.write_text(json.dumps(dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=5)))
    return path


def stored(path):
    return json.loads(path.read_text())["cells"][0]["outputs"]


@pytest.mark.slow
def test_a_notebook_finds_nothing_of_ours_and_of_other_notebooks(refresh, tmp_path):
    code = ("import os, sys\nours = [m for m in sys.modules if m.startswith('wiseft')]\n"
            "print(ours, os.environ.get('LEFT'), os.getcwd())")
    outputs = []
    for leave in "", "\nimport wiseft.weights.tensors\nos.environ['LEFT'] = 'behind'\nos.chdir('/')", "":
        path = notebook(tmp_path / "a.ipynb", code + leave)
        refresh(path, check=False)
        outputs.append(stored(path))
    assert outputs[0][0]["text"] == [f"[] None {tmp_path}\n"] and outputs[0] == outputs[2]


def test_a_failing_notebook_is_found(refresh, tmp_path):
    done = refresh(notebook(tmp_path / "a.ipynb", "1/0"), ok=False)
    assert "ZeroDivisionError" in done.stderr


def test_a_stale_output_is_found(refresh, tmp_path):
    path = notebook(tmp_path / "a.ipynb", "print('new words', 1)")
    assert "new words" in refresh(path, ok=False).stderr
    refresh(path, check=False)
    assert stored(path)[0]["text"] == ["new words 1\n"]
    refresh(path)


TABLE = "import pandas as pd; pd.DataFrame(dict(n=[812, 1239], accuracy=[.8125, .7893]))"
PICTURE = "import matplotlib.pyplot as plt; plt.plot([0, 1, 2], [.5, {}, .7]);"


@pytest.mark.parametrize("source, edit", [
    ("print('accuracy 0.8125')", ("0.8125", "0.7125")),
    ("print('812 images')", ("812", "813")),
    ("print('zero-shot')", ("zero-shot", "fine-tuned")),
    (TABLE, ("<td>0.8125</td>", "<td>0.7125</td>")),
    (TABLE, ("<td>1239</td>", "<td>1240</td>")),
    (TABLE, ("<th>accuracy</th>", "<th>error</th>")),
])
def test_a_stale_number_is_found(refresh, tmp_path, source, edit):
    path = notebook(tmp_path / "a.ipynb", source)
    refresh(path, check=False)
    assert refresh(path).stdout in ("1 texts\n", "1 tables\n")
    fresh = stored(path)
    old = json.loads(json.dumps(fresh).replace(*edit))
    assert old != fresh
    notebook(path, source, old)
    assert "stale" in refresh(path, ok=False).stderr


def test_a_stale_picture_is_found(refresh, tmp_path):
    path = notebook(tmp_path / "a.ipynb", PICTURE.format(.6))
    refresh(path, check=False)
    notebook(path, PICTURE.format(.9), stored(path))
    assert "stale" in refresh(path, ok=False).stderr


@pytest.mark.parametrize("stored_number, ok", [("0.6125", True), ("lost", False)])
def test_after_training_words_are_compared(refresh, tmp_path, stored_number, ok):
    source = "import pandas as pd\ndef fit(n): return n\nfit(1)\npd.DataFrame(dict(accuracy=[.8125]))"
    path = notebook(tmp_path / "a.ipynb", source)
    refresh(path, check=False)
    notebook(path, source, json.loads(json.dumps(stored(path)).replace("<td>0.8125", f"<td>{stored_number}")))
    refresh(path, ok=ok)


def test_rounding_is_not_stale(refresh, tmp_path):
    path = notebook(tmp_path / "a.ipynb", "print('accuracy', 0.8125)",
                    [dict(name="stdout", output_type="stream", text=["accuracy 0.8130"])])
    refresh(path)


def test_cells_not_to_be_run_keep_their_outputs(refresh, tmp_path):
    kept = dict(name="stdout", output_type="stream", text=["kept"])
    for option in "#| eval: false", "#| notest":
        path = notebook(tmp_path / "a.ipynb", option + "\n1/0", [kept])
        refresh(path, check=False)
        assert stored(path) == [kept]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A project of one page, which imports a module that imports another that reads a file; its outputs are fresh."
    project = tmp_path_factory.mktemp("project")
    for name in "settings.ini", "tools/refresh.py", "tools/inputs.py", "tests/conftest.py":
        (project / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    (project / "nbs").mkdir()
    (project / "nbs/near.py").write_text("def shown():\n    from far import number\n    return number\n")
    (project / "nbs/far.py").write_text("number = float(open('data.csv').read()) + 1  # of the file\n")
    (project / "nbs/data.csv").write_text("1")
    notebook(project / "nbs/page.ipynb", "from near import shown\nshown()")
    python(project / "tools/refresh.py", project / "nbs/page.ipynb")
    return project


def unchanged(project):
    "Whether `make test` would leave out the page."
    code = "import inputs; print(inputs.unchanged('nbs/page.ipynb'))"
    return python("-c", code, cwd=project / "tools").stdout == "True\n"


@pytest.mark.parametrize("file, old, new", [
    ("nbs/far.py", "+ 1", "+ 2"), ("nbs/near.py", "return number", "return -number"), ("nbs/data.csv", "1", "2"),
    ("nbs/page.ipynb", "2.0", "3.0"), ("nbs/page.ipynb", "shown()", "-shown()"),
    ("tests/pages.json", '"hash": "', '"hash": "0'), ("nbs/far.py", "# of the file", "# of a file"),
])
def test_a_page_runs_again_where_more_than_a_comment_changed(project, file, old, new):
    assert unchanged(project)
    text = (project / file).read_text()
    assert old in text
    (project / file).write_text(text.replace(old, new))
    assert unchanged(project) == old.startswith("#")
    (project / file).write_text(text)


def test_a_page_runs_again_without_a_file_that_it_reads(project):
    (project / "nbs/data.csv").unlink()
    assert not unchanged(project)
