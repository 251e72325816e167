"Commands that make classifiers."
import signal
from pathlib import Path

import pytest
import torch
from conftest import command_line, Forked, python
from tests.promises.test_no_file_is_lost import photographs
from tests.shell.test_run import wiseft

from wiseft.models.load import load_classifier
from wiseft.models.testing import pico_classifier


def test_train_names_a_method_whose_page_nobody_has_imported():
    code = "from wiseft.shell.train import _methods_from_options as f; print(f(None, None, None, 'lora:4', None))"
    assert "LoRA (train)" in python("-c", code).stdout


@pytest.fixture
def work(tmp_path, monkeypatch):
    "A folder with photographs and a tiny zero-shot classifier"
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photos")
    pico_classifier(["cat", "dog"]).save(tmp_path / "zeroshot")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


TUNE = ["finetune", "zeroshot", "photos", "--lr", "1e-3", "--batch-size", "4", "--epochs", "60", "--device", "cpu"]


@pytest.mark.slow
def test_ctrl_c_loses_no_step_of_a_training(work):
    "Without an option: a checkpoint beside the output, from which --resume goes on, bit for bit; at the end it is gone"
    file = Path("out-checkpoints/checkpoint.safetensors")
    training = Forked("log.txt", command_line, ".", *TUNE, "-o", "out")
    training.wait(lambda lines: file.exists())
    assert training.end(signal.SIGINT) == 130 and file.exists() and not Path("out").exists()
    log = Path("log.txt").read_text()
    assert f"is in {file.parent} until the end" in log and "SIGINT: step" in log and "with --resume" in log, log
    assert "Traceback" not in log
    assert "belongs to an earlier training: --resume goes on with it" in wiseft(*TUNE, "-o", "out", code=1).stderr
    assert "resumes epoch" in wiseft(*TUNE, "-o", "out", "--resume").stderr
    assert not file.parent.exists()
    wiseft(*TUNE, "-o", "whole")
    assert load_classifier("out").hash == load_classifier("whole").hash
    assert not Path("whole-checkpoints").exists()


def test_force_begins_anew_and_keeps_files_of_others(work):
    "A checkpoint that is left is replaced; what else is in its folder stays, and so do checkpoints that were asked for"
    short = [*TUNE[:-4], "--epochs", "1"]
    wiseft(*short, "--checkpoints", "kept", "-o", "first")
    assert Path("kept/checkpoint.safetensors").exists() and not Path("first-checkpoints").exists()
    Path("kept").rename("out-checkpoints")
    Path("out-checkpoints/notes.txt").write_text("mine")
    assert "belongs to an earlier training" in wiseft(*short, "--seed", 1, "-o", "out", code=1).stderr
    wiseft(*short, "--seed", 1, "-o", "out", "--force")
    assert [p.name for p in Path("out-checkpoints").iterdir()] == ["notes.txt"]
