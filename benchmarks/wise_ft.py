"""Our sweep beside the evaluation of wise-ft, the authors' program, on the same files and weights, in turns.

    git clone https://github.com/mlfoundations/wise-ft
    python benchmarks/wise_ft.py wise-ft     writes wise_ft.csv

For each of 11 α theirs averages the weights, and then decodes and evaluates all images (its `eval_single_dataset`, as
it stands in the clone; two processes decode). The file that it writes for each α is left out. Ours averages outputs,
too. By the clock, so on an idle machine.
"""
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from statistics import median
from types import ModuleType

import pandas as pd
import torch
from bench import ALPHAS, Files, empty_cache, fitting_batch_size, ours, seconds, tower

HERE, TURNS = Path(__file__).resolve().parent, 3


def evaluation_of(clone):
    "Their `eval_single_dataset`, without the sets that it would import and download"
    sys.path.insert(0, str(clone))
    package = sys.modules["src.datasets"] = ModuleType("src.datasets")
    package.__path__ = [str(Path(clone, "src/datasets"))]
    from src.models.eval import eval_single_dataset
    return eval_single_dataset


def theirs(evaluate, start, end, suite):
    "Accuracies for each α and set"
    theta_0, theta_1 = ({k: v.clone() for k, v in c.state_dict().items()} for c in (start, end))
    model, args, result = end.copy(), Namespace(freeze_encoder=False, device="cpu"), {}
    loaders = {name: torch.utils.data.DataLoader(
        Files(images, start.transform), batch_size=fitting_batch_size([start], start.transform), num_workers=2)
        for name, images in suite.datasets().items()}
    for alpha in ALPHAS:
        model.load_state_dict({k: (1-alpha)*theta_0[k] + alpha*theta_1[k] for k in theta_0})
        for name, loader in loaders.items():
            result[alpha, name] = evaluate(model, Namespace(test_loader=loader), args)["top1"]
    return result


def main():
    rows, evaluate = [], evaluation_of(sys.argv[1])
    with tempfile.TemporaryDirectory() as work:
        ends_and_suite = tower("ViT-B-32", work, sets=2, n=32)

        def sweep(precision):
            with empty_cache():
                return ours(*ends_and_suite, precision=precision)
        sweep("bf16") # the first one warms up
        for precision in ("fp32", "bf16"):
            times = [(seconds(lambda: theirs(evaluate, *ends_and_suite)), seconds(lambda: sweep(precision)))
                     for _ in range(TURNS)]
            ratios = sorted(t/o for t, o in times)
            rows.append(dict(model="ViT-B-32", images=64, precision=precision, ratio=round(median(ratios), 2),
                             lowest=round(ratios[0], 2), highest=round(ratios[-1], 2)))
            print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(HERE/"wise_ft.csv", index=False)


if __name__ == "__main__":
    main()
