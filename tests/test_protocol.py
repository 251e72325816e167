"The protocol was written down before the test families were looked at, and stayed as it was: the history says so."
import pytest
from conftest import ROOT, run

PROTOCOL, RESULTS = "wiseft/data/protocol.json", "nbs/reproductions/icons/results.csv"


def git(*args, ok=True):
    return run("git", *args, cwd=ROOT, ok=ok)


def commits(path, *args):
    "Commits that touched `path`, newest first."
    return git("log", "--format=%H", *args, "--", path).stdout.split()


@pytest.fixture(autouse=True)
def history():
    if git("rev-parse", "--is-shallow-repository").stdout.strip() == "true":
        pytest.skip("shallow clone: git fetch --unshallow")


def test_protocol_comes_first():
    protocol, results = commits(PROTOCOL)[-1], commits(RESULTS)[-1]
    assert protocol != results, "protocol and results came in one commit"
    assert git("merge-base", "--is-ancestor", protocol, results, ok=None).returncode == 0, "the results are older than the protocol"


def test_protocol_never_changed():
    assert len(commits(PROTOCOL)) == 1
    assert not git("diff", "HEAD", "--", PROTOCOL).stdout
