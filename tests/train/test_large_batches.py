"Which batches may be computed in parts, and that callbacks see them whole."
import numpy as np
import pytest
import torch
from conftest import later

from wiseft.models.testing import pico_classifier

clip_learner, clip_dataloaders = later("wiseft.train.learner", "clip_learner"), later(
    "wiseft.train.loaders", "clip_dataloaders")
IMAGES = np.random.default_rng(0).integers(0, 256, (16, 48, 48, 3), dtype=np.uint8), np.arange(16) % 2


def learner(**kwargs):
    start = pico_classifier(["cat", "dog"])
    return clip_learner(start, clip_dataloaders(IMAGES, start, 8, IMAGES, progress=False), progress=False, **kwargs)


def test_only_a_mean_over_images_is_halved_where_memory_is_short():
    of_their_own = learner(loss_func=torch.nn.CrossEntropyLoss(reduction="sum"))
    assert learner().can_split and not of_their_own.can_split


def test_batches_of_mixup_are_never_halved():
    from fastai.callback.core import Callback
    from fastai.callback.mixup import MixUp

    class Seen(Callback):
        def after_loss(self):
            if self.training: self.learn.seen = self.learn.can_split

    learn = learner(cbs=[MixUp(), Seen()])
    assert learn.can_split
    learn.fit_cosine(1)
    assert not learn.seen
    with pytest.raises(ValueError, match="Expected input batch_size"):
        learner(cbs=MixUp(), accumulate=2).fit_cosine(1)


@pytest.mark.parametrize("weights", [None, [1., 3.]], ids=str)
def test_callbacks_see_whole_batches_without_gradients(weights):
    "However many parts a batch is computed in, after its step they see all of it, and numbers that hold no graph"
    from fastai.callback.core import Callback

    class Seen(Callback):
        def after_batch(self):
            if self.training: self.learn.seen.append((self.xb[0], self.yb[0], self.pred, self.loss))

    runs = {}
    for accumulate in (1, 3):
        learn = learner(cbs=Seen(), accumulate=accumulate, class_weights=weights, shards=0)
        learn.seen = []
        learn.fit_cosine(1, 1e-3)
        runs[accumulate] = learn.seen
    assert len(runs[1]) == 2
    for one, three in zip(*runs.values()):
        assert not any(t.requires_grad for t in (*one, *three))
        for a, b in zip(one, three): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
