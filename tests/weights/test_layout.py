"Depths of real architectures: built on the meta device, merged, and trained for a step"

import json
import re
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn


@pytest.fixture(scope="module", autouse=True)
def imports():
    "What is heavy is imported when the first test runs, not when tests are collected."
    global open_clip, timm, torchvision, save_file, lines, lora, r_adapter, OwnTower, tower_blocks, tower_patterns
    global tower_positions, transformer_matrices, image_classifier, inner_layers, choose_weights, plain_weights
    global lr_factor_per_weight, write_merged, Positions, merge, WeightPath, TensorFile
    import open_clip
    import timm
    import torchvision
    from safetensors.torch import save_file

    from wiseft.methods.lines import lines
    from wiseft.methods.lora import lora
    from wiseft.methods.r_adapter import r_adapter
    from wiseft.models.tower import OwnTower, tower_blocks, tower_patterns, tower_positions, transformer_matrices
    from wiseft.models.vision import image_classifier
    from wiseft.train.losses import inner_layers
    from wiseft.train.trainable import choose_weights, plain_weights, lr_factor_per_weight
    from wiseft.weights.files import write_merged
    from wiseft.weights.layout import Positions
    from wiseft.weights.merge import merge
    from wiseft.weights.path import WeightPath
    from wiseft.weights.safetensors_io import TensorFile


TEXT = dict(context_length=4, vocab_size=4, width=64, heads=1, layers=2)
# name of a model: number of its blocks, modules before the first block, modules after the last
OTHERS = {
    "vit_tiny_patch16_224": (12, {"cls_token", "pos_embed", "patch_embed"}, {"norm", "head"}),
    "vit_base_patch16_clip_224": (12, {"cls_token", "pos_embed", "patch_embed", "norm_pre"}, {"norm", "head"}),
    "vit_small_patch14_reg4_dinov2": (12, {"cls_token", "reg_token", "pos_embed", "patch_embed"}, {"norm"}),
    "vit_base_patch16_siglip_224": (12, {"pos_embed", "patch_embed"}, {"norm", "attn_pool"}),
    "deit_tiny_distilled_patch16_224": (
        12,
        {"cls_token", "dist_token", "pos_embed", "patch_embed"},
        {"norm", "head", "head_dist"},
    ),
    "beit_base_patch16_224": (12, {"cls_token", "patch_embed"}, {"fc_norm", "head"}),
    "eva02_tiny_patch14_224": (12, {"cls_token", "pos_embed", "patch_embed"}, {"fc_norm"}),
    "hiera_tiny_224": (12, {"pos_embed", "patch_embed"}, {"head"}),
    "swin_tiny_patch4_window7_224": (4, {"patch_embed"}, {"norm", "head"}),
    "vitamin_small_224": (14, {"pos_embed", "patch_embed"}, {"fc_norm", "head"}),
    "convnext_tiny": (4, {"stem"}, {"head"}),
    "fastvit_t8": (4, {"stem"}, {"final_conv", "head"}),
    "resnet50": (4, {"conv1", "bn1"}, {"fc"}),
    "regnety_004": (4, {"stem"}, {"head"}),
    "efficientnet_b0": (7, {"conv_stem", "bn1"}, {"conv_head", "bn2", "classifier"}),
    "tf_efficientnet_lite0": (7, {"conv_stem", "bn1"}, {"conv_head", "bn2", "classifier"}),
    "mobilenetv3_small_100": (6, {"conv_stem", "bn1"}, {"conv_head", "classifier"}),
    "torchvision:resnet50": (4, {"conv1", "bn1"}, {"fc"}),
    "torchvision:convnext_tiny": (7, {"features"}, {"classifier"}),
    "torchvision:vit_b_16": (12, {"class_token", "conv_proj", "encoder"}, {"encoder", "heads"}),
    "torchvision:swin_t": (7, {"features"}, {"norm", "head"}),
    "torchvision:efficientnet_b0": (8, {"features"}, {"classifier"}),
    "torchvision:mobilenet_v3_small": (12, {"features"}, {"classifier"}),
    "torchvision:regnet_y_400mf": (4, {"stem"}, {"fc"}),
}


@cache
def other_tower(name):
    with torch.device("cpu" if "regnet_y" in name else "meta"):  # which computes its widths with tensors
        if name.startswith("torchvision:"):
            return OwnTower(torchvision.models.get_model(name.partition(":")[2]))
        return OwnTower(timm.create_model(name))


@cache
def architectures():
    "One name for each architecture of an image tower in open_clip; image sizes and text towers make no difference"
    first = {}
    for file in sorted((Path(find_spec("open_clip").origin).parent / "model_configs").glob("*.json")):
        vision = {k: v for k, v in json.loads(file.read_text())["vision_cfg"].items() if k != "image_size"}
        if "timm_model_name" in vision:
            vision["timm_model_name"] = re.sub(r"_\d+$", "", vision["timm_model_name"])  # without the image size
        first.setdefault(json.dumps(vision, sort_keys=True), file.stem)
    return sorted(first.values())


def open_clip_tower(name):
    config = open_clip.get_model_config(name)
    kind = open_clip.CustomTextCLIP if "timm_model_name" in config["vision_cfg"] else open_clip.CLIP
    vision = config["vision_cfg"] | (dict(timm_model_pretrained=False) if kind is open_clip.CustomTextCLIP else {})
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(embed_dim=config["embed_dim"], vision_cfg=vision, text_cfg=TEXT).visual


def check_depths(visual):
    "Every tensor has a depth, and in the order in which modules are registered, blocks never decrease"
    names = [f"visual.{n}" for n in visual.state_dict()]
    positions = Positions(names, dict(visual=tower_patterns(visual)))
    assert len(positions) == len(names) == len(dict(positions))
    n_blocks = next(iter(positions.values())).n_blocks
    blocks = [p.block for p in positions.values()]
    assert {*range(n_blocks + 1)} <= {*blocks} <= {*range(n_blocks + 2)} and n_blocks > 1
    trunk = getattr(visual, "trunk", visual)
    own = {n for n, _ in trunk.named_parameters(recurse=False)}  # they are registered before all modules
    ordered = [p.block for n, p in positions.items() if n.split(".")[-1] not in own]
    assert ordered == sorted(ordered)
    assert {positions[n].depth for n in names if positions[n].block <= 1} == {0}
    assert {positions[n].depth for n in names if positions[n].block >= n_blocks} == {1}
    # the names alone lead to the same positions, as in merges of files
    assert dict(Positions(names)) == dict(positions)
    return positions


@pytest.mark.parametrize("name", architectures())
def test_open_clip(name):
    visual = open_clip_tower(name)
    positions = check_depths(visual)
    after = {n.split(".")[1] for n, p in positions.items() if p.block > p.n_blocks} - {"trunk"}
    assert after <= {"ln_post", "proj", "attn_pool", "attnpool", "head"}
    blocks = tower_blocks(visual)
    assert len(blocks) == next(iter(positions.values())).n_blocks
    attention = any("attn" in n or "attention" in n for b in blocks for n, _ in b.named_modules())
    assert bool(transformer_matrices(visual)) == attention


@pytest.mark.parametrize("name", OTHERS)
def test_timm_and_torchvision(name):
    positions = check_depths(other_tower(name))
    n_blocks, stem, after = OTHERS[name]

    def modules(condition):
        return {n.split(".")[2] for n, p in positions.items() if condition(p.block)}

    assert (next(iter(positions.values())).n_blocks, modules(lambda b: b == 0)) == (n_blocks, stem)
    assert modules(lambda b: b > n_blocks) == after
    assert len(tower_blocks(other_tower(name))) == n_blocks


def text_depths(state, prefix):
    return {n.removeprefix(prefix): p.depth for n, p in Positions(state).items() if n.startswith(prefix)}


@pytest.mark.parametrize("kind, prefix", [("CLIP", ""), ("CustomTextCLIP", "text."), ("CoCa", "text.")])
def test_text_towers(kind, prefix):
    more = dict(multimodal_cfg=TEXT) if kind == "CoCa" else {}
    with torch.device("meta"):
        model = getattr(open_clip, kind)(embed_dim=16, vision_cfg=dict(layers=2, width=64, patch_size=16),
                                         text_cfg=TEXT, **more)
    depths = text_depths(model.state_dict(), prefix)
    assert depths["token_embedding.weight"] == depths["positional_embedding"] == 0
    assert depths["transformer.resblocks.0.ln_1.weight"] == 0
    assert depths["transformer.resblocks.1.ln_1.weight"] == depths["ln_final.weight"] == depths["text_projection"] == 1
    assert Positions(model.state_dict())["logit_scale"].depth == 1
    if more:
        decoder = text_depths(model.state_dict(), "text_decoder.")
        assert decoder["cross_attn.0.ln_1.weight"] == 0 and decoder["cross_attn.1.ln_1.weight"] == 1


def test_transformers_names():
    "CLIP and text towers as the transformers library names them"
    clip = ["vision_model.embeddings.class_embedding", "vision_model.pre_layrnorm.weight"]
    clip += [f"vision_model.encoder.layers.{i}.mlp.fc1.weight" for i in range(3)]
    clip += ["vision_model.post_layernorm.weight", "text_model.embeddings.token_embedding.weight"]
    clip += [f"text_model.encoder.layers.{i}.mlp.fc1.weight" for i in range(2)]
    clip += ["text_model.final_layer_norm.weight", "visual_projection.weight", "text_projection.weight", "logit_scale"]
    assert [Positions(clip)[n].depth for n in clip] == [0, 0, 0, 0.5, 1, 1, 0, 0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("kind", ("Bert", "Roberta", "XLMRoberta", "MT5", "M2M100"))
def test_text_towers_of_transformers(kind):
    "As open_clip has them: RoBERTa, PubMedBERT, mT5, NLLB"
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(vocab_size=50)
    with torch.device("meta"):
        tower = getattr(transformers, f"{kind}EncoderModel" if kind == "MT5" else f"{kind}Model")(config)
    tower = tower.encoder if kind == "M2M100" else tower
    names = [f"text.transformer.{n}" for n in tower.state_dict()] + ["text.proj.weight", "logit_scale"]
    positions = Positions(names)
    assert positions["text.proj.weight"].depth == positions["logit_scale"].depth == 1
    first, n_blocks = names[0], positions[names[0]].n_blocks
    assert ("embed" in first or "shared" in first) and positions[first].block == 0
    assert n_blocks == config.num_hidden_layers and {p.block for p in positions.values()} >= {*range(n_blocks + 2)}


# real towers with random weights

PICTURES = dict(size=32, mean=[0.5] * 3, std=[0.5] * 3, interpolation="bilinear", resize_mode="shortest")
SMALL = {
    "vit": lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, embed_dim=48, num_classes=3),
    "eva02": lambda: timm.create_model(
        "eva02_base_patch16_clip_224", img_size=32, depth=2, embed_dim=48, num_heads=2, num_classes=3
    ),
    "swin": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, depths=(1, 1), embed_dim=24, num_classes=3
    ),
    "torchvision ViT": lambda: torchvision.models.VisionTransformer(32, 16, 2, 2, 48, 96, num_classes=3),
    "torchvision resnet": lambda: torchvision.models.resnet18(num_classes=3),
}


def classifier_of(module):
    torch.manual_seed(0)
    return image_classifier(module, ["a", "b", "c"], PICTURES, device="cpu")


def moved(classifier):
    "A copy whose weights are all 1 higher"
    new = classifier.copy()
    with torch.no_grad():
        for p in new.parameters():
            p.add_(1)
    new.alpha = 1.0
    return new


def steps(merged, start):
    "Mean step of each tensor that trains"
    before = dict(start.named_parameters())
    return {n: (p - before[n]).mean().item() for n, p in merged.named_parameters()}


@pytest.mark.parametrize(
    "kind, stem, last",
    [
        ("vit", "patch_embed.proj.weight", "norm.weight"),
        ("swin", "patch_embed.proj.weight", "norm.weight"),
        ("torchvision ViT", "conv_proj.weight", "encoder.ln.weight"),
    ],
)
def test_lines_takes_no_step_at_the_stem(kind, stem, last):
    start = classifier_of(SMALL[kind]())
    finetuned = moved(start)
    step = steps(merge(start, [finetuned], "LiNeS"), start)
    assert step[f"visual.trunk.{stem}"] == 0 and step[f"visual.trunk.{last}"] == pytest.approx(1, abs=1e-5)
    path = WeightPath(start.copy(), start.state_dict(), finetuned.state_dict(), lines)
    assert steps(path(1.0), start) == step


def test_decay_is_smallest_at_the_stem():
    vit = classifier_of(SMALL["vit"]())
    choose_weights(vit, "all")
    factors = lr_factor_per_weight(vit, decay=0.5)
    names = "patch_embed.proj.weight", "cls_token", "blocks.0.norm1.weight", "blocks.1.norm1.weight", "norm.weight"
    assert [factors[f"visual.trunk.{n}"] for n in names] == [0.25, 0.25, 0.25, 0.5, 1]
    assert factors["head.weight"] == 1


def test_last_blocks_and_inner_layers():
    tower = classifier_of(SMALL["swin"]()).visual
    assert inner_layers(tower, 2) == list(tower.trunk.layers)
    vit = classifier_of(SMALL["torchvision ViT"]())
    choose_weights(vit, "last:1")
    trained = {n for n, p in vit.visual.named_parameters() if p.requires_grad}
    assert {n.split(".")[3] for n in trained if "layers" in n} == {"encoder_layer_1"}
    assert "trunk.encoder.ln.weight" in trained and "trunk.conv_proj.weight" not in trained


class Own(nn.Module):
    "An image model that nobody knows"

    def __init__(self):
        super().__init__()
        self.lower, self.upper, self.out = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.upper(self.lower(x)).mean((2, 3)))


def test_unknown_layout(tmp_path):
    start = classifier_of(Own())
    finetuned = moved(start)
    unknown = "match none of the known layouts"
    merge(start, [finetuned], "weight-space")
    for question in (
        lambda: merge(start, [finetuned], "LiNeS"),
        lambda: WeightPath(start.copy(), start.state_dict(), finetuned.state_dict(), lines)(0.5),
        lambda: choose_weights(start, "last:1"),
        lambda: inner_layers(start.visual, 2),
    ):
        with pytest.raises(ValueError, match=unknown):
            question()
    choose_weights(start, "all")
    assert set(lr_factor_per_weight(start, image=0.1).values()) == {0.1, 1}
    with pytest.raises(ValueError, match=unknown):
        lr_factor_per_weight(start, decay=0.5)
    # files
    for c, name in ((start, "start"), (finetuned, "finetuned")):
        save_file(c.state_dict(), tmp_path / f"{name}.safetensors")
    ends = tmp_path / "start.safetensors", [tmp_path / "finetuned.safetensors"]
    write_merged(*ends, tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match=unknown):
        write_merged(*ends, tmp_path / "lines.safetensors", "LiNeS")
    assert not (tmp_path / "lines.safetensors").exists()


def test_files_of_a_known_layout(tmp_path):
    state = SMALL["vit"]().state_dict()
    save_file(state, tmp_path / "start.safetensors")
    save_file({k: t + 0.01 for k, t in state.items()}, tmp_path / "finetuned.safetensors")
    start, finetuned, out = (tmp_path / f"{name}.safetensors" for name in ("start", "finetuned", "out"))
    write_merged(start, [finetuned], out, "LiNeS")
    step = {k: (t - state[k]).mean().item() * 100 for k, t in TensorFile(out).items()}
    names = "patch_embed.proj.weight", "blocks.0.norm1.weight", "blocks.1.norm1.weight", "head.weight"
    assert [step[n] for n in names] == pytest.approx([0, 0, 0.5, 1], abs=1e-3)


def test_one_depth():
    head = {"head.weight": torch.zeros(2)}
    assert merge(head, [head]).keys() == head.keys()
    with pytest.raises(ValueError, match="same depth, 1, so nothing can depend on it"):
        merge(head, [head], "LiNeS")


def test_eva02_matrices():
    visual = open_clip_tower("EVA02-B-16")
    names = {id(m): n for n, m in visual.named_modules()}
    matrices = [names[id(m)].split(".")[-1] for m, _ in transformer_matrices(visual)]
    assert sorted(matrices) == sorted(12 * ["q_proj", "k_proj", "v_proj", "proj", "fc1_g", "fc1_x", "fc2"])


@pytest.mark.parametrize("method", ("LoRA", "R-Adapter"))
@pytest.mark.parametrize(
    "kind, attention", [("eva02", "q_proj.weight"), ("swin", "qkv.weight"), ("torchvision ViT", "in_proj_weight")]
)
def test_steps_of_adapters(kind, attention, method):
    classifier = classifier_of(SMALL[kind]())
    before = {n: p.clone() for n, p in classifier.state_dict().items()}
    in_blocks = {f"visual.{n}" for n, p in tower_positions(classifier.visual).items() if p.in_block}
    lora(classifier) if method == "LoRA" else r_adapter(classifier, drop=0.0)
    classifier.train()
    optimizer = torch.optim.SGD([p for p in classifier.parameters() if p.requires_grad], lr=0.1)
    images, y = torch.randn(6, 3, 32, 32), torch.arange(6) % 3
    for _ in range(3):  # the head of torchvision's ViT is zero at first
        optimizer.zero_grad()
        nn.functional.cross_entropy(classifier(images), y).backward()
        optimizer.step()
    after = plain_weights(classifier).state_dict()
    changed = {n for n, t in after.items() if not torch.equal(t, before[n])}
    assert changed - {"head.weight", "head.bias"} <= in_blocks
    assert sum(n.endswith(attention) for n in changed) == (2 if method == "LoRA" else 0)
    assert sum(n.endswith(("fc2.weight", "mlp.3.weight")) for n in changed) == 2
