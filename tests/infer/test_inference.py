"What a page, which is one process, can't test of the pass over images."
import numpy as np
import pytest
import torch

from wiseft.data.objects import image_set
from wiseft.infer.inference import batches


@pytest.mark.parametrize("settings, expected", [({}, range(10)), (dict(shared=True), range(4, 8))])
def test_one_of_two_processes_gets_all_images_unless_it_shares(settings, expected, monkeypatch):
    for name, value in dict(rank=1, n_processes=2).items():
        monkeypatch.setattr(f"wiseft.infer.inference.{name}", lambda value=value: value)
    images = image_set((np.zeros((10, 8, 8, 3), dtype=np.uint8), np.arange(10) % 2), ["cat", "dog"])

    def transform(picture): return torch.zeros(3, 8, 8)
    read = batches(images, transform, [], 4, keep=False, progress=False, **settings)
    assert [i for idxs, _ in read for i in idxs] == list(expected)
