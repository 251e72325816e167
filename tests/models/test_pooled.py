"A tower that computes only what it pools gives the features and gradients of open_clip, in every architecture."
import copy
import json
import logging
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import later, slow_except

from wiseft.base.lazy import open_clip
from wiseft.models.testing import pico_clip

without_pooling_shortcut, only_pooled = later("wiseft.models.pooled", "without_pooling_shortcut", "only_pooled")

CONFIGS = Path(find_spec("open_clip").origin).parent / "model_configs"


def small_towers():
    "Name -> settings of each image tower of open_clip's own, once, with few blocks and small images."
    towers = {}
    for config in sorted(CONFIGS.glob("*.json"), key=lambda path: path.stem):
        vision = json.loads(config.read_text())["vision_cfg"]
        if "timm_model_name" not in vision:
            if isinstance(vision["layers"], list):  # a ResNet
                vision |= dict(layers=[1] * 4, image_size=64)
            else:
                vision |= dict(layers=2, image_size=2 * vision["patch_size"])
            towers.setdefault(json.dumps(vision, sort_keys=True), config.stem)
    return {name: json.loads(vision) for vision, name in towers.items()}


TOWERS = small_towers()


def build(vision):
    logging.disable(logging.WARNING)
    text = dict(context_length=4, vocab_size=4, width=64, heads=1, layers=1)
    torch.manual_seed(0)
    try:
        return open_clip.CLIP(64, open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**text)).visual
    finally:
        logging.disable(logging.NOTSET)


def changed_layers(tower):
    return [m for m in tower.modules() if type(m).__module__ == "wiseft.models.pooled"]


def features_and_gradients(tower, x):
    out = tower(x)
    (out[0] if isinstance(out, tuple) else out).square().sum().backward()
    return out, {name: p.grad for name, p in tower.named_parameters()}


@pytest.mark.parametrize("name", slow_except(TOWERS, ["RN101", "ViT-B-32"]))
def test_features_and_gradients_are_open_clips(name):
    theirs = build(TOWERS[name]).train()
    ours = only_pooled(copy.deepcopy(theirs))
    pools = TOWERS[name].get("attentional_pool") or TOWERS[name].get("pool_type", "tok") != "tok"
    assert len(changed_layers(ours)) == (0 if pools or TOWERS[name].get("output_tokens") else 1)
    if not changed_layers(ours):
        return
    size = TOWERS[name]["image_size"]
    x = torch.randn(2, 3, size, size)
    torch.manual_seed(0)  # patches may be dropped
    a, grads = features_and_gradients(theirs, x)
    torch.manual_seed(0)
    b, ours_grads = features_and_gradients(ours, x)
    assert (a - b).norm() <= 1e-5 * a.norm()
    largest = max(g.norm() for g in grads.values() if g is not None)
    for k, g in grads.items():
        if g is not None:
            assert (g - ours_grads[k]).norm() <= 1e-5 * largest, k
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_all_places_again():
    tower = only_pooled(build(TOWERS["RN101"]))
    assert changed_layers(tower) and not changed_layers(without_pooling_shortcut(tower))


def test_the_last_block_calls_its_hooks():
    visual, seen = pico_clip(transformer=True).model.visual, []
    last = visual.transformer.resblocks[-1]
    last.register_full_backward_hook(lambda *_: seen.append("backward"))
    visual(torch.randn(2, 3, 48, 48)).sum().backward()
    last.register_forward_pre_hook(lambda *_: seen.append("before"))
    visual(torch.randn(2, 3, 48, 48))
    assert seen == ["backward", "before"]
