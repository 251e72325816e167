"Files as they come from phones, Excel, and archives; unequal classes; short memory; and a decision at the end."
import io
import itertools
import re
import subprocess
import sys
import tarfile

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import later, plain, unboxed
from PIL import Image
from tests.shell.test_cli import wiseft

import wiseft as package
from wiseft.base.progress import duration
from wiseft.data.decoding import UnreadableImage, open_image
from wiseft.data.labels import image_folder
from wiseft.data.suites import folder_suite
from wiseft.models.testing import pico_classifier

CrossEntropyLossFlat = later("fastai.losses", "CrossEntropyLossFlat")
NAMES = ["cat", "dog"]
quick = dict(epochs=2, batch_size=8, precision="fp32", progress=False)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "Class folders of noise, brighter for dogs: 30 cats, 10 dogs"
    folder, rng = tmp_path_factory.mktemp("own") / "photos", np.random.default_rng(0)
    for i in range(40):
        name = NAMES[i >= 30]
        (folder / name).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 180, (48, 48, 3), dtype=np.uint8) + np.uint8(60*(i >= 30))
        Image.fromarray(pixels).save(folder / name / f"{i:02}.png")
    return folder


# ---------- files ----------


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("header", [True, False])
def test_tables(photos, tmp_path, separator, header):
    "With a header or without, and with semicolons, as Excel writes them in half of Europe"
    images = image_folder(photos)
    rows = [f"{p}{separator}{NAMES[y]}" for p, y in zip(images.paths, images.labels)]
    (tmp_path / "t.csv").write_text("\n".join([separator.join(["file", "label"])]*header + rows) + "\n")
    table = image_folder(tmp_path / "t.csv")
    assert list(table.paths) == list(images.paths) and list(table.labels) == list(images.labels)
    found = wiseft("data", "t.csv", cwd=tmp_path).stdout
    assert re.search(r"\b40\b", found), found


def test_a_compressed_tar(photos, tmp_path):
    "Is the same set as the tar: names, labels, fingerprint"
    for name, mode in (("photos.tar", "w"), ("packed/photos.tar.gz", "w:gz"), ("packed/photos.tgz", "w:gz")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with tarfile.open(tmp_path / name, mode) as tar:
            tar.add(photos, "photos")
    plain, *packed = (image_folder(tmp_path / n) for n in ("photos.tar", "packed/photos.tar.gz", "packed/photos.tgz"))
    for images in packed:
        assert images.hashes() == plain.hashes() and list(images.labels) == list(plain.labels)
        assert images.name == "photos" and str(images.files()[0]).startswith("photos.t")
    (tmp_path / "short.tar.gz").write_bytes((tmp_path / "packed/photos.tar.gz").read_bytes()[:500])
    with pytest.raises(ValueError, match="not a complete .tar.gz"):
        image_folder(tmp_path / "short.tar.gz")


def test_heic(tmp_path):
    "Photographs of phones, where pillow-heif is installed"
    pillow_heif = pytest.importorskip("pillow_heif")
    pixels = np.linspace(0, 255, 64*64*3).reshape(64, 64, 3).astype(np.uint8)
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(tmp_path / "phone.heic", quality=95)
    assert np.abs(np.asarray(open_image(tmp_path / "phone.heic"), int) - pixels).mean() < 4
    code = ("import sys; sys.modules['pillow_heif'] = None\n"
            "from wiseft.data.decoding import open_image\nopen_image('phone.heic')")
    without = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "a HEIC picture: pip install pillow-heif" in without.stderr, without.stderr


def test_heic_goes_by_the_content(tmp_path):
    (tmp_path / "no.heic").write_text("no picture")
    with pytest.raises(UnreadableImage):
        open_image(tmp_path / "no.heic")


def test_folders_that_are_numbers(photos, tmp_path):
    "Names in a file, one per line; later commands know them from the classifier"
    for name, number in (("cat", "0"), ("dog", "1")):
        (tmp_path / "numbers").mkdir(exist_ok=True)
        (tmp_path / "numbers" / number).symlink_to(photos / name)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    said = wiseft("zeroshot", "numbers", "-o", "numbered", cwd=tmp_path).stderr
    assert "are numbers, and mean nothing in prompts" in said and "--classnames FILE" in said
    said = wiseft("zeroshot", "numbers", "--classnames", "names.txt", "-o", "start", cwd=tmp_path).stderr
    assert "mean nothing" not in said and "of a cat" in said
    assert package.load_classifier(tmp_path / "start").classnames == NAMES
    wiseft("evaluate", "start", "--suite", "numbers", "-o", "numbers.csv", cwd=tmp_path)
    wiseft("evaluate", "start", "--suite", photos, "-o", "names.csv", cwd=tmp_path)
    assert pd.read_csv(tmp_path / "numbers.csv").value[0] == pd.read_csv(tmp_path / "names.csv").value[0]
    (tmp_path / "numbers/5").symlink_to(photos / "dog")
    said = wiseft("zeroshot", "numbers", "--classnames", "names.txt", "-o", "x", cwd=tmp_path, code=1).stderr
    assert "labels 0…5 for 2 classes; expected 0…1" in said, said


# ---------- synthetic shifts ----------


def test_corruptions(photos):
    "Four sets of the test images, which are drawn together with their originals"
    suite = folder_suite(photos, ["corruptions"])
    assert [n.split()[0] for n in suite.shifts] == ["blur", "noise", "contrast", "JPEG"]
    for images in suite.shifts.values():
        assert len(images) == len(suite.test) and list(images.units) == list(suite.test.units)
    table = package.evaluate(pico_classifier(NAMES), suite, progress=False)
    assert {*table.dataset} > {"blur (synthetic)", "mean over shifts"}
    assert suite.fingerprint == folder_suite(photos, ["corruptions"]).fingerprint


# ---------- unequal classes ----------


def test_class_weights(photos):
    "Are those of scikit-learn's `balanced`, in cross-entropy"
    start = pico_classifier(NAMES)
    balanced = package.finetune(start, str(photos), class_weights="balanced", **quick)
    assert balanced.recipe["class_weights"] == "balanced"
    counts = folder_suite(photos, []).train.counts()
    weights = [counts.sum()/(2*n) for n in counts]
    assert package.finetune(start, str(photos), class_weights=weights, **quick).hash == balanced.hash
    weighted = CrossEntropyLossFlat(weight=torch.tensor(weights, dtype=torch.float32))
    assert package.finetune(start, str(photos), loss_func=weighted, **quick).hash == balanced.hash
    assert package.finetune(start, str(photos), **quick).hash != balanced.hash
    parts = package.finetune(start, str(photos), class_weights="balanced", **quick | dict(batch_size=2, accumulate=4))
    for whole, part in zip(balanced.parameters(), parts.parameters()):
        torch.testing.assert_close(part, whole, rtol=0, atol=1e-6)
    head = dict(train="head", class_weights="balanced")
    assert package.finetune(start, str(photos), **head, **quick).hash != package.finetune(
        start, str(photos), train="head", **quick).hash
    with pytest.raises(ValueError, match="'balanced', or one number per class"):
        package.finetune(start, str(photos), class_weights="equal", **quick)
    with pytest.raises(ValueError, match="belongs to cross-entropy"):
        package.finetune(start, str(photos), class_weights="balanced", loss="self-distillation", **quick)


def test_class_weights_in_the_shell(photos, tmp_path):
    wiseft("zeroshot", "cat,dog", "-o", "start", cwd=tmp_path)
    wiseft("finetune", "start", photos, "--epochs", "1", "--class-weights", "balanced", "-o", "tuned", cwd=tmp_path)
    assert package.load_classifier(tmp_path / "tuned").recipe["class_weights"] == "balanced"


# ---------- short of memory ----------


class OfLittleMemory(torch.nn.Module):
    "An image tower that has room for some images"
    def __init__(self, tower, room):
        super().__init__()
        self.tower, self.room, self.largest = tower, room, 0

    def forward(self, x):
        if torch.is_grad_enabled() and len(x) > self.room:
            raise torch.OutOfMemoryError("out of memory")
        self.largest = max(self.largest, len(x))
        return self.tower(x)


def test_training_halves_its_parts(photos, capsys):
    "Where memory is short, and gives what `accumulate` gives"
    from wiseft.train.learner import clip_learner
    from wiseft.train.loaders import clip_dataloaders

    def trained(room, **how):
        start = pico_classifier(NAMES)
        learn = clip_learner(start, clip_dataloaders(str(photos), start, 8), progress=False, **how)
        tower = learn.model.visual
        learn.model.visual.forward = OfLittleMemory(type(tower).forward.__get__(tower), room).forward
        learn.fit_cosine(1, 1e-3)
        return learn

    halved, whole = trained(2), trained(8, accumulate=4)
    assert halved.accumulate == 4
    for a, b in zip(halved.model.parameters(), whole.model.parameters()):
        assert torch.equal(a, b)
    with pytest.raises(torch.OutOfMemoryError):
        trained(0)
    assert "16 parts" not in capsys.readouterr().err, "a part has one image at least"


# ---------- progress ----------


def test_a_probe_says_how_far_it_is(photos, monkeypatch, capsys):
    monkeypatch.setattr("wiseft.base.progress.PAUSE", 0)
    package.linear_probe(pico_classifier(NAMES, 7).clip, NAMES, str(photos), epochs=1, batch_size=8)
    assert re.search(r"reference \(waiting for images: .*: \d+ ?%", capsys.readouterr().err)


def test_a_long_pass_says_how_long_all_sets_take(photos, monkeypatch, capsys):
    "After its first batch, and with the first set alone; here a batch takes four seconds"
    suite, clock = folder_suite(photos, ["corruptions"]), itertools.count(0, 4)
    monkeypatch.setattr("wiseft.base.progress.perf_counter", lambda: next(clock))
    members = pico_classifier(NAMES), pico_classifier(NAMES)
    package.evaluate(dict(zip("ab", members)), suite, batch_size=1)
    lines = re.findall(r"reference .*: (\d+)%.*, (.*) left for all sets", capsys.readouterr().err)
    n = sum(map(len, suite.datasets().values()))
    assert lines[0] == (str(100//len(suite.test)), duration(4*(n-1)))


# ---------- the decision ----------


def test_one_decision(photos, tmp_path, capsys):
    "Terminal, report, card, and Python say the same, once"
    done = package.run(str(photos), tmp_path / "out", shift="corruptions", epochs=1, batch_size=8)
    sentence = str(done.decision)
    assert sentence.startswith(("Keep the ", "The data cannot tell; keep the average (α = "))
    printed = unboxed(capsys.readouterr().out)
    files = tmp_path / "out/averaged/README.md", tmp_path / "out/report.html"
    card, html = (plain(file.read_text(encoding="utf-8")) for file in files)
    for text in printed, card, html:
        assert [text.count(part) for part in (done.decision.lead, done.decision.reason)] == [1, 1]
    assert "Class by class" in html and "Macro F1" in html
    assert {"on the reference", "under shift"} == set(done.decision.table.index)


@pytest.mark.slow
def test_without_a_shift_it_offers_corruptions(photos, tmp_path):
    done = package.run(str(photos), tmp_path / "out", epochs=1, batch_size=8)
    assert "There is no shifted set: shift='corruptions' makes synthetic ones." in str(done.decision)
    said = wiseft("run", photos, "--epochs", "1", "--batch-size", "8", "-o", "shell", cwd=tmp_path).stdout
    assert "--shift corruptions" in unboxed(said), said


def test_pictures_in_memory_are_what_files_are(photos):
    "In a file, and as bytes that were decoded"
    path = next(iter(image_folder(photos).paths))
    decoded = Image.open(io.BytesIO(path.read_bytes()))
    start = pico_classifier(NAMES)
    assert start.predict_image(decoded).equals(start.predict_image(path))
