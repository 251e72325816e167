"fastai's tools leave the folder of the images as it is."
import json
import re

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from typer.testing import CliRunner

from wiseft.models.testing import pico_classifier


def code_of_the_faq():
    "The block of Python under the question on augmentation."
    cells = json.loads((ROOT/"nbs/howto/faq.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    return re.search(r"## How do I add my own augmentation\?.*?```python\n(.*?)```", text, re.S)[1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "A folder to work in, with photos/cat and photos/dog."
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path/"photos"/name).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(tmp_path/"photos"/name/f"{i}.png")
    return tmp_path


def test_lr_find_on_the_code_of_the_faq_leaves_nothing_behind(folder):
    from wiseft.shell.cli import app
    from wiseft.train.learner import clip_learner

    zeroshot = pico_classifier(["cat", "dog"])
    zeroshot.save(folder/"zeroshot")
    before = sorted(folder.rglob("*"))
    names = dict(zeroshot=zeroshot, clip_learner=clip_learner)
    code = code_of_the_faq().replace("valid_pct=.1,", "valid_pct=.1, bs=8, num_workers=0,")
    find = "learn.lr_find(num_it=6, show_plot=False, suggest_funcs=None)\nlearn.fit_one_cycle"
    exec(code.replace("learn.fit_one_cycle", find), names)
    assert names["finetuned"].alpha == 1
    assert sorted(folder.rglob("*")) == before
    result = CliRunner().invoke(app, "finetune zeroshot photos --epochs 1 -o finetuned".split())
    assert result.exit_code == 0, result.output


def test_what_is_saved_goes_to_the_current_folder_or_to_the_path_that_is_given(folder):
    from fastai.vision.all import ImageDataLoaders, Normalize, Resize

    from wiseft.train.learner import clip_learner

    classifier = pico_classifier(["cat", "dog"])
    pictures = classifier.clip.preprocess
    dls = ImageDataLoaders.from_folder(
        "photos", valid_pct=.1, seed=0, bs=8, num_workers=0, item_tfms=Resize(pictures["size"]),
        batch_tfms=Normalize.from_stats(pictures["mean"], pictures["std"], cuda=False))
    for arguments, place in ({}, folder), (dict(path=folder/"work"), folder/"work"):
        learn = clip_learner(classifier, dls, progress=False, **arguments)
        learn.lr_find(num_it=6, show_plot=False, suggest_funcs=None)
        learn.save("stage-1")
        assert (place/"models/stage-1.pth").is_file()


def test_a_name_of_another_library_is_answered_with_ours(folder):
    from inspect import signature

    from wiseft import choose_alpha, classify, evaluate, sweep
    from wiseft.base.text import OTHER_NAMES
    from wiseft.bench.run import bench
    from wiseft.train.learner import clip_learner, finetune
    from wiseft.train.loaders import clip_dataloaders

    known = {**signature(finetune).parameters, **signature(clip_learner).parameters}
    for other, ours in OTHER_NAMES.items():
        assert ours in known and other not in known
        with pytest.raises(TypeError, match=f"no argument {other}: it is called {ours}"):
            finetune(pico_classifier(["cat", "dog"]), "nowhere", **{other: 1})
    pico = pico_classifier(["cat", "dog"])
    with pytest.raises(ValueError, match="could not convert"):
        finetune(pico, "nowhere", lr="fast")
    learn = clip_learner(pico, "photos", progress=False, lr="3e-4")
    assert learn.lr == 3e-4
    assert learn.fit_cosine(1, "1e-4").classifier.recipe["lrs"][0] == 1e-4
    calls = dict(bs=[evaluate, sweep, choose_alpha, classify, clip_dataloaders, bench], weight_decay=[clip_learner],
                 n_epochs=[learn.fit_cosine])
    for other, functions in calls.items():
        for function in functions:
            with pytest.raises(TypeError, match=f"no argument {other}: it is called {OTHER_NAMES[other]}"):
                function(**{other: 1})
    assert list(signature(learn.fit_cosine).parameters)[0] == "epochs"
