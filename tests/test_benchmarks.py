"What is measured on accelerators runs on a CPU, with tiny towers: its numbers there say nothing, its logic does."
from importlib import import_module

from conftest import ROOT


def test_measures_of_accelerators_run(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    before = (ROOT / "benchmarks/RESULTS.md").read_bytes()
    gpu = import_module("gpu")
    gpu.main(["--tiny"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 8 and all(float(row.split("|")[3]) >= 0 for row in rows), rows
    assert (ROOT / "benchmarks/RESULTS.md").read_bytes() == before  # what a tiny run measures is no result
