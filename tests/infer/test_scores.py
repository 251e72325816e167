"Names of classes, however many there are."
import time

from wiseft.infer.scores import distinct_names


def test_names_that_occur_twice_get_their_number_in_linear_time():
    assert distinct_names(["cat", "crane", "dog", "crane", "cat"]) == ["cat", "crane", "dog", "crane (3)", "cat (4)"]
    names = [f"class {i}" for i in range(100_000)]
    start = time.process_time()
    assert distinct_names([*names, "class 0"]) == [*names, "class 0 (100000)"]
    assert time.process_time() - start < 5  # comparing each with all before it takes minutes
