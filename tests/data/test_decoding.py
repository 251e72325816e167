"Image files as cameras write them."
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from wiseft.data.labels import image_folder
from wiseft.infer.evaluation import evaluate
from wiseft.models.testing import pico_classifier

MESSAGE = "all of its 16-bit values are below 4096"


def save_rgb16(path, pixels):
    "A PNG of three times 16 bits, which Pillow reads and doesn't write."
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
                     + chunk(b"IEND", b""))


def microscope(folder, bits, color=False):
    "Twelve pictures of two classes, whose values fill so many bits of 16."
    rng = np.random.default_rng(0)
    for i in range(12):
        path = folder / ("cells" if i % 2 else "nuclei") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 2**bits, (48, 48, 3), np.uint16)
        save_rgb16(path, pixels) if color else Image.fromarray(pixels[..., 0]).save(path)
    return folder


@pytest.mark.parametrize("color", [False, True], ids=["gray", "colour"])
@pytest.mark.parametrize("bits", [12, 16])
def test_12_bits_in_files_of_16(tmp_path, bits, color):
    images = image_folder(microscope(tmp_path / "slides", bits, color))
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        evaluate(pico_classifier(["cells", "nuclei"]), images, progress=False)
    assert sum(MESSAGE in str(w.message) for w in record) == (bits == 12)


def test_the_command_line_says_it_once(tmp_path):
    "Also where a thread reads the files."
    from wiseft.shell.cli import app

    pico_classifier(["cells", "nuclei"]).save(tmp_path / "c")
    slides = microscope(tmp_path / "slides", 12)
    out = CliRunner().invoke(app, ["predict", str(tmp_path / "c"), str(slides)]).output
    assert " ".join(out.split()).count(MESSAGE) == 1


def test_a_picture_of_the_night_in_8_bits(tmp_path):
    for i in range(2):
        (tmp_path / "night" / "ab"[i]).mkdir(parents=True)
        Image.new("L", (48, 48), 3).save(tmp_path / "night" / "ab"[i] / "1.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image_folder(tmp_path / "night").open(0)
