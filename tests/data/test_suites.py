"The field's suites in miniature, in the authors' layouts, from the command line; and layouts that are wrong."
import json
import os
import warnings
import zlib

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from wiseft.base.text import BadFile
from wiseft.data.suites import folder_suite, load_suite
from wiseft.infer.evaluation import evaluate
from wiseft.data.layouts import imagenet_subset, set_classes
from wiseft.data.labels import imagenet_classes
from wiseft.stats.table_io import read_results

SHIFTS = ["imagenet-v2", "imagenet-r", "imagenet-sketch", "objectnet", "imagenet-a"]
WNIDS = list(imagenet_classes())


def noise(path):
    "An image of noise that depends on its name."
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(zlib.crc32(str(path).encode())).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def family(tmp_path):
    "ImageNet and its shifted sets, a few images each."
    root, r, a = tmp_path / "family", imagenet_subset("imagenet-r"), imagenet_subset("imagenet-a")
    for k in (0, r[0], r[1], a[0], 423, 559, 765):
        noise(root / f"imagenet/val/{WNIDS[k]}/1.JPEG")
        noise(root / f"sketch/{WNIDS[k]}/1.JPEG")
        noise(root / f"imagenetv2-matched-frequency-format-val/{k}/1.jpeg")
    for k in r[:2]:
        noise(root / f"imagenet-r/{WNIDS[k]}/1.jpg")
    noise(root / f"imagenet-a/{WNIDS[a[0]]}/1.jpg")
    maps, names = root / "objectnet-1.0/mappings", {"banana": "Banana", "chair": "Chair", "fork": "Fork"}
    maps.mkdir(parents=True)
    (maps / "folder_to_objectnet_label.json").write_text(json.dumps(names))
    for c in names:
        noise(root / f"objectnet-1.0/images/{c}/1.png")
    return root


def wiseft(*args, code=0):
    "Run a command line in this process."
    from wiseft.shell.cli import app

    done = CliRunner().invoke(app, list(map(str, args)))
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    "An untrained ViT-B/32 with ImageNet's classes."
    import open_clip
    from safetensors.torch import save_file
    from wiseft.models.clip import load_clip
    from wiseft.models.head import ClassificationHead
    from wiseft.models.classifier import ImageClassifier

    folder = tmp_path_factory.mktemp("vit")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an untrained model and head, and of two names that repeat
        save_file(open_clip.create_model("ViT-B-32").state_dict(), folder / "vit.safetensors")
        clip = load_clip("ViT-B-32", folder / "vit.safetensors", preprocess="laion2b_s34b_b79k", quick_gelu=False)
        head = ClassificationHead(torch.randn(1000, clip.dim))
        ImageClassifier(clip, head, set_classes("imagenet"), alpha=0).save(folder / "classifier")
    return folder / "classifier"


def test_evaluate_imagenet(family, vit, tmp_path):
    error = wiseft("evaluate", vit, "--suite", "imagenet", "--data-root", family, code=1).stderr
    assert "7 images of 50,000, 49,993 are missing" in error and "--allow-incomplete" in error
    wiseft("evaluate", vit, "--suite", "imagenet", "--data-root", family, "--allow-incomplete", "-o",
           tmp_path / "t.csv")
    table = read_results(tmp_path / "t.csv").set_index("dataset")
    assert set(["reference", *SHIFTS]) <= set(table.index)
    assert table.n["reference"] == 7 and table.n_skipped["reference"] == 49_993
    assert table.n["objectnet"] == 2 and table.n_skipped["objectnet"] == 18_572
    assert table.n["reference, objectnet classes"] == 3
    aside = {f"reference, {s} classes" for s in ("imagenet-r", "objectnet", "imagenet-a")}
    roles = {"reference": "reference", "mean over shifts": "shift"}
    roles |= dict.fromkeys(SHIFTS, "shift") | dict.fromkeys(aside, "aside")
    assert table.role.to_dict() == roles
    assert table.value["mean over shifts"] == pytest.approx(table.value[SHIFTS].mean())


def test_data_lists_what_is_there(family):
    out = wiseft("data", "imagenet", "--data-root", family).stdout
    assert "49,993 missing" in out and "not there" in out and "1281167" in out
    assert "image-net.org" in out
    out = wiseft("data", "--data-root", family).stdout
    assert all(s in out for s in ("imagenet", "cifar10", "iwildcam", "fmow", "transfer:sun397", "pip install wilds"))


def test_a_head_of_objectnets_own_names(family, tmp_path, monkeypatch):
    monkeypatch.setenv("WISEFT_DATA", str(family))
    wiseft("zeroshot", "objectnet", "--templates", "plain", "-o", tmp_path / "own")
    wiseft("evaluate", tmp_path / "own", "--suite", "imagenet", "--allow-incomplete", "-o", tmp_path / "t.csv")
    table = read_results(tmp_path / "t.csv")
    assert set(table.dataset) == {"objectnet", "reference, objectnet classes"}  # the sets with its classes, and no mean


def load(root):
    return load_suite("imagenet", root=root, allow_incomplete=True, training=False)


def test_class_folders_that_are_wrong(family):
    noise(family / "imagenetv2-matched-frequency-format-val/n01440764/1.jpeg")
    with pytest.raises(ValueError, match="class 'n01440764' not among the 1000 classes"):
        load(family)


def test_a_class_twice(family):
    noise(family / "imagenetv2-matched-frequency-format-val/00/1.jpeg")
    with pytest.raises(ValueError, match="class '00' not among the 1000 classes"):
        load(family)


def test_an_empty_class(family):
    (family / f"imagenet-r/{WNIDS[imagenet_subset('imagenet-r')[5]]}").mkdir()
    with pytest.warns(UserWarning, match="imagenet-r: skipped folders without images"):
        load(family)


def test_files_that_are_no_images(family):
    before = len(load(family).test)
    (family / f"imagenet/val/{WNIDS[0]}/notes.txt").write_text("no image")
    (family / "imagenet/val/ILSVRC.txt").write_text("no image")
    assert len(load(family).test) == before


def test_an_unreadable_image_is_no_silent_loss(family, vit):
    (family / f"sketch/{WNIDS[0]}/1.JPEG").write_bytes(b"broken")
    error = wiseft("evaluate", vit, "--suite", "imagenet", "--data-root", family, "--allow-incomplete", code=1).stderr
    assert "imagenet-sketch: 1 of 7 images unreadable" in error


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_in_a_circle(family):
    before = len(load(family).test)
    (family / f"imagenet/val/{WNIDS[0]}/again").symlink_to(family / f"imagenet/val/{WNIDS[0]}")
    assert len(load(family).test) == before


def test_scrambled_v2_would_show(family):
    v2 = load(family).shifts["imagenet-v2"]
    as_text = pd.Series([p.parent.name for p in v2.paths]).rank(method="dense").astype(int) - 1
    assert [int(p.parent.name) for p in v2.paths] == list(v2.labels) != list(as_text)


class Always:
    "A classifier that says the same of every image."

    transform, method = staticmethod(lambda im: torch.zeros(3, 4, 4)), "linear classifier"

    def __init__(self, classnames, answer):
        self.classnames, self.logits = classnames, torch.zeros(len(classnames))
        self.logits[answer] = 1

    def __call__(self, x):
        return self.logits.expand(len(x), -1)


def test_wilds_metrics(tmp_path):
    "Macro-F1 over the classes that occur, first; the worst region without Other."
    rows = [dict(split=s, y=y, location_remapped=i, filename=f"{s}{k}{i}.jpg")
            for s in ("train", "id_val", "id_test", "val", "test") for k, y in enumerate((0, 0, 5)) for i in range(6)]
    for r in rows:
        noise(tmp_path / "iwildcam_v2.0/train" / r["filename"])
    pd.DataFrame(rows).to_csv(tmp_path / "iwildcam_v2.0/metadata.csv", index=False)
    suite = load_suite("iwildcam", root=tmp_path, allow_incomplete=True)
    table = evaluate(Always(suite.classnames, 0), suite, progress=False)
    assert list(table.metric.unique()) == ["macro-F1", "accuracy"]
    value = table.set_index(["metric", "dataset"]).value
    assert value["macro-F1", "reference"] == pytest.approx((2 * 12 / (12 + 18)) / 2)
    assert value["accuracy", "ood"] == pytest.approx(2 / 3)
    assert table[table.metric == "macro-F1"].low.notna().all()

    kinds = [dict(split=s, category=c, country_code=k, timestamp=f"{y}-01-01T00:00:00Z")
             for s in ("train", "val", "test") for y in (2010, 2014, 2016)
             for c, k in (("zoo", "KEN"), ("zoo", "FRA"), ("airport", "FRA"), ("airport", "ATA"))]
    for i in range(len(kinds)):
        noise(tmp_path / f"fmow_v1.1/images/rgb_img_{i}.png")
    pd.DataFrame(kinds).to_csv(tmp_path / "fmow_v1.1/rgb_metadata.csv", index=False)
    (tmp_path / "fmow_v1.1/country_code_mapping.csv").write_text("alpha-3,region\nKEN,Africa\nFRA,Europe\n")
    suite = load_suite("fmow", root=tmp_path, allow_incomplete=True)
    value = evaluate(Always(suite.classnames, suite.classnames.index("zoo")), suite,
                     progress=False).set_index(["metric", "dataset"]).value
    assert value["worst-group accuracy", "ood"] == 0.5 and value["accuracy", "ood"] == 0.5
    value = evaluate(Always(suite.classnames, suite.classnames.index("airport")), suite,
                     progress=False).set_index(["metric", "dataset"]).value
    assert value["worst-group accuracy", "ood"] == 0  # Africa; in Other it is always right


def test_a_shifted_set_of_the_hub_that_is_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("WISEFT_DATA", str(tmp_path))
    for c in "ab":
        for i in range(4):
            noise(tmp_path / "photos" / c / f"{i}.png")
    with pytest.raises(FileNotFoundError, match="wiseft data hf:me/sketches --download"):
        folder_suite(tmp_path / "photos", ["hf:me/sketches"])


@pytest.mark.parametrize("text", ["family, file\nx,reference/a/0.png\n", "family,file\nx,reference/a/0.png\nx\n"])
def test_a_table_without_files(text, tmp_path):
    for c in "ab":
        for i in range(4):
            noise(tmp_path / "reference" / c / f"{i}.png")
    (tmp_path / "families.csv").write_text(text)
    with pytest.raises(BadFile, match="families.csv has (no file for 'row 2'|the columns .* there is none named file)"):
        load_suite(tmp_path)


def test_a_reference_too_small_to_hold_images_out_says_how_many_it_takes():
    pixels, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 0, 1, 1])
    with pytest.raises(ValueError, match="fewer than 3 images of each class, .* for validation and test. Give more"):
        folder_suite((pixels, labels), [], ["cat", "dog"])
    with pytest.raises(ValueError, match="fewer than 2 images of each class, .* for validation. Give more"):
        folder_suite(dict(train=(pixels[::2], labels[::2]), test=(pixels, labels)), [], ["cat", "dog"])
