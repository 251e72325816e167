"A value past the edge of a grid is chosen only if it is the best; a bench that began with an older rule keeps that."
import json
import shutil
import sys
import pandas as pd
import pytest
from conftest import ROOT, later
from test_bench import PIECES, small

bench, plan_bench, Clock, Work = later("wiseft.bench.run", "bench", "plan_bench", "Clock", "Work")
sys.path.append(str(ROOT / "nbs/reproductions"))
from answers import unpacked

TRIALS = unpacked(ROOT / "nbs/reproductions/campaign/vit-harsh")
RECORDED = "one step past an edge"


def chosen_rate(folder, plan_json=None):
    "The learning rate of plain fine-tuning, from the committed trials of the ViT: 77.5 % at 1e-3, 76.0 % past the edge"
    folder.mkdir()
    for rate in .00033, .001, .003, .01:
        shutil.copy(TRIALS / f"plain, lr {rate:g}, seed 30.validation.npz", folder)
    if plan_json is not None:
        (folder / "plan.json").write_text(json.dumps(plan_json))
    suite, first = small()
    plan = plan_bench(suite, first, folder, ["LiNeS"], **PIECES | dict(seeds=(30,), lrs=(.001, .003, .01)))
    return Work(plan, folder, Clock(print)).choose(None).lr


def test_a_smaller_rate_past_the_edge_that_is_not_the_best(tmp_path):
    assert chosen_rate(tmp_path / "new") == .001
    assert chosen_rate(tmp_path / "campaign", dict(grids=RECORDED)) == .00033, "the recorded choice stands"
    assert chosen_rate(tmp_path / "first", {}) == .001, "a plan without `grids` extends none"


@pytest.mark.parametrize("recorded", [RECORDED, None])
def test_a_bench_goes_on_by_the_rule_that_it_began_with(tmp_path, recorded):
    suite, first = small()
    how = PIECES | dict(seeds=(0,), lrs=(1e-3, 3e-3), say=lambda line: None)
    began = bench(suite, first, tmp_path / "a", ["LiNeS"], **how)
    file = tmp_path / "a/plan.json"
    plan = json.loads(file.read_text())
    older = {k: v for k, v in plan.items() if k != "grids"} | (dict(grids=recorded) if recorded else {})
    file.write_text(json.dumps(older))
    result = bench(suite, first, tmp_path / "a", ["LiNeS"], **how)
    assert len(result.choices()) == (3 if recorded else 2) and len(began.choices()) == 3
    assert json.loads(file.read_text()).get("grids") == recorded


def test_a_rule_that_is_not_known_is_refused(tmp_path):
    suite, first = small()
    how = PIECES | dict(seeds=(0,), say=lambda line: None)
    bench(suite, first, tmp_path / "a", ["LiNeS"], **how)
    file = tmp_path / "a/plan.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(grids="two steps")))
    with pytest.raises(ValueError, match="another plan: grids was 'two steps' and is now 'one step past an edge, if"):
        bench(suite, first, tmp_path / "a", ["LiNeS"], **how)


def test_the_simulation_has_the_recorded_settings():
    "The old rule of rates.csv sets each committed row as the campaign did, and the new rule never takes more of them"
    trials = pd.read_csv(ROOT / "nbs/reproductions/coverage/rates.csv")
    recorded = pd.read_csv(ROOT / "nbs/reproductions/campaign/gains.csv").set_index(["part", "method"])
    old = trials[trials.chosen_old & trials.set_index(["part", "method"]).index.isin(recorded.index)]
    for row in old.itertuples():
        column = "lr" if row.choice == "learning rate" else "strength"
        assert row.value == pytest.approx(recorded[column][row.part, row.method], rel=.01)
    new = trials[trials.past_edge & trials.chosen_new]
    assert len(old) > 60 and new.chosen_best.all() and new.chosen_old.all()
