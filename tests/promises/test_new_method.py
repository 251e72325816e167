"One more loss, constraint, merge, mix and metric, in a file outside the package, are found wherever methods are."
import json
import re
import runpy
import shutil
import textwrap
from pathlib import Path

import pytest
from conftest import ROOT, wiseft_apart
from tests.shell.test_cli import wiseft
from wiseft.data.suites import load_suite

CLASSES = ["camera", "heart", "star"]
MINE = '''
import torch
from wiseft.base.registry import method
from wiseft.infer.scores import Metric, add_metric

@method("loss", "small logits")
def small_logits(step, weight=1e-3):
    return dict(ce=step.cross_entropy, size=weight*step.logits.square().mean())

@method("constraint", "lazy steps")
def lazy_steps(p, p0, grad, memory, part=.5):
    last = memory.get("last", p0)
    p.copy_(torch.lerp(p, last, part))
    memory["last"] = p.clone()

@method("merge", "half way", strength="alpha")
@torch.no_grad()
def half_way(base, finetuned, info, alpha=1.):
    return base + alpha/2*(finetuned[0]-base)

@method("ensemble", "the larger logit", strength="alpha")
def larger(zeroshot, finetuned, alpha):
    return torch.maximum(zeroshot, finetuned)

add_metric(Metric("size of logits", lambda o: o.outputs.abs().mean(1), bounded=False))
'''


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    "A folder with a few icons, a zero-shot classifier and the file of methods."
    work = tmp_path_factory.mktemp("extension")
    icons = Path(load_suite("icons").train.root)
    for split in "train", "validation", "test":
        for name in CLASSES:
            shutil.copytree(icons / "reference" / split / name, work / "photos" / split / name)
    (work / "mine.py").write_text(MINE)
    wiseft("zeroshot", ",".join(CLASSES), "-o", "zeroshot", cwd=work)
    return work


@pytest.fixture(scope="module")
def finetuned(work):
    "Fine-tuned with the user's loss and constraint, stopped after an epoch's checkpoint and resumed."
    command = ["finetune", "zeroshot", "photos", "--use", "mine.py", "--method", "small logits", "--method",
               "lazy-steps"]
    command += ["--epochs", "2", "--lr", "1e-3", "--precision", "fp32", "--checkpoints", "run"]
    wiseft_apart(*command, "-o", "whole", cwd=work)
    wiseft_apart(*command, "-o", "again", "--resume", cwd=work)  # from the last checkpoint
    return work


def test_list(work):
    output = wiseft_apart("methods", "--use", "mine.py", cwd=work)
    listing = "small logits (loss), lazy steps (constraint), half way (merge), the larger logit (ensemble)"
    assert f"using mine.py: {listing}" in output
    for name in ("small logits", "lazy steps", "half way", "the larger logit"):
        assert re.search(rf"^  {name} +\(no docstring\)$", output, re.M), name
    assert "half way" not in wiseft("methods").stdout


def test_card_and_resume(finetuned):
    card = json.loads((finetuned / "whole/wiseft.json").read_text())
    assert {card["recipe"]["loss"]["name"], card["recipe"]["pull"]["name"]} == {"small logits", "lazy steps"}
    assert {"validation loss", "training ce"} <= set(card["metrics"])  # a loss's terms are those of training images
    assert json.loads((finetuned / "again/wiseft.json").read_text())["hash"] == card["hash"]
    wiseft("finetune", "zeroshot", "photos", "--epochs", "2", "--lr", "1e-3", "--precision", "fp32", "-o", "plain",
           cwd=finetuned)
    assert json.loads((finetuned / "plain/wiseft.json").read_text())["hash"] != card["hash"]


def test_merge(finetuned):
    from wiseft.weights.safetensors_io import TensorFile

    wiseft_apart("merge", "zeroshot", "whole", "--use", "mine.py", "--rule", "half way", "--alpha", "1", "-o", "half",
        cwd=finetuned)
    ends = [finetuned / name / "head.safetensors" for name in ("zeroshot", "whole")]
    wiseft_apart("merge", *ends, "--use", "mine.py", "--rule", "half-way", "--alpha", "1", "-o", "half.safetensors",
        cwd=finetuned)
    start, end, half = (TensorFile(f)["weight"] for f in (*ends, finetuned / "half.safetensors"))
    assert (half - (start+end)/2).abs().max() < 1e-5
    assert (TensorFile(finetuned / "half/head.safetensors")["weight"] - half).abs().max() < 1e-6
    assert TensorFile(finetuned / "half.safetensors").metadata["rule"] == "half way"


def test_table_and_picture(finetuned):
    from wiseft.data.suites import folder_suite
    from wiseft.infer.ensembles import sweep
    from wiseft.models.load import load_classifier
    from wiseft.show.plots import plot_alpha
    from wiseft.base.registry import REGISTRY

    before = dict(REGISTRY)
    try:
        runpy.run_path(str(finetuned / "mine.py"))
        ends = [load_classifier(finetuned / name) for name in ("zeroshot", "whole")]
        suite = folder_suite(finetuned / "photos", {}, classnames=CLASSES)
        metrics = ["accuracy", "size of logits"]
        table = sweep(*ends, suite, [.5, .8], by=["half way", "the larger logit"], metrics=metrics, progress=False)
    finally:
        REGISTRY.clear()
        REGISTRY.update(before)
    assert {"half way", "the larger logit"} < set(table.method)
    assert set(table.metric) == set(metrics)
    assert "small logits" in set(table.tuning[table.method == "fine-tuned"]).pop()
    shown = plot_alpha(table[table.metric == "accuracy"])
    words = [t.get_text() for ax in shown.axes for t in ax.get_legend_handles_labels()[0] and ax.legend().get_texts()]
    words += [t.get_text() for legend in shown.legends for t in legend.get_texts()]
    assert any("half way" in w for w in words) and any("the larger logit" in w for w in words)


def test_the_example_of_contributing_is_a_file_of_methods(tmp_path):
    from wiseft.base.registry import REGISTRY
    from wiseft.shell.app import load_methods

    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?@method.*?)```", text, re.S)[1]
    (tmp_path / "mine.py").write_text(textwrap.dedent(code))
    before = {*load_methods()}
    mine = {*load_methods([tmp_path / "mine.py"])} - before
    assert {REGISTRY.pop(name).kind for name in mine} == {"loss", "merge"}


def test_a_file_with_a_mistake(work):
    "A loss that returns a number is named, and so is what a loss returns."
    (work / "number.py").write_text(
        "from wiseft.all import method\n\n@method('loss', 'a number')\ndef number(step): return step.cross_entropy\n")
    words = ["--use", "number.py", "--method", "a number", "-o", "none"]
    done = wiseft_apart("finetune", "zeroshot", "photos", *words, ok=False, cwd=work)
    assert "error: a number returned a tensor of shape (). A loss returns a dict of named terms" in done
