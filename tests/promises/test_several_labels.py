"Several labels per image, from any source, through every command."
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import later
from PIL import Image
from scipy import sparse
from torch.utils.data import Dataset
from typer.testing import CliRunner

from wiseft.analysis.flips import changed_images
from wiseft.analysis.paired import compare
from wiseft.analysis.predictions import read_predictions, write_predictions
from wiseft.base.text import BadFile
from wiseft.data.images import ImageSet
from wiseft.data.objects import image_set
from wiseft.data.retrieval import retrieval_set
from wiseft.data.suites import Suite, load_suite
from wiseft.infer.classify import classify
from wiseft.infer.ensembles import output_ensemble, sweep
from wiseft.infer.evaluation import evaluate
from wiseft.infer.inference import calibrated, extract_features, predict
from wiseft.infer.rules import choose_alpha
from wiseft.models.classifier import zeroshot_classifier
from wiseft.models.clip import load_clip
from wiseft.models.load import load_classifier
from wiseft.models.testing import pico_classifier
from wiseft.shell.cli import app
from wiseft.stats.table_io import read_results
from wiseft.stats.tasks import captions, multi_label, single_label
from wiseft.weights.merge import interpolate

finetune, linear_probe = later("wiseft.train.learner", "finetune", "linear_probe")
clip_learner = later("wiseft.train.learner", "clip_learner")
find_method = later("wiseft.base.registry", "find_method")
all_methods = later("wiseft.methods.index", "all_methods")
EMA = later("wiseft.methods.ema", "EMA")
check_bench_suite = later("wiseft.bench.run", "check_bench_suite")
QUIET = dict(progress=False)
NAMES = ["red", "green", "blue"]
LABELS = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1], [0, 0, 1], [0, 1, 0]])


def pictures(labels, rng):
    "Gray noise, brighter in the color channels of an image's labels."
    noise = rng.integers(0, 120, (len(labels), 32, 32, 3))
    return (noise + 100*labels[:, None, None]).astype(np.uint8)


def made(name, n, seed):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 3)) < .45).astype(int)
    labels[0] = 0
    return ImageSet(name, [f"{name}/{i:03}.png" for i in range(n)], labels, NAMES, pixels=pictures(labels, rng))


@pytest.fixture(scope="module")
def suite():
    return Suite("colors", NAMES, ["a {} picture"], made("train", 120, 0), made("validation", 60, 1),
                 made("test", 60, 2), dict(dark=made("dark", 60, 3)))


@pytest.fixture(scope="module")
def start(suite):
    return zeroshot_classifier(pico_classifier(NAMES).clip, suite, ["a {} picture"])


@pytest.fixture(scope="module")
def ends(start, suite):
    return start, finetune(start, suite, epochs=4, lr=1e-2, batch_size=32, precision="fp32", **QUIET)


@pytest.fixture(scope="module")
def swept(ends, suite):
    return sweep(*ends, suite, [.5], keep_predictions=True, **QUIET)


# in

def written(folder, table, labels=LABELS):
    for i, x in enumerate(pictures(labels, np.random.default_rng(0))):
        Image.fromarray(x).save(folder / f"{i}.png")
    (folder / "photos.csv").write_text(table)
    return folder / "photos.csv"


def cells(folder):
    rows = ["red", "green;blue", "-", "red; green ;blue", "blue", "green;"]
    return written(folder, "file,label\n" + "".join(f"{i}.png,{c}\n" for i, c in enumerate(rows)))


def columns(folder):
    rows = "".join(f"{i}.png,{i*7},{','.join(map(str, y))}\n" for i, y in enumerate(LABELS))
    return written(folder, f"file,width,{','.join(NAMES)}\n{rows}")


NUMBERED = "array", "floats", "tensor", "sparse"  # whose columns are numbers of the given names


def coco(folder):
    written(folder, "")
    notes = [dict(image_id=int(i), category_id=int(c) + 5) for i, c in zip(*LABELS.nonzero()) for _ in range(2)]
    content = dict(images=[dict(id=i, file_name=f"{i}.png") for i in range(6)], annotations=notes,
                   categories=[dict(id=c + 5, name=n) for c, n in enumerate(NAMES)])
    (folder / "instances_val.json").write_text(json.dumps(content))
    return folder / "instances_val.json"


class Shown(Dataset):
    classes = NAMES

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return Image.new("RGB", (8, 8)), torch.tensor(LABELS[i])


def lists(folder):
    return [Image.new("RGB", (8, 8))]*6, [[NAMES[c] for c in np.flatnonzero(y)] for y in LABELS]


SOURCES = dict(cells=cells, columns=columns, coco=coco, dataset=lambda folder: Shown(), lists=lists,
               array=lambda folder: (lists(folder)[0], LABELS), floats=lambda folder: (lists(folder)[0], LABELS*1.),
               tensor=lambda folder: (lists(folder)[0], torch.tensor(LABELS)),
               sparse=lambda folder: (lists(folder)[0], sparse.csr_array(LABELS)),
               frame=lambda folder: pd.read_csv(columns(folder)).assign(
                   file=lambda t: [str(folder / f) for f in t.file]))


@pytest.mark.parametrize("source", SOURCES)
def test_sources(source, tmp_path):
    given = SOURCES[source](tmp_path)
    for names in (NAMES, NAMES[::-1], [*NAMES, "gray"]):
        images = image_set(given, NAMES if source in NUMBERED else names)
        expected = [{NAMES[c] for c in np.flatnonzero(y)} for y in LABELS]
        assert images.task is multi_label
        assert [{images.classnames[c] for c in row} for row in images.task.listed(images.labels)] == expected
        assert images.counts().reindex(NAMES).tolist() == LABELS.sum(0).tolist()


def test_parts_keep_labels(suite):
    images = suite.train
    parts = images.split((.2, .2))
    assert sum(map(len, parts)) == len(images)
    assert [round(len(p) / len(images), 1) for p in parts] == [.6, .2, .2]
    dense, files = images.labels.toarray(), list(images.files())
    for part in parts:
        assert (part.labels.toarray() == dense[[files.index(f) for f in part.files()]]).all()
        assert part.fingerprint != images.fingerprint
    grouped = replace(images, groups=[f"p{i//4}" for i in range(120)])
    rest, held = grouped.split((.2,))
    assert not {*rest.groups} & {*held.groups}
    assert images[1][1].tolist() == dense[1].tolist()


REFUSED = {
    "file,label\n0.png,red;green\n1.png,\n": "no label for '1.png'. Write one, or - for an image of no class",
    "file,label\n0.png,red;pink\n": "class 'pink' not among the 3 classes",
    "file,label\n0.png,;\n": "no label for '0.png'",
    "file,red,green\n0.png,1,0\n1.png,-1,0\n": "the column 'red' has zeros and ones, as a class has, and '-1'",
    "file,red,green\n0.png,1,0\n1.png,,0\n": "the column 'red' has zeros and ones",
    "file,red,green\n0.png,0,0\n1.png,0,0\n": "no image has a label|class '-' not among"}


@pytest.mark.parametrize("table", REFUSED)
def test_refused_tables(table, tmp_path):
    with pytest.raises(BadFile, match=REFUSED[table]):
        image_set(written(tmp_path, table), NAMES)


COCO = {"truncated": (lambda t: t[:-20], "is not JSON"), "a list": (lambda t: "[]", "no instances as COCO has them"),
        "nested": (lambda t: "["*100_000, "is not JSON"),
        "unknown category": (lambda t: t.replace('"category_id": 5', '"category_id": 9'), "with the category 9"),
        "unknown image": (lambda t: t.replace('"image_id": 0', '"image_id": 77'), "of the image 77"),
        "no categories": (lambda t: t.replace("categories", "kinds"), "no categories with id and name"),
        "two of one name": (lambda t: t.replace('"green"', '"red"'), "one id, or one name"),
        "outside": (lambda t: t.replace('"0.png"', '"../0.png"'), "outside of a folder"),
        "texts for numbers": (lambda t: t.replace('"category_id": 5', '"category_id": "5"'), "no instances as COCO")}


@pytest.mark.parametrize("change", COCO)
def test_refused_coco(change, tmp_path):
    path, (function, words) = coco(tmp_path), COCO[change]
    path.write_text(function(path.read_text()))
    with pytest.raises(BadFile, match=words):
        image_set(path)
    path.write_text(json.dumps(json.loads(coco(tmp_path).read_text())).replace("0.png", "absent.png"))
    with pytest.raises(FileNotFoundError, match="absent.png"):
        image_set(path)


@pytest.mark.parametrize("labels, words", [
    ([[1, 0], [0, 1]], "give labels.argmax"), ([[1, 2], [0, 1]], "a row of zeros and ones"),
    ([[1, 0, 1], [0, 1, 1]], "3 columns for 2 classes"), ([[.5, 1], [0, 1]], "a row of zeros and ones")])
def test_refused_arrays(labels, words):
    with pytest.raises(ValueError, match=words):
        ImageSet("x", ["a", "b"], labels, ["cat", "dog"])


# right, and metrics

def test_right_is_among_the_labels(ends, suite, swept):
    table, predictions = swept
    rows = predictions.frame(method="fine-tuned", dataset="reference")
    z, y = predict(dict(c=ends[1]), suite.test, **QUIET).logits["c"].numpy(), suite.test.labels.toarray()
    judged = y.any(1)
    assert (rows.correct.isna().to_numpy() == ~judged).all() and judged.sum() < len(y)
    right = y[np.arange(len(y)), z.argmax(1)]
    assert (rows.correct[judged].astype(bool).to_numpy() == right[judged]).all()
    of = table[(table.method == "fine-tuned") & (table.dataset == "reference")].set_index("metric")
    assert of.value["hit@1"] == pytest.approx(right[judged].mean()) and of.n["hit@1"] == judged.sum()
    assert of.n["mAP"] == len(y) and f"{(~judged).sum()} image" in of.note["mAP"] and (of.n_skipped == 0).all()
    assert f"{(~judged).sum()} image" in of.note["hit@1"]


def test_metrics_are_those_of_scikit_learn(ends, suite):
    from sklearn import metrics as sk
    names = ["mAP", "AUROC", "macro-F1", "micro-F1", "AP of green", "AUROC of blue"]
    t = evaluate(ends[1], suite.test, metrics=names, **QUIET).set_index("metric")
    z, y = predict(dict(c=ends[1]), suite.test, **QUIET).logits["c"].numpy(), suite.test.labels.toarray()
    expected = [sk.average_precision_score(y, z), sk.roc_auc_score(y, z), sk.f1_score(y, z >= 0, average="macro"),
                sk.f1_score(y, z >= 0, average="micro"), sk.average_precision_score(y[:, 1], z[:, 1]),
                sk.roc_auc_score(y[:, 2], z[:, 2])]
    assert t.value[names].tolist() == pytest.approx(expected, abs=1e-12)
    assert (t.low <= t.value).all() and (t.value <= t.high).all() and (t.low < t.high).sum() >= 4
    own = evaluate(ends[1], suite.test, metrics=[mean_probability_of_red], **QUIET)
    assert own.value[0] == pytest.approx(torch.as_tensor(z).sigmoid()[:, 0].mean().item(), abs=1e-6)


def mean_probability_of_red(scores, truth):
    assert truth.shape == scores.shape and truth.dtype == bool
    return scores[:, 0].mean()


def test_small_classes_have_no_interval(ends, suite):
    few = suite.test.subset(range(12))
    t = evaluate(ends[1], few, metrics=["mAP"], **QUIET)
    assert np.isnan(t.low[0]) and "fewer than 10 images" in t.note[0]


def test_what_follows_works(ends, suite, swept, tmp_path):
    table, predictions = swept
    pair = dict(method="fine-tuned"), dict(method="weight-space", alpha=.5)
    by = compare(predictions, *pair, metric="mAP").set_index("dataset")
    values = table[table.metric == "mAP"].set_index(["method", "alpha", "dataset"]).value
    assert by.difference["dark"] == pytest.approx(values["weight-space", .5, "dark"] - values["fine-tuned", 1, "dark"])
    assert by.n["dark"] == 60 and by.low.notna().all()
    hits = compare(predictions, *pair).set_index("dataset")
    assert hits.n["dark"] < 60 and hits.p["dark"] <= 1
    changed = changed_images(predictions)
    assert set(changed.label) <= {"; ".join(NAMES[c] for c in np.flatnonzero(y)) for y in np.ndindex(2, 2, 2)}
    write_predictions(predictions, tmp_path / "p.csv.gz")
    again = compare(read_predictions(tmp_path / "p.csv.gz"), *pair, metric="mAP").set_index("dataset")
    assert again.difference.tolist() == pytest.approx(by.difference.tolist(), abs=1e-4)
    chosen = choose_alpha(*ends, suite, alphas=[.5], **QUIET)
    assert "by mAP on 60 validation images" in chosen.chosen


def test_output_ensembles_average_probabilities(ends, suite):
    images = suite.test.subset(range(8))
    z = predict(dict(zip("ab", ends)), images, **QUIET).logits
    x = torch.stack([ends[0].transform(images.open(i)) for i in range(8)])
    for average in ("probabilities", "logits"):
        with torch.no_grad():
            got = output_ensemble(dict(zip("ab", ends)), average)(x)
        a, b = z["a"], z["b"]
        expected = (a.sigmoid() + b.sigmoid())/2 if average == "probabilities" else ((a + b)/2).sigmoid()
        assert torch.allclose(got.sigmoid(), expected, atol=1e-5)


# training

@pytest.mark.parametrize("settings", [
    dict(train="head", lr=1e-1), dict(class_weights="balanced", label_smoothing=.1), dict(accumulate=2, batch_size=16),
    dict(shards=2), dict(loss="L2-SP"), dict(loss="LDIFS"), dict(constraint="decoupled L2-SP")],
    ids=lambda s: " ".join(map(str, next(iter(s.items())))))
def test_training_learns(start, suite, settings):
    all_methods()
    settings = dict(lr=1e-2, batch_size=32) | settings
    tuned = finetune(start, suite, epochs=4, precision="fp32", **settings, **QUIET)
    before, after = (evaluate(c, suite.test, metrics=["mAP"], **QUIET).value[0] for c in (start, tuned))
    assert after > before and tuned.task is multi_label
    assert "validation hit@1" in tuned.metrics


@pytest.mark.parametrize("train", ["last:1", "LoRA"])
def test_parts_of_a_tower_learn_and_are_averaged(suite, train):
    all_methods()
    vit = zeroshot_classifier(pico_classifier(NAMES, transformer=True).clip, suite, ["a {} picture"])
    average = EMA(.8)
    tuned = finetune(vit, suite, epochs=4, precision="fp32", lr=1e-2, batch_size=32, train=train, cbs=average, **QUIET)
    of = [evaluate(c, suite.test, metrics=["mAP"], **QUIET).value[0] for c in (vit, tuned, average.classifier)]
    assert of[1] > of[0] and of[2] > of[0] and average.classifier.task is multi_label


def test_parts_of_a_batch_are_the_batch(start, suite):
    whole, parts = (finetune(start, suite, epochs=1, lr=1e-3, batch_size=40//k, accumulate=k, precision="fp32",
                             class_weights="balanced", crop_scale=None, shards=0, **QUIET) for k in (1, 2))
    for a, b in zip(whole.state_dict().values(), parts.state_dict().values()):
        assert torch.allclose(a, b, atol=2e-4)


def test_shards_give_the_weights_of_the_whole_batch_on_any_number_of_threads(start, suite):
    def trained(shards):
        return finetune(start, suite, epochs=1, lr=1e-3, batch_size=40, precision="fp32", shards=shards, **QUIET)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole, once = trained(0), trained(2)
        torch.set_num_threads(4)
        assert trained(2).hash == once.hash
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(whole.state_dict().values(), once.state_dict().values()):
        assert torch.allclose(a, b, atol=2e-4)


@pytest.mark.parametrize("shards", [0, 2])
def test_a_stopped_training_goes_on(start, suite, shards, tmp_path):
    from fastai.callback.core import Callback

    class Stop(Callback):
        def after_batch(self):
            if self.training and self.train_iter == 5:
                raise KeyboardInterrupt

    settings = dict(epochs=2, lr=1e-3, batch_size=32, precision="fp32", shards=shards, **QUIET)
    kept = dict(checkpoint_dir=tmp_path, checkpoint_steps=2)
    with pytest.raises(KeyboardInterrupt):
        finetune(start, suite, cbs=Stop(), **settings, **kept)
    assert finetune(start, suite, resume=True, **settings, **kept).hash == finetune(start, suite, **settings).hash


@pytest.mark.parametrize("loss", ["FLYP", "CaRot", "TRACER", "self-distillation", "sigmoid"])
def test_losses_of_one_label_refuse(start, suite, loss):
    all_methods()
    with pytest.raises(ValueError, match=f"{loss} needs one label per image"):
        finetune(start, suite, loss=loss, **QUIET)


@pytest.mark.parametrize("name", ["DaWin", "VRF", "Fisher"])
def test_methods_of_one_label_refuse(ends, suite, name):
    all_methods()
    with pytest.raises(ValueError, match=f"{name} needs one label per image"):
        sweep(*ends, suite, [.5], by=[name], **QUIET)


def test_calibrated_probabilities_are_shares(ends, suite):
    average = calibrated(interpolate(*ends, .5), suite.validation)
    z = predict(dict(c=average), suite.validation, **QUIET).logits["c"]
    share = suite.validation.labels.toarray().mean(0)
    assert z.sigmoid().mean(0).numpy() == pytest.approx(share, abs=1e-4)
    learn = clip_learner(ends[0], suite, **QUIET)
    known = extract_features(ends[0], suite.train, **QUIET)
    with torch.no_grad():
        p = learn.student.head(known.features).sigmoid().mean(0)
    assert p.numpy() == pytest.approx(known.labels.mean(0).numpy(), abs=1e-4)
    assert not ends[0].head.bias.any()  # the classifier that was given is not changed


# out

def test_probabilities_of_pictures(ends, suite):
    z = predict(dict(c=ends[1]), suite.test.subset([3]), **QUIET).logits["c"][0]
    p = ends[1].predict_image(suite.test.open(3))
    assert [p[n] for n in NAMES] == pytest.approx(z.sigmoid().tolist(), abs=1e-5)
    row = classify(ends[1], suite.test.pixels[3:4], **QUIET).iloc[0]
    assert sorted([row.probability, row.probability_2, row.probability_3]) == pytest.approx(
        sorted(z.sigmoid().tolist()), abs=1e-5)


def test_a_folder_keeps_the_task(ends, tmp_path):
    ends[1].save(tmp_path / "several")
    assert load_classifier(tmp_path / "several").task is multi_label
    assert json.loads((tmp_path / "several/wiseft.json").read_text())["task"] == "multi-label"
    one = pico_classifier(NAMES)
    one.save(tmp_path / "one")
    assert "task" not in json.loads((tmp_path / "one/wiseft.json").read_text())
    assert load_classifier(tmp_path / "one").task is single_label
    card = json.loads((tmp_path / "several/wiseft.json").read_text()) | dict(task="captions")
    del card["sha256"]
    (tmp_path / "several/wiseft.json").write_text(json.dumps(card))
    with pytest.raises(BadFile, match="'task' is missing or not what a classifier has"):
        load_classifier(tmp_path / "several")


def test_doors_refuse_another_task(ends, suite):
    one, labels = pico_classifier(NAMES), suite.test.labels.toarray().argmax(1)
    single = ImageSet("single", suite.test.paths, labels, NAMES, pixels=suite.test.pixels)
    words = "has several labels per image, and .* was made for one label per image"
    for call in (lambda: evaluate(one, suite, **QUIET), lambda: finetune(one, suite, **QUIET),
                 lambda: calibrated(one, suite.test)):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(ValueError, match="has one label per image, and .* was made for several"):
        evaluate(ends[0], single, **QUIET)
    with pytest.raises(ValueError, match="One classifier is for several labels per image, the other for one"):
        interpolate(ends[0], one, .5)
    for metric in ("ECE (15 bins)", "NLL", "balanced accuracy", "recall@1"):
        with pytest.raises(ValueError, match=f"{re.escape(metric)} is a metric of images with"):
            evaluate(ends[0], suite, metrics=[metric], **QUIET)
    with pytest.raises(ValueError, match="has several labels per image, so it has no balanced accuracy"):
        choose_alpha(*ends, suite, metric="balanced accuracy", **QUIET)
    with pytest.raises(ValueError, match="mAP is a metric of images with several labels"):
        evaluate(one, single, metrics=["mAP"], **QUIET)
    with pytest.raises(ValueError, match="A bench compares methods by accuracy"):
        check_bench_suite(suite)


def test_sets_of_a_suite_are_of_one_kind(suite):
    pairs = retrieval_set([(suite.test.open(i), f"picture {i}") for i in range(4)], name="pairs")
    assert pairs.task is captions
    labels = suite.test.labels.toarray().argmax(1)
    single = ImageSet("single", suite.test.paths, labels, NAMES, pixels=suite.test.pixels)
    for reference, shift in ((suite.test, single), (single, suite.test), (single, pairs), (pairs, single)):
        with pytest.raises(ValueError, match="All sets of a suite are of one kind"):
            Suite("mixed", NAMES, ["{}"], test=reference, shifts=dict(shift=shift))


def test_control_sets_may_have_one_label(start, suite):
    clip = load_clip("iconclip", device="cpu")
    several = zeroshot_classifier(clip, NAMES, task="multi-label")
    icons = replace(load_suite("icons").test, name="icons")
    t = evaluate(several, suite.test, control=[icons.subset(icons.spread(200))], **QUIET)
    assert {*t.metric[t.role == "control"]} == {"accuracy"} and "accuracy" not in {*t.metric[t.role != "control"]}


# the shell

def wiseft(*words):
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == 0, done.output + str(done.exception)
    return done.output


@pytest.mark.parametrize("source", ["cells", "columns", "coco"])
def test_run(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, n in dict(photos=90, night=40).items():
        (tmp_path / name).mkdir()
        labels = (rng.random((n, 3)) < .5).astype(int)
        for i, x in enumerate(pictures(labels, rng)):
            Image.fromarray(x).save(tmp_path / name / f"{i}.png")
        rows = [f"{i}.png,{';'.join(np.array(NAMES)[y > 0]) or '-'}" for i, y in enumerate(labels)]
        if source == "columns":
            rows = [f"{i}.png,{','.join(map(str, y))}" for i, y in enumerate(labels)]
        heading = "file,label" if source == "cells" else f"file,{','.join(NAMES)}"
        (tmp_path / name / "labels.csv").write_text("\n".join([heading, *rows]))
        notes = [dict(image_id=int(i), category_id=int(c)) for i, c in zip(*labels.nonzero())]
        (tmp_path / name / "labels.json").write_text(json.dumps(dict(
            images=[dict(id=i, file_name=f"{i}.png") for i in range(n)], annotations=notes,
            categories=[dict(id=c, name=k) for c, k in enumerate(NAMES)])))
    file = "labels.json" if source == "coco" else "labels.csv"
    (tmp_path / "night" / file).rename(tmp_path / "night" / f"night{file[-5:].lstrip('s')}")
    shift = next((tmp_path / "night").glob("night*"))
    wiseft("run", f"photos/{file}", "--shift", shift, "--epochs", 2, "--lr", 1e-3, "-o", "out")
    table = read_results("out/results.csv")
    assert {*table.metric} == {"mAP", "hit@1"}
    assert {"reference", "mean over shifts"} <= {*table.dataset}
    assert "mAP" in (tmp_path / "out/report.html").read_text()
    assert load_classifier(tmp_path / "out/averaged").task is multi_label
    assert "probability" in wiseft("predict", "out/averaged", "night/1.png")
    wiseft("zeroshot", "red,green,blue", "--task", "multi-label", "-o", "words")
    assert "mAP" in wiseft("evaluate", "words", "--suite", f"photos/{file}")
