"Averages of all α share one model, into which a path writes, and compute what a model of their own computes."
import weakref
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from wiseft.data.objects import image_set
from wiseft.infer.ensembles import members
from wiseft.infer.evaluation import columns_per_image
from wiseft.infer.inference import evaluation_context
from wiseft.infer.scores import METRICS
from wiseft.weights.merge import wise_ft

ALPHAS = [0.1, 0.3, 0.5, 0.7, 0.9]


class Tiny(nn.Module):
    classnames, alpha = ["a", "b", "c"], 0

    def __init__(self):
        super().__init__()
        self.tower, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

    def transform(self, image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255

    def forward(self, x):
        return self.head(self.tower(x).relu().mean((2, 3)))


@pytest.fixture
def ends():
    "A classifier, and it with a noisy head; the tower stays as it is."
    torch.manual_seed(0)
    zeroshot = Tiny()
    finetuned = deepcopy(zeroshot)
    with torch.no_grad():
        finetuned.head.weight.add_(torch.randn(3, 8))
    finetuned.alpha = 1
    return zeroshot, finetuned


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return image_set((rng.integers(0, 256, (30, 16, 16, 3), np.uint8), rng.integers(0, 3, 30)), classnames=list("abc"))


def nearer(base, finetuned, info, alpha):  # at the first α it is the plain average
    return wise_ft.function(base, finetuned, info, alpha if alpha == ALPHAS[0] else alpha**2)


def logits(member, x):
    with evaluation_context(member.modules):
        return member(x)


def test_all_averages_share_one_model_and_compute_what_their_own_would(ends):
    averages = [m for m in members(*ends, ALPHAS, ["weight-space"]).values() if m.identity["alpha"] in ALPHAS]
    assert len({id(module) for m in averages for module in m.modules}) == 1
    x = torch.rand(4, 3, 16, 16)
    for m in averages:
        own = deepcopy(ends[0])
        own.load_state_dict({k: torch.lerp(t, ends[1].state_dict()[k], m.identity["alpha"])
                             for k, t in ends[0].state_dict().items()})
        assert torch.equal(logits(m, x), own(x))


def test_averages_by_two_merges_without_the_ends_are_those_of_each_alone(ends, images):
    kinds = {}
    for by in ["weight-space"], [nearer], ["weight-space", nearer]:
        between = {k: m for k, m in members(*ends, ALPHAS, by, parts="head").items() if m.identity["alpha"] in ALPHAS}
        kinds[len(kinds)] = columns_per_image(between, images, [METRICS["NLL"]], batch_size=10, progress=False)
    one, other, both = ({k: c[METRICS["NLL"].column].tolist() for k, c in of.items()} for of in kinds.values())
    assert both == one | other
    assert len(set(map(tuple, one.values()))) > 1  # α makes a difference


def test_members_keep_nothing_of_a_batch(ends):
    x, between = torch.rand(4, 3, 16, 16), members(*ends, ALPHAS)
    outputs, batch = [weakref.ref(logits(m, x)) for m in between.values()], weakref.ref(x)
    del x
    assert batch() is None and all(out() is None for out in outputs)
