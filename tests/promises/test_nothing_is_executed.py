"A folder from a stranger runs nothing, asks nobody and takes no more than its files do."
import io
import json
import os
import resource
import socket
import sys
import zipfile
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from conftest import later, run
from PIL import Image
from tests.models.test_load import NAMES, TEMPLATES, build, config_of, write

from wiseft.data.disk_cache import cache_limit
from wiseft.weights.checkpoints import read_checkpoint, read_state_dict, write_state_dict
from wiseft.models.classifier import zeroshot_classifier
from wiseft.models.load import load_classifier
from wiseft.models.clip import load_clip
from wiseft.data.suites import load_suite
from wiseft.stats.table_io import read_results, write_results
from wiseft.base.files import read_lines, sha256_file
from wiseft.data.labels import image_folder, table_set
from wiseft.analysis.predictions import read_predictions
from wiseft.data.arrays import read_array, read_pickle_as_data
from wiseft.weights.files import merge_files
from wiseft.weights.merge import interpolate
from wiseft.infer.inference import extract_features
from wiseft.data.prompts import read_classnames
from wiseft.stats.table import results_table
from wiseft.data.shards import tar_index
from wiseft.weights.safetensors_io import TensorFile
from wiseft.base.text import BadFile

captioned_images = later("wiseft.train.loaders", "captioned_images")
read_training = later("wiseft.train.resume", "read_training")

EVIL = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import PreTrainedTokenizerFast
class Tokenizer(PreTrainedTokenizerFast): pass
"""
TRUSTING = dict(hf_tokenizer_name="x", tokenizer_kwargs=dict(trust_remote_code=True))
ASKS_FOR_CODE = {
    "tokenizer_kwargs": TRUSTING,
    "auto_map": dict(hf_tokenizer_name="x"),
    "text tower": dict(hf_model_name=".", hf_tokenizer_name="x"),
    "text tower of the hub": dict(hf_model_name="someone/text", hf_tokenizer_name="x"),
}


def change_config(folder, **text):
    "Add keys to a folder's `text_cfg`."
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"] |= text
    path.write_text(json.dumps(config))
    return folder


def poison(folder, text, marker):
    "Put a program of its own into a folder, and a config that asks for it."
    auto_map = dict(AutoTokenizer=["evil.Tokenizer", "evil.Tokenizer"], AutoConfig="evil.Tokenizer",
                    AutoModel="evil.Tokenizer")
    (folder / "evil.py").write_text(EVIL.format(marker=str(marker)))
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(tokenizer_class="Tokenizer", auto_map=auto_map)))
    (folder / "config.json").write_text(json.dumps(dict(model_type="evil", auto_map=auto_map)))
    return change_config(folder, **text)


@pytest.fixture
def classifier(tmp_path):
    "Makes folders with a tiny classifier."
    clip = load_clip(write(tmp_path / "clip", "vit"))
    return lambda name: zeroshot_classifier(clip, NAMES, TEMPLATES).save(tmp_path / name)


@pytest.mark.parametrize("way", ASKS_FOR_CODE)
@pytest.mark.parametrize("load", [load_clip, load_classifier])
def test_a_folder_runs_nothing(way, load, classifier, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    folder = poison(classifier("evil"), ASKS_FOR_CODE[way], tmp_path / "marker")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ValueError, match=str(folder)):
        load(folder)
    assert not (tmp_path / "marker").exists()


def test_merging_runs_nothing(classifier, tmp_path):
    pytest.importorskip("transformers")
    evil = poison(classifier("evil"), TRUSTING, tmp_path / "marker")
    done = run(sys.executable, "-c", "from wiseft.shell.cli import app; app()", "merge", evil, classifier("other"),
               "-o",
               tmp_path / "m", ok=False)
    assert "tokenizer_kwargs" in done.stderr + done.stdout
    assert not (tmp_path / "marker").exists() and not (tmp_path / "m").exists()


@pytest.fixture
def no_network(monkeypatch):
    "Whoever opens a connection is told apart from one that just fails."

    def connect(*_):
        raise AssertionError("A connection was opened.")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)


@pytest.mark.parametrize("part, settings", [
    ("vision_cfg", dict(timm_model_name="hf-hub:someone/model")),
    ("vision_cfg", dict(timm_model_name="local-dir:/tmp")),
    ("text_cfg", dict(hf_model_name="someone/text")),
    ("text_cfg", dict(hf_tokenizer_name="someone/tokenizer")),
])  # fmt: skip
def test_a_folder_never_calls_the_hub(part, settings, tmp_path, no_network, monkeypatch):
    if "hf_tokenizer_name" in settings:
        pytest.importorskip("transformers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    folder = write(tmp_path / "clip", "vit")
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"][part] |= settings
    path.write_text(json.dumps(config))
    with pytest.raises((ValueError, RuntimeError), match=str(folder) if part == "vision_cfg"
                       or "hf_model_name" in settings else "tokenizer.json") as e:
        load_clip(folder)
    assert "A connection was opened." not in str(e.value)


def test_a_text_tower_of_transformers_comes_from_the_folder(tmp_path, no_network):
    "Saved and loaded again, with settings and tokenizer of its own, and nothing fetched."
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "a", "cat", "dog", "photo", "of"])}
    words = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "clip"
    folder.mkdir()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]",
                                         unk_token="[UNK]").save_pretrained(folder)
    text = transformers.RobertaConfig(vocab_size=7, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                      intermediate_size=16, pad_token_id=0)
    text.save_pretrained(folder)
    config = config_of("vit") | dict(
        text_cfg=dict(hf_model_name=str(folder), hf_tokenizer_name="x", hf_model_pretrained=False, context_length=8),
        custom_text=True)
    state = build(config).state_dict()
    config["text_cfg"]["hf_model_name"] = "roberta-base"
    write_config(folder, config)
    write_state_dict(state, folder / "open_clip_model.safetensors")
    clip = load_clip(folder)
    again = load_clip(clip.save(tmp_path / "again"))
    assert torch.equal(clip.encode_text(["a cat", "a dog"]), again.encode_text(["a cat", "a dog"]))
    assert not torch.equal(clip.encode_text(["a cat"]), clip.encode_text(["a dog"]))


def write_config(folder, config):
    preprocess = dict(mean=[0.5] * 3, std=[0.5] * 3)
    (folder / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=config, preprocess_cfg=preprocess)))


@pytest.mark.parametrize("settings", [dict(width=16384), dict(image_size=4096, patch_size=1),
                                      dict(layers=200, width=8192), dict(layers=10**9), dict(width=10**30),
                                      dict(pos_embed_type="sin_cos_2d", image_size=2048, patch_size=1, width=64),
                                      dict(image_size=[]), dict(image_size=[16, 16, 16]),
                                      dict(image_size="x"), dict(layers=1.5)])
def test_a_config_takes_no_more_than_its_weights(settings, tmp_path):
    folder = write(tmp_path / "clip", "vit")
    config = config_of("vit")
    config["vision_cfg"] = config["vision_cfg"] | settings
    write_config(folder, config)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadFile, match="open_clip_config.json"):
        load_clip(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


@pytest.mark.parametrize("part, settings, reason", [
    ("vision_cfg", dict(brown=3), "unexpected keyword argument 'brown'"),
    ("vision_cfg", dict(timm_model_name="no_such_tower"), r"Unknown model \(no_such_tower\)"),
])  # fmt: skip
def test_open_clip_judges_what_a_config_says(part, settings, reason, tmp_path):
    folder = write(tmp_path / "clip", "vit")
    config = config_of("vit")
    config[part] = config[part] | settings
    write_config(folder, config)
    with pytest.raises(BadFile, match=f"open_clip_config.json describes no architecture.*{reason}"):
        load_clip(folder)


@pytest.mark.parametrize("name", ["head.safetensors", "open_clip_model.safetensors"])
def test_one_flipped_bit_is_found(name, classifier):
    folder = classifier("flipped")
    data = bytearray((folder / name).read_bytes())
    data[-3] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BadFile, match=f"{name} is not the file that was saved with this classifier"):
        load_classifier(folder)


def test_another_classifiers_files_are_found(classifier, tmp_path):
    mine, other = classifier("mine"), load_classifier(classifier("other"))
    with torch.no_grad():
        other.head.weight.mul_(2)
    theirs = other.save(tmp_path / "theirs")
    (mine / "head.safetensors").write_bytes((theirs / "head.safetensors").read_bytes())
    with pytest.raises(BadFile, match="head.safetensors is not the file"):
        load_classifier(mine)
    change_config(theirs, context_length=8)
    with pytest.raises((BadFile, ValueError), match="open_clip_config.json is not the file|fit the architecture"):
        load_classifier(theirs)


def test_ends_of_different_clips(tmp_path):
    "Two CLIPs of one architecture: an error. The same CLIP from another file: none."
    first, second = (write(tmp_path / name, "vit") for name in ("first", "second"))
    torch.manual_seed(1)
    state = {k: torch.randn_like(v) if v.is_floating_point() and k != "logit_scale" else v
             for k, v in build(config_of("vit")).state_dict().items()}
    write_state_dict(state, second / "open_clip_model.safetensors", force=True)
    a, b = (zeroshot_classifier(load_clip(folder), NAMES, TEMPLATES) for folder in (first, second))
    with pytest.raises(ValueError, match="come from different CLIPs, first and second"):
        interpolate(a, b)
    torch.save(build(config_of("vit")).state_dict(), first / "open_clip_pytorch_model.bin")
    (first / "open_clip_model.safetensors").unlink()
    interpolate(a, zeroshot_classifier(load_clip(first), NAMES, TEMPLATES))
    with pytest.warns(UserWarning, match="made with different templates"):
        interpolate(a, zeroshot_classifier(a.clip, NAMES, ["{}"]))


def test_features_of_another_activation_are_others(tmp_path):
    "Two CLIPs of the same weights, with GELU and with QuickGELU: neither is given what the cache has of the other."
    for color in ("red", "blue"):
        (tmp_path / "photos" / color).mkdir(parents=True)
        Image.new("RGB", (32, 32), color).save(tmp_path / "photos" / color / "1.png")
    photos = image_folder(tmp_path / "photos")
    clips = [load_clip(write(tmp_path / kind, kind)) for kind in ("vit", "vit-quickgelu")]
    classifiers = [zeroshot_classifier(clip, NAMES, TEMPLATES) for clip in clips]
    first, second = (extract_features(c, photos, progress=False).features for c in classifiers)
    assert not torch.equal(first, second)
    with torch.no_grad():
        expected = classifiers[1].features(torch.stack([classifiers[1].transform(photos.open(i)) for i in range(2)]))
    torch.testing.assert_close(second, expected)


def archive(pickled, stored=bytes(16), script=False, compression=zipfile.ZIP_STORED):
    "The bytes of a file of `torch.save`, or of `torch.jit.save`."
    parts = {"data.pkl": pickled, "data/0": stored, "version": b"3\n"}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as z:
        for name, data in (parts | {"constants.pkl": b"\x80\x02)."} if script else parts).items():
            z.writestr(f"a/{name}", data)
    return file.getvalue()


def tensor(size, stride=b"K\x01", numel=b"K\x04"):
    "Instructions that make a tensor of what is stored beside the pickle."
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu" + numel + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00(" + size + b"t(" + stride + b"t\x89NtR"


def pickled(instructions):
    return b"\x80\x02" + instructions + b"."


def scripted(instructions):
    "A module with one attribute."
    return archive(pickled(b"c__torch__\nM\n)\x81}U\x01w" + instructions + b"sb"), script=True)


TEN_MILLION = b"J\x80\x96\x98\x00"
AGAIN = b")q\x000" + b"".join(b"h%ch%c\x86q%c0" % (i, i, i + 1) for i in range(60))  # a pair of pairs of pairs …
LONG = b"](" + b"N" * 10_000 + b"eq\x000"  # a list that is remembered
ONE_HASH = product((b"h\x00", b"h\x01"), repeat=13)  # Python's hash of -1 is that of -2
HOSTILE = {  # instructions of a small pickle; fuzz/test_readers.py reads them
    "pairs that are one long list": LONG + b"ccollections\nOrderedDict\n](" + b"h\x00" * 10_000 + b"e\x85R",
    "keys of one hash": b"J\xff\xff\xff\xffq\x000J\xfe\xff\xff\xffq\x010}(" + b"".join(
        b"(" + b"".join(key) + b"tN" for key in ONE_HASH) + b"u",
    "a table of 2 GB": b"Nr\xff\xff\xff\x0f",
    "a key that takes years": b"}" + AGAIN + b"h\x3cNs",
    "a value that takes years": b"}" + AGAIN + b"U\x01wh\x3cs",
    "an expanded tensor": b"}U\x01w" + tensor(2 * TEN_MILLION, b"K\x00K\x00") + b"s",
    "more values than stored": b"}U\x01w" + tensor(b"M\xe8\x03", numel=b"M\xe8\x03") + b"s",
    "values that nobody stored": b"}U\x01wctorch\nTensor\n(M\xe8\x03tRs",
    "values of a class": b"c__torch__\nM\n)\x81q\x00}U\x01ah\x00sb",
}
MILLION = b"J\x00\x00\x10\x00"
THOUSAND = b"".join(b"U\x04%04d" % i + tensor(MILLION, numel=MILLION) for i in range(1000))
MANY = b"c__torch__\nM\n)\x81}(" + THOUSAND + b"ub"  # tensors of one module


ONE = pickled(b"}U\x01w" + tensor(b"K\x04") + b"s")
BOMBS = {  # they unpack to 4 MB, which the second has a thousand times
    "values": archive(ONE, bytes(2**22), compression=zipfile.ZIP_DEFLATED),
    "many tensors": archive(pickled(MANY), bytes(2**22), script=True, compression=zipfile.ZIP_DEFLATED),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_zip_file_that_grows(kind, tmp_path):
    path = tmp_path / "bomb.pt"
    path.write_bytes(BOMBS[kind])
    with pytest.raises(BadFile, match="would unpack to 4,"):
        read_state_dict(path)


READERS = [sha256_file, TensorFile, read_checkpoint, read_training, read_classnames, read_results, read_array,
           read_pickle_as_data, read_predictions, table_set, partial(captioned_images, folder=""),
           partial(tar_index, is_image=str.isascii), read_lines]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("read", READERS)
def test_a_pipe_is_not_waited_for(read, tmp_path):
    path = tmp_path / "pipe.safetensors"
    os.mkfifo(path)
    with pytest.raises(BadFile, match="is a pipe or a device"):
        read(path)


MAPPED = """
import resource, sys, torch
from wiseft.weights.checkpoints import read_state_dict
from wiseft.weights.safetensors_io import write_tensors
path = sys.argv[1]
write_tensors(path, {f"w{i}": torch.zeros(2**16) for i in range(200)})  # 50 MB
state = read_state_dict(path)
print(sum(path in line for line in open("/proc/self/maps")), len(state))
del state
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (2**10 * used + 2**24,) * 2)
try: read_state_dict(path)
except MemoryError as e: print(e)
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of what a process has mapped")
def test_weights_are_mapped_once(tmp_path):
    "Not once a tensor; and what lacks memory is no damaged file."
    lines = run(sys.executable, "-c", MAPPED, tmp_path / "model.safetensors").stdout.splitlines()
    mapped, tensors = map(int, lines[0].split())
    assert tensors == 200 and mapped <= 2
    assert lines[1].startswith(f"There is too little memory to read {tmp_path}"), lines


def test_files_of_strangers_are_not_merged_without_a_word(tmp_path, recwarn):
    "Bare files don't say where they come from; their weights do."
    ends = [tmp_path / f"{name}.safetensors" for name in ("zeroshot", "finetuned", "stranger")]
    for seed, path in zip((0, 0, 1), ends):
        state = config_state(seed)
        if path == ends[1]:
            state = {k: v + 0.01 * torch.ones_like(v) for k, v in state.items()}
        write_state_dict(state, path)
    merge_files(ends[:2], None, tmp_path / "averaged.safetensors")
    assert not recwarn.list
    with pytest.warns(UserWarning, match="stranger.safetensors and .*zeroshot.safetensors have little in common"):
        merge_files([ends[0], ends[2]], None, tmp_path / "nothing.safetensors")


def config_state(seed):
    state = build(config_of("vit")).state_dict()
    torch.manual_seed(seed)
    return {k: torch.randn_like(v) for k, v in state.items() if v.is_floating_point()}


def test_settings_and_lists_of_other_systems(tmp_path, monkeypatch):
    monkeypatch.setenv("WISEFT_CACHE_GB", "inf")
    assert cache_limit() == float("inf")
    (tmp_path / "classes.txt").write_bytes("\ufeffcat\r\ndog\r\n".encode())
    assert read_classnames(tmp_path / "classes.txt") == ["cat", "dog"]


def test_results_may_lie_in_the_suites_folder(tmp_path):
    for part in "reference", "sketches":
        for i in range(10):
            path = tmp_path / part / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), 10 * i + len(part)).save(path)
    before = load_suite(tmp_path)
    row = dict(classifier="mine", method="zero-shot", dataset="reference", role="reference", value=0.5)
    write_results(results_table([row]), tmp_path / "results.csv")
    (tmp_path / "predictions.csv").write_text("file,predicted\nreference/a/0.png,a\n")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "frontier.png").touch()
    with pytest.warns(UserWarning, match="'pictures' has no class folders in it and is not a shifted set"):
        after = load_suite(tmp_path)
    assert after.fingerprint == before.fingerprint and list(after.shifts) == ["sketches"]
