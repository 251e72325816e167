"""Numbers that look right and aren't: what gives each is refused, or warned of by name.

All on six classes of colored tiles, which `Colors` tells apart without an error.
"""
import json
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tests.data.test_shards import pack

from conftest import later
from wiseft.data.suites import Suite, folder_suite
from wiseft.infer.ensembles import sweep
from wiseft.infer.evaluation import evaluate
from wiseft.models.load import load_classifier
from wiseft.models.testing import pico_classifier

finetune = later("wiseft.train.learner", "finetune")

NAMES = ["black", "blue", "cyan", "green", "red", "yellow"]
CENTERS = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 1], [0, 1, 0], [1, 0, 0], [1, 1, 0]])


class Colors(torch.nn.Module):
    "The color that the mean of an image is nearest to."
    classnames = NAMES

    def __init__(self, alpha=0, brighter=0.0):
        super().__init__()
        self.alpha, self.brighter = alpha, torch.nn.Parameter(torch.tensor(brighter))

    @staticmethod
    def transform(im):
        return torch.from_numpy(np.asarray(im.resize((16, 16))).copy()).permute(2, 0, 1) / 255

    def forward(self, x):
        return -torch.cdist(x.mean((2, 3)) + self.brighter, CENTERS.float())


def tiles(folder, n, seed, ending="png", **options):
    "Tiles with a pattern each, in class folders."
    rng = np.random.default_rng(seed)
    for name, center in zip(NAMES, CENTERS.numpy()):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            pattern = rng.integers(0, 51, (6, 6, 3)).repeat(8, 0).repeat(8, 1)
            Image.fromarray((204 * center + pattern).astype(np.uint8)).save(folder / name / f"{i}.{ending}", **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A suite in which nothing is wrong."
    folder = tmp_path_factory.mktemp("whole")
    for seed, part in enumerate(("reference/train", "reference/validation", "reference/test", "dark")):
        tiles(folder / part, 6, seed)
    tiles(folder / "photos", 6, 9, "jpg", quality=90)
    return folder


@pytest.fixture
def here(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "here")
    return tmp_path / "here"


def measured(folder):
    "What loading a suite and evaluating on it gives."
    suite = folder_suite(folder / "reference", sorted(p for p in folder.iterdir() if p.name != "reference"))
    return evaluate(Colors(), suite, progress=False)


def test_nothing_is_said_without_a_reason(here):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = measured(here)
    assert set(table.value) == {1.0}


# ---------- a change to a suite in which nothing is wrong, and what is said of it then ----------


def jpegs_cut_in_half(folder):
    for path in (folder / "photos").rglob("*.jpg"):
        data = path.read_bytes()
        middle = (data.index(b"\xff\xda") + len(data)) // 2  # of the picture's own data
        path.write_bytes(data[:middle] + b"\xff\xd9")


def folders_exchanged(folder):
    (folder / "dark/red").rename(folder / "dark/x")
    (folder / "dark/blue").rename(folder / "dark/red")
    (folder / "dark/x").rename(folder / "dark/blue")


def class_missing(folder):
    shutil.rmtree(folder / "dark/red")


def one_class(folder):
    for name in NAMES[1:]:
        shutil.rmtree(folder / "dark" / name)


def shift_of_test_images(folder):
    shutil.copytree(folder / "reference/test", folder / "seen")


def one_shift_twice(folder):
    shutil.copytree(folder / "dark", folder / "again")


def one_class_many_times(folder):
    for path in list((folder / "dark/red").iterdir()):
        for i in range(20):
            shutil.copy(path, path.with_name(f"{i} {path.name}"))


def one_file_in_two_classes(folder):
    shutil.copy(folder / "dark/red/0.png", folder / "dark/blue/red.png")


OF_SUITES = {
    jpegs_cut_in_half: "0.jpg: The file is truncated: its last rows are missing",
    folders_exchanged: "dark: hardly an image of 'blue', 'red' is right, and most are taken for the next",
    class_missing: "dark: there are no images of 'red', 1 of 6 classes: its numbers are those of the others",
    one_class: "5 of 6 classes: its numbers are those of the others. A classifier that always answers it scores 100 %",
    shift_of_test_images: "seen: 36 of 36 images are those of reference, byte for byte (such as",
    one_shift_twice: "dark: 36 of 36 images are those of again, byte for byte (such as",
    one_class_many_times: "dark: 156 files are 36 images (red/0 0.png is there 21 times)",
    one_file_in_two_classes: "blue/red.png, of the class 'blue', and red/0.png, of 'red', are one image, of 1 with two",
}


def warnings_of(task, *args):
    "All that is warned of, and the error if there is one."
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        try:
            task(*args)
        except ValueError as e:
            return str(e)
    return "\n".join(str(w.message) for w in record)


@pytest.mark.parametrize("change", OF_SUITES, ids=lambda change: change.__name__)
def test_suites(change, here):
    change(here)
    assert OF_SUITES[change] in warnings_of(measured, here)


# ---------- tables and tars ----------


def in_table(here, *more):
    "A table of the test images, and further rows."
    files = sorted((here / "reference/test").rglob("*.png"))
    rows = [(p.relative_to(here), p.parent.name) for p in files]
    pd.DataFrame([*rows, *more], columns=["file", "label"]).to_csv(here / "t.csv", index=False)
    return Suite.for_evaluation(here / "t.csv")


def samples(here, *more, shards=(0,)):
    "A WebDataset of a few images, with further members."
    for k in shards:
        images = [(f"{k}{i}.png", here / f"dark/{NAMES[i]}/{k}.png") for i in range(6)]
        members = [(name, path.read_bytes()) for name, path in images]
        labels = [(f"{k}{i}.cls", str(i).encode()) for i in range(6)]
        pack(here / f"wds/{k:03}.tar", [*members, *labels, *more])
    (here / "wds/classnames.txt").write_text("\n".join(NAMES))
    return Suite.for_evaluation(here / "wds")


ONE = "reference/test/red/0.png"
OF_SOURCES = {
    "t.csv names 'reference/test/red/0.png' more than once": lambda here: in_table(here, (ONE, "red")),
    "t.csv names './reference/test/red/0.png' more than once": lambda here: in_table(here, (f"./{ONE}", "blue")),
    "has two members '01.cls'": lambda here: samples(here, ("01.cls", b"0")),
    "several images for one label: '01.png', '01.seg.png'": lambda here: samples(here, ("01.seg.png", b"x")),
    "numbered 0 to 3, and there is no number 2": lambda here: samples(here, shards=(0, 1, 3)),
}


@pytest.mark.parametrize("words", OF_SOURCES)
def test_sources(words, here):
    assert words in warnings_of(OF_SOURCES[words], here)


def test_good_sources_are_read_silently(here):
    assert not warnings_of(in_table, here) and not warnings_of(samples, here) and len(samples(here)) == 6
    assert not warnings_of(lambda: samples(here, shards=(0, 1, 2)))


# ---------- classifiers ----------


def change_card(folder, **entries):
    card = json.loads((folder / "wiseft.json").read_text())
    (folder / "wiseft.json").write_text(json.dumps(card | entries))


def names_exchanged(folder):
    change_card(folder, classnames=["dog", "cat"])


def called_zeroshot(folder):
    change_card(folder, alpha=0)


def with_hash_put_right(folder, name):
    from wiseft.base.files import sha256_file
    files = json.loads((folder / "wiseft.json").read_text())["files"]
    change_card(folder, files=files | {name: sha256_file(folder / name)})


def activation_turned(folder):
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = True
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with_hash_put_right(folder, "open_clip_config.json")


def other_head(folder):
    with torch.no_grad():
        classifier = load_classifier(folder)
        classifier.head.weight.copy_(classifier.head.weight.flip(0))
    classifier.save(folder.with_name("other"))
    shutil.copy(folder.with_name("other") / "head.safetensors", folder)
    with_hash_put_right(folder, "head.safetensors")


CARDS = [names_exchanged, called_zeroshot, activation_turned, other_head]


@pytest.mark.parametrize("change", CARDS, ids=lambda change: change.__name__)
def test_changed_folders_of_classifiers(change, tmp_path):
    classifier = pico_classifier(["cat", "dog"])
    classifier.alpha = 1
    classifier.save(tmp_path / "c")
    assert load_classifier(tmp_path / "c").hash == classifier.hash
    change(tmp_path / "c")
    message = warnings_of(load_classifier, tmp_path / "c")
    assert "c/wiseft.json was changed since it was saved" in message and 'take its line "sha256" out' in message


def test_weights_are_held_against_their_hash(tmp_path):
    "Also where the card's own hash is gone, as in folders of an earlier version."
    pico_classifier(["cat", "dog"]).save(tmp_path / "c")
    card = json.loads((tmp_path / "c/wiseft.json").read_text())
    del card["sha256"]
    (tmp_path / "c/wiseft.json").write_text(json.dumps(card))
    assert not warnings_of(load_classifier, tmp_path / "c")
    other_head(tmp_path / "c")
    assert "c holds other weights than were saved" in warnings_of(load_classifier, tmp_path / "c")


SWEEPS = {
    "itself": (Colors(1), (0.5,), "weight-space", "The two classifiers have the same weights"),
    "alpha 2": (Colors(1, 0.1), (0.5, 2), "weight-space", "alpha is 2, outside 0…1"),
    "alpha -1 of outputs": (Colors(1, 0.1), (-1, 0.5), "logits", "alpha is -1, outside 0…1"),
    "as it should be": (Colors(1, 0.1), (0.5,), "weight-space", ""),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_sweeps(name, whole):
    end, alphas, way, words = SWEEPS[name]
    suite = folder_suite(whole / "reference", [])
    message = warnings_of(lambda: sweep(Colors(), end, suite, alphas, by=[way], progress=False))
    assert words in message and bool(words) == bool("weights" in message or "alpha" in message)


def test_threads_or_shards_are_in_the_recipe(whole):
    "On another number of them the same seed gives other weights; the recipe says how many there were."
    start, quick = pico_classifier(NAMES), dict(epochs=1, batch_size=36, progress=False)
    for shards, threads in (0, torch.get_num_threads()), (2, None):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            finetuned = finetune(start, folder_suite(whole / "reference", []), shards=shards, **quick)
        assert (finetuned.recipe.get("shards", 0), finetuned.recipe.get("threads")) == (shards, threads)
