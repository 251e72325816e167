"Learning rates by part, with what trains, accumulates and goes on; averages of one part, of files and of classifiers."
import pytest


@pytest.fixture(scope="module")
def few():
    "Forty icons, four to watch, a ResNet and a transformer with random weights, on one thread."
    import torch

    from wiseft.data.suites import load_suite
    from wiseft.models.testing import pico_classifier
    torch.set_num_threads(1)
    suite = load_suite("icons")
    images, watched = suite.train.subset(range(0, 1600, 40)), suite.validation.subset(range(4))
    return images, watched, pico_classifier(suite.classnames), pico_classifier(suite.classnames, transformer=True)


@pytest.fixture(scope="module")
def tune(few):
    "Fine-tune on them by SGD, so that steps are as long as their learning rates."
    from functools import partial

    import torch
    from fastai.optimizer import OptimWrapper

    from wiseft.train.learner import finetune
    images, watched, *_ = few
    sgd = partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=0.9))
    settings = dict(epochs=2, lr=1e-2, batch_size=10, precision="fp32", progress=False, opt_func=sgd)
    return lambda classifier, **kw: finetune(classifier, images, watched, **settings | kw)


def apart(a, b):
    return max((v - w).abs().max().item() for v, w in zip(a.state_dict().values(), b.state_dict().values()))


def test_accumulated(few, tune):
    *_, pico, _ = few
    factors = dict(image=0.5, decay=0.5)
    whole, in_parts = (tune(pico, lr_factors=factors, **o) for o in (dict(), dict(batch_size=5, accumulate=2)))
    assert apart(whole, in_parts) < 1e-6 < 1e-4 < apart(whole, tune(pico))


def test_goes_on(few, tune, tmp_path):
    "From the checkpoint of the first of two epochs, with what is counted; with other factors it is another training."
    from fastai.callback.core import Callback, CancelFitException

    from wiseft.train.flops import COUNTED, Costs

    class Stop(Callback):
        order = 99

        def after_epoch(self):
            raise CancelFitException

    *_, pico, _ = few
    kw, costs, again = dict(lr_factors=dict(head=4, decay=0.5), opt_func=adamw()), Costs(), Costs()
    whole = tune(pico, cbs=costs, **kw)
    tune(pico, checkpoint_dir=tmp_path, cbs=[Stop(), Costs()], **kw)
    assert tune(pico, checkpoint_dir=tmp_path, resume=True, cbs=again, **kw).hash == whole.hash
    assert [again.counted[k] for k in COUNTED] == [costs.counted[k] for k in COUNTED]
    with pytest.raises(ValueError, match="lr_factors was"):
        tune(pico, checkpoint_dir=tmp_path, resume=True, opt_func=adamw())


def adamw():
    from wiseft.train.learner import adamw as usual
    return usual


def test_with_lora_pull_and_text(few, tune):
    "The head stays where its factor is 0; parts of weights, constraints and the text tower have their factors, too."
    from wiseft.methods.flyp import flyp
    from wiseft.methods.lora import lora
    from wiseft.methods.spd import spd
    *_, pico, vit = few
    low = tune(vit, train=lora, lr_factors=dict(head=0, decay=0.5))
    assert low.head.weight.equal(vit.head.weight) and apart(low, vit) > 0
    held = tune(pico, constraint=spd, lr_factors=dict(image=0))
    assert all(p.equal(q) for p, q in zip(held.visual.parameters(), pico.visual.parameters()))
    still = tune(pico, loss=flyp, lr_factors=dict(text=0, decay=0.9))
    assert all(p.equal(q) for p, q in zip(still.text.parameters(), pico.with_text().text.parameters()))
    assert apart(still.visual, pico.visual) > 0


def test_one_part_of_both_towers(few, tune, tmp_path):
    "Of three parts, where the text tower was fine-tuned: the head follows; files give the same as classifiers."
    from safetensors.torch import load_file, save_file

    from wiseft.methods.flyp import flyp
    from wiseft.weights.files import write_merged
    from wiseft.weights.merge import interpolate
    *_, pico, _ = few
    finetuned = tune(pico, loss=flyp)
    half, image, text = interpolate(pico, finetuned), interpolate(pico, finetuned, parts="image"), interpolate(
        pico, finetuned, parts="text")
    assert apart(image.visual, half.visual) == 0 == apart(image.text, finetuned.text) == apart(image.head,
                                                                                               finetuned.head)
    assert apart(text.text, half.text) == 0 == apart(text.visual, finetuned.visual) == apart(text.head, half.head)
    with pytest.raises(ValueError, match="of their own here: image, text"):
        interpolate(pico, finetuned, parts="head")
    paths = [tmp_path / f"{n}.safetensors" for n in ("start", "finetuned", "merged")]
    for path, c in zip(paths, (pico.with_text(), finetuned)):
        save_file({k: v.contiguous().clone() for k, v in c.state_dict().items()}, path)
    write_merged(paths[0], [paths[1]], paths[2], parts="image")
    merged = load_file(paths[2])
    assert all(merged[k].equal(v) for k, v in image.state_dict().items() if not k.startswith("head"))
