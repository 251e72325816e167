"What no average of weights may do silently: statistics that no data has, quantized weights, masks, another base."
import warnings

import numpy as np
import pytest
import torch
from conftest import later
from torch import nn

from wiseft.base.registry import find_method
from wiseft.methods import index  # noqa: F401, all merges
from wiseft.models.testing import pico_classifier
from wiseft.weights.files import merge_files
from wiseft.weights.merge import average, interpolate, merge
from wiseft.weights.path import WeightPath
from wiseft.weights.safetensors_io import write_tensors
from wiseft.weights.tensors import check_compatible, weighted_sum

finetune = later("wiseft.train.learner", "finetune")
sweep = later("wiseft.infer.ensembles", "sweep")


def network(variance):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    nn.init.constant_(net[1].running_var, variance)
    return net


def scaled(state, factor):
    return {k: factor * t if k.endswith("running_var") else t.clone() for k, t in state.items()}


@pytest.mark.parametrize("method, n", [("task arithmetic", 6), ("TIES", 2), ("TSV-M", 2), ("Iso-C", 2), ("LiNeS", 1)])
def test_variances_stay_between_those_of_the_models(method, n):
    "Negative ones made all outputs NaN."
    net = network(1)
    base = net.state_dict()
    strength = {} if method == "task arithmetic" else dict(alpha=3.0)
    if method == "LiNeS":  # which needs names with depths
        base, strength["first"] = {f"layer{i}.{k}": t for i in (1, 2) for k, t in base.items()}, 1.0
    merged = merge(base, [scaled(base, 0.3) for _ in range(n)], method, **strength)
    for k in base:
        if k.endswith("running_var"):
            torch.testing.assert_close(merged[k], torch.full((4,), 0.3))
    if method != "LiNeS":
        net.load_state_dict(merged)
        assert net(torch.rand(2, 3, 8, 8)).isfinite().all()


def test_statistics_of_an_average():
    "Beyond the ends those of the nearer one; between them as all other weights, to the bit; the same on a path."
    torch.manual_seed(0)
    start, end, target = network(1), network(1), network(1)
    for net in start, end:
        net[1].running_var.uniform_(0.1, 2)
        net[1].running_mean.normal_()
    z, f = start.state_dict(), end.state_dict()
    path = WeightPath(target, z, f)
    statistics = [k for k in z if "running" in k]
    for alpha, nearer in ((1.5, f), (-0.5, z)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it extrapolates
            beyond, on_path = interpolate(z, f, alpha), path(alpha).state_dict()
            soup = average([z, f], [1 - alpha, alpha])
        for state in beyond, on_path, soup:
            assert len(statistics) == 2 and all(torch.equal(state[k], nearer[k]) for k in statistics)
            torch.testing.assert_close(state["0.weight"], torch.lerp(z["0.weight"], f["0.weight"], alpha))
    for alpha in np.linspace(0, 1, 11)[1:-1]:
        between = interpolate(z, f, alpha)
        same = interpolate(z, z, alpha)  # frozen statistics, which rounding changes
        for k in "0.weight", *statistics:
            assert torch.equal(between[k], weighted_sum([z[k], f[k]], [1 - alpha, alpha]))
            assert torch.equal(same[k], weighted_sum([z[k], z[k]], [1 - alpha, alpha]))


def test_a_chain_that_ends_in_wise_ft_is_swept_as_it_is_merged():
    "A path took it for WiSE-FT alone."
    start, end, target = network(1), network(1), network(1)
    z, f, name = start.state_dict(), end.state_dict(), "task arithmetic+weight-space"
    on_path = WeightPath(target, z, f, find_method(name))(0.5).state_dict()
    merged, alone = merge(z, [f], name, alpha=0.5), interpolate(z, f, 0.5)
    assert all(torch.equal(t, merged[k]) for k, t in on_path.items())
    torch.testing.assert_close(merged["0.weight"], z["0.weight"] + 0.15 * (f["0.weight"] - z["0.weight"]))
    assert not torch.equal(merged["0.weight"], alone["0.weight"])


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
def test_quantized_weights_are_refused(dtype, tmp_path):
    "Their mean scale belongs to neither. Equal ones, and buffers that count, are taken from one model."
    def write(name, weight, scale, count):
        tensors = dict(weight=torch.tensor(weight, dtype=dtype), scale=torch.tensor(scale),
                       num_batches_tracked=torch.tensor(count), position_ids=torch.arange(3)[None])
        write_tensors(tmp_path / name, tensors)
        return tmp_path / name

    a, b = write("a.safetensors", [[1, 2]], 0.5, 7), write("b.safetensors", [[3, 2]], 1.5, 9)
    out = tmp_path / "out.safetensors"
    with pytest.raises(ValueError, match=r"'weight' is torch.\w+ and differs between .*a.safetensors and .*quantized"):
        merge_files([a, b], None, out)
    assert not out.exists()
    merge_files([a, write("c.safetensors", [[1, 2]], 1.5, 9)], None, out)


@pytest.mark.parametrize("n, more", [(1, ""), (3, r" \(and 2 more\)")])
def test_tensors_of_other_shapes_are_counted(n, more):
    z, f = ({k: torch.ones(size) for k in "abc"[:n]} for size in (2, 3))
    with pytest.raises(ValueError, match=rf"'a' has shape \(2,\) in zeroshot and \(3,\) in finetuned{more}\."):
        check_compatible(z, f)


def test_a_mask_with_infinite_values_is_no_diverged_training():
    def model(weight, mask):
        return dict(weight=torch.full((2, 2), weight), mask=torch.full((2, 2), mask).triu(1))

    z, f, half = (model(w, -torch.inf) for w in (1.0, 2.0, 1.5))
    module = nn.Module()
    for k, t in half.items():
        module.register_buffer(k, t.clone())
    for state in (interpolate(z, f), average([z, f]), merge(z, [f, f], "task arithmetic", alpha=0.25),
                  merge(z, [f, f], "TIES", density=1.0, alpha=0.5), WeightPath(module, z, f)(0.5).state_dict()):
        assert torch.equal(state["mask"], z["mask"]) and torch.equal(state["weight"], half["weight"])
    with pytest.raises(ValueError, match="NaN or infinite weights in finetuned: 'mask'"):
        interpolate(model(1.0, 0.0), f)
    with pytest.raises(ValueError, match="NaN or infinite weights in base: 'weight'"):
        interpolate(model(torch.nan, -torch.inf), model(torch.nan, -torch.inf))
    with pytest.raises(ValueError, match="NaN or infinite weights in base: 'mask'"):
        interpolate(model(1.0, torch.inf), model(2.0, torch.inf))


IMAGES = np.random.default_rng(0).integers(0, 256, (8, 48, 48, 3), dtype=np.uint8), np.arange(8) % 2
ANOTHER = "began with another image tower"


@pytest.fixture(scope="module")
def start():
    return pico_classifier(["cat", "dog"])


@pytest.fixture(scope="module")
def tuned(start):
    return finetune(start, IMAGES, IMAGES, epochs=1, progress=False)


def warned(function):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        function()
    return sum(ANOTHER in str(w.message) for w in said)


def another(classifier):
    new = classifier.copy()
    new.visual.conv1.weight.data *= 1.5
    return new


def test_another_base_than_the_one_that_was_fine_tuned(start, tuned):
    other, half = another(start), interpolate(start, tuned)
    some = [tuned, finetune(start, IMAGES, IMAGES, epochs=1, seed=1, progress=False)]
    for function in (interpolate, lambda z, f: merge(z, some, "task arithmetic"),
                     lambda z, _: merge(z, [half], "LiNeS"),
                     lambda z, f: sweep(z, f, IMAGES, alphas=[0.5], by="weight-space", progress=False)):
        assert warned(lambda: function(start, tuned)) == 0 and warned(lambda: function(other, tuned)) == 1
    assert warned(lambda: interpolate(*some)) == 0  # fine-tuned from one model


def test_the_head_may_be_another(start, tuned):
    "After LP-FT, and in a zero-shot classifier that is made anew, by other prompts or another version of PyTorch."
    head = start.copy()
    head.head.weight.data += 1
    assert warned(lambda: interpolate(head, tuned)) == 0


@pytest.mark.parametrize("settings", [dict(train="head"), dict(train="LoRA"), dict(train="last:1"),
                                      dict(loss="self-distillation")])
def test_of_other_trainings(settings):
    start = pico_classifier(["cat", "dog"], transformer=True)
    tuned = finetune(start, IMAGES, IMAGES, epochs=1, progress=False, **settings)
    assert warned(lambda: interpolate(start, tuned)) == 0
    other = start.copy()
    other.visual.conv1.weight.data *= 1.5
    assert warned(lambda: interpolate(other, tuned)) == 1


def test_older_recipes_are_compared_for_plain_training(start, tuned):
    def older(**changes):
        c = tuned.copy()
        c.recipe = {k: v for k, v in (c.recipe | changes).items() if k != "start_visual"}
        return c

    assert warned(lambda: interpolate(start, older())) == 0
    assert warned(lambda: interpolate(another(start), older())) == 1
    assert warned(lambda: interpolate(another(start), older(tuning="LP-FT"))) == 0


def test_rounded_weights_are_not_compared(start, tuned, tmp_path):
    from wiseft.models.load import load_classifier
    start.save(tmp_path / "half", precision="bf16")
    assert warned(lambda: interpolate(load_classifier(tmp_path / "half"), tuned)) == 0
