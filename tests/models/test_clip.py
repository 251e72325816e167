"""Convolutions whose backward pass crashes on a CPU in channels-last memory (oneDNN#6035) get contiguous images.
A loaded checkpoint keeps its weights once."""
import os
import sys
from dataclasses import replace

import pytest
import torch
from conftest import later, python

from wiseft.models.testing import pico_clip

load_clip, load_classifier, zeroshot_classifier = later("wiseft.models.clip", "load_clip"), later(
    "wiseft.models.load", "load_classifier"), later("wiseft.models.classifier", "zeroshot_classifier")

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


def test_longer_texts_are_read_as_by_open_clip(tmp_path):
    "Features are those of `force_context_length`, and a saved CLIP keeps its length."
    import open_clip

    short = pico_clip()
    short.save(tmp_path/"short")
    longer = load_clip(tmp_path/"short", context_length=20)
    theirs = open_clip.create_model(f"local-dir:{tmp_path/'short'}", force_context_length=20).eval()
    texts = ["a star", "one two three four five six seven eight nine ten eleven twelve thirteen"]
    with torch.no_grad():
        expected = theirs.encode_text(open_clip.tokenizer.SimpleTokenizer(context_length=20)(texts), normalize=True)
    assert torch.equal(longer.encode_text(texts), expected)
    assert not torch.allclose(longer.encode_text(texts)[1], short.encode_text(texts)[1], atol=1e-3)
    zeroshot_classifier(longer, ["cat", "dog"], ["a {}"]).save(tmp_path/"longer")
    again = load_classifier(tmp_path/"longer").clip
    assert torch.equal(again.encode_text(texts), expected) and again.tokenizer("").shape == (1, 20)


@pytest.mark.parametrize("length", [2, 1.5, "24", True, 5000])
def test_a_context_length_that_is_none(length):
    with pytest.raises(ValueError, match="expected a whole number of tokens, 3 to 4096"):
        load_clip("iconclip", context_length=length)


@pytest.mark.parametrize("text, why", [
    (dict(hf_model_name="roberta-base"), r"text tower of transformers \(roberta-base\)"),
    (dict(embed_cls=True), "class token among the positions"),
    (None, "has no text tower")])
def test_positions_that_are_no_table_are_refused(text, why):
    from wiseft.models.build import resize_texts
    from wiseft.models.sources import find_source

    source = find_source("iconclip", None, None, None)
    source = replace(source, config={k: v for k, v in source.config.items() if k != "text_cfg"} | (
        dict(text_cfg=source.config["text_cfg"] | text) if text else {}))
    with pytest.raises(ValueError, match=why):
        resize_texts(source, 24)


def test_tokens_are_counted_past_the_end_also_where_the_end_is_the_padding():
    "SigLIP's first tokenizer pads with its end: a text of as many tokens as the model reads loses its last one."
    from wiseft.models.head import text_lengths, token_counts

    class Ends:
        def __call__(self, texts, context_length=6):
            rows = [[*map(ord, t)][:context_length-1] for t in ([texts] if isinstance(texts, str) else texts)]
            return torch.tensor([row + [1]*(context_length - len(row)) for row in rows])

    clip = pico_clip()
    clip.model.context_length = 6
    odd = replace(clip, tokenizer=Ends())
    assert token_counts(odd, ["ab", "abcde", "abcdef", "abcdefghi"]).tolist() == [2, 5, 7, 9]
    table = text_lengths(odd, ["ab"]*3 + ["abcdefghi"])
    assert table.to_dict("list") == {"tokens": ["1 to 6", "9 to 9"], "captions": [1, 1], "pairs": [3, 1],
                                     "share of pairs": [.75, .25], "cut": [False, True]}
