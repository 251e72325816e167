"""Changed files of every kind: each is read or refused by a `BadFile` that names it.

The same ones every time; `make fuzz` tries thousands.
"""
import gzip
import io
import json
import os
import tarfile
import time
import warnings
from functools import partial, wraps

import numpy as np
import pytest
import readers
import torch
from conftest import slow_except
from PIL import Image
from readers import READERS, Arrays, Captions, Cards, Cifar, Configs, HubFolders, Images, Judged, Labeled, Lists
from readers import Pickles, Predictions, Published, Reader, Recipes, Results, Resumes, Shards, StateDicts, Suites
from readers import TorchScript, attacked, look, saved
from safetensors.torch import save
from tests.promises.test_nothing_is_executed import ASKS_FOR_CODE, BOMBS, HOSTILE, archive, pickled, scripted

from wiseft.stats.table import COLUMNS

TRIED = 100
pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, of odd metadata, and ours, of suites


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
def test_changed_files(kind, tmp_path):
    n = TRIED if kind.share > 0.3 else TRIED // 3  # of what takes longer
    results = [result for result, _ in attacked(kind(), n, 1, tmp_path)]  # `make fuzz` has seed 0
    assert "wrong" not in results and "refused" in results


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
def test_the_files_to_change_are_good(kind, tmp_path):
    "Else nothing would be reached. Pictures of kinds that aren't read, and a pickle of no tensors, are to be refused."
    reader = kind()
    outcomes = [look(reader, reader.files(parts), tmp_path) for parts in reader.seeds]
    refused = [s for s in outcomes if s != "read"]
    assert not refused or kind in (Pickles, Images) and len(refused) < len(outcomes) / 2, refused


# ---------- what was found, or thought of, once ----------

def when_asked(make):
    "A function of nothing in place of what a function makes: whoever collects tests waits for no file."
    return wraps(make)(lambda *args, **kwargs: partial(make, *args, **kwargs))


@when_asked
def config(part, **settings):
    "A configuration with other settings."
    content = json.loads(Configs().seeds[0]["open_clip_config.json"])
    (content["model_cfg"][part] if part else content["model_cfg"]).update(settings)
    return {"open_clip_config.json": json.dumps(content).encode()}


@when_asked
def preprocess(**settings):
    content = json.loads(Configs().seeds[0]["open_clip_config.json"])
    content["preprocess_cfg"].update(settings)
    return {"open_clip_config.json": json.dumps(content).encode()}


@when_asked
def hub(**settings):
    content = json.loads(HubFolders().seeds[0]["config.json"])
    return {"config.json": json.dumps(content | settings).encode()}


@when_asked
def without_text():
    content = json.loads(Configs().seeds[1]["open_clip_config.json"])
    del content["model_cfg"]["text_cfg"]
    return {"open_clip_config.json": json.dumps(content).encode()}


@when_asked
def card(**entries):
    content = json.loads(Cards().seeds[0]["wiseft.json"])
    return {"wiseft.json": json.dumps(content | entries).encode()}


def cells(**entries):
    "Cells of the first row of a results table"
    return {f"01 {COLUMNS.index(column):02}": f"{value},".encode() for column, value in entries.items()}


@when_asked
def png(name, size):
    file = io.BytesIO()
    Image.new("1", size).save(file, "PNG")
    return {name: file.getvalue()}


@when_asked
def resume(tensors, **position):
    known = dict(step=3, epochs_before=0, initial_accuracy=0.5, recipe={})
    data = save(tensors | {"noise.cpu": torch.zeros(4, dtype=torch.uint8)}, dict(wiseft=json.dumps(known | position)))
    return {Resumes.name: data}


PICTURES = {
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n",
    "eps in a dos shell": b"\xc5\xd0\xd3\xc6" + bytes(26) + b"%!PS-Adobe-3.0",
    "pgm of 10^10 pixels": b"P5 100000 100000 255\n",
    "pgm of no pixels": b"P5 0 0 255\n",
    "tiff that points at itself": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "webp of 16383 x 16383": b"RIFF\x1a\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0\xfe\x3f\0\xfe\x3f\0",
    "gif of 65535 x 65535": b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;",
    "bmp of 2^31 rows": b"BM" + bytes(8) + b"\x36\0\0\0\x28\0\0\0\x01\0\0\0\0\0\0\x80\x01\0\x18\0" + bytes(24),
    "empty": b"",
}
UNUSUAL = {  # tensors that no state dict of ours has
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3, 3), 0.1, 0, torch.qint8),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "compressed": lambda: torch.eye(3).to_sparse_csr(),
    "complex": lambda: torch.ones(2, dtype=torch.complex64),
    "empty": lambda: torch.ones(3, device="meta"),
    "8-bit": lambda: torch.ones(2).to(torch.float8_e4m3fn),
}


@when_asked
def state_dict(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantizing is deprecated
        return {StateDicts.name: saved(torch.save, dict(w=make()))}


TWO_DISKS = b"PK\x06\x07" + b"\1\0\0\0" + bytes(8) + b"\2\0\0\0" + b"PK\x05\x06" + bytes(18)


def noted(data):
    "A header of a tar for notes on its next member, and these."
    about = tarfile.TarInfo("notes")
    about.type, about.size = tarfile.XHDTYPE, len(data)
    return about.tobuf() + data + bytes(-len(data) % 512)


CORPUS = {  # reader, what differs from its first file: parts, or whole files
    **{f"pictures: {name}": (Images, {Images.name: data}) for name, data in PICTURES.items()},
    "pictures: png of 13,000 x 13,000": (Images, png(Images.name, (13_000, 13_000))),
    **{f"pickles: {name}": (Pickles, {Pickles.name: pickled(data)}) for name, data in HOSTILE.items()},
    **{f"state dicts: {name}": (StateDicts, {StateDicts.name: archive(pickled(d))}) for name, d in HOSTILE.items()},
    **{f"scripts: {name}": (TorchScript, {TorchScript.name: scripted(data)}) for name, data in HOSTILE.items()},
    **{f"scripts: {name} that grow": (TorchScript, {TorchScript.name: data}) for name, data in BOMBS.items()},
    **{f"arrays: {name}": (Arrays, {Arrays.name: pickled(data)}) for name, data in HOSTILE.items()},
    **{f"configs: {name}": (Configs, config("text_cfg", **text)) for name, text in ASKS_FOR_CODE.items()},
    "configs: weights of the hub": (Configs, config("vision_cfg", timm_model_name="hf-hub:someone/model")),
    "configs: weights of another folder": (Configs, config("vision_cfg", timm_model_name="local-dir:/tmp")),
    "configs: 16,384 wide": (Configs, config("vision_cfg", width=16384)),
    "configs: 4,096 x 4,096 patches": (Configs, config("vision_cfg", image_size=4096, patch_size=1)),
    "configs: 10^9 layers": (Configs, config("vision_cfg", layers=10**9)),
    "configs: nested": (Configs, {"open_clip_config.json": b"[" * 99_999}),
    "cards: one name for two rows": (Cards, card(classnames=["cat"])),
    "cards: a head that is a number": (Cards, card(head=1)),
    "configs: no text tower, and its weights": (Configs, without_text()),
    "cards: an unknown precision": (Cards, card(precision="x")),
    "configs: one mean for three colors": (Configs, preprocess(mean=0.5)),
    "cards: classes that are none": (Cards, card(classnames=[1, 2, 3])),
    "cards: alpha is text": (Cards, card(alpha="1")),
    "cards: a tower's tag that is a number": (Cards, card(clip=dict(name="x", pretrained=1.5))),
    "results: outside its interval": (Results, cells(value=0.99)),
    "results: percent": (Results, cells(value=50.0, low=40.0, high=60.0)),
    "results: -1 images": (Results, cells(n=-1)),
    "results: alpha is infinite": (Results, cells(alpha=float("inf"))),
    "results: a million columns": (Results, {Results.name: b"a," * 10**6 + b"\n"}),
    "results: no table": (Results, {Results.name: b"\xff\xfe\0"}),
    "resume: not a number": (Resumes, resume({"model.w": torch.tensor([float("nan")])})),
    "resume: step -1": (Resumes, resume({}, step=-1)),
    "resume: empty": (Resumes, {Resumes.name: b""}),
    "resume: cut short": (Resumes, lambda: {Resumes.name: resume({"model.w": torch.ones(9)})()[Resumes.name][:-5]}),
    "class names in Latin-1": (Lists, {Lists.name: "cat\ncafé\n".encode("latin1")}),
    "hub: sizes that are a number": (HubFolders, hub(text_config=1)),
    "hub: an activation that is a list": (HubFolders, hub(model_type="siglip", vision_config=dict(hidden_act=[]))),
    "predictions: no gzip inside": (Predictions, {Predictions.name: b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 40}),
    "predictions: a column with another name": (Predictions, {"00 00": b"set,"}),
    "recipes: a list": (Recipes, {Recipes.name: b"[]"}),
    "judged: an array alone": (Judged, {Judged.name: b"\x93NUMPY\x01\x00"}),
    "shards: a list of classes in Latin-1": (Shards, {"classnames.txt": "cat\ncafé\n".encode("latin1")}),
    "shards: a header of digits": (Shards, {"s/0.tar": noted(b"1" * 300_000) + bytes(1024)}),
    "shards: a header of two megabytes": (Shards, {"s/0.tar": noted(b"a" * 2**21) + bytes(1024)}),
    **{f"state dicts: {name} tensors": (StateDicts, state_dict(make)) for name, make in UNUSUAL.items()},
    "labels: ten thousand columns": (Labeled, {"table.csv": b"file,label" + b",x" * 10**4 + b"\n"}),
    "labels: a wide row": (Labeled, {"table.csv": b"file,label\n" + b"x," * 10**4 + b"\n"}),
    "published: ten thousand columns": (Published, {"iwildcam_v2.0/metadata.csv": b"x," * 10**4 + b"\n"}),
    "predictions: ten thousand columns": (Predictions, {Predictions.name: gzip.compress(b"x," * 10**4 + b"\n")}),
    "state dicts: a zip file on two disks": (StateDicts, {StateDicts.name: TWO_DISKS}),
    "shards: a count in Latin-1": (Shards, {"nshards.txt": "é".encode("latin1")}),
    "labels: a class of no letters": (Labeled, {"01 01": b"\0,"}),
    "labels: a file with 9,999 letters": (Labeled, {"01 00": b"." * 9999 + b","}),
    "captions in Latin-1": (Captions, {"01 01": "café,".encode("latin1")}),
    "captions: one of spaces": (Captions, {"01 01": b" ,"}),
    "published: a class that isn't": (Published, {
        "iwildcam_v2.0/metadata.csv": b"filename,y,location_remapped,split\n1.jpg,x,0,train\n"}),
    "published: a table of others": (Published, {"fmow_v1.1/rgb_metadata.csv": b"file,split\n"}),
    "published: times that are none": (Published, {
        "fmow_v1.1/rgb_metadata.csv": b"split,category,country_code,timestamp\ntrain,zoo,DEU,x\n"}),
    "published: an image of no class": (Published, {"SUN397/Training_01.txt": b"/x/y.jpg\n"}),
    "published: mappings that are lists": (Published, {"objectnet-1.0/mappings/folder_to_objectnet_label.json": b"[]"}),
    "CIFAR-10.1: labels of no class": (Cifar, lambda: {
        "CIFAR-10.1/cifar10.1_v6_labels.npy": saved(lambda c, f: np.save(f, c), np.array([0, 10]))}),
    "suites: a table in Latin-1": (Suites, {"s/images.csv": "file,family\ncafé,a\n".encode("latin1")}),
}


@pytest.mark.parametrize("name", slow_except(CORPUS, [n for n in CORPUS if n.partition(": ")[2] in HOSTILE]))
def test_known_ones(name, tmp_path):
    if name == "configs: auto_map":
        pytest.importorskip("transformers")  # without it, that is what is asked for
    kind, changes = CORPUS[name]
    changes = changes() if callable(changes) else changes
    reader = kind()
    parts = reader.seeds[0]
    files = reader.files(parts | {k: v for k, v in changes.items() if k in parts})
    files |= {k: v for k, v in changes.items() if k in files and k not in parts}
    assert look(reader, files, tmp_path) != "read"


def busy(folder):
    while True:
        pass


@pytest.mark.slow
def test_the_judge_sees(tmp_path, monkeypatch):
    "A reader that starts a program, hangs, grows, or lets a foreign error out is found."
    def judged(read, words):
        bad = type("Bad", (Reader,), dict(starts=lambda self: [], read=staticmethod(read)))()
        with pytest.raises(AssertionError, match=words):
            look(bad, {"mutated": b""}, tmp_path)

    judged(lambda folder: os.system("true"), "started")
    judged(lambda folder: {}["x"], "a foreign error, KeyError")
    monkeypatch.setattr(readers, "MOST", 2e8)  # a gigabyte may take as long as is allowed
    judged(lambda folder: np.ones(40_000_000), "grew")
    monkeypatch.setattr(readers, "SLOWEST", 0.2)
    monkeypatch.setattr(readers, "LONGEST", 2)
    judged(busy, "more than 0.2 s")
    judged(lambda folder: time.sleep(60), "or 2 s of the clock")
