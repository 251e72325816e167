"Metrics of several labels per image: as scikit-learn computes them, and intervals that cover."
import numpy as np
import pytest
from conftest import slow_except

from wiseft.stats.intervals import mean_of_set
from wiseft.stats.multilabel import auroc_of_labels, average_precision, f1_of_labels, mean_average_precision


def drawn(n, share, rng, apart=1.2):
    labels = rng.random((n, len(share))) < share
    return rng.normal(size=labels.shape) + apart*labels, labels


@pytest.mark.parametrize("digits", [1, 8])  # with ties, without
def test_parity_with_scikit_learn(digits):
    from sklearn import metrics as sk
    rng = np.random.default_rng(0)
    for _ in range(30):
        n, share = rng.integers(20, 300), rng.uniform(.05, .6, rng.integers(2, 12))
        scores, labels = drawn(n, share, rng)
        scores, some = scores.round(digits), labels.any(0) & ~labels.all(0)
        called, there = scores >= .6, labels.any(0)
        expected = sk.average_precision_score(labels[:, some], scores[:, some], average="macro")
        assert mean_average_precision(scores, labels)[0] == pytest.approx(expected, abs=1e-12)
        expected = sk.roc_auc_score(labels[:, some], scores[:, some], average="macro")
        assert auroc_of_labels(scores, labels)[0] == pytest.approx(expected, abs=1e-12)
        expected = sk.f1_score(labels[:, there], called[:, there], average="macro", zero_division=0)
        assert f1_of_labels(called, labels)[0] == pytest.approx(expected, abs=1e-12)
        expected = sk.f1_score(labels, called, average="micro")
        assert f1_of_labels(called, labels, micro=True)[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", [lambda s, y: average_precision(s[:, 0], y[:, 0]), mean_average_precision,
                                    lambda s, y: f1_of_labels(s > .5, y), lambda s, y: f1_of_labels(s > .5, y, True)],
                         ids=["AP", "mAP", "macro-F1", "micro-F1"])
@pytest.mark.parametrize("digits", [1, 8])
def test_influence_is_that_of_leaving_one_out(metric, digits):
    scores, labels = drawn(40, np.full(3, .4), np.random.default_rng(1))
    scores = scores.round(digits)
    value, influence, *bias = metric(scores, labels)
    left = np.array([metric(np.delete(scores, i, 0), np.delete(labels, i, 0))[0] for i in range(40)])
    assert influence == pytest.approx(39*(left.mean() - left), abs=1e-12)
    if bias:
        assert bias[0] == pytest.approx(39*(left.mean() - value), abs=1e-12)


@pytest.mark.parametrize("n, rarest, most, n_classes", [(100, .15, .4, 8), *slow_except(
    [], [(400, .05, .3, 40), (1500, .02, .2, 80)])])
def test_intervals_cover(n, rarest, most, n_classes):
    "The interval of mAP is wider by its estimated bias: without that it covers 74 % with 40 classes."
    share = np.linspace(rarest, most, n_classes)
    rng, hits = np.random.default_rng(n), {"mAP": [], "AUROC": [], "macro-F1": []}
    of_one = [drawn(300_000, np.array([s]), rng) for s in share]
    metrics = dict(zip(hits, (mean_average_precision, auroc_of_labels, lambda s, y: f1_of_labels(s > .6, y))))
    truth = {k: np.mean([m(*one)[0] for one in of_one]) for k, m in metrics.items()}
    for _ in range(max(100, 30_000 // n)):
        scores, labels = drawn(n, share, rng)
        if labels.sum(0).min() < 10:
            continue
        for k, metric in metrics.items():
            value, influence, *bias = metric(scores, labels)
            _, low, high = mean_of_set(value + influence, bounded=False)
            bias = bias[0] if bias else 0
            hits[k].append(low - max(bias, 0) <= truth[k] <= high - min(bias, 0))
    assert {k: round(np.mean(h), 3) for k, h in hits.items() if np.mean(h) < .93 - 2*np.sqrt(.93*.07/len(h))} == {}
