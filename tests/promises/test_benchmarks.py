"Benchmarks compare with plain PyTorch, README states what they measured, and those of accelerators run on a CPU."
import re
from dataclasses import replace
from importlib import import_module

import pytest
from conftest import ROOT


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return import_module("bench")


@pytest.mark.filterwarnings("ignore:.*images")
def test_the_plain_sweep_makes_a_pass_for_each_alpha_and_predicts_as_ours(bench, monkeypatch):
    start, end, suite = bench.icons()
    suite = replace(suite, test=suite.test.subset(range(6)), shifts={"solid": suite.shifts["solid"].subset(range(4))})
    decoded, open_image = [], bench.Files.__getitem__
    monkeypatch.setattr(bench.Files, "__getitem__", lambda self, i: decoded.append(i) or open_image(self, i))
    plain = bench.plain_sweep(start, end, suite)
    assert len(decoded) == 10 * len(bench.ALPHAS)  # outputs of the ends are kept for all output ensembles
    assert len(plain) == 2 * (2 + 3 * (len(bench.ALPHAS) - 2))
    _, predictions = bench.ours(start, end, suite)
    assert bench.differing(plain, predictions) == 0


def test_readme_states_the_measured_speed():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    claim = re.search(r"On a CPU, `sweep` is ([\d.]+) to ([\d.]+) times as fast as plain PyTorch in fp32, "
                      r"and \[([\d.]+) to ([\d.]+) times in bfloat16",
                      readme)
    results = (ROOT / "benchmarks/RESULTS.md").read_text(encoding="utf-8")
    measured = []
    for precision in ("fp32", "bf16"):
        matches = re.findall(rf"plain PyTorch in fp32 / ours in {precision} \(.+\) \|.*\| ([\d.]+) \|", results)
        ratios = [float(ratio) for ratio in matches]
        measured += [min(ratios), max(ratios)]
    assert [float(n) for n in claim.groups()] == [round(n, 1) for n in measured]


def test_measures_of_accelerators_run(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    before = (ROOT / "benchmarks/RESULTS.md").read_bytes()
    gpu = import_module("gpu")
    gpu.main(["--tiny"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 8 and all(float(row.split("|")[3]) >= 0 for row in rows), rows
    assert (ROOT / "benchmarks/RESULTS.md").read_bytes() == before  # what a tiny run measures is no result


@pytest.mark.slow
def test_a_report_of_21000_classes_is_small_and_opens_at_once(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    row = import_module("scale").measured("reporting", images=2000, members=3, classes=21_000)
    assert row["page_MB"] < 20
    assert row.get("opened", 0) < 3  # where there is a browser
