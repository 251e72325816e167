"Recall, precision, confusions, and ROC curves are scikit-learn's; intervals over images and groups cover."
import numpy as np
import pytest
from conftest import later

by_class, confusion_matrix = (later("wiseft.analysis.classes", name) for name in ("by_class", "confusion_matrix"))
roc_curve = later("wiseft.analysis.classes", "roc_curve")
NAMES = ["cat", "dog", "owl"]
GIVEN = np.array([[0.8, 0.15, 0.05], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]])  # answers of each class
SHARES = np.array([0.6, 0.25, 0.15])  # of the classes


def answers(labels, predicted, confidence=None, groups=None):
    "Rows of one classifier on one set."
    from wiseft.data.images import ImageSet
    from wiseft.infer.scores import KeptPredictions, image_rows

    images = ImageSet("photos", [f"{i}.png" for i in range(len(labels))], labels, NAMES, role="reference",
                      groups=groups, pixels=np.zeros((len(labels), 1, 1, 3), np.uint8))
    who = dict(classifier="tiny", tuning="", method="fine-tuned", alpha=1.0, precision="fp32", seed=0)
    columns = {} if confidence is None else dict(confidence=confidence)
    return KeptPredictions(image_rows(dict(photos=images), "test"), [(who, predicted, columns)]).frame()


def test_numbers_are_those_of_scikit_learn():
    from sklearn import metrics

    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    rows = answers(labels, predicted)
    recall, table = metrics.recall_score(labels, predicted, average=None), by_class(rows)
    np.testing.assert_allclose(table.recall, recall, atol=1e-12)
    np.testing.assert_allclose(table.precision, metrics.precision_score(labels, predicted, average=None), atol=1e-12)
    assert (confusion_matrix(rows).to_numpy() == metrics.confusion_matrix(labels, predicted)).all()
    two, sure = labels % 2, rng.uniform(0.5, 1, 200).round(2)  # rounded: with ties
    curve = roc_curve(answers(two, predicted % 2, sure), "dog")
    x, y, _ = metrics.roc_curve(two, np.where(predicted % 2, sure, 1 - sure).round(9), drop_intermediate=False)
    np.testing.assert_allclose(curve.to_numpy(), np.column_stack([x, y]), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 5])  # of a group
def test_intervals_cover(size):
    rng, covered = np.random.default_rng(1), []
    truth = np.diag(GIVEN), SHARES * np.diag(GIVEN) / (SHARES @ GIVEN)  # recall, precision
    for _ in range(100):
        n = 300 // size
        labels = np.repeat(rng.choice(3, n, p=SHARES), size)
        alike = np.repeat(rng.random(n) < 0.5, size)  # half of the groups have one answer
        draw = np.where(alike, np.repeat(rng.random(n), size), rng.random(n * size))
        predicted = (draw[:, None] > np.cumsum(GIVEN[labels], 1)).sum(1)
        groups = None if size == 1 else np.repeat([f"patient {i}" for i in range(n)], size).tolist()
        table = by_class(answers(labels, predicted, groups=groups))
        for true, low, high in zip(truth, ("low", "precision_low"), ("high", "precision_high")):
            known = table[low].notna()
            covered += list(((table[low] <= true[: len(table)]) & (true[: len(table)] <= table[high]))[known])
    assert np.mean(covered) >= 0.93 and len(covered) > 500
