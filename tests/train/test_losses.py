"Losses and constraints through fastai's other ways to train, and on heads that take features as they are."
import numpy as np
import pytest
import torch
from conftest import later
from torch.utils.data import DataLoader, TensorDataset

from wiseft.models.testing import pico_classifier, pico_clip

clip_learner, finetune, linear_probe = later("wiseft.train.learner", "clip_learner", "finetune", "linear_probe")
clip_dataloaders = later("wiseft.train.loaders", "clip_dataloaders")
GradientAccumulation = later("fastai.callback.training", "GradientAccumulation")
DataLoaders, trainable_params = later("fastai.data.core", "DataLoaders"), later("fastai.torch_core", "trainable_params")
IMAGES = np.random.default_rng(0).integers(0, 256, (32, 48, 48, 3), dtype=np.uint8), np.arange(32) % 2


@pytest.fixture(scope="module")
def start():
    import wiseft.all  # noqa: F401, which knows all methods
    return pico_classifier(["cat", "dog"])


def learner(start, batch_size=16, **kwargs):
    dls = clip_dataloaders(IMAGES, start, batch_size, IMAGES, progress=False)
    return clip_learner(start, dls, progress=False, **kwargs)


def way(learn, start):
    return sum((p - q).square().sum() for p, q in zip(learn.classifier.parameters(), start.parameters())).sqrt().item()


def test_a_constraint_holds_every_weight_in_each_fit(start):
    def pinned(p, p0, grad, memory): p.copy_(p0)
    learn = learner(start, constraint=pinned)
    learn.fine_tune(1, 1e-3)  # first the head, then all
    assert way(learn, start) == 0


def test_lr_find_leaves_nothing_in_the_memory_of_a_constraint(start):
    ways = []
    for looks in (False, True):
        learn = learner(start, constraint="FTP")
        if looks:
            learn.lr_find(num_it=20, show_plot=False)
            learn.dls.train.epoch = 0  # the same order and crops
        learn.fit_cosine(1, 1e-3)
        ways.append(way(learn, start))
    assert ways[0] == ways[1]


def test_shares_of_a_constraint_add_up_where_a_step_takes_several_batches(start):
    def added(p, p0, grad, memory, share): memory["sum"] = memory.get("sum", torch.tensor(0.0)) + share
    learn = learner(start, 8, constraint=added, cbs=GradientAccumulation(16))
    learn.fit_cosine(2, 1e-3, warmup_steps=0)
    assert learn.constraint.memories[0]["sum"].item() == pytest.approx(1)


def test_features_of_a_loss_have_length_1_on_any_head():
    probe, lengths = linear_probe(pico_clip(), ["cat", "dog"], IMAGES, IMAGES, epochs=1, progress=False), []

    def noted(step):
        for rows in (step.features, step.initial_features): lengths.append(rows.norm(dim=1))
        assert torch.allclose(step.initial_logits, probe(step.x), atol=1e-3)
        return dict(ce=step.cross_entropy)

    learner(probe, loss=noted).fit(1, 0.0)
    assert torch.allclose(torch.cat(lengths), torch.tensor(1.0), atol=1e-5)


def test_a_term_may_begin_later_and_a_memory_may_hold_a_number(start, tmp_path):
    def later(step): return dict(ce=step.cross_entropy) | (dict(far=step.features.sum()) if step.step else {})
    def counted(p, p0, grad, memory): memory["n"] = memory.get("n", 0) + 1
    finetune(start, IMAGES, IMAGES, epochs=1, batch_size=16, loss=later, constraint=counted, progress=False,
             checkpoint_dir=tmp_path)


def test_a_term_may_be_a_plain_number(start):
    "Which changes the loss and no weight"
    def both(step): return dict(ce=step.cross_entropy, margin=.1)
    learn, plain = learner(start, loss=both), learner(start, loss=lambda step: dict(ce=step.cross_entropy))
    for each in learn, plain:
        each.fit_cosine(1, 1e-3)
    assert learn.classifier.hash == plain.classifier.hash
    assert learn.student.metrics["training margin"] == pytest.approx(.1)


def test_what_trains_nothing_is_refused(start):
    def nothing(classifier): classifier.requires_grad_(False)
    with pytest.raises(ValueError, match="leaves no weight to train"):
        learner(start, train=nothing)


def test_factors_meet_a_splitter_and_frozen_weights(start):
    factors = dict(image=0.5, head=0.0)
    with pytest.raises(Exception, match="different factors"):
        learner(start, lr_factors=factors, splitter=trainable_params).fit(1, 1e-3)
    learn = learner(start, lr_factors=factors, wd=0.0)
    learn.fine_tune(1, 1e-3)
    assert torch.equal(learn.classifier.head.weight, start.head.weight) and way(learn, start) > 0


@pytest.mark.parametrize("how", [dict(train="head"), dict(loss="L2-SP"), dict(class_weights="balanced")], ids=str)
def test_loaders_of_pytorch(start, how):
    data = TensorDataset(2 * torch.rand(32, 3, 48, 48) - 1, torch.arange(32) % 2)
    dls = DataLoaders(DataLoader(data, 16), DataLoader(data, 16))
    clip_learner(start, dls, progress=False, **how).fit_cosine(1)


def test_the_shares_of_a_constraint_are_those_of_its_steps(start):
    "Under fastai's own `fit`, too, where no schedule of ours says how much a step counts: together they are 1"
    shares = {}
    def watching(p, p0, grad, memory, share): shares.setdefault(id(p), []).append(share)
    learner(start, batch_size=8, constraint=watching).fit(2, 1e-3)
    first = next(iter(shares.values()))
    assert len(first) == 6 and first == pytest.approx([1/6]*6)
