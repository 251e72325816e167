"Shards give the weights of the whole batch, bit for bit the same on any threads and cores; other towers run whole."
import os
import subprocess
import sys
from functools import partial
from unittest.mock import patch

import pytest
import torch
from conftest import later
from torch import nn

from wiseft.data.suites import load_suite
from wiseft.methods.index import all_methods
from wiseft.models.testing import pico_classifier

finetune = later("wiseft.train.learner", "finetune")
can_shard, runs_whole, shard_workers, usual_shards = later(
    "wiseft.train.shards", "can_shard", "runs_whole", "shard_workers", "usual_shards")
EMA = later("wiseft.methods.ema", "EMA")


@pytest.fixture(scope="module")
def icons():
    "Methods by name, and a suite of forty icons, four to watch, a ResNet and a transformer with random weights."
    all_methods()
    suite = load_suite("icons")
    names = suite.classnames
    images, watched = suite.train.subset(range(0, 1600, 40)), suite.validation.subset(range(4))
    return images, watched, pico_classifier(names), pico_classifier(names, transformer=True)


@pytest.fixture
def tune(icons):
    "Fine-tune on them by SGD, so that steps are as long as their learning rates; PyTorch's threads stay what they are."
    from fastai.optimizer import OptimWrapper
    images, watched, *_ = icons
    sgd = partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=0.9))
    settings = dict(epochs=1, lr=1e-2, batch_size=10, precision="fp32", progress=False, opt_func=sgd)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield lambda classifier, **kw: finetune(classifier, images, watched, **settings | kw)
    torch.set_num_threads(threads)


def apart(a, b):
    return max((v - w).abs().max().item() for v, w in zip(a.state_dict().values(), b.state_dict().values()))


# name -> the number of the classifier among the icons, and settings of `finetune`
TRAININGS = {
    "plain": (2, lambda: dict()),
    "in bfloat16": (2, lambda: dict(precision="bf16")),
    "of the last block": (2, lambda: dict(train="last:1")),
    "of the head": (2, lambda: dict(train="head")),
    "in parts": (2, lambda: dict(accumulate=2, batch_size=5)),
    "with a constraint": (2, lambda: dict(constraint="SPD")),
    "with an average": (2, lambda: dict(cbs=EMA(.8))),
    "of both towers": (2, lambda: dict(loss="FLYP")),
    "by LoRA": (3, lambda: dict(train="LoRA", lr_factors=dict(image=100))),
    "checkpointed": (3, lambda: dict(grad_checkpointing=True, precision="bf16")),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_the_weights_are_those_of_the_whole_batch_on_any_number_of_threads(name, icons, tune):
    which, settings = TRAININGS[name]
    initial = icons[which]

    def trained(**options):
        return tune(initial, **settings() | options)

    whole, once = trained(shards=0), trained(shards=2)
    torch.set_num_threads(4)
    again = trained(shards=2)
    assert torch.get_num_threads() == 4
    moved = apart(whole, initial.with_text() if whole.head_from_text else initial)
    half = settings().get("precision") == "bf16"
    assert apart(whole, once) <= (.2*moved if half else 1e-5) and moved > 1e-3
    if name != "of the head":  # which trains on features that all threads computed
        assert once.hash == again.hash
        assert (once.recipe["shards"], "threads" in once.recipe) == (2, False)
    else:
        assert "shards" not in once.recipe and again.recipe["threads"] == 4
    assert "shards" not in whole.recipe and whole.recipe["threads"] == 1


def test_one_core_and_a_busy_program_change_nothing(icons, tune):
    *_, pico, _ = icons
    usual = tune(pico, shards=3, precision="bf16").hash
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert tune(pico, shards=3, precision="bf16").hash == usual
    finally:
        other.kill()
    if hasattr(os, "sched_setaffinity"):
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})  # as taskset does
        try:
            assert tune(pico, shards=3, precision="bf16").hash == usual
        finally:
            os.sched_setaffinity(0, cores)


def watches(classifier):
    "A callback that looks at an inner layer"
    from fastai.callback.core import Callback

    class Look(Callback):
        def before_fit(self):
            self.hook = self.model.visual.layer1.register_forward_hook(lambda *_: None)

        def after_fit(self):
            self.hook.remove()

    return Look()


def test_what_needs_the_whole_batch_trains_as_before(icons, tune):
    "Losses of inner layers, moving statistics, layers that watch, modules of one's own, and dropout."
    import timm

    *_, pico, vit = icons
    for settings in (dict(loss="LDIFS"), dict(train_batchnorm=True)):
        whole, asked = tune(pico, shards=0, **settings), tune(pico, shards=2, **settings)
        assert whole.hash == asked.hash and "shards" not in asked.recipe and asked.recipe["threads"] == 1
    torch.set_num_threads(2)
    watched = tune(pico, shards=2, cbs=watches(pico))
    assert (watched.recipe["shards"], watched.recipe["threads"], torch.get_num_threads()) == (None, 1, 2)
    torch.set_num_threads(1)
    assert watched.hash == tune(pico, shards=0).hash
    own = type("Own", (nn.Sequential,), {})
    assert not can_shard(own(nn.Linear(2, 2))) and can_shard(nn.Sequential(nn.Linear(2, 2)))
    assert not can_shard(nn.Sequential(nn.Dropout(.1))) and can_shard(nn.Sequential(nn.Dropout(0.)))
    assert not can_shard(nn.Sequential(nn.MultiheadAttention(4, 2, dropout=.1)))
    assert not can_shard(nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2))))
    old = nn.Sequential(nn.utils.spectral_norm(nn.Linear(2, 2)))
    assert runs_whole(old) and not runs_whole(vit.visual)
    assert not can_shard(timm.create_model("test_vit", drop_path_rate=.1))


SMALL = "byobnet coatnet convnext efficientnet efficientnet_evos mambaout maxvit nfnet resnet vit vit3 vit_relpos"


@pytest.mark.parametrize("name", SMALL.split())
def test_a_tower_that_can_be_sharded_draws_nothing_and_sees_each_image_alone(name):
    import timm

    torch.manual_seed(0)
    tower = timm.create_model(f"test_{name}", num_classes=0).train()
    if not can_shard(tower):
        assert name in ("efficientnet_evos", "vit_relpos")  # EvoNorm; dropout
        return
    for m in tower.modules():
        if isinstance(m, nn.modules.batchnorm._NormBase):
            m.eval()
    x = torch.randn(3, 3, 160, 160)
    before = {k: v.clone() for k, v in tower.state_dict().items()}
    state, whole = torch.get_rng_state(), tower(x)
    assert torch.get_rng_state().equal(state)
    assert all(v.equal(before[k]) for k, v in tower.state_dict().items())
    with shard_workers(2) as in_shards, in_shards(tower) as sharded:
        torch.testing.assert_close(tower(x), whole, rtol=1e-3, atol=1e-4)
    assert sharded and "forward" not in vars(tower)


def test_threads_are_restored_after_an_error(icons, tune):
    from fastai.callback.core import Callback

    class Fail(Callback):
        def after_loss(self):
            assert torch.get_num_threads() == 1
            raise KeyError("it failed")

    torch.set_num_threads(2)
    with pytest.raises(KeyError, match="it failed"):
        tune(icons[2], shards=2, cbs=Fail())
    assert torch.get_num_threads() == 2


def test_shards_are_halved_where_memory_is_short(icons, tune, monkeypatch):
    "One of two threads fails; batches are computed in parts from then on, as with accumulate."
    *_, pico, _ = icons
    kind = type(pico.visual)
    parts, forward = tune(pico, accumulate=2, batch_size=5, shards=2), kind.forward
    def with_little_memory(tower, x):
        if len(x) > 4 and tower.training:
            raise MemoryError("out of memory")
        return forward(tower, x)
    monkeypatch.setattr(kind, "forward", with_little_memory)
    assert tune(pico, shards=2).hash == parts.hash


def test_a_training_goes_on_with_the_shards_it_began_with(icons, tune, tmp_path):
    "Whatever the machine's default is; earlier versions had none. Others are another training."
    from fastai.callback.core import Callback, CancelFitException

    from wiseft.train.learner import adamw

    class Stop(Callback):
        order = 99

        def after_epoch(self):
            raise CancelFitException

    *_, pico, _ = icons
    for began, default in (0, 2), (2, 0):
        folder, kw = tmp_path/str(began), dict(epochs=2, opt_func=adamw)
        whole = tune(pico, shards=began, **kw)
        tune(pico, shards=began, checkpoint_dir=folder, cbs=Stop(), **kw)
        with pytest.raises(ValueError, match="shards was"):
            tune(pico, shards=default, checkpoint_dir=folder, resume=True, **kw)
        with patch("wiseft.train.learner.usual_shards", return_value=default):
            resumed = tune(pico, checkpoint_dir=folder, resume=True, **kw)
        assert resumed.hash == whole.hash and resumed.recipe.get("shards", 0) == began


def test_the_default(icons):
    *_, pico, vit = icons
    defaults = {(1, True): (2, 2, 2), (4, True): (2, 2, 2), (16, True): (8, 0, 0), (16, False): (0, 0, 0)}
    for (cores, amx), expected in defaults.items():
        with patch("wiseft.train.shards.available_cores", return_value=cores), \
                patch("torch.cpu._is_amx_tile_supported", return_value=amx):
            assert (usual_shards(pico.visual, "bf16"), usual_shards(pico.visual, "fp32"),
                    usual_shards(vit.visual, "bf16")) == expected
    with pytest.raises(ValueError, match="shards is -1. Expected a whole number, 0 or more"):
        finetune(pico, load_suite("icons"), shards=-1)
