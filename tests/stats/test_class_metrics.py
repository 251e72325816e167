"Intervals of metrics that resampling gives."
import numpy as np

from wiseft.stats.class_metrics import bootstrap


def test_fewer_than_ten_images_are_not_drawn():
    for n, drawn in (9, False), (10, True):
        counts = np.c_[np.arange(n) % 3 > 0, np.ones(n)]
        intervals = {bootstrap(counts, lambda s: s[:, 0]/s[:, 1], rng=np.random.default_rng(i)) for i in range(3)}
        assert (len(intervals) > 1) == drawn
