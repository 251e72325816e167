"A training that is killed goes on bit for bit, and what Ctrl-C leaves behind is whole."
import json
import os
import re
import signal
import time
from functools import partial

import numpy as np
import pytest
import torch
from conftest import Forked
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from wiseft.base.lazy import open_clip


def train(here, name, steps, resume=False, pause=-1, methods=False):
    "Fine-tune, say which step is done, and wait at one, so that there is time to be killed at a known place."
    from fastai.callback.core import Callback
    from wiseft.data.suites import folder_suite
    from wiseft.methods.ema import EMA
    from wiseft.methods.spd import spd
    from wiseft.methods.swa import SWA
    from wiseft.models.classifier import zeroshot_classifier
    from wiseft.models.clip import load_clip
    from wiseft.train.learner import clip_learner
    from wiseft.train.loaders import clip_dataloaders

    class Slow(Callback):
        order = 95

        def after_batch(self):
            if self.training:
                print(self.train_iter)
                if self.train_iter == pause:
                    time.sleep(600)

    torch.set_num_threads(1)
    torch.manual_seed(resume)  # dropout would draw from this: a resumed training puts it back
    suite = folder_suite(here / "images", {})
    zeroshot = zeroshot_classifier(load_clip(f"local-dir:{here}/clip"), suite.classnames, ["{}"])
    learn = clip_learner(zeroshot, clip_dataloaders(suite, zeroshot, batch_size=8), progress=False,
                         constraint=spd if methods else None)
    averages = dict(ema=EMA(0.8), swa=SWA(0)) if methods else {}
    learn.fit_cosine(3, lr=1e-3, checkpoint_dir=here / name, checkpoint_steps=steps, resume=resume,
                     cbs=[Slow(), *averages.values()])
    learn.classifier.save(here / f"{name}-classifier", force=True)
    for kind, average in averages.items():
        average.classifier.save(here / f"{name}-classifier-{kind}", force=True)


def train_more(here, method, out, resume=False, die=False):
    "Fine-tune with a loss that has text towers or teachers, or with factors of LoRA; the process ends in the midst."
    from fastai.callback.core import Callback
    from wiseft.data.suites import folder_suite
    from wiseft.base.registry import find_method
    from wiseft.methods.ema import EMA
    from wiseft.methods.index import all_methods
    from wiseft.models.classifier import zeroshot_classifier
    from wiseft.models.clip import load_clip
    from wiseft.models.testing import pico_classifier, pico_clip
    from wiseft.train.learner import finetune

    class Die(Callback):
        order = 95

        def after_batch(self):
            if self.training and self.train_iter == 11:
                os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    all_methods()
    suite, average = folder_suite(here / "images", {}), EMA(.8)
    method, *parts = method.split(" in parts")
    by = find_method(method).function
    if method == "lora":
        first, how = pico_classifier(suite.classnames, transformer=True), dict(train=by, cbs=[average])
    else:
        clip = pico_clip(bias=-10.) if method == "sigmoid" else load_clip(f"local-dir:{here}/clip")
        first, how = zeroshot_classifier(clip, suite.classnames, ["{}", "a {}"]), dict(loss=by, cbs=[])
        if parts:
            how |= dict(accumulate=2)
    how["cbs"] += [Die()] * die
    finetuned = finetune(first, suite.train, suite.validation, epochs=3, lr=1e-3, batch_size=8, checkpoint_dir=out,
                     checkpoint_steps=4, resume=resume, progress=False, **how)
    finetuned.save(f"{out}-classifier")
    if method == "lora":
        average.classifier.save(f"{out}-ema")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    "A folder with a tiny CLIP ResNet and images of two classes."
    folder = tmp_path_factory.mktemp("resume")
    torch.manual_seed(0)
    model_cfg = dict(
        embed_dim=16,
        vision_cfg=dict(image_size=32, layers=[1, 1, 1, 1], width=8),
        text_cfg=dict(context_length=8, vocab_size=49408, width=16, heads=2, layers=1),
    )
    preprocess_cfg = dict(size=32, mean=[0.5] * 3, std=[0.25] * 3, interpolation="bicubic", resize_mode="shortest")
    (folder / "clip").mkdir()
    save_file(open_clip.CLIP(**model_cfg).state_dict(), folder / "clip/open_clip_model.safetensors")
    (folder / "clip/open_clip_config.json").write_text(
        json.dumps(dict(model_cfg=model_cfg, preprocess_cfg=preprocess_cfg)))
    rng = np.random.default_rng(0)
    for i in range(70):
        place = folder / "images" / ["cat", "dog"][i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(place / f"{i:02}.png")
    return folder


def start(here, name, *args, **kwargs):
    "A process that trains."
    return Forked(here / f"{name}.log", partial(train, **kwargs), here, name, *args)


def finish(process):
    "The steps that it did, to its end."
    assert process.end() == 0, process.log.read_text()
    return [int(line) for line in process.lines() if line.isdigit()]


def stop_at(process, step, how):
    "Send a signal when the process has done a step and waits."
    process.wait(lambda lines: str(step) in lines)
    time.sleep(0.1)
    return process.end(how)


def tensors(path):
    with safe_open(path, "pt") as f:
        return {k: f.get_tensor(k) for k in f.keys()}, json.loads((f.metadata() or {}).get("wiseft", "{}"))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def uninterrupted(here):
    steps = finish(start(here, "whole", 1000))
    assert steps == list(range(1, 22))  # 56 training images, 7 batches an epoch
    return tensors(here / "whole-classifier/open_clip_model.safetensors")[0], tensors(
        here / "whole/checkpoint.safetensors")[0]


@pytest.mark.parametrize("every, last", [(4, 8), (1000, 7)], ids=["within an epoch", "by epoch"])
def test_killed_and_resumed(here, uninterrupted, every, last):
    name = f"killed{every}"
    assert stop_at(start(here, name, every, pause=11), 11, signal.SIGKILL) == -signal.SIGKILL
    state, position = tensors(here / name / "checkpoint.safetensors")
    assert position["step"] == last
    assert finish(start(here, name, every, True)) == list(range(last + 1, 22))
    classifier, checkpoint = uninterrupted
    assert same(tensors(here / f"{name}-classifier/open_clip_model.safetensors")[0], classifier)
    assert same(tensors(here / name / "checkpoint.safetensors")[0], checkpoint)  # optimizer and random state too


def test_ctrl_c_leaves_a_whole_checkpoint(here, uninterrupted):
    process = start(here, "stopped", 4, pause=10)
    process.wait(lambda lines: "10" in lines)
    os.kill(process.process.pid, signal.SIGINT)  # the first asks for a checkpoint after the step, which sleeps
    time.sleep(0.5)
    assert process.end(signal.SIGINT) != 0
    assert os.listdir(here / "stopped") == ["checkpoint.safetensors"]  # nothing half-written beside it
    assert not (here / "stopped-classifier").exists()
    state, position = tensors(here / "stopped/checkpoint.safetensors")
    assert position["step"] == 8 and all(v.isfinite().all() for v in state.values() if v.is_floating_point())
    finish(start(here, "stopped", 4, True))
    assert same(tensors(here / "stopped-classifier/open_clip_model.safetensors")[0], uninterrupted[0])


def test_killed_while_writing(here, uninterrupted):
    "Killed at random moments of a training that writes after every step, the checkpoint always is a whole one."
    process = start(here, "torn", 1)
    for kill in range(3):
        process.wait(lambda lines: any(int(line) >= 4 * (kill + 1) for line in lines if line.isdigit()))
        time.sleep(0.003 * kill)
        assert process.end(signal.SIGKILL) == -signal.SIGKILL
        assert tensors(here / "torn/checkpoint.safetensors")[1]["step"] >= 4 * (kill + 1) - 1
        process = start(here, "torn", 1, True)
    finish(process)
    assert same(tensors(here / "torn-classifier/open_clip_model.safetensors")[0], uninterrupted[0])


def test_what_a_killed_writer_left_goes_though_all_epochs_are_done(here, uninterrupted):
    left = here / "whole/.wiseft-00000000"
    left.mkdir()
    (left / "lock").touch()
    assert finish(start(here, "whole", 1000, True)) == []
    assert os.listdir(here / "whole") == ["checkpoint.safetensors"]


@pytest.mark.parametrize("every, last", [(4, 8), (7, 14)], ids=["within an epoch", "at the end of one"])
def test_killed_and_resumed_with_a_pull_and_averages(here, every, last):
    "What a constraint remembers and the averages so far are in the checkpoint, too."
    whole, name = f"whole-methods{every}", f"killed-methods{every}"
    finish(start(here, whole, every, methods=True))
    assert stop_at(start(here, name, every, pause=last + 2, methods=True), last + 2, signal.SIGKILL) == -signal.SIGKILL
    assert tensors(here / name / "checkpoint.safetensors")[1]["step"] == last
    assert finish(start(here, name, every, True, methods=True)) == list(range(last + 1, 22))
    saved = [tensors(here / f"{run}-classifier{end}/open_clip_model.safetensors")[0] for end in ("", "-ema", "-swa")
             for run in (whole, name)]
    assert same(saved[0], saved[1]) and same(saved[2], saved[3]) and same(saved[4], saved[5])
    assert not same(saved[0], saved[2]) and not same(saved[2], saved[4])
    assert same(tensors(here / whole / "checkpoint.safetensors")[0], tensors(here / name / "checkpoint.safetensors")[0])


@pytest.mark.slow
def test_killed_and_resumed_with_both_towers_or_a_lora(here):
    "Captions, text towers, teachers and factors are as they were."
    for name in ("flyp", "carot", "tracer", "lora", "flyp in parts", "sigmoid in parts"):
        whole, killed = (here / f"{name}-{how}" for how in ("whole", "killed"))
        ends = [Forked(here / "more.log", train_more, here, name, *args).end()
                for args in ((whole,), (killed, False, True), (killed, True))]
        assert ends == [0, -signal.SIGKILL, 0], (here / "more.log").read_text()
    for name in ("flyp", "carot", "tracer", "flyp in parts", "sigmoid in parts"):
        runs = here / f"{name}-whole", here / f"{name}-killed"
        assert same(*[tensors(f"{run}-classifier/open_clip_model.safetensors")[0] for run in runs])
        whole, killed = [tensors(run / "checkpoint.safetensors")[0] for run in runs]
        assert same(whole, killed)
        kept = {k.removeprefix("kept.0."): v for k, v in whole.items() if k.startswith("kept.0.text.")}
        assert bool(kept) == (name in ("carot", "tracer"))
        assert not any(torch.equal(v, whole[f"model.{k}"]) for k, v in kept.items() if k == "text.text_projection")
    for end in ("classifier", "ema"):
        merged = [tensors(here / f"lora-{how}-{end}/open_clip_model.safetensors")[0] for how in ("whole", "killed")]
        assert same(*merged) and not any("parametrizations" in k for k in merged[0])


@pytest.mark.parametrize("how", ["cut off", "not a number"])
def test_a_spoilt_checkpoint_is_named(here, uninterrupted, how):
    file = here / how / "checkpoint.safetensors"
    file.parent.mkdir()
    file.write_bytes((here / "whole/checkpoint.safetensors").read_bytes())
    if how == "cut off":
        file.write_bytes(file.read_bytes()[:-1000])
    else:
        state, position = tensors(file)
        state["model.head.weight"][0, 0] = float("nan")
        save_file(state, file, metadata=dict(wiseft=json.dumps(position)))
    process = start(here, how, 1000, True)
    assert process.end() != 0 and not (here / f"{how}-classifier").exists()
    err = process.log.read_text()
    assert re.search(r"^wiseft.base.text.BadFile: \S*/" + how + r"/checkpoint.safetensors (is not a |holds NaN)",
                     err,
                     re.M), err


def test_a_checkpoint_of_an_earlier_version(here, uninterrupted):
    "Its recipe lacks what was added since and follows from the rest."
    file = here / "earlier/checkpoint.safetensors"
    file.parent.mkdir()
    state, position = tensors(here / "whole/checkpoint.safetensors")
    assert position["recipe"].pop("start_visual")
    save_file(state, file, metadata=dict(wiseft=json.dumps(position)))
    assert finish(start(here, "earlier", 1000, True)) == []
