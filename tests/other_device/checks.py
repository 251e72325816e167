"What test_other_device.py runs in a process of its own: everything that computes, on a device that isn't the CPU."
import gc
import json
import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from open_clip.transformer import Transformer
from PIL import Image
from wiseft.base.devices import best_device, fitting_precision
from wiseft.bench.run import bench
from wiseft.models.classifier import zeroshot_classifier
from wiseft.models.cost import training_memory
from wiseft.shell.cli import app
from wiseft.data.retrieval import retrieval_set
from wiseft.data.objects import image_set
from wiseft.data.suites import folder_suite
from wiseft.infer.ensembles import members, sweep
from wiseft.infer.rules import choose_alpha
from wiseft.infer.evaluation import evaluate
from wiseft.models.export import export_classifier
from wiseft.train.callbacks import EVERY
from wiseft.train.resume import checkpoint_file, read_training
from wiseft.train.learner import finetune
from wiseft.models.load import load_classifier
from wiseft.weights.merge import interpolate, merge
from wiseft.methods.flyp import flyp
from wiseft.methods.sigmoid import sigmoid
from wiseft.infer.inference import outputs_for_all
from wiseft.models.testing import pico_clip
from wiseft.bench.plan import takes_several
from wiseft.methods.index import all_methods
from wiseft.infer.scores import METRICS
from wiseft.stats.tasks import single_label

PLACE = os.environ.get("WISEFT_CHECKED", "other")  # `make gpu` checks the card that there is
PLACES = "cpu", PLACE
if PLACE == "other":
    import other_device
counting = pytest.mark.skipif(PLACE != "other", reason="no card counts, or is told what to refuse")
CLASSES = ["cat", "dog"]
GPU_PAGE = Path(__file__).parents[2]/"nbs/howto/gpu.ipynb"
SETTINGS = dict(epochs=3, batch_size=8, lr=1e-3, precision="fp32", crop_scale=None, progress=False)
NEAR = 2e-3  # at most, what another order of summing makes of weights; they move by 3e-3 to 7e-3


# ---------- what there is to work with ----------


def make_pictures(folder):
    "Two classes, in sizes of every shape."
    rng = np.random.default_rng(0)
    for split, n in {"photos/train": 12, "photos/validation": 6, "photos/test": 6, "shift": 6}.items():
        for name, base in zip(CLASSES, (80, 170)):
            (folder/split/name).mkdir(parents=True)
            for i in range(n):
                height, width = map(int, rng.integers(130, 260, 2))
                coarse = rng.normal(base + rng.normal(0, 60), 60, (height//8, width//8, 3))
                coarse = coarse.clip(0, 255).astype(np.uint8)
                Image.fromarray(coarse).resize((width, height)).save(folder/split/name/f"{i}.jpg")


@contextmanager
def on(place):
    "Models are loaded onto a device."
    was = os.environ["WISEFT_DEVICE"]
    os.environ["WISEFT_DEVICE"] = place
    try:
        yield
    finally:
        os.environ["WISEFT_DEVICE"] = was


def tiny(place, transformer=True, bias=None):
    "A classifier of random weights, the same on every device; with a bias it is a SigLIP."
    with on(place):
        return zeroshot_classifier(pico_clip(transformer=transformer, bias=bias), CLASSES, ["a {}", "the {}"])


def trained(start, suite, **kwargs):
    return finetune(start, suite.train, suite.validation, **SETTINGS | kwargs)


@dataclass
class Given:
    folder: Path
    suite: object  # `Suite`
    starts: dict  # place -> classifier
    finetuned: dict  # place -> two fine-tuned classifiers, of the same weights everywhere

    @property
    def picture(self):
        return self.folder/"photos/test/cat/0.jpg"


@pytest.fixture(scope="session")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    make_pictures(folder)
    suite = folder_suite(folder/"photos", [folder/"shift"])
    starts = {place: tiny(place) for place in PLACES}
    starts["cpu"].save(folder/"start")
    for seed in (0, 1):
        trained(starts["cpu"], suite, seed=seed).save(folder/f"finetuned {seed}")

    def finetuned(place):
        return [load_classifier(folder/f"finetuned {seed}", place) for seed in (0, 1)]
    return Given(folder, suite, starts, {place: finetuned(place) for place in PLACES})


def refuse_double(yes):
    if PLACE == "other":
        other_device.core.refuse_double(yes)


@pytest.fixture(autouse=True)
def as_strict_as_a_mac():
    refuse_double(True)
    yield
    refuse_double(False)


def starts_of(name, given):
    "place -> the initial model of a method: a SigLIP where it needs one."
    if "SigLIP" not in METHODS[name].needs:
        return given.starts
    return {place: tiny(place, bias=-10.) for place in PLACES}


def weights(classifier):
    return {k: v.cpu() for k, v in classifier.state_dict().items() if v.is_floating_point()}


def distance(a, b):
    return max((a[k] - b[k]).abs().max().item() for k in a)


def same(a, b):
    "To the bit; on a card, where some backward passes add in any order, nearly."
    return a.hash == b.hash if PLACE == "other" else distance(weights(a), weights(b)) <= NEAR


def check_equal(results, start):
    "The same on both devices, where something became of the initial model; all are dicts of tensors on the CPU."
    here, there = (results[place] for place in PLACES)
    assert set(here) == set(there)
    assert distance(here, there) <= min(NEAR, distance(start, here)/5)


# ---------- the device itself ----------


@counting
def test_the_device_refuses_what_others_refuse():
    x = torch.ones(3, device="other")
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="not pinned"):
        torch.ones(3).to("other", non_blocking=True)
    with pytest.raises(TypeError, match="float64"):
        x.double()
    other_device.core.refuse_double(False)
    assert x.double().dtype == torch.float64
    assert not (torch.empty(3, device="other").cpu() == 0).any()


@counting
def test_it_is_found_by_itself():
    with on(""):
        assert best_device() == torch.device("other")
    with pytest.raises(ValueError, match="this is other: choose bf16"):
        fitting_precision("fp16", torch.device("other"))


@counting
def test_the_device_refuses_a_second_thread():
    calls = []

    def send():
        with pytest.raises(RuntimeError, match="second thread"):
            torch.ones(3).to(PLACE)
        calls.append(True)
    thread = threading.Thread(target=send)
    thread.start()
    thread.join()
    assert calls


@counting
def test_the_device_counts():
    other_device.core.reset()
    before = other_device.counts()["bytes"]
    x = torch.ones(3).to(PLACE)
    assert other_device.counts() == dict(waits=0, sent=1, kernels=0, bytes=before+12, peak=before+12)
    y = x*2 + x[torch.tensor([2, 1, 0])]
    assert other_device.counts()["sent"] == 2 and other_device.counts()["kernels"] == 3
    y[torch.tensor([True, False, True])] = 5
    assert other_device.counts() == other_device.counts() | dict(waits=1, sent=3)
    assert y.sum().item() == 13 and y.tolist() == [5, 3, 5] and len(x[x > 0]) == 3
    assert other_device.counts()["waits"] == 4


@counting
def test_the_device_runs_out_of_memory():
    other_device.core.limit(other_device.counts()["bytes"] + 1000)
    try:
        with pytest.raises(torch.OutOfMemoryError, match="other out of memory"):
            torch.ones(300, device="other")
    finally:
        other_device.core.limit(0)


# ---------- every method, by its kind ----------


def in_steps(kind):
    "A method that takes part in every step."
    def make(function, start, given, cbs):
        return weights(trained(start, given.suite, cbs=cbs, **{kind: function}))
    return make


def average(function, start, given, cbs):
    beside = function()
    trained(start, given.suite, cbs=[beside, *cbs])
    return weights(beside.classifier)


def begin(function, start, given, cbs):
    return weights(function(start, given.suite.train, given.suite.validation))


def tuned_for(name, start, given):
    finetuned = given.finetuned[start.device.type]
    return finetuned if takes_several(METHODS[name]) else finetuned[:1]


def by_kind(name):
    "A function of a method, an initial model, what is given and callbacks; it gives a dict of tensors on the CPU."
    kind = METHODS[name].kind

    def search(function, start, given, cbs):
        return weights(function(start, tuned_for(name, start, given), given.suite.validation))

    def merged(function, start, given, cbs):
        return weights(merge(start, tuned_for(name, start, given), function, images=given.suite.validation))

    def mix(function, start, given, cbs):
        ends, kwargs = [start, *tuned_for(name, start, given)], dict(precision="fp32", images=given.suite.validation)
        between = members(*ends, [.5], [function], **kwargs)
        named = {str(k): m for k, m in between.items()}
        return outputs_for_all(named, given.suite.test, start.transform, progress=False)[0]
    ways = dict(average=average, initialization=begin, search=search, merge=merged, ensemble=mix)
    return ways[kind] if kind in ways else in_steps(kind)


METHODS = all_methods()
FEWER = {"TPGM": dict(steps=20), "LP-FT": dict(cs=(.1, 10.))}  # hyperparameters that save time


class Counts(Callback):
    "What each step of training costs, from the end of the step before, when its images are sent."
    order = 1000

    def before_fit(self):
        self.steps = []

    def before_train(self):
        if PLACE == "other":
            other_device.core.reset()

    def after_batch(self):
        if self.training and PLACE == "other":
            self.steps.append(other_device.counts())
            other_device.core.reset()


@pytest.mark.parametrize("name", METHODS)
def test_method(name, given):
    function, counts = METHODS[name].function, Counts()
    function = partial(function, **FEWER[name]) if name in FEWER else function
    make, kind = by_kind(name), METHODS[name].kind
    starts = starts_of(name, given)
    results = {place: make(function, starts[place], given, [counts]) for place in PLACES}
    start = weights(starts["cpu"])
    check_equal(results, {k: v*0 for k, v in results["cpu"].items()} if kind == "ensemble" else start)
    if kind not in ("initialization", "search", "merge", "ensemble"):
        assert len(counts.steps) == (9 if PLACE == "other" else 0)
    check_costs(getattr(counts, "steps", []), sent=PLAIN + DRAWN)


# ---------- what a step may cost ----------

# A step of training waits for nothing: the next one's work is handed to the device before this one's is done. Only
# every tenth step (`EVERY`) losses and gradients are looked at, which are fetched in one piece.
PLAIN = 2  # copies to the device: pixels and labels
DRAWN = 1  # what a loss draws: one caption of each image, or texts of random words


def check_costs(steps, sent):
    "Counts of each step: copies to the device, and waits."
    steps = steps[1:]  # the first sends what all use, and the sigmoid loss looks at its first value
    waits = [s["waits"] for s in steps]
    assert sum(waits) <= len(steps)//EVERY, f"waits in each step: {waits}"
    copies = [s["sent"] for s in steps]
    assert not copies or max(copies) <= sent, f"copies in each step: {copies}"


def costs(given, *cbs, **kwargs):
    "Of a training of 24 steps."
    counts = Counts()
    trained(given.starts[PLACE], given.suite, epochs=1, batch_size=1, cbs=[*cbs, counts], **kwargs)
    assert len(counts.steps) == 24
    return counts.steps


@counting
@pytest.mark.parametrize("precision, crop_scale", [("fp32", None), ("bf16", (.9, 1.))])
def test_costs_of_a_step(precision, crop_scale, given):
    check_costs(costs(given, precision=precision, crop_scale=crop_scale), PLAIN)


@counting
def test_costs_of_a_batch_of_evaluation(given):
    "Pixels are sent; labels were before, all at once, and what is kept of a batch is fetched when all is done."
    spent = {}
    for batch_size in (2, 2, 1):  # 6 batches, and 12; the first one sends what all use
        other_device.core.reset()
        ends = given.starts[PLACE], given.finetuned[PLACE][0]
        sweep(*ends, given.suite.test, [0, .5, 1], batch_size=batch_size, precision="fp32", progress=False)
        spent[batch_size] = other_device.counts()
    assert spent[1]["waits"] == spent[2]["waits"]
    assert spent[1]["sent"] == spent[2]["sent"] + 6


@counting
def test_costs_of_a_mix_of_members(given):
    "Which alphas a batch asks for is fetched once; which image asks for which isn't."
    ends = given.starts[PLACE], given.finetuned[PLACE][0]
    between = members(*ends, [.25, .5, .75], [METHODS["DaWin"].function])
    dawin = [m for m in between.values() if m.identity["method"] == "DaWin"][0]
    x = torch.randn(6, 3, 48, 48).to(PLACE)
    with torch.no_grad():
        ends = [between[k](x) for k in between if k[2] in (0, 1)]
        other_device.core.reset()
        dawin(x)
    assert ends and other_device.counts()["waits"] <= 2  # how many alphas, and which


@counting
@pytest.mark.parametrize("transformer, accumulate", [(False, 1), (True, 1), (True, 2)])
def test_bytes_of_training_are_known_before(transformer, accumulate, given):
    "What `training_memory` counts without data is what training holds, beside the text tower"
    start, counts = zeroshot_classifier(pico_clip(0, transformer), ["cat", "dog"], ["{}"]).to("other"), Counts()
    gc.collect()
    before = other_device.counts()["bytes"] - sum(p.nbytes for p in start.parameters())  # it waits on the CPU
    size, how = 8//accumulate, dict(accumulate=accumulate, precision="fp32")
    finetune(start, given.suite, epochs=1, batch_size=size, crop_scale=None, progress=False, cbs=[counts], **how)
    peak = counts.steps[-1]["peak"] - before  # behind the last step no next batch waits on the device
    assert .9 < peak/training_memory(start.visual, size, **how) < 1.1


# ---------- the checks find what they are for ----------


class Fetches(Callback):
    "Asks for the loss in each step."
    order = -1  # the counts are read later

    def after_batch(self):
        self.loss.item()


class Leaves(Callback):
    "Makes a tensor where the CPU is."
    def after_pred(self):
        self.learn.pred = self.pred + torch.zeros(self.pred.shape)


class SendsLate(Callback):
    "Doesn't wait for a copy whose source is gone."
    def before_batch(self):
        torch.zeros(3).to(self.xb[0].device, non_blocking=True)


class SendsAnew(Callback):
    "Sends in each step what is there."
    def before_batch(self):
        torch.zeros(3).to(self.xb[0].device)


@counting
def test_a_number_fetched_each_step_is_found(given):
    with pytest.raises(AssertionError, match="waits in each step"):
        check_costs(costs(given, Fetches()), PLAIN)


@counting
def test_a_copy_in_each_step_is_found(given):
    with pytest.raises(AssertionError, match="copies in each step"):
        check_costs(costs(given, SendsAnew()), PLAIN)


@counting
def test_a_tensor_left_on_the_cpu_is_found(given):
    with pytest.raises(RuntimeError, match="same device"):
        costs(given, Leaves())


@counting
def test_a_late_copy_is_found(given):
    with pytest.raises(RuntimeError, match="not pinned"):
        costs(given, SendsLate())


# ---------- fine-tuning ----------

TRAININGS = {
    "head": dict(train="head"),
    "last block": dict(train="last:1"),
    "accumulated": dict(accumulate=2, batch_size=4),
    "computed twice": dict(grad_checkpointing=True),
    "convolutional": dict(),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_finetune(name, given):
    starts = {place: tiny(place, False) for place in PLACES} if name == "convolutional" else given.starts
    results = {place: weights(trained(starts[place], given.suite, **TRAININGS[name])) for place in PLACES}
    check_equal(results, weights(starts["cpu"]))


@pytest.mark.parametrize("how", [dict(loss=flyp), dict(loss=flyp, accumulate=2, batch_size=4), dict(loss=sigmoid)],
                         ids=["whole", "in parts", "sigmoid"])
def test_finetune_on_captions(given, tmp_path, how):
    files = [p.relative_to(given.folder).as_posix() for p in sorted(given.folder.glob("photos/train/*/*.jpg"))]
    table = pd.DataFrame(dict(file=files, caption=[f"a {Path(f).parent.name}" for f in files]))
    table.to_csv(tmp_path/"captions.csv", index=False)
    kwargs = SETTINGS | dict(captions=tmp_path/"captions.csv") | how
    starts = starts_of("sigmoid" if how["loss"] is sigmoid else "FLYP", given)
    classifiers = {place: finetune(starts[place], given.folder, **kwargs) for place in PLACES}
    check_equal({place: weights(c) for place, c in classifiers.items()}, weights(starts["cpu"]))


@counting
def test_both_towers_are_computed_twice(given):
    "Where the text tower trains, `grad_checkpointing` keeps no outputs of its layers either; the weights are the same."
    start, kept = tiny(PLACE), []
    start.clip.model.transformer = Transformer(16, layers=16, heads=2).to(PLACE)

    class Kept(Callback):
        order = 100

        def before_batch(self):
            self.empty = other_device.counts()["bytes"]

        def before_backward(self):
            kept[-1] = other_device.counts()["bytes"] - self.empty
    results = []
    for again in False, True:
        kept.append(0)
        results.append(trained(start, given.suite, epochs=1, loss=flyp, grad_checkpointing=again, cbs=Kept()))
    assert kept[1] < kept[0]/3
    assert distance(*map(weights, results)) <= NEAR/100
    assert not any(getattr(m, "grad_checkpointing", False) for m in results[1].clip.model.modules())


def test_default_precision_of_training(given):
    half, single = (trained(given.starts[PLACE], given.suite, **kwargs)
                    for kwargs in (dict(precision="bf16"), dict(precision="fp32")))
    settings = {k: v for k, v in SETTINGS.items() if k != "precision"}
    default = finetune(given.starts[PLACE], given.suite.train, given.suite.validation, **settings)
    assert default.recipe["precision"] == "bf16" and same(default, half)
    assert 0 < distance(weights(half), weights(single)) <= 5*NEAR


class Stop(Callback):
    "As Ctrl-C does, in the second epoch."
    def after_batch(self):
        if self.training and self.train_iter == 5:
            raise KeyboardInterrupt


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resume_bit_for_bit(precision, given, tmp_path):
    start, kept = given.starts[PLACE], dict(checkpoint_dir=tmp_path, checkpoint_steps=2, precision=precision)
    with pytest.raises(KeyboardInterrupt):
        trained(start, given.suite, cbs=Stop(), **kept)
    assert f"noise.{PLACE}" in read_training(checkpoint_file(tmp_path))[0]
    resumed = trained(start, given.suite, resume=True, **kept)
    assert same(resumed, trained(start, given.suite, precision=precision))


@counting
@pytest.mark.parametrize("method", [dict(), dict(constraint=METHODS["FTP"].function), dict(loss=flyp)], ids=str)
def test_the_initial_model_waits_on_the_cpu(method, given):
    start, places = given.starts[PLACE], set()

    class Look(Callback):
        def before_batch(self):
            places.add(self.learn.original.device.type)

    trained(start, given.suite, epochs=1, cbs=Look(), **method)
    assert places == {"cpu"} and start.device.type == PLACE
    other = start.copy()
    before = other_device.counts()["bytes"]
    other.to("cpu")
    assert before - other_device.counts()["bytes"] >= sum(t.nbytes for t in start.state_dict().values())


@counting
@pytest.mark.parametrize("method", [dict(), dict(constraint=METHODS["FTP"].function), dict(loss=flyp)], ids=str)
def test_a_training_leaves_its_weights_alone(method, given):
    "What Adam and others keep is gone at once, not when Python collects; a tenth is for what the result knows."
    gc.collect()
    gc.disable()
    try:
        before = other_device.counts()["bytes"]
        finetuned = trained(given.starts[PLACE], given.suite, epochs=1, **method)
        left = other_device.counts()["bytes"] - before
    finally:
        gc.enable()
    assert left <= 1.1*sum(t.nbytes for t in finetuned.state_dict().values())


# ---------- evaluation, and what lies between two classifiers ----------


def tables(make):
    "What a function of a place gives is the same everywhere; its table on the other device."
    here, there = (make(place).drop(columns=["precision", "threads"], errors="ignore") for place in PLACES)
    pd.testing.assert_frame_equal(here, there, rtol=0, atol=1e-4)
    return there


def test_evaluate(given):
    ordinary = [m for m in METRICS if m != "worst-group accuracy" and METRICS[m].task is single_label]
    refuse_double(False)  # which metrics use wherever it is
    def both(place): return dict(start=given.starts[place], finetuned=given.finetuned[place][0])
    table = tables(lambda place: evaluate(both(place), given.suite, metrics=ordinary, precision="fp32", progress=False))
    assert set(table.metric) == set(ordinary)


def test_retrieval(given):
    files = sorted(given.folder.glob("photos/test/*/*.jpg"))
    captions = [f"{how} {p.parent.name} {p.stem}" for how in ("a", "the") for p in files]
    pairs = retrieval_set((files*2, captions))
    def both(place): return given.starts[place], given.finetuned[place][0]
    how = dict(alphas=[0, .5, 1], name="tiny", precision="fp32", progress=False)
    table = tables(lambda place: sweep(*both(place), pairs, **how))
    assert {"image to text recall@1", "text to image median rank"} <= set(table.metric)


def test_several_labels(given):
    rng = np.random.default_rng(0)
    pictures, shown = rng.integers(0, 200, (48, 48, 48, 3), dtype=np.uint8), rng.random((48, 3)) < .5
    for i, c in zip(*shown.nonzero()):
        pictures[i, 16*c:16*c + 16] += 50
    images = image_set((pictures, [[f"part {c}" for c in np.flatnonzero(s)] for s in shown]), name="parts")

    def ends(place):
        start = zeroshot_classifier(given.starts[place].clip, images.classnames, task="multi-label")
        return start, finetune(start, images, images, **SETTINGS)
    both = {place: ends(place) for place in PLACES}
    check_equal({place: weights(finetuned) for place, (_, finetuned) in both.items()}, weights(both["cpu"][0]))
    how = dict(alphas=[0, .5, 1], name="tiny", precision="fp32", progress=False)
    here, there = (sweep(*both[place], images, **how) for place in PLACES)
    np.testing.assert_allclose(here.value, there.value, atol=2e-2)


@counting
def test_an_evaluation_goes_on_where_memory_is_short(given):
    "The batch that has no room is halved, and all that follow; the table is the same."
    both = dict(start=given.starts[PLACE], finetuned=given.finetuned[PLACE][0])

    def spent():
        gc.collect()
        other_device.core.reset()
        before = other_device.counts()["bytes"]
        table = evaluate(both, given.suite, batch_size=6, precision="fp32", progress=False)
        return table, before, other_device.counts()["peak"] - before
    whole, before, peak = spent()
    other_device.core.limit(before + 2*peak//3)
    try:
        again, _, less = spent()
    finally:
        other_device.core.limit(0)
    pd.testing.assert_frame_equal(again, whole)
    assert less <= 2*peak//3


def test_sweep(given):
    def make(place, **kwargs):
        ends = given.starts[place], given.finetuned[place][0]
        return sweep(*ends, given.suite, [0, .5, 1], name="tiny", progress=False, **kwargs)
    tables(partial(make, precision="fp32"))
    assert set(make(PLACE, precision="fp32").precision) == {"fp32"}
    half = make(PLACE, precision="bf16")
    assert all(half.precision.str.startswith("bf16 (")) and make("cpu").precision.eq("fp32").all()
    pd.testing.assert_frame_equal(make(PLACE), half)  # the default


@counting
def test_bytes_of_a_sweep(given):
    "In bfloat16: three rounded copies of a tower. They are compared with the ends, which are there anyway."
    ends = given.starts[PLACE], given.finetuned[PLACE][0]
    tower = sum(p.nbytes for p in ends[0].visual.parameters())

    def held():
        gc.collect()
        return other_device.counts()["bytes"]
    before = held()
    other_device.core.reset()
    between = members(*ends, [.25, .5, .75], ["weight-space"], precision="bf16")
    built = held()
    assert built - before <= 1.7*tower and other_device.counts()["peak"] - built <= 1.2*tower  # 64 tensors at a time
    table = evaluate(between, given.suite.test, batch_size=2, progress=False)
    assert held() - built <= tower/2 and table.precision.str.startswith("bf16 (").all()


@counting
def test_a_sweep_leaves_nothing(given):
    "Models and the last batch are gone at once, not when Python collects."
    gc.collect()
    gc.disable()
    try:
        before = other_device.counts()["bytes"]
        sweep(given.starts[PLACE], given.finetuned[PLACE][0], given.suite, precision="bf16", progress=False)
        assert other_device.counts()["bytes"] - before <= 2000  # what is sent once for all
    finally:
        gc.enable()


@counting
def test_a_sweep_in_the_memory_of_one_model(given):
    "The code of the page on GPUs: both ends stay on the CPU, and the rows of the averages are those of a sweep."
    code, = ("".join(cell["source"]) for cell in json.loads(GPU_PAGE.read_text(encoding="utf-8"))["cells"]
             if "load_classifier" in "".join(cell["source"]) and cell["cell_type"] == "code")
    folders = dict(zeroshot=given.folder/"start", finetuned=given.folder/"finetuned 0")
    ends = given.starts[PLACE], given.finetuned[PLACE][0]
    whole = sweep(*ends, given.suite, by=["weight-space"], precision="bf16", progress=False)
    gc.collect()
    before, held = other_device.counts()["bytes"], []

    def judge(average, suite):
        held.append(other_device.counts()["bytes"] - before)
        return evaluate(average, suite, progress=False)
    names = dict(load_classifier=lambda name, place: load_classifier(folders[name], place), interpolate=interpolate,
                 evaluate=judge, suite=given.suite, pd=pd)
    exec(code.replace("cuda", PLACE), names)
    assert max(held) <= .7*sum(p.nbytes for p in ends[0].visual.parameters())
    columns = ["method", "alpha", "dataset", "metric", "value", "n", "low", "high"]
    order = ["alpha", "dataset", "metric"]
    pd.testing.assert_frame_equal(*(t[columns].sort_values(order, ignore_index=True) for t in (names["table"], whole)))


def test_half_precision_of_both_towers(given, tmp_path):
    "Where the text tower trained, its heads are made in the precision of the sweep, once for each alpha."
    finetuned = trained(given.starts[PLACE], given.suite, epochs=1, loss=flyp)
    averages = [m for m in members(given.starts[PLACE], finetuned, [.5], ["weight-space"]).values()
                if m.identity["alpha"] == .5]
    exact = interpolate(given.starts[PLACE], finetuned, .5).head.weight
    x = torch.randn(2, 3, 48, 48).to(PLACE)
    with torch.no_grad():
        averages[0](x)
        built = averages[0].modules[0].head.weight.clone()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("wiseft.models.classifier.zeroshot_head", None)
            averages[0](x + 1)
    off = (built - exact).abs().max()
    assert 0 < off < .05*exact.abs().max()


def test_choose_alpha(given):
    kwargs = dict(precision="fp32", progress=False)
    chosen = [choose_alpha(given.starts[place], given.finetuned[place][0], given.suite, **kwargs) for place in PLACES]
    assert str(chosen[0]) == str(chosen[1])


def test_predict_save_and_load(given, tmp_path):
    predictions = []
    for place in PLACES:
        averaged = interpolate(given.starts[place], given.finetuned[place][0])
        averaged.save(tmp_path/place)
        again = load_classifier(tmp_path/place, place)
        assert again.hash == averaged.hash and again.device.type == place
        predictions.append(again.predict_image(given.picture))
    pd.testing.assert_series_equal(*predictions, rtol=0, atol=1e-5)


def test_export(given, tmp_path):
    "The program that torch.export makes is what ONNX is made of, too."
    here, there = (given.finetuned[place][0] for place in PLACES)
    pixels = torch.from_numpy(here.transform.pixels(Image.open(given.picture))[None])
    program = torch.export.load(export_classifier(there, "pt2", tmp_path/"there.pt2"))
    logits = here(here.transform.normalize(pixels))
    torch.testing.assert_close(program.module()(pixels), logits, rtol=0, atol=1e-4)
    paths = [export_classifier(c, "transformers", tmp_path/c.device.type) for c in (here, there)]
    written = [(path/"model.safetensors").read_bytes() for path in paths]
    assert written[0] == written[1]


def test_bench(given, tmp_path):
    recipe = {k: v for k, v in SETTINGS.items() if k != "lr"} | dict(epochs=1)
    plan = dict(methods=["EMA", "LiNeS", "DaWin"], seeds=(0,), lrs=(1e-3,), alphas=(0, .5, 1), say=lambda line: None)
    benches = {place: bench(given.suite, given.starts[place], tmp_path/place, **plan, **recipe) for place in PLACES}
    for b in benches.values():
        assert list(b.entries) == ["plain", "EMA", "LiNeS", "DaWin"] and not b.left_out
    for name, entry in benches["cpu"].entries.items():
        right = benches[PLACE].entries[name].curves[0].test
        for d, expected in entry.curves[0].test.items():
            np.testing.assert_array_equal(right[d], expected)


# ---------- the command line ----------


def wiseft(place, *words):
    with on(place):
        assert not app(list(map(str, words)), standalone_mode=False), words


def test_command_line(given, tmp_path):
    photos, shift = given.folder/"photos", given.folder/"shift"
    sets = "--reference", photos, "--shift", shift
    refuse_double(False)  # which its metrics use wherever it is
    training = "--epochs", 3, "--batch-size", 8, "--lr", "3e-4", "--precision", "fp32"
    for place in PLACES:
        at = tmp_path/place
        wiseft(place, "zeroshot", photos, "--model", given.folder/"start", "--templates", "a {}", "-o", at/"zeroshot")
        wiseft(place, "finetune", at/"zeroshot", photos, *training, "--method", "spd", "-o", at/"finetuned")
        wiseft(place, "merge", at/"zeroshot", at/"finetuned", "--rule", "lines", "-o", at/"merged")
        wiseft(place, "sweep", given.folder/"start", given.folder/"finetuned 0", "--precision", "fp32", "--alphas",
               "0.5",
               "--by", "weight-space,logits,dawin", *sets, "-o", at/"sweep.csv")
        wiseft(place, "predict", given.folder/"finetuned 0", photos/"test", "-o", at/"predictions.csv")
    for file in "sweep.csv", "predictions.csv":
        tables(lambda place: pd.read_csv(tmp_path/place/file))
    for name in "zeroshot", "finetuned", "merged":
        classifiers = [load_classifier(tmp_path/place/name, "cpu") for place in PLACES]
        assert distance(*map(weights, classifiers)) <= NEAR
    assert classifiers[1].recipe["device"].startswith(PLACE)
