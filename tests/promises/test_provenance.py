"What the reproductions draw from says which command made it, from which source, with what and when."
import csv
import hashlib
import json
import re
from datetime import date
from functools import cache

import pytest
from conftest import ROOT, needs_history, run, tree

pytestmark = needs_history
RECORDS = [p for p in tree() if p.name == "provenance.json"]
SAID = {"command", "seconds", "source_sha256", "model_sha256", "suite_sha256", "date", "machine", "versions"}


@cache
def versions(path):
    "SHA-256 of a file as it is, if it still is, and as it was at every commit, merges too."
    hashes = {hashlib.sha256((ROOT / path).read_bytes()).hexdigest()} if (ROOT / path).exists() else set()
    log = run("git", "log", "-m", "--full-history", "--format=%H", "--diff-filter=AM", "--", path, cwd=ROOT)
    for commit in set(log.stdout.split()):
        hashes.add(run("sh", "-c", f"git show {commit}:{path} | sha256sum", cwd=ROOT).stdout.split()[0])
    return hashes


@pytest.mark.parametrize("path", RECORDS, ids=str)
def test_provenance(path):
    entries = json.loads((ROOT / path).read_text())
    assert entries, "one entry for each invocation that made the results"
    for entry in entries:
        assert not SAID - set(entry)
        assert date.fromisoformat(entry["date"]) <= date.today()
        script = re.match(r"python (\w+\.py)", entry["command"])[1]
        assert script in entry["source_sha256"] and {"wiseft", "torch", "python"} <= set(entry["versions"])
        for name, sha in entry["source_sha256"].items():
            places = [folder / name for folder in path.parents]
            assert any(sha in versions(p) for p in places), f"{name} was never what {path} says it was made with"


def test_the_attack_was_on_all_of_these():
    "`make attack` was run on every reader and writer that there is, newer ones by themselves; nothing was wrong."
    from crash import SLOW, WRITERS
    from programs import PROGRAMS
    from readers import READERS

    rows = list(csv.DictReader((ROOT / "tests/attacks.csv").open(encoding="utf-8")))
    writers = WRITERS | SLOW | PROGRAMS
    assert {r["what"] for r in rows} == {w.__doc__ for w in [*writers.values(), *READERS]}
    kills = sum(int(r["tried"]) for r in rows if r["old kept"])
    assert kills >= 800 and sum(int(r["tried"]) for r in rows) - kills >= 60_000
    assert {r["wrong"] for r in rows} == {"0"}
    for version in {r["version"] for r in rows}:
        run("git", "merge-base", "--is-ancestor", version, "HEAD", cwd=ROOT)  # or an error
