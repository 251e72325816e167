"A newcomer's bench."
import pandas as pd
import pytest
from tests.bench.test_plan import photos  # noqa: F401, a fixture
from tests.shell.test_cli import wiseft


@pytest.mark.slow
def test_a_newcomers_bench(photos):
    "Seven classes, three shifted folders, three methods: a plan, tables and a page; a second call does nothing"
    wiseft("zeroshot", "photos", "-o", "zeroshot", cwd=photos)
    shifts = [o for kind in ("night", "faint", "red") for o in ("--shift", kind)]
    command = ["bench", "zeroshot", "--reference", "photos", *shifts, "--methods", "spd,lines,uniform soup",
               "--epochs", "1", "--batch-size", "32", "--seeds", "2", "-o", "bench"]
    refused = wiseft(*command, "--groups", cwd=photos, code=1).stderr
    assert "reference has no groups" in refused and refused.strip().endswith("Leave out --groups.")
    done = wiseft(*command, cwd=photos)
    for words in ("7 of its images, always the same, are held out", "0.0001, 0.0003, 0.0009", "steps are few",
                  "night: there are no images of 'square', 'triangle', 2 of 7 classes"):
        assert words in done.stderr, words
    names = ["plain", "SPD", "LiNeS", "uniform soup"]
    tables = {n: pd.read_csv(photos / f"bench/{n}.csv") for n in ("gains", "curves", "accuracies", "choices", "costs")}
    gains = tables["gains"].set_index("method")
    plain = tables["choices"].query("method == 'plain'")
    better = bool(plain.validation.max() > plain.validation[plain.chosen].iloc[0])  # than what the cautious rule took
    second = better * ["plain, best validation rate"]
    assert list(gains.index) == ["plain", "plain, other seeds", *second, *names[1:]] and gains.why.isna().all()
    assert ("p_best" in gains) == better
    assert set(gains.lr) <= {3.3e-5, 1e-4, 3e-4, 9e-4, 2.7e-3}
    assert gains[["reference", "shifted", "arithmetic"]].notna().all(axis=None)
    assert set(tables["accuracies"].dataset) == {"reference", "night", "faint", "red", "mean over shifts"}
    assert tables["curves"].groupby("method").size().to_dict() == dict.fromkeys(names + second, 11)
    page = (photos / "bench/report.html").read_text()
    shown = done.stdout[done.stdout.index("zero-shot:"):].splitlines()
    assert len(shown) == 6 + len(second) and "Nothing here beats averaging" in done.stdout
    assert all(line.split(":")[0] in page for line in shown) and "made by" in page
    kept = {p: p.stat().st_mtime_ns for p in photos.glob("bench/**/*") if p.suffix in (".npz", ".safetensors", ".json")}
    again = wiseft(*command, cwd=photos)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept and again.stdout == done.stdout
    assert not [line for line in again.stderr.splitlines() if line.startswith(("train ", "judge "))]
    assert "judgments, which are not repeated" in again.stderr
    pd.testing.assert_frame_equal(pd.read_csv(photos / "bench/gains.csv"), tables["gains"])
