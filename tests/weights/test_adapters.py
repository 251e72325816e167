"Adapters of peft, in files laid out as peft lays them out, are folded into classifiers; ours are written so."
import json
import math

import numpy as np
import pytest
import torch
from conftest import later

from wiseft.base.text import BadFile
from wiseft.models.load import load_classifier
from wiseft.models import testing
from wiseft.models.testing import pico_classifier
from wiseft.weights.adapters import read_adapter, write_adapter
from wiseft.weights.recipes import merge_by_recipe, read_recipe, what_is_missing
from wiseft.weights.safetensors_io import write_tensors

finetune, lora = later("wiseft.train.learner", "finetune"), later("wiseft.methods.lora", "lora")
SETTINGS = dict(peft_type="LORA", r=3, lora_alpha=6, bias="none", fan_in_fan_out=False, use_rslora=False,
                rank_pattern={}, alpha_pattern={}, modules_to_save=None, use_dora=False)
BLOCK, THEIRS = "transformer.resblocks.0", "encoder.layers.0"


@pytest.fixture(scope="module")
def start():
    return pico_classifier(["cat", "dog"], transformer=True)


def saved(folder, shapes, **settings):
    "An adapter of random factors, rank 3, and the products by the name of their module."
    folder.mkdir()
    generator, state, products = torch.Generator().manual_seed(0), {}, {}
    for name, (rows, columns) in shapes.items():
        a, b = torch.randn(3, columns, generator=generator), torch.randn(rows, 3, generator=generator)
        state |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
        products[name] = b.double() @ a.double() if rows < 10**6 else None
    write_tensors(folder / "adapter_model.safetensors", state)
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | settings))
    return products


def steps(start, folder):
    "What changed, by name."
    before = (start.with_text()).state_dict()
    classifier = load_classifier(folder, base=start)
    return {k: (t - before[k]).double() for k, t in classifier.state_dict().items() if not torch.equal(t, before[k])}


@pytest.mark.parametrize("settings, factor", [({}, 2), (dict(use_rslora=True), 6 / math.sqrt(3)),
                                              (dict(alpha_pattern={"mlp.fc1": 3}), 1)])
def test_names_of_transformers(settings, factor, start, tmp_path):
    "Queries and values alone; keys stay. One factor for a layer that has its own α."
    width = start.visual.conv1.weight.shape[0]
    shapes = {f"vision_model.{THEIRS}.{n}": s for n, s in (("self_attn.q_proj", (width, width)),
              ("self_attn.v_proj", (width, width)), ("mlp.fc1", (4 * width, width)))}
    products = {k.rpartition(".")[2]: p for k, p in saved(tmp_path / "a", shapes, **settings).items()}
    changed = steps(start, tmp_path / "a")
    assert set(changed) == {f"visual.{BLOCK}.attn.in_proj_weight", f"visual.{BLOCK}.mlp.c_fc.weight"}
    others = 2 if "alpha_pattern" in settings else factor
    expected = torch.cat([others * products["q_proj"], torch.zeros(width, width), others * products["v_proj"]])
    torch.testing.assert_close(changed[f"visual.{BLOCK}.attn.in_proj_weight"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(changed[f"visual.{BLOCK}.mlp.c_fc.weight"], factor * products["fc1"], rtol=1e-4,
                               atol=1e-5)


@pytest.mark.parametrize("prefix, model", [("visual.", "CLIP"), ("", "VisionTransformer")])
def test_names_of_open_clip(prefix, model, start, tmp_path):
    "A whole CLIP's, or of its tower alone. peft adds the step of the attention's last layer twice."
    width = start.visual.conv1.weight.shape[0]
    shapes = {f"{prefix}{BLOCK}.attn": (3 * width, width), f"{prefix}{BLOCK}.attn.base_layer.out_proj": (width, width)}
    whole, last = saved(tmp_path / "a", shapes, auto_mapping=dict(base_model_class=model)).values()
    changed = steps(start, tmp_path / "a")
    torch.testing.assert_close(changed[f"visual.{BLOCK}.attn.in_proj_weight"], 2 * whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(changed[f"visual.{BLOCK}.attn.out_proj.weight"], 4 * last, rtol=1e-4, atol=1e-5)


def test_alpha_of_an_attention(start, tmp_path):
    "Its last layer is one of its own only by its name in the file: peft asks for the attention's."
    width = start.visual.conv1.weight.shape[0]
    shapes = {f"visual.{BLOCK}.attn": (3 * width, width), f"visual.{BLOCK}.attn.base_layer.out_proj": (width, width)}
    for folder, alphas in (("a", {"attn": 12}), ("b", {"out_proj": 12}), ("c", {})):
        saved(tmp_path / folder, shapes, alpha_pattern=alphas)
    def factors(folder):
        return {k: factor for k, (_, _, factor) in read_adapter(tmp_path / folder).factors.items()}

    of_attention, of_none, plain = map(factors, "abc")
    assert set(of_attention.values()) == {4} and of_none == plain and set(plain.values()) == {2}


def test_of_which_tower(monkeypatch, tmp_path):
    "Names and shapes that both towers have: the adapter says whose they are, or is not read."
    both = dict(testing._transformer, width=16, layers=1)
    monkeypatch.setattr(testing, "_transformer", both)
    start, layer = pico_classifier(["cat", "dog"], transformer=True), f"{BLOCK}.mlp.c_fc"
    saved(tmp_path / "a", {layer: (64, 16)})
    with pytest.raises(BadFile, match="which both towers have"):
        load_classifier(tmp_path / "a", base=start)
    for model, changed in (("VisionTransformer", f"visual.{layer}.weight"), ("CLIP", f"text.{layer}.weight")):
        saved(tmp_path / model, {layer: (64, 16)}, auto_mapping=dict(base_model_class=model))
        assert changed in steps(start, tmp_path / model)


def test_text_tower(start, tmp_path):
    "The head follows from it."
    width = start.with_text().text.positional_embedding.shape[1]
    saved(tmp_path / "a", {f"text_model.{THEIRS}.mlp.fc1": (4 * width, width)})
    classifier = load_classifier(tmp_path / "a", base=start)
    assert classifier.head_from_text and not torch.equal(classifier.head.weight, start.head.weight)
    assert set(steps(start, tmp_path / "a")) == {f"text.{BLOCK}.mlp.c_fc.weight", "head.weight"}
    classifier.save(tmp_path / "saved")
    assert load_classifier(tmp_path / "saved").hash == classifier.hash


@pytest.mark.parametrize("settings, why", [
    (dict(peft_type="LOHA"), "not of a LoRA adapter"), (dict(bias="lora_only"), "'bias'"),
    (dict(use_dora=True), "'use_dora'"), (dict(modules_to_save=["head"]), "'modules_to_save'"),
    (dict(fan_in_fan_out=True), "'fan_in_fan_out'"), (dict(lora_alpha="8"), "lora_alpha is a number"),
    (dict(alpha_pattern={"(a*)*b": 1}), "alpha_pattern names modules"),
    (dict(r=None), "r is a number"), (dict(r=4), "have rank 3, and adapter_config.json says 4"),
    (dict(rank_pattern={"c_fc": 2}), "have rank 3, and adapter_config.json says 2"),
    (dict(init_lora_weights="pissa"), "init_lora_weights='pissa'"),  # which took a part out of the model's weights
])
def test_refused(settings, why, tmp_path):
    saved(tmp_path / "a", {f"visual.{BLOCK}.mlp.c_fc": (4, 4)}, **settings)
    with pytest.raises(BadFile, match=why.replace("(", r"\(")):
        read_adapter(tmp_path / "a")


@pytest.mark.parametrize("name, shape, why", [
    (f"visual.{BLOCK}.mlp.c_fc", (4, 4), "of the shape"), ("visual.nothing", (4, 4), "it is not there"),
    (f"vision_model.{THEIRS}.self_attn.x_proj", (4, 4), "it is not there"),
    (f"visual.{BLOCK}.mlp.c_fc", (10**6, 10**6), "of the shape"),  # whose product has no room
])
def test_of_another_model(name, shape, why, start, tmp_path):
    saved(tmp_path / "a", {name: shape})
    with pytest.raises(BadFile, match=why):
        load_classifier(tmp_path / "a", base=start)


def test_averaged_and_written_again(start, tmp_path):
    "A recipe takes an adapter as a fine-tuned classifier; its step has its rank, and can be written as one."
    width = start.visual.conv1.weight.shape[0]
    saved(tmp_path / "a", {f"visual.{BLOCK}.mlp.c_fc": (4 * width, width)})
    start.save(tmp_path / "zeroshot")
    keys = dict(rule="weight-space", base_model="zeroshot", models=[dict(model="a")], parameters=dict(alpha=0.5))
    (tmp_path / "recipe.yml").write_text(json.dumps(keys))
    assert what_is_missing(read_recipe(tmp_path / "recipe.yml"), load_classifier) == []
    merge_by_recipe(tmp_path / "recipe.yml", tmp_path / "half", load_classifier)
    half, finetuned = load_classifier(tmp_path / "half"), load_classifier(tmp_path / "a", base=start)
    finetuned.head.weight.data += 1
    again = load_classifier(write_adapter(start, finetuned, tmp_path / "b", 3), base=start)
    assert torch.equal(again.head.weight, finetuned.head.weight)
    k = f"{BLOCK}.mlp.c_fc.weight"
    s, t, h, w = (c.visual.state_dict()[k] for c in (start, finetuned, half, again))
    torch.testing.assert_close(h, (s + t) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(w, t, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="a higher rank than 2"):
        write_adapter(start.state_dict(), finetuned.state_dict(), tmp_path / "c", 2)


def test_adapters_alone_are_averaged(start, tmp_path):
    "The initial model is what they are folded into; without it, the dry run refuses what the merge refuses."
    width = start.visual.conv1.weight.shape[0]
    for name in "ab":
        saved(tmp_path / name, {f"visual.{BLOCK}.mlp.c_fc": (4 * width, width)})
    start.save(tmp_path / "zeroshot")
    keys = dict(merge_method="linear", models=[dict(model=name) for name in "ab"], parameters=dict(weight=1))
    (tmp_path / "recipe.yml").write_text(json.dumps(keys))
    recipe = read_recipe(tmp_path / "recipe.yml")
    with pytest.raises(ValueError, match="or base_model in a recipe") as e:
        merge_by_recipe(recipe, tmp_path / "soup", load_classifier)
    assert str(e.value) in what_is_missing(recipe, load_classifier)
    (tmp_path / "recipe.yml").write_text(json.dumps(keys | dict(base_model="zeroshot")))
    assert what_is_missing(read_recipe(tmp_path / "recipe.yml"), load_classifier) == []
    merge_by_recipe(tmp_path / "recipe.yml", tmp_path / "soup", load_classifier)
    merge_by_recipe(tmp_path / "soup/recipe.yml", tmp_path / "again", load_classifier)
    soup, one = load_classifier(tmp_path / "soup"), load_classifier(tmp_path / "a", base=start)
    assert load_classifier(tmp_path / "again").hash == soup.hash
    k = f"{BLOCK}.mlp.c_fc.weight"
    torch.testing.assert_close(soup.visual.state_dict()[k], one.visual.state_dict()[k])


def test_a_gentle_training_is_written_too(start, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (32, 48, 48, 3), dtype=np.uint8), np.arange(32) % 2
    finetuned = finetune(start, images, images, epochs=1, lr=1e-5, train=lora, progress=False)
    write_adapter(start, finetuned, tmp_path / "a")  # what rounding adds has a higher rank


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("step", [1e-4, 3e-4, 1e-3])
def test_a_change_of_full_rank_is_refused_in_16_bits_too(dtype, step, tmp_path):
    "Compared with the weights it is small: an adapter of rank 8 would lose nine tenths of it."
    generator = torch.Generator().manual_seed(0)
    def random(scale):
        return torch.randn(256, 256, generator=generator) * scale

    w = random(0.03).to(dtype)
    change = (w.float() + random(step)).to(dtype)
    with pytest.raises(ValueError, match=r"higher rank than 8: an adapter would lose (8|9)\d% of it"):
        write_adapter({"visual.a.weight": w}, {"visual.a.weight": change}, tmp_path / "a", 8)
    low = (w.float() + random(1.0)[:, :8] @ random(0.1)[:8]).to(dtype)  # as LoRA changes it, and rounded
    write_adapter({"visual.a.weight": w}, {"visual.a.weight": low}, tmp_path / "a", 8)
    (a, b, factor), = read_adapter(tmp_path / "a").factors.values()
    assert (factor * b @ a - (low.float() - w.float())).norm() < 0.1 * (low.float() - w.float()).norm()


def test_both_towers_are_written_as_modules_of_open_clip_and_read_back(start, tmp_path):
    "A fine-tuning on captions; names are those of open_clip's model, as peft has them, and the head is not in it."
    from wiseft.methods.flyp import flyp
    from wiseft.methods.lora import lora  # noqa: F401

    images = np.random.default_rng(0).integers(0, 256, (12, 48, 48, 3), dtype=np.uint8), np.arange(12) % 2
    finetuned = finetune(start, images, images, epochs=2, batch_size=6, lr=.1, precision="fp32", progress=False,
                         train="lora", loss=flyp)
    write_adapter(start, finetuned, tmp_path/"adapter")
    config = json.loads((tmp_path/"adapter/adapter_config.json").read_text())
    modules = {f"{tower}transformer.resblocks.0.{layer}" for tower in ("visual.", "")
               for layer in ("attn", "mlp.c_fc", "mlp.c_proj")}
    assert modules <= set(config["target_modules"]) and config["modules_to_save"] is None
    names = {n for n, _ in start.clip.model.named_modules()}
    assert set(config["target_modules"]) <= names
    again = load_classifier(tmp_path/"adapter", base=start)
    assert again.head_from_text
    for k, t in finetuned.state_dict().items(): torch.testing.assert_close(again.state_dict()[k], t, rtol=1e-4,
                                                                           atol=1e-4)


def test_last_blocks_of_both_towers(start):
    "A text tower of one block trains all of it, and what comes after it; the scale, too."
    from wiseft.train.trainable import choose_weights

    classifier = start.with_text().copy()
    choose_weights(classifier, "last:1")
    trained = {n for n, p in classifier.named_parameters() if p.requires_grad}
    assert {"visual.proj", "text.text_projection", "text.logit_scale", "text.ln_final.weight"} < trained
    assert all(n.startswith("visual.transformer.resblocks.1.") or ".resblocks." not in n for n in trained
               if n.startswith("visual."))
    assert any(n.startswith("text.transformer.resblocks.0.") for n in trained)
    assert not trained & {"text.token_embedding.weight", "text.positional_embedding", "head.weight",
                          "visual.conv1.weight"}
    with pytest.raises(ValueError, match="it is built from the text tower"):
        choose_weights(classifier, "head")


def test_a_text_tower_without_matrices_is_named(start, monkeypatch):
    from wiseft.methods import lora as page

    monkeypatch.setattr(page, "transformer_matrices", lambda tower, part: [(tower, "proj")] if part == "visual" else [])
    with pytest.raises(ValueError, match="LoRA needs a transformer as text tower"):
        lora(start.with_text().copy())
