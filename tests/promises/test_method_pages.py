"The lines that a method's page opens with run, and its commands are understood."
import json
import re
import shlex
from dataclasses import replace
from functools import cache, partial

import pytest
from conftest import ROOT, later
from typer.main import get_command

PAGES = [p for p in sorted((ROOT / "nbs/methods").glob("*.ipynb")) if p.stem != "index"]
pico_classifier, pico_clip = later("wiseft.models.testing", "pico_classifier", "pico_clip")


def opening(page):
    "The first block of Python."
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    text = "".join([c for c in cells if c["cell_type"] == "markdown"][1]["source"])
    return re.search(r"```python\n(.*?)```", text, re.S)[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_commands(page):
    from wiseft.shell.cli import app

    lines = re.findall(r"(?:# |or: )(?:at.*: )?(wiseft .*)", opening(page))
    assert lines
    for line in lines:
        name, *args = shlex.split(line)[1:]
        command = get_command(app).commands[name]
        assert command.make_context(name, args, resilient_parsing=True)
        options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        assert {a for a in args if a.startswith("-")} <= options, line


@cache
def names(transformer):
    "What the lines use: everything of `wiseft.all`, a few images, and four small classifiers."
    import wiseft.all

    suite = wiseft.all.load_suite("icons")
    few = {k: getattr(suite, k).subset(range(0, 760, n)) for k, n in dict(train=38, validation=8, test=38).items()}
    suite = replace(suite, **few, shifts={"solid": suite.shifts["solid"].subset(range(20))})
    finetune = partial(wiseft.all.finetune, epochs=2, batch_size=10, lr=1e-3, precision="fp32", progress=False)
    if transformer:
        zeroshot = pico_classifier(suite.classnames, transformer=True)
    else:
        zeroshot = wiseft.all.zeroshot_classifier(pico_clip(bias=-10.), suite.classnames, ["a {}", "a drawing of a {}"])
    first, second, third = (finetune(zeroshot, suite, seed=seed) for seed in range(3))
    return vars(wiseft.all) | dict(finetune=finetune, zeroshot=zeroshot, suite=suite, finetuned=first, first=first,
                                   second=second, third=third)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if p.stem != "paint"], ids=lambda p: p.stem)  # needs Pets, EuroSAT
def test_lines(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = names(page.stem in ("lora", "r_adapter"))
    space = dict(known)
    exec(opening(page), space)
    assert set(space) - set(known) - {"__builtins__"} or space["finetuned"] is not known["finetuned"]
