"What leaves wiseft: ONNX, torch.export, transformers, and halves, as other programs see them."
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from wiseft.weights.checkpoints import write_state_dict
from wiseft.models.classifier import zeroshot_classifier
from wiseft.shell.cli import app
from wiseft.models.clip import load_clip
from wiseft.models.open_clip_config import read_json, write_json
from wiseft.models.export import export_classifier
from wiseft.models.load import load_classifier
from wiseft.weights.merge import interpolate
from wiseft.base.lazy import Later, open_clip, timm, torchvision

onnx, onnxruntime = Later("onnx"), Later("onnxruntime")

CONFIG = dict(embed_dim=16, quick_gelu=True,
              vision_cfg=dict(image_size=32, patch_size=8, width=32, layers=2, head_width=8),
              text_cfg=dict(context_length=12, vocab_size=49408, width=16, heads=2, layers=1))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    "A tiny CLIP with a ViT and random weights."
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    write_state_dict(open_clip.CLIP(**CONFIG).state_dict(), folder / "open_clip_model.safetensors")
    write_json(folder / "open_clip_config.json",
               dict(model_cfg=CONFIG, preprocess_cfg=dict(mean=[0.5, 0.4, 0.3], std=[0.2] * 3)))
    return load_clip(folder, device="cpu")


@pytest.fixture(scope="module")
def classifier(clip):
    return zeroshot_classifier(clip, ["cat", "dog", "fire truck"], ["a photo of a {}"])


@pytest.fixture(scope="module")
def pixels(clip):
    noise = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    return np.stack([clip.transform.pixels(Image.fromarray(picture)) for picture in noise])


def logits_of(classifier, pixels):
    "The logits of a classifier."
    with torch.no_grad():
        return classifier(classifier.transform.normalize(torch.from_numpy(pixels)))


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("precision", [None, "fp16"])
def test_onnx(classifier, pixels, tmp_path, caplog, precision):
    export_classifier(classifier, "onnx", tmp_path / "c.onnx", precision)
    assert not [r for r in caplog.records if r.levelname == "WARNING"], "words about the exporter's insides"
    session = onnxruntime.InferenceSession(tmp_path / "c.onnx")
    logits = session.run(None, dict(pixels=pixels))[0]
    classifier.save(tmp_path / "saved", precision=precision)
    np.testing.assert_allclose(logits, logits_of(load_classifier(tmp_path / "saved"), pixels), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(session.run(None, dict(pixels=pixels[:1]))[0], logits[:1], rtol=1e-4, atol=1e-4)
    notes = session.get_modelmeta().custom_metadata_map
    assert json.loads(notes["classnames"]) == classifier.classnames
    preprocess = json.loads(notes["preprocess"])
    assert (preprocess["mean"], preprocess["size"]) == ([0.5, 0.4, 0.3], [32, 32])
    kept = onnx.load(tmp_path / "c.onnx").graph.initializer
    bits = {np.dtype(np.float16 if precision else np.float32)}
    assert {onnx.numpy_helper.to_array(t).dtype for t in kept if t.name.startswith("classifier.")} == bits
    assert str(ROOT).encode() not in (tmp_path / "c.onnx").read_bytes()


@pytest.mark.slow
def test_onnx_of_a_classifier_in_bf16(classifier, pixels, tmp_path):
    "ONNX Runtime has no convolutions in it: the file computes in fp32."
    half = classifier.to_bf16()
    export_classifier(half, "onnx", tmp_path / "c.onnx")
    logits = onnxruntime.InferenceSession(tmp_path / "c.onnx").run(None, dict(pixels=pixels))[0]
    np.testing.assert_allclose(logits, logits_of(half.float(), pixels), rtol=1e-4, atol=1e-4)


def test_how_features_are_scaled_is_said(classifier, tmp_path):
    for normalize, said in ((True, "to length 1"), (False, "as they are")):
        c = classifier.copy()
        c.head.normalize = normalize
        export_classifier(c, "transformers", tmp_path / said)
        assert read_json(tmp_path / said / "classifier.json")["output"].endswith(said)


READ = """
import sys, torch
pixels, expected = torch.load("said.pt")
program = torch.export.load("c.pt2").module()
torch.testing.assert_close(program(pixels), expected, rtol=1e-4, atol=1e-4)
from safetensors.torch import load_file
from transformers import CLIPModel
model, head = CLIPModel.from_pretrained("theirs").eval(), load_file("theirs/head.safetensors")
mean, std = torch.tensor([.5, .4, .3]), torch.tensor([.2] * 3)
x = ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)
with torch.no_grad(): features = model.get_image_features(x).pooler_output
logits = torch.nn.functional.normalize(features, dim=-1) @ head["weight"].T
torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
assert not any(m.partition(".")[0] == "wiseft" for m in sys.modules)
"""


@pytest.mark.slow
def test_programs_without_wiseft(classifier, pixels, tmp_path):
    "A process that never imports wiseft gets the same logits, from torch.export's file and from transformers' folder."
    torch.save((torch.from_numpy(pixels), logits_of(classifier, pixels)), tmp_path / "said.pt")
    export_classifier(classifier, "pt2", tmp_path / "c.pt2")
    export_classifier(classifier, "transformers", tmp_path / "theirs")
    assert json.loads(read_json(tmp_path / "theirs/classifier.json")["classnames"]) == classifier.classnames
    subprocess.run([sys.executable, "-c", READ], cwd=tmp_path, check=True, env=os.environ | dict(HF_HUB_OFFLINE="1"))


@pytest.mark.slow
def test_without_onnx(classifier, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install wiseft\[export\]"):
        export_classifier(classifier, "onnx", tmp_path / "c.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_halves_know_their_parents(classifier, tmp_path, precision):
    finetuned = classifier.copy()
    with torch.no_grad():
        for p in finetuned.parameters():
            p.mul_(1.01)
    finetuned.alpha, finetuned.recipe = 1.0, dict(tuning="plain", start=classifier.hash)
    for name, c in dict(start=classifier, finetuned=finetuned, half=interpolate(classifier, finetuned)).items():
        c.save(tmp_path / name, precision=precision)
    start, end, half = (load_classifier(tmp_path / name) for name in ("start", "finetuned", "half"))
    assert half.parents == [classifier.hash, finetuned.hash] and end.recipe["start"] == classifier.hash
    for halved, whole in ((start, classifier), (end, finetuned)):
        assert halved.recipe["stored"] == dict(precision=precision, of=whole.hash)
    assert "stored" not in interpolate(start, end).recipe
    assert half.hash == read_json(tmp_path / "half/wiseft.json")["hash"]
    assert interpolate(start, end).parents == [start.hash, end.hash]
    weights = load_file(tmp_path / "half/open_clip_model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.float16 if precision == "fp16" else torch.bfloat16}


def run(*words):
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    "Noise around a color, one folder per class, and the same in the dark."
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, n in {"colors/train": 5, "colors/validation": 4, "colors/test": 4, "dark": 4}.items():
        for i, name in enumerate(["red", "green", "blue"]):
            (folder / part / name).mkdir(parents=True)
            for j in range(n):
                noise = rng.integers(0, 120, (64, 64, 3))
                noise[..., i] += 100
                dark = (noise // (1 + (part == "dark"))).astype(np.uint8)
                Image.fromarray(dark).save(folder / part / name / f"{j}.png")
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of few images, and of torch's exporter
@pytest.mark.parametrize("model", ["test_vit", "torchvision:shufflenet_v2_x0_5"])
def test_a_model_without_words_from_the_shell(model, pictures, tmp_path, monkeypatch):
    "A linear probe, fine-tuned, averaged, swept, reported, shown and exported; tables and pages say start."
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    name = model.rpartition(":")[2]
    net = timm.create_model(name) if model == name else torchvision.models.get_model(name)
    write_state_dict(net.state_dict(), "net.safetensors")
    images = "--reference", pictures / "colors"
    short = "--epochs", 1, "--batch-size", 5
    run("probe", model, pictures / "colors", "--weights", "net.safetensors", *short, "-o", "start")
    run("finetune", "start", pictures / "colors", *short, "--lr", 1e-3, "--precision", "fp32", "-o", "finetuned")
    run("sweep", "start", "finetuned", *images, "--shift", pictures / "dark", "--alphas", "0.5", "-o", "results.csv")
    run("merge", "start", "finetuned", "--alpha", "auto", *images, "--precision", "fp16", "-o", "averaged")
    run("report", "results.csv", "-o", "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<dfn>Start</dfn>" in page and "How it was fine-tuned" in page and "zero-shot" not in page
    shown = run("show", "finetuned")
    assert all(word in shown for word in ("seconds", "validation accuracy", "versions", "torch"))
    run("card", "averaged", "--results", "results.csv")
    c = load_classifier("averaged", device="cpu")
    if model != name:
        return  # tracing torchvision's takes longer than all the rest
    run("export", "averaged", "--to", "onnx", "-o", "averaged.onnx")
    pixels = np.stack([c.transform.pixels(Image.open(p)) for p in sorted(pictures.glob("dark/*/0.png"))])
    logits = onnxruntime.InferenceSession("averaged.onnx").run(None, dict(pixels=pixels))[0]
    np.testing.assert_allclose(logits, logits_of(c, pixels), rtol=1e-4, atol=1e-4)
