"""Convolutions whose backward pass crashes on a CPU in channels-last memory (oneDNN#6035) get contiguous images.
A loaded checkpoint keeps its weights once."""
import os
import sys

import pytest
from conftest import python

from wiseft.models.testing import pico_clip

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


# what oneDNN may use; it crashes with both
@pytest.mark.parametrize("instructions", ["AVX512_CORE", pytest.param("AVX2", marks=pytest.mark.slow)])
def test_fastvit_trains_on_a_cpu(instructions, tmp_path):
    env = os.environ | dict(ONEDNN_MAX_CPU_ISA=instructions)
    assert python("-c", TRAIN_FASTVIT, tmp_path, env=env).stdout.split() == ["trained", "True"]


LOAD_PICKLE = """
import logging, re, sys, torch, open_clip
from pathlib import Path
from wiseft.models.clip import load_clip

def resident():
    return int(re.search(r'VmRSS:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])/1e3

logging.disable(logging.WARNING)
file = Path(sys.argv[1], 'vit.pt')
if sys.argv[2] == 'write':
    torch.save(open_clip.create_model('ViT-B-32').state_dict(), file)
else:
    before = resident()
    clip = load_clip('ViT-B-32', file, preprocess=dict(mean=[.5]*3, std=[.5]*3), quick_gelu=False)
    print(resident() - before, sum(t.nbytes for t in clip.model.state_dict().values())/1e6)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator, and its measure of memory")
def test_a_loaded_checkpoint_keeps_its_weights_once(tmp_path):
    python("-c", LOAD_PICKLE, tmp_path, "write")
    growth, weights = map(float, python("-W", "ignore", "-c", LOAD_PICKLE, tmp_path, "read").stdout.split())
    assert weights > 600 and growth < 1.3 * weights


def test_provenance_names_the_file_of_the_weights():
    assert pico_clip().provenance["file"] == "open_clip_model.safetensors"
