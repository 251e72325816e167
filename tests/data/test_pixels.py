"Decoding into the cache: by threads, in order, named errors; upright photographs; large JPEGs decoded small."
import os
import subprocess
import sys
from itertools import product
from threading import Barrier

import numpy as np
import pytest
from PIL import Image, ImageOps

from wiseft.data import pixels as data_pixels
from wiseft.data.disk_cache import cache_table
from wiseft.data.images import ImageSet
from wiseft.data.labels import image_folder
from wiseft.data.pixels import Pixels, ShortSide, decode_once
from wiseft.data.transforms import ClipTransform

ORIENTATION = 0x0112


def photograph(width, height, seed=0):
    "Smooth shapes, as a lens draws them, with some noise."
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 20, width // 20, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), float)
    return Image.fromarray((smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8))


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setenv("WISEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data_pixels, "available_cores", lambda: 2)
    (tmp_path / "photos/box").mkdir(parents=True)
    for i in range(40):
        photograph(80 + i, 60, i).save(tmp_path / f"photos/box/{i:02}.jpg")
    return image_folder(tmp_path / "photos", classnames=["box", "circle"])


class Meeting(ShortSide):
    "Each two images wait for each other: one thread alone would wait in vain."
    def __init__(self, size):
        super().__init__(size)
        self.barrier = Barrier(2, timeout=20)

    def pixels(self, image):
        self.barrier.wait()
        return super().pixels(image)


def test_two_threads_decode_at_once_and_give_all_pixels_in_order(photos, monkeypatch):
    monkeypatch.setattr(data_pixels, "_fits_into_cache", lambda *_: True)
    decoded = decode_once(Pixels(photos, Meeting(32)))
    for i in range(40):
        assert np.array_equal(decoded.kept[i], ShortSide(32).pixels(photos.open(i)))


def test_few_images_are_decoded_ahead_and_none_after_the_consumer_ended(photos):
    opened = []

    class Counted(ShortSide):
        def pixels(self, image):
            opened.append(image.size)
            return super().pixels(image)

    decoded = data_pixels._decoded(Pixels(photos, Counted(32)), range(40), 0)
    for _ in range(3):
        next(decoded)
    assert len(opened) <= 3 + 5  # memory doesn't grow where pixels are written slower than they are read
    with pytest.raises(KeyboardInterrupt):
        decoded.throw(KeyboardInterrupt)
    assert len(opened) <= 3 + 5


def test_errors_name_their_files(photos):
    for i in (7, 31):
        photos.paths[i].write_text("not a picture")
    order = [i for i in range(40) if i not in (7, 31)] * 6
    order[50:50], order[130:130] = [7], [31]
    found = data_pixels.unreadable(Pixels(photos.subset(order), ShortSide(32)))
    assert [*found] == [50, 130] and "07.jpg" in found[50] and "31.jpg" in found[130]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_that_are_scaled_before_they_are_turned_differ_by_rounding(tmp_path, orientation):
    transforms = [ClipTransform(dict(size=48)), ClipTransform(dict(size=48, crop_pct=0.9)), ShortSide(50),
                  ClipTransform(dict(size=(40, 64))), ClipTransform(dict(size=48, resize_mode="squash"))]
    (tmp_path / "box").mkdir()
    for size in (401, 300), (300, 401), (257, 255), (90, 31):
        im = photograph(*size)
        exif = im.getexif()
        exif[ORIENTATION] = orientation
        im.save(tmp_path / "box/a.jpg", exif=exif, quality=95)
        images = image_folder(tmp_path, classnames=["box", "circle"])
        assert images.open(0).size == ImageOps.exif_transpose(Image.open(tmp_path / "box/a.jpg")).size
        for transform, border in product(transforms, (0, 3)):
            images.border = border
            turned_first = transform.pixels(images.open(0, transform.at_least))
            ours = Pixels(images, transform)[0]
            assert ours.shape == turned_first.shape
            by_both_sides = transform in transforms[3:]
            equal = orientation == 1 or border or by_both_sides  # in these cases nothing is scaled before it is turned
            assert np.abs(ours.astype(int) - turned_first).max() <= (0 if equal else 2), (size, transform, border)


def test_fast_jpeg_reduces_large_images_alone_and_has_a_cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("WISEFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos/box").mkdir(parents=True)
    transform = ClipTransform(dict(size=48))
    for name, size in dict(large=(640, 480), medium=(250, 190)).items():  # 4 × 48 = 192
        photograph(*size).save(tmp_path / f"photos/box/{name}.jpg")
    images = image_folder(tmp_path / "photos", classnames=["box", "circle"])
    sizes, pixels = [], ClipTransform.pixels
    exact, fast = (decode_once(Pixels(images, transform, fast)) for fast in (False, True))
    assert len(cache_table()) == 2 and exact.kept.folder != fast.kept.folder
    large, medium = (np.abs(exact[i].astype(int) - fast[i]) for i in range(2))
    assert not medium.any() and 0 < large.mean() < 1 and large.max() < 12
    monkeypatch.setattr(ClipTransform, "scale", lambda self, image: sizes.append(image.size) or image)
    monkeypatch.setattr(ClipTransform, "pixels", pixels)
    monkeypatch.setenv("WISEFT_CACHE_GB", "0")
    for i in range(2):
        Pixels(images, transform, True)[i]
    assert sizes == [(160, 120), (250, 190)]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_a_process_counts_the_cores_that_it_may_use():
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n" \
           "from wiseft.base.files import available_cores; print(available_cores())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path):
    "Twice the short side is enough to scale it down well."
    Image.new("RGB", (800, 600)).save(tmp_path / "a.jpg")
    images, to = ImageSet("a", [tmp_path / "a.jpg"], [0], ["a"]), ShortSide(70)
    assert images.open(0, to.at_least).size == (200, 150)  # a quarter; an eighth would be smaller than 140
    assert Pixels(images, to)[0].shape == (70, 93, 3)
    assert ShortSide(1000).pixels(Image.fromarray(np.zeros((3, 4, 3), np.uint8))).shape == (3, 4, 3)
