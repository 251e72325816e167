"What newcomers met with folders of their own: each point once, as they would meet it."
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import later
from PIL import Image
from safetensors.torch import save_file
from tests.shell.test_cli import wiseft
from tests.models.test_load import PREPROCESS, architecture  # noqa: F401, a fixture

from wiseft.all import (
    evaluate,
    folder_suite,
    image_folder,
    load_clip,
    load_suite,
    sweep,
    wide,
    zeroshot_classifier,
    zeroshot_head,
)
from wiseft.models.load import load_classifier
from wiseft.data.prompts import find_classnames
from wiseft.analysis.runs import join_runs
from wiseft.base.lazy import open_clip

plot_alpha, plot_frontier, plot_shifts = later("wiseft.show.plots", "plot_alpha", "plot_frontier", "plot_shifts")
headline = later("wiseft.show.report", "headline")

NAMES = ["camera", "heart", "star"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "Folders `photos` with train and test, and `solid`, of three classes of icons."
    root = tmp_path_factory.mktemp("front")
    icons = load_suite("icons")
    parts = {"photos/train": (icons.train, 12), "photos/test": (icons.test, 7), "solid": (icons.shifts["solid"], 12)}
    for place, (images, most) in parts.items():
        for name in NAMES:
            (root / place / name).mkdir(parents=True)
            label = images.classnames.index(name)
            own = [p for p, y in zip(images.paths, images.labels) if y == label]
            for path in own[:most]:
                shutil.copy(path, root / place / name / f"{place[-4:].strip('/')}-{path.name}")
    return root


@pytest.fixture(scope="module")
def clip():
    return load_clip("iconclip")


@pytest.fixture(scope="module")
def zeroshot(clip):
    return zeroshot_classifier(clip, NAMES, "icons")


@pytest.fixture(scope="module")
def swept(photos, zeroshot):
    "Results of a head that was moved at random, which takes no time, and what was said of them."
    suite = folder_suite(photos / "photos", [photos / "solid"])
    finetuned = zeroshot.copy()
    finetuned.head.weight.data += 0.5 * torch.randn(finetuned.head.weight.shape,
                                                    generator=torch.Generator().manual_seed(0))
    finetuned.alpha = 1.0
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        table = sweep(zeroshot, finetuned, suite, [0, 0.5, 1], progress=False)
    return table, " ".join(str(w.message) for w in record)


def test_a_small_set_says_what_it_can_tell(swept):
    assert "has 21 images: each counts 4.8 points" in swept[1]


def test_a_headline_says_how_many_images_it_rests_on(swept):
    sentence = headline(swept[0])
    assert "21 images" in sentence and "Only a comparison on the same images can tell" in sentence, sentence


def test_per_cent_for_a_mixing_coefficient(photos, zeroshot):
    suite = folder_suite(photos / "photos", [photos / "solid"])
    with pytest.warns(UserWarning, match="Did you mean a percentage"):
        sweep(zeroshot, zeroshot.copy(), suite, [0, 50, 100], progress=False)


def test_a_zeroshot_end_near_chance(photos, clip):
    blind = zeroshot_classifier(clip, {"camera": "star", "heart": "camera", "star": "heart"}.values(), "icons")
    blind.classnames = NAMES
    suite = folder_suite(photos / "photos", [photos / "solid"])
    with pytest.warns(UserWarning, match="where guessing gives 33.3%"):
        sweep(blind, blind.copy(), suite, [0, 0.5, 1], progress=False)


def test_images_shared_by_training_and_test(photos, tmp_path):
    shutil.copytree(photos / "solid", tmp_path / "shift")
    shutil.copy(next((photos / "photos/train/star").iterdir()), tmp_path / "shift/star/other-name.png")
    with pytest.warns(UserWarning, match=r"1 of \d+ test images are training or validation images"):
        folder_suite(photos / "photos", [tmp_path / "shift"])
    with pytest.raises(ValueError, match="measures memory"):
        folder_suite(photos / "photos", [photos / "photos/train"])


def test_only_the_same_bytes_are_the_same_image(photos, tmp_path):
    "Cameras count from 1 in each folder: a name and a size in common mean nothing yet, bytes do, under any name."
    picture = next((photos / "photos/train/star").iterdir())
    shutil.copytree(photos / "solid", tmp_path / "shift")
    shutil.copytree(photos / "photos", tmp_path / "own")
    other = bytearray(picture.read_bytes())
    other[-1] ^= 1  # in the last chunk's checksum: as many bytes, under the same name
    (tmp_path / "shift/star" / picture.name).write_bytes(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder_suite(photos / "photos", [tmp_path / "shift"])
    shutil.copy(picture, tmp_path / "shift/star")
    shutil.copy(picture, tmp_path / "own/test/star")
    with pytest.warns(UserWarning) as record:
        folder_suite(tmp_path / "own", [tmp_path / "shift"])
    messages = [str(w.message) for w in record]
    assert [w.partition(":")[0] for w in messages] == ["reference", "shift"], messages
    assert all(" 1 of " in w and f"star/{picture.name}" in w and "partly memory" in w for w in messages), messages


def test_shared_images_are_told_at_a_prompt(photos, zeroshot, tmp_path):
    zeroshot.save(tmp_path / "zeroshot")
    shutil.copytree(photos / "solid", tmp_path / "shift")
    shutil.copy(next((photos / "photos/train/star").iterdir()), tmp_path / "shift/star/again.png")
    done = wiseft("evaluate", tmp_path / "zeroshot", "--reference", photos / "photos", "--shift", tmp_path / "shift")
    message = " ".join(done.stderr.split())
    assert "warning: shift: 1 of 33 test images are training or validation images of the reference" in message, message
    done = wiseft("evaluate", tmp_path / "zeroshot", "--reference", photos / "photos", "--shift",
                  photos / "photos/train", code=1)
    assert "it measures memory. Test on other images." in " ".join(done.stderr.split()), done.stderr


@pytest.mark.parametrize("kind, option", [("vit-quickgelu", "--quick-gelu"), ("vit", "--no-quick-gelu")])
def test_a_checkpoint_of_somebody_else_s_from_the_shell(photos, tmp_path, architecture,  # noqa: F811
                                                        monkeypatch, kind, option):
    "A file as open_clip's training leaves it: to a classifier whose features are open_clip's own."
    torch.manual_seed(0)
    architecture("pico", "vit")
    architecture("pico-quickgelu", "vit-quickgelu")
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "pico", dict(mine=dict(url="", **PREPROCESS)))
    theirs, _, transform = open_clip.create_model_and_transforms(
        "pico-quickgelu" if kind == "vit-quickgelu" else "pico", image_mean=PREPROCESS["mean"],
        image_std=PREPROCESS["std"], image_interpolation="bilinear", image_resize_mode="squash")
    theirs.eval()
    with torch.no_grad():
        for p in theirs.visual.parameters():
            p.mul_(3)  # far enough from zero for GELU and QuickGELU to differ
    save_file(theirs.state_dict(), tmp_path / "my.safetensors")
    model = ("--model", "pico", "--pretrained", tmp_path / "my.safetensors")

    for options, words in [((), "--quick-gelu (as OpenAI, MetaCLIP and DFN) or --no-quick-gelu"),
                           ((option,), "--preprocess"), (("--preprocess", "mien", option), "Did you mean 'mine'")]:
        refused = wiseft("zeroshot", photos / "photos", *model, *options, "-o", tmp_path / "made", code=1)
        message = " ".join(refused.stderr.split())
        assert words in message and "quick_gelu" not in message and "preprocess=" not in message, message
    wiseft("zeroshot", photos / "photos", *model, "--preprocess", "mine", option, "-o", tmp_path / "made")

    classifier = load_classifier(tmp_path / "made")
    assert classifier.classnames == NAMES and classifier.clip.config["quick_gelu"] == (kind == "vit-quickgelu")
    pictures = sorted((photos / "photos/test").rglob("*.png"))
    with torch.no_grad():
        x = torch.stack([transform(Image.open(p)) for p in pictures])
        expected = theirs.encode_image(x, normalize=True)
        torch.testing.assert_close(classifier.clip.encode_image(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.stack([classifier.clip.transform(Image.open(p)) for p in pictures]), x)
    done = wiseft("predict", tmp_path / "made", *pictures[:2], "-o", tmp_path / "predictions.csv")
    assert len(pd.read_csv(tmp_path / "predictions.csv")) == 2, done.stdout


def test_text_features_are_kept(clip):
    counted = []
    hook = clip.model.transformer.register_forward_hook(lambda *_: counted.append(1))
    names = [f"star {i}" for i in range(200)]  # with five prompts each, as many as are kept
    heads, runs = [], []
    for _ in range(2):
        heads.append(zeroshot_head(clip, names, "icons"))
        runs.append(len(counted))
    hook.remove()
    assert runs[0] == runs[1] and (heads[0].weight == heads[1].weight).all()


def test_a_plain_test_folder_is_evaluated(photos, zeroshot, tmp_path):
    table = evaluate(zeroshot, image_folder(photos / "solid"), progress=False)
    assert table.n.iloc[0] == len(image_folder(photos / "solid")) and "solid" in set(table.dataset)
    zeroshot.save(tmp_path / "zeroshot")
    shutil.copytree(photos / "photos/test", tmp_path / "only/test")
    output = wiseft("evaluate", "zeroshot", "--reference", "only", cwd=tmp_path).stdout
    assert "21" in output, output
    output = wiseft("evaluate", "zeroshot", "--suite", photos / "solid", cwd=tmp_path).stdout
    assert "solid" in output and f" {table.n.iloc[0]} " in output, output


def test_folders_by_wordnet_id(tmp_path):
    for folder in "n03773504", "n04008634", "n04355933", "n04356056":  # missile and sunglasses, each name twice
        (tmp_path / "set" / folder).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "set" / folder / "1.png")
    images = image_folder(tmp_path / "set", find_classnames("imagenet"))
    assert len(images.classnames) == 1000 and sorted(images.labels) == [657, 744, 836, 837]


def test_a_printed_table_has_all_its_columns(swept):
    names = [f"set {i}" for i in range(24)]
    solid = swept[0][swept[0].dataset == "solid"]
    many = pd.concat([swept[0][swept[0].dataset == "reference"], *(solid.assign(dataset=name) for name in names)])
    table = wide(many)
    with pd.option_context("display.width", 80, "display.max_columns", 20):  # as in a script
        shown, by_pandas = repr(table), repr(pd.DataFrame(table))
        parts = [repr(part) for part in (table.head(), table.query("method == 'zero-shot'"), table.reset_index())]
    assert "..." in by_pandas and "..." not in shown
    assert all(name in each for name in names for each in [shown, *parts])


@pytest.mark.parametrize("plot", [plot_frontier, plot_alpha, plot_shifts])
def test_the_legend_of_two_runs_is_not_cut(swept, plot):
    picture = plot(join_runs({"results of the first run": swept[0], "results of the second": swept[0]}))
    picture.draw_without_rendering()
    legends = [*picture.legends, *filter(None, (ax.get_legend() for ax in picture.axes))]
    assert legends and all(legend.get_window_extent().x1 <= picture.bbox.width for legend in legends)


def test_pictures_are_turned_as_the_camera_says_in_folders_but_not_in_published_sets(tmp_path):
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, :40] = 255  # bright on the left
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    for name in NAMES:
        (tmp_path / "own" / name).mkdir(parents=True)
        Image.fromarray(picture).save(tmp_path / "own" / name / "a.jpg", exif=turned)
    own = image_folder(tmp_path / "own")
    upright = np.asarray(own.open(0))
    assert upright.shape[:2] == (80, 40) and upright[:40].mean() > 250 and upright[40:].mean() < 5
    for place in "imagenet/val", "sketch":
        (tmp_path / "data" / place / "n01440764").mkdir(parents=True)
        shutil.copy(own.paths[0], tmp_path / "data" / place / "n01440764/a.jpg")
    published = load_suite("imagenet", root=tmp_path / "data", allow_incomplete=True, training=False)
    for images in published.test, published.shifts["imagenet-sketch"]:
        assert np.asarray(images.open(0)).shape[:2] == (40, 80)


def test_domains_are_told_from_classes(photos, tmp_path):
    for domain in "day", "night":
        shutil.copytree(photos / "solid", tmp_path / domain)
    for lacking in range(2):  # a domain may lack a class
        for classnames in None, NAMES:
            with pytest.raises(ValueError, match="holds the domains 'day', 'night', with folders of the same classes"):
                image_folder(tmp_path, classnames)
        shutil.rmtree(next((tmp_path / "day").iterdir()))
    for folder in [*(tmp_path / "day").iterdir()][1:]:
        shutil.rmtree(folder)
    with pytest.warns(UserWarning, match="Are they domains"):
        image_folder(tmp_path)


def test_a_bench_that_leaves_nothing_out_tells_its_plan(photos, zeroshot, tmp_path):
    zeroshot.save(tmp_path / "zeroshot")
    few = ("--methods", "lines", "--lrs", "1e-4", "--seeds", 1, "--batch-size", 4)
    command = ("bench", tmp_path / "zeroshot", "--reference", photos / "photos", *few, "-o", tmp_path / "bench")
    assert "there is no shifted set. Give --shift." in wiseft(*command, code=1).stderr
    command = *command, "--shift", photos / "solid"
    done = wiseft(*command, "--budget", 0, code=1)
    assert "That is more than the 0 hours" in done.stderr and "LiNeS" in done.stdout, done.stderr
    plan = wiseft(*command, "--dry-run")
    assert plan.stdout == done.stdout and "steps are few" in plan.stderr and not (tmp_path / "bench").exists()
