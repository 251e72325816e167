"""Mutated pictures of every format: each becomes an RGB image or one of our errors, whatever its bytes.

In the tests five seconds, always the same ones; `WISEFT_FUZZ_SECONDS=300 pytest tests/fuzz` looks further.
"""
import io
import os
import resource
import time
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from wiseft.images import UnreadableImage, open_image, readable_formats

SECONDS = float(os.environ.get("WISEFT_FUZZ_SECONDS", 5))
SLOWEST = 10  # seconds that one file may take
MOST = 1e9  # bytes by which the process may grow


def encoded(im, kind, **options):
    "The bytes of an image file; empty where this Pillow can't write it."
    out = io.BytesIO()
    try:
        im.save(out, kind, **options)
    except (KeyError, OSError, ValueError):
        return b""
    return out.getvalue()


def seeds():
    "Small files of every kind that is read, and of some that aren't."
    noise = np.random.default_rng(0).integers(0, 256, (12, 10, 4), dtype=np.uint8)
    colour, clear = Image.fromarray(noise[..., :3]), Image.fromarray(noise)
    pictures = [colour, clear, colour.convert("L"), colour.convert("P"), colour.convert("1"), colour.convert("CMYK")]
    pictures.append(Image.fromarray(noise[..., 0].astype(np.uint16) * 257))
    kinds = [*readable_formats(), "EPS", "PCX", "PDF", "XBM"]
    found = [encoded(im, kind) for kind in kinds for im in pictures]
    found += [encoded(colour, "TIFF", compression=c) for c in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")]
    found += [encoded(colour, "GIF", save_all=True, append_images=[clear.convert("RGB")]),
              encoded(colour, "JPEG", progressive=True)]
    return sorted({f for f in found if f})


SEEDS = seeds()

number = st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF])


@st.composite
def mutated(draw):
    "A file with some bytes replaced, numbers made large, pieces cut out or doubled, or its end cut off."
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        n = draw(st.integers(1, 8))
        how = draw(st.sampled_from(["bytes", "number", "cut", "double", "end"]))
        if how == "bytes":
            data[at:at + n] = draw(st.binary(min_size=n, max_size=n))
        if how == "number":
            size = draw(st.sampled_from([1, 2, 4]))
            value = draw(number) & (1 << 8 * size) - 1
            data[at:at + size] = value.to_bytes(size, draw(st.sampled_from(["little", "big"])))
        if how == "cut":
            del data[at:at + n]
        if how == "double":
            data[at:at] = data[at:at + n]
        if how == "end" and at > len(data) // 2:
            del data[at:]
    return bytes(data)


def look(path, data):
    "What becomes of a file: 'read', or why not."
    path.write_bytes(data)
    began = time.monotonic()
    try:
        im = open_image(path)
        assert im.mode == "RGB" and im.width > 0 and im.height > 0
        np.asarray(im)
        said = "read"
    except UnreadableImage as e:
        said = str(e)
        assert path.name in said and "\n" not in said
    assert time.monotonic() - began < SLOWEST
    return said


def grown():
    "The largest size that this process had, in bytes."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_pictures(tmp_path):
    "Nothing but images and our own error comes out, soon and within a gigabyte."
    path, before, end, seen = tmp_path / "x.jpg", grown(), time.monotonic() + SECONDS, {"read": 0, "refused": 0}

    @settings(max_examples=10**9, deadline=None, database=None, derandomize=SECONDS == 5,
              suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(mutated())
    def one(data):
        if time.monotonic() > end:
            raise TimeoutError
        seen["read" if look(path, data) == "read" else "refused"] += 1

    with warnings.catch_warnings(), pytest.raises(TimeoutError):
        warnings.simplefilter("ignore")  # Pillow's, of odd metadata
        one()
    print(f"{sum(seen.values()):,} files: {seen['read']:,} read, {seen['refused']:,} refused; grew by "
          f"{(grown() - before) / 1e6:.0f} MB")
    assert seen["read"] and seen["refused"], seen
    assert grown() - before < MOST


CORPUS = {  # what was found, or thought of, once
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n",
    "eps in a dos shell": b"\xc5\xd0\xd3\xc6" + bytes(26) + b"%!PS-Adobe-3.0",
    "pgm of 10^10 pixels": b"P5 100000 100000 255\n",
    "pgm of no pixels": b"P5 0 0 255\n",
    "tiff that points at itself": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "webp of 16383 x 16383": b"RIFF\x1a\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0\xfe\x3f\0\xfe\x3f\0",
    "gif of 65535 x 65535": b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;",
    "bmp of 2^31 rows": b"BM" + bytes(8) + b"\x36\0\0\0\x28\0\0\0\x01\0\0\0\0\0\0\x80\x01\0\x18\0" + bytes(24),
    "empty": b"",
}


@pytest.mark.parametrize("name", CORPUS)
def test_known_ones(name, tmp_path):
    before = grown()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert look(tmp_path / "x.png", CORPUS[name]) != "read"
    assert grown() - before < MOST


def test_the_fuzzer_reaches_what_it_should(tmp_path):
    "Each seed as it is: all formats that this Pillow writes are read, the others refused."
    said = [look(tmp_path / "x.png", data) for data in SEEDS]
    assert said.count("read") > len(SEEDS) / 2 and any("not an image" in s for s in said)
