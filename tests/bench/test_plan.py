"A bench does not go on with another plan or other images."
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import later
from PIL import Image, ImageDraw
from tests.bench.test_run import PIECES, methods  # noqa: F401, a fixture

from wiseft.data.suites import folder_suite
from wiseft.models.classifier import zeroshot_classifier
from wiseft.models.testing import pico_clip

bench = later("wiseft.bench.run", "bench")


CLASSES = "circle, cross, diamond, line, ring, square, triangle".split(", ")


def drawing(name, rng, ink, ground):
    "A small picture of a shape, somewhere, of some size"
    im, r = Image.new("RGB", (40, 40), ground), int(rng.integers(8, 15))
    x, y = (int(v) for v in rng.integers(r, 40 - r, 2))
    draw, box = ImageDraw.Draw(im), (x - r, y - r, x + r, y + r)
    if name in ("circle", "ring"):
        draw.ellipse(box, fill=ink if name == "circle" else None, outline=ink, width=3)
    elif name == "square":
        draw.rectangle(box, fill=ink)
    elif name in ("cross", "line"):
        draw.line(box, fill=ink, width=4)
        draw.line((x - r, y + r, x + r, y - r) if name == "cross" else box, fill=ink, width=4)
    else:
        foot = [(x, y + r)] if name == "diamond" else []
        draw.polygon([(x, y - r), (x + r, y if foot else y + r), *foot, (x - r, y if foot else y + r)], fill=ink)
    return im


@pytest.fixture
def photos(tmp_path):
    "Folders of a newcomer: a reference, and three that differ, of which one lacks two classes"
    rng = np.random.default_rng(0)
    kinds = dict(photos=("navy", "white", 10), night=("white", "black", 2), faint=("#999", "#bbb", 2),
                 red=("red", "white", 2))
    for kind, (ink, ground, n) in kinds.items():
        for name in CLASSES[:5] if kind == "night" else CLASSES:
            place = tmp_path / kind / name
            place.mkdir(parents=True)
            for i in range(n):
                drawing(name, rng, ink, ground).save(place / f"{i:02}.png")
    return tmp_path


def altered(folder, how):
    "One of the pictures is another, gone, or there twice under two names"
    one = next(folder.rglob("01.png"))
    if how == "changed":
        Image.open(one).rotate(90).save(one)
    elif how == "removed":
        one.unlink()
    else:
        drawing("line", np.random.default_rng(1), "blue", "white").save(one.with_name("more.png"))


def begun_or_gone_on(photos, clip, **settings):
    "As far as the plan, and not a piece of work further"
    suite = folder_suite(photos / "photos", [photos / "faint", photos / "red"])
    first = zeroshot_classifier(clip, suite.classnames, ["{}", "a {}"])
    how = PIECES | dict(say=lambda line: None) | settings
    bench(suite, first, photos / "bench", ["LiNeS"], minutes=1e-9, **how)


@pytest.mark.parametrize("how", ["changed", "removed", "added"])
@pytest.mark.parametrize("place", ["photos", "faint"])
def test_other_images_are_not_mixed(photos, place, how):
    "A bench whose images were altered since its plan does not go on, with whichever set; with the old ones it does"
    clip, kept = pico_clip(), photos / "kept"
    begun_or_gone_on(photos, clip)
    shutil.copytree(photos / place, kept)
    altered(photos / place, how)
    with pytest.raises(ValueError, match=r"another plan: the images \(their fingerprint\) was '\w+' and is now '\w+'"):
        begun_or_gone_on(photos, clip)
    shutil.rmtree(photos / place)
    kept.rename(photos / place)
    begun_or_gone_on(photos, clip)


def test_another_plan_is_not_mixed(photos):
    clip = pico_clip()
    begun_or_gone_on(photos, clip)
    for other, words in (dict(lrs=(2e-3,)), "lrs was"), (dict(seeds=(0, 2)), "seeds was"), (dict(wd=.5), "recipe was"):
        with pytest.raises(ValueError, match=f"another plan: {words}"):
            begun_or_gone_on(photos, clip, **other)
    for part, words in ("visual", "the image tower"), ("token_embedding", "the text tower"):
        changed = pico_clip()
        with torch.no_grad():
            next(dict(changed.model.named_children())[part].parameters()).add_(.01)
        with pytest.raises(ValueError, match=f"another plan: {words}"):
            begun_or_gone_on(photos, changed)
    begun_or_gone_on(photos, clip)


def test_no_second_baseline_where_the_chosen_rate_is_as_accurate_as_the_best():
    from wiseft.bench.plan import BEST_RATE, Contender
    from wiseft.bench.trial import Trial

    fast, slow = Trial(1e-3, 0), Trial(3e-4, 0)

    def best(accuracy_of_slow):
        work = SimpleNamespace(choose=lambda method: slow, trials=dict(plain={fast: .8, slow: accuracy_of_slow}))
        return Contender(control=BEST_RATE).chosen_trial(work)
    assert best(.8) == slow and best(.7) == fast
