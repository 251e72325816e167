"""Objects from which wrong numbers would follow without a word: each is refused, or a warning names what is wrong.

All with a CLIP of icons, fine-tuned for one epoch on six classes of the embedded suite.
"""
import json
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from conftest import later
from wiseft.base.registry import Method, find_method
from wiseft.base.text import BadFile
from wiseft.data.suites import folder_suite, load_suite
from wiseft.infer.ensembles import sweep
from wiseft.infer.rules import choose_alpha
from wiseft.methods.lines import lines
from wiseft.methods.task_arithmetic import task_arithmetic
from wiseft.methods.ties import ties
from wiseft.models.classifier import zeroshot_classifier
from wiseft.models.clip import load_clip
from wiseft.models.load import load_classifier
from wiseft.shell.cli import app
from wiseft.weights.merge import average, interpolate, merge
from wiseft.weights.recipes import Recipe, merge_by_recipe

finetune = later("wiseft.train.learner", "finetune")
NAMES = ["airplane", "bell", "bus", "cake", "dice", "envelope"]


def copy_images(images, folder):
    "The images of the six classes, in class folders."
    for path, label in zip(images.paths, images.labels):
        if (name := images.classnames[label]) in NAMES:
            (folder / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / name / f"{path.parent.parent.name}-{path.name}")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "A folder of train, validation, and test images, and a shifted set beside it."
    icons, folder = load_suite("icons"), tmp_path_factory.mktemp("images")
    for split in "train", "validation", "test":
        copy_images(getattr(icons, split), folder / "photos" / split)
    copy_images(icons.shifts["duotone"], folder / "duotone")
    return folder / "photos"


@pytest.fixture(scope="module")
def suite(photos):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few images, and some classes that the shift lacks
        return folder_suite(photos, [photos.with_name("duotone")], classnames=NAMES)


@pytest.fixture(scope="module")
def zeroshot():
    return zeroshot_classifier(load_clip("iconclip", device="cpu"), NAMES, "icons")


@pytest.fixture(scope="module")
def finetuned(zeroshot, suite):
    return finetune(zeroshot, suite, epochs=1, lr=1e-4, progress=False)


def messages(task, *args, **kwargs):
    "What is warned of, a line each."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task(*args, **kwargs)
    return [str(w.message) for w in caught]


def shell(*words):
    "What a command prints."
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


# ---------- files that lack tensors ----------


def as_checkpoint(classifier, path, lacks=()):
    "A state dict with a head, as model-soups saves it, without the tensors whose names start with `lacks`."
    state = {f"model.{k}": t for k, t in classifier.clip.model.state_dict().items() if not k.startswith(tuple(lacks))}
    torch.save(state | {f"classification_head.{k}": t for k, t in classifier.head.state_dict().items()}, path)
    return path


def test_a_file_with_a_part_of_the_image_tower_is_refused(zeroshot, finetuned, tmp_path):
    file = as_checkpoint(finetuned, tmp_path / "soup.pt", ["visual.layer4"])
    with pytest.raises(BadFile, match=r"soup.pt holds \d+ of the \d+ weights of the image tower of iconclip. It lacks "
                                      r"'visual.layer4.0.conv1.weight', .* and \d+ more. Save the whole model"):
        load_classifier(file, base=zeroshot.clip, classnames=NAMES)


def test_a_file_that_lacks_counters_of_batches_is_read(zeroshot, finetuned, tmp_path):
    "Files of early versions of PyTorch have none; they are no weights."
    file = as_checkpoint(finetuned, tmp_path / "old.pt")
    state = torch.load(file)
    torch.save({k: t for k, t in state.items() if not k.endswith("num_batches_tracked")}, file)
    read = load_classifier(file, base=zeroshot.clip, classnames=NAMES)
    assert torch.equal(read.head.weight, finetuned.head.weight)


def test_a_whole_tower_that_a_file_lacks_is_named(zeroshot, finetuned, tmp_path, capsys):
    whole = as_checkpoint(finetuned, tmp_path / "whole.pt")
    load_classifier(whole, base=zeroshot.clip, classnames=NAMES)
    assert capsys.readouterr().out == ""
    # wise-ft leaves some weights of the text tower in its files, and its transformer out
    image = as_checkpoint(finetuned, tmp_path / "image.pt", ["transformer."])
    read = load_classifier(image, base=zeroshot.clip, classnames=NAMES)
    assert capsys.readouterr().out == "image.pt has no text tower. The text tower is that of iconclip.\n"
    assert read.clip.model.token_embedding.weight is zeroshot.clip.model.token_embedding.weight
    torch.save(finetuned.head.state_dict(), tmp_path / "head.pt")
    load_classifier(tmp_path / "head.pt", base=zeroshot.clip, classnames=NAMES)
    assert capsys.readouterr().out == "head.pt has no image tower. The image tower is that of iconclip.\n"


def test_a_part_of_a_text_tower_is_refused(zeroshot, finetuned, tmp_path):
    part = as_checkpoint(finetuned, tmp_path / "part.pt", ["transformer.resblocks.1."])
    with pytest.raises(BadFile, match=r"weights of the text tower of iconclip. It lacks 'transformer.resblocks.1"):
        load_classifier(part, base=zeroshot.clip, classnames=NAMES)


def test_a_classifier_as_the_base_of_a_file(zeroshot, finetuned, tmp_path):
    file = as_checkpoint(finetuned, tmp_path / "soup.pt")
    read = load_classifier(file, base=zeroshot, classnames=NAMES)
    assert read.hash == load_classifier(file, base=zeroshot.clip, classnames=NAMES).hash


# ---------- the images that choose α ----------


ORACLE = "α is chosen on {}. Such a choice is an oracle"


@pytest.mark.parametrize("which", ["test", "shift", "folder", "folder named test"])
def test_alpha_chosen_on_test_images_is_an_oracle(which, zeroshot, finetuned, suite, photos, tmp_path, capsys):
    images, words = {
        "test": lambda: (suite.test, "test images of 'reference'"),
        "shift": lambda: (suite.shifts["duotone"], "images of the shifted set 'duotone'"),
        "folder": lambda: (folder_suite(photos / "test", []), "test images of 'reference'"),
        "folder named test": lambda: (photos / "test", "test images of 'reference'"),
    }[which]()
    options = dict(alphas=(0, 0.5, 1), progress=False)
    warned = messages(choose_alpha, zeroshot, finetuned, images, **options)
    assert sum(ORACLE.format(words) in w for w in warned) == 1, warned
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alpha = choose_alpha(zeroshot, finetuned, images, **options)
    assert "validation" not in capsys.readouterr().out
    # the recipe, and what is made of it
    interpolate(zeroshot, finetuned, alpha).save(tmp_path / "averaged")
    chosen = json.loads((tmp_path / "averaged/wiseft.json").read_text())["recipe"]["merge"]["chosen"]
    assert f"α = {alpha:g} is an oracle: it was chosen on " in chosen and words in chosen


def test_alpha_chosen_on_validation_images_is_none(zeroshot, finetuned, suite, photos, tmp_path, capsys):
    for images in suite, photos, suite.validation:
        warned = messages(choose_alpha, zeroshot, finetuned, images, alphas=(0, 0.5, 1), progress=False)
        assert not any("oracle" in w for w in warned)
    assert "validation images: zero-shot" in capsys.readouterr().out


@pytest.mark.parametrize("method, largest", [(ties, .9), (lines, .9), (task_arithmetic, 1), ("logits", 1)])
def test_alpha_of_one_is_the_finetuned_classifier_or_no_choice(method, largest, zeroshot, finetuned, suite):
    "A sweep ends at the fine-tuned classifier, and TIES at α = 1 is another one."
    def last(accuracies, predictions):
        return accuracies.index.max()

    assert choose_alpha(zeroshot, finetuned, suite, last, method, progress=False) == largest


def test_report_and_card_call_it_an_oracle(zeroshot, finetuned, photos, tmp_path):
    from wiseft.show.card import write_card

    zeroshot.save(tmp_path / "zeroshot")
    finetuned.save(tmp_path / "finetuned")
    ends, out = (tmp_path / "zeroshot", tmp_path / "finetuned"), tmp_path / "averaged"
    printed = shell("merge", *ends, "--alpha", "auto", "--reference", photos / "test", "-o", out)
    assert printed.count(ORACLE.format("test images of 'reference'")) == 1
    images = "--reference", photos, "--shift", photos.with_name("duotone")
    shell("sweep", *ends, "--averaged", out, "--alphas", "0,0.5,1", *images, "-o", tmp_path / "results.csv")
    shell("report", tmp_path / "results.csv", "-o", tmp_path / "report.html")
    assert " is an oracle: it was chosen on " in (tmp_path / "report.html").read_text()
    assert " is an oracle: it was chosen on " in write_card(out).read_text()


# ---------- averages of averages ----------


ALREADY = r"is an average already \(alpha 0.5\): alpha would not be the share of fine-tuned weights"


def test_average_of_an_average_is_refused(zeroshot, finetuned, suite, tmp_path):
    half, image = (interpolate(zeroshot, finetuned, 0.5, parts) for parts in (None, "image"))
    other = zeroshot_classifier(zeroshot.clip, NAMES, ["a drawing of a {}"])
    for pair in (zeroshot, half), (half, finetuned), (zeroshot, image), (other, half), (half, image):
        with warnings.catch_warnings(), pytest.raises(ValueError, match=ALREADY):
            warnings.simplefilter("ignore")  # of the templates
            interpolate(*pair)
        with pytest.raises(ValueError, match=ALREADY):
            sweep(*pair, suite, progress=False)
    for name, c in dict(zeroshot=zeroshot, half=half).items():
        c.save(tmp_path / name)
    with pytest.raises(ValueError, match=ALREADY):
        merge_by_recipe(Recipe(find_method("weight-space"), tmp_path / "zeroshot", [tmp_path / "half"]),
                        tmp_path / "quarter", load_classifier)
    assert not (tmp_path / "quarter").exists()


def test_soups_are_ends_of_their_own(zeroshot, finetuned):
    other = finetuned.copy()
    with torch.no_grad():
        other.head.weight.add_(0.01)
    assert not messages(interpolate, zeroshot, average([finetuned, other]), 0.5)
    assert interpolate(zeroshot, average([finetuned, other]), 0.5).alpha == 0.5
    assert interpolate(zeroshot, merge(zeroshot, [finetuned], lines, alpha=0.5), 0.5).alpha == 0.5


def test_sweep_to_an_average_is_refused(zeroshot, finetuned, suite):
    half = interpolate(zeroshot, finetuned, 0.5)
    for ends in (zeroshot, half), (half, finetuned):
        for look in lambda: sweep(*ends, suite, progress=False), lambda: choose_alpha(*ends, suite, progress=False):
            with pytest.raises(ValueError, match="Give the zero-shot and the fine-tuned classifier themselves"):
                look()


# ---------- other models, other orders, other scales ----------


def at_chance(classifier, kind):
    with torch.no_grad():
        if kind == "rows in another order":
            classifier.head.weight.copy_(classifier.head.weight.roll(1, 0))
        else:
            for p in classifier.visual.parameters():
                p.copy_(p.flip(0))
    return classifier


@pytest.mark.parametrize("kind", ["rows in another order", "another tower"])
def test_a_finetuned_end_at_chance(kind, zeroshot, finetuned, suite, photos, tmp_path):
    words, broken = "a different model, or are its classes in another order", at_chance(finetuned.copy(), kind)
    options = dict(alphas=(0, 0.5, 1), by=["weight-space"], progress=False)
    assert sum(words in w for w in messages(sweep, zeroshot, broken, suite, **options)) == 1
    assert not any(words in w for w in messages(sweep, zeroshot, finetuned, suite, **options))
    zeroshot.save(tmp_path / "zeroshot")
    broken.save(tmp_path / "finetuned")
    printed = shell("evaluate", tmp_path / "zeroshot", tmp_path / "finetuned", "--reference", photos)
    assert printed.count(words) == 1


def test_a_start_at_chance_says_nothing_of_the_end(suite, zeroshot):
    weak = at_chance(zeroshot.copy(), "another tower")
    weaker = at_chance(weak.copy(), "rows in another order")
    weaker.alpha = 1.0
    warned = messages(sweep, weak, weaker, suite, (0, 0.5, 1), by=["weight-space"], progress=False)
    assert not any("a different model" in w for w in warned) and any("no robustness to keep" in w for w in warned)


def test_heads_of_other_scales(zeroshot, finetuned, suite):
    twice = finetuned.copy()
    with torch.no_grad():
        twice.head.weight.mul_(2)
    options = dict(alphas=(0, 0.5, 1), progress=False)
    for task, args in ((interpolate, (zeroshot, twice)), (interpolate, (twice, finetuned)), (average, ([finetuned,
                                                                                                        twice],)),
                       (lambda *ends: sweep(*ends, suite, by=["weight-space", lines], **options), (zeroshot, twice)),
                       (lambda *ends: choose_alpha(*ends, suite, **options), (zeroshot, twice))):
        warned = messages(task, *args)
        assert sum("rows of the heads have lengths of " in w for w in warned) == 1, warned
    assert not messages(interpolate, zeroshot, finetuned)


# ---------- class names that are numbers ----------


def test_class_names_that_are_numbers(photos, tmp_path):
    for i, name in enumerate(NAMES):
        shutil.copytree(photos / "test" / name, tmp_path / "numbered" / str(i))
    names, clip = folder_suite(tmp_path / "numbered", []).classnames, load_clip("iconclip", device="cpu")
    warned = messages(zeroshot_classifier, clip, names)
    assert len(warned) == 1 and warned[0].startswith("The class names are numbers ('0', '1', '2' and 3 more)")
    assert "classnames={'0': 'cat', …}" in warned[0] and "rename the folders" in warned[0]
    printed = shell("zeroshot", tmp_path / "numbered", "-o", tmp_path / "zeroshot")
    assert printed.count("The class names are numbers") == 1
    assert not messages(zeroshot_classifier, clip, ["7", "cat"]) and not messages(zeroshot_classifier, clip, NAMES)


@pytest.mark.parametrize("method", ["weight-space", lines])
def test_swapped_ends(method, zeroshot, finetuned):
    with pytest.raises(ValueError, match="The ends are swapped"):
        merge(finetuned, [zeroshot], method, alpha=.3)


def test_training_without_training_images(zeroshot, suite):
    with pytest.raises(ValueError, match="'photos' has no training images"):
        finetune(zeroshot, replace(suite, train=None), epochs=1, progress=False)


def test_an_ensemble_with_negative_probabilities(zeroshot, finetuned, suite):
    wrong = Method(lambda z, f: z + f, "ensemble", "wrong", gives="probabilities")
    with pytest.raises(ValueError, match="wrong. gave NaN or infinity for"):
        sweep(zeroshot, finetuned, suite, [.5], by=[wrong], progress=False)
