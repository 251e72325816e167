"Everything runs on a device that isn't the CPU; in a process of its own, as PyTorch can't be rid of a device again."
import os
import shutil
import sys
from pathlib import Path

import pytest
from conftest import python

CHECKS = Path(__file__).resolve().parent/"other_device/checks.py"
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # where pip puts ninja


@pytest.mark.skipif(sys.platform != "linux", reason="the second device is built on Linux alone")
def test_everything_runs_on_another_device(tmp_path):
    lacking = [tool for tool in ("g++", "ninja") if not shutil.which(tool, path=PATH)]
    if lacking:
        say = f"The second device is compiled, and this is not installed: {', '.join(lacking)}."
        pytest.fail(say) if os.environ.get("CI") else pytest.skip(say)
    env = os.environ | dict(PATH=PATH, OTHER_DEVICE_BUILD=str(tmp_path), OMP_NUM_THREADS="1")
    python("-m", "pytest", "-q", "-W", "ignore", CHECKS, env=env, timeout=900)
