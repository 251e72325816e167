"""Everything that writes files, and what is left of it after a kill.

Kills come at a system call that names a file, between two writes, or at a random moment.
What was to be written must be the old or the new, whole, once somebody looks for it; the next run must find no junk.
`attack.py` does it hundreds of times.
"""
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from tests.models.test_load import write as write_clip
from tests.data.test_shards import pack

from conftest import later
from wiseft.data.disk_cache import open_entry, write_entry
from wiseft.weights.checkpoints import read_state_dict, write_state_dict
from wiseft.models.classifier import zeroshot_classifier
from wiseft.models.load import load_classifier
from wiseft.models.clip import load_clip
from wiseft.stats.table_io import append_results, read_recipes, read_results, write_recipes, write_results
from wiseft.models.export import export_onnx, export_pt2, export_transformers
from wiseft.base.files import MARKER, atomic_path, existing_folder
from wiseft.data.images import ImageSet
from wiseft.analysis.predictions import read_predictions, write_predictions
from wiseft.stats.table import MEAN, REFERENCE, results_table
from wiseft.weights.files import merge_files
from wiseft.models.testing import pico_classifier, pico_clip
from wiseft.data.shards import tar_index
from wiseft.infer.scores import KeptPredictions, image_rows

write_card = later("wiseft.show.card", "write_card")
write_report = later("wiseft.show.report", "write_report")
read_training, write_training = later("wiseft.train.resume", "read_training", "write_training")

WRITES = {"write", "tofile", "fsync", "sync", "serialize_file"}  # functions before which a kill may come
# audit events before which a kill may come
CALLS = {"open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir"}


def table(value):
    "A results table whose every number is `value`."
    ends = [("zero-shot", 0), ("weight-space", 0.5), ("fine-tuned", 1)]
    return results_table(
        dict(classifier="demo", method=m, alpha=a, dataset=d, role=r, value=value)
        for m, a in ends for d, r in ((REFERENCE, "reference"), (MEAN, "shift")))


class Results:
    "A results table, replaced"
    share = 1  # of the number of kills that is asked for: less where writing takes long

    def write(self, folder, value):
        write_results(table(value), folder / "results.csv", force=True)

    def read(self, folder):
        return set(read_results(folder / "results.csv").value)


class Appended(Results):
    "A results table that rows are added to"
    def write(self, folder, value):
        append_results(table(value), folder / "results.csv")

    def read(self, folder):
        values = read_results(folder / "results.csv").value.tolist()
        runs = [set(values[i:i + 6]) for i in range(0, len(values), 6)]
        assert runs[0] == {0.25} and len(values) % 6 == 0, "rows were lost"
        return runs[-1]


class Report:
    "A report"
    share = 0.2

    def write(self, folder, value):
        write_report(table(value), folder / "report.html", force=True)

    def read(self, folder):
        page = (folder / "report.html").read_text()
        assert page.rstrip().endswith("</html>"), "cut off"
        return {v for v in (0.25, 0.75) if f">{100 * v:.1f}</td>" in page}


class Checkpoint:
    "A checkpoint"
    share = 1

    def write(self, folder, value):
        write_state_dict({k: torch.full((64, 64), value) for k in "abc"}, folder / "model.safetensors", force=True)

    def read(self, folder):
        state = read_state_dict(folder / "model.safetensors")
        return {v for k in "abc" for v in state[k].unique().tolist()}


class Merged(Checkpoint):
    "A merge of two files, each half as much and half as much again as their average"
    def write(self, folder, value):
        ends = [folder / "ends" / f"{end}.safetensors" for end in (0.125, 0.375, 1.125)]
        for path in ends if not ends[0].exists() else []:
            write_state_dict({k: torch.full((64, 64), float(path.stem)) for k in "abc"}, path)
        merge_files([ends[value > 0.5], ends[1 + (value > 0.5)]], [0.5, 0.5], folder / "model.safetensors", force=True)


class Folder:
    "A folder, replaced"
    share = 1

    def write(self, folder, value):
        with atomic_path(folder / "classifier", force=True, kind="pair of files") as tmp:
            tmp.mkdir()
            for name in ("wiseft.json", "head.safetensors"):
                (tmp / name).write_text(str(value))

    def read(self, folder):
        path = existing_folder(folder / "classifier", "classifier")
        return {float((path / name).read_text()) for name in ("wiseft.json", "head.safetensors")}


class Recipes:
    "Recipes beside a table"
    share = 1

    def write(self, folder, value):
        write_recipes(dict(demo=dict(lr=value)), folder / "results.recipes.json")

    def read(self, folder):
        return {read_recipes(folder / "results.csv")["demo"]["lr"]}


class Index:
    "What is remembered of a tar, whose name is its content"
    share = 1

    def write(self, folder, value):
        for known in (0.25, 0.75):
            if not (folder / f"{known}.tar").exists():
                pack(folder / f"{known}.tar", [("a.png", b"x"), ("a.cls", b"%d" % (4 * known))])
        self.label(folder, value)

    def label(self, folder, value):
        with patch.dict(os.environ, WISEFT_CACHE=str(folder)):
            return tar_index(folder / f"{value}.tar", lambda name: name.endswith(".png"))[1][0, 2] / 4

    def read(self, folder):
        assert self.label(folder, 0.25) == 0.25
        return {self.label(folder, 0.75)}


class Cached:
    "An entry of the cache, whose name is its content"
    share = 1

    def write(self, folder, value):
        write_entry(folder / str(value), [np.full((8, 8, 3), value)] * 4)

    def read(self, folder):
        entries = [e for v in (0.75, 0.25) if (e := open_entry(folder / str(v))) is not None]
        assert len(entries[0]) == 4, "cut off"
        return {v for image in entries[0] for v in np.unique(image).tolist()}


class Classifier:
    "A classifier's folder, replaced"
    share = 0.6
    instance = None

    def write(self, folder, value):
        instance = Classifier.instance = Classifier.instance or pico_classifier(["cat", "dog"])
        with torch.no_grad():
            instance.head.weight.fill_(value)
        instance.save(folder / "classifier", force=True)

    def read(self, folder):
        return set(load_classifier(folder / "classifier").head.weight.unique().tolist())


def tiny_vit():
    with tempfile.TemporaryDirectory() as d:
        return zeroshot_classifier(load_clip(write_clip(Path(d) / "clip", "vit")), ["cat", "dog"], ["{}"])


class Clip:
    "A CLIP's folder, replaced"
    share = 0.6
    instance = None

    def write(self, folder, value):
        instance = Clip.instance = Clip.instance or pico_clip()
        with torch.no_grad():
            instance.model.logit_scale.fill_(value)
        instance.save(folder / "clip", force=True)

    def read(self, folder):
        return {read_state_dict(existing_folder(folder / "clip") / "open_clip_model.safetensors")["logit_scale"].item()}


class Onnx:
    "An ONNX model, replaced"
    share, writes = 0.1, "models/export.export_onnx"
    instance = None

    def write(self, folder, value):
        instance = Onnx.instance = Onnx.instance or pico_classifier(["cat", "dog"])
        instance.classnames = [f"is {value}", "dog"]
        self.export(instance, folder / "model")

    def export(self, instance, path):
        export_onnx(instance, path.with_suffix(".onnx"), force=True)

    def read(self, folder):
        (path,) = folder.glob("model.*")
        data = path.read_bytes()
        assert len(data) > 1000, "cut off"
        return {value for value in (0.25, 0.75) if f"is {value}".encode() in data}


class Pt2(Onnx):
    "A program of torch.export, replaced"
    writes = "models/export.export_pt2"

    def export(self, instance, path):
        export_pt2(instance, path.with_suffix(".pt2"), force=True)


class Exported:
    "A classifier's folder for transformers, replaced"
    share = 0.3
    instance = None

    def write(self, folder, value):
        instance = Exported.instance = Exported.instance or tiny_vit()
        with torch.no_grad():
            instance.head.weight.fill_(value)
        export_transformers(instance, folder / "exported", force=True)

    def read(self, folder):
        head = read_state_dict(existing_folder(folder / "exported") / "head.safetensors")
        return set(head["weight"].unique().tolist())


class Card(Classifier):
    "The card in a classifier's folder"
    share = 0.2

    def write(self, folder, value):
        if not (folder / "classifier").exists():
            super().write(folder, value)
        write_card(folder / "classifier", table(value))

    def read(self, folder):
        page = (existing_folder(folder / "classifier") / "README.md").read_text()
        assert page.rstrip().endswith("look there."), "cut off"
        return {v for v in (0.25, 0.75) if f"{100 * v:.1f}" in page}


class Predictions:
    "Predictions beside a table"
    share = 1

    def write(self, folder, value):
        images = ImageSet("reference", [f"{i}.png" for i in range(99)], [0, 1, 1] * 33, ["cat", "dog"])
        who = dict(classifier="demo", tuning="", method="zero-shot", alpha=0.0, precision="fp32", seed=0)
        member = who, np.zeros(99, int), dict(nll=np.full(99, value))
        kept = KeptPredictions(image_rows({images.name: images}, "test"), [member])
        write_predictions(kept, folder / "results.predictions.csv.gz", force=True)

    def read(self, folder):
        return set(read_predictions(folder / "results.predictions.csv.gz").frame().nll)


class Resume:
    "The checkpoint of a training"
    share = 1

    def write(self, folder, value):
        tensors = {f"model.{k}": torch.full((64, 64), value) for k in "abc"} | {"noise.cpu": torch.get_rng_state()}
        position = dict(step=int(4 * value), epochs_before=0, initial_accuracy=None, recipe={})
        write_training(folder / "checkpoint.safetensors", tensors, position)

    def read(self, folder):
        tensors, position = read_training(folder / "checkpoint.safetensors")
        return {v for k in "abc" for v in tensors[f"model.{k}"].unique().tolist()} | {position["step"] / 4}


KINDS = (Results, Appended, Report, Checkpoint, Merged, Folder, Cached, Classifier, Clip, Exported, Card, Predictions,
         Resume, Recipes, Index)
WRITERS = {w.__name__.lower(): w() for w in KINDS}
SLOW = {w.__name__.lower(): w() for w in (Onnx, Pt2)}  # seconds a run: for `attack.py` alone


def started(task, *args):
    "Run a task in a process of its own, whose number is returned."
    if not (child := os.fork()):
        status = 1
        try:
            task(*args)
            status = 0
        except BaseException:  # which the exit would swallow
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def ended(child):
    "Wait for a process; the signal that ended it, or its exit status."
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_before(call, folder):
    "Kill this process before its `call`-th system call that names something in the folder, or write."
    n_calls = 0

    def count():
        nonlocal n_calls
        n_calls += 1
        if n_calls == call:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event, args):
        if event in CALLS and str(args[0]).startswith(str(folder)):
            count()

    def profile(frame, event, function):
        if event == "c_call" and function.__name__ in WRITES:
            count()

    sys.addaudithook(audit)
    sys.setprofile(profile)


def kill_after(seconds):
    "Kill this process once so much time has passed."
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, seconds)


def once(writer, kill, *args):
    "Write, be killed while writing again, look, write a third time: whether a kill came, and which was found."
    def killed(folder):
        kill(*args, *([folder] if kill is kill_before else []))
        writer.write(folder, 0.75)
        signal.setitimer(signal.ITIMER_REAL, 0)

    with tempfile.TemporaryDirectory() as d:
        folder = Path(d)
        writer.write(folder, 0.25)
        end = ended(started(killed, folder))
        assert end in (0, -signal.SIGKILL), f"the writer ended with {end}"
        values = writer.read(folder)
        assert values in ({0.25}, {0.75}), f"neither old nor new: {values}"
        assert end or values == {0.75}, "written, and not there"
        # what is there of the cache is not written again
        shutil.rmtree(folder / "0.75", ignore_errors=True)
        for index in folder.glob("shards/*.npz"):
            index.unlink()
        writer.write(folder, 0.75)
        left = [p.name for p in folder.rglob(".*") if not p.name.endswith(".lock") and p.name != MARKER]
        assert not left, f"junk after the next run: {left}"
        assert writer.read(folder) == {0.75}
    return end != 0, values == {0.75}


def calls(writer):
    "How many calls there are before which a kill may come."
    low, high = 0, 1
    while once(writer, kill_before, high)[0]:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if once(writer, kill_before, middle)[0] else (low, middle)
    return low


def every_call(writer, most=30):
    "Kill before each call, or before `most` of them where there are more."
    n = calls(writer)
    for call in sorted({round(x) for x in np.linspace(1, n, min(n, most))}):
        died, new = once(writer, kill_before, call)
        if died:
            yield new


def random_moments(writer, n, rng):
    "Kill at moments drawn from the time that writing takes."
    with tempfile.TemporaryDirectory() as d:
        writer.write(Path(d), 0.25)
        start = time.perf_counter()
        writer.write(Path(d), 0.75)
        took = time.perf_counter() - start
    for _ in range(n):
        died, new = once(writer, kill_after, rng.uniform(0.001, 1.1 * took))
        if died:
            yield new
