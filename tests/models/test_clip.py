"Convolutions whose backward pass crashes on a CPU in channels-last memory (oneDNN#6035) get contiguous images."
import os

import pytest
from conftest import python

TRAIN_FASTVIT = """
import sys
import numpy as np, timm, torch
from pathlib import Path
from PIL import Image
from wiseft.models.tower import image_model
from wiseft.models.vision import blank_classifier
from wiseft.train.learner import finetune

folder = Path(sys.argv[1])
for i in range(8):
    path = folder/'ab'[i % 2]/f'{i}.png'
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(path)
clip = image_model(timm.create_model('fastvit_t8'), dict(size=256, mean=[0, 0, 0], std=[1, 1, 1]))
classifier = blank_classifier(clip, ['a', 'b'])
finetuned = finetune(classifier, folder, epochs=1, batch_size=6, precision='fp32', crop_scale=None, progress=False)
assert all(torch.isfinite(p).all() for p in finetuned.parameters())
print('trained', finetuned.hash != classifier.hash)
"""


@pytest.mark.parametrize("instructions", ["AVX512_CORE", "AVX2"])  # what oneDNN may use; it crashes with both
def test_fastvit_trains_on_a_cpu(instructions, tmp_path):
    env = os.environ | dict(ONEDNN_MAX_CPU_ISA=instructions)
    assert python("-c", TRAIN_FASTVIT, tmp_path, env=env).stdout.split() == ["trained", "True"]
