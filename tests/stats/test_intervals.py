"Intervals of means over sets: a second implementation agrees, and losses get no added images."
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, later

from wiseft.infer.members import WHO
from wiseft.infer.scores import score
from wiseft.stats.intervals import mean_difference, mean_over_sets

sys.path.insert(0, str(ROOT / "tools"))
from audit import t_interval

stdtrit = later("scipy.special", "stdtrit")


def sets(rng, shared):
    "Right or wrong by two classifiers, and families of unequal size, which the sets share or don't."
    families = [rng.choice(7, n, p=np.arange(1, 8) / 28) for n in (60, 25, 40)]
    units = {s: [f if shared and s < 2 else (s, f) for f in of_set] for s, of_set in enumerate(families)}
    a, b = ({s: (rng.random(len(f)) < p).astype(float) for s, f in enumerate(families)} for p in (0.6, 0.7))
    return a, b, units


@pytest.mark.parametrize("shared", [False, True])
def test_the_recomputation_has_the_same_interval(shared):
    for seed in range(20):
        a, b, units = sets(np.random.default_rng(seed), shared)
        names = [np.array([*map(str, u)]) for u in units.values()]
        again = t_interval([100 * v for v in a.values()], names, 0, 100)
        assert np.allclose(again, 100 * np.array(mean_over_sets(a, units)[1:]))
        again = t_interval([100 * (b[s] - a[s]) for s in a], names, -100, 100)
        assert np.allclose(again, 100 * np.array(mean_difference(a, b, units)[1:]))


@pytest.mark.parametrize("metric, column", [("NLL", "nll"), ("Brier", "brier"), ("KL from start", "kl")])
def test_losses_below_one_get_no_added_images(metric, column):
    values = {"sketch": [0.1, 0.2, 0.6, 0.3], "line": [0.2, 0.4, 0.9]}
    rows = pd.concat(pd.DataFrame(dict(
        dataset=d, role="shift", file=[f"{d}/{i}.png" for i in range(len(v))], **{column: v},
    )) for d, v in values.items()).assign(
        split="test", group=None, label="cat", predicted="cat", correct=True, data_fingerprint="0")
    who = dict.fromkeys(WHO, "plain") | dict(method="fine-tuned", alpha=1.0, seed=0, precision="fp32")
    rows = rows.assign(unit=rows.file, **who)
    table = score(rows, [metric]).set_index("dataset")
    for d, v in values.items():
        half = stdtrit(len(v) - 1, 0.975) * np.std(v, ddof=1) / len(v) ** 0.5
        assert np.allclose(table.loc[d, ["low", "high"]].astype(float), [np.mean(v) - half, np.mean(v) + half])
    variances = np.array([np.var(v, ddof=1) / len(v) / 4 for v in values.values()])
    df = variances.sum() ** 2 / sum(variances**2 / [len(v) - 1 for v in values.values()])
    half = stdtrit(df, 0.975) * variances.sum() ** 0.5
    mean = table.loc["mean over shifts"]
    assert np.allclose([mean.low, mean.high], [mean.value - half, mean.value + half])
