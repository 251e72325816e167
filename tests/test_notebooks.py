"Every module's notebook, run for real in a process of its own; what is stored is what it prints."
import json

import pytest
from conftest import ROOT, check_notebook, python, tree

NOTEBOOKS = [p for p in tree() if p.suffix == ".ipynb" and p.parent.name == "api"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=str)
def test_notebook(path, record_property):
    check_notebook(path, record_property)


def notebook(path, source, outputs=()):
    "Write a notebook of one code cell."
    cell = dict(cell_type="code", id="a", metadata={}, execution_count=None, source=[source], outputs=list(outputs))
    path.write_text(json.dumps(dict(cells=[cell], metadata={}, nbformat=4, nbformat_minor=5)))
    return path


def stored(path):
    return json.loads(path.read_text())["cells"][0]["outputs"]


def test_a_failing_notebook_is_found(tmp_path):
    done = python(ROOT / "tools/refresh.py", "--here", "--check", notebook(tmp_path / "a.ipynb", "1/0"), ok=False)
    assert "ZeroDivisionError" in done.stderr


def test_a_stale_output_is_found(tmp_path):
    path = notebook(tmp_path / "a.ipynb", "print('new words', 1)")
    assert "new words" in python(ROOT / "tools/refresh.py", "--here", "--check", path, ok=False, cwd=ROOT).stderr
    python(ROOT / "tools/refresh.py", "--here", path)
    assert stored(path)[0]["text"] == ["new words 1\n"]
    python(ROOT / "tools/refresh.py", "--here", "--check", path)


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
def test_a_stale_number_is_found(tmp_path, source, edit):
    path = notebook(tmp_path / "a.ipynb", source)
    python(ROOT / "tools/refresh.py", "--here", path)
    assert python(ROOT / "tools/refresh.py", "--here", "--check", path).stdout in ("1 texts\n", "1 tables\n")
    fresh = stored(path)
    old = json.loads(json.dumps(fresh).replace(*edit))
    assert old != fresh
    notebook(path, source, old)
    assert "stale" in python(ROOT / "tools/refresh.py", "--here", "--check", path, ok=False, cwd=ROOT).stderr


def test_a_stale_picture_is_found(tmp_path):
    path = notebook(tmp_path / "a.ipynb", PICTURE.format(.6))
    python(ROOT / "tools/refresh.py", "--here", path)
    notebook(path, PICTURE.format(.9), stored(path))
    assert "stale" in python(ROOT / "tools/refresh.py", "--here", "--check", path, ok=False, cwd=ROOT).stderr


@pytest.mark.parametrize("stored_number, ok", [("0.6125", True), ("lost", False)])
def test_after_training_words_are_compared(tmp_path, stored_number, ok):
    source = "import pandas as pd\ndef fit(n): return n\nfit(1)\npd.DataFrame(dict(accuracy=[.8125]))"
    path = notebook(tmp_path / "a.ipynb", source)
    python(ROOT / "tools/refresh.py", "--here", path)
    notebook(path, source, json.loads(json.dumps(stored(path)).replace("<td>0.8125", f"<td>{stored_number}")))
    python(ROOT / "tools/refresh.py", "--here", "--check", path, ok=ok, cwd=ROOT)


def test_rounding_is_not_stale(tmp_path):
    path = notebook(tmp_path / "a.ipynb", "print('accuracy', 0.8125)",
                    [dict(name="stdout", output_type="stream", text=["accuracy 0.8130"])])
    python(ROOT / "tools/refresh.py", "--here", "--check", path)


def test_cells_not_to_be_run_keep_their_outputs(tmp_path):
    kept = dict(name="stdout", output_type="stream", text=["kept"])
    for option in "#| eval: false", "#| notest":
        path = notebook(tmp_path / "a.ipynb", option + "\n1/0", [kept])
        python(ROOT / "tools/refresh.py", "--here", path)
        assert stored(path) == [kept]
