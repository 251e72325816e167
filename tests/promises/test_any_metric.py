"A metric of your own choice wherever accuracy is used: tables, the choice of α, comparisons, commands."
import re
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import later
from PIL import Image
from torch import nn

from wiseft.analysis.decision import decide
from typer.testing import CliRunner

from wiseft.analysis.forgetting import forgetting, say_forgetting, what_it_forgot
from wiseft.analysis.paired import compare
from wiseft.analysis.predictions import compare_ends, predictions_file, read_predictions, write_predictions
from wiseft.analysis.runs import compare_ends_of_runs, compare_runs
from wiseft.data.images import ImageSet
from wiseft.data.suites import Suite
from wiseft.infer.ensembles import sweep
from wiseft.infer.evaluation import evaluate
from wiseft.infer.rules import choose_alpha, keeps
from wiseft.infer.scores import KeptPredictions
from wiseft.models.testing import pico_classifier
from wiseft.shell.cli import app
from wiseft.stats.table_io import write_results

balanced_accuracy_score, cohen_kappa_score, f1_score, recall_score, roc_auc_score = later(
    "sklearn.metrics", "balanced_accuracy_score", "cohen_kappa_score", "f1_score", "recall_score", "roc_auc_score")
pictures = later("wiseft.show.plots", "pictures")
write_report = later("wiseft.show.report", "write_report")
NAMES = ["cat", "dog", "owl"]
SMOOTH = ["balanced accuracy", "macro-F1", "micro-F1", "AUROC", "quadratic kappa", "recall of owl"]
QUIET = dict(progress=False)


class Linear(nn.Module):
    classnames = NAMES

    def __init__(self, alpha, weight):
        super().__init__()
        self.alpha, self.weight = alpha, nn.Parameter(weight)

    def transform(self, image):
        return torch.tensor(np.asarray(image, np.float32) / 255).permute(2, 0, 1)

    def forward(self, x):
        return x.mean((2, 3)) @ self.weight.T


def images(name, n, seed, role="shift", names=NAMES, shares=(0.6, 0.25, 0.15)):
    "Colors: a class is the brighter channel, more or less."
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(names), n, p=shares)
    pixels = np.clip(100 + 60 * np.eye(3)[labels] + rng.normal(0, 40, (n, 3)), 0, 255).astype(np.uint8)
    made = ImageSet(name, [f"{name}/{i}.png" for i in range(n)], labels, names, role=role)
    return replace(made, pixels=np.broadcast_to(pixels[:, None, None], (n, 4, 4, 3)).copy())


@pytest.fixture(scope="module")
def suite():
    shifts = {d: images(d, 200, k + 5) for k, d in enumerate(("night", "snow"))}
    return Suite("colors", NAMES, ["a {}"], images("train", 100, 0), images("validation", 200, 1, "reference"),
                 images("test", 200, 2, "reference"), shifts, metrics=("macro-F1", "accuracy"))


@pytest.fixture(scope="module")
def ends():
    start = torch.eye(3) * 20 + torch.randn(3, 3, generator=torch.Generator().manual_seed(0)) / 10  # no ties
    return Linear(0.0, start), Linear(1.0, start + torch.tensor([[8.0], [0], [-3]]))


@pytest.fixture(scope="module")
def swept(ends, suite):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sweep(*ends, suite, [0.5], by=["weight-space"], keep_predictions=True, metrics=["accuracy", *SMOOTH],
                     **QUIET)


def test_values_are_those_of_scikit_learn(ends, suite, swept):
    table, kept = swept
    rows = kept.frame(method="fine-tuned", dataset="reference")
    y, p = rows.label.astype(str), rows.predicted.astype(str)
    pictures_of = torch.stack([ends[1].transform(suite.test.open(i)) for i in range(len(suite.test))])
    scores = ends[1](pictures_of).detach().double().softmax(1).numpy()
    codes = [[NAMES.index(v) for v in c] for c in (y, p)]
    expected = {"balanced accuracy": balanced_accuracy_score(y, p), "macro-F1": f1_score(y, p, average="macro"),
                "micro-F1": f1_score(y, p, average="micro"), "recall of owl": recall_score(y == "owl", p == "owl"),
                "AUROC": roc_auc_score(codes[0], scores, multi_class="ovr"),
                "quadratic kappa": cohen_kappa_score(*codes, weights="quadratic", labels=range(3))}
    own = table[(table.method == "fine-tuned") & (table.dataset == "reference")].set_index("metric")
    for name, value in expected.items():
        assert own.value[name] == pytest.approx(value, abs=1e-7 if name == "AUROC" else 1e-12), name
    mean = table[(table.dataset == "mean over shifts") & (table.metric != "accuracy")]
    assert mean.low.notna().all() and (mean.low < mean.value).all()


@pytest.mark.parametrize("metric", [*SMOOTH, "NLL", "Brier"])
def test_alpha_is_chosen_by_it(ends, suite, metric, capsys):
    chosen = choose_alpha(*ends, suite, metric=metric, alphas=[0.5], **QUIET)
    assert f"by {metric} on 200 validation images" in chosen.chosen
    assert f", {metric}: zero-shot" in capsys.readouterr().out


def test_another_metric_chooses_another_alpha(ends, suite):
    "The fine-tuned classifier says cat too often: rare classes suffer, accuracy doesn't."
    by = {m: choose_alpha(*ends, suite, lambda values, _: values.idxmax(), metric=m, alphas=[0.25, 0.5, 0.75], **QUIET)
          for m in ("accuracy", "balanced accuracy", "NLL")}
    assert by["balanced accuracy"] == 0 and by["accuracy"] > 0
    losses = sweep(*ends, replace(suite.validation), [0.25, 0.5, 0.75], by=["weight-space"], metrics=["NLL"], **QUIET)
    assert by["NLL"] == losses.alpha[losses.value.idxmin()]


def test_suite_is_its_official_metric(ends, suite):
    assert "by macro-F1 on" in choose_alpha(*ends, suite, metric="suite", alphas=[0.5], **QUIET).chosen


@pytest.mark.parametrize("metric", ["worst-group accuracy", "ECE (15 bins)"])
def test_what_is_no_number_per_image_says_so(ends, suite, swept, metric):
    for call in (lambda: choose_alpha(*ends, suite, metric=metric, **QUIET),
                 lambda: compare(swept[1], dict(alpha=0.0), dict(alpha=1.0), metric=metric)):
        with pytest.raises(ValueError, match=re.escape(metric) + " is not one number per image"):
            call()


@pytest.mark.parametrize("name, ours", {"f1": "macro-F1", "F1 score": "macro-F1", "sensitivity": "recall of CLASS",
                                        "sensitivity of owl": "recall of CLASS"}.items())
def test_other_names_lead_to_ours(ends, suite, tmp_path, name, ours):
    sentence = f"There is no metric {name!r}. Did you mean {ours!r}?"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        evaluate(ends[0], suite, metrics=[name], **QUIET)
    for k, animal in enumerate(NAMES):
        (tmp_path / "photos" / animal).mkdir(parents=True)
        Image.new("RGB", (8, 8), (k, k, k)).save(tmp_path / "photos" / animal / "1.png")
    pico_classifier(NAMES).save(tmp_path / "pico")
    words = "evaluate", tmp_path / "pico", "--suite", tmp_path / "photos", "--metrics", name
    done = CliRunner().invoke(app, list(map(str, words)))
    assert sentence in done.stderr and done.exit_code == 1


def test_comparisons_and_what_follows_name_it(swept, tmp_path):
    table, kept = swept
    for metric in SMOOTH:
        rows = compare(kept, dict(method="zero-shot"), dict(method="fine-tuned"), metric=metric)
        both = table[table.metric == metric].set_index(["method", "dataset"]).value
        assert rows.difference[0] == pytest.approx(both["fine-tuned", "reference"] - both["zero-shot", "reference"])
        assert rows.low.notna().all() and (rows.metric == metric).all()
        assert metric == "micro-F1" or (rows.p.isna().all() and rows.why.str.contains("McNemar").all())
    assert compare(kept, dict(alpha=0.0), dict(alpha=1.0)).p.notna().any()
    assert "Its balanced accuracy is" in str(decide(compare_ends(kept, 0.5, "balanced accuracy")))
    average = dict(method="weight-space", alpha=0.5)
    of_two = compare(kept, dict(method="fine-tuned"), average, metric="balanced accuracy")
    assert "points better in balanced accuracy than the fine-tuned model" in str(decide(of_two))
    again = read_predictions(write_predictions(kept, tmp_path / "a.predictions.csv.gz"))
    for metric in SMOOTH:
        lines = [compare(p, dict(alpha=0.0), dict(alpha=1.0), metric=metric).low for p in (kept, again)]
        np.testing.assert_allclose(*lines, atol=2e-4)  # the file has five digits


def test_tables_of_several_runs_are_by_it(ends, suite, swept, tmp_path):
    other = Linear(1.0, ends[0].weight.detach() + torch.tensor([[-6.0], [4], [0]]))
    runs = dict(one=swept, two=sweep(ends[0], other, suite, [0.5], by=["weight-space"], keep_predictions=True,
                                     metrics=["balanced accuracy", "AUROC"], **QUIET))
    kept = {name: predictions for name, (_, predictions) in runs.items()}
    values = {name: t[t.dataset == "mean over shifts"].set_index(["metric", "method"]).value
              for name, (t, _) in runs.items()}
    for name, (table, predictions) in runs.items():  # a file may have the classes in another order
        write_results(table[table.metric == "balanced accuracy"], tmp_path / f"{name}.csv")
        write_predictions(predictions, predictions_file(tmp_path / f"{name}.csv"))
    again = {name: read_predictions(predictions_file(tmp_path / f"{name}.csv")) for name in runs}
    for metric in "balanced accuracy", "AUROC":
        one, two = (values[name][metric] for name in runs)
        for rows in compare_runs(kept, metric=metric), compare_runs(again, metric=metric):
            assert (rows.metric == metric).all() and rows.low.notna().all()
            mean = rows[rows.dataset == "mean over shifts"]
            assert mean.difference.item() == pytest.approx(two["weight-space"] - one["weight-space"], abs=1e-5)
        rows = compare_ends_of_runs(kept, metric=metric).set_index(["tuning", "a", "dataset"])
        assert rows.difference["two", "fine-tuned", "mean over shifts"] == \
            pytest.approx(two["weight-space"] - two["fine-tuned"])
    done = CliRunner().invoke(app, ["report", *(f"{tmp_path}/{name}.csv" for name in runs), "-o", f"{tmp_path}/r.html"])
    assert done.exit_code == 0, done.output
    assert "Its balanced accuracy is" in (tmp_path / "r.html").read_text()


def test_report_and_pictures_name_it(swept, tmp_path):
    table, kept = swept
    own = table[table.metric == "balanced accuracy"]
    page = write_report(own, tmp_path / "report.html", predictions=kept).read_text()
    assert "Its balanced accuracy is" in page and "Balanced accuracy in percent" in page
    drawn = list(pictures(own))
    assert drawn[0].figure.axes[0].get_xlabel().startswith("Balanced accuracy on the reference")
    assert all("ccuracy" not in p.alt.replace("alanced accuracy", "") for p in drawn)


def test_a_metric_of_your_own(ends, suite):
    def top_half(scores, truth):
        return (scores[np.arange(len(truth)), truth] > 0.5).mean()
    table = evaluate(ends[1], suite, metrics=["accuracy", top_half], **QUIET)
    own = table[table.metric == "top_half"]
    assert own.low.notna().all() and own.value.between(0.1, 1).all()
    half = own.value.iloc[0]
    by_hand = 1.96 * np.sqrt(half * (1 - half) / 200)
    assert (own.high - own.low).iloc[0] / 2 == pytest.approx(by_hand, rel=0.25)
    assert "by top_half on" in choose_alpha(*ends, suite, metric=top_half, alphas=[0.5], **QUIET).chosen


@pytest.mark.parametrize("function, message", [
    (lambda scores, truth: 1 / 0, "failed on 200 images: ZeroDivisionError"),
    (lambda scores, truth: np.nan, "returned nan"),
    (lambda scores, truth: scores.mean(1), "expected one finite number")])
def test_a_wrong_metric_is_named(ends, suite, function, message):
    with pytest.raises(ValueError, match="test: The metric <lambda> .*" + message):
        evaluate(ends[1], suite, metrics=[function], **QUIET)


def test_one_class_only(ends):
    cats = images("cats", 30, 0, "reference", shares=(1, 0, 0))
    wrong = {"AUROC": "those of one", "recall of owl": "no images of 'owl'", "recall of cow": "no class"}
    for metric, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            evaluate(ends[1], cats, metrics=[metric], **QUIET)


def test_small_classes_have_no_interval_and_say_why(ends, suite):
    few = images("few", 40, 3, shares=(0.9, 0.1, 0))
    sets = replace(suite, shifts=dict(suite.shifts, few=replace(few, labels=np.where(few.labels == 1, 1, 0))))
    sets.shifts["few"].labels[:] = [0] * 37 + [1] * 3
    t = evaluate(ends[1], sets, metrics=["accuracy", "balanced accuracy", "AUROC"], **QUIET)
    row = t[t.dataset == "few"].set_index("metric")
    assert row.low.notna()["accuracy"] and row.low[["balanced accuracy", "AUROC"]].isna().all()
    assert row.note["AUROC"] == ("no interval: 1 of 2 classes have fewer than 5 images; 1 of 3 classes have no images")
    mean = t[(t.dataset == "mean over shifts")].set_index("metric")
    assert "'few' has none" in mean.note["AUROC"] and np.isnan(mean.low["AUROC"]) and mean.low["accuracy"] > 0
    assert "note" not in evaluate(ends[1], sets, metrics=["accuracy"], **QUIET)


def test_a_perfect_classifier_has_an_interval():
    "No deviation is seen, and yet new images may differ."
    perfect = Linear(1.0, torch.eye(3) * 1e3)
    clear = images("clear", 60, 3, "reference")
    bright = np.where(np.eye(3)[clear.labels], 255, 0).astype(np.uint8)
    clear = replace(clear, pixels=np.broadcast_to(bright[:, None, None], (60, 4, 4, 3)).copy())
    t = evaluate(perfect, clear, metrics=SMOOTH, **QUIET)
    assert (t.value == 1).all() and (t.low < 0.99).all()


def test_keeps_and_forgetting_measure_it(swept, capsys):
    kept = KeptPredictions(swept[1].images.copy(), swept[1].members)
    kept.images["role"] = kept.images.role.mask(kept.images.dataset == "snow", "control")
    lost = forgetting(kept, [dict(method="fine-tuned")], "balanced accuracy")
    assert "balanced accuracy" in say_forgetting(lost) and (lost.low <= lost.change).all()
    assert "balanced accuracy), against" in what_it_forgot(kept, 0.5, "balanced accuracy")
    assert "recall" not in what_it_forgot(kept, 0.5, "recall of owl")  # of a class that control sets lack
    with pytest.raises(ValueError, match="Control sets have no recall of owl"):
        forgetting(kept, metric="recall of owl")
    few = kept.images.copy()
    nth = few.groupby(["dataset", "label"], observed=True).cumcount()
    few["label"] = few.label.where((few.label != "owl") | (nth < 3), "cat")
    few = KeptPredictions(few, kept.members)
    assert "snow has no interval: 1 of 3 classes have fewer than 5 images" in what_it_forgot(few, 0.5, "macro-F1")
    for metric, words in ("macro-F1", "snow has no interval: 1 of 3 classes"), ("accuracy", "(95 % interval "):
        keeps(1.0, [], metric)(pd.Series({0.5: 0.5}), few)
        printed = capsys.readouterr().out
        assert words in printed and ("95 % interval" in printed) == (metric == "accuracy"), printed
    by_class = kept.frame(dataset="snow").groupby(["alpha", "label"], observed=True).correct.mean()
    by_class = by_class.groupby("alpha").mean()
    assert lost.change[0] == pytest.approx(by_class[1.0] - by_class[0.0])
    accuracies = pd.Series({0.5: 0.5, 1.0: 0.9})
    most = by_class[0.0] - by_class[0.5] + 0.01  # accuracy falls less
    chosen = {}
    for metric in ("accuracy", "balanced accuracy"):
        rule = keeps(most, [], metric)
        rule.n = 200
        chosen[metric] = rule(accuracies, kept)
    assert chosen == {"accuracy": 1, "balanced accuracy": 0.5}
    with pytest.raises(ValueError, match="NLL is no fraction"):
        keeps(0.1, [], "NLL")
