"Where classifiers are on the line between two ends."
from wiseft.models.compatible import places_between_ends
from wiseft.models.testing import pico_classifier
from wiseft.weights.merge import interpolate


def test_an_average_and_a_classifier_that_is_none_of_its_ends():
    start, finetuned, other = (pico_classifier(["cat", "dog"]) for _ in range(3))
    for moved, c in (0.01, finetuned), (0.02, other):
        c.head.weight.data.add_(moved)
        c.alpha = 1.0
    half = interpolate(start, finetuned, 0.5)
    assert places_between_ends(half, finetuned) == ((0.5, 1.0), [start.hash, finetuned.hash])
    assert places_between_ends(half, other) == ((0.0, 1.0), [])
