"Which batches may be computed in parts, and that callbacks see them whole."
import numpy as np
import pytest
import torch
from conftest import later

from wiseft.models.testing import pico_classifier, pico_clip

clip_learner, clip_dataloaders = later("wiseft.train.learner", "clip_learner"), later(
    "wiseft.train.loaders", "clip_dataloaders")
image_set, zeroshot_classifier = later("wiseft.data.objects", "image_set"), later(
    "wiseft.models.classifier", "zeroshot_classifier")
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


# ---------- a loss that looks at the whole batch ----------

LOSSES = "flyp", "flyp_multi_positive", "sigmoid", "carot", "tracer"


def of_captions(loss, n, dropout=0., steps=1, **kwargs):  # n: pairs in each of the steps
    "Gradients of the last step of a training on captions, by weight, and the loss."
    from importlib import import_module

    from fastai.callback.core import Callback
    from fastai.optimizer import OptimWrapper

    class Gradients(Callback):
        def before_step(self):
            trained = {k: p.grad for k, p in self.student.named_parameters() if p.requires_grad}
            self.learn.kept = {k: g.clone() for k, g in trained.items()} | dict(loss=self.learn.loss.clone())

    torch.manual_seed(0)  # of dropout
    start = zeroshot_classifier(pico_clip(transformer=True, bias=-10. if loss == "sigmoid" else None),
                                ["cat", "dog", "cow", "hen"], ["a {}", "the {}"])
    for block in (*start.visual.transformer.resblocks, *start.clip.model.transformer.resblocks):
        block.mlp.add_module("drop", torch.nn.Dropout(dropout)) if dropout else None
    rng = np.random.default_rng(0)
    images = image_set((rng.integers(0, 256, (n*steps, 48, 48, 3), dtype=np.uint8), np.arange(n*steps) % 4),
                       start.classnames)
    module = import_module(f"wiseft.methods.{loss.removesuffix('_multi_positive')}")
    dls = clip_dataloaders(images, start, n, images, crop_scale=None, progress=False)
    learn = clip_learner(start, dls, loss=getattr(module, loss), clip_norm=None, progress=False, cbs=Gradients(),
                         opt_func=lambda groups, **kw: OptimWrapper(groups, opt=torch.optim.SGD, **kw), **kwargs)
    learn.fit_cosine(1, 1e-3)
    return learn.kept


def relative(a, b):
    "Largest difference of a gradient, relative to its norm; a weight without a gradient counts by the largest norm."
    largest = max(g.norm() for g in b.values())
    return max(((a[k] - g).norm()/max(g.norm(), 1e-4*largest)).item() for k, g in b.items())


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_of_parts_are_those_of_the_whole_batch(loss):
    "256 images in eight parts; the teacher of CaRot and TRACER begins at the second step."
    steps = 2 if loss in ("carot", "tracer") else 1
    whole, parts = (of_captions(loss, 256 if steps == 1 else 64, accumulate=k, steps=steps) for k in (1, 8))
    assert relative(parts, whole) < 1e-4


@pytest.mark.parametrize("n, parts", [(7, 3), (5, 8), (1, 2)])
def test_parts_that_do_not_divide_and_a_single_pair(n, parts):
    whole, cached = (of_captions("flyp", n, accumulate=k) for k in (1, parts))
    assert relative(cached, whole) < 1e-4 if n > 1 else not any(g.any() for g in cached.values())


def test_gradients_of_parts_with_autocast():
    "Rounding to 8 bits alone makes a difference, as it does between any two ways to sum."
    exact, whole, cached = (of_captions("flyp", 64, accumulate=k, precision=p)
                            for k, p in ((1, "fp32"), (1, "bf16"), (4, "bf16")))
    assert relative(cached, whole) <= relative(whole, exact)


def test_dropout_draws_the_same_numbers_twice(monkeypatch):
    "Gradients are those of one graph over all parts, each with the numbers that it drew."
    from wiseft.train.large_batches import LargeBatchLearner

    cached = of_captions("flyp", 32, dropout=.5, accumulate=4)

    def in_one_graph(self, counts):
        from wiseft.base.distributed import gathered
        from wiseft.train.losses import Step

        x, y, self.counts = self.xb[0], self.yb, counts
        tokens = Step(self, x, gathered(y[0], counts), None, None, None).tokens
        features = [self.features_of_part(self.model, *part) for part in zip(x.tensor_split(4), tokens.tensor_split(4))]
        images, self.cached_texts = (torch.cat(some) for some in zip(*features))
        self.xb, self.yb = (x,), y
        self.pred = self.student.head(images)
        self.compute_loss(counts)
        self.cached_texts = None
        self.loss_grad.backward()
        self.loss = self.loss.detach()

    monkeypatch.setattr(LargeBatchLearner, "add_gradients_by_cache", in_one_graph)
    assert relative(cached, of_captions("flyp", 32, dropout=.5, accumulate=4)) < 1e-4


def test_captions_are_halved_where_memory_is_short(capsys):
    from fastai.callback.core import Callback

    from wiseft.base.progress import SAID

    class Room(Callback):
        def after_pred(self):
            if self.training and len(self.xb[0]) > 6: raise torch.OutOfMemoryError("out of memory")

    SAID.clear()
    whole, halved = of_captions("flyp", 20), of_captions_in_a_small_room(Room())
    assert "batches are computed in 4 parts" in capsys.readouterr().err
    assert relative(halved, whole) < 1e-4


def of_captions_in_a_small_room(room):
    from wiseft.train.learner import ClipLearner

    before = ClipLearner.fit

    def fit(self, *args, **kwargs):
        self.add_cb(room)
        return before(self, *args, **kwargs)
    ClipLearner.fit = fit
    try: return of_captions("flyp", 20)
    finally: ClipLearner.fit = before


def test_inner_layers_are_refused_by_name():
    from wiseft.base.registry import Method

    def of_layers(step): return dict(loss=step.text_features.sum() + step.inner[0].sum())

    loss = Method(of_layers, "loss", "layers and texts", trains_text=True, layers=2)
    with pytest.raises(ValueError, match="layers and texts looks at inner layers of the image tower, and accumulate"):
        learner(loss=loss, accumulate=2)
    assert not learner(loss=loss).can_split
