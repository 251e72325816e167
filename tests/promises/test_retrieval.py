"Retrieval wherever accuracy is used: as the set, a shifted set, or a control set."
import json
import re
import shlex
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import later
from PIL import Image
from typer.testing import CliRunner

from wiseft.analysis.forgetting import forgetting, what_it_forgot
from wiseft.analysis.paired import compare
from wiseft.analysis.predictions import read_predictions, write_predictions
from wiseft.base.progress import SAID
from wiseft.base.registry import find_method
from wiseft.data.control import control_set
from wiseft.data.images import ImageSet
from wiseft.data.retrieval import RetrievalSet, of_pairs, retrieval_set
from wiseft.data.suites import Suite, load_suite
from wiseft.infer.ensembles import members, output_ensemble, sweep
from wiseft.infer.evaluation import evaluate
from wiseft.infer.rules import choose_alpha, keeps
from wiseft.models.classifier import zeroshot_classifier
from wiseft.models.clip import load_clip
from wiseft.models.testing import pico_classifier
from wiseft.shell.cli import app
from wiseft.stats.table_io import read_results
from wiseft.stats.retrieval import RETRIEVAL, WAYS, recall_columns

all_methods = later("wiseft.methods.index", "all_methods")
captioned_images = later("wiseft.train.loaders", "captioned_images")
finetune = later("wiseft.train.learner", "finetune")
curve_columns, Plan = later("wiseft.bench.run", "curve_columns"), later("wiseft.bench.plan", "Plan")
QUIET = dict(progress=False)
ICONS = "an icon of a {}", "a thin line drawing of a {}"


def captioned(images, name, n=60, role="shift"):
    "Some icons with one or two captions of their class; a class with several icons shares its captions."
    images = images.subset(images.spread(n))
    pairs = [(images.open(i), [t.format(images.classnames[c]) for t in ICONS[:1 + i % 2]])
             for i, c in enumerate(images.labels)]
    return replace(retrieval_set(pairs, name=name), role=role)


@pytest.fixture(scope="module")
def suite():
    return load_suite("icons")


@pytest.fixture(scope="module")
def ends(suite):
    "The embedded classifier, and one whose image tower was pushed away from it."
    start = zeroshot_classifier(load_clip("iconclip", device="cpu"), suite.classnames, "icons")
    return start, pushed(start)


def pushed(classifier, by=0.4):
    g, moved = torch.Generator().manual_seed(0), classifier.copy()
    with torch.no_grad():
        for p in moved.visual.parameters():
            if p.ndim > 1:
                p += by * p.std() * torch.randn(p.shape, generator=g)
    moved.alpha, moved.recipe = 1.0, dict(tuning="plain")
    return moved


@pytest.fixture(scope="module")
def gallery(suite):
    return captioned(suite.test, "captions")


@pytest.fixture(scope="module")
def swept(ends, gallery):
    return sweep(*ends, gallery, [0.5], keep_predictions=True, **QUIET)


def by_hand(classifier, images, texts=None):
    "Columns of `recall_columns` by one matrix of similarities"
    with torch.no_grad():
        x = torch.stack([classifier.transform(images.open(i)) for i in range(len(images))])
        features = F.normalize(classifier.features(x), dim=1)
    texts = classifier.clip.encode_text(images.classnames) if texts is None else texts
    return recall_columns(features, texts, torch.as_tensor(images.pairs))


def test_values_are_those_of_all_similarities(ends, gallery, swept):
    table, _ = swept
    for c, method in zip(ends, ("zero-shot", "fine-tuned")):
        rows, columns = table[table.method == method].set_index("metric"), by_hand(c, gallery)
        for metric in RETRIEVAL:
            assert rows.value[metric] == pytest.approx(columns[metric].mean(), abs=1e-6)
            assert rows.low[metric] <= rows.value[metric] <= rows.high[metric]
    assert [*table.metric.unique()] == RETRIEVAL and (table.n == len(gallery)).all()
    recall = table[table.metric == "recall@1"].set_index("method").value
    assert recall["fine-tuned"] < recall["zero-shot"]


def test_averages_of_weights_and_logits(ends, gallery, swept):
    table = swept[0].set_index(["method", "metric"]).value
    assert [*swept[0].method.unique()] == ["zero-shot", "weight-space", "logits", "fine-tuned"]
    start, tuned = ends
    average = start.averaged({k: (a + b) / 2 if a.is_floating_point() else a for (k, a), b in
                              zip(start.state_dict().items(), tuned.state_dict().values())}, ends, 0.5)
    texts = start.clip.encode_text(gallery.classnames)
    for metric in RETRIEVAL:
        assert table["weight-space", metric] == pytest.approx(by_hand(average, gallery)[metric].mean(), abs=1e-6)
    with torch.no_grad():
        x = torch.stack([start.transform(gallery.open(i)) for i in range(len(gallery))])
        similarities = sum(F.normalize(c.features(x), dim=1) for c in ends) / 2 @ texts.T
    right = similarities.argmax(1).numpy()
    own = [right[i] in gallery.pairs[gallery.pairs[:, 0] == i, 1] for i in range(len(gallery))]
    assert table["logits", "image to text recall@1"] == pytest.approx(np.mean(own))


def test_a_column_says_whose_texts_judge(ends, gallery, swept):
    texts = swept[0].groupby("method").texts.unique().map(list)
    assert texts.to_dict() == {"zero-shot": ["own"], "weight-space": ["initial"], "logits": ["initial"],
                               "fine-tuned": ["initial"]}
    start, tuned = ends
    both = start.with_text().copy()
    with torch.no_grad():
        both.text.transformer.resblocks[0].mlp.c_fc.weight.mul_(1.5)
    both.alpha = 1.0
    table = sweep(start, both.rebuild_head(), gallery, [0.5], metrics=["recall@1"], **QUIET)
    assert (table.texts == "own").all()
    value = table.set_index("method").value
    assert value["fine-tuned"] == pytest.approx(by_hand(both, gallery)["recall@1"].mean(), abs=1e-6)
    assert len({*value.round(9)}) > 1
    assert "texts" not in evaluate(start, load_suite("icons").test.subset(range(20)), **QUIET)


@pytest.mark.parametrize("name", ["probabilities", "DaWin", "VRF"])
def test_what_needs_probabilities_is_refused_by_name(ends, gallery, suite, name):
    all_methods()
    few = suite.validation.subset(suite.validation.spread(40))
    with pytest.raises(ValueError, match=f"'captions' is a retrieval set, and {name} works with probabilities"):
        sweep(*ends, gallery, [0.5], by=[find_method(name)], images=few, **QUIET)
    with pytest.raises(ValueError, match="probabilities works with"):
        evaluate(output_ensemble(dict(a=ends[0], b=ends[1]), "probabilities"), gallery, **QUIET)
    assert len(evaluate(output_ensemble(dict(a=ends[0], b=ends[1])), gallery, metrics=["recall@1"], **QUIET)) == 1


def test_as_reference_and_shifted_set(ends, suite):
    made = Suite("captions", [], "plain", test=captioned(suite.test, "reference"),
                 shifts={d: captioned(suite.shifts[d], d) for d in ("solid", "duotone")})
    table = evaluate(dict(zip(("start", "tuned"), ends)), made, **QUIET)
    sets = table[table.metric == "recall@1"].groupby("classifier", sort=False).dataset.apply(list)
    assert sets["start"] == ["reference", "solid", "duotone", "mean over shifts"]
    mean = table[table.dataset == "mean over shifts"].set_index(["classifier", "metric"])
    shifts = table[table.role == "shift"].groupby(["classifier", "metric"], sort=False)
    assert mean.value["start", "recall@1"] == pytest.approx(
        shifts.value.apply(lambda v: v.iloc[:2].mean())["start", "recall@1"])
    assert mean.low.notna().all()


def test_as_control_set_beside_labels(ends, suite):
    "The table of the labels is the same with and without it, and control sets have no mean of two metrics."
    images = suite.test.subset(suite.test.spread(60))
    gallery = captioned(load_suite("other-icons").test, "pairs", 80)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone, kept_alone = sweep(*ends, images, [0.5], by=["weight-space"], keep_predictions=True, **QUIET)
        table, kept = sweep(*ends, images, [0.5], by=["weight-space"], keep_predictions=True, control=[gallery],
                            **QUIET)
    of_labels = table[table.dataset == "reference"].drop(columns="texts")
    pd.testing.assert_frame_equal(of_labels.reset_index(drop=True), alone)
    of_labels = kept.frame(dataset="reference")
    of_labels = of_labels.drop(columns=[c for c in of_labels if re.search("recall|rank|n_captions", c)])
    for c in ("label", "predicted"):
        of_labels[c] = of_labels[c].astype(str)
    expected = kept_alone.frame().astype(dict(label=str, predicted=str))
    pd.testing.assert_frame_equal(of_labels, expected, check_categorical=False, check_dtype=False)
    control = table[table.role == "control"]
    assert set(control.dataset) == {"pairs", "mean over control sets"} and set(control.metric) == set(RETRIEVAL)
    lost = forgetting(kept, metric="recall@1")
    assert lost.change.max() <= 0 and (lost.low < lost.high).all()
    forgotten = "On control set pairs (80 images, recall@1), against the initial model: fine-tuned"
    assert forgotten in what_it_forgot(kept, 0.5)
    with pytest.raises(ValueError, match="pairs' is not a control set.*Look at the captions"):
        wrong = replace(gallery, pairs=[(i, (j + 7) % len(gallery.classnames)) for i, j in gallery.pairs])
        evaluate(ends[0], images, control=[wrong], **QUIET)


def test_what_follows_needs_nothing_new(ends, gallery, swept, tmp_path):
    "Comparisons, also of predictions from a file, groups, the choice of α, and what may be lost."
    a, b = dict(method="zero-shot"), dict(method="fine-tuned")
    write_predictions(swept[1], tmp_path / "p.csv.gz")
    for kept in (swept[1], read_predictions(tmp_path / "p.csv.gz")):
        row = compare(kept, a, b, metric="recall@1").iloc[0]
        values = swept[0][swept[0].metric == "recall@1"].set_index("method").value
        assert row.difference == pytest.approx(values["fine-tuned"] - values["zero-shot"], abs=1e-4)
        assert row.low < row.difference < row.high < 0
        assert compare(kept, a, b, metric="text to image median rank").difference.iloc[0] >= 0
        frame = kept.frame(**a)
        assert frame.correct.mean() == pytest.approx(
            swept[0].set_index(["method", "metric"]).value["zero-shot", "image to text recall@1"])
    alpha = choose_alpha(*ends, gallery, alphas=[0.5], metric="recall@1", **QUIET)
    assert "by recall@1 on 60 validation images" in alpha.chosen and alpha < 1
    assert choose_alpha(*ends, gallery, alphas=[0.5], **QUIET) == alpha  # accuracy is recall@1 here
    families = [f"f{i % 10}" for i in range(len(gallery))]
    grouped = evaluate(ends[0], replace(gallery, groups=families), **QUIET)
    assert (grouped.n_groups == 10).all()
    labeled = load_suite("icons").validation.subset(range(60))
    chosen = choose_alpha(*ends, labeled, keeps(0.01, gallery), alphas=[0.5], **QUIET)
    assert chosen == 0
    for images, metric in ((gallery, "NLL"), (labeled, "recall@1")):
        with pytest.raises(ValueError, match="so it has no"):
            choose_alpha(*ends, images, metric=metric, **QUIET)


def test_an_unreadable_image_takes_its_captions_along(ends, tmp_path, suite):
    images = suite.test.subset(range(0, 400, 4))
    for i in range(len(images)):
        images.open(i).save(tmp_path / f"{i:03}.png")
    (tmp_path / "007.png").write_bytes(b"no picture")
    rows = [(f"{i:03}.png", f"a {images.classnames[c]} {i}") for i, c in enumerate(images.labels)]
    pd.DataFrame(rows, columns=["file", "caption"]).to_csv(tmp_path / "pairs.csv", index=False)
    with_it = retrieval_set(tmp_path / "pairs.csv")
    table = evaluate(ends[0], with_it, **QUIET)
    without = evaluate(ends[0], with_it.subset([i for i in range(100) if i != 7]), **QUIET)
    assert (table.n_skipped == 1).all() and (table.n == 99).all()
    assert table.value.to_numpy() == pytest.approx(without.value.to_numpy())


def test_captions_cut_short_and_models_without_words_are_named(gallery):
    classifier = pico_classifier(["cat", "dog"])
    long = retrieval_set([(gallery.open(i), f"{'very ' * 20}long {i}") for i in range(4)], name="long")
    with pytest.warns(UserWarning, match="reads no more than 12 tokens.*Cut short: 'very very"):
        evaluate(classifier, long, **QUIET)
    classifier.clip.tokenizer = None
    with pytest.raises(ValueError, match="'long' is a retrieval set, and .* has no text tower to read its captions"):
        evaluate(classifier, long, **QUIET)


def test_bf16_is_compared_with_fp32(ends, gallery):
    table = evaluate(ends[0], gallery, precision="bf16", metrics=["recall@1"], **QUIET)
    assert "predictions as in fp32" in table.precision[0]


def test_everyday_words():
    from wiseft.all import RetrievalSet as same, retrieval_set as also
    assert same is RetrievalSet and also is retrieval_set
    assert control_set(RetrievalSet("x", ["a", "b"], None, ["c", "d"], pairs=[[0, 0], [1, 1]])).role == "control"
    assert set(WAYS) == {re.sub(r" recall.*| median.*", "", m) for m in RETRIEVAL} - {"recall@1"}
    assert not isinstance(load_suite("icons").test, RetrievalSet) and ImageSet.pairs is None


# ---------- in the shell ----------

@pytest.fixture(scope="module")
def room(tmp_path_factory, ends, suite):
    "Classifier folders, and a table of pairs beside their images."
    room = tmp_path_factory.mktemp("room")
    for c, name in zip(ends, ("zeroshot", "finetuned")):
        c.save(room / name)
    (room / "pictures").mkdir()
    images, rows = suite.test.subset(suite.test.spread(60)), []
    for i, c in enumerate(images.labels):
        images.open(i).save(room / f"pictures/{i}.png")
        rows += [(f"pictures/{i}.png", t.format(images.classnames[c])) for t in ICONS[:1 + i % 2]]
    pd.DataFrame(rows, columns=["file", "caption"]).to_csv(room / "pairs.csv", index=False)
    return room


def wiseft(line, room, code=0):
    "What a command prints."
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(room)
        done = CliRunner().invoke(app, shlex.split(line), prog_name="wiseft")
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


def test_pairs_alone_are_evaluated_swept_and_reported(room, ends):
    wiseft("evaluate zeroshot finetuned --retrieval pairs.csv -o two.csv", room)
    table = read_results(room / "two.csv")
    assert set(table.dataset) == {"pairs"} and set(table.metric) == set(RETRIEVAL)
    again = evaluate(dict(zip(("zeroshot", "finetuned"), ends)), retrieval_set(room / "pairs.csv"), **QUIET)
    assert table.value.to_numpy() == pytest.approx(again.value.to_numpy(), abs=1e-6)
    wiseft("sweep zeroshot finetuned --alphas 0.5 --retrieval pairs.csv -o swept.csv", room)
    assert [*read_results(room / "swept.csv").method.unique()] == ["zero-shot", "weight-space", "logits", "fine-tuned"]
    wiseft("report swept.csv --retrieval pairs.csv -o page.html", room)
    page = (room / "page.html").read_text()
    assert "recall@1" in page and "data:image" in page
    refused = wiseft("sweep zeroshot finetuned --by probabilities --alphas 0.5 --retrieval pairs.csv", room, code=1)
    assert "works with probabilities" in refused and "--by weight-space,logits" in refused


def test_beside_a_suite_they_are_control_sets(room):
    (room / "class-folders").mkdir()
    for c in ("airplane", "anchor"):
        (room / "class-folders" / c).mkdir()
        for i in range(3):
            Image.open(room / f"pictures/{i}.png").save(room / f"class-folders/{c}/{i}.png")
    line = "evaluate zeroshot finetuned --suite class-folders --retrieval pairs.csv --retrieval more.csv -o both.csv"
    (room / "more.csv").write_text((room / "pairs.csv").read_text())
    said = wiseft(line, room)
    assert "On 2 control sets on average (120 images, recall@1), against the initial model: fine-tuned" in said
    table = read_results(room / "both.csv")
    assert set(table.dataset[table.role == "control"]) == {"pairs", "more", "mean over control sets"}


@pytest.mark.slow
def test_alpha_is_chosen_on_pairs_or_where_they_lose_little(room):
    said = wiseft("merge zeroshot finetuned --alpha auto --retrieval pairs.csv -o on-pairs", room)
    assert "On 60 validation images, recall@1: zero-shot" in said
    card = json.loads((room / "on-pairs/wiseft.json").read_text())
    assert "was chosen by recall@1 on 60 validation images" in card["recipe"]["merge"]["chosen"]
    for more in ("--reference class-folders", "--suite icons", "--retrieval more.csv"):
        said = wiseft(f"merge zeroshot finetuned --alpha auto --retrieval pairs.csv {more} -o other", room, code=2)
        assert "as the validation pairs that α is chosen on" in said.replace("│ │ ", "")
    said = wiseft("merge zeroshot finetuned --alpha auto --suite icons --keep 1 --retrieval pairs.csv -o kept", room)
    assert "At α = 0 nothing is lost on control sets" in said or "recall@1 at α" in said


@pytest.mark.slow
def test_run_takes_pairs_along(room):
    for c, k in (("airplane", 0), ("anchor", 1)):
        (room / "photos" / c).mkdir(parents=True)
        for i in range(4):
            (room / f"photos/{c}/{i}.png").write_bytes((room / f"pictures/{2 * i + k}.png").read_bytes())
    line = "run photos --epochs 1 --batch-size 4 --retrieval pairs.csv -o out"
    wiseft(line, room)
    lines = (room / "out/commands.sh").read_text().splitlines()
    assert [c.split()[1] for c in lines if "--retrieval pairs.csv" in c] == ["sweep", "report"]
    table = read_results(room / "out/results.csv")
    assert set(table.metric[table.dataset == "pairs"]) == set(RETRIEVAL)
    text = (room / "pairs.csv").read_text()
    (room / "pairs.csv").write_text(text.replace("an icon of", "a picture of", 1))
    assert "pairs: these images are not those that out was begun with" in wiseft(line, room, code=1)
    (room / "pairs.csv").write_text(text)


def test_a_training_on_captions_reports_recall_on_held_out_pairs(ends, room, capfd):
    SAID.clear()
    all_methods()
    tuned = finetune(ends[0], room, captions=room / "pairs.csv", loss="FLYP", epochs=1, batch_size=32, lr=1e-5,
                     precision="fp32")
    said = " ".join(capfd.readouterr().err.split())
    found = re.search(r"among the (\d+) images and (\d+) captions that were held out.*image to text ([\d.]+) %", said)
    assert int(found[1]) == 6 and 6 <= int(found[2]) <= 12
    assert {f"validation {m}" for m in RETRIEVAL} <= {*tuned.metrics}
    assert float(found[3]) == pytest.approx(100 * tuned.metrics["validation image to text recall@1"], abs=0.06)
    pairs = captioned_images(room / "pairs.csv", room)
    held_out = of_pairs(pairs.subset(np.isin(pairs.clusters(), np.random.default_rng(0).permutation(60)[:6])))
    again = evaluate(tuned, held_out, metrics=["recall@1"], **QUIET)
    assert again.value[0] == pytest.approx(tuned.metrics["validation recall@1"], abs=1e-5) and again.texts[0] == "own"


def test_a_bench_counts_the_nearest_caption_on_its_control_sets(ends, gallery, suite):
    few = replace(suite, test=suite.test.subset(range(0, 400, 20)), shifts={}, shift_validation={})
    between = members(*ends, [0, 0.5, 1], ["weight-space"])
    columns = curve_columns(between, few, "test", [replace(gallery, role="control")])
    expected = [by_hand(c, gallery)["right"].mean() for c in ends]
    assert [columns["right captions"][k].mean() for k in (0, 2)] == pytest.approx(expected)
    all_methods()
    plan = Plan(suite, ends[0], [], None, (0, 1), (0.5,), {}, control={"pairs": gallery})
    assert "works with probabilities" in plan.why_left_out(find_method("VRF"))
    assert plan.why_left_out(find_method("logits")) == ""
