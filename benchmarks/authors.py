"""Our merges beside the programs of those who published them, on the same tensors.

    cd FOLDER && for r in AntoAndGar/task_singular_vectors danielm1405/iso-merging mlfoundations/task_vectors \
        prateeky2806/ties-merging bloomberg/dataless-model-merging; do git clone https://github.com/$r; done
    python benchmarks/authors.py FOLDER     writes benchmarks/authors.csv

Their functions are called as they stand in the clones, and nothing of theirs is copied. A row has the largest
difference of any weight. ProLIP's program trains on CUDA alone and is not run; R-Adapter's was not to be had.
"""
import csv
import subprocess
import sys
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from parity import classifiers, matrices, step, with_ridge

from wiseft.data.suites import load_suite
from wiseft.methods.iso_c import iso_c
from wiseft.methods.regmean import inner_products, regmean
from wiseft.methods.task_arithmetic import task_arithmetic
from wiseft.methods.ties import ties
from wiseft.methods.tsv_m import tsv_m
from wiseft.weights.merge import merge

COLUMNS = ["what", "repository", "commit", "tensors", "largest difference"]


@contextmanager
def program(clone, path):
    "A file of a clone as a module, which finds its neighbors, but runs no package's beginning."
    file, package = clone / path, ModuleType("theirs")
    package.__path__, sys.modules["theirs"] = [str(file.parent)], package
    sys.path.insert(0, str(clone))
    try:
        with redirect_stdout(StringIO()):
            yield import_module(f"theirs.{file.stem}")
    finally:
        sys.path.remove(str(clone))
        for name in [n for n in sys.modules if n.partition(".")[0] in ("src", "theirs")]:
            del sys.modules[name]


def row(what, folder, ours, theirs):
    assert ours.keys() == theirs.keys() and len(ours) > 3
    worst = max(float((ours[k].double() - theirs[k].double()).abs().max()) for k in ours)
    commit = subprocess.run(["git", "-C", folder, "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True)
    return dict(zip(COLUMNS, [what, folder.name, commit.stdout.strip(), len(ours), f"{worst:.1e}"]))


def rows_of(clones):
    start, finetuned = classifiers()
    s, states = matrices(start), [matrices(c) for c in finetuned]
    steps = [step(s, t) for t in states]
    config, vectors = SimpleNamespace(device="cpu", DATASETS=[*"abc"]), [SimpleNamespace(vector=v) for v in steps]
    added = lambda change: {k: s[k] + change[k] for k in s}
    ours = lambda rule, **hyperparameters: merge(s, states, rule, **hyperparameters)
    with program(clones / "iso-merging", "src/utils/iso.py") as iso:
        yield row("Iso-C", clones / "iso-merging", ours(iso_c, alpha=1.0), added(iso.iso_c(vectors, config)))
    folder = clones / "task_singular_vectors"
    with program(folder, "src/utils/TSVM_utils.py") as tsv:
        merged = tsv.compute_and_sum_svd_mem_reduction(vectors, config)
        yield row("TSV-M", folder, ours(tsv_m), added(merged))
    with program(clones / "task_vectors", "src/task_vectors.py") as task:
        whole = sum(task.TaskVector(vector=v) for v in steps).vector
        scaled = {k: 0.3 * v for k, v in whole.items()}
        yield row("task arithmetic", clones / "task_vectors", ours(task_arithmetic, alpha=0.3), added(scaled))
    flat = torch.stack([torch.nn.utils.parameters_to_vector(v.values()) for v in steps])
    with program(clones / "ties-merging", "src/utils/merge_utils.py") as utils:
        parts = iter(utils.merge_methods("topk", flat, 20, "mass", "dis-mean").split([t.numel() for t in s.values()]))
        merged = added({k: next(parts).view_as(t) for k, t in s.items()})
        yield row("TIES", clones / "ties-merging", ours(ties, density=0.2), merged)
    yield regmean_row(clones / "dataless-model-merging", start, finetuned)


def regmean_row(folder, start, finetuned):
    "RegMean's regression of the same inner products: with what ours adds so that there is always a solution."
    images = load_suite("icons").validation.subset(range(64))
    ours = merge(start, finetuned, regmean, images=images, n_images=64).state_dict()
    products = [inner_products(c, images) for c in finetuned]
    names = [k for k in products[0] if k.endswith(".weight")]
    states, grams = list(map(matrices, finetuned)), [with_ridge(g, names) for g in products]
    of_all = lambda k: [state[k] for state in states]
    weights = {k: of_all(k) for k in names}
    settings = dict(regmean_exclude_param_regex=[], regmean_diag=False, regmean_reduce_nondiag=0.9)
    with program(folder, "src/model_merge/avg_merger.py") as merger:
        theirs = merger.FedAvgMerger(None, SimpleNamespace(**settings), finetuned, start)
        merged = theirs.regmean_mean_params(weights, grams)
    return row("RegMean", folder, {k: ours[k] for k in names}, merged)


def main():
    rows = list(rows_of(Path(sys.argv[1])))
    with Path(__file__).with_name("authors.csv").open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for r in rows:
        print("  ".join(map(str, r.values())))
    sys.exit(any(float(r["largest difference"]) > 1e-6 for r in rows))


if __name__ == "__main__":
    main()
