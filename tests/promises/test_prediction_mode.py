"A prediction neither depends on a classifier's mode nor changes it, in however many threads."
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from wiseft.base.devices import eval_mode
from wiseft.data.suites import load_suite
from wiseft.models.testing import pico_classifier

IMAGES = 12


@pytest.fixture(scope="module")
def images():
    return load_suite("icons").test.subset(range(IMAGES))


@pytest.fixture
def frequent_switches():
    "Python changes from thread to thread as often as it can, as on a machine with many cores."
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_eight_threads_predict_with_a_classifier_that_is_in_training_mode(images, frequent_switches):
    classifier = pico_classifier(images.classnames)
    expected = [classifier.predict_image(images.open(i)) for i in range(IMAGES)]
    classifier.train()
    classifier.visual.bn1.eval()  # frozen
    modes = [m.training for m in classifier.modules()]
    state = {k: v.clone() for k, v in classifier.state_dict().items()}
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: classifier.predict_image(images.open(i % IMAGES)), range(8*IMAGES)))
    wrong = [i for i, result in enumerate(results) if not result.equals(expected[i % IMAGES])]
    assert not wrong
    assert [m.training for m in classifier.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in classifier.state_dict().items())


def test_two_classifiers_that_share_a_tower(images):
    "The tower is in evaluation mode until both are done, in whatever order they end."
    one = pico_classifier(images.classnames)
    other = one.with_text()
    assert other.visual is one.visual
    one.train()
    first, second = eval_mode(one), eval_mode(other)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not one.visual.bn1.training
    second.__exit__(None, None, None)
    assert one.visual.bn1.training
