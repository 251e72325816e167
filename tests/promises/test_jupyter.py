"README's cells and a tutorial's in a real Jupyter kernel, which shows pictures, as the notebooks' own tests don't."
import base64
import json
import re

import pytest
from conftest import ROOT, later

start_new_kernel = later("jupyter_client.manager", "start_new_kernel")

ONE_EPOCH = """
import fastai.learner
whole = fastai.learner.Learner.fit
fastai.learner.Learner.fit = lambda self, epochs, *args, **kwargs: whole(self, 1, *args, **kwargs)
"""  # the notebooks' own tests train as long as they say
FEW_IMAGES = """
import wiseft.data.suites
from dataclasses import replace
load = wiseft.data.suites.load_suite
def few(images): return images.subset(range(0, len(images), 6))
def load_few(*args, **kwargs):
    suite = load(*args, **kwargs)
    own = {k: few(getattr(suite, k)) for k in ('train', 'validation', 'test')}
    return replace(suite, **own, shifts={name: few(images) for name, images in suite.shifts.items()})
wiseft.data.suites.load_suite = load_few
"""  # as well: of the embedded ones each sixth


@pytest.fixture
def jupyter(tmp_path):
    "A function that runs a cell in a fresh kernel, as JupyterLab does, and returns what it shows, by kind."
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path))

    def cell(source):
        shown = {}
        done = client.execute_interactive(source, timeout=900,
                                          output_hook=lambda m: shown.update(m["content"].get("data", {})))
        assert done["content"]["status"] == "ok", "\n".join(done["content"]["traceback"])
        return shown

    cell(ONE_EPOCH)
    try:
        yield cell
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def code_cells(path):
    "Sources of the code cells that a reader sees and runs, checks left out, each with whether it stores a picture."
    for cell in json.loads((ROOT / path).read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and not re.search(r"eval: false|^#\| hide$|^assert ", source, re.M):
            yield source, any("image/png" in o.get("data", {}) for o in cell["outputs"])


def is_png(shown):
    return base64.b64decode(shown.get("image/png", "")).startswith(b"\x89PNG")


def test_readme_shows_its_picture(jupyter):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = re.search(r"```python\n(.*?)```", text, re.S)[1]
    jupyter(FEW_IMAGES)
    assert len([line for line in first.splitlines() if line]) <= 10
    assert "plot_frontier(table)" in first.strip().splitlines()[-1]
    assert is_png(jupyter(first))


@pytest.mark.slow
def test_a_tutorial_shows_its_pictures(jupyter):
    pictures = 0
    for source, stored in code_cells("nbs/tutorials/your_own_images.ipynb"):
        shown = jupyter(source)
        assert is_png(shown) == stored, f"{'no ' * stored}picture from\n{source}\n{shown}"
        pictures += stored
    assert pictures
