"Test images that are training images in another form: an evaluation says so."
import io
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps
from typer.testing import CliRunner

from conftest import later
from wiseft.data.copies import is_suspicious
from wiseft.data.disk_cache import clear_cache
from wiseft.data.labels import image_folder
from wiseft.data.suites import folder_suite
from wiseft.infer import evaluation
from wiseft.infer.ensembles import sweep
from wiseft.infer.evaluation import evaluate
from wiseft.models.load import load_classifier
from wiseft.models.testing import pico_classifier

finetune = later("wiseft.train.learner", "finetune")
NAMES = ["cat", "dog"]
MESSAGE = "look like training images of"


def photograph(rng, size=(80, 96)):
    "Noise with the spectrum of natural images"
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size[1]), np.fft.fftfreq(size[0])))
    frequency[0, 0] = 1
    x = np.fft.ifft2(np.fft.fft2(rng.normal(size=(*size, 3)), axes=(0, 1)) / frequency[..., None], axes=(0, 1)).real
    return Image.fromarray((255 * (0.5 + x / x.std() / 6).clip(0, 1)).astype(np.uint8))


def photographs(folder, n, seed):
    rng = np.random.default_rng(seed)
    for i in range(n):
        path = folder / NAMES[i % 2] / f"{seed}-{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(rng).save(path)
    return folder


def saved_again(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return Image.open(file).convert("RGB")


CHANGES = {"saved again": saved_again, "mirrored": ImageOps.mirror, "resized": lambda im: im.resize((48, 40)),
           "cropped": lambda im: im.crop((0, 8, im.width - 9, im.height))}  # to 90 % of each side


def copies_of(folder, change, to):
    for path in sorted(folder.rglob("*.png")):
        (to / path.parent.name).mkdir(parents=True, exist_ok=True)
        CHANGES[change](Image.open(path)).save(to / path.parent.name / f"{path.stem}.bmp")
    return to


@pytest.fixture(scope="module")
def start():
    return pico_classifier(NAMES)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("copies") / "photos", 60, 0)


@pytest.fixture(scope="module")
def finetuned(photos, start, cache):
    "Fine-tuned on all but the images that are set aside to watch"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return finetune(start, image_folder(photos), epochs=1, batch_size=27, progress=False)


def warned(f, *args, **kwargs):
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        f(*args, **kwargs)
    return [str(w.message) for w in record if MESSAGE in str(w.message)]


@pytest.mark.parametrize("change", CHANGES)
def test_copies_in_a_folder_of_their_own(photos, finetuned, change, tmp_path):
    "The classifier is evaluated elsewhere; 54 of the 60 images were trained on."
    test = copies_of(photos, change, photographs(tmp_path / "test", 60, 1))
    lines = warned(evaluate, finetuned, image_folder(test), progress=False)
    assert len(lines) == 1 and f"test: 54 of 120 images {MESSAGE}" in lines[0]


def test_other_images_are_no_copies(finetuned, tmp_path):
    assert not warned(evaluate, finetuned, image_folder(photographs(tmp_path / "test", 60, 1)), progress=False)


@pytest.mark.parametrize("change", CHANGES)
def test_copies_in_a_suite(photos, start, change, tmp_path):
    "The zero-shot classifier is evaluated, so no fine-tuning tells the images; six of them are for validation."
    shutil.copytree(photos, tmp_path / "suite/train")
    copies_of(photos, change, photographs(tmp_path / "suite/test", 30, 1))
    photographs(tmp_path / "other", 30, 2)
    suite = folder_suite(tmp_path / "suite", [tmp_path / "other"])
    lines = warned(evaluate, start, suite, progress=False)
    assert len(lines) == 1 and f"reference: 54 of 90 images {MESSAGE} the suite" in lines[0]


def test_a_sweep_says_it_once(photos, start, finetuned, tmp_path):
    test = copies_of(photos, "mirrored", tmp_path / "test")
    other = photographs(tmp_path / "other", 30, 2)
    lines = warned(sweep, start, finetuned, folder_suite(other, [test]), alphas=[0, 0.5, 1], progress=False)
    assert len(lines) == 1 and lines[0].startswith("test: 54 of 60 images")


def test_copies_made_before_the_images_were_divided(start, tmp_path):
    "Then training images look alike as well."
    photographs(tmp_path / "all", 30, 3)
    copies_of(tmp_path / "all", "mirrored", tmp_path / "all")
    paths = sorted((tmp_path / "all").rglob("*.*"))
    for i in np.random.default_rng(0).permutation(len(paths)):
        to = tmp_path / "suite" / ("test" if i % 3 else "train") / paths[i].parent.name / paths[i].name
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(paths[i], to)
    assert len(warned(evaluate, start, folder_suite(tmp_path / "suite", []), progress=False)) == 1


def test_images_that_look_alike_anyway(start, tmp_path):
    "Discs that differ in their places a little: as many training images look like each other."
    rng = np.random.default_rng(0)
    for part, n in dict(train=60, test=40).items():
        for i in range(n):
            y, x = np.mgrid[:64, :64]
            r = np.hypot(y - 32 - rng.uniform(-2, 2), x - 32 - rng.uniform(-2, 2))
            shade = (r < rng.uniform(12, 20)) * rng.uniform(0.3, 1) + rng.normal(0, 0.06, r.shape)
            path = tmp_path / "discs" / part / NAMES[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((128 + 100 * shade).clip(0, 255).astype(np.uint8)).save(path)
    assert not warned(evaluate, start, folder_suite(tmp_path / "discs", []), progress=False)


def test_it_says_what_it_did_not_compare(start, tmp_path, capsys):
    "Boxes of one shape: copies look like all others, so the check gives up and says so."
    from wiseft.base.progress import SAID

    rng = np.random.default_rng(0)
    for part in "train", "test":
        for i in range(20):
            image = rng.integers(0, 20, (64, 64, 3), dtype=np.uint8)
            image[16:48, 16:48] += 200
            path = tmp_path / "boxes" / part / NAMES[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    SAID.clear()
    assert not warned(evaluate, start, folder_suite(tmp_path / "boxes", []), progress=True)
    assert "100% of the training images of the suite look alike, so test images were not" in capsys.readouterr().err


def test_embedded_icons_are_not_looked_at_again(capsys):
    from wiseft.data.suites import load_suite

    icons = load_suite("icons")
    blank = pico_classifier(icons.classnames)
    assert not warned(evaluate, blank, icons.shifts["hand-drawn"], progress=True)
    assert "compared" not in capsys.readouterr().err


def test_what_was_trained_is_loaded_with_its_name(finetuned, photos, tmp_path):
    "An average knows the images of its fine-tuned end."
    from wiseft.weights.merge import interpolate

    test = copies_of(photos, "saved again", tmp_path / "test")
    start = pico_classifier(NAMES)
    interpolate(start, finetuned, 0.5).save(tmp_path / "averaged")
    assert len(warned(evaluate, load_classifier(tmp_path / "averaged"), image_folder(test), progress=False)) == 1


def wiseft(*args):
    from wiseft.shell.cli import app

    done = CliRunner().invoke(app, list(map(str, args)))
    assert not done.exit_code, done.output
    return " ".join(done.output.split())


def test_the_command_line(photos, start, tmp_path):
    "The training images are gone by then; of a classifier whose images are unknown it is said that they are."
    train = shutil.copytree(photos, tmp_path / "train")
    test = copies_of(photos, "cropped", tmp_path / "test")
    start.save(tmp_path / "zeroshot")
    wiseft("finetune", tmp_path / "zeroshot", train, "--epochs", 1, "-o", tmp_path / "finetuned")
    shutil.rmtree(train)
    output = wiseft("evaluate", tmp_path / "zeroshot", tmp_path / "finetuned", "--suite", test)
    assert f"images {MESSAGE} finetuned" in output and "not known here" not in output
    clear_cache()
    evaluation._compared.clear()  # as in a process of its own
    output = wiseft("evaluate", tmp_path / "finetuned", "--suite", test)
    assert MESSAGE not in output
    assert "'test' are not compared with the images that 'finetuned" in output
    assert "was fine-tuned on, as these are not known here" in output


@pytest.mark.parametrize("n, suspicious", [(4, False), (40, True)])
def test_half_of_a_few_images_may_look_alike_by_chance(n, suspicious):
    "Where one in ten training images looks like another one."
    assert is_suspicious(np.resize([0.96, 0.5], n), np.resize([0.96] + [0.5] * 9, 200)) == suspicious


def test_it_ends_when_its_time_is_up(photos, start, tmp_path, capsys, monkeypatch):
    "And says that nothing was compared."
    from wiseft.base.progress import SAID
    from wiseft.data import copies

    monkeypatch.setattr(copies, "MOST_SECONDS", 0)
    SAID.clear()
    evaluation._compared.clear()
    shutil.copytree(photos, tmp_path / "late/train")
    copies_of(photos, "mirrored", tmp_path / "late/test")
    assert not warned(evaluate, start, folder_suite(tmp_path / "late", []), progress=True)
    output = " ".join(capsys.readouterr().err.split())
    assert "To find copies in little time, 0 of 60 test images were compared with 54 of 54 training" in output
