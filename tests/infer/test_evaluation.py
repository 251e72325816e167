"Outputs that can't be used, and ensembles on sets with fewer classes than the reference."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from wiseft.base.registry import Method, method
from wiseft.data.images import ImageSet
from wiseft.data.suites import Suite
from wiseft.infer.classify import classify
from wiseft.infer.ensembles import output_ensemble, sweep
from wiseft.infer.evaluation import evaluate
from wiseft.infer.inference import predict
from wiseft.stats.table import wide

NAMES = ["cat", "dog", "tree"]
PIXELS = np.zeros((6, 4, 4, 3), np.uint8)
ALL = ImageSet("all", [f"{i}.png" for i in range(6)], [0, 1, 2]*2, NAMES, pixels=PIXELS)
ANIMALS = replace(ALL, name="animals", labels=[0, 1]*3, classnames=NAMES[:2], projection=[[0], [1]], role="shift")
SUITE = Suite("suite", NAMES, "plain", test=ALL, shifts=dict(animals=ANIMALS))


class Constant(nn.Module):
    "The same outputs for all images"
    def __init__(self, outputs, alpha):
        super().__init__()
        self.outputs, self.alpha, self.classnames = nn.Parameter(torch.tensor(outputs)), alpha, NAMES
        self.transform, self.seen = lambda image: torch.zeros(3, 4, 4), 0

    def forward(self, x):
        self.seen += len(x)
        return self.outputs.expand(len(x), -1)


def ends(first=(.02, .01, .97), second=(.30, .60, .10)):
    return [Constant(np.log(p).astype(np.float32).tolist(), a) for a, p in enumerate((first, second))]


def confidences(by):
    "How likely each member finds dogs on images of animals and of all classes, by set and method; images it has seen"
    zeroshot, finetuned = ends()
    table, kept = sweep(zeroshot, finetuned, SUITE, [.5], keep_predictions=["NLL"], by=by, progress=False)
    dogs = kept.frame(label="dog").groupby(["dataset", "method"], observed=True).nll.first()
    return np.exp(-dogs), (zeroshot.seen, finetuned.seen)


def test_each_classifier_is_restricted_to_a_sets_classes_before_probabilities_are_averaged():
    "The example of two animals: 1/2 and 1/2, where averages over all three classes would be .344 and .656"
    p, seen = confidences(["probabilities", "logits"])
    assert p["animals"].to_dict() == pytest.approx({"zero-shot": 1/3, "fine-tuned": 2/3, "probabilities": 1/2,
                                                    "logits": 1/2})
    assert p["reference", "probabilities"] == pytest.approx((.01 + .60)/2)
    assert seen == (12, 12)  # one pass over the two sets


def test_so_is_every_ensemble():
    "Of several classifiers, with an α per image, and of the user's own"
    zeroshot, finetuned = ends()
    pair = output_ensemble(dict(a=zeroshot, b=finetuned), "probabilities")
    table = evaluate(pair, SUITE, metrics=["NLL"], progress=False)
    assert table.value[table.dataset == "animals"].item() == pytest.approx(-np.log(.5))
    widths = []

    @method("ensemble", "watching", gives="alpha")
    def watching(zeroshot, finetuned):
        widths.append((zeroshot.shape[1], finetuned.shape[1]))
        return torch.full((len(zeroshot),), .5)
    own = Method(lambda z, f: z.softmax(1) + 3*f.softmax(1), "ensemble", "own", gives="probabilities")
    p, _ = confidences([watching, own])
    assert set(widths) == {(2, 2), (3, 3)} and p["animals", "own"] == pytest.approx(7/12)


def test_infinite_outputs_are_refused_as_nan_is():
    wrong = Constant([0., float("inf"), 0.], 1)
    for call in (lambda: evaluate(wrong, ALL, progress=False), lambda: predict(dict(wrong=wrong), ALL, progress=False),
                 lambda: classify(wrong, PIXELS, progress=False),
                 lambda: sweep(ends()[0], wrong, ALL, [.5], by=["logits"], progress=False)):
        with pytest.raises(ValueError, match="(Constant.*|wrong) gave NaN or infinity for 6 images"):
            call()


def test_a_class_that_is_ruled_out_has_an_infinite_loss_and_a_warning():
    "Also of an average; accuracy and the other classes are as ever"
    sure = Constant([0., 1., -float("inf")], 0)
    with pytest.warns(UserWarning, match="all: the NLL of 'Constant .zero-shot at alpha = 0.' is infinite"):
        table = evaluate(sure, ALL, metrics=["accuracy", "NLL"], progress=False)
    assert table.value.tolist() == [1/3, np.inf] and table[["low", "high"]].iloc[1].isna().all()


def test_a_sweep_goes_from_zero_to_one():
    "Also that of an own module, whose first end is no zero-shot classifier"
    zeroshot, finetuned = ends()
    zeroshot.method = "start"
    table = sweep(zeroshot, finetuned, ALL, by=["weight-space"], progress=False)
    assert table.alpha.tolist() == pytest.approx(np.linspace(0, 1, 11))
    assert wide(table).index.get_level_values("alpha").tolist() == table.alpha.tolist()
    both = sweep(zeroshot, finetuned, ALL, [.3, .6], by=["logits", "weight-space"], progress=False)
    assert both.method.tolist() == ["start", *["weight-space"]*2, *["logits"]*2, "fine-tuned"]


def test_a_printed_table_shows_the_accuracy():
    "In a terminal of any width; a table of other columns prints as pandas prints it"
    table = evaluate(ends()[0], ALL, progress=False)
    with pd.option_context("display.width", 80):
        first, row, *_ = str(table).splitlines()
    assert first.split() == ["classifier", "method", "alpha", "dataset", "metric", "value", "low", "high", "n"]
    assert "0.3333" in row
    assert str(table[["method", "value"]]) == str(pd.DataFrame(table)[["method", "value"]])
