"What a simplification of the code has lost once."
import copy
import shutil
import zipfile

import numpy as np
import pandas as pd
import pytest
from conftest import later
from PIL import Image
from torch.utils.data import Dataset, Subset

import wiseft.all
from wiseft.base.files import atomic_path, unzip_once
from wiseft.base.lazy import Later
from wiseft.data.images import ImageSet
from wiseft.data.labels import match_labels
from wiseft.data.layouts import inventory
from wiseft.data.objects import image_set
from wiseft.data.suites import folder_suite, load_suite, shared_images
from wiseft.models.testing import pico_classifier
from wiseft.stats.robustness import robustness
from wiseft.stats.table import REFERENCE
from wiseft.weights.merge import merge

clip_learner = later("wiseft.train.learner", "clip_learner")
PixelSource = later("wiseft.train.loaders", "PixelSource")


def picture(path, size=8, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


class Pictures(Dataset):
    "A hundred gray images of two classes, with labels as an attribute."
    def __init__(self, labels=None):
        self.labels = np.arange(100) % 2 if labels is None else labels

    def __len__(self):
        return 100

    def __getitem__(self, i):
        return Image.new("RGB", (8, 8)), i % 2


class Flipped(Subset):
    "A subset of the user's, in which one label is another one."
    def __getitem__(self, i):
        image, label = super().__getitem__(i)
        return image, 1 - label if i == 3 else label

    def __getitems__(self, indices):
        return [self[i] for i in indices]


def test_a_subset_that_changes_labels_is_asked_for_them():
    labels = image_set(Flipped(Pictures(), list(range(100))), ["cat", "dog"]).labels
    assert labels[:5].tolist() == [0, 1, 0, 0, 0]


def test_labels_in_words_beside_numbered_items():
    images = image_set(Pictures(["cat", "dog"] * 50))
    assert images.classnames == ["cat", "dog"] and images.labels[:3].tolist() == [0, 1, 0]


def test_labels_of_an_image_set_with_an_unreadable_image(tmp_path):
    for i in range(3):
        picture(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"not an image")
    images = ImageSet("pets", [tmp_path / f"{i}.png" for i in range(3)], np.array([0, 1, 1]), ["cat", "dog"])
    assert image_set(Subset(images, [0, 1, 2])).labels.tolist() == [0, 1, 1]


def test_many_class_names_in_another_order():
    names = [f"class {i}" for i in range(21_000)]
    labels, _ = match_labels("here", np.arange(len(names)), names, names[::-1])  # took 32 s by searching in lists
    assert labels.tolist() == list(range(len(names)))[::-1]


@pytest.mark.filterwarnings("ignore")
def test_a_suite_whose_folder_has_a_new_name(tmp_path):
    rows = []
    for part in "reference", "shift":
        for name in "cat", "dog":
            for i in range(4):
                picture(tmp_path / f"suite/{part}/{name}/{i}.png", seed=len(rows))
                rows.append(dict(file=f"suite/{part}/{name}/{i}.png", family=f"family {i}"))
    pd.DataFrame(rows).to_csv(tmp_path / "suite/images.csv", index=False)
    for folder in tmp_path / "suite", shutil.copytree(tmp_path / "suite", tmp_path / "renamed"):
        assert load_suite(folder).shifts["shift"].groups == [f"family {i}" for i in range(4)] * 2


@pytest.mark.filterwarnings("ignore")
def test_test_images_of_other_sizes_are_not_read_for_their_copies(tmp_path, monkeypatch):
    for split, size in ("train", 9), ("test", 30):
        for i in range(20):
            picture(tmp_path / f"images/{split}/{'cat' if i % 2 else 'dog'}/{i}.png", size, i)
    suite, read = folder_suite(tmp_path / "images", {}), []
    monkeypatch.setattr(ImageSet, "hashes", lambda images: read.extend(images.files()) or [])
    assert shared_images(suite) == {} and read == []


def test_no_published_suite_of_this_name(tmp_path):
    assert inventory(tmp_path, "nothing").empty


def test_a_folder_does_not_replace_a_file(tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(FileExistsError, match="which a folder does not replace"), \
            atomic_path(tmp_path / "a", force=True) as tmp:
        tmp.mkdir()
    assert (tmp_path / "a").read_text() == "mine"


@pytest.mark.parametrize("content", ["truncated", "another"])
def test_a_damaged_archive_is_not_unpacked(content, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        z.writestr("a.txt", content)
    if content == "truncated":
        (tmp_path / "a.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:20])
    with pytest.raises(ValueError, match="is damaged or another version"):
        unzip_once(tmp_path / "a.zip", "0" * 64, tmp_path / "unpacked")
    assert not (tmp_path / "unpacked").exists()


def test_what_is_imported_later_can_be_copied():
    assert copy.deepcopy(Later("math")).pi == copy.copy(Later("math")).pi
    assert copy.deepcopy(wiseft.all.finetune).__name__ == "finetune"


def test_a_state_dict_and_a_classifier_are_no_pair():
    zeroshot = pico_classifier(["cat", "dog"])
    with pytest.raises(TypeError, match="give state dicts only, or classifiers"):
        merge(zeroshot.state_dict(), zeroshot)


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA])
def test_a_missing_alpha_is_the_same_in_each_row(missing):
    identity = dict(classifier="a", tuning="", method="zero-shot", metric="accuracy", split="test", n=100)
    rows = [dict(identity, alpha=None, dataset=REFERENCE, role="reference", value=.7),
            dict(identity, alpha=missing, dataset="imagenet-r", role="shift", value=.5)]
    table = pd.DataFrame(rows).astype({"alpha": object})
    assert robustness(table).note.iloc[0] != "no accuracy on the reference"


def test_pixels_that_do_not_fit_into_the_cache_are_decoded_once(monkeypatch):
    import wiseft.train.loaders as loaders
    tried = []
    monkeypatch.setattr(loaders, "decode_for_all", lambda pixels, **_: tried.append(pixels))
    zeroshot = pico_classifier(["cat", "dog"])
    source = PixelSource(image_set(Pictures(), ["cat", "dog"]), zeroshot.clip)
    for _ in range(3):
        source.decode_once(crops=False)
    assert len(tried) == 1


def test_batches_of_a_classifier_with_a_text_tower_may_be_computed_in_parts():
    zeroshot = pico_classifier(["cat", "dog"], transformer=True)
    images = image_set(Pictures(), ["cat", "dog"])
    assert clip_learner(zeroshot.with_text(), images, progress=False).can_split
