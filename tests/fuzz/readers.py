"""Everything that reads a file from a stranger, with small files for it, and what may come of one.

It is read, or refused by a BadFile that names it. Files are made of parts, which `changed_files` changes; a part in
JSON changes as such too, and any file as bytes.
"""
import csv
import gzip
import hashlib
import io
import json
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from copy import deepcopy
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import save as safetensors_bytes
from tests.models.test_load import build, small_siglip

from conftest import later
from wiseft.data.arrays import read_array, read_pickle_as_data
from wiseft.data.disk_cache import cache_table, open_entry, write_entry
from wiseft.data.hashes import content_hashes, remember_hashes
from wiseft.weights.checkpoints import read_state_dict
from wiseft.weights.layout import Positions
from wiseft.weights.merge import TensorInfo
from wiseft.weights.recipes import read_recipe
from wiseft.models.classifier import ImageClassifier
from wiseft.models.load import load_classifier
from wiseft.models.testing import pico_classifier
from wiseft.models.clip import load_clip
from wiseft.data.suites import load_suite
from wiseft.stats.table_io import read_recipes, read_results, write_results
from wiseft.base.files import MARKER, atomic_path, cache_root, check_replaceable
from wiseft.models.head import ClassificationHead
from wiseft.data.decoding import UnreadableImage, open_image, readable_formats
from wiseft.data.images import ImageSet
from wiseft.data.labels import holds_images, image_folder, table_set
from wiseft.data.objects import image_set
from wiseft.data.retrieval import retrieval_set
from wiseft.analysis.ask import Questions, read_answers, read_questions
from wiseft.analysis.predictions import compare_ends, read_predictions, write_predictions
from wiseft.data.layouts import FAMILIES, PUBLISHED_CORRUPTIONS, objectnet_names
from wiseft.models.hf_clip import their_config, their_preprocess, to_transformers
from wiseft.data.prompts import read_classnames
from wiseft.stats.table import COLUMNS, MEAN, REFERENCE, results_table
from wiseft.infer.scores import KeptPredictions, image_rows
from wiseft.data.shards import tar_index
from wiseft.base.text import BadFile

write_card = later("wiseft.show.card", "write_card")
captioned_images = later("wiseft.train.loaders", "captioned_images")
read_training = later("wiseft.train.resume", "read_training")

SLOWEST = 60  # seconds of the processor that one file may take; the slowest takes 2
LONGEST = 900  # seconds of the clock, on a busy machine
MOST = 1e9  # bytes by which the process may grow
MAPPED = 8e9  # bytes of addresses that it may ask for more, most of which are never filled
STARTED = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "os.startfile", "subprocess.Popen", "socket.connect",
           "socket.getaddrinfo"}


# ---------- how a file is changed ----------

NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1]
TEXTS = [b"", b"nan", b"-1", b"1e309", b"9" * 30, b"inf", b"\xff", b'"', b",", b"\n", b"True", b"[1]", b"{}", b"\0",
         b"\xe2\x80\xa8", b"." * 999, b"[" * 9999]
VALUES = [None, True, -1, 0, 1, 0.5, 1e308, 10**30, float("nan"), "", "x", "/", "../x", "hf-hub:a/b", "a/b", "\u2028",
          "\ud800", [], [-1], {}, [{}], "gelu", [16, 16]]


def changed_bytes(rng, data):
    "Some bytes replaced, numbers made large, pieces cut out or doubled, or the end cut off."
    data = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at, n = rng.randint(0, len(data)), rng.randint(1, 8)
        how = rng.choice(["bytes", "number", "cut", "double", "end"])
        if how == "bytes":
            data[at:at + n] = rng.randbytes(n)
        if how == "number":
            size = rng.choice([1, 2, 4, 8])
            value = rng.choice(NUMBERS) & (1 << 8 * size) - 1
            data[at:at + size] = value.to_bytes(size, rng.choice(["little", "big"]))
        if how == "cut":
            del data[at:at + n]
        if how == "double":
            data[at:at] = data[at:at + n]
        if how == "end" and at > len(data) // 2:
            del data[at:]
    return bytes(data)


def places(content):
    "All (container, key) within JSON."
    for key in list(content) if isinstance(content, dict) else range(len(content)):
        yield content, key
        if isinstance(content[key], (dict, list)):
            yield from places(content[key])


def changed_json(rng, text):
    "Some values replaced, left out, renamed or copied to another place."
    content = json.loads(text)
    for _ in range(rng.randint(1, 3)):
        if not (options := list(places(content))):
            break
        container, key = rng.choice(options)
        how = rng.choice(["value", "value", "value", "without", "name", "copy"])
        if how == "value":
            container[key] = deepcopy(rng.choice(VALUES))
        if how == "without":
            del container[key]
        if how == "name" and isinstance(container, dict):
            container[rng.choice(["x", "auto_map", "", "width"])] = container.pop(key)
        if how == "copy":
            other, place = rng.choice(options)
            other[place] = json.loads(json.dumps(container[key]))
    return json.dumps(content).encode()


def is_json(data):
    try:
        return isinstance(json.loads(data), (dict, list))
    except (ValueError, RecursionError):
        return False


def changed_files(reader, rng):
    "Name → content of the files that a reader is given."
    parts = dict(rng.choice(reader.seeds))
    for name in rng.choices(sorted(parts), k=rng.randint(1, 2)):
        how = rng.choice(["bytes", "text"] + 3 * ["json"] * is_json(parts[name]))
        changed = dict(bytes=changed_bytes, json=changed_json, text=lambda rng, data: rng.choice(TEXTS))
        parts[name] = changed[how](rng, parts[name])
    files = reader.files(parts)
    if rng.randrange(4) == 0:
        name = rng.choice(sorted(files))
        files[name] = changed_bytes(rng, files[name])
    return files


# ---------- what is read ----------

class Reader:
    "One file, of parts that are put together"
    name, share = "mutated", 1.9  # of the number of changes that is asked for: less where a file takes longer
    also = ()  # other errors by which files may be refused, with their name

    def __init__(self):
        self.seeds = list(self.starts())

    def files(self, parts):
        return {self.name: b"".join(parts.values())}

    def read(self, folder):
        return self.load(folder / self.name)


class Safetensors(Reader):
    "safetensors"
    name, modules = "mutated.safetensors", ("weights/safetensors_io", "weights/checkpoints")
    load = staticmethod(read_state_dict)

    def starts(self):
        for state in tensors():
            data = safetensors_bytes(state, dict(format="pt", step="1"))
            n = struct.unpack("<Q", data[:8])[0]
            yield dict(header=data[8:8 + n], data=data[8 + n:])

    def files(self, parts):
        return {self.name: struct.pack("<Q", len(parts["header"])) + parts["header"] + parts["data"]}


def tensors():
    "Small state dicts."
    yield {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2).half(), "n": torch.tensor(3)}
    yield {"w": torch.ones(2, 2).bfloat16(), "empty": torch.ones(0, 3), "flags": torch.tensor([True, False]),
           "bytes": torch.arange(5, dtype=torch.uint8)}


class StateDicts(Reader):
    "PyTorch's files"
    name, modules, share = "mutated.pt", ("weights/checkpoints", "weights/pickle_reader"), 0.7
    load = staticmethod(read_state_dict)

    def starts(self):
        for state in tensors():
            yield unzipped(saved(torch.save, state))
            inner = {f"module.{k}": torch.nn.Parameter(v, v.is_floating_point()) for k, v in state.items()}
            yield unzipped(saved(torch.save, dict(epoch=1, state_dict=inner, args=[1, "x"])))

    def files(self, parts):
        return {self.name: zipped(parts)}


def saved(save, content, **options):
    "What is written to a file."
    file = io.BytesIO()
    save(content, file, **options)
    return file.getvalue()


def unzipped(data):
    with zipfile.ZipFile(io.BytesIO(data)) as z:
        return {n: z.read(n) for n in z.namelist()}


def zipped(parts):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as z:
        for name, data in parts.items():
            z.writestr(name, data)
    return file.getvalue()


class TorchScript(StateDicts):
    "TorchScript archives"
    def starts(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
            yield unzipped(torch.jit.script(module).save_to_buffer())


class Pickles(Reader):
    "Pickles of PyTorch before 1.6"
    name, modules = "mutated.pt", ("weights/checkpoints", "weights/pickle_reader")
    load = staticmethod(read_state_dict)

    def starts(self):
        for state in tensors():
            yield dict(all=saved(torch.save, dict(epoch=1, state_dict=state), _use_new_zipfile_serialization=False))
        yield dict(all=pickle.dumps(dict(w=1), 2))


class Arrays(Reader):
    "CIFAR's pickles, and arrays"
    modules = ("data/arrays",)

    def starts(self):
        batch = {b"data": np.zeros((2, 12), np.uint8), b"labels": [0, 1], b"names": [b"a", b"b"]}
        yield dict(all=pickle.dumps(batch, 2))
        yield dict(all=pickle.dumps(dict(images=np.arange(6.0).reshape(2, 3), labels=[0, 1]), 4))
        yield dict(all=saved(lambda c, f: np.save(f, c), np.arange(12, dtype=np.int32).reshape(3, 4)))

    def load(self, path):
        try:
            return read_array(path)
        except BadFile:
            return read_pickle_as_data(path)


MODEL = dict(
    embed_dim=8,
    vision_cfg=dict(image_size=16, layers=1, width=16, head_width=8, patch_size=8),
    text_cfg=dict(context_length=8, vocab_size=64, width=16, heads=2, layers=1),
)
PREPROCESS = dict(mean=[0.5, 0.4, 0.3], std=[0.3, 0.2, 0.1], interpolation="bicubic", resize_mode="shortest", size=16)
TIMM = MODEL | dict(custom_text=True, vision_cfg=dict(
    image_size=32, timm_model_name="test_vit", timm_pool="token", timm_proj="linear"))


def clip_parts(model):
    "The files of a tiny CLIP."
    state = {k: v.contiguous() for k, v in build(model).state_dict().items()}
    config = json.dumps(dict(model_cfg=model, preprocess_cfg=PREPROCESS)).encode()
    return {"open_clip_config.json": config, "open_clip_model.safetensors": safetensors_bytes(state)}


class Configs(Reader):
    "Configurations and weights of CLIPs"
    modules = "models/open_clip_config", "models/sources", "models/build", "models/clip"
    share, weights = 0.25, "open_clip_model.safetensors"

    def starts(self):
        for model in (MODEL, TIMM):
            yield self.split(clip_parts(model))

    def split(self, files):
        data = files.pop(self.weights)
        n = struct.unpack("<Q", data[:8])[0]
        return files | dict(header=data[8:8 + n], data=data[8 + n:])

    def files(self, parts):
        weights = struct.pack("<Q", len(parts["header"])) + parts["header"] + parts["data"]
        others = {n: data for n, data in parts.items() if n not in ("header", "data")}
        return others | {self.weights: weights}

    def read(self, folder):
        return load_clip(folder)


class Cards(Configs):
    "Classifiers' cards, heads and configurations"
    modules, share = ("models/save", "models/load", "models/classifier", "show/card"), 0.1

    def starts(self):
        with folder_of(clip_parts(MODEL)) as folder:
            head = ClassificationHead(torch.ones(2, 8))
            classifier = ImageClassifier(load_clip(folder), head, ["cat", "dog"], ["a {}"], alpha=1.0,
                                         recipe=dict(tuning="plain", lr=1e-5))
            yield self.split({p.name: p.read_bytes() for p in classifier.save(folder / "c").iterdir()})

    def files(self, parts):
        "With the hashes of what is there, as whoever makes a folder to harm would write them."
        files = super().files(parts)
        try:
            card = json.loads(files["wiseft.json"])
            card["files"] |= {n: hashlib.sha256(data).hexdigest() for n, data in files.items() if n in card["files"]}
            del card["sha256"]
            files["wiseft.json"] = json.dumps(card).encode()
        except (ValueError, TypeError, KeyError, RecursionError):
            pass  # no card any more
        return files

    def read(self, folder):
        c = load_classifier(folder)
        return repr(c), c.tuning, c.hash, write_card(folder)


class Images(Reader):
    "Pictures"
    name, modules = "mutated.jpg", ("data/decoding",)
    load = staticmethod(open_image)

    def starts(self):
        yield from (dict(all=data) for data in pictures())

    def read(self, folder):
        im = open_image(folder / self.name)
        assert im.mode == "RGB" and im.width > 0 and im.height > 0
        return np.asarray(im)


def encoded(im, kind, **options):
    "The bytes of an image file; empty where this Pillow can't write it."
    try:
        return saved(lambda c, f: c.save(f, kind, **options), im)
    except (KeyError, OSError, ValueError):
        return b""


def pictures():
    "Small files of every kind that is read, and of some that aren't."
    noise = np.random.default_rng(0).integers(0, 256, (12, 10, 4), dtype=np.uint8)
    color, clear = Image.fromarray(noise[..., :3]), Image.fromarray(noise)
    kept = [color, clear, color.convert("L"), color.convert("P"), color.convert("1"), color.convert("CMYK")]
    kept.append(Image.fromarray(noise[..., 0].astype(np.uint16) * 257))
    kinds = [*readable_formats(), "EPS", "PCX", "PDF", "XBM"]
    files = [encoded(im, kind) for kind in kinds for im in kept]
    files += [encoded(color, "TIFF", compression=c) for c in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")]
    files.append(encoded(color, "GIF", save_all=True, append_images=[clear.convert("RGB")]))
    files.append(encoded(color, "JPEG", progressive=True))
    return sorted({f for f in files if f})


def table():
    "A small results table."
    ends = [("zero-shot", 0.0, 0.5), ("weight-space", 0.5, 0.7), ("logits", float("nan"), 0.6)]
    known = dict(classifier="demo", n=100, seed=0)
    sets = {REFERENCE: "reference", "sketch": "shift", MEAN: "shift"}
    rows = [dict(method=m, alpha=a, dataset=d, role=r, value=v, low=v - 0.1, high=v + 0.1)
            for m, a, v in ends for d, r in sets.items()]  # fmt: skip
    return results_table(known | row for row in rows)


def cells_of(rows):
    "The cells of a CSV file, each a part."
    return {f"{i:02} {j:02}": f"{quoted(cell)}{',' if j < len(row) - 1 else chr(10)}".encode()
            for i, row in enumerate(rows) for j, cell in enumerate(row)}  # fmt: skip


def quoted(cell):
    return '"' + cell.replace('"', '""') + '"' if '"' in cell or "," in cell else cell


class Results(Reader):
    "Results tables in CSV"
    name, modules, share = "mutated.csv", ("stats/table_io", "stats/table"), 0.25

    def starts(self):
        yield cells_of(csv.reader(io.StringIO(table().to_csv(index=False))))

    def read(self, folder):
        t = read_results(folder / self.name)
        again = read_results(write_results(t, folder / "again.csv", force=True))
        pd.testing.assert_frame_equal(t[COLUMNS], again[COLUMNS], check_dtype=False)
        return t


class Resumes(Safetensors):
    "Checkpoints of a training"
    modules = ("train/resume",)
    load = staticmethod(read_training)

    def starts(self):
        noise = torch.arange(4, dtype=torch.uint8)
        state = {"model.w": torch.ones(2, 2), "optimizer.0.step": torch.tensor(3.0), "noise.cpu": noise}
        position = json.dumps(dict(step=3, epochs_before=0, initial_accuracy=0.5, recipe=dict(lr=0.1)))
        data = safetensors_bytes(state, dict(wiseft=position))
        n = struct.unpack("<Q", data[:8])[0]
        yield dict(header=data[8:8 + n], data=data[8 + n:])


class Entries(Reader):
    "Entries of the cache"
    modules, share = ("data/disk_cache",), 0.4

    def starts(self):
        with folder_of({}) as folder:
            write_entry(folder / "e", [np.full((2, 3, 3), i, np.uint8) for i in range(3)], name="x")
            yield {p.name: p.read_bytes() for p in (folder / "e").iterdir()}

    def files(self, parts):
        return {f"e/{n}": data for n, data in parts.items()}

    def read(self, folder):
        if (entry := open_entry(folder / "e")) is None:
            raise BadFile(f"{folder} is made again.")  # which is what becomes of it
        return [np.array(entry[i]) for i in range(len(entry))]


class Lists(Reader):
    "Lists of class names"
    name, modules = "mutated.txt", ("data/prompts",)
    load = staticmethod(read_classnames)

    def starts(self):
        yield {str(i): f"{name}\n".encode() for i, name in enumerate(["\ufeffcat", "fire truck", "café", "dog"])}


class Suites(Reader):
    "Tables beside the images of a suite"
    modules, share = ("data/suites", "data/images"), 0.1
    names = [f"{split}/{c}/{i}.png" for split in ("reference", "sketch") for c in "ab" for i in range(5)]

    def starts(self):
        rows = [["file", "family", "original"], *([n, f"f{i % 3}", ""] for i, n in enumerate(self.names))]
        yield cells_of(rows)

    def files(self, parts):
        pictures = {f"s/{n}": encoded(Image.new("L", (4, 4), i), "PNG") for i, n in enumerate(self.names)}
        return pictures | {"s/images.csv": b"".join(parts.values())}

    def read(self, folder):
        return load_suite(folder / "s").fingerprint


class HubFolders(Configs):
    "Folders of transformers: a CLIP, and the image tower of a SigLIP"
    modules, share, weights = ("models/hf_clip", "models/sources"), 0.15, "model.safetensors"

    def starts(self):
        config = dict(embed_dim=32, text_cfg=MODEL["text_cfg"], custom_text=True, vision_cfg=dict(
            image_size=32, timm_model_name=small_siglip(), timm_pool="map", timm_proj="none"))
        tower = {k: v.contiguous() for k, v in build(config).state_dict().items() if k.startswith("visual.trunk.")}
        sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, image_size=32)
        siglip = dict(model_type="siglip_vision_model", patch_size=8) | sizes
        with folder_of(clip_parts(MODEL)) as folder:
            clip = load_clip(folder)
            about = json.dumps(their_preprocess(clip.preprocess)).encode()
            for config, state in ((their_config(clip.config), to_transformers(clip.model.state_dict())),
                                  (siglip, to_transformers(tower))):
                yield self.split({"config.json": json.dumps(config).encode(), "preprocessor_config.json": about,
                                  self.weights: safetensors_bytes({k: v.contiguous() for k, v in state.items()})})


class Predictions(Reader):
    "Predictions beside a results table"
    name, modules, share = "mutated.predictions.csv.gz", ("analysis/predictions", "analysis/paired"), 0.25

    def starts(self):
        sets = {REFERENCE: four_images(REFERENCE, "reference"), "sketch": four_images("sketch", "shift")}
        rows = image_rows(sets, "test")
        who = dict(classifier="demo", tuning="plain", precision="fp32", seed=0)
        ends = [("zero-shot", 0.0, [0, 1] * 4), ("weight-space", 0.5, [0, 1, 1, 0] * 2),
                ("fine-tuned", 1.0, [0, 0, 1, 1] * 2)]
        kept = KeptPredictions(rows, [(who | dict(method=m, alpha=a), np.array(codes), dict(nll=np.full(8, 0.5)))
                                      for m, a, codes in ends])
        with folder_of({}) as folder:
            text = gzip.decompress(write_predictions(kept, folder / self.name).read_bytes()).decode()
        yield cells_of(csv.reader(io.StringIO(text)))

    def files(self, parts):
        return {self.name: gzip.compress(b"".join(parts.values()), 1)}

    def read(self, folder):
        kept = read_predictions(folder / self.name)
        with suppress(ValueError):  # of classifiers that can't be compared
            compare_ends(kept)
        return kept.frame()


def four_images(name, role):
    return ImageSet(name, [f"{name}/{i}.png" for i in range(4)], [0, 1, 1, 0], ["cat", "dog"], role=role)


class Recipes(Reader):
    "Recipes beside a results table"
    name, modules, share = "mutated.recipes.json", ("stats/table_io",), 0.5

    def starts(self):
        yield dict(all=json.dumps(dict(demo=dict(tuning="plain", lr=1e-5, epochs=3, cost=dict(steps=9)))).encode())

    def read(self, folder):
        return read_recipes(folder / "mutated.csv")


class Adapters(Configs):
    "Adapters of peft, folded into a classifier"
    modules, share, weights = ("weights/adapters",), 0.25, "adapter_model.safetensors"

    def starts(self):
        self.start = pico_classifier(["cat", "dog"], transformer=True)
        width = self.start.visual.conv1.weight.shape[0]
        settings = dict(peft_type="LORA", r=2, lora_alpha=4, alpha_pattern={}, rank_pattern={})
        for name in ("visual.transformer.resblocks.0.attn", "vision_model.encoder.layers.0.self_attn.q_proj"):
            rows = width * (1 + 2 * name.endswith("attn"))
            factors = dict(A=torch.ones(2, width), B=torch.ones(rows, 2))
            state = {f"base_model.model.{name}.lora_{x}.weight": t for x, t in factors.items()}
            config = json.dumps(settings | dict(use_rslora=rows > width, auto_mapping=dict(base_model_class="CLIP")))
            yield self.split({"adapter_config.json": config.encode(), self.weights: safetensors_bytes(state)})

    def read(self, folder):
        return load_classifier(folder, base=self.start)


class Merges(Reader):
    "Recipes of merges"
    name, modules = "mutated.yml", ("weights/recipes",)

    def starts(self):
        each = [dict(model=n, parameters=dict(weight=[0, 1], density=0.5)) for n in "ab"]
        by_name = [dict(filter="mlp", value=0.5), dict(value=0)]
        own = dict(weight=by_name, normalize=False, int8_mask=True)
        yield dict(all=json.dumps(dict(merge_method="ties", base_model="z", models=each, parameters=own)).encode())
        ours = dict(rule="weight-space", base_model="z", models=[dict(model="a")], parameters=dict(alpha=[0, 1]))
        yield dict(all=json.dumps(ours | dict(dtype="float16", reference="photos")).encode())

    def read(self, folder):
        recipe = read_recipe(folder / self.name)
        info = TensorInfo("blocks.1.mlp", Positions(["blocks.0.mlp", "blocks.1.mlp"]))
        with suppress(ValueError):  # no filter fits
            return recipe, [v(info) for v in recipe.method.given.values() if callable(v)]


class Judged(Reader):
    "What a bench found"
    name, modules, share = "plain.test.npz", ("bench/run",), 0.5

    def starts(self):
        arrays = {"right reference": np.eye(3, 8, dtype=bool), "right sketch": np.ones((3, 4), bool)}
        yield unzipped(saved(lambda c, f: np.savez_compressed(f, **c), arrays | dict(cost=json.dumps(dict(steps=3)))))

    def files(self, parts):
        return {self.name: zipped(parts)}

    def read(self, folder):
        from wiseft.bench.run import Work

        return Work(None, folder).judgment(None, "plain", "test")


class Shards(Reader):
    "Tars with images and their labels, or with class folders"
    modules, share = ("data/shards", "data/labels"), 0.3
    also = (FileNotFoundError,)

    def starts(self):
        shown = [encoded(Image.new("RGB", (4, 4), (40 * i, 0, 9)), "PNG") for i in range(4)]
        labeled = [(f"s{i}.png", im) for i, im in enumerate(shown)]
        labeled += [(f"s{i}.cls", b"%d" % (i % 2)) for i in range(4)]
        for members in (labeled, [(f"{'ab'[i % 2]}/{i}.png", im) for i, im in enumerate(shown)]):
            yield tar_parts(members) | {"classnames.txt": b"cat\ndog\n", "nshards.txt": b"1\n"}

    def files(self, parts):
        lists = {name: data for name, data in parts.items() if name.endswith(".txt")}
        tar = b"".join(data for name, data in parts.items() if name not in lists)
        return {"s/0.tar": tar} | {f"s/{name}": data for name, data in lists.items()}

    def read(self, folder):
        shutil.rmtree(cache_root() / "shards", ignore_errors=True)  # a file that is replaced at once has the same times
        shown = image_folder(folder / "s")
        return shown.fingerprint, [shown.open(i) for i in range(min(len(shown), 9))]


def tar_parts(members):
    "Headers and contents of a tar, each a part."
    parts = {}
    for i, (name, data) in enumerate(members):
        about = tarfile.TarInfo(name)
        about.size = len(data)
        parts |= {f"{i:02} header": about.tobuf(), f"{i:02}": data + bytes(-len(data) % 512)}
    return parts | {"99": bytes(1024)}


class Indices(Reader):
    "What is remembered of a tar: the same as the tar says, or made anew"
    modules, share = ("data/shards",), 0.3

    def starts(self):
        self.tar = Path(tempfile.mkdtemp()) / "0.tar"
        self.tar.write_bytes(Shards().files(Shards().seeds[0])["s/0.tar"])
        shutil.rmtree(cache_root() / "shards", ignore_errors=True)
        self.known = self.index()
        (self.kept,) = (cache_root() / "shards").iterdir()
        self.name = self.kept.name
        yield dict(all=self.kept.read_bytes())

    def index(self):
        names, places = tar_index(self.tar, lambda name: name.endswith(".png"))
        return list(names), places.tolist()

    def read(self, folder):
        given = (folder / self.name).read_bytes()
        self.kept.parent.mkdir(exist_ok=True)
        self.kept.write_bytes(given)
        assert self.index() == self.known, "another index than the tar's"
        if self.kept.read_bytes() != given:
            raise BadFile(f"{folder} is made again.")


class Labeled(Reader):
    "Tables of images and their labels"
    modules, share, columns = ("data/labels",), 0.4, ["filepath", "label", "group"]
    also = FileNotFoundError, ValueError

    def starts(self):
        for labels in ("cat dog cat dog", "0 1 1 0"):
            rows = [[f"{i}.png", label, "g"] for i, label in enumerate(labels.split())]
            yield cells_of([self.columns, *rows]) | {"classnames.txt": b"cat\ndog\n"}

    def files(self, parts):
        shown = {f"{i}.png": encoded(Image.new("L", (4, 4), i), "PNG") for i in range(4)}
        table = b"".join(data for name, data in parts.items() if name != "classnames.txt")
        return shown | {"table.csv": table, "classnames.txt": parts["classnames.txt"]}

    def read(self, folder):
        return holds_images(folder / "table.csv"), table_set(folder / "table.csv").fingerprint


class Parquet(Labeled):
    "Parquet tables of images and their labels"
    modules, name = ("data/labels", "data/arrays"), "table.parquet"

    def starts(self):
        for labels in (["cat", "dog", None, "cat"], [0, 1, 1, 0]):
            table = pd.DataFrame(dict(path=[f"{i}.png" for i in range(4)], y=labels, group=["g", None, "h", "h"]))
            yield {self.name: saved(lambda t, f: t.to_parquet(f), table.dropna(subset="y")),
                   "classnames.txt": b"cat\ndog\n"}

    def files(self, parts):
        return {f"{i}.png": encoded(Image.new("L", (4, 4), i), "PNG") for i in range(4)} | parts

    def read(self, folder):
        return holds_images(folder / self.name), table_set(folder / self.name).fingerprint


class Captions(Labeled):
    "Tables of images and their captions"
    modules, columns = ("data/labels", "train/loaders"), ["file", "caption", "group"]

    def read(self, folder):
        return captioned_images(folder / "table.csv", folder).fingerprint


class CocoCaptions(Reader):
    "Images with captions, as COCO has them"
    modules, also = ("data/retrieval",), (FileNotFoundError, ValueError)

    def starts(self):
        images = [dict(id=k, file_name=f"{k}.png", width=4) for k in (3, 5)]
        texts = [(3, "a cat"), (5, "a dog"), (5, "a pet")]
        notes = [dict(id=i, image_id=k, caption=text) for i, (k, text) in enumerate(texts)]
        yield dict(coco=json.dumps(dict(info=dict(year=2017), images=images, annotations=notes)).encode())

    def files(self, parts):
        shown = {f"val/{k}.png": encoded(Image.new("L", (4, 4), k), "PNG") for k in (3, 5)}
        return shown | {"annotations/captions_val.json": parts["coco"]}

    def read(self, folder):
        images = retrieval_set(folder / "annotations/captions_val.json")
        return images.fingerprint, images.pairs.tolist()


class CocoInstances(Reader):
    "Images with several labels, as COCO has them"
    modules, also = ("data/objects",), (FileNotFoundError, ValueError)

    def starts(self):
        images = [dict(id=k, file_name=f"{k}.png", width=4) for k in (3, 5)]
        notes = [dict(id=i, image_id=k, category_id=c) for i, (k, c) in enumerate([(3, 1), (5, 2), (5, 1)])]
        kinds = [dict(id=c, name=name) for c, name in ((1, "cat"), (2, "dog"))]
        yield dict(coco=json.dumps(dict(images=images, annotations=notes, categories=kinds)).encode())

    def files(self, parts):
        shown = {f"val/{k}.png": encoded(Image.new("L", (4, 4), k), "PNG") for k in (3, 5)}
        return shown | {"annotations/instances_val.json": parts["coco"]}

    def read(self, folder):
        return image_set(folder / "annotations/instances_val.json").fingerprint


class Answers(Reader):
    "Labels that somebody gave, and what was asked"
    modules, share = ("analysis/ask",), 0.4

    def starts(self):
        files, predicted, flags = ["0.png", "1.png"], [[0, 1], [1, 1]], [True, False]
        questions = Questions(["a", "b"], ["cat", "dog"], files, predicted, flags, flags[::-1], 1, 4, False, "f00")
        yield dict(asked=json.dumps(vars(questions)).encode(), labels=b"file,label\n0.png,cat\n1.png,dog\n")

    def files(self, parts):
        return {"q/questions.json": parts["asked"], "labels.csv": parts["labels"]}

    def read(self, folder):
        questions = read_questions(folder / "q")
        return sorted(read_answers(folder / "labels.csv", questions).items())


FOLDERS = "objectnet-1.0/mappings/folder_to_objectnet_label.json"
SPLITS = ["train", "id_val", "id_test", "val", "test"] * 2
CAMERAS = [["filename", "y", "location_remapped", "split"],
           *([f"{i}.jpg", i % 3, i % 2, split] for i, split in enumerate(SPLITS))]
PLACES = [["split", "category", "country_code", "timestamp"],
          *([split, "zoo", "DEU", f"201{i}-01-02T00:00:00Z"] for i, split in enumerate(["train", "val", "test"] * 3))]


def csv_text(rows):
    return "\n".join(",".join(map(str, row)) for row in rows)


class Published(Reader):
    "Tables and lists of published sets"
    modules, share = ("data/layouts",), 0.1
    shown = ["SUN397/a/abbey/0.jpg", "SUN397/z/zoo/1.jpg", "SUN397/a/abbey/2.jpg", "SUN397/z/zoo/3.jpg",
             *(f"iwildcam_v2.0/train/{i}.jpg" for i in range(10)),
             *(f"fmow_v1.1/images/rgb_img_{i}.png" for i in range(9))]

    def starts(self):
        tables = {"iwildcam_v2.0/metadata.csv": CAMERAS, "fmow_v1.1/rgb_metadata.csv": PLACES,
                  "fmow_v1.1/country_code_mapping.csv": [["alpha-3", "region"], ["DEU", "Europe"], ["KEN", "Africa"]]}
        lists = {FOLDERS: json.dumps(dict(chair="Chair", mug="Mug")),
                 "SUN397/ClassName.txt": "/a/abbey\n/z/zoo\n",
                 "SUN397/Training_01.txt": "/a/abbey/0.jpg\n/z/zoo/1.jpg\n",
                 "SUN397/Testing_01.txt": "/a/abbey/2.jpg\n/z/zoo/3.jpg\n"}
        texts = lists | {name: csv_text(rows) for name, rows in tables.items()}
        yield {name: text.encode() for name, text in texts.items()}

    def files(self, parts):
        return parts | dict.fromkeys(self.shown, b"")

    def read(self, folder):
        sets = [FAMILIES[name](folder, True) for name in ("iwildcam", "fmow", "transfer:sun397")]
        return sets, objectnet_names(folder / FOLDERS)


class Cifar(Reader):
    "CIFAR's batches and its shifted sets, as a suite"
    modules, share = ("data/arrays", "data/layouts"), 0.3
    batches = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]

    def starts(self):
        rows = np.arange(2 * 3072).astype(np.uint8).reshape(2, 3072)
        images, labels = rows.reshape(2, 32, 32, 3), np.array([0, 9])
        batch = pickle.dumps({b"data": rows, b"labels": [0, 9]}, 2)
        arrays = {"CIFAR-10.1/cifar10.1_v6_data.npy": images, "CIFAR-10.1/cifar10.1_v6_labels.npy": labels}
        files = {name: saved(lambda c, f: np.save(f, c), held) for name, held in arrays.items()}
        yield files | {f"cifar-10-batches-py/{name}": batch for name in self.batches}

    def files(self, parts):
        return dict(parts)

    def read(self, folder):
        return FAMILIES["cifar10"](folder, True)


class Corrupted(Reader):
    "CIFAR-10-C, and CIFAR-10.2 as an archive of arrays"
    modules, share = ("data/arrays", "data/layouts"), 0.1

    def starts(self):
        images, labels = np.zeros((5, 32, 32, 3), np.uint8), np.arange(5)
        arrays = {"CIFAR-10-C/fog.npy": images, "CIFAR-10-C/labels.npy": labels}
        files = {name: saved(lambda c, f: np.save(f, c), held) for name, held in arrays.items()}
        npz = saved(lambda c, f: np.savez(f, **c), dict(images=images, labels=labels))
        yield files | {"CIFAR-10.2/cifar102_test.npz": npz}

    def files(self, parts):
        return parts | {f"CIFAR-10-C/{c}.npy": parts["CIFAR-10-C/fog.npy"] for c in PUBLISHED_CORRUPTIONS}

    def read(self, folder):
        return [FAMILIES[name](folder, True) for name in ("cifar10-c", "cifar10.2")]


class Markers(Reader):
    "Markers of folders that may be replaced"
    modules, share = ("base/files",), 0.5

    def starts(self):
        with folder_of({}) as folder:
            with atomic_path(folder / "r", kind="report") as tmp:
                tmp.mkdir()
                (tmp / "a.html").write_text("x")
            yield dict(all=(folder / "r" / MARKER).read_bytes())

    def files(self, parts):
        return {f"r/{MARKER}": parts["all"], "r/a.html": b"x"}

    def read(self, folder):
        try:
            check_replaceable(folder / "r", "report")
        except FileExistsError as e:
            raise BadFile(str(e)) from e  # which is what is to come of it


class Hashes(Reader):
    "Hashes that are remembered of files: the same as of the files, or taken anew"
    name, modules, share = "hashes.sqlite", ("data/hashes",), 0.5

    def starts(self):
        self.file = Path(tempfile.mkdtemp()) / "a"
        self.file.write_bytes(b"x")
        kept = cache_root() / self.name
        kept.unlink(missing_ok=True)
        remember_hashes({"1 1 1 1": "ab"})
        yield dict(all=kept.read_bytes())

    def read(self, folder):
        kept = cache_root() / self.name
        kept.write_bytes(given := (folder / self.name).read_bytes())
        assert content_hashes([self.file]) == [hashlib.sha256(b"x").hexdigest()], "another hash"
        remember_hashes({"2 2 2 2": "cd"})
        cache_table()
        if given not in [parts["all"] for parts in self.seeds]:
            raise BadFile(f"{folder} is read as far as it goes, or made anew.")


READERS = [Safetensors, StateDicts, TorchScript, Pickles, Arrays, Cifar, Corrupted, Configs, HubFolders, Cards,
           Adapters, Images, Results, Predictions, Recipes, Merges, Judged, Resumes, Entries, Indices, Hashes,
           Markers, Lists, Suites, Shards, Labeled, Captions, CocoCaptions, CocoInstances, Answers,
           Published]
READERS += [Parquet] * bool(find_spec("pyarrow"))


# ---------- what becomes of a file ----------

class Hang(BaseException):
    "Took too long; no `Exception`, which a reader might take for the file's fault"


def hang(*_):
    raise Hang


executed = []
sys.addaudithook(lambda event, args: executed.append(f"{event}{args!r:.200}") if event in STARTED else None)


def forget_peak():
    "From now on `grown` is about what comes: a reader may grow less than a test before it."
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def grown():
    "The largest size that this process had, in bytes."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def mapped():
    "The most addresses that this process had, in bytes; 0 where the system doesn't say."
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmPeak"))


@contextmanager
def folder_of(files):
    "A folder with these files in it."
    with tempfile.TemporaryDirectory() as d:
        place(files, Path(d))
        yield Path(d)


def place(files, folder):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def outcome(reader, folder):
    "'read', or the message that refuses a file."
    try:
        reader.read(folder)
    except Exception as e:
        if type(e) in (BadFile, UnreadableImage, *reader.also):
            assert str(folder) in str(e), f"the message names no file: {e}"
            return str(e)
        raise AssertionError(f"There was a foreign error, {type(e).__name__}: {e}.") from e
    return "read"


def look(reader, files, folder):
    "'read', or the message that refuses files; an AssertionError says what must not become of them."
    place(files, folder)
    forget_peak()
    before, addresses, began = grown(), mapped(), time.process_time()
    executed.clear()
    limits = ((signal.SIGPROF, signal.ITIMER_PROF, SLOWEST), (signal.SIGALRM, signal.ITIMER_REAL, LONGEST))
    for number, timer, seconds in limits:
        signal.signal(number, hang)
        signal.setitimer(timer, seconds)
    try:
        result = outcome(reader, folder)
    except Hang:
        raise AssertionError(f"It took more than {SLOWEST} s, or {LONGEST} s of the clock.") from None
    finally:
        for _, timer, _ in limits:
            signal.setitimer(timer, 0)
    assert grown() - before < MOST, f"grew by {(grown() - before) / 1e6:.0f} MB"
    assert mapped() - addresses < MAPPED, f"asked for {(mapped() - addresses) / 1e6:.0f} MB of addresses"
    assert not executed, f"started {executed}"
    assert time.process_time() - began < SLOWEST, f"more than {SLOWEST} s, and no signal ended it"
    return result


def attacked(reader, n, seed, folder):
    "What becomes of each of `n` changed files: 'read', 'refused', or 'wrong', which is printed; and its CPU seconds."
    rng = random.Random(seed)
    for i in range(n):
        files, began = changed_files(reader, rng), time.process_time()
        try:
            result = "read" if look(reader, files, folder) == "read" else "refused"
        except AssertionError as e:
            result = "wrong"
            print(f"{reader.__doc__}, number {i} of seed {seed}: {e}\n  {files!r:.2000}", flush=True)
        yield result, time.process_time() - began
