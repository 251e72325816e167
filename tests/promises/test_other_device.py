"Everything runs on a device that isn't the CPU; in a process of its own, as PyTorch can't be rid of a device again."
import os
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT, python

CHECKS = ROOT / "tests/other_device/checks.py"
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # where pip puts ninja


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the second device is built on Linux alone")


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    lacking = [tool for tool in ("g++", "ninja") if not shutil.which(tool, path=PATH)]
    if lacking:
        say = f"The second device is compiled, and this is not installed: {', '.join(lacking)}."
        pytest.fail(say) if os.environ.get("CI") else pytest.skip(say)
    return os.environ | dict(PATH=PATH, OTHER_DEVICE_BUILD=str(tmp_path_factory.mktemp("built")), OMP_NUM_THREADS="1")


CORE = "costs or bytes or test_sweep or test_evaluate or choose_alpha or predict or command_line or default_precision"


def test_the_core_runs_on_another_device(env):
    python("-m", "pytest", "-q", "-W", "ignore", CHECKS, "-k", CORE, env=env, timeout=3600)


@pytest.mark.slow
def test_everything_else_runs_on_another_device(env):
    python("-m", "pytest", "-q", "-W", "ignore", CHECKS, "-k", f"not ({CORE})", env=env, timeout=3600)


@pytest.mark.slow
def test_the_first_hour_on_a_card_is_tried(env, tmp_path):
    "Without the checks, which are above, and two processes that die, which are in test_processes.py."
    parts = "two_epochs", "no_waits", "measures", "largest", "compiled"
    python("-W", "ignore", ROOT/"benchmarks/first_hour.py", *parts, "-o", tmp_path/"page.md", env=env, timeout=3600)
    page = (tmp_path/"page.md").read_text()
    assert page.count("**passed**") == 3 and page.count("**not tried**") == 2, page
    assert "The numbers say nothing" in page
