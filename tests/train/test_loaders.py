"Whether DataLoaders normalize as the CLIP's preprocessing says, and show what they normalized."
import numpy as np
import pytest
import torch
from conftest import later
from PIL import Image

from wiseft.data.labels import image_folder
from wiseft.models.classifier import zeroshot_classifier
from wiseft.models.clip import load_clip
from wiseft.models.testing import pico_clip

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
