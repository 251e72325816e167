"Image files as cameras write them."
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from wiseft.data.decoding import UnreadableImage, open_image
from wiseft.data.labels import image_folder
from wiseft.infer.evaluation import evaluate
from wiseft.models.testing import pico_classifier

MESSAGE = "all of its 16-bit values are below 4096"


def save_png(path, size, bits, color, rows, clear=b""):
    "A PNG of any depth, of which Pillow writes some alone, perhaps with one clear color."
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header, data = struct.pack(">IIBBBBB", *size, bits, color, 0, 0, 0), b"".join(b"\0" + row for row in rows)
    chunks = chunk(b"IHDR", header), clear and chunk(b"tRNS", clear), chunk(b"IDAT", zlib.compress(data))
    path.write_bytes(b"".join([b"\x89PNG\r\n\x1a\n", *chunks, chunk(b"IEND", b"")]))


def save_rgb16(path, pixels):
    height, width, _ = pixels.shape
    save_png(path, (width, height), 16, 2, [row.astype(">u2").tobytes() for row in pixels])


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


@pytest.mark.parametrize("bits, row, grays", [
    (2, b"\x60", [255, 170]),  # 01 10
    (4, b"\x12", [255, 34]),
    (8, b"\x01\x02", [255, 2]),
    (16, b"\x00\x01\x80\x00", [255, 128]),
])
def test_the_clear_gray_of_a_png_becomes_white(tmp_path, bits, row, grays):
    save_png(tmp_path / "1.png", (2, 1), bits, 0, [row], clear=b"\0\1")
    assert np.array(open_image(tmp_path / "1.png"))[0].tolist() == [[gray] * 3 for gray in grays]


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_whose_last_rows_are_missing(tmp_path, mode):
    "Though it has an end marker. Pillow shows what is missing as gray 128, in CMYK as 127."
    path, noise = tmp_path / "1.jpg", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    open_image(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2] + b"\xff\xd9")
    with pytest.raises(UnreadableImage, match="last rows are missing"):
        open_image(path)
