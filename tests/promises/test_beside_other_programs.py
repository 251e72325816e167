"What else runs on the machine changes no weights; without shards, a hint says how to be faster."
import json
import os
import re
import sys

import pytest
from conftest import run

POLICY = "OMP_WAIT_POLICY"
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", POLICY)}

TRAINING = """
import json
import os
import subprocess
import sys

import torch

import wiseft.train.callbacks
from wiseft.data.suites import load_suite
from wiseft.models.testing import pico_classifier
from wiseft.train.learner import finetune

wiseft.train.callbacks.PERIOD = .2
suite = load_suite("icons")
images, validation = suite.train.subset(range(100)), suite.validation.subset(range(20))
initial = pico_classifier(suite.classnames)

def finetuned(shards):
    return finetune(initial, images, validation, epochs=1, batch_size=20, lr=1e-4, precision="fp32", shards=shards)

alone = [finetuned(shards) for shards in (0, 2)]
others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
try:
    busy = [finetuned(shards) for shards in (0, 2)]
finally:
    for process in others:
        process.kill()
same = [one.hash == other.hash for one, other in zip(alone, busy)]
threads = [classifier.recipe.get("threads") for classifier in (*alone, *busy)]
print(json.dumps(dict(same=same, threads=threads, number=torch.get_num_threads())))
"""


@pytest.fixture(scope="module")
def training():
    return run(sys.executable, "-W", "ignore", "-c", TRAINING, env=ENVIRONMENT | {POLICY: "PASSIVE"})


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_beside_other_programs(training):
    result = json.loads(training.stdout.splitlines()[-1])
    assert result["same"] == [True, True]
    assert result["threads"] == [result["number"], None]*2


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/thread-self/schedstat"), reason="the system doesn't count waiting")
def test_one_hint_is_printed_beside_other_programs(training):
    "By the training without shards."
    if json.loads(training.stdout.splitlines()[-1])["number"] == 1:
        pytest.skip("one core: there is nothing to choose")
    assert training.stderr.count("set OMP_NUM_THREADS=1 before they start") == 1


@pytest.mark.parametrize("given, spins", [({}, "'0'"), ({POLICY: "ACTIVE"}, "'[1-9]")])
def test_threads_of_a_command_sleep_while_they_wait_unless_told_otherwise(given, spins):
    "GNU's OpenMP prints what is in force when PyTorch loads it."
    environment = ENVIRONMENT | given | dict(OMP_DISPLAY_ENV="verbose")
    shown = run(sys.executable, "-m", "wiseft", "data", "icons", env=environment).stderr
    if "GOMP_" not in shown:
        pytest.skip("PyTorch comes with another OpenMP here")
    assert re.search(f"GOMP_SPINCOUNT = {spins}", shown), shown
