"The protocol was written down before the test families were looked at, and stayed as it was: the history says so."
import hashlib
import json

import pytest
from conftest import ROOT, needs_history, run

pytestmark = needs_history
PLANNED = [
    ("wiseft/data/protocol.json", "nbs/reproductions/icons/results.csv"),
    ("wiseft/data/protocol-2.json", "nbs/reproductions/protocol2/runs.jsonl"),
    ("nbs/reproductions/protocol2/reserve.csv", "nbs/reproductions/protocol2/runs.jsonl"),
]
LATER = [  # plans that say by themselves what was amended, and when
    ("nbs/reproductions/remembered/plan.json", "nbs/reproductions/remembered/restored.csv"),
    ("nbs/reproductions/best_settings/plan.json", "nbs/reproductions/best_settings/gains.csv"),
    ("nbs/reproductions/starts/plan.json", "nbs/reproductions/starts/starts.csv"),
]


def git(*args, ok=True):
    return run("git", *args, cwd=ROOT, ok=ok)


def commits(path, *args):
    "Commits that touched `path`, newest first."
    return git("log", "--format=%H", *args, "--", path).stdout.split()


@pytest.fixture(autouse=True)
def history():
    if git("rev-parse", "--is-shallow-repository").stdout.strip() == "true":
        pytest.skip("shallow clone: git fetch --unshallow")


@pytest.mark.parametrize("protocol, results", PLANNED + LATER)
def test_protocol_comes_first(protocol, results):
    if not commits(results):
        assert not (ROOT / results).exists(), f"{results} is not committed"
        pytest.skip("not measured yet")
    decided, measured = commits(protocol)[-1], commits(results)[-1]
    assert decided != measured, "protocol and results came in one commit"
    assert git("merge-base", "--is-ancestor", decided, measured,
               ok=None).returncode == 0, "the results are older than the protocol"


@pytest.mark.parametrize("protocol", {p: 0 for p, _ in PLANNED})
def test_protocol_never_changed(protocol):
    assert len(commits(protocol)) == 1
    assert not git("diff", "HEAD", "--", protocol).stdout


def test_the_reserve_is_the_one_that_was_named():
    reserve = json.loads((ROOT / "wiseft/data/protocol-2.json").read_text())["reserve"]
    assert hashlib.sha256((ROOT / reserve["file"]).read_bytes()).hexdigest() == reserve["sha256"]
