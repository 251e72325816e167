"A bench: what fails costs itself alone, and what is killed goes on to the same table; and a newcomer's."
import json
import os
import runpy
import shutil
import time
from dataclasses import replace
from datetime import date
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageDraw
from conftest import later, process, ROOT
from test_cli import wiseft
from wiseft.models.classifier import zeroshot_classifier
from wiseft.data.suites import folder_suite, load_suite
from wiseft.models.load import load_classifier
from wiseft.methods.index import all_methods
from wiseft.models.testing import pico_clip
from wiseft.base.registry import REGISTRY, find_method, method

bench, carry_out, plan_bench = later("wiseft.bench.run", "bench", "carry_out", "plan_bench")
checkpoint_file = later("wiseft.train.resume", "checkpoint_file")

PIECES = dict(seeds=(0, 1), lrs=(1e-3,), alphas=(0, .5, 1), epochs=1, batch_size=16, precision="fp32", progress=False)


@pytest.fixture(autouse=True, scope="module")
def methods():
    all_methods()


def few(images, n=24):
    return images.subset(range(0, len(images), len(images) // n))


def small():
    "A suite of some images, and a tiny classifier of random weights"
    suite = load_suite("icons")
    sets = dict(train=few(suite.train), validation=few(suite.validation), test=few(suite.test))
    suite = replace(suite, shifts={"solid": few(suite.shifts["solid"])}, shift_train={}, shift_validation={}, **sets)
    return suite, zeroshot_classifier(pico_clip(), suite.classnames, ["{}", "a {}"])


def loss(step):
    raise KeyError("The loss failed.")


def constraint(p, p0, grad, memory):
    raise KeyError("The constraint failed.")


def merge(base, finetuned, info, alpha=1.):
    raise KeyError("The merge failed.")


def ensemble(zeroshot, finetuned, alpha):
    raise KeyError("The ensemble failed.")


def start(classifier, images, validation):
    raise KeyError("The initialization failed.")


def search(base, finetuned, images):
    raise KeyError("The search failed.")


def train(classifier):
    raise KeyError("The train failed.")


def average():
    from wiseft.methods.ema import EMA

    class Average(EMA):
        def after_batch(self):
            raise KeyError("The average failed.")

    return Average()


def unmade():
    raise KeyError("The average failed.")


def unprepared(step, known):
    pass


def prepare(classifier):
    raise KeyError("The loss failed.")


PLANTED = [("loss", loss), ("loss", unprepared), ("constraint", constraint), ("merge", merge), ("ensemble", ensemble),
           ("initialization", start),
           ("search", search), ("train", train), ("average", average), ("average", unmade)]


@pytest.fixture
def planted():
    "Methods of all kinds that fail"
    before = dict(REGISTRY)
    names = [f"broken {kind} {i}" for i, (kind, _) in enumerate(PLANTED)]
    for name, (kind, f) in zip(names, PLANTED):
        about = dict(prepare=prepare) if f is unprepared else {}
        method(kind, name, strength="alpha" if kind in ("merge", "ensemble") else None, **about)(f)
    yield names
    REGISTRY.clear()
    REGISTRY.update(before)


@pytest.mark.slow
def test_failures_of_all_kinds(tmp_path, planted):
    "Each costs its own row and says why; the others are as they are without it"
    suite, first = small()
    names = ["SPD", "EMA"]
    result = bench(suite, first, tmp_path / "a", [*planted, *names], **PIECES, say=lambda line: None)
    for name, (kind, _) in zip(planted, PLANTED):
        assert f"The {kind} failed" in result.left_out[name]
    alone = bench(suite, first, tmp_path / "b", names, **PIECES, say=lambda line: None).gains()
    of_the_family = ["p_holm", "smallest"]  # which counts rows that failed
    mine = result.gains()[:4].drop(columns=of_the_family)
    pd.testing.assert_frame_equal(mine, alone.drop(columns=of_the_family), check_dtype=False)


@pytest.mark.slow
def test_a_merge_that_fails_without_one_run(tmp_path, planted):
    "Its row stays, with an interval over images alone, and the reason is told"
    @method("merge", "of three", strength="alpha", needs="several fine-tuned classifiers", cost="a fine-tuning each")
    def of_three(base, finetuned, info, alpha=1.):
        if len(finetuned) < 3: raise KeyError("Two are too few.")
        return sum(finetuned) / 3
    suite, first = small()
    lines, how = [], PIECES | dict(lrs=(1e-3,), seeds=(0, 1, 2))
    result = bench(suite, first, tmp_path / "a", ["of three"], **how, say=lines.append)
    assert result.gains().set_index("method").over["of three"] == "images"
    assert any("without seed 0" in line and "Two are too few" in line for line in lines), lines


@pytest.mark.slow
def test_a_grid_goes_one_step_further(tmp_path):
    "Of two values the best is at an edge: plain fine-tuning and a constraint try one more, before a test image is seen"
    suite, first = small()
    lines = []
    how = PIECES | dict(lrs=(1e-3, 3e-3), seeds=(0,))
    result = bench(suite, first, tmp_path / "a", ["SPD"], **how, say=lines.append)
    for name, rows in result.choices().query("choice == 'learning rate'").groupby("method"):
        best = rows.validation[rows.value.isin(how["lrs"])].max()
        at = rows.value[rows.value.isin(how["lrs"]) & (rows.validation == best)].min()
        assert sorted(rows.value) == ([3.3e-4, 1e-3, 3e-3] if at == 1e-3 else [1e-3, 3e-3, 9e-3]), name
    kinds = ["test" if ", test" in line else "validation" for line in lines if line.startswith("judge")]
    assert kinds.index("test") >= 3, "all rates of plain fine-tuning are judged on validation images first"
    assert json.loads((tmp_path / "a/plan.json").read_text())["grids"] == "one step past an edge, if it is the best"


@pytest.mark.slow
def test_rows_that_come_later_are_a_family_of_their_own(tmp_path):
    "What is tested together stands in the plan, is closed when results are looked at, and counts rows without a result"
    suite, first = small()
    settings = dict(say=lambda line: None, **PIECES)

    def families(*methods):
        bench(suite, first, tmp_path / "a", methods, **settings)
        content = json.loads((tmp_path / "a/plan.json").read_text())["families"]
        return [f["rows"] for f in content], [f["looked_at"] == str(date.today()) for f in content]
    bench(suite, first, tmp_path / "a", ["LiNeS"], minutes=1e-9, **settings)  # there is nothing to look at
    assert families("LiNeS", "uniform soup") == ([["LiNeS", "uniform soup"]], [True])
    assert families("LiNeS", "SPD") == ([["LiNeS", "uniform soup"], ["SPD"]], [True, True])
    result = bench(suite, first, tmp_path / "a", ["LiNeS", "SPD"], **settings)
    gains = result.gains().set_index("method")
    assert gains.added[["LiNeS", "SPD"]].tolist() == ["", str(date.today())]
    for row, tests in ("LiNeS", 2), ("SPD", 1):
        assert gains.p_holm[row] == pytest.approx(min(1, tests * gains.p[row]))


def carried_out(folder, name="gains"):
    "What the process that is killed does, with the published bench's controls; TPGM with few steps, which take longest"
    torch.set_num_threads(1)
    all_methods()
    tpgm = find_method("TPGM")
    REGISTRY["TPGM"] = tpgm.set(steps=10)
    lines = []
    script = runpy.run_path(str(ROOT / "nbs/reproductions/bench/bench.py"))
    settings = PIECES | dict(epochs=3)  # a checkpoint after each epoch
    plan = plan_bench(*small(), folder, ["SPD", "EMA", "uniform soup", "LP-FT", "TPGM"], **settings)
    result = carry_out(script["with_controls"](plan), folder, say=lines.append)
    assert not result.left_out, "the further rows of the published bench are made by its script, which calls `Work`"
    result.gains().to_csv(f"{folder}/{name}.csv", index=False)
    (folder / f"{name}.txt").write_text("\n".join(lines))


def trained(folder):
    "Checkpoints of trainings that are not done"
    return {checkpoint_file(part) for part in folder.glob("weights/*.part") if checkpoint_file(part).exists()}


def killed(work, folder, rng, only=None):
    "Kill it at a random moment after it has written something new, or such as is asked for; None if it was done"
    def there():
        return only(folder) if only else set(folder.rglob("*"))
    before = there()
    while not there() - before and work.is_alive():
        time.sleep(.005)
    work.join(float(rng.uniform(0, .1 if only else 1)))
    if not work.is_alive():
        return None
    work.kill()
    work.join()
    return bool(trained(folder))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "The folder of a bench that one process carried out, undisturbed"
    folder = tmp_path_factory.mktemp("bench") / "whole"
    done = process(carried_out, folder)
    done.join()
    assert done.exitcode == 0
    return folder


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_killed_at_random_moments(tmp_path, whole):
    "A bench that was killed ends in the same table: twice soon after a checkpoint, else at any moment"
    folder, rng = tmp_path / "killed", np.random.default_rng(0)
    hits = [killed(process(carried_out, folder), folder, rng, only) for only in (None, trained, None, trained)]
    assert hits.count(None) < 2 and True in hits, f"no kill hit a training: {hits}"
    last = process(carried_out, folder)
    last.join()
    assert last.exitcode == 0
    assert (folder / "gains.csv").read_bytes() == (whole / "gains.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no forkserver")
def test_several_processes_share_one(tmp_path, whole):
    "What one is at the others leave alone: all is made once, and all end in the table that one alone makes"
    folder, names = tmp_path / "shared", ["a", "b", "c"]
    for p in [process(carried_out, folder, n) for n in names]:
        p.join()
        assert p.exitcode == 0
    tables = {(folder / f"{n}.csv").read_bytes() for n in names}
    assert tables == {(whole / "gains.csv").read_bytes()}

    def pieces(file):  # 'train plain, lr 0.001, seed 0 (3 of …)'
        lines = file.read_text().splitlines()
        return [line.split(" (")[0] for line in lines if line.startswith(("train ", "judge "))]
    each = [pieces(folder / f"{n}.txt") for n in names]
    assert all(each)
    assert sorted(sum(each, [])) == sorted(pieces(whole / "gains.txt"))


@pytest.mark.slow
def test_goes_on_without_weights(tmp_path):
    "From the curves alone, as from a fresh clone"
    folder = tmp_path / "a"
    suite, first = small()
    settings = dict(methods=["SPD", "EMA"], **PIECES)
    whole = bench(suite, first, folder, say=lambda line: None, **settings).gains()
    shutil.rmtree(folder / "weights")
    lines = []
    again = bench(suite, first, folder, say=lines.append, **settings).gains()
    pd.testing.assert_frame_equal(again, whole)
    assert not lines and not (folder / "weights").exists()


@pytest.mark.slow
def test_lora_where_there_is_a_transformer(tmp_path):
    "On a ResNet it is left out by name; on a transformer it has a curve and a rank"
    suite, first = small()
    settings = dict(methods=["LoRA"], say=lambda line: None, **PIECES | dict(seeds=(0,)))
    result = bench(suite, first, tmp_path / "resnet", **settings)
    assert list(result.entries) == ["plain"] and "needs a transformer as image tower" in result.left_out["LoRA"]
    vit = zeroshot_classifier(pico_clip(transformer=True), suite.classnames, ["{}", "a {}"])
    result = bench(suite, vit, tmp_path / "vit", **settings)
    assert not result.left_out and result.entries["LoRA"].trial.strength in (1, 3, 8, 24, 72)
    assert result.gains().set_index("method").kind["LoRA"] == "train"
    weights = {p.name for p in (tmp_path / "vit/weights").iterdir() if not p.name.startswith(".")}
    assert "plain, lr 0.001, seed 0" in weights
    lows = {n: load_classifier(tmp_path / "vit/weights" / n) for n in weights if n.startswith("LoRA")}
    plain, ranks = result.cost("plain"), {c.recipe["train"]["rank"] for c in lows.values()}
    assert {3, 8, 24} <= ranks <= {1, 3, 8, 24, 72}, "three, and a step further where the best is at an edge"
    assert lows.keys() == {f"LoRA {r}, lr 0.001, seed 0" for r in ranks}
    assert all(c.recipe["cost"][k] == plain[k] for c in lows.values() for k in ("images forward", "images backward"))


def with_broken(images, tmp_path):
    "The same images, of which the first can't be read"
    broken = tmp_path / f"{images.name}.png"
    broken.write_text("no picture")
    return replace(images, paths=[broken, *list(images.paths)[1:]])


@pytest.mark.slow
def test_unreadable_images(tmp_path):
    "They are named before anything is trained and left out of everything; too many stop a bench there"
    suite, first = small()
    icons = load_suite("icons")
    train, solid = (with_broken(few(s, 120), tmp_path) for s in (icons.train, icons.shifts["solid"]))
    some, lines = replace(suite, train=train, shifts={"solid": solid}), []
    settings = dict(methods=["SPD", "LiNeS"], say=lines.append, **PIECES | dict(seeds=(0,)))
    result = bench(some, first, tmp_path / "a", **settings)
    assert [line.split(":")[1].strip() for line in lines if line.startswith("left out as")] == [
        f"1 image of {name}" for name in ("reference, train", "solid, test")]
    assert lines.index(next(t for t in lines if t.startswith("train "))) > 2, "the plan is told first"
    assert pd.read_csv(tmp_path / "a/unreadable.csv").dataset.tolist() == ["reference", "solid"]
    read = result.plan.suite
    assert (len(read.train), len(read.shifts["solid"])) == (len(train) - 1, len(solid) - 1)
    lines.clear()
    pd.testing.assert_frame_equal(bench(some, first, tmp_path / "a", **settings).gains(), result.gains())
    assert not lines
    with pytest.raises(ValueError, match="reference: 1 of 25 images unreadable so far, more than 1%"):
        bench(replace(suite, test=with_broken(suite.test, tmp_path)), first, tmp_path / "b", **settings)
    assert not (tmp_path / "b").exists()


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
    kinds = dict(photos=("navy", "white", 20), night=("white", "black", 2), faint=("#999", "#bbb", 2),
                 red=("red", "white", 2))
    for kind, (ink, ground, n) in kinds.items():
        for name in CLASSES[:5] if kind == "night" else CLASSES:
            place = tmp_path / kind / name
            place.mkdir(parents=True)
            for i in range(n):
                drawing(name, rng, ink, ground).save(place / f"{i:02}.png")
    return tmp_path


@pytest.mark.slow
def test_a_newcomers_bench(photos):
    "Seven classes, three shifted folders, three methods: a plan, tables and a page; a second call does nothing"
    wiseft("zeroshot", "photos", "-o", "zeroshot", cwd=photos)
    shifts = [o for kind in ("night", "faint", "red") for o in ("--shift", kind)]
    command = ["bench", "zeroshot", "--reference", "photos", *shifts, "--methods", "spd,lines,uniform soup",
               "--epochs", "1", "--batch-size", "32", "--seeds", "2", "-o", "bench"]
    refused = wiseft(*command, "--groups", cwd=photos, code=1).stderr
    assert "reference has no groups" in refused and refused.strip().endswith("Leave out --groups.")
    done = wiseft(*command, cwd=photos)
    for words in ("14 of its images, always the same, are held out", "0.0001, 0.0003, 0.0009", "steps are few",
                  "night: there are no images of 'square', 'triangle', 2 of 7 classes"):
        assert words in done.stderr, words
    names = ["plain", "SPD", "LiNeS", "uniform soup"]
    tables = {n: pd.read_csv(photos / f"bench/{n}.csv") for n in ("gains", "curves", "accuracies", "choices", "costs")}
    gains = tables["gains"].set_index("method")
    plain = tables["choices"].query("method == 'plain'")
    better = bool(plain.validation.max() > plain.validation[plain.chosen].iloc[0])  # than what the cautious rule took
    second = better * ["plain, best validation rate"]
    assert list(gains.index) == ["plain", "plain, other seeds", *second, *names[1:]] and gains.why.isna().all()
    assert ("p_best" in gains) == better
    assert set(gains.lr) <= {3.3e-5, 1e-4, 3e-4, 9e-4, 2.7e-3}
    assert gains[["reference", "shifted", "arithmetic"]].notna().all(axis=None)
    assert set(tables["accuracies"].dataset) == {"reference", "night", "faint", "red", "mean over shifts"}
    assert tables["curves"].groupby("method").size().to_dict() == dict.fromkeys(names + second, 11)
    page = (photos / "bench/report.html").read_text()
    shown = done.stdout[done.stdout.index("zero-shot:"):].splitlines()
    assert len(shown) == 6 + len(second) and "Nothing here beats averaging" in done.stdout
    assert all(line.split(":")[0] in page for line in shown) and "made by" in page
    kept = {p: p.stat().st_mtime_ns for p in photos.glob("bench/**/*") if p.suffix in (".npz", ".safetensors", ".json")}
    again = wiseft(*command, cwd=photos)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept and again.stdout == done.stdout
    assert not [line for line in again.stderr.splitlines() if line.startswith(("train ", "judge "))]
    assert "judgments, which are not repeated" in again.stderr
    pd.testing.assert_frame_equal(pd.read_csv(photos / "bench/gains.csv"), tables["gains"])


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
