"Two and three processes on a CPU give what one gives, and end as one."
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from socket import socket

import numpy as np
import pandas as pd
import pytest
from conftest import later, slow_except

given, make_data, until_stopped, weights = later("together", "given", "make_data", "until_stopped", "weights")
HERE = Path(__file__).resolve().parent.parent
FINETUNE = ("finetune zeroshot photos --epochs 20 --batch-size 16 --lr 1e-4 --precision fp32 --checkpoints run "
            "-o finetuned")


def environment(rank, n, port):
    "What a launcher tells each process."
    place = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=n, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    return os.environ | {k: str(v) for k, v in place.items()} | dict(OMP_NUM_THREADS="1")


def free_port():
    with socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def launch(n, *args, cwd=None):
    "n processes of this Python, by hand."
    port = free_port()
    command = [sys.executable, *map(str, args)]
    return [subprocess.Popen(command, cwd=cwd, env=environment(k, n, port), text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE) for k in range(n)]


def torchrun(n, command, folder):
    "What n processes of a command of wiseft say, started as people start them."
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n),
                "--master-port", str(free_port())]
    return subprocess.run([*launcher, "-m", "wiseft", *command.split()], cwd=folder, text=True, capture_output=True,
                          timeout=900, env=os.environ | dict(OMP_NUM_THREADS="1"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    make_data(folder)
    return folder


@pytest.fixture(scope="module")
def results(folder):
    "A function: number of processes -> what they wrote down."
    @cache
    def of(n):
        for p in launch(n, HERE/"together.py", folder, folder/f"{n}.npz"):
            output = p.communicate(timeout=900)
            assert p.returncode == 0, output
        return dict(np.load(folder/f"{n}.npz"))

    return of


two_and_three = pytest.mark.parametrize("n", slow_except([2, 3], [2]))


@two_and_three
@pytest.mark.parametrize("training", ["plain", "adamw", "head", "flyp", "carot", "averaged", "lora", "sigmoid",
                                      "flyp of siglip", "flyp in parts", "several labels"])
def test_weights_are_those_of_one_process(results, training, n):
    starts = {"lora": "start of lora", "sigmoid": "start of siglip", "flyp of siglip": "start of siglip",
              "several labels": "start of several labels"}
    moved, different, start = 0, 0, starts.get(training, "start")
    for k, one in results(1).items():
        name, _, weight = k.partition("/")
        if name != training or "." not in weight:
            continue
        different = max(different, np.abs(results(n)[k] - one).max())
        moved = max(moved, np.abs(results(1).get(f"{start}/{weight}", one) - one).max())  # text towers were not kept
    assert different <= 1e-5 and moved >= 30*different


@two_and_three
def test_one_process_goes_on_with_the_training_of_several(results, folder, n):
    resumed = until_stopped(*given(folder), folder/f"stopped-{n}", resume=True)
    assert max(np.abs(results(1)[f"whole/{k}"] - v).max() for k, v in weights(resumed).items()) <= 1e-5


@two_and_three
def test_losses_and_accuracies_are_those_of_one_process(results, n):
    for k in ("losses", "epochs", "before"):
        np.testing.assert_allclose(results(n)[f"plain/{k}"], results(1)[f"plain/{k}"], atol=2e-6)
    assert len(results(n)["plain/losses"]) == 12


@two_and_three
def test_features_and_tables_are_equal_row_for_row(results, n):
    for k in ("features/rows", "features/labels", "features/n", "sweep/table", "sweep/kept", "retrieval/table",
              "retrieval/kept", "several labels/table", "several labels/kept"):
        assert np.array_equal(results(n)[k], results(1)[k]), k
    assert len(results(n)["features/rows"]) == 130 and results(n)["features/n"] == 1


@two_and_three
def test_nan_in_one_process_stops_all_with_the_same_words(results, n):
    assert results(n)["spoilt/error"] == results(1)["spoilt/error"]
    assert "stopped at step 3" in str(results(n)["spoilt/error"])


@two_and_three
def test_statistics_of_whole_batches_are_refused(results, n):
    assert "train_batchnorm=True takes statistics over whole batches" in str(results(n)["refused/error"])
    assert "refused/error" not in results(1)


def ended(processes):
    "What they wrote to standard error until all were gone."
    return [p.communicate(timeout=900)[1] for p in processes]


@pytest.mark.slow
def test_a_killed_process_ends_all_and_another_number_goes_on(folder):
    three = launch(3, "-m", "wiseft", *FINETUNE.split(), cwd=folder)
    checkpoint = folder/"run/checkpoint.safetensors"
    while not checkpoint.exists():
        assert all(p.poll() is None for p in three), ended(three)
        time.sleep(.02)
    three[1].send_signal(signal.SIGKILL)
    output = ended(three)
    assert all(p.returncode for p in three)
    lines = [line for line in "".join(output).splitlines() if "process" in line or "rror" in line]
    assert lines == ["error: Another of the 3 processes has died, perhaps killed for want of memory, and the others "
                     "end with it."], output
    assert {p.name for p in folder.glob("*finetuned*")} == set() and not list(folder.glob("run/.*"))
    again = torchrun(2, FINETUNE + " --resume", folder)
    assert again.returncode == 0 and again.stderr.count("wrote finetuned") == 1, again.stderr
    assert "epoch 2 of 20" in again.stderr and "epoch 1 of 20" not in again.stderr


@pytest.mark.slow
def test_an_error_of_one_is_the_message_of_all(folder):
    two = launch(2, "-m", "wiseft", "sweep", "zeroshot", "nowhere", "--suite", "icons", cwd=folder)
    output = "".join(ended(two))
    assert output.count("error:") == 1 and "nowhere" in output, output


@pytest.mark.slow
def test_sweep_on_the_command_line(folder):
    done = torchrun(2, "sweep zeroshot zeroshot --alphas 0,0.5 --reference photos --shift shift -o two.csv", folder)
    assert done.returncode == 0 and done.stdout.count("weight-space") == 1, done.stderr
    table = pd.read_csv(folder/"two.csv")
    assert set(table.n[table.dataset == "reference"]) == {130}
    assert set(table.n_skipped[table.dataset == "reference"]) == {1}


def test_what_one_process_does_is_refused_to_several(folder):
    two = launch(2, "-m", "wiseft", "methods", cwd=folder)
    output = "".join(ended(two))
    message = "`wiseft methods` runs in one process, and the environment variable WORLD_SIZE is '2'. Start it"
    assert output.count(message) == 1
