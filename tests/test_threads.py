"All threads or one: nobody's number is changed, and a training keeps the number that it was computed with."
import json
import os
import sys

import pytest
from conftest import run

VARIABLES = "OMP_NUM_THREADS", "MKL_NUM_THREADS"
FREE = {k: v for k, v in os.environ.items() if k not in VARIABLES}

IMPORT = """
import os
import torch
before = dict(os.environ), torch.get_num_threads(), torch.get_num_interop_threads()
import wiseft.all
import wiseft.shell.cli
from wiseft.base.threads import number_is_unset
same = (dict(os.environ), torch.get_num_threads(), torch.get_num_interop_threads()) == before
unset = number_is_unset()
torch.set_num_threads(torch.get_num_threads() + 1)
print(same, torch.get_num_threads() - 1, unset, number_is_unset())
"""

SET_BY_ENVIRONMENT = """
from wiseft.base.threads import number_is_unset
print(number_is_unset())
"""

WORK = """
import json
import sys
from pathlib import Path

import torch
from fastai.callback.core import Callback

import wiseft.base.threads
from wiseft.data.suites import load_suite
from wiseft.infer.evaluation import evaluate
from wiseft.train.learner import finetune
from wiseft.models.testing import pico_classifier

room, cores = Path(sys.argv[1]), torch.get_num_threads()
suite = load_suite("icons")
train, watched = suite.train.subset(range(100)), suite.validation.subset(range(20))
start = pico_classifier(suite.classnames)

class Seen(Callback):
    "The number of threads of each step; Ctrl-C after some step"
    order = 95

    def __init__(self, stop=None):
        self.stop, self.numbers = stop, []

    def after_batch(self):
        if self.training:
            self.numbers.append(torch.get_num_threads())
            if len(self.numbers) == self.stop:
                raise KeyboardInterrupt

def tuned(steps, folder=None, resume=False, epochs=2):
    return finetune(start, train, watched, epochs=epochs, batch_size=10, lr=1e-4, precision="fp32", progress=False,
                    cbs=steps, checkpoint_dir=folder, checkpoint_steps=4, resume=resume)

def stopped(steps, folder):
    try:
        tuned(steps, folder)
    except KeyboardInterrupt:
        return torch.get_num_threads()

# a training that began with one thread goes on with one, to the bit, where all would be free
torch.set_num_threads(1)
whole = tuned(Seen())
stopped(Seen(6), room / "one")
torch.set_num_threads(cores)
steps = Seen()
resumed = tuned(steps, room / "one", resume=True)
told = dict(cores=cores, same=whole.hash == resumed.hash, resumed=steps.numbers, resumed_recipe=resumed.recipe["threads"],
            whole_recipe=whole.recipe["threads"], after_resumed=torch.get_num_threads())

# where the thread that computes doesn't run all the time, both numbers are tried
wiseft.base.threads.thread_time = lambda: 0.
steps = Seen()
tried = tuned(steps, epochs=3)
told |= dict(tried=steps.numbers, tried_recipe=tried.recipe["threads"], after_tried=torch.get_num_threads())
told |= dict(after_stopped=stopped(Seen(2), room / "two"))

class Broken:
    transform, classnames, method, seen = start.transform, start.classnames, "broken", []

    def __call__(self, x):
        self.seen.append(torch.get_num_threads())
        if len(self.seen) == 2:
            raise ZeroDivisionError
        return start(x)

try:
    evaluate(Broken(), suite.train.subset(range(100)), batch_size=10, progress=False)
except ZeroDivisionError as e:
    kept = e  # and its frames
    told |= dict(passed=Broken.seen, after_passed=torch.get_num_threads())
print(json.dumps(told))
"""


def said(code, *args, **env):
    "The last line that a program prints, where no number of threads is set but by `env`"
    return run(sys.executable, "-W", "ignore", "-c", code, *args, env=FREE | env).stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    told = json.loads(said(WORK, tmp_path_factory.mktemp("threads")))
    if told["cores"] == 1:
        pytest.skip("one core leaves nothing to choose")
    return told


def test_an_import_changes_nothing_and_a_number_is_seen_to_be_set():
    same, cores, unset, unset_after_it_was_set = said(IMPORT).split()
    assert same == "True" and unset == str(int(cores) > 1) and unset_after_it_was_set == "False"
    assert said(SET_BY_ENVIRONMENT, OMP_NUM_THREADS=cores) == "False"


def test_a_training_that_began_with_one_thread_goes_on_with_one(told):
    assert told["resumed"] == [1] * 16 and told["same"]
    assert told["resumed_recipe"] == told["whole_recipe"] == 1


def test_both_numbers_are_tried_and_kept(told):
    steps, cores = told["tried"], told["cores"]
    assert steps[:2] == [cores, 1] and len(steps) == 30
    assert set(told["tried_recipe"]) == {1, cores}
    assert len(set(steps[6:20])) == 1  # one trial is at most six steps, and the next one comes after twenty
    assert told["passed"] == [cores, 1]


def test_the_number_from_before_is_back(told):
    assert {told[f"after_{what}"] for what in ("resumed", "tried", "stopped", "passed")} == {told["cores"]}
