"Images with captions as people have them, and what is wrong with them by name."
import io
import json
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from wiseft.base.text import BadFile
from wiseft.data.retrieval import RetrievalSet, retrieval_set

CAPTIONS = [["a bird", "a bird on a branch"], ["a cat"], ["a tree", "a bird"]]


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        Image.new("RGB", (8, 8), (80 * i, 40, 0)).save(tmp_path / f"{i}.png")
    return tmp_path


def rows():
    return pd.DataFrame([(f"{i}.png", c) for i, own in enumerate(CAPTIONS) for c in own], columns=["file", "caption"])


def as_csv(folder):
    rows().to_csv(folder / "pairs.csv", index=False)
    return folder / "pairs.csv"


def as_tsv(folder):
    rows().set_axis(["filepath", "title"], axis=1).to_csv(folder / "pairs.tsv", index=False, sep="\t")
    return folder / "pairs.tsv"


def as_coco(folder):
    content = dict(images=[dict(id=100 + i, file_name=f"{i}.png") for i in range(3)],
                   annotations=[dict(id=1, image_id=100 + i, caption=f"{c}\n") for i, own in enumerate(CAPTIONS)
                                for c in own])
    (folder / "annotations").mkdir()
    (folder / "val2017").mkdir()
    for i in range(3):
        (folder / f"{i}.png").rename(folder / f"val2017/{i}.png")
    (folder / "annotations/captions_val2017.json").write_text(json.dumps(content))
    return folder / "annotations/captions_val2017.json"


def as_webdataset(folder):
    (folder / "wds/test").mkdir(parents=True)
    with tarfile.open(folder / "wds/test/0.tar", "w") as tar:
        for i, own in enumerate(CAPTIONS):
            pair = {f"s{i}.png": (folder / f"{i}.png").read_bytes(), f"s{i}.txt": "\n".join(own).encode()}
            for name, data in pair.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return folder / "wds"


def as_lists(folder):
    return [str(folder / f"{i}.png") for i in range(3)], CAPTIONS


def as_pictures(folder):
    return [(Image.open(folder / f"{i}.png"), own) for i, own in enumerate(CAPTIONS)]


def as_arrays(folder):
    return np.stack([np.asarray(Image.open(folder / f"{i}.png")) for i in range(3)]), CAPTIONS


def as_hugging_face(folder):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(dict(image=datasets.Image(), caption=[datasets.Value("string")]))
    given = dict(image=[str(folder / f"{i}.png") for i in range(3)], caption=CAPTIONS)
    return datasets.Dataset.from_dict(given, features)


FORMS = [as_csv, as_tsv, as_coco, as_webdataset, as_lists, as_pictures, as_arrays, as_hugging_face]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pairs_and_pixels(form, folder):
    images = retrieval_set(form(folder))
    assert images.classnames == ["a bird", "a bird on a branch", "a cat", "a tree"]
    assert [images.captions_of(i) for i in range(3)] == [["a bird", "a bird on a branch"], ["a cat"],
                                                        ["a bird", "a tree"]]
    assert [images.open(i).getpixel((0, 0))[0] for i in range(3)] == [0, 80, 160]
    assert images.counts().tolist() == [2, 1, 1, 1]
    assert len(images.fingerprint) == 12


def test_a_frame_is_relative_to_a_folder(folder):
    assert len(retrieval_set(rows(), folder=folder)) == 3
    with pytest.raises(FileNotFoundError, match="'0.png', '1.png'.*folder=… says where"):
        retrieval_set(rows(), folder=folder / "elsewhere")


@pytest.mark.parametrize("text, error", [
    ("file,caption\n0.png,a\n1.png,\n", "has no caption for '1.png'"),
    ("file,caption\n0.png,a\n,b\n", "has no file for 'b'"),
    ("file,caption\n0.png,a\n1.png,a\n", "2 images and 1 caption: there is nothing to find"),
    ("file,caption\n0.png,a\n0.png,b\n", "1 image and 2 captions: there is nothing to find"),
    ("file,caption\n0.png,a\n7.png,b\n", "files that are not there: '7.png'"),
    ("file,label\n0.png,a\n", "none named caption"),
])
def test_what_is_wrong_with_a_table_is_named(text, error, folder):
    (folder / "pairs.csv").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=error):
        retrieval_set(folder / "pairs.csv")


@pytest.mark.parametrize("change, error", [
    (lambda c: c["annotations"].pop(2), "no caption for '1.png'"),
    (lambda c: c["images"].pop(1), "no image for the caption 'a cat"),
    (lambda c: c["images"][0].update(file_name="/etc/passwd"), "outside of a folder"),
    (lambda c: c["images"][0].update(file_name="../0.png"), "outside of a folder"),
    (lambda c: c["images"][0].update(id=101), "two images have one id"),
    (lambda c: c["images"][0].update(file_name="1.png"), "two images have one id, or one file"),
    (lambda c: c["annotations"][0].update(caption=7), "no captions as COCO has them"),
    (lambda c: c["annotations"][0].update(image_id=[[]]), "no captions as COCO has them"),
    (lambda c: c.pop("annotations"), "no captions as COCO has them"),
])
def test_what_is_wrong_with_cocos_captions_is_named(change, error, folder):
    path = as_coco(folder)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(BadFile, match=error):
        retrieval_set(path)


def test_a_truncated_or_nested_file_is_refused(folder):
    path = as_coco(folder)
    for text in (path.read_text()[:-9], "[" * 100_000, "[]", "null", "\udcff".encode("utf-8", "surrogatepass")):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(BadFile, match="captions_val2017.json"):
            retrieval_set(path)


def test_parts_keep_the_captions_of_their_images(folder):
    images = retrieval_set(as_lists(folder))
    part = images.subset([2, 1])
    assert part.classnames == ["a bird", "a cat", "a tree"]
    assert [part.captions_of(i) for i in range(2)] == [["a bird", "a tree"], ["a cat"]]
    assert [len(p) for p in images.split((0.3,))] == [2, 1]
    grouped = RetrievalSet("grouped", images.paths, None, images.classnames, groups=["x", "x", "y"], pairs=images.pairs)
    assert {tuple(sorted(p.groups)) for p in grouped.split((0.5,))} == {("x", "x"), ("y",)}


def test_files_of_strangers_do_not_leave_their_folder():
    "A file of captions in an empty folder opens nothing beside it."
    with tempfile.TemporaryDirectory() as room:
        Path(room, "c.json").write_text(json.dumps(dict(images=[dict(id=1, file_name="a/../../b.png")],
                                                        annotations=[dict(image_id=1, caption="b")])))
        with pytest.raises(BadFile, match="outside"):
            retrieval_set(Path(room, "c.json"))
