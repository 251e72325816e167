"Images as they come: real files of every awkward kind go through a classifier, decoded here and in worker processes."
import io
import os
import pickle
import shutil
import struct
import subprocess
import sys
import warnings
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import wiseft
from conftest import python
from PIL import Image, ImageDraw
from torch import nn
from wiseft.data.decoding import UnreadableImage, open_image
from wiseft.data.labels import image_folder
from wiseft.data.suites import folder_suite, load_suite
from wiseft.infer.ensembles import sweep
from wiseft.infer.evaluation import evaluate
from wiseft.infer.inference import predict


def red_box(mode="RGB", size=(32, 32)):
    "A red square on white; on nothing in modes that are transparent."
    ground = (0, 0, 0, 0) if mode == "RGBA" else (255, 255, 255)
    im = Image.new("RGBA" if mode == "RGBA" else "RGB", size, ground)
    ImageDraw.Draw(im).rectangle((8, 8, 23, 23), fill=(255, 0, 0, 255) if mode == "RGBA" else (255, 0, 0))
    return im.convert(mode)


def palette_alpha():
    im = Image.new("P", (32, 32), 0)
    im.putpalette([0, 0, 255, 255, 0, 0])  # what is transparent is blue underneath
    im.paste(1, (8, 8, 24, 24))
    return im


def with_second_frame(im):
    return dict(save_all=True, append_images=[Image.new("RGB", (32, 32), "blue")])


RED_BOXES = {  # file name -> image, options of saving
    "plain.png": (red_box(), {}),
    "plain.bmp": (red_box(), {}),
    "plain.webp": (red_box(), dict(lossless=True)),
    "cmyk.jpg": (red_box("CMYK"), dict(quality=95, subsampling=0)),
    "cmyk.tif": (red_box("CMYK"), {}),
    "alpha.png": (red_box("RGBA"), {}),
    "alpha.webp": (red_box("RGBA"), dict(lossless=True)),
    "palette-alpha.png": (palette_alpha(), dict(transparency=0)),
    "palette.gif": (red_box("P"), {}),
    "animated.gif": (red_box(), with_second_frame(red_box())),
    "animated.webp": (red_box(), dict(lossless=True, **with_second_frame(red_box()))),
    "animated.png": (red_box(), with_second_frame(red_box())),
    "pages.tif": (red_box(), with_second_frame(red_box())),
    "upper.PNG": (red_box(), {}),
}


@pytest.mark.parametrize("name", RED_BOXES)
def test_a_red_box_on_white(name, tmp_path):
    im, options = RED_BOXES[name]
    im.save(tmp_path / name, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = open_image(tmp_path / name)
    assert got.mode == "RGB" and got.size == (32, 32)
    assert np.abs(np.asarray(got).astype(int) - np.asarray(red_box())).max() <= 6


@pytest.mark.parametrize("name", ["16.png", "16.tif"])
def test_16_bits_are_scaled(name, tmp_path):
    wide = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(wide).save(tmp_path / name)
    got = np.asarray(open_image(tmp_path / name))
    assert (got == (wide // 256)[..., None]).all()
    assert len(np.unique(got)) == 256


def png(width, height, kind, bits, rows, clear=b""):
    "A PNG made by hand, since Pillow reads more kinds than it writes; `clear` is its transparent color."
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    packed = b"".join([*(packer.compress(b"\0" + row) for row in rows), packer.flush()])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + (chunk(b"tRNS", clear) if clear else b"") + chunk(b"IDAT",
        packed) + chunk(b"IEND", b"")


def test_16_bits_in_color(tmp_path):
    (tmp_path / "16.png").write_bytes(png(4, 4, 2, 16, [struct.pack(">HHH", 0x8000, 0xFFFF, 0x00FF) * 4] * 4))
    assert open_image(tmp_path / "16.png").getpixel((1, 1)) == (0x80, 0xFF, 0)


def tiff(bits, sample, photometric, data, width):
    "A TIFF of one row of gray; `sample` 1: unsigned, 2: signed; `photometric` 0: white is zero, 1: black is."
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1, 279: len(data),
            339: sample}
    data += b"\0" * (len(data) % 2)
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


GRAY16 = struct.pack(">HHH", 0, 0x8000, 0xFFFF)
DEEP = {  # file name -> content, gray pixels, or why there are none
    "12 bits.tif": (tiff(12, 1, 1, bytes([0x00, 0x08, 0x00, 0xFF, 0xF0, 0x00]), 4), [0, 128, 255, 0]),
    "16 bits.tif": (tiff(16, 1, 1, struct.pack("<HHH", 0, 0x8000, 0xFFFF), 3), [0, 128, 255]),
    "white is zero.tif": (tiff(16, 1, 0, struct.pack("<HHH", 0, 0x8000, 0xFFFF), 3), [255, 127, 0]),
    "16 bits signed.tif": (tiff(16, 2, 1, struct.pack("<hhh", 0, 500, 1000), 3), "Signed pixels"),
    "32 bits.tif": (tiff(32, 1, 1, struct.pack("<III", 0, 50, 4000), 3), "32-bit pixels"),
    "10 bits.pgm": (b"P5 3 1 1023\n" + struct.pack(">HHH", 0, 512, 1023), [0, 128, 255]),
    "black is clear.png": (png(3, 1, 0, 16, [GRAY16], struct.pack(">H", 0)), [255, 128, 255]),
    "gray is clear.png": (png(3, 1, 0, 16, [GRAY16], struct.pack(">H", 0x8000)), [0, 255, 255]),
    "4 bits.png": (png(2, 1, 0, 4, [bytes([0x08])], struct.pack(">H", 8)), [0, 255]),
    "2 bits.png": (png(4, 1, 0, 2, [bytes([0b00_01_10_11])], struct.pack(">H", 1)), [0, 255, 170, 255]),
    "color is clear.png": (
        png(2, 1, 2, 16, [struct.pack(">6H", 0, 0, 0, *[0x8000] * 3)], struct.pack(">3H", *[0x8000] * 3)), [0, 255]),
}


@pytest.mark.parametrize("name", DEEP)
def test_other_depths(name, tmp_path):
    "Scaled by what the file says of itself, or refused by name; never black."
    content, expected = DEEP[name]
    (tmp_path / name).write_bytes(content)
    if isinstance(expected, str):
        with pytest.raises(UnreadableImage, match=expected):
            open_image(tmp_path / name)
    else:
        assert np.asarray(open_image(tmp_path / name))[0].tolist() == [[v] * 3 for v in expected]


def noise_jpeg():
    out = io.BytesIO()
    Image.effect_noise((64, 64), 60).save(out, "JPEG")
    return out.getvalue()


UNREADABLE = {  # file name -> content, what is said
    "cut.jpg": (noise_jpeg()[:-400], "truncated"),
    "cut-early.jpg": (noise_jpeg()[:10], "."),
    "empty.png": (b"", "not an image"),
    "text.png": (b"this is not a picture\n", "not an image"),
    "page.jpg": (b"<!DOCTYPE html><html>404</html>", "not an image"),
    "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable(name, tmp_path):
    content, message = UNREADABLE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableImage, match=message) as e:
        open_image(tmp_path / name)
    assert str(tmp_path / name) in str(e.value) and "\n" not in str(e.value)


def test_a_png_cut_anywhere_is_never_half_an_image(tmp_path):
    out = io.BytesIO()
    Image.effect_noise((32, 32), 60).save(out, "PNG")
    whole = out.getvalue()
    for n in range(0, len(whole) - 30, 37):
        (tmp_path / "cut.png").write_bytes(whole[:n])
        with pytest.raises(UnreadableImage):
            open_image(tmp_path / "cut.png")


@cache
def squashed():
    "To 16 × 16 pixels."
    from torchvision.transforms import v2

    return v2.Compose([v2.Resize((16, 16)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


class Redness(nn.Module):
    "Red or not, by the mean of the channels."
    classnames = ["other", "red"]
    alpha = 0

    @property
    def transform(self):
        return squashed()

    def __init__(self, threshold=0.05):
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, x):
        red = x[:, 0].mean((1, 2)) - x[:, 2].mean((1, 2)) - self.threshold
        return torch.stack([-red, red], 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "All kinds of red boxes, black ones, and two of 210 files unreadable."
    root = tmp_path_factory.mktemp("odd")
    for c in Redness.classnames:
        (root / c).mkdir()
    for name, (im, options) in RED_BOXES.items():
        im.save(root / "red" / name, **options)
    for i in range(208 - len(RED_BOXES)):
        Image.new("L", (20, 30), 10).save(root / "other" / f"{i:03}.png")
    for name in "cut.jpg", "text.png":
        (root / "other" / name).write_bytes(UNREADABLE[name][0])
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_all_kinds_in_one_folder(folder, workers):
    p = predict(dict(redness=Redness()), image_folder(folder), batch_size=16, workers=workers, progress=False)
    assert len(p.images) == 208 and (p.logits["redness"].argmax(1) == p.labels).all()
    assert [path.name for path, _ in p.skipped] == ["cut.jpg", "text.png"]
    assert all(reason for _, reason in p.skipped)


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_unreadable_images(folder, workers, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy/other/000.png").write_bytes(b"")
    with pytest.raises(ValueError, match="3 of 210 images unreadable so far, more than 1%") as e:
        predict(dict(redness=Redness()), image_folder(tmp_path / "copy"), workers=workers, progress=False)
    assert "000.png" in str(e.value) and "repair or remove" in str(e.value)


def test_skipped_images_are_counted_in_tables(folder):
    suite = folder_suite(folder.parent / folder.name, [], classnames=Redness.classnames)
    suite.test = suite.validation = image_folder(folder, name="reference")
    suite.shifts = dict(odd=image_folder(folder, name="odd"))
    for table in evaluate(Redness(), suite, progress=False), sweep(Redness(), Redness(0.1), suite, alphas=[0.5],
                                                                   progress=False):
        assert set(table.n) == {208} and set(table.n_skipped) == {2}


def test_sets_travel_to_other_processes(folder):
    images = pickle.loads(pickle.dumps(image_folder(folder)))
    assert len(images) == 210 and images.open(0).mode == "RGB"


LOAD = "from wiseft.data.suites import load_suite; s = load_suite('icons'); print(s.fingerprint, len(s.classnames))"


@pytest.mark.slow
def test_two_processes_unpack_the_embedded_suite_at_once(tmp_path):
    env = os.environ | dict(WISEFT_CACHE=str(tmp_path))
    both = [
        subprocess.Popen([sys.executable, "-c", LOAD], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         text=True) for _ in range(2)]
    outs = [p.communicate() for p in both]
    assert all(p.returncode == 0 for p in both), outs
    assert outs[0][0] == outs[1][0] == python("-c", LOAD, env=env).stdout
    assert len(list((tmp_path / "icons").iterdir())) == 1, "something was left behind"


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


@pytest.mark.skipif(os.name == "nt", reason="a shell script plays Ghostscript")
def test_a_picture_starts_no_program(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "bin/gs").chmod(0o755)
    (tmp_path / "x.jpg").write_bytes(EPS)
    file = str(tmp_path / "x.jpg")
    code = f"from wiseft.data.decoding import *\ntry: open_image({file!r})\nexcept UnreadableImage as e: print(e)"
    output = python("-c", code, env=os.environ | dict(PATH=f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")).stdout
    assert "not an image" in output
    assert not (tmp_path / "started").exists()


def test_one_place_opens_files_as_images():
    "Whatever else reads a picture from disk goes through `open_image`, which knows the formats."
    lines = [(p.name, line.strip()) for p in Path(wiseft.__file__).parent.rglob("*.py")
             for line in p.read_text().splitlines()]
    opens = [(name, line) for name, line in lines if "Image.open(" in line]
    read = "with Image.open(BytesIO(read()) if read else path, formats=readable_formats()) as im:"
    assert opens == [("decoding.py", read)]


MEMORY = """
import resource, sys
from wiseft.data.decoding import *
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try: print(open_image(path).size)
    except UnreadableImage as e: print(e)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in other units there")
def test_small_files_take_no_gigabytes(tmp_path):
    "Three of 13,000 × 13,000, refused; one at the limit in the kind that takes most, read within a gigabyte."
    side = 13_000
    (tmp_path / "gray.png").write_bytes(png(side, side, 0, 8, [bytes(side)] * side))
    (tmp_path / "alpha.png").write_bytes(png(side, side, 6, 8, [bytes(4 * side)] * side))
    (tmp_path / "wide.png").write_bytes(png(side, side, 0, 16, [bytes(2 * side)] * side))
    (tmp_path / "limit.png").write_bytes(png(9_400, 9_500, 6, 8, [bytes(4 * 9_400)] * 9_500))
    paths = sorted(tmp_path.iterdir())
    assert all(p.stat().st_size < 1e6 for p in paths)
    *lines, kilobytes = python("-W", "ignore", "-c", MEMORY, *paths).stdout.splitlines()
    assert [s for s in lines if "more than the 89,478,485 that are decoded" not in s] == ["(9400, 9500)"], lines
    assert int(kilobytes) < 1e6, f"{int(kilobytes):,} kB"


def test_the_limit_on_pixels_is_set_from_outside(tmp_path):
    Image.new("L", (40, 30)).save(tmp_path / "x.png")
    code = f"from wiseft.data.decoding import open_image\nprint(open_image({str(tmp_path / 'x.png')!r}).size)"
    assert "(40, 30)" in python("-c", code, env=os.environ | dict(WISEFT_MAX_PIXELS="1200")).stdout
    assert "1,200 pixels, more than the 1,199" in python("-c", code, env=os.environ | dict(WISEFT_MAX_PIXELS="1199"),
                                                         ok=False).stderr
    assert "WISEFT_MAX_PIXELS is 'many'; expected a number" in python("-c", code, env=os.environ
                                                                      | dict(WISEFT_MAX_PIXELS="many"), ok=False).stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names there")
def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    file = str(tmp_path / "x.png")
    code = f"from wiseft.data.decoding import *\ntry: open_image({file!r})\nexcept UnreadableImage as e: print(e)"
    assert "Not a regular file" in python("-c", code, timeout=900).stdout


@pytest.mark.slow
def test_the_embedded_suite_is_whole_or_made_whole():
    "Images of it that were changed, removed or added are noticed, although names, sizes and times are the same."
    icons = load_suite()
    before, (missing, changed) = icons.fingerprint, icons.test.paths[:2]
    missing.unlink()
    times, content = changed.stat(), changed.read_bytes()
    changed.write_bytes(content[:-1] + bytes([255 - content[-1]]))
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    shutil.copy(icons.test.paths[2], icons.test.paths[2].with_name("added.png"))
    with pytest.warns(UserWarning, match="changed, removed or added; it is unpacked anew"):
        again = load_suite()
    assert (again.fingerprint, len(again.test)) == (before, len(icons.test))
    assert missing.exists() and changed.read_bytes() == content
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_suite()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems don't allow such names")
def test_odd_names(tmp_path):
    "File names in Latin-1, a set's name with line ends: escaped in tables; refused where they would be a class."
    latin1 = os.fsdecode("café.png".encode("latin1"))
    for part in "reference", "a\rb\u2028c":
        for i, c in enumerate(("cat", "dog")):
            (tmp_path / part / c).mkdir(parents=True)
            for k, name in enumerate((latin1, "1.png", "2.png")):
                Image.new("L", (8, 8), 40 * i + 10 * k + len(part)).save(tmp_path / part / c / name)
    suite = folder_suite(tmp_path / "reference", [tmp_path / "a\rb\u2028c"])
    assert list(suite.shifts) == [r"a\rb\u2028c"] and len(suite.fingerprint) == 12
    names = [f for s in suite.sets().values() for f in s.files()]
    assert r"cat/caf\udce9.png" in names and all(n.isprintable() for n in names)
    (tmp_path / "reference" / "cat").rename(tmp_path / "reference" / os.fsdecode("hôte".encode("latin1")))
    with pytest.raises(ValueError, match="texts on one line, in UTF-8"):
        image_folder(tmp_path / "reference")
