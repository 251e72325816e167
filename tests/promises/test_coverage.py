"The intervals cover as often as the tables say: the first experiments of every setting, done again."
import csv
import importlib.util

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

FOLDER = ROOT / "nbs/reproductions/coverage"
ROWS = list(csv.DictReader((FOLDER / "results.csv").open()))


@pytest.fixture(scope="module")
def script():
    return loaded("coverage")


@pytest.fixture(scope="module")
def seeds():
    return loaded("seeds")


def loaded(name):
    spec = importlib.util.spec_from_file_location(f"coverage_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FUNCTIONS = list(dict.fromkeys(r["function"] for r in ROWS))


def again(script, function):
    "Of each setting of a function: how many of the first experiments held the truth, in the table and now."
    rows = [r for r in ROWS if r["function"] == function]
    now = [(script.run(function, r["setting"], script.FIRST) == 0).sum() for r in rows]
    return np.array([int(r[f"held_of_first_{script.FIRST}"]) for r in rows]), np.array(now)


def same(before, now):
    "Rounding may move one experiment in a setting over the edge, no more than that."
    return (np.abs(before - now) <= 1).all()


def test_every_line_has_its_setting(script):
    assert len(ROWS) == len({(r["function"], r["setting"]) for r in ROWS}) == len(script.SETTINGS)
    assert all(int(r["experiments"]) == script.SETTINGS[r["function"], r["setting"]][1] for r in ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("function", FUNCTIONS)
def test_first_experiments(script, function):
    before, now = again(script, function)
    assert same(before, now), f"nbs/reproductions/coverage/results.csv says {before} of {script.FIRST}, now {now}"


def test_a_narrower_interval_is_found(script, monkeypatch):
    "An interval of a third of the width fails."
    honest = script.m.mean_over_sets

    def narrow(*args, **kwargs):
        value, low, high = honest(*args, **kwargs)
        return value, value - (value - low) / 3, value + (high - value) / 3

    monkeypatch.setattr(script.m, "mean_over_sets", narrow)
    assert not same(*again(script, "mean_over_sets"))


def test_procedures_are_those_of_the_table(script, monkeypatch):
    "One setting in which only the chosen procedure covers, computed again."
    import sys

    sys.path.insert(0, str(FOLDER))
    try:
        procedures = loaded("procedures")
    finally:
        sys.path.remove(str(FOLDER))
    table = pd.read_csv(FOLDER / "procedures.csv").set_index(["setting", "procedure"])
    name, function = "images: 50, 10% repaired", "mean_difference"
    for procedure in procedures.cluster_t, procedures.adjusted_t:
        monkeypatch.setattr(procedures.m, "_mean_interval", procedure)
        held = (procedures.coverage.run(function, name, procedures.N_EXPERIMENTS) == 0).mean()
        assert abs(held - table.covered[name, procedure.__name__]) < 0.005


def test_procedures_for_crossed_images_and_seeds_are_those_of_the_table(monkeypatch):
    "The first cell, computed again: with Satterthwaite's degrees of freedom a row is called better more often."
    monkeypatch.syspath_prepend(str(FOLDER))
    script, table = loaded("crossed"), pd.read_csv(FOLDER / "crossed.csv").set_index("procedure")[:3]
    rng, part = script.np.random.default_rng([10, 0]), "resnet-harsh"
    benches = [script.bench(part, "committed", 1, 3, rng) for _ in range(script.BENCHES)]
    fewest = min(r.shape[1] for r in script.right(part).values())
    for procedure in script.images_alone, script.satterthwaite, script.both_chances:
        told = np.mean([script.judge(procedure, value, variances, fewest, 3) for value, *variances in benches], 0)
        row = table.loc[procedure.__name__, ["covered", "width", "better", "either"]].astype(float)
        assert np.allclose(told, row, atol=1e-3)
    assert table.better["satterthwaite"] > table.better["both_chances"]


def test_labels_one_by_one_are_those_of_the_table():
    stopping, table = loaded("stopping"), pd.read_csv(FOLDER / "stopping.csv")
    tails = [stopping.tails(n) for n in range(1, stopping.MOST + 1)]
    again = pd.DataFrame([stopping.series(*p, tails) for p in stopping.SHARES])
    pd.testing.assert_frame_equal(again.round(4), table, check_dtype=False)


SEEDS = pd.read_csv(FOLDER / "seeds.csv")
WHICH = ["part", "seeds", "drawn", "planted", "rule"]


def test_every_cell_has_its_lines(seeds):
    counts = SEEDS.groupby(["part", "seeds", "drawn"]).experiments.agg(["first", "size"])
    each = len(seeds.RULES) * len(seeds.PLANTED)
    assert {(*k, *v) for k, v in zip(counts.index, counts.to_numpy().tolist())} == {(*c, each) for c in seeds.CELLS}
    assert {tuple(b) for b in pd.read_csv(FOLDER / "benches.csv")[["part", "seeds", "benches"]].to_numpy()} == {
        *map(tuple, seeds.BENCHES)}


@pytest.mark.parametrize("drawn", ["images", "classes"])
def test_first_experiments_with_seeds(seeds, drawn):
    "What the rules say of the first experiments of a part, in the table and now."
    now = pd.DataFrame(seeds.lines("vit-harsh", 3, drawn, seeds.FIRST), columns=seeds.HEADER)
    both = SEEDS.merge(now, on=WHICH, suffixes=("", " now"))
    assert len(both) == len(now)
    assert np.allclose(both["first"].astype(float), both["first now"].astype(float), atol=2e-4)
