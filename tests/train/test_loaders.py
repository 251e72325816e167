"Whether DataLoaders normalize as the CLIP's preprocessing says, and show what they normalized."
import numpy as np
import pytest
import torch
from conftest import later
from PIL import Image

from wiseft.data.labels import image_folder
from wiseft.models.classifier import zeroshot_classifier
from wiseft.models.clip import load_clip
from wiseft.models.testing import pico_classifier, pico_clip

finetune = later("wiseft.train.learner", "finetune")


def noise_images(folder, darkest):
    "Three images of each of two classes, for training and watching."
    for i in range(6):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(i).integers(darkest, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return image_folder(folder)


@pytest.mark.parametrize("darkest, mean, std", [
    (0, 0, 1),  # MobileCLIP: colors from 0 to 1 as they are
    (0, 0, 0.5),
    (100, 0.2, 0.3),  # no pixel is darker than the mean
])  # fmt: skip
def test_batches_without_negative_values(darkest, mean, std, tmp_path):
    clip = load_clip(preprocess=dict(mean=[mean] * 3, std=[std] * 3))
    images = noise_images(tmp_path, darkest)
    finetuned = finetune(zeroshot_classifier(clip, ["a", "b"]), images, images, epochs=1, batch_size=4, progress=False)
    assert finetuned.alpha == 1


def test_darker_than_black_is_shown_as_black():
    from fastai.vision.core import TensorImage

    from wiseft.train.loaders import Normalized

    black = Normalized(pico_clip()).decodes(TensorImage(torch.full((1, 3, 2, 2), -9.0)))
    assert black.unique().tolist() == [0]


def test_steps_that_a_user_adds_to_our_loaders_are_checked():
    "No image is looked at where `clip_dataloaders` made the loaders for this CLIP and nobody changed them"
    from fastai.data.transforms import Normalize
    from fastai.vision.core import TensorImage
    from fasttransform import Transform

    from wiseft.train.learner import clip_learner
    from wiseft.train.loaders import clip_dataloaders

    class Smaller(Transform):
        order = 100
        def encodes(self, x: TensorImage): return x[..., :32, :32]

    pixels = np.random.default_rng(0).integers(0, 256, (8, 48, 48, 3), dtype=np.uint8)
    images, start = (pixels, np.arange(8) % 2), pico_classifier(["a", "b"])
    for step, message in (Normalize.from_stats([.5]*3, [.2]*3, cuda=False), "with mean"), (
            Smaller(), "images of shape"):
        dls = clip_dataloaders(images, start, 4, images, progress=False)
        clip_learner(start, dls, progress=False)
        dls.train.after_batch.add(step)
        with pytest.raises(ValueError, match=message):
            clip_learner(start, dls, progress=False)
    with pytest.raises(ValueError, match="'a' for the DataLoaders and 'b' for the classifier"):
        clip_learner(pico_classifier(["b", "a"]), clip_dataloaders(images, start, 4, images), progress=False)
    with pytest.raises(TypeError, match="no argument source: it is called images"):
        clip_dataloaders(source=images, clip=start)
