"The table of architectures that work agrees with the code: three of them, drawn by seed, are counted again."
import random
import runpy
from importlib.metadata import version

import pandas as pd
import pytest
from conftest import ROOT

FOLDER = ROOT / "nbs/reproductions/architectures"
TABLE = pd.read_csv(FOLDER / "architectures.csv")
COUNTS = ["pixels", "million_weights", "blocks", "depths", "lora_matrices"]


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(FOLDER / "architectures.py"))


def test_every_architecture_has_a_row(script):
    if version("open_clip_torch") == TABLE.open_clip[0]:
        assert sorted(TABLE.architecture) == sorted(script["open_clip"].list_models())


@pytest.mark.parametrize("name", random.Random(0).sample(sorted(TABLE[TABLE.needs_hub.isna()].architecture), 3))
def test_counts(script, name):
    row = TABLE[TABLE.architecture == name].iloc[0]
    counts = script["count_parts"](name)
    assert [counts[k] for k in COUNTS] == [row[k] for k in COUNTS]


def test_convolutions():
    "The shapes that crash are those that get contiguous memory, and others have the gradients of the table."
    script, table = runpy.run_path(str(FOLDER / "convolutions.py")), pd.read_csv(FOLDER / "convolutions.csv")
    settings = [f"{precision} {isa}" for precision, isa in script["SETTINGS"]]
    crashed = table[settings].eq("crashes").any(axis=1)
    few = (table.kernel == 1) & (table.stride > 1) & (table.inputs < 16) & (table.groups == 1)
    assert crashed.sum() == 2 and (few | ~crashed).all()
    assert table[settings][~crashed].astype(float).max(axis=None) < 1e-2
    for row in table[~crashed & (table["size"] < 40)].sample(5, random_state=0).itertuples():
        assert float(script["difference"](row, "fp32")) < 1e-4


def test_used_ones_are_small_and_work(script):
    used = TABLE[TABLE.merges.notna()]
    assert all(map(script["is_used"], used.to_dict("records")))
    uses = used[["predicts", *script["TRAIN"], "merges"]]
    assert (uses.eq("yes") | uses.isna()).all(axis=None)
    assert (uses["trains LoRA"].notna() == (used.lora_matrices > 0)).all()
