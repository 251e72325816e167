"The exact curve over all α, which stands beside the reproductions, says what argmax says."
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

sys.path.append(str(ROOT / "nbs/reproductions"))

from linesearch import AlphaCurve, alpha_intervals  # noqa: E402

BINARY = np.arange(-16, 33) / 16  # binary fractions: nothing is rounded
INF = np.inf


def ends(zeroshot, finetuned, label):
    low, high = alpha_intervals(torch.tensor([zeroshot]), torch.tensor([finetuned]), [label])
    return low.item(), high.item()


@pytest.mark.parametrize("zeroshot, finetuned, expected", [
    ([3., 0.], [0., 1.], (-INF, .75)),
    ([0., 3.], [1., 0.], (.75, INF)),
    ([0., 1.], [0., 2.], (-INF, -1)),  # right far beyond the zero-shot classifier
    ([2., 3., 0.], [2., 0., 3.], (1/3, 2/3)),  # wrong at both ends
    ([5., 1.], [5., 1.], (-INF, INF)),
    ([1., 1.], [1., 1.], (-INF, INF)),  # a tie at every α goes to the lower index
])
def test_intervals_of_one_image(zeroshot, finetuned, expected):
    np.testing.assert_allclose(ends(zeroshot, finetuned, 0), expected)


def test_ends_where_a_tie_is_won_or_lost():
    low, high = ends([1., 1.], [2., 1.], 0)
    assert -1e-300 < low < 0 and high == INF
    assert ends([1., 1.], [1., 2.], 1) == (0, INF)
    assert ends([1., 1.], [1., 1.], 1)[0] == INF


def test_whole_numbers_tie_as_in_argmax():
    rng = torch.Generator().manual_seed(1)
    u, v = (torch.randint(-3, 4, (2000, 5), generator=rng).double() for _ in range(2))
    labels = torch.randint(5, (2000,), generator=rng)
    low, high = alpha_intervals(u, v, labels)
    for a in BINARY:
        assert torch.equal((low < a) & (a < high), ((1 - a) * u + a * v).argmax(1) == labels)


def test_half_precision():
    rng = torch.Generator().manual_seed(1)
    u, v, labels = *(torch.randn(50, 4, generator=rng).bfloat16() for _ in range(2)), torch.arange(50) % 4
    for half, double in zip(alpha_intervals(u, v, labels), alpha_intervals(u.double(), v.double(), labels)):
        assert torch.equal(half, double)


@pytest.fixture(scope="module")
def outputs():
    "Of two classifiers that err on different images, and the labels."
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (400,), generator=rng)
    return *(torch.randn(400, 10, generator=rng) + s * torch.eye(10)[labels] for s in (1.4, 1.7)), labels


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_curve_against_a_fine_grid(average, outputs):
    u, v, labels = outputs
    u, v = u.double(), v.double()
    if average == "probabilities":
        u, v = u.softmax(1), v.softmax(1)
    grid = np.linspace(-.5, 1.5, 2001)
    brute = np.array([((1 - a) * u + a * v).argmax(1).eq(labels).double().mean().item() for a in grid])
    curve = AlphaCurve(*alpha_intervals(u, v, labels))
    np.testing.assert_allclose(curve.accuracy(grid), brute, atol=1e-12)
    assert curve.best()[1] >= brute[(grid >= 0) & (grid <= 1)].max()
    assert curve.accuracy(0.) == curve.accuracy(grid)[500] and curve.accuracy(1.) == curve.accuracy(grid)[1500]


def test_an_alpha_at_which_two_ties_are_won_is_no_step():
    tied = AlphaCurve(*alpha_intervals(torch.eye(2), torch.eye(2).flip(0), [0, 0]))
    assert tied.accuracy(np.array([.25, .5, .75])).tolist() == [.5, 1, .5]
    assert tied.steps()[1].tolist() == [.5, .5]
    never = AlphaCurve(*alpha_intervals(torch.tensor([[0., 1.]]), torch.tensor([[-1., 2.]]), [0]))
    assert never.accuracy(np.array([0., .5])).tolist() == [0, 0]
