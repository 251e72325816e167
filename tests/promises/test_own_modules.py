"Modules of one's own: shared and unused weights, names with a prefix, precision, what their text does not say."
import numpy as np
import pytest
import torch
from conftest import later
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from wiseft.models.testing import pico_classifier, pico_clip

finetune, linear_probe = later("wiseft.train.learner", "finetune", "linear_probe")
merge, extract_features = later("wiseft.weights.merge", "merge"), later("wiseft.infer.inference", "extract_features")
load_classifier = later("wiseft.models.load", "load_classifier")
image_classifier = later("wiseft.models.vision", "image_classifier")
image_folder, image_set = later("wiseft.data.labels", "image_folder"), later("wiseft.data.objects", "image_set")
SWA, PassedThrough = later("wiseft.methods.swa", "SWA"), later("wiseft.train.weight_averages", "PassedThrough")
fisher_information = later("wiseft.methods.fisher", "fisher_information")
regressed_weights = later("wiseft.methods.regmean", "regressed_weights")
ImageClassifier = later("wiseft.models.classifier", "ImageClassifier")
ClassificationHead = later("wiseft.models.head", "ClassificationHead")

TAKE = dict(size=8, mean=[0.5] * 3, std=[0.2] * 3)
IMAGES = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), dtype=np.uint8), np.arange(32) % 2
NAME = "visual.trunk.a.weight"


class Net(nn.Module):
    "Two layers that share a weight, a weight that only training would use, and a fixed filter."

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(192, 192), nn.Linear(192, 192), nn.Linear(192, 2)
        self.b.weight, self.unused = self.a.weight, nn.Parameter(torch.zeros(3))

    def forward(self, x):
        x = F.conv2d(x, torch.ones(3, 1, 1, 1), stride=1, groups=3)
        return self.fc(self.b(self.a(x.flatten(1)).relu()))


def classifier(module):
    return image_classifier(module, ["cat", "dog"], TAKE, device="cpu")


def test_an_average_over_time_moves_a_shared_weight_once():
    swa, path = SWA(start=0), PassedThrough()
    finetune(classifier(Net()), IMAGES, IMAGES, epochs=3, lr=1e-2, batch_size=32, progress=False, cbs=[swa, path])
    mean = sum(state[NAME] for state in path.states) / 3
    assert torch.allclose(swa.average.state_dict()[NAME].double(), mean, atol=1e-6)


def test_merges_of_a_shared_weight_are_what_the_method_computes():
    import wiseft.all  # noqa: F401, which knows all methods
    data, start = image_set(IMAGES, ["cat", "dog"]), classifier(Net())
    first, second = (finetune(start, data, data, epochs=2, lr=1e-2, seed=s, progress=False) for s in (0, 1))
    of_start, of_first = (fisher_information(c, data)[NAME].clamp(min=1e-8) for c in (start, first))
    both = of_start * start.state_dict()[NAME] + of_first * first.state_dict()[NAME]
    fisher = merge(start, first, "Fisher", images=data).state_dict()  # one model needs no list
    assert torch.allclose(fisher[NAME], both / (of_start + of_first), atol=1e-6)
    regmean = merge(start, [first, second], "RegMean", images=data).state_dict()
    assert torch.allclose(regmean[NAME], regressed_weights(start, [first, second], data)[NAME])


def test_information_of_half_precision_is_summed_in_single():
    start = pico_classifier(["cat", "dog"], transformer=True)
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 48, 3), dtype=np.uint8)
    data = image_set((noise, np.arange(64) % 2), ["cat", "dog"])
    whole, half = (fisher_information(c, data, 64) for c in (start, start.to_fp16()))
    assert {t.dtype for t in half.values()} == {torch.float32}
    sums = [sum(t.sum().item() for t in of.values()) for of in (half, whole)]
    assert sums[0] == pytest.approx(sums[1], rel=0.02)


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))

    def forward(self, x): return self.module(x)


@pytest.mark.parametrize("precision", [None, "bf16"])
def test_names_with_a_prefix_are_read_as_they_were_written(tmp_path, precision):
    saved = classifier(Wrapped().bfloat16())
    saved.save(tmp_path / "c", precision=precision)
    read = load_classifier(tmp_path / "c", module=Wrapped(), device="cpu")
    assert precision or read.hash == saved.hash


def test_a_head_in_double_precision_can_be_saved(tmp_path):
    head = ClassificationHead(torch.from_numpy(np.random.default_rng(0).normal(size=(2, 32))))
    saved = ImageClassifier(pico_clip(), head, ["cat", "dog"], alpha=0.0)
    saved.save(tmp_path / "c")
    assert load_classifier(tmp_path / "c").hash == saved.hash


def test_parametrized_weights_are_refused():
    layers = weight_norm(nn.Conv2d(3, 8, 3)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    with pytest.raises(ValueError, match="remove_parametrizations"):
        classifier(nn.Sequential(*layers))


class Pooled(nn.Module):
    "Its text and weights say nothing of `pool`."

    def __init__(self, pool):
        super().__init__()
        torch.manual_seed(0)
        self.pool, self.conv, self.fc = pool, nn.Conv2d(3, 16, 3), nn.Linear(16, 2)

    def forward(self, x):
        return self.fc(getattr(self.conv(x).flatten(2), self.pool)(2))


def test_features_of_another_module_are_not_taken_from_the_cache(tmp_path):
    for i, picture in enumerate(IMAGES[0]):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "ab"[i % 2] / f"{i}.png")
    images = image_folder(tmp_path)
    for pool in ("mean", "amax"):
        probe = linear_probe(Pooled(pool), ["a", "b"], images, images, epochs=1, transform=TAKE, progress=False)
        found = extract_features(probe, images, progress=False).features
        seen = torch.stack([probe.transform(images[i][0]) for i in range(len(images))])
        assert torch.allclose(found, probe.features(seen).detach(), atol=1e-5)
