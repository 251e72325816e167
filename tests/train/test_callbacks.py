"What callbacks see: stand-in images of several processes, which count for nothing, busy cores, falling accuracy."
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.train.test_loaders import noise_images

from wiseft.models.testing import pico_classifier

SCRIPT = """
import numpy as np

from wiseft.data.suites import load_suite
from wiseft.models.testing import pico_classifier
from wiseft.train.callbacks import validation_accuracy
from wiseft.train.learner import clip_learner
from wiseft.train.loaders import clip_dataloaders

suite = load_suite("icons")
classifier = pico_classifier(suite.classnames)
classifier.head.weight.data.zero_() # it always answers with the first class, which the first image alone has
labels = np.asarray(suite.validation.labels)
first, others = np.flatnonzero(labels == 0)[:1], np.flatnonzero(labels != 0)[:2]
validation = suite.validation.subset([*first, *others])
dls = clip_dataloaders(suite.train.subset(range(4)), classifier, 2, validation, progress=False)
dls.valid.bs = 2 # the second batch has one image, and the first process has none of it
print(validation_accuracy(clip_learner(classifier, dls, progress=False)))
"""


@pytest.mark.slow
def test_the_initial_accuracy_counts_no_stand_in_images():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        place = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(s.getsockname()[1]), OMP_NUM_THREADS="1")
    processes = [subprocess.Popen([sys.executable, "-W", "ignore", "-c", SCRIPT], stdout=subprocess.PIPE, text=True,
                                  env=os.environ | place | dict(RANK=str(k), LOCAL_RANK=str(k))) for k in range(2)]
    for process in processes:
        assert abs(float(process.communicate(timeout=900)[0]) - 1/3) < 1e-9


SCHEDSTAT = Path("/proc/thread-self/schedstat")


@pytest.mark.skipif(not SCHEDSTAT.exists(), reason="a system that doesn't count it")
def test_the_wait_for_a_core_that_another_program_uses():
    "This thread and a process that never rests share one core for half a second."
    from wiseft.train.callbacks import core_wait

    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [min(cores)])
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])  # on the same one
    try:
        begun, before = time.perf_counter(), core_wait()  # in this order the wait is never longer than the time
        while time.perf_counter() < begun + 0.5:
            pass
        assert 0.1 < (core_wait() - before) / (time.perf_counter() - begun) <= 1
    finally:
        other.kill()
        other.wait()
        os.sched_setaffinity(0, cores)


def test_worse_than_before_in_the_midst_of_a_training(tmp_path):
    "All watched images are of the first class, the answer of an empty head; all others of the second one."
    from wiseft.train.learner import clip_learner
    from wiseft.train.loaders import clip_dataloaders

    start, images = pico_classifier(["a", "b"]), noise_images(tmp_path, 0)
    start.head.weight.data.zero_()
    watched, others = (images.subset(images.labels == k) for k in range(2))
    with pytest.warns(UserWarning, match="After epoch 2 accuracy on the 3 validation images is 0.0%"):
        clip_learner(start, clip_dataloaders(others, start, 3, watched), progress=False).fit_cosine(4, lr=1e-2)


def test_a_bar_shows_the_loss_and_the_time_left(tmp_path, monkeypatch):
    "While it trains; fastai's other passes have bars, too."
    from wiseft.train.learner import clip_learner
    from wiseft.train.loaders import clip_dataloaders

    monkeypatch.setattr("wiseft.train.learner.has_visible_bar", lambda: True)
    start, images = pico_classifier(["a", "b"]), noise_images(tmp_path, 0)
    learn = clip_learner(start, clip_dataloaders(images, start, 2, images))
    learn.validate()
    assert learn.progress.shown == ""
    learn.fit_cosine(2)
    learn.get_preds()
    assert re.fullmatch(r"\d+\.\d{4}, (\d+ s left)?", learn.progress.shown)


def test_the_smoothed_loss_that_is_shown_is_fastai_s():
    "After each batch; the first shows the loss itself, as the average's weights are made up for"
    from types import SimpleNamespace

    import torch
    from fastai.learner import AvgSmoothLoss

    from wiseft.train.callbacks import LossOnDevice
    ours, theirs = LossOnDevice(), AvgSmoothLoss()
    for metric in ours, theirs:
        metric.reset()
    for k, loss in enumerate([2., 1., .5, 4.]):
        for metric in ours, theirs:
            metric.accumulate(SimpleNamespace(loss=torch.tensor(loss), yb=[torch.zeros(1)]))
        assert float(ours.value) == pytest.approx(float(theirs.value))
        assert k or float(ours.value) == pytest.approx(2)
