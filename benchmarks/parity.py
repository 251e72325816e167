"""Our merges and adapters beside the code of those who are known for them, on the same tensors.

    python -m venv ENV && ENV/bin/pip install . mergekit fusion-bench peft
    ENV/bin/python benchmarks/parity.py           writes benchmarks/parity.csv

mergekit runs three of its own example recipes, two more by layers and by names, with models that are tiny and have
random weights; fusion-bench merges state dicts; peft folds an adapter. Nothing of theirs is copied. A row has the
largest difference of any weight.
"""
import contextlib
import copy
import csv
import io
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
import yaml

os.environ |= dict(HF_HUB_OFFLINE="1", WISEFT_DEVICE="cpu", WISEFT_CACHE=tempfile.mkdtemp())
OUT = Path(__file__).with_name("parity.csv")
COLUMNS = ["what", "theirs", "version", "tensors", "largest difference"]

# ---------- mergekit: settings of examples/linear.yml, bio-merge.yml and ties.yml, and two more ----------


def weighted(*parameters):
    return [dict(model=f"model{i}", parameters=p) for i, p in enumerate(parameters)]


HALF = dict(density=0.5, weight=0.5)
BY_NAME = [dict(filter="mlp", value=0.5), dict(value=0)]
RECIPES = {
    "examples/linear.yml": dict(merge_method="linear", models=weighted(dict(weight=1.0), dict(weight=0.3),
                                                                       dict(weight=0.5))),
    "examples/bio-merge.yml": dict(merge_method="ties", base_model="start", models=weighted(HALF, HALF),
                                   parameters=dict(normalize=False, int8_mask=True)),
    "examples/ties.yml (layers and names)": dict(
        merge_method="ties", base_model="start", parameters=dict(normalize=True, int8_mask=True),
        models=weighted(dict(density=[1, 0.7, 0.1], weight=1.0), dict(density=0.5, weight=[0, 0.3, 0.7, 1]),
                        dict(density=0.33, weight=BY_NAME))),
    "layers": dict(merge_method="task_arithmetic", base_model="start", parameters={"lambda": 0.9},
                   models=weighted(dict(weight=[0, 0.2, 1]), dict(weight=[0.5, 0]))),
    "names": dict(merge_method="linear", parameters=dict(weight=0.25), models=weighted(
        dict(weight=[dict(filter="self_attn", value=[0.2, 0.9]), dict(filter="norm", value=0.4)]), dict(weight=0.1))),
}


def language_models(folder):
    "An initial model and three models near it, as in mergekit's examples: six layers, random weights."
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=6,
                         num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)
    start = LlamaForCausalLM(config)
    for name in ("start", "model0", "model1", "model2"):
        model = copy.deepcopy(start)
        for p in model.parameters():
            p.data += 0.05 * torch.randn(p.shape) * (name != "start")
        model.save_pretrained(folder / name)


def by_mergekit(recipe, out):
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    run_merge(MergeConfiguration.model_validate(recipe), str(out), options)
    return out / "model.safetensors"


def mergekit_rows(folder):
    from wiseft.weights.recipes import merge_by_recipe

    language_models(folder)
    os.chdir(folder)  # both take paths from here
    for name, recipe in RECIPES.items():
        for dtype in ("float32", "float16"):
            (folder / "recipe.yml").write_text(yaml.safe_dump(recipe | dict(dtype=dtype)))
            theirs = by_mergekit(recipe | dict(dtype=dtype), folder / f"{name.replace('/', ' ')} {dtype}")
            ours = merge_by_recipe(folder / "recipe.yml", folder / "ours.safetensors", force=True)
            yield row(f"mergekit, {name}, {dtype}", "mergekit", *map(read, (ours, theirs)))


def read(path):
    from safetensors.torch import load_file

    return load_file(path)


def row(what, package, ours, theirs):
    "The largest difference of any weight; models differ from their initial weights by some 0.05 in each."
    assert ours.keys() == theirs.keys() and len(ours) > 3
    worst = max(float((ours[k].double() - theirs[k].double()).abs().max()) for k in ours)
    return dict(zip(COLUMNS, [what, package, version(package), len(ours), f"{worst:.1e}"]))


# ---------- fusion-bench: functions of task vectors and modules ----------


def classifiers():
    "An initial model and three near it, with a transformer as image tower."
    from wiseft.models.testing import pico_classifier

    start = pico_classifier(["cat", "dog", "bird"], transformer=True)
    made = torch.Generator().manual_seed(0)
    finetuned = [start.copy() for _ in range(3)]
    for c in finetuned:
        for p in c.parameters():
            p.data += 0.05 * torch.randn(p.shape, generator=made)
    return start, finetuned


def fusion_rows():
    from fusion_bench.method.isotropic_merging.iso_utils import iso_c as their_iso_c
    from fusion_bench.method.task_arithmetic.task_arithmetic import task_arithmetic_merge
    from fusion_bench.method.task_singular_vector.utils import TSVM_utils
    from fusion_bench.method.ties_merging.ties_merging_utils import ties_merging

    from wiseft.methods.iso_c import iso_c
    from wiseft.methods.task_arithmetic import task_arithmetic
    from wiseft.methods.ties import ties
    from wiseft.methods.tsv_m import tsv_m
    from wiseft.weights.merge import merge

    start, finetuned = classifiers()
    s, states = matrices(start), [matrices(c) for c in finetuned]
    steps = [step(s, t) for t in states]

    def compare(name, rule, theirs, **hyperparameters):
        return row(f"fusion-bench, {name}", "fusion-bench", merge(s, states, rule, **hyperparameters), theirs)

    def added(found):
        return {k: s[k] + found[k] for k in s}

    summed = task_arithmetic_merge(held(s), [held(t) for t in states], 0.3)
    yield compare("task arithmetic", task_arithmetic, dict(zip(s, summed.state_dict().values())), alpha=0.3)
    yield compare("Iso-C", iso_c, added(their_iso_c(steps, "cpu")), alpha=1.0)
    yield compare("TSV-M", tsv_m, added(TSVM_utils.compute_and_sum_svd_mem_reduction(steps, accelerator="cpu")))
    flat = torch.stack([torch.nn.utils.parameters_to_vector(each.values()) for each in steps])
    merged = iter(ties_merging(flat, reset_thresh=20, merge_func="dis-mean").split([t.numel() for t in s.values()]))
    yield compare("TIES", ties, added({k: next(merged).view_as(t) for k, t in s.items()}), density=0.2)


def step(start, finetuned):
    return {k: finetuned[k] - w for k, w in start.items()}


def held(state):
    "Weights as buffers of a module: of parameters fusion-bench says that they and their sums are of two types."
    module = torch.nn.Module()
    for k, t in state.items():
        module.register_buffer(k.replace(".", " "), t.clone())
    return module


def matrices(classifier):
    "Weights of a classifier, in float64; kernels of convolutions are left out, which fusion-bench takes the mean of."
    return {k: t.double() for k, t in classifier.state_dict().items() if t.is_floating_point() and t.ndim < 3}


def with_ridge(products, names):
    "By module, with what ours adds so that there is a solution where directions are missing among the images."
    found = {k: products[k] for k in names}
    return {k.removesuffix(".weight"): g + 1e-6 * g.diag().mean() * torch.eye(len(g)) for k, g in found.items()}


def regmean_row():
    from fusion_bench.method.regmean.regmean import merging_with_regmean_weights

    from wiseft.data.suites import load_suite
    from wiseft.methods.regmean import inner_products, regmean
    from wiseft.weights.merge import merge

    start, finetuned = classifiers()
    images = load_suite("icons").validation.subset(range(64))
    ours = merge(start, finetuned, regmean, images=images, n_images=64).state_dict()
    products = [inner_products(c, images) for c in finetuned]
    names = [k for k in products[0] if start.get_parameter(k).ndim == 2 and k.endswith(".weight")]
    given = [with_ridge(g, names) for g in products]
    first, second, third = (matrices(c) for c in finetuned)
    weights = {k: [first[k], second[k], third[k]] for k in names}
    theirs = merging_with_regmean_weights(weights, given, reduce_non_diagonal_ratio=0.9)
    return row("fusion-bench, RegMean", "fusion-bench", {k: ours[k] for k in names}, theirs)


# ---------- peft: an adapter folded by both, of transformers' names and of open_clip's; ours read by theirs ----------


def trained(model, folder, **settings):
    "An adapter of peft with random factors, saved, and the model with it folded in."
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    finetuned = get_peft_model(copy.deepcopy(model), LoraConfig(r=4, **settings))
    for name, p in finetuned.named_parameters():
        if "lora_" in name:
            p.data = 0.1 * torch.randn(p.shape)
    finetuned.save_pretrained(folder)
    return finetuned.merge_and_unload()


def peft_rows(folder):
    from peft import PeftModel
    from transformers import CLIPConfig, CLIPModel

    from wiseft.models.hf_clip import from_transformers, their_config, to_transformers
    from wiseft.models.load import load_classifier
    from wiseft.weights.adapters import write_adapter

    start, _ = classifiers()
    start = start.with_text()
    names = dict(transformers=["q_proj", "v_proj", "out_proj", "fc1"], open_clip=["attn", "c_fc", "c_proj"])
    theirs = CLIPModel(CLIPConfig.from_dict(their_config(start.clip.config)))
    theirs.load_state_dict(to_transformers(start.clip.model.state_dict()), strict=False)
    for of, model in (("transformers", theirs), ("open_clip", start.clip.model)):
        ways = {"": {}, ", rsLoRA": dict(use_rslora=True)}
        ways |= {f", alpha of {n}": dict(alpha_pattern={n: 3}) for n in names[of][::len(names[of]) - 1]}
        for how, more in ways.items():
            place = folder / f"{of}{how}"
            folded = trained(model, place, target_modules=names[of], lora_alpha=8, **more).state_dict()
            folded = from_transformers(folded) if of == "transformers" else folded
            ours = load_classifier(place, base=start).clip.model.state_dict()
            kept = {k: t for k, t in ours.items() if t.is_floating_point() and k in folded}
            yield row(f"peft, an adapter for {of}{how}", "peft", kept, {k: folded[k] for k in kept})
    finetuned = load_classifier(folder / "open_clip", base=start)
    write_adapter(start, finetuned, folder / "ours", rank=4) # of both towers
    read = PeftModel.from_pretrained(copy.deepcopy(start.clip.model), folder / "ours").merge_and_unload().state_dict()
    ended = {k: t for k, t in finetuned.clip.model.state_dict().items() if t.is_floating_point() and k in read}
    yield row("peft reads an adapter of ours", "peft", ended, {k: read[k] for k in ended})


def main():
    rows = []
    with tempfile.TemporaryDirectory() as d:
        for found in (mergekit_rows(Path(d)), fusion_rows(), [regmean_row()],
                      peft_rows(Path(d) / "adapters")):
            with contextlib.redirect_stdout(io.StringIO()):
                rows += found
    with OUT.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for r in rows:
        print("  ".join(map(str, r.values())))
    sys.exit(any(float(r["largest difference"]) > (1 if "float16" in r["what"] else 1e-6) for r in rows))


if __name__ == "__main__":
    main()
