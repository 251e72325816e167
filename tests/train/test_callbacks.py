"What needs several processes: stand-in images, which count for nothing."
import os
import socket
import subprocess
import sys

import pytest

SCRIPT = """
import numpy as np

from wiseft.data.suites import load_suite
from wiseft.models.testing import pico_classifier
from wiseft.train.callbacks import accuracy_now
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
print(accuracy_now(clip_learner(classifier, dls, progress=False)))
"""


@pytest.mark.slow
def test_the_initial_accuracy_counts_no_stand_in_images():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        place = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(s.getsockname()[1]), OMP_NUM_THREADS="1")
    processes = [subprocess.Popen([sys.executable, "-W", "ignore", "-c", SCRIPT], stdout=subprocess.PIPE, text=True,
                                  env=os.environ | place | dict(RANK=str(k), LOCAL_RANK=str(k))) for k in range(2)]
    for process in processes:
        assert abs(float(process.communicate(timeout=200)[0]) - 1/3) < 1e-9
