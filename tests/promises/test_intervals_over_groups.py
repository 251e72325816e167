"Intervals and paired tests are over groups, where images belong together."
import numpy as np
import pandas as pd
import pytest

from wiseft.analysis.decision import decide
from wiseft.analysis.forgetting import forgetting
from wiseft.analysis.paired import compare
from wiseft.data.images import ImageSet
from wiseft.infer.evaluation import accuracy_and_chance
from wiseft.infer.rules import keeps
from wiseft.infer.scores import KeptPredictions, image_rows, prediction_rows, score
from wiseft.stats.intervals import clopper_pearson

WHO = dict(classifier="c", tuning="", method="zero-shot", alpha=0.0, precision="fp32", seed=pd.NA)
N_GROUPS, SIZE = 20, 30


def image_set(name, n, groups=None, subgroups=None, **kwargs):
    return ImageSet(name, [f"{name}/{i}.png" for i in range(n)], np.zeros(n, int), ["a", "b"], groups=groups,
                    subgroups=subgroups, pixels=np.zeros((n, 1, 1, 3), np.uint8), **kwargs)


def scored(right, metrics=("accuracy",), columns=None, **kwargs):
    images = image_rows({"cam": image_set("cam", len(right), **kwargs)}, "test")
    return score(prediction_rows(images, WHO, np.where(right, 0, 1).astype(np.int32), columns or {}), metrics)


def named(groups): return [f"g{g}" for g in groups]


def test_twenty_cameras_of_fifty_images_each():
    "A camera's images are right or wrong together: an interval over images covered in a fifth of the draws."
    rng, group, covered = np.random.default_rng(0), np.repeat(np.arange(20), 50), 0
    for _ in range(40):
        right = (rng.random(20) < 0.7)[group]
        t = scored(right, groups=named(group))
        covered += t.low[0] <= 0.7 <= t.high[0]
        assert t.n_groups.tolist() == [20, 20]
        assert t.loc[0, ["low", "high"]].tolist() == t.loc[1, ["low", "high"]].tolist() # that of the mean over shifts
    assert covered >= 36


def test_independent_images_keep_the_exact_interval():
    right = np.arange(200) % 7 > 1
    for groups in (None, [""] * 200, named(range(200)), named(np.arange(200) % 4)): # none, one each, too few
        t = scored(right, groups=groups)
        assert (t.low[0], t.high[0]) == clopper_pearson(right.sum(), 200)
        assert "n_groups" not in t


def test_an_image_without_a_group_is_by_itself():
    right, group = np.arange(200) % 7 > 1, np.repeat(np.arange(4), 40)
    t = scored(right, groups=[*named(group), *[""] * 40])
    assert t.n_groups[0] == 44


def predictions(times):
    "Two classifiers on a reference, a shift, and a control set, where `times` images of a group are alike."
    rng = np.random.default_rng(1)
    truth = {d: rng.random((2, N_GROUPS)) < [[0.6], [0.8]] for d in ("reference", "line", "pets")}
    roles = dict(reference="reference", line="shift", pets="control")
    groups = np.repeat(np.arange(N_GROUPS), times)
    sets = {d: image_set(d, len(groups), named(groups), role=roles[d]) for d in truth}
    members = []
    for k, (method, alpha) in enumerate((("zero-shot", 0.0), ("weight-space", 0.5), ("fine-tuned", 1.0))):
        right = np.concatenate([np.repeat(t[k % 2], times) for t in truth.values()])
        columns = {"nll": np.where(right, 0.1, 2.0), "brier": np.where(right, 0.1, 1.0),
                   "confidence": np.where(right, 0.8, 0.6)}
        members.append((WHO | dict(method=method, alpha=alpha), np.where(right, 0, 1).astype(np.int32), columns))
    return KeptPredictions(image_rows(sets, "test"), members)


def scores_of(kept):
    t = score(kept.frame(method="zero-shot"), ["accuracy", "NLL", "Brier", "macro-F1"])
    return t.dropna(subset="low")


ENDS = dict(method="zero-shot"), dict(method="weight-space", alpha=0.5)


def decided(kept):
    c = pd.concat([compare(kept, dict(method="fine-tuned"), ENDS[1])])
    return decide(c).table


WIDTHS = dict(
    score=scores_of,
    compare=lambda kept: compare(kept, *ENDS),
    families=lambda kept: compare(kept, *ENDS, groups=True),
    decide=decided,
    forgetting=lambda kept: forgetting(kept, [dict(method="weight-space")]))


@pytest.mark.parametrize("name", WIDTHS)
def test_copies_in_a_group_add_nothing(name):
    "An image repeated 30 times as one group: the interval is as wide as with one image."
    once, often = (WIDTHS[name](predictions(times)) for times in (1, SIZE))
    ratio = (often.high - often.low).to_numpy(float) / (once.high - once.low).to_numpy(float)
    assert (ratio > 0.8).all(), ratio


def test_p_counts_groups():
    once, often = (compare(predictions(times), *ENDS) for times in (1, SIZE))
    np.testing.assert_allclose(often.p[:3].astype(float), once.p[:3].astype(float))
    assert (often.over == "families").all() and (often.n_units == N_GROUPS).all()
    assert (compare(predictions(SIZE), *ENDS, groups=False).p[:3] < often.p[:3]).all()


def test_keeps_needs_more_images_where_they_belong_together(capsys):
    accuracies, loss = pd.Series({0.5: 0.9}), []
    for times in (1, SIZE):
        keeps(1.0, []).__call__(accuracies, predictions(times))
        loss.append(capsys.readouterr().out.partition("95 % interval")[2].split(")")[0])
    ends = [[float(w) for w in line.replace("to", " ").split()] for line in loss]
    assert np.diff(ends[1]) > 0.8 * np.diff(ends[0])


def test_a_control_set_of_few_groups_says_less():
    group = np.repeat(np.arange(10), 50)
    right, labels = (np.arange(10) < 7)[group], np.arange(500) % 2
    predicted = np.where(right, labels, 1 - labels)
    low = [accuracy_and_chance(predicted, labels, groups)[1] for groups in (None, named(group))]
    assert low[0] > 0.5 > low[1]


def test_worst_group_takes_subgroups_and_is_over_groups_within_them():
    group, region = np.repeat(np.arange(20), 50), ["north"] * 500 + ["south"] * 500
    right = (np.arange(20) % 5 > 0)[group]
    worst = ["worst-group accuracy"]
    over_images = scored(right, worst, groups=region).iloc[0]
    t = scored(right, worst, groups=named(group), subgroups=region).iloc[0]
    assert t.value == over_images.value == 0.8
    assert t.high - t.low > 3 * (over_images.high - over_images.low)


def test_predictions_have_subgroups_only_where_there_are_some(tmp_path):
    from wiseft.analysis.predictions import read_predictions, write_predictions
    without = image_rows({"a": image_set("a", 4)}, "test")
    some = image_rows({"a": image_set("a", 4), "b": image_set("b", 4, subgroups=list("xxyy"))}, "test")
    assert "subgroup" not in without and some.subgroup.tolist()[4:] == list("xxyy")
    kept = KeptPredictions(some, [(WHO, np.zeros(8, np.int32), {})])
    again = read_predictions(write_predictions(kept, tmp_path / "p.csv.gz"))
    assert again.frame().subgroup.isna().tolist() == [True] * 4 + [False] * 4


def test_choose_alpha_counts_groups_for_its_standard_error():
    from functools import partial

    from wiseft.infer.rules import _independent_images, standard_error
    from wiseft.infer.scores import METRICS
    independent = partial(_independent_images, metric=METRICS["accuracy"])
    once, often = (predictions(times).frame(method="zero-shot", dataset="line") for times in (1, SIZE))
    assert independent(once) == N_GROUPS == pytest.approx(independent(often))
    assert standard_error([0.6], independent(often)) > 5 * standard_error([0.6], len(often))


def test_a_bench_is_over_groups_if_all_sets_have_enough_and_its_plan_says_so(tmp_path):
    import json
    from types import SimpleNamespace

    from wiseft.bench.outcome import has_groups, resampling_units
    from wiseft.bench.run import _write_or_check_plan
    from wiseft.data.suites import Suite

    def suite(n_groups):
        sets = {d: image_set(d, 60, named(np.arange(60) % n_groups)) for d in ("test", "line")}
        return Suite("s", ["a", "b"], ["a {}"], sets["test"], sets["test"], sets["test"], {"line": sets["line"]})

    assert has_groups(suite(6)) and not has_groups(suite(4)) and not has_groups(suite(60))
    assert [len(set(u)) for u in resampling_units(suite(6), True).values()] == [6, 6]
    for n_groups, given, written in ((6, None, True), (6, False, None), (4, None, None), (6, True, True)):
        folder = tmp_path / f"{n_groups} {given}"
        folder.mkdir()
        plan = SimpleNamespace(suite=suite(n_groups), as_json=lambda: {}, unreadable=None)
        _write_or_check_plan(plan, folder, given)
        _write_or_check_plan(plan, folder, not given)  # the plan stays
        assert json.loads((folder / "plan.json").read_text()).get("groups") == written
