"Recipes of merges: each key is read, or refused by name; what is written beside a merge makes the same again."
import json
import os
import re
import warnings
from collections import ChainMap

import numpy as np
import pytest
import torch
import yaml

from wiseft.base.text import BadFile
from wiseft.base.registry import find_method
from wiseft.data.images import ImageSet
from wiseft.infer.ensembles import members
from wiseft.methods.index import all_methods, listed_methods
from wiseft.models.load import load_classifier
from wiseft.models.testing import pico_classifier
from wiseft.weights.files import recipe_text, weights_at, write_merged
from wiseft.weights.merge import merge
from wiseft.weights.recipes import merge_by_recipe, read_recipe, what_is_missing
from wiseft.weights.safetensors_io import TensorFile, write_tensors

NAMES = ["patch_embed", *(f"blocks.{i}.{part}" for i in range(3) for part in ("attn", "mlp")), "head"]
START, FIRST, SECOND = (dict(model=f"{name}.safetensors") for name in ("start", "first", "second"))
BASE = dict(base_model="start.safetensors")


@pytest.fixture(autouse=True, scope="module")
def methods():
    all_methods()


def small(seed):
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(6, 5, generator=generator) for k in NAMES} | {"norm.n": torch.tensor(seed)}


def near(classifier, seed):
    "As if it had been fine-tuned."
    generator, finetuned = torch.Generator().manual_seed(seed), classifier.copy()
    for p in finetuned.parameters():
        p.data += 0.1 * torch.rand(p.shape, generator=generator)
    finetuned.alpha = 1.0
    return finetuned


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for i, name in enumerate(("start", "first", "second")):
        write_tensors(tmp_path / f"{name}.safetensors", small(i))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(folder, **keys):
    (folder / "recipe.yml").write_text(yaml.safe_dump(keys))
    return folder / "recipe.yml"


def merged_weights(folder, **keys):
    return dict(TensorFile(merge_by_recipe(recipe(folder, **keys), folder / "out.safetensors", force=True)))


def weighted(*weights, **more):
    "Two models, with a weight and perhaps more each."
    return dict(models=[m | dict(parameters=dict(weight=w, **more)) for m, w in zip((FIRST, SECOND), weights)])


# one key or value each, and what becomes of the tensors s, a, b at depth d
LINEAR, SUM = dict(merge_method="linear"), dict(merge_method="task_arithmetic") | BASE
GRID = {
    "linear": (LINEAR | weighted(1, 3), lambda k, d, s, a, b: (a + 3 * b) / 4),
    "not normalized": (LINEAR | weighted(1, 3) | dict(parameters=dict(normalize=False)),
                       lambda k, d, s, a, b: a + 3 * b),
    "weight of the recipe": (LINEAR | dict(models=[FIRST, SECOND], parameters=dict(weight=0.5)),
                             lambda k, d, s, a, b: (a + b) / 2),
    "sum": (SUM | weighted(0.5, 0.25), lambda k, d, s, a, b: s + 0.5 * (a - s) + 0.25 * (b - s)),
    "sum, normalized": (SUM | weighted(1, 3) | dict(parameters=dict(normalize=True)),
                        lambda k, d, s, a, b: (a + 3 * b) / 4),
    "lambda": (SUM | weighted(1, 1) | {"parameters": {"lambda": 0.5}}, lambda k, d, s, a, b: (a + b) / 2),
    "the initial model among models": (SUM | dict(models=[START, *weighted(1, 1)["models"]]),
                               lambda k, d, s, a, b: a + b - s),
    "by layer": (SUM | weighted([0, 1, 0], 0), lambda k, d, s, a, b: a if d == 0.5 else s),
    "between layers": (SUM | weighted([0, 1], 0), lambda k, d, s, a, b: s + d * (a - s)),
    "one in a list": (SUM | weighted([1], 0), lambda k, d, s, a, b: a),
    "a base that linear does not use": (LINEAR | weighted(1, 3) | BASE, lambda k, d, s, a, b: (a + 3 * b) / 4),
    "filter": (SUM | weighted([dict(filter="mlp", value=1), dict(value=0)], 0),
               lambda k, d, s, a, b: a if "mlp" in k else s),
    "filter, else the recipe's": (SUM | weighted([dict(filter="mlp", value=1)], 0) | dict(parameters=dict(weight=0.5)),
                                  lambda k, d, s, a, b: a if "mlp" in k else (a + s) / 2),
    "the first filter that fits": (SUM | weighted([dict(filter="*", value=0), dict(filter="mlp", value=1)], 0),
                                   lambda k, d, s, a, b: s),
    "layers in a filter": (SUM | weighted([dict(filter="mlp", value=[0, 1]), dict(value=0)], 0),
                           lambda k, d, s, a, b: s + d * (a - s) if "mlp" in k else s),
    "ours": (dict(rule="weight-space", models=[FIRST], parameters=dict(alpha=0.25)) | BASE,
             lambda k, d, s, a, b: 0.75 * s + 0.25 * a),
    "ours, by layer": (dict(rule="weight-space", models=[FIRST], parameters=dict(alpha=[0, 1])) | BASE,
                       lambda k, d, s, a, b: s + d * (a - s)),
    "ours, without a start": (dict(rule="uniform soup", models=[FIRST, SECOND]),
                              lambda k, d, s, a, b: (a + b) / 2),
}


@pytest.mark.parametrize("case", GRID)
def test_key(case, folder):
    keys, expected = GRID[case]
    result, states = merged_weights(folder, **keys), [small(i) for i in range(3)]
    for k in NAMES:
        number = re.search(r"\d", k) if k.startswith("blocks") else None
        depth = int(number[0]) / 2 if number else 0
        torch.testing.assert_close(result[k], expected(k, depth, *(s[k] for s in states)), msg=k)
    assert result["norm.n"] in (0, 1)  # of a model, not an average


def test_ties_by_hand(folder):
    "The larger half of each tensor's steps; where signs differ, those of the larger sum."
    result = merged_weights(folder, merge_method="ties", **BASE, **weighted(1.0, 0.5, density=0.5))
    for k in NAMES:
        start, *others = (small(i)[k].double() for i in range(3))
        steps = [(t - start) * ((t - start).abs() >= (t - start).abs().flatten().sort().values[15]) for t in others]
        (p, q), (v, w) = [o.flatten() for o in steps], (1.0, 0.5)
        up = v * p + w * q >= 0
        agree = [(o > 0) & up | (o < 0) & ~up for o in (p, q)]
        total = v * agree[0] + w * agree[1]
        sums = (v * p * agree[0] + w * q * agree[1]) / torch.where(total > 0, total, 1)
        torch.testing.assert_close(result[k].double(), start + sums.view_as(start), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_precision(dtype, folder):
    result = merged_weights(folder, **LINEAR, **weighted(1, 1), dtype=dtype)
    assert {str(t.dtype) for k, t in result.items() if k != "norm.n"} == {f"torch.{dtype}"}
    assert result["norm.n"].dtype == torch.int64
    exact = merged_weights(folder, **LINEAR, **weighted(1, 1))
    assert all(result[k].equal(exact[k].to(result[k].dtype)) for k in NAMES)  # rounded once


REFUSED = {
    "merge_metod": "Did you mean 'merge_method'", "out_dtype": "Did you mean 'dtype'", "slices": "unknown key 'slices'",
    "base_modle": "Did you mean 'base_model'", 3: "unknown key 3",
}


@pytest.mark.parametrize("key", REFUSED)
def test_refused_key(key, folder):
    with pytest.raises(BadFile, match=re.escape(str(REFUSED[key]))) as e:
        read_recipe(written(folder, key))
    assert str(folder / "recipe.yml") in str(e.value) and (key == 3 or str(key) in str(e.value))


def written(folder, key):
    (folder / "recipe.yml").write_text(yaml.safe_dump(LINEAR | weighted(1, 1) | {key: "x"}))
    return folder / "recipe.yml"


@pytest.mark.parametrize("method", ["slerp", "model_stock", "TIES", None])
def test_other_methods_of_mergekit(method, folder):
    with pytest.raises(BadFile, match="Of mergekit's there are linear, task_arithmetic, ties"):
        read_recipe(recipe(folder, merge_method=method, **weighted(1, 1)))


@pytest.mark.parametrize("keys, why", [
    (SUM | weighted(1, 1) | dict(parameters=dict(densty=1)), "unknown key 'densty'"),
    (SUM | weighted(1, 1, density=0.5), "unknown key 'density'"),
    (SUM | weighted(1, 1, desnity=0.5), "The parameters of first.safetensors: unknown key 'desnity'"),
    (LINEAR | weighted(1, "much"), "weight is 'much'"),
    (LINEAR | weighted(1, [[1]]), r"weight is \[\[1\]\]"),
    (LINEAR | weighted(1, float("nan")), "weight is nan"),
    (LINEAR | dict(models=[FIRST]), "first.safetensors has no weight"),
    (dict(rule="TIES", models=[FIRST], parameters=dict(density=[0, 1])) | BASE, "density is used once"),
    (dict(rule="TIES", models=[FIRST], parameters=dict(alhpa=1)) | BASE, "Did you mean 'alpha'"),
    (dict(rule="SPD", models=[FIRST]) | BASE, "`rule` is SPD, a constraint"),
    (dict(rule="weight-spcae", models=[FIRST]) | BASE, "Did you mean weight-space"),
    (dict(models=[FIRST]), "either merge_method"),
    (dict(rule="TIES", merge_method="ties", models=[FIRST]), "either merge_method"),
    (LINEAR | dict(models="first"), "`models` is 'first'"),
    (LINEAR | dict(models=["first"]), "A model: expected keys with values, got 'first'"),
    (LINEAR | weighted(1, 1) | dict(dtype="int8"), "`dtype` is 'int8'"),
    (LINEAR | weighted(1, 1) | dict(suite=["icons"]), r"\['suite'\] are not paths"),
])
def test_refused_value(keys, why, folder):
    with pytest.raises(BadFile, match=why):
        read_recipe(recipe(folder, **keys))


@pytest.mark.parametrize("text", ["a: [", "a: b: c", "!!python/object/apply:os.getcwd []", "\x00", "", "- 1", "x",
                                  "[" * 9999, "&a [*a]", "a: &a [*a, *a]"])
def test_bad_yaml(text, folder):
    (folder / "recipe.yml").write_text(text)
    with pytest.raises(BadFile, match="recipe.yml"):
        read_recipe(folder / "recipe.yml")


def test_aliases_cost_nothing(folder):
    "A list of a list of a list …, each ten times, is told as what it is."
    lines = ["a0: &a0 [1]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    (folder / "recipe.yml").write_text("\n".join(lines) + "\nrule: *a29\n")
    with pytest.raises(BadFile, match="unknown key"):
        read_recipe(folder / "recipe.yml")
    (folder / "recipe.yml").write_text("\n".join(["parameters:", *("  " + line for line in lines)]))
    with pytest.raises(BadFile, match="either merge_method"):
        read_recipe(folder / "recipe.yml")


def missing(folder, **keys):
    before = {*os.listdir(folder), "recipe.yml"}
    (sentence,) = what_is_missing(read_recipe(recipe(folder, **keys)))
    assert {*os.listdir(folder)} == before
    return sentence


def test_missing_is_told_and_nothing_written(folder):
    keys = LINEAR | weighted(1, [dict(filter="mpl", value=1), dict(value=0)])
    assert "Did you mean 'mlp'" in missing(folder, **keys)
    third = dict(model="third.safetensors", parameters=dict(weight=1))
    assert "There is no" in missing(folder, **LINEAR, models=[*keys["models"], third])
    lacking = {k: t for k, t in small(2).items() if k not in ("norm.n", "head")}
    write_tensors(folder / "second.safetensors", lacking)
    assert "second.safetensors lacks 'head', 'norm.n'" in missing(folder, **keys)
    write_tensors(folder / "second.safetensors", {k: t[:3] if k != "norm.n" else t for k, t in small(2).items()})
    message = missing(folder, **LINEAR, **weighted(1, 1))
    assert "shape (6, 5) in" in message and "(3, 5) in" in message, message
    with pytest.raises(ValueError, match="can't be averaged"):
        merge_by_recipe(folder / "recipe.yml", folder / "out.safetensors")
    assert not (folder / "out.safetensors").exists()


def test_weights_in_parts(folder):
    "A folder as the hub has it, with its weights in one file or in parts."
    whole = small(1)
    (folder / "first").mkdir()
    for i in range(3):
        write_tensors(folder / f"first/model-{i + 1:05d}-of-00003.safetensors", dict(list(whole.items())[i::3]))
    assert isinstance(weights_at(folder / "first"), ChainMap)
    keys = SUM | dict(models=[dict(model="first", parameters=dict(weight=1)), SECOND], parameters=dict(weight=0))
    assert all(torch.allclose(t, whole[k]) for k, t in merged_weights(folder, **keys).items() if k != "norm.n")
    (folder / "first/model-00002-of-00003.safetensors").unlink()
    assert "all parts" in " ".join(what_is_missing(read_recipe(recipe(folder, **keys))))


FAILING = {
    "density is 20": SUM | dict(merge_method="ties") | weighted(1, 1, density=20),
    "No filter of the recipe fits": LINEAR | weighted([dict(filter="mlp", value=1)], 1),
    "parts is 'imag'": dict(rule="TSV-M", models=[FIRST, SECOND], parameters=dict(parts="imag")) | BASE,
    "averages the base and one fine-tuned": dict(rule="weight-space", models=[FIRST, SECOND]) | BASE,
    "two fine-tuned models or more": dict(rule="Model Stock", models=[FIRST]) | BASE,
    "ties needs the base model": dict(merge_method="ties") | weighted(1, 1),
    "nothing to average": SUM | dict(models=[START]),
    "sum to 0": LINEAR | weighted([1, 0], [-1, 2]),
    "The weights [1, -1] sum to 0": LINEAR | weighted(1, -1),
}


@pytest.mark.parametrize("why", FAILING)
def test_a_dry_run_says_what_a_merge_would(why, folder):
    with pytest.raises(ValueError) as e:
        merged_weights(folder, **FAILING[why])
    missing = what_is_missing(read_recipe(recipe(folder, **FAILING[why])))
    assert why in str(e.value) and any(why in sentence for sentence in missing)


def test_a_suite_in_a_folder_is_found_from_elsewhere(folder):
    "Beside the recipe, wherever that is read from; a name stays a name."
    keys = dict(rule="greedy soup", models=[FIRST, SECOND]) | BASE
    for suite, images in (("./photos", str(folder / "photos")), ("icons", "icons")):
        assert read_recipe(recipe(folder, **keys, suite=suite)).images == dict(suite=images)
    again = yaml.safe_load(recipe_text(find_method("greedy soup"), "start", ["first"], folder / "out",
                                       suite=str(folder / "photos")))
    assert again["suite"] == "./../photos"
    with pytest.raises(BadFile, match="'parts'"):
        read_recipe(recipe(folder, **keys, parameters=dict(parts="image")))


OF_WEIGHTS = [m["name"] for m in listed_methods() if m["kind"] == "merge" and "images" not in m["needs"]]
UPON = ["task arithmetic+LiNeS", "TSV-M+TIES", "TIES+LiNeS", "TIES+TIES", "Iso-C+weight-space"]


@pytest.mark.parametrize("name", [*OF_WEIGHTS, *UPON])
def test_what_lies_beside_makes_the_same_again(name, folder):
    method, finetuned = find_method(name), ["first.safetensors", "second.safetensors"]
    finetuned = finetuned if "several" in method.needs or "two" in method.needs else finetuned[:1]
    given = dict(alpha=0.7) if method.strength else {}
    write_merged("start.safetensors", finetuned, "merged.safetensors", method, **given)
    merge_by_recipe("merged.recipe.yml", "again.safetensors")
    first, second = TensorFile("merged.safetensors"), TensorFile("again.safetensors")
    assert all(torch.equal(second[k], t) for k, t in first.items())
    assert (folder / "again.recipe.yml").read_text() == (folder / "merged.recipe.yml").read_text()


@pytest.mark.parametrize("case", GRID)
def test_a_recipe_is_written_again_as_it_is(case, folder):
    first = merged_weights(folder, **GRID[case][0])
    second = TensorFile(merge_by_recipe(folder / "out.recipe.yml", folder / "again.safetensors"))
    assert all(torch.equal(second[k], t) for k, t in first.items())
    assert (folder / "again.recipe.yml").read_text() == (folder / "out.recipe.yml").read_text()


@pytest.mark.parametrize("name", UPON)
def test_a_merge_of_a_merge_is_one_after_the_other(name):
    states, (inner, outer) = [small(i) for i in range(3)], name.split("+")
    one_by_one = merge(states[0], [merge(states[0], states[1:], inner)], outer)
    for k, t in merge(states[0], states[1:], name).items():
        torch.testing.assert_close(t, one_by_one[k], msg=k)


def test_a_merge_of_a_merge_of_classifiers():
    "Both may have to know something first; the card has the hyperparameters of both, and a sweep and a bench take it."
    start = pico_classifier(["cat", "dog"], transformer=True)
    finetuned = [near(start, seed) for seed in (1, 2)]
    pixels = np.random.default_rng(0).integers(0, 256, (6, 48, 48, 3), dtype=np.uint8)
    images = ImageSet("pictures", [f"{i}.png" for i in range(6)], [0, 1] * 3, ["cat", "dog"], pixels=pixels)
    classifier = merge(start, finetuned, "RegMean+TIES", images=images, density=0.5, regmean_n_images=4)
    one_by_one = merge(start, [merge(start, finetuned, "RegMean", images=images, n_images=4)], "TIES", density=0.5)
    for k, t in classifier.state_dict().items():
        torch.testing.assert_close(t, one_by_one.state_dict()[k], rtol=1e-4, atol=1e-5, msg=k)
    how = classifier.recipe["merge"]
    assert (how["name"], how["density"], how["regmean_n_images"]) == ("RegMean+TIES", 0.5, 4)
    assert {n.partition(", ")[2] for n in classifier.beside["prepared.safetensors"]} == {"outer"}
    classifiers = members(start, finetuned[0], [0.5], ["Iso-C+LiNeS"])
    assert ("plain", "Iso-C+LiNeS", 0.5) in classifiers
    from wiseft.bench.plan import can_compete, interpolates, takes_several

    several = find_method("TSV-M+LiNeS")
    assert can_compete(several) and takes_several(several)
    assert interpolates(find_method("LiNeS")) and not interpolates(several)


def test_no_recipe_of_what_can_not_be_made_again(folder):
    write_merged("start.safetensors", ["first.safetensors"], "own.safetensors", lambda base, finetuned, info: base)
    write_merged("start.safetensors", ["first.safetensors"], "start.safetensors", force=True)
    assert not list(folder.glob("*.recipe.yml"))


def test_classifiers(folder):
    "By layer and by name, saved in half precision; the recipe within its folder makes it again from elsewhere."
    start = pico_classifier(["cat", "dog"], transformer=True)
    start.save(folder / "zeroshot")
    near(start, 0).save(folder / "finetuned")
    keys = dict(rule="weight-space", base_model="zeroshot", models=[dict(model="finetuned")],
                parameters=dict(alpha=[dict(filter="head", value=1), dict(value=0.5)]), dtype="bfloat16")
    merge_by_recipe(recipe(folder, **keys), folder / "merged", load_classifier)
    start, finetuned, merged = (load_classifier(folder / name) for name in ("zeroshot", "finetuned", "merged"))
    assert merged.alpha is None
    assert torch.equal(merged.head.weight, finetuned.head.weight.bfloat16().float())
    middle = (start.visual.state_dict()["proj"] + finetuned.visual.state_dict()["proj"]) / 2
    assert torch.equal(merged.visual.state_dict()["proj"], middle.bfloat16().float())
    card = json.loads((folder / "merged/wiseft.json").read_text())
    assert card["recipe"]["merge"]["alpha"] == keys["parameters"]["alpha"] and "recipe.yml" in card["files"]
    os.chdir("/")
    merge_by_recipe(folder / "merged/recipe.yml", folder / "again", load_classifier)
    assert load_classifier(folder / "again").hash == merged.hash
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert what_is_missing(read_recipe(folder / "merged/recipe.yml"), load_classifier) == []


def test_a_dry_run_refuses_an_average_as_an_end(folder):
    start = pico_classifier(["cat", "dog"], transformer=True)
    start.save(folder / "zeroshot")
    merge(start, [near(start, 0)], alpha=0.5).save(folder / "average")
    keys = dict(rule="weight-space", base_model="zeroshot", models=[dict(model="average")])
    (sentence,) = what_is_missing(read_recipe(recipe(folder, **keys)), load_classifier)
    assert "is an average already" in sentence
