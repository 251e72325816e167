"What stopped somebody who tried: the smallest case of each."
import pytest
import torch
from tests.promises.test_no_file_is_lost import photographs
from torch import nn

from conftest import later
from wiseft.models.clip import load_clip
from wiseft.models.testing import pico_classifier

clip_dataloaders = later("wiseft.train.loaders", "clip_dataloaders")
clip_learner, finetune = later("wiseft.train.learner", "clip_learner", "finetune")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("frictions") / "photos")


def test_lr_find_survives_nan_and_suggests(photos, tmp_path):
    from fastai.callback.core import Callback

    class Spoil(Callback):
        "From the thirtieth step on"
        def after_loss(self):
            if self.train_iter >= 30:
                self.learn.loss_grad = self.loss_grad * float("nan")
                self.learn.loss = self.loss_grad.detach().clone()

    start = pico_classifier(["cat", "dog"])
    learn = clip_learner(start, clip_dataloaders(photos, start, 8, progress=False), progress=False, path=tmp_path)
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    learn.add_cb(Spoil())
    suggestion = learn.lr_find(num_it=60, show_plot=False)
    assert 1e-7 < suggestion.valley < 10
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())


def test_loggers_are_given_numbers(photos):
    "TensorBoard's callback hands what the optimizer says to `add_scalar`"
    start = pico_classifier(["cat", "dog"])
    learn = clip_learner(start, clip_dataloaders(photos, start, 8, progress=False), progress=False)
    learn.create_opt()
    settings = [v for group in learn.opt.hypers for v in group.values()]
    assert settings and all(type(v) in (int, float) for v in settings)


def test_model_objects():
    with pytest.raises(TypeError, match="image_model"):
        load_clip(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="takes an ImageClassifier, not a Linear"):
        finetune(nn.Linear(2, 2), "photos")


def test_the_nearest_name():
    with pytest.raises(ValueError, match="Did you mean 'ViT-B-32'?"):
        load_clip("vitb32", "openai")


def test_a_folder_of_transformers_without_a_processor(tmp_path):
    pico_classifier(["cat", "dog"], transformer=True).clip.save_transformers(tmp_path / "clip")
    (tmp_path / "clip/preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="preprocessor_config.json is not there"):
        load_clip(tmp_path / "clip")
