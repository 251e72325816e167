"A bench: what fails costs itself alone, and what is killed goes on to the same table; by the rule it began with."
import json
import os
import runpy
import shutil
import sys
import time
from dataclasses import replace
from datetime import date
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import later, process, ROOT
from wiseft.models.classifier import zeroshot_classifier
from wiseft.data.suites import load_suite
from wiseft.models.load import load_classifier
from wiseft.methods.index import all_methods
from wiseft.models.testing import pico_clip
from wiseft.base.registry import REGISTRY, find_method, method

bench, carry_out, plan_bench = later("wiseft.bench.run", "bench", "carry_out", "plan_bench")
Clock, Work = later("wiseft.bench.run", "Clock", "Work")
checkpoint_file = later("wiseft.train.resume", "checkpoint_file")
sys.path.append(str(ROOT / "nbs/reproductions"))
from answers import unpacked

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


TRIALS = unpacked(ROOT / "nbs/reproductions/campaign/vit-harsh")
RECORDED = "one step past an edge"


def chosen_rate(folder, plan_json=None):
    "The learning rate of plain fine-tuning, from the committed trials of the ViT: 77.5 % at 1e-3, 76.0 % past the edge"
    folder.mkdir()
    for rate in .00033, .001, .003, .01:
        shutil.copy(TRIALS / f"plain, lr {rate:g}, seed 30.validation.npz", folder)
    if plan_json is not None:
        (folder / "plan.json").write_text(json.dumps(plan_json))
    suite, first = small()
    plan = plan_bench(suite, first, folder, ["LiNeS"], **PIECES | dict(seeds=(30,), lrs=(.001, .003, .01)))
    return Work(plan, folder, Clock(print)).choose(None).lr


def test_a_smaller_rate_past_the_edge_that_is_not_the_best(tmp_path):
    assert chosen_rate(tmp_path / "new") == .001
    assert chosen_rate(tmp_path / "campaign", dict(grids=RECORDED)) == .00033, "the recorded choice stands"
    assert chosen_rate(tmp_path / "first", {}) == .001, "a plan without `grids` extends none"


@pytest.mark.parametrize("recorded", [RECORDED, None])
def test_a_bench_goes_on_by_the_rule_that_it_began_with(tmp_path, recorded):
    suite, first = small()
    how = PIECES | dict(seeds=(0,), lrs=(1e-3, 3e-3), say=lambda line: None)
    began = bench(suite, first, tmp_path / "a", ["LiNeS"], **how)
    file = tmp_path / "a/plan.json"
    plan = json.loads(file.read_text())
    older = {k: v for k, v in plan.items() if k != "grids"} | (dict(grids=recorded) if recorded else {})
    file.write_text(json.dumps(older))
    result = bench(suite, first, tmp_path / "a", ["LiNeS"], **how)
    assert len(result.choices()) == (3 if recorded else 2) and len(began.choices()) == 3
    assert json.loads(file.read_text()).get("grids") == recorded


def test_a_rule_that_is_not_known_is_refused(tmp_path):
    suite, first = small()
    how = PIECES | dict(seeds=(0,), say=lambda line: None)
    bench(suite, first, tmp_path / "a", ["LiNeS"], **how)
    file = tmp_path / "a/plan.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(grids="two steps")))
    with pytest.raises(ValueError, match="another plan: grids was 'two steps' and is now 'one step past an edge, if"):
        bench(suite, first, tmp_path / "a", ["LiNeS"], **how)


@pytest.mark.slow
def test_a_bench_goes_on_with_the_shards_that_it_began_with(tmp_path, monkeypatch):
    "Older plans have none, whatever the default is."
    suite, first = small()
    how = PIECES | dict(seeds=(0,), say=lambda line: None)
    trained = "weights/plain, lr 0.001, seed 0"
    for began, default in (0, 2), (2, 0):
        folder = tmp_path / str(began)
        monkeypatch.setattr("wiseft.bench.run.usual_shards", lambda *_: began)
        bench(suite, first, folder, ["LiNeS"], minutes=0, **how)
        assert json.loads((folder / "plan.json").read_text())["recipe"].get("shards", 0) == began
        monkeypatch.setattr("wiseft.bench.run.usual_shards", lambda *_: default)
        bench(suite, first, folder, ["LiNeS"], **how)
        assert load_classifier(folder / trained).recipe.get("shards", 0) == began
