"Fingerprints are pinned: runs, tables, and recipes of earlier versions know their images by them."
import numpy as np
from PIL import Image

from wiseft.data.images import ImageSet
from wiseft.data.suites import load_suite


def test_fingerprints_stay_what_they_are(tmp_path):
    for i, name in enumerate("ab"):
        Image.new("L", (2, 2), i).save(tmp_path / f"{name}.pgm")  # a format without room for choice
    files = ImageSet("files", [tmp_path / f"{name}.pgm" for name in "ab"], [0, 1], ["cat", "dog"], root=tmp_path)
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    arrays = ImageSet("arrays", ["0", "1"], [0, 1], ["cat", "dog"], pixels=pixels)
    assert (files.fingerprint, arrays.fingerprint) == ("09dafe32d97e", "038e18e7bf05")


def test_fingerprints_of_the_embedded_suite():
    suite = load_suite("icons")
    assert (suite.train.fingerprint, suite.test.fingerprint) == ("0cb97132c6d6", "64b75b20226f")
