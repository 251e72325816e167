"Every source with every command: what images lie in makes no difference to what is done with them."
import io
import json
import re
import tarfile
from dataclasses import replace
from functools import cache
from inspect import Parameter, signature
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from conftest import later, ROOT, slow_except
from safetensors.torch import save_file
from typer.main import get_command
from typer.testing import CliRunner

from tests.promises.test_processes import launch
import wiseft.all
from wiseft.models.classifier import zeroshot_classifier
from wiseft.infer.classify import classify
from wiseft.shell.cli import app
from wiseft.shell.report import evaluated_images
from wiseft.models.clip import load_clip
from wiseft.data.suites import Suite, folder_suite
from wiseft.infer.ensembles import sweep
from wiseft.infer.rules import choose_alpha
from wiseft.infer.evaluation import evaluate
from wiseft.stats.table_io import read_results
from wiseft.data.labels import image_folder
from wiseft.models.load import load_classifier
from wiseft.infer.inference import predict
from wiseft.models.testing import pico_classifier
from wiseft.base.lazy import timm

usual_lr, finetune = later("wiseft.train.learner", "usual_lr", "finetune")
linear_probe = later("wiseft.train.learner", "linear_probe")
load_vision = later("wiseft.models.vision", "load_vision")


NAMES = ["cat", "dog"]
SPLITS = "train", "validation", "test"


def picture(seed):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 200, (48, 48, 3), dtype=np.uint8)
    pixels[:, :24] += np.uint8(50*(seed % 2))
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pack(path, members):
    "A tar of (name, bytes)"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def web_dataset(folder, images, ending, names=NAMES):
    "Two shards of (bytes, label), with labels as `ending` says"
    text_of = {"cls": str, "json": lambda label: json.dumps(dict(label=label, width=48))}[ending]
    for k, half in enumerate([images[:10], images[10:]]):
        samples = [(f"s{k}{i:03}", *image) for i, image in enumerate(half)]
        files = [[(f"{s}.png", data), (f"{s}.{ending}", text_of(label).encode())] for s, data, label in samples]
        pack(folder / f"{k}.tar", sum(files, []))
    if names:
        (folder / "classnames.txt").write_text("\n".join(names))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    "The same forty images in every form, a zero-shot classifier and a fine-tuned one."
    work, threads = tmp_path_factory.mktemp("sources"), torch.get_num_threads()
    torch.set_num_threads(1)
    images = [(picture(2*i + label), label) for label in (0, 1) for i in range(20)]
    named = [(f"{NAMES[label]}/{i:02}.png", data) for i, (data, label) in enumerate(images)]
    for name, data in named:
        (work / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (work / "photos" / name).write_bytes(data)
    pack(work / "photos.tar", [(f"photos/{name}", data) for name, data in named])
    pack(work / "here.tar", [(f"./{name}", data) for name, data in named])
    for ending in "cls", "json":
        web_dataset(work / ending, images, ending)
    web_dataset(work / "unnamed", images, "cls", names=None)
    rows = [(f"photos/{name}", name.partition("/")[0]) for name, _ in named]
    pd.DataFrame(rows, columns=["file", "label"]).to_csv(work / "table.csv", index=False)
    pd.DataFrame(rows, columns=["filepath", "class"]).to_csv(work / "table.tsv", index=False, sep="\t")
    captions = [(file, f"a photo of a {label}") for file, label in rows]
    pd.DataFrame(captions, columns=["file", "caption"]).to_csv(work / "captions.csv", index=False)
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit").state_dict(), work / "test_vit.safetensors")
    in_splits(work, folder_suite(work / "photos", []))
    pico_classifier(NAMES).save(work / "start")
    finetune(load_classifier(work / "start"), work / "photos", epochs=1, lr=1e-3,
             progress=False).save(work / "finetuned")
    yield work
    torch.set_num_threads(threads)


def in_splits(work, suite):
    "The suite's three parts as folders, as a suite's folder, and as a snapshot of a hub in shards"
    for split in SPLITS:
        images = getattr(suite, split)
        for i, path in enumerate(images.paths):
            for place in work / "splits", work / "suite/reference":
                target = place / split / path.parent.name / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        data = [path.read_bytes() for path in images.paths]
        web_dataset(work / "data/hf/me/photos" / split, list(zip(data, images.labels.tolist())), "cls")
    for path in suite.test.paths:
        target = work / "suite/shifted" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())


PLACES = {
    "class folders": "photos", "splits": "splits", "a tar": "photos.tar", "tar -C dir .": "here.tar",
    "shards, cls": "cls", "shards, json": "json", "shards without names": "unnamed", "hub": "hf:me/photos",
    "braces": "cls/{0..1}.tar", "CSV": "table.csv", "TSV": "table.tsv", "captions": "captions.csv",
    "suite folder": "suite",
}
OBJECTS = {
    "ImageSet": lambda: image_folder("photos"),
    "ImageSet of a tar": lambda: image_folder("here.tar"),
    "ImageSet of an array": lambda: in_array(image_folder("photos")),
    "Suite": lambda: folder_suite("photos", []),
    "Suite of a tar": lambda: folder_suite("photos.tar", []),
    "Suite of arrays": lambda: suite_of_arrays(folder_suite("photos", [])),
}
# cells that are refused for what the data lack, with the words of the refusal
LACKS = {
    "captions": "named label or class or target or y. Captions are for `wiseft finetune FOLDER --captions`.",
    ("captions", "predict"): None,
    ("shards without names", "zeroshot"): "no classnames.txt lies beside it to name the classes",
    ("shards without names", "probe"): "no classnames.txt lies beside it to name the classes",
}


def lacks(source, command):
    "The words of a refusal; None where nothing is lacking"
    return LACKS.get((source, command), LACKS.get(source))


def in_array(images):
    "As CIFAR's images lie: in an array, with paths that only name them"
    pixels = np.stack([np.asarray(images.open(i)) for i in range(len(images))])
    return replace(images, pixels=pixels, paths=[Path("nowhere") / p.name for p in images.paths], root=None)


def suite_of_arrays(suite):
    return Suite(suite.name, suite.classnames, "openai", **{s: in_array(getattr(suite, s)) for s in SPLITS})


@pytest.fixture(autouse=True)
def in_room(work, monkeypatch):
    "Commands are given there"
    monkeypatch.chdir(work)
    monkeypatch.setenv("WISEFT_DATA", str(work / "data"))


# ---------- what is done with a source, in Python and from the shell ----------


def shell(*args):
    "A command line in this process; `stderr` of one that fails"
    done = CliRunner().invoke(app, list(map(str, args)))
    assert done.exit_code in (0, 1) and "Traceback" not in done.output, done.output
    return done.stderr if done.exit_code else None


@cache
def ends():
    "The classifiers of this folder, whose weights nothing changes"
    return load_classifier("start"), load_classifier("finetuned")


def values(table):
    "What a results table says, whatever its sets are called; a mean over one set is that set"
    table = table[~table.dataset.str.startswith("mean")].drop_duplicates(["method", "alpha", "n"])
    return table[["method", "alpha", "value", "n"]].round(6).values.tolist()


def digits_of(probabilities):
    "Of pictures, in any order, each once"
    return sorted({f"{float(p):.5f}" for p in probabilities})


def predicted(source):
    "Of places as they are, of what has labels without them"
    if isinstance(source, str):
        return digits_of(classify(ends()[0], [source], progress=False).probability)
    every = [predict(dict(start=ends()[0]), s, progress=False) for s in Suite.of(source).sets().values()]
    return digits_of(torch.cat([p.logits["start"] for p in every]).double().softmax(1).amax(1))


def to_look_at(source):
    return image_folder(source, NAMES) if str(source) == "unnamed" else source


PYTHON = {
    "zeroshot": lambda source: zeroshot_classifier(load_clip("local-dir:start"), Suite.of(source).classnames).hash,
    "finetune": lambda source: finetune(ends()[0], source, epochs=1, batch_size=8, progress=False).hash,
    "head": lambda source: finetune(ends()[0], source, epochs=1, batch_size=8, train="head",
                                    progress=False).hash,
    "probe": lambda source: linear_probe(load_vision("test_vit", "test_vit.safetensors"), Suite.of(source).classnames,
                                         source, epochs=1, progress=False).hash,
    "evaluate": lambda source: values(evaluate(ends()[0], to_look_at(source), progress=False)),
    "sweep": lambda source: values(sweep(*ends(), to_look_at(source), [.3], progress=False)),
    "merge": lambda source: choose_alpha(*ends(), source, progress=False),
    "predict": predicted,
}
SHELL = {
    "zeroshot": ["zeroshot", "SOURCE", "--model", "local-dir:start", "-o", "OUT"],
    "finetune": ["finetune", "start", "SOURCE", "--epochs", 1, "--batch-size", 8, "-o", "OUT"],
    "probe": ["probe", "test_vit", "SOURCE", "--weights", "test_vit.safetensors", "--epochs", 1, "-o", "OUT"],
    "evaluate": ["evaluate", "start", "--suite", "SOURCE", "-o", "OUT.csv"],
    "sweep": ["sweep", "start", "finetuned", "--suite", "SOURCE", "--alphas", "0.3", "-o", "OUT.csv"],
    "merge": ["merge", "start", "finetuned", "--alpha", "auto", "--suite", "SOURCE", "-o", "OUT"],
    "predict": ["predict", "start", "SOURCE", "-o", "OUT.csv"],
}
SPLIT = "splits", "hub", "suite folder", "Suite"


def is_split(source, command):
    "Whether a source is taken as train, validation and test; else all its images are one set"
    return source.startswith(SPLIT) or source in PLACES and command in ("finetune", "head", "merge", "probe")


@pytest.fixture(scope="module")
def expected(work):
    "What the plain folder gives in Python, by the command and by whether it is split"
    known = {}

    def result_of(source, command):
        key = command, is_split(source, command)
        if key not in known:
            known[key] = PYTHON[command](folder_suite("photos", []) if key[1] else image_folder("photos"))
        return known[key]

    return result_of


# ---------- the table ----------


@pytest.mark.parametrize("command", SHELL)
@pytest.mark.parametrize("source", slow_except(PLACES, ["class folders", "CSV"]))
def test_shell(expected, tmp_path, source, command):
    out = tmp_path / "out"
    words = {"SOURCE": PLACES[source], "OUT": out, "OUT.csv": out.with_suffix(".csv")}
    refused = shell(*[words.get(word, word) for word in SHELL[command]])
    if lacking := lacks(source, command):
        assert lacking in " ".join(refused.split())
        return
    assert refused is None, refused
    if command in ("evaluate", "sweep"):
        assert values(read_results(out.with_suffix(".csv"))) == expected(source, command)
    elif command == "predict":
        assert digits_of(pd.read_csv(out.with_suffix(".csv")).probability) == expected(source, command)
    else:
        classifier = load_classifier(out)
        assert (classifier.alpha if command == "merge" else classifier.hash) == expected(source, command)


IN_PYTHON = ["splits", "a tar", "shards without names", "hub", "suite folder", *OBJECTS] # of places one of a kind


@pytest.mark.parametrize("command", PYTHON)
@pytest.mark.parametrize("source", slow_except(IN_PYTHON, ["ImageSet"]))
def test_python(expected, source, command):
    what = PLACES[source] if source in PLACES else OBJECTS[source]()
    if lacking := lacks(source, command):
        with pytest.raises(ValueError, match=re.escape(lacking)):
            PYTHON[command](what)
    else:
        assert PYTHON[command](what) == expected(source, command)


@pytest.mark.parametrize("source", [k for k in PLACES if k != "captions"]) # of which there is no table of results
def test_report(work, tmp_path, source):
    "The images that were evaluated are found again, in whatever they lie"
    place = to_look_at(PLACES[source])
    predictions = evaluate(ends()[0], place, keep_predictions=True, progress=False)[1]
    if lacking := lacks(source, "report"):
        with pytest.raises(ValueError, match=lacking):
            evaluated_images(predictions, PLACES[source])
        return
    found_again = evaluated_images(predictions, PLACES[source])
    assert found_again and {len(s) for s in found_again.values()} <= {4, 40}


def test_report_with_pictures(tmp_path):
    results = tmp_path / "results.csv"
    assert shell("sweep", "start", "finetuned", "--suite", "photos.tar", "--alphas", "0.5", "-o", results) is None
    assert shell("report", results, "--suite", "photos.tar") is None
    assert 'class="small"' in results.with_suffix(".html").read_text()


@pytest.mark.parametrize("source", ["splits", "a tar", "CSV"])
def test_bench(tmp_path, source):
    assert shell("bench", "start", "--reference", PLACES[source], "--shift", "photos.tar", "--methods", "lines",
                 "--epochs", 1, "--batch-size", 8, "--seeds", 1, "--lrs", "1e-3", "-o", tmp_path / "bench") is None
    assert (tmp_path / "bench/report.html").exists()


def test_the_page_says_so():
    "*What goes in* has the cells of this table"
    page = json.loads((ROOT / "nbs/howto/what_goes_in.ipynb").read_text())
    text = "\n".join("".join(cell["source"]) for cell in page["cells"]).partition("\n\n*No labels*")[0]
    _, *rows = [[c.strip() for c in row[1:-1].split("|")] for row in text.splitlines() if row.startswith("| ")]
    assert [source for source, *_ in rows] == list(PLACES)
    for source, _, not_with in rows:
        assert set(re.findall(r"`(\w+)`", not_with)) == {c for c in (*SHELL, "report", "bench") if lacks(source, c)}


# ---------- how a source is fine-tuned on ----------


@pytest.mark.slow
@pytest.mark.parametrize("cache_gb", ["20", "0"])
@pytest.mark.parametrize("crops", [(.9, 1.), None])
@pytest.mark.parametrize("train", ["all", "head"])
def test_ways_to_fine_tune(tmp_path, monkeypatch, train, crops, cache_gb):
    "With a cache that is empty at first, or none"
    monkeypatch.setenv("WISEFT_CACHE_GB", cache_gb)
    hashes = []
    for source in "Suite", "Suite of a tar", "Suite of arrays":
        monkeypatch.setenv("WISEFT_CACHE", str(tmp_path / source))
        hashes.append(finetune(ends()[0], OBJECTS[source](), epochs=1, batch_size=8, train=train, crop_scale=crops,
                               progress=False).hash)
    assert len(set(hashes)) == 1


def stopped():
    "As a killed process stops, after an epoch"
    from fastai.callback.core import Callback

    def before_train(self):
        if self.epoch == 1:
            raise KeyboardInterrupt

    return type("Stopped", (Callback,), dict(before_train=before_train))()


@pytest.mark.slow
@pytest.mark.parametrize("source", ["Suite", "Suite of a tar", "Suite of arrays"])
def test_workers_and_resumed(tmp_path, source):
    "Make no difference"
    how = dict(epochs=2, batch_size=8, progress=False)
    whole = finetune(ends()[0], OBJECTS[source](), **how).hash
    assert finetune(ends()[0], OBJECTS[source](), workers=1, **how).hash == whole
    with pytest.raises(KeyboardInterrupt):
        finetune(ends()[0], OBJECTS[source](), checkpoint_dir=tmp_path, cbs=stopped(), **how)
    assert finetune(ends()[0], OBJECTS[source](), checkpoint_dir=tmp_path, resume=True, **how).hash == whole


@pytest.mark.slow
def test_two_processes(tmp_path):
    "Fine-tune on a tar as one does"
    alone = finetune(ends()[0], "photos.tar", epochs=1, batch_size=8, precision="fp32", progress=False)
    words = "-m wiseft finetune start photos.tar --epochs 1 --batch-size 8 --precision fp32 -o"
    for process in launch(2, *words.split(), tmp_path / "finetuned"):
        output = process.communicate(timeout=900)
        assert not process.returncode, output
    together = load_classifier(tmp_path / "finetuned").state_dict()
    assert max((together[k] - v).abs().max() for k, v in alone.state_dict().items()) < 1e-5


def test_captions():
    "Train both towers, on a folder's images"
    from wiseft.methods.flyp import flyp

    finetuned = finetune(ends()[0], ".", captions="captions.csv", loss=flyp, epochs=1, batch_size=8, progress=False)
    assert finetuned.head_from_text and finetuned.recipe["tuning"] == "FLYP"


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("train", ["all", "head"])
@pytest.mark.parametrize("packed", [False, True])
def test_an_unreadable_picture_costs_itself(tmp_path, packed, train, place):
    "Be it the first or another"
    for i in range(120):
        file = tmp_path / "many" / NAMES[i // 60] / f"{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"no picture" if i == place else picture(i // 60))
    if packed:
        with tarfile.open(tmp_path / "many.tar", "w") as tar:
            tar.add(tmp_path / "many", ".")
    images = image_folder(tmp_path / ("many.tar" if packed else "many"))
    with pytest.warns(UserWarning, match=f"Left out of fine-tuning: .*00{place}.png"):
        finetuned = finetune(ends()[0], images, image_folder("photos"), epochs=1, train=train, progress=False)
    assert finetuned.hash != ends()[0].hash


# ---------- the same defaults in Python and from the shell ----------


@pytest.mark.parametrize("command, functions", [
    ("zeroshot", ["zeroshot_classifier", "load_clip"]), ("probe", ["linear_probe", "finetune"]),
    ("finetune", ["finetune"]), ("bench", ["finetune"]), ("predict", ["classify"]), ("evaluate", ["evaluate"]),
    ("run", ["finetune"]),
], ids=lambda o: o if isinstance(o, str) else "")
def test_defaults(command, functions):
    "What both have by one name has one default; None: the function finds what suits the model"
    in_python = {k: p.default for f in reversed(functions)
                 for k, p in signature(getattr(wiseft.all, f)).parameters.items()}
    of_shell = {p.name: p.default for p in get_command(app).commands[command].params if not p.required}
    shared = {k for k in of_shell if in_python.get(k, Parameter.empty) is not Parameter.empty}
    assert shared and {k: of_shell[k] for k in shared} == {k: in_python[k] for k in shared}


def test_what_suits_the_embedded_clip(tmp_path):
    "Its prompts and its learning rate; the other models' are in the table above"
    assert shell("zeroshot", "photos", "-o", tmp_path / "start") is None
    start = zeroshot_classifier(load_clip(), NAMES)
    assert load_classifier(tmp_path / "start").hash == start.hash
    assert shell("finetune", tmp_path / "start", "photos", "--epochs", 1, "-o", tmp_path / "finetuned") is None
    finetuned = finetune(start, "photos", epochs=1, progress=False)
    assert load_classifier(tmp_path / "finetuned").hash == finetuned.hash
    assert finetuned.recipe["lrs"] == [usual_lr(start)] * 2
    assert usual_lr(start) != usual_lr(ends()[0]) and start.templates != ends()[0].templates
