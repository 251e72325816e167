"""Our merges and adapters beside the code of those who are known for them, on the same tensors.

    python -m venv ENV && ENV/bin/pip install . mergekit fusion-bench peft
    ENV/bin/python benchmarks/parity.py           writes benchmarks/parity.csv

mergekit runs three of its own example recipes, two more by layers and by names, with models that are tiny and have
random weights; fusion-bench merges state dicts; peft folds an adapter. Nothing of theirs is copied. A row has the
largest difference of any tensor, in units of the largest step from the start.
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
    "A start and three models near it, of the kind that mergekit's examples are about: six layers, random weights."
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

    run_merge(MergeConfiguration.model_validate(recipe), str(out), MergeOptions(copy_tokenizer=False, quiet=True))
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


def row(what, package, ours, theirs, unit=0.15):
    "The largest difference of any tensor; steps are of 0.05 times normal numbers, the largest some 0.2."
    assert ours.keys() == theirs.keys() and len(ours) > 3
    worst = max(float((ours[k].double() - theirs[k].double()).abs().max()) for k in ours)
    return dict(zip(COLUMNS, [what, package, version(package), len(ours), f"{worst / unit:.1e}"]))


# ---------- fusion-bench: functions of task vectors and modules ----------


def classifiers():
    "A start and three near it, with a transformer as image tower."
    from wiseft.models.testing import pico_classifier

    start = pico_classifier(["cat", "dog", "bird"], transformer=True)
    made = torch.Generator().manual_seed(0)
    tuned = [start.copy() for _ in range(3)]
    for c in tuned:
        for p in c.parameters():
            p.data += 0.05 * torch.randn(p.shape, generator=made)
    return start, tuned


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

    start, tuned = classifiers()
    s, states = matrices(start), [matrices(c) for c in tuned]
    steps = [{k: t[k] - s[k] for k in s} for t in states]

    def compare(name, rule, theirs, **knobs):
        return row(f"fusion-bench, {name}", "fusion-bench", merge(s, states, rule, **knobs), theirs)

    def added(step):
        return {k: s[k] + step[k] for k in s}

    copied = [copy.deepcopy(m) for m in (start, *tuned)]
    summed = task_arithmetic_merge(copied[0], copied[1:], 0.3)
    yield compare("task arithmetic", task_arithmetic, matrices(summed), alpha=0.3)
    yield compare("Iso-C", iso_c, added(their_iso_c(steps, "cpu")), alpha=1.0)
    yield compare("TSV-M", tsv_m, added(TSVM_utils.compute_and_sum_svd_mem_reduction(steps, accelerator="cpu")))
    flat = torch.stack([torch.cat([t.flatten() for t in step.values()]) for step in steps])
    merged = iter(ties_merging(flat, reset_thresh=20, merge_func="dis-mean").split([t.numel() for t in s.values()]))
    yield compare("TIES", ties, added({k: next(merged).view_as(t) for k, t in s.items()}), density=0.2)


def matrices(classifier):
    "Weights of a classifier; kernels of convolutions are left out, which fusion-bench takes the mean of."
    return {k: t.clone() for k, t in classifier.state_dict().items() if t.is_floating_point() and t.ndim < 3}


def regmean_row():
    from fusion_bench.method.regmean.regmean import merging_with_regmean_weights

    from wiseft.data.suites import load_suite
    from wiseft.methods.regmean import inner_products, regmean
    from wiseft.weights.merge import merge

    start, tuned = classifiers()
    images = load_suite("icons").validation.subset(range(64))
    ours = merge(start, tuned, regmean, images=images, n_images=64).state_dict()
    products = [inner_products(c, images) for c in tuned]
    names = [k for k in products[0] if start.get_parameter(k).ndim == 2 and k.endswith(".weight")]
    given = [{k.removesuffix(".weight"): g[k] for k in names} for g in products]
    weights = {k: [c.get_parameter(k).detach().double() for c in tuned] for k in names}
    theirs = merging_with_regmean_weights(weights, given, reduce_non_diagonal_ratio=0.9)
    return row("fusion-bench, RegMean", "fusion-bench", {k: ours[k] for k in names}, theirs)


def main():
    rows = []
    with tempfile.TemporaryDirectory() as d:
        for found in (mergekit_rows(Path(d)), fusion_rows(), [regmean_row()]):
            with contextlib.redirect_stdout(io.StringIO()):
                rows += found
    with OUT.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for r in rows:
        print("  ".join(map(str, r.values())))
    sys.exit(any(float(r["largest difference"]) > (1e-2 if "float16" in r["what"] else 1e-5) for r in rows))


if __name__ == "__main__":
    main()
