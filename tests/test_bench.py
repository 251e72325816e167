"A bench: what fails costs itself alone, and what is killed goes on to the same table."
import os, signal, subprocess, sys, time
from dataclasses import replace
import numpy as np
import pandas as pd
import pytest
import torch
from wiseft.bench import bench
from wiseft.classifiers import zeroshot_classifier
from wiseft.datasets import load_suite
from wiseft.loading import load_classifier
from wiseft.methods import ema, lora, spd  # noqa: F401
from wiseft.pico import pico_clip
from wiseft.registry import REGISTRY, method

PIECES = dict(seeds=(0, 1), lrs=(1e-3,), alphas=(0, .5, 1), epochs=1, batch_size=16, precision="fp32", progress=False)


def few(images, n=24):
    return images.subset(range(0, len(images), len(images) // n))


def small():
    "A suite of some images, and a tiny classifier of random weights"
    suite = load_suite("icons")
    sets = dict(train=few(suite.train), validation=few(suite.validation), test=few(suite.test))
    suite = replace(suite, shifts={"solid": few(suite.shifts["solid"])}, shift_train={}, shift_validation={}, **sets)
    return suite, zeroshot_classifier(pico_clip(), suite.classnames, ["{}", "a {}"])


def loss(step):
    raise KeyError("The loss failed.")


def pull(p, p0, grad, memory):
    raise KeyError("The pull failed.")


def merge(start, tuned, at, alpha=1.):
    raise KeyError("The merge failed.")


def mix(zeroshot, finetuned, alpha):
    raise KeyError("The mix failed.")


def start(classifier, images, validation):
    raise KeyError("The start failed.")


def search(start, tuned, images):
    raise KeyError("The search failed.")


class Average(ema.EMA):
    def after_batch(self):
        raise KeyError("The average failed.")


class Unmade(ema.EMA):
    def __init__(self):
        raise KeyError("The average failed.")


def unprepared(step, known):
    pass


def prepare(classifier):
    raise KeyError("The loss failed.")


unprepared.prepare = prepare
PLANTED = [("loss", loss), ("loss", unprepared), ("pull", pull), ("merge", merge), ("mix", mix), ("start", start),
           ("search", search), ("average", Average), ("average", Unmade)]


@pytest.fixture
def planted():
    "Methods of all kinds that fail"
    before = dict(REGISTRY)
    names = [f"broken {kind} {i}" for i, (kind, _) in enumerate(PLANTED)]
    for name, (kind, f) in zip(names, PLANTED):
        method(kind, name, knob="alpha" if kind in ("merge", "mix") else None)(f)
    yield names
    REGISTRY.clear()
    REGISTRY.update(before)


def test_failures_of_all_kinds(tmp_path, planted):
    "Each costs its own row and says why; the others are as they are without it"
    suite, first = small()
    names = ["SPD", "EMA"]
    found = bench(suite, first, tmp_path / "a", [*planted, *names], **PIECES, say=lambda line: None)
    for name, (kind, _) in zip(planted, PLANTED):
        assert f"The {kind} failed" in found.left_out[name]
    alone = bench(suite, first, tmp_path / "b", names, **PIECES, say=lambda line: None).gains()
    pd.testing.assert_frame_equal(found.gains()[:3], alone, check_dtype=False)


def carry_out(folder):
    "What the process that is killed does"
    torch.set_num_threads(1)
    found = bench(*small(), folder, ["SPD", "EMA", "uniform soup"], **PIECES, controls=True, say=lambda line: None)
    found.gains().to_csv(f"{folder}/gains.csv", index=False)


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_killed_at_random_moments(tmp_path):
    "A bench that was killed, several times, ends in the same table"
    carry_out(tmp_path / "whole")
    folder, rng, kills = tmp_path / "killed", np.random.default_rng(0), 0
    code = f"import test_bench\ntest_bench.carry_out({str(folder)!r})"
    while True:
        process = subprocess.Popen([sys.executable, "-c", code], cwd=os.path.dirname(__file__))
        while not folder.exists() and process.poll() is None:
            time.sleep(.05)
        try:
            process.wait(float(rng.uniform(.2, 4)) if kills < 4 else None)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert process.returncode == 0
    assert (folder / "gains.csv").read_bytes() == (tmp_path / "whole" / "gains.csv").read_bytes()


def test_goes_on_without_weights(tmp_path):
    "From the curves alone, as from a fresh clone"
    folder = tmp_path / "a"
    suite, first = small()
    settings = dict(methods=["SPD", "EMA"], **PIECES)
    whole = bench(suite, first, folder, weights=tmp_path / "weights", say=lambda line: None, **settings).gains()
    told = []
    again = bench(suite, first, folder, weights=tmp_path / "none", say=told.append, **settings).gains()
    pd.testing.assert_frame_equal(again, whole)
    assert not told and not (tmp_path / "none").exists()


def test_lora_where_there_is_a_transformer(tmp_path):
    "On a ResNet it is left out by name; on a transformer it has a curve and a rank"
    suite, first = small()
    settings = dict(methods=["LoRA"], say=lambda line: None, **PIECES | dict(seeds=(0,)))
    found = bench(suite, first, tmp_path / "resnet", **settings)
    assert list(found.entries) == ["plain"] and "needs a transformer as image tower" in found.left_out["LoRA"]
    vit = zeroshot_classifier(pico_clip(transformer=True), suite.classnames, ["{}", "a {}"])
    found = bench(suite, vit, tmp_path / "vit", **settings)
    assert not found.left_out and found.entries["LoRA"].trial.strength in (3, 8, 24)
    assert found.gains().set_index("method").kind["LoRA"] == "train"
    weights = {p.name for p in (tmp_path / "vit/weights").iterdir()}
    assert weights == {"plain, lr 0.001, seed 0", *[f"LoRA {r}, lr 0.001, seed 0" for r in (3, 8, 24)]}
    lows = [load_classifier(tmp_path / "vit/weights" / name) for name in sorted(weights)[:-1]]
    plain = found.cost("plain")
    assert [c.recipe["train"]["rank"] for c in lows] == [24, 3, 8]
    assert all(c.recipe["cost"][k] == plain[k] for c in lows for k in ("images forward", "images backward"))
