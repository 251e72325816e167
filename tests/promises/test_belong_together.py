"What groups are for, from the command line to the numbers: no group on two sides, and no accuracy by memory."
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from wiseft.data.images import ImageSet
from wiseft.data.objects import image_set
from wiseft.data.suites import folder_suite
from wiseft.infer.evaluation import evaluate
from wiseft.infer.rules import choose_alpha
from wiseft.models.load import load_classifier
from wiseft.models.save import read_card
from wiseft.models.testing import pico_classifier
from wiseft.stats.table_io import read_results

NAMES, N_VIDEOS, FRAMES = ["cat", "dog"], 30, 6


def frames(folder, seed=0, n=N_VIDEOS):
    "Videos whose classes have no visual meaning: each a random pattern of blocks, with noisy frames; a table"
    rng, rows = np.random.default_rng(seed), []
    for video in range(n):
        pattern = rng.integers(30, 225, (3, 3, 3)).repeat(12, 0).repeat(12, 1)
        for i in range(FRAMES):
            file = folder / f"{seed}-{video}-{i}.png"
            folder.mkdir(parents=True, exist_ok=True)
            noisy = pattern + rng.normal(0, 12, pattern.shape)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file)
            rows.append(dict(file=file.name, label=NAMES[video % 2], clip_id=f"{seed}-{video}"))
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    "Tables of videos, and a small CLIP; with one thread"
    work, threads = tmp_path_factory.mktemp("videos"), torch.get_num_threads()
    torch.set_num_threads(1)
    t = frames(work / "frames")
    t.to_csv(work / "frames/t.csv", index=False)
    t.rename(columns=dict(clip_id="group")).to_csv(work / "frames/grouped.csv", index=False)
    frames(work / "new", 1, 20).to_csv(work / "new/new.csv", index=False)
    pico_classifier(NAMES).save(work / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        wiseft("run", "frames/t.csv", "--group", "clip_id", "--shift", "new/new.csv", *WITH, "-o", "out")
    yield work
    torch.set_num_threads(threads)


WITH = ["--model", "local-dir:tiny", "--epochs", "1"]


@pytest.fixture(autouse=True)
def in_work(work, monkeypatch):
    monkeypatch.chdir(work)


def wiseft(*words, code=0):
    from wiseft.shell.cli import app

    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


def by_class_alone(suite):
    "The parts as earlier versions split them"
    rng, images = np.random.default_rng(0), suite.train.split_from
    part = np.zeros(len(images), int)
    for c in range(2):
        idx = rng.permutation(np.flatnonzero(images.labels == c))
        n = max(1, round(.1*len(idx)))
        part[idx[:n]], part[idx[n:2*n]] = 1, 2
    return [images.subset(part == k) for k in range(3)]


def test_a_run_divides_no_video(work):
    "`--group` in each of its commands; the table's intervals know the groups; one split for Python and shell"
    commands = Path("out/commands.sh").read_text()
    for name in "finetune", "merge", "sweep", "report":
        assert re.search(rf"wiseft {name} .*--group clip_id", commands), name
    suite = folder_suite("frames/t.csv", {"new": "new/new.csv"}, group="clip_id")
    card = read_card(Path("out/finetuned"))
    assert card["recipe"]["images"].split(",")[0] == suite.train.fingerprint
    assert card["recipe"]["validation_images"] == suite.validation.fingerprint
    kept = pd.read_csv("out/results.predictions.csv.gz").drop_duplicates(["dataset", "file"])
    of = {d: set(rows.group) for d, rows in kept.groupby("dataset")}
    assert of["reference"] == set(suite.test.groups) and of["new"] == set(suite.shifts["new"].groups)
    assert not of["reference"] & (set(suite.train.groups) | set(suite.validation.groups))
    assert not set(suite.train.groups) & set(suite.validation.groups)


@pytest.mark.parametrize("source", [["frames/t.csv", "--group", "clip_id"], ["frames/grouped.csv"]])
def test_every_command_takes_the_column(source, work):
    "`finetune`, `sweep`, `evaluate`, `merge`, `data`, `bench`: the same parts by a named column and by `group`"
    file, *group = source
    out = Path("by" + "".join(group).replace("-", ""))
    suite = folder_suite("frames/t.csv", [], group="clip_id")
    said = wiseft("finetune", "tiny", file, *group, "--epochs", 1, "-o", out / "finetuned")
    assert f"fine-tuning on {len(suite.train)} images" in said
    recipe = read_card(out / "finetuned")["recipe"]
    assert recipe["validation_images"] == suite.validation.fingerprint
    images = ["--reference", file, *group]
    wiseft("merge", "tiny", out / "finetuned", "--alpha", "auto", *images, "-o", out / "averaged")
    wiseft("sweep", "tiny", out / "finetuned", "--alphas", 0.5, *images, "-o", out / "sweep.csv")
    wiseft("evaluate", out / "averaged", *images, "-o", out / "evaluate.csv")
    for table in "sweep", "evaluate":
        assert set(read_results(out / f"{table}.csv").data_fingerprint) == {suite.test.fingerprint}
    wiseft("evaluate", "tiny", "--suite", file, *group, "-o", out / "whole.csv")
    assert pd.read_csv(out / "whole.predictions.csv.gz").group.nunique() == N_VIDEOS
    assert f"{N_VIDEOS*FRAMES} │ 2 │ {N_VIDEOS}" in wiseft("data", file, *group)
    wiseft("bench", "tiny", *images, "--shift", "new/new.csv", "--methods", "lines", "--dry-run", "-o", out / "bench")


def test_no_accuracy_by_memory(work):
    "Classes without visual meaning: held-out frames scored 100 %, new videos 50 %; α was chosen on the leak"
    from wiseft.train.learner import finetune

    parts = image_set("frames/t.csv", group="clip_id").split((.1, .4))  # of a tenth, all may be right by chance
    new = image_set("new/new.csv", group="clip_id")
    suite = folder_suite(dict(zip(["train", "validation", "test"], parts)), {"new": new})
    start = load_classifier("tiny")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tuned = finetune(start, suite, lr=3e-3, epochs=40, batch_size=32, precision="fp32", progress=False)
    table = evaluate({"tuned": tuned}, suite, progress=False).set_index("dataset")
    leaked = by_class_alone(suite)[2]
    memory = evaluate({"tuned": tuned}, leaked.subset(np.isin(leaked.groups, suite.train.groups)), progress=False)
    assert memory.value[0] > .95, "the training memorizes videos"
    assert table.value["reference"] < .8 and table.value["new"] < .8


@pytest.mark.slow
def test_two_processes_have_one_split(work):
    "Whatever the hash seed: names of groups are texts"
    code = ("from wiseft.data.suites import folder_suite; s = folder_suite('frames/t.csv', [], group='clip_id')\n"
            "print(*[x.fingerprint for x in s.sets().values()])")
    out = {subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True,
                          env={**os.environ, "PYTHONHASHSEED": seed}).stdout for seed in ("1", "2")}
    suite = folder_suite("frames/t.csv", [], group="clip_id")
    assert out == {" ".join(s.fingerprint for s in suite.sets().values()) + "\n"}


@pytest.mark.slow
def test_a_run_is_resumed_with_its_split(work):
    "It goes on, and ends with the same weights"
    shutil.copytree("out", "again")
    shutil.rmtree("again/finetuned"), shutil.rmtree("again/averaged")
    for file in Path("again").glob("results*"): file.unlink()
    text = Path("again/commands.sh").read_text()
    Path("again/commands.sh").write_text(text.replace("out/", "again/"))
    wiseft("run", "frames/t.csv", "--group", "clip_id", "--shift", "new/new.csv", *WITH, "-o", "again")
    for name in "finetuned", "averaged":
        assert load_classifier(f"again/{name}").hash == load_classifier(f"out/{name}").hash
    assert read_results("again/results.csv").value.tolist() == read_results("out/results.csv").value.tolist()


def trained_on(images, folder):
    "A classifier whose recipe says what it was trained on"
    classifier = load_classifier("out/finetuned")
    classifier.recipe = classifier.recipe | dict(images=f"{images.fingerprint}, crops (0.9, 1.0)")
    classifier.save(folder)
    return classifier


def test_the_earlier_split_is_recognized(work, tmp_path):
    "It trained on images that are held out now: `choose_alpha`, `evaluate`, and an unfinished run say so"
    suite = folder_suite("frames/t.csv", {"new": "new/new.csv"}, group="clip_id")
    train, validation, test = by_class_alone(suite)
    assert train.fingerprint != suite.train.fingerprint
    earlier, start = trained_on(train, tmp_path / "earlier"), load_classifier("tiny")
    for images in suite, suite.validation:
        with pytest.raises(ValueError, match="by an earlier version that held out images by class alone"):
            choose_alpha(start, earlier, images, progress=False)
    with pytest.raises(ValueError, match="was fine-tuned on images of"):
        choose_alpha(start, earlier, suite.train.split_from, progress=False)
    with pytest.warns(UserWarning, match="earlier version that held out images by class alone"):
        evaluate({"earlier": earlier}, suite, progress=False)
    own = f"{suite.train.fingerprint}, crops"
    assert not any(p.was_split_earlier(own) for p in (suite.train, suite.validation, suite.test))
    shutil.copytree("out", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/finetuned"), shutil.rmtree(tmp_path / "run/averaged")
    shutil.copytree(tmp_path / "earlier", tmp_path / "run/finetuned")
    commands = tmp_path / "run/commands.sh"
    commands.write_text(commands.read_text().replace("out/", f"{tmp_path}/run/"))
    again = ["run", "frames/t.csv", "--group", "clip_id", "--shift", "new/new.csv", *WITH, "-o", tmp_path / "run"]
    assert "was begun with the split of an earlier version" in wiseft(*again, code=1)


def test_a_checkpoint_of_the_earlier_split(work, tmp_path):
    "`finetune --resume` says so, too"
    from wiseft.train.learner import finetune

    suite, start = folder_suite("frames/t.csv", [], group="clip_id"), load_classifier("tiny")
    options = dict(epochs=1, progress=False, checkpoint_dir=tmp_path, resume=True)
    train, validation, _ = by_class_alone(suite)
    plain = [ImageSet("reference", p.paths, p.labels, NAMES, root=p.root) for p in (train, validation)]
    finetune(start, *plain, **options)
    with pytest.raises(ValueError, match="was begun with the split of an earlier version"):
        finetune(start, suite, **options)


def test_captions_of_one_group_stay_together(work):
    from wiseft.train.loaders import _captioned_sets

    t = pd.read_csv("frames/grouped.csv").assign(caption=lambda t: "a " + t.label)
    t.to_csv("captions.csv", index=False)
    train, held_out = _captioned_sets("frames", None, "captions.csv")
    assert not set(train.groups) & set(held_out.groups) and len(set(held_out.groups)) == N_VIDEOS//10
