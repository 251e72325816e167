"fastai's tools leave the folder of the images as it is; learning rates by part, with what trains and goes on."
import json
import re

import numpy as np
import pytest
import torch
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


def test_a_learning_rate_as_text_is_a_number_before_images_are_read(folder):
    from wiseft.train.learner import finetune

    start = pico_classifier(["cat", "dog"])
    with pytest.raises(ValueError, match="could not convert string to float: 'fast'"):
        finetune(start, "no such folder", lr="fast")
    quick = dict(epochs=1, batch_size=8, progress=False)
    assert finetune(start, "photos", lr="1e-3", **quick).hash == finetune(start, "photos", lr=1e-3, **quick).hash


@pytest.mark.parametrize("wrong", [dict(epochs=0), dict(epochs="3"), dict(epochs=2.5), dict(batch_size=0)])
def test_counts_are_whole_numbers_before_images_are_read(wrong):
    from wiseft.train.learner import finetune

    (name, value), = wrong.items()
    with pytest.raises(ValueError, match=f"{name} is {value!r}. Expected a whole number, 1 or more"):
        finetune(pico_classifier(["cat", "dog"]), "no such folder", **wrong)


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
    learn = clip_learner(pico, "photos", progress=False)
    assert learn.fit_cosine(1, "1e-4").classifier.recipe["lrs"][0] == 1e-4
    calls = dict(bs=[evaluate, sweep, choose_alpha, classify, clip_dataloaders, bench], weight_decay=[clip_learner],
                 n_epochs=[learn.fit_cosine])
    for other, functions in calls.items():
        for function in functions:
            with pytest.raises(TypeError, match=f"no argument {other}: it is called {OTHER_NAMES[other]}"):
                function(**{other: 1})
    with pytest.raises(TypeError, match="no argument bs: it is called batch_size, an argument of clip_dataloaders"):
        clip_learner(pico, "photos", bs=8)
    assert list(signature(learn.fit_cosine).parameters)[0] == "epochs"


@pytest.fixture(scope="module")
def few():
    "Forty icons, four to watch, a ResNet and a transformer with random weights, on one thread."
    import torch

    from wiseft.data.suites import load_suite
    from wiseft.models.testing import pico_classifier
    torch.set_num_threads(1)
    suite = load_suite("icons")
    images, watched = suite.train.subset(range(0, 1600, 40)), suite.validation.subset(range(4))
    return images, watched, pico_classifier(suite.classnames), pico_classifier(suite.classnames, transformer=True)


@pytest.fixture(scope="module")
def tune(few):
    "Fine-tune on them by SGD, so that steps are as long as their learning rates."
    from functools import partial

    import torch
    from fastai.optimizer import OptimWrapper

    from wiseft.train.learner import finetune
    images, watched, *_ = few
    sgd = partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=0.9))
    settings = dict(epochs=2, lr=1e-2, batch_size=10, precision="fp32", progress=False, opt_func=sgd)
    return lambda classifier, **kw: finetune(classifier, images, watched, **settings | kw)


def apart(a, b):
    return max((v - w).abs().max().item() for v, w in zip(a.state_dict().values(), b.state_dict().values()))


def test_accumulated(few, tune):
    *_, pico, _ = few
    factors = dict(image=0.5, decay=0.5)
    whole, in_parts = (tune(pico, lr_factors=factors, **o) for o in (dict(), dict(batch_size=5, accumulate=2)))
    assert apart(whole, in_parts) < 1e-6 < 1e-4 < apart(whole, tune(pico))


def test_goes_on(few, tune, tmp_path):
    "From the checkpoint of the first of two epochs, with what is counted; with other factors it is another training."
    from fastai.callback.core import Callback, CancelFitException

    from wiseft.bench.flops import COUNTED, Costs

    class Stop(Callback):
        order = 99

        def after_epoch(self):
            raise CancelFitException

    *_, pico, _ = few
    kw, costs, again = dict(lr_factors=dict(head=4, decay=0.5), opt_func=adamw()), Costs(), Costs()
    whole = tune(pico, cbs=costs, **kw)
    tune(pico, checkpoint_dir=tmp_path, cbs=[Stop(), Costs()], **kw)
    assert tune(pico, checkpoint_dir=tmp_path, resume=True, cbs=again, **kw).hash == whole.hash
    assert [again.counted[k] for k in COUNTED] == [costs.counted[k] for k in COUNTED]
    with pytest.raises(ValueError, match="lr_factors was"):
        tune(pico, checkpoint_dir=tmp_path, resume=True, opt_func=adamw())


def adamw():
    from wiseft.train.learner import adamw as usual
    return usual


def test_with_lora_pull_and_text(few, tune):
    "The head stays where its factor is 0; parts of weights, constraints and the text tower have their factors, too."
    from wiseft.methods.flyp import flyp
    from wiseft.methods.lora import lora
    from wiseft.methods.spd import spd
    *_, pico, vit = few
    low = tune(vit, train=lora, lr_factors=dict(head=0, decay=0.5))
    assert low.head.weight.equal(vit.head.weight) and apart(low, vit) > 0
    held = tune(pico, constraint=spd, lr_factors=dict(image=0))
    assert all(p.equal(q) for p, q in zip(held.visual.parameters(), pico.visual.parameters()))
    still = tune(pico, loss=flyp, lr_factors=dict(text=0, decay=0.9))
    assert all(p.equal(q) for p, q in zip(still.text.parameters(), pico.with_text().text.parameters()))
    assert apart(still.visual, pico.visual) > 0


def test_one_part_of_both_towers(few, tune, tmp_path):
    "Of three parts, where the text tower was fine-tuned: the head follows; files give the same as classifiers."
    from safetensors.torch import load_file, save_file

    from wiseft.methods.flyp import flyp
    from wiseft.weights.files import write_merged
    from wiseft.weights.merge import interpolate
    *_, pico, _ = few
    finetuned = tune(pico, loss=flyp)
    half, image, text = interpolate(pico, finetuned), interpolate(pico, finetuned, parts="image"), interpolate(
        pico, finetuned, parts="text")
    assert apart(image.visual, half.visual) == 0 == apart(image.text, finetuned.text) == apart(image.head,
                                                                                               finetuned.head)
    assert apart(text.text, half.text) == 0 == apart(text.visual, finetuned.visual) == apart(text.head, half.head)
    with pytest.raises(ValueError, match="of their own here: image, text"):
        interpolate(pico, finetuned, parts="head")
    paths = [tmp_path / f"{n}.safetensors" for n in ("start", "finetuned", "merged")]
    for path, c in zip(paths, (pico.with_text(), finetuned)):
        save_file({k: v.contiguous().clone() for k, v in c.state_dict().items()}, path)
    write_merged(paths[0], [paths[1]], paths[2], parts="image")
    merged = load_file(paths[2])
    assert all(merged[k].equal(v) for k, v in image.state_dict().items() if not k.startswith("head"))


def test_a_method_that_trains_is_found_by_its_name(folder):
    import wiseft.all  # noqa: F401, which knows all methods
    from wiseft.train.learner import clip_learner

    vit = pico_classifier(["cat", "dog"], transformer=True)
    assert clip_learner(vit, "photos", "LoRA", progress=False).recipe["train"]["name"] == "LoRA"
    with pytest.raises(ValueError, match="as in 'last:2', or a method.*There are: LoRA"):
        clip_learner(vit, "photos", "LaRO", progress=False)


# ---------- can training learn a few images? ----------


def some_icons(n=32, classes=4):
    from wiseft.data.objects import image_set

    start = pico_classifier([f"class {i}" for i in range(classes)])
    pictures = np.random.default_rng(0).integers(0, 256, (2*n, 48, 48, 3), dtype=np.uint8)
    return start, pictures, lambda p, y: image_set((p, np.asarray(y)), start.classnames)


def why(start, images, lr=1e-3, **kwargs):
    "What a check says that has a second."
    from wiseft.train.learner import clip_learner, learn_few
    from wiseft.train.loaders import clip_dataloaders, few_dataloaders

    dls = few_dataloaders(clip_dataloaders(images, start, 32, images, progress=False), start.clip, 32)
    assert len(dls.train.source.images) <= 32 and dls.train.source.crop_scale is None
    with pytest.raises(ValueError) as e:
        learn_few(lambda: clip_learner(start, dls, progress=False, **kwargs), lr, seconds=1)
    return str(e.value)


@pytest.mark.parametrize("loss", [None, "flyp"])
def test_32_images_are_learned(loss, capsys):
    from wiseft.data.suites import load_suite
    from wiseft.methods.flyp import flyp
    from wiseft.models.classifier import zeroshot_classifier
    from wiseft.models.clip import load_clip
    from wiseft.train.learner import finetune

    suite = load_suite("icons")
    start = zeroshot_classifier(load_clip("iconclip"), suite.classnames, "plain")
    known = finetune(start, suite.train, suite.validation, overfit=32, precision="fp32", loss=flyp if loss else None)
    assert "training can learn: 32 images are right after" in capsys.readouterr().err
    assert known.hash != start.hash


def test_what_is_wrong_with_a_training_that_learns_nothing():
    start, pictures, images = some_icons()
    labels = np.arange(64) % 4
    assert "The loss is constant" in why(start, images(pictures, labels), lr=0.)
    alike = images(np.repeat(pictures[:8], 4, 0), np.arange(32) % 4)
    assert "the same picture with different labels" in why(start, alike)
    start.clip.transform = lambda picture, before=start.clip.transform: 100*before(picture)
    assert "after normalization; about 0 and 1 are expected" in why(start, images(pictures, labels))


@pytest.mark.parametrize("other, words", [(1e-3, "too low"), (1e-5, "too high"), (None, "do no better")])
def test_a_rate_that_learns_is_named(other, words):
    from types import SimpleNamespace as Check

    from wiseft.train.learner import _why_not

    x, y = torch.randn(4, 3, 8, 8), torch.arange(4)
    learn = Check(dls=Check(valid=[(x, y)]))
    checks = {rate: Check(learned=rate == other, losses=[2., 1.5]) for rate in (1e-4, 1e-3, 1e-5)}
    assert words in _why_not(learn, checks, 1e-4)


@pytest.mark.slow
def test_the_check_of_the_shell_writes_nothing(folder):
    from wiseft.shell.cli import app

    pico_classifier(["cat", "dog"]).save(folder/"zeroshot")
    done = CliRunner().invoke(app, "finetune zeroshot photos --overfit 16 --lr 1e-3 --precision fp32 -o out".split())
    assert not done.exit_code, done.output
    assert "16 images are right after" in done.output and "nothing is written" in done.output
    assert {p.name for p in folder.iterdir()} == {"photos", "zeroshot"}
