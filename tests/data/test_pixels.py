"Images are decoded no larger than they are needed."
import numpy as np
from PIL import Image

from wiseft.data.images import ImageSet
from wiseft.data.pixels import Pixels, ShortSide


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path):
    "Twice the short side is enough to scale it down well."
    Image.new("RGB", (800, 600)).save(tmp_path / "a.jpg")
    images, to = ImageSet("a", [tmp_path / "a.jpg"], [0], ["a"]), ShortSide(70)
    assert images.open(0, to.at_least).size == (200, 150)  # a quarter; an eighth would be smaller than 140
    assert Pixels(images, to)[0].shape == (70, 93, 3)
    assert ShortSide(1000).pixels(Image.fromarray(np.zeros((3, 4, 3), np.uint8))).shape == (3, 4, 3)
