"Folders of images as people have them: with something else beside the class folders, or one level too deep."
import os
import tarfile
import warnings

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from conftest import later
from crash import ended, started
from wiseft.data.labels import image_folder
from wiseft.data.objects import image_set
from wiseft.data.suites import folder_suite

clip_learner = later("wiseft.train.learner", "clip_learner")


def photograph(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    Image.fromarray(pixels).resize((60, 60)).save(path)


@pytest.fixture
def photos(tmp_path):
    "Twelve photographs of cats and of dogs"
    for i in range(24):
        photograph(tmp_path / "photos" / ("cat" if i % 2 else "dog") / f"{i}.png", i)
    return tmp_path / "photos"


def wiseft(*args):
    from wiseft.shell.cli import app

    done = CliRunner().invoke(app, list(map(str, args)))
    return done.exit_code, " ".join(done.output.split())


def warned(f, *args, **kwargs):
    "What a call returns, and the warnings that it gives."
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        result = f(*args, **kwargs)
    return result, [str(w.message) for w in record if "wiseft" in str(w.filename) or __file__ == w.filename]


def test_lr_find_on_the_faqs_own_code_leaves_photos_usable(photos, tmp_path):
    "fastai saves the weights that it goes back to into `models`, which stays there, empty."
    from fastai.vision.all import ImageDataLoaders, Normalize, Resize, set_seed

    from wiseft.models.testing import pico_classifier

    zeroshot = pico_classifier(["cat", "dog"])
    clip = zeroshot.clip
    normalize = Normalize.from_stats(clip.preprocess["mean"], clip.preprocess["std"])
    dls = ImageDataLoaders.from_folder(photos, valid_pct=0.2, seed=0, bs=4, item_tfms=Resize(clip.image_size),
                                       batch_tfms=normalize, num_workers=0)
    set_seed(0)  # in another order of images it may end too early for fastai
    learn = clip_learner(zeroshot, dls, progress=False)
    learn.lr_find(end_lr=1e-4, num_it=20, show_plot=False)  # at larger rates it ends early, before fastai has enough
    (photos / "models").mkdir(exist_ok=True)
    suite, lines = warned(folder_suite, photos, [])
    assert suite.classnames == ["cat", "dog"] and f"{photos}: skipped folders without images: 'models'." in lines
    assert len(image_folder(photos)) == 24
    code, output = wiseft("zeroshot", photos, "-o", tmp_path / "zeroshot")
    assert code == 0 and output.count("skipped folders without images: 'models'") == 1
    code, output = wiseft("evaluate", tmp_path / "zeroshot", "--suite", photos)
    assert code == 0 and output.count("skipped folders without images: 'models'") == 1


def test_lr_find_beside_train_and_valid(photos):
    (photos / "models").mkdir()
    for split in ("train", "valid"):
        for kind in ("cat", "dog"):
            (photos / kind).mkdir(exist_ok=True)
            for path in list((photos / kind).iterdir())[:6]:
                (photos / split / kind).mkdir(parents=True, exist_ok=True)
                path.rename(photos / split / kind / path.name)
    for kind in ("cat", "dog"):
        (photos / kind).rmdir()
    suite, lines = warned(folder_suite, photos, [])
    assert suite.classnames == ["cat", "dog"]
    assert any("skipped folders without images: 'models'" in line for line in lines)


def test_folders_of_loggers_are_named_too(photos):
    (photos / "wandb").mkdir()
    (photos / "wandb/run.json").write_text("{}")
    (photos / "empty").mkdir()
    images, lines = warned(image_folder, photos)
    assert images.classnames == ["cat", "dog"] and "skipped folders without images: 'empty', 'wandb'." in lines[0]
    images, lines = warned(image_folder, photos, ["dog", "cat"])  # also where the classes are fixed
    assert images.classnames == ["dog", "cat"] and len(lines) == 1


def test_no_images_at_all_is_an_error(tmp_path):
    (tmp_path / "photos/models").mkdir(parents=True)
    with pytest.raises(ValueError, match="no images in 'models'"):
        image_folder(tmp_path / "photos")


def test_the_root_of_an_ext4_disk(photos):
    (photos / "lost+found").mkdir(mode=0o700)
    images, lines = warned(image_folder, photos)
    assert images.classnames == ["cat", "dog"] and not lines


def test_class_folders_one_level_too_deep(tmp_path):
    for kind, group in dict(bird=0, cat=0, bus=1, car=1).items():
        for i in range(2):
            photograph(tmp_path / "nested" / f"group{group}" / kind / f"{i}.png", i)
    message = "no image lies in a class folder itself"
    images, lines = warned(image_folder, tmp_path / "nested")
    assert images.classnames == ["group0", "group1"] and len(lines) == 1 and message in lines[0]
    with tarfile.open(tmp_path / "nested.tar", "w") as tar:
        tar.add(tmp_path / "nested", "nested")
    images, lines = warned(image_folder, tmp_path / "nested.tar")
    assert images.classnames == ["group0", "group1"] and len(lines) == 1 and message in lines[0]
    code, output = wiseft("zeroshot", tmp_path / "nested", "-o", tmp_path / "zeroshot")
    assert code == 0 and message in output
    photograph(tmp_path / "nested/group1/1.png", 1)
    assert not warned(image_folder, tmp_path / "nested")[1]
    assert not warned(image_folder, tmp_path / "nested/group0")[1]


@pytest.mark.skipif(os.name == "nt", reason="modes of POSIX")
def test_a_class_folder_that_may_not_be_read_is_an_error(photos):
    "It isn't skipped as one without images."
    for folder in photos.parents:  # pytest closes its own to other users
        if folder == photos.parent or folder.name.startswith(("pytest-", "popen-")):
            folder.chmod(0o755)
    (photos / "dog").chmod(0o000)

    def as_nobody():
        if not os.geteuid():
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        with pytest.raises(PermissionError, match="photos/dog"):
            image_folder(photos)
    try:
        assert ended(started(as_nobody)) == 0
    finally:
        (photos / "dog").chmod(0o755)


def test_a_dict_names_numbers_in_any_order(photos):
    table = photos.with_name("t.csv")
    files = [*sorted(map(str, photos.rglob("*.png")))[:4]]
    table.write_text("file,label\n" + "".join(f"{f},{i % 2}\n" for i, f in enumerate(files)))
    pixels = np.zeros((4, 8, 8, 3), np.uint8)
    for names in ({"1": "dog", "0": "cat"}, {1: "dog", 0: "cat"}):
        for images in (image_set(table, names), image_set((pixels, np.array([0, 1, 0, 1])), names)):
            assert [images.classnames[k] for k in images.labels] == ["cat", "dog", "cat", "dog"]
