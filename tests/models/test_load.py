"What a page can't test of loading: every kind of tower, files from anywhere, other processes, no network."
import json
import os
import time
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from conftest import later, python, ROOT
from PIL import Image

import wiseft.data.hub
import wiseft.models.save
from wiseft.weights.checkpoints import write_state_dict
from wiseft.models.clip import load_clip
from wiseft.models.head import zeroshot_head
from wiseft.models.classifier import ImageClassifier, zeroshot_classifier
from wiseft.models.load import load_classifier
from wiseft.weights.merge import average, interpolate
from wiseft.models.testing import pico_classifier
from wiseft.base.text import BadFile
from wiseft.base.lazy import open_clip

load_vision = later("wiseft.models.vision", "load_vision")
parametrized, plain_weights = later("wiseft.train.trainable", "parametrized", "plain_weights")

NAMES = ["cat", "fire truck", "umbrella"]
TEMPLATES = ["a photo of a {}", "{}, drawn"]
TEXT = dict(context_length=16, vocab_size=49408, width=32, heads=2, layers=2)
SIGLIP_TEXT = dict(no_causal_mask=True, proj_bias=True, pool_type="last", norm_kwargs=dict(eps=1e-6))
PREPROCESS = dict(mean=[0.5, 0.4, 0.3], std=[0.3, 0.2, 0.1], interpolation="bilinear", resize_mode="squash")
TOWERS = {
    "vit": dict(vision_cfg=dict(image_size=32, layers=2, width=32, head_width=16, patch_size=16)),
    "vit-quickgelu": dict(vision_cfg=dict(image_size=32, layers=2, width=32, head_width=16, patch_size=16),
                          quick_gelu=True),
    "resnet": dict(vision_cfg=dict(image_size=64, layers=[1, 1, 1, 1], width=8)),
    "convnext": dict(vision_cfg=dict(image_size=64, timm_model_name="test_convnext", timm_pool="", timm_proj="linear",
                                     timm_model_pretrained=False)),
    "timm-vit": dict(
        vision_cfg=dict(image_size=160, timm_model_name="test_vit", timm_pool="token", timm_proj="linear")),
    "siglip": dict(vision_cfg=dict(image_size=160, timm_model_name="test_vit", timm_pool="map", timm_proj="none"),
                   embed_dim=64,
                   text_cfg=TEXT | SIGLIP_TEXT, custom_text=True, init_logit_bias=-10, init_logit_scale=2.3),
    "coca": dict(vision_cfg=dict(image_size=32, layers=1, width=32, head_width=16, patch_size=16, attentional_pool=True,
                                 attn_pooler_heads=4, output_tokens=True),
                 text_cfg=TEXT | dict(embed_cls=True, output_tokens=True), custom_text=True,
                 multimodal_cfg=dict(context_length=16, vocab_size=49408, width=32, heads=2, layers=1)),
}  # fmt: skip


def config_of(kind):
    return dict(embed_dim=24, text_cfg=TEXT) | TOWERS[kind]


@cache
def small_siglip():
    "The name of a SigLIP's image tower in miniature, which timm has none of; it is registered there."
    from timm.models import register_model
    from timm.models.vision_transformer import VisionTransformer

    @register_model
    def vit_pico_patch8_siglip_32(pretrained=False, num_classes=0, global_pool="map", **kwargs):
        return VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, mlp_ratio=3,
                                 class_token=False, num_classes=num_classes, global_pool=global_pool)

    return vit_pico_patch8_siglip_32.__name__


def build(config):
    "The model of a config, with random weights, logit scale and BatchNorm statistics."
    config = deepcopy(config)
    custom = config.pop("custom_text", False)
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP if custom else open_clip.CLIP
    torch.manual_seed(0)
    model = kind(**config)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
        if kind is open_clip.CoCa:  # which leaves this one as the memory was, NaN at times
            model.text_decoder.text_projection.normal_(std=0.02)
    return model.eval()


def write(folder, kind, preprocess=PREPROCESS):
    "A tiny CLIP in a folder with the hub's layout."
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps(dict(model_cfg=config_of(kind), preprocess_cfg=preprocess)))
    write_state_dict(build(config_of(kind)).state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "Folders of tiny CLIPs, written when asked for."
    paths, root = {}, tmp_path_factory.mktemp("clips")
    return lambda kind: paths[kind] if kind in paths else paths.setdefault(kind, write(root / kind, kind))


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def architecture(tmp_path, monkeypatch):
    "Register an architecture with open_clip under a name, for one test."
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))

    def register(name, kind):
        (tmp_path / f"{name}.json").write_text(json.dumps(config_of(kind)))
        open_clip.add_model_config(tmp_path / f"{name}.json")

    return register


def by_hand(clip, picture):
    "Head and logits in double precision, one prompt at a time."
    model, rows = deepcopy(clip.model).double().eval(), []
    unit = lambda v: v / np.sqrt((v**2).sum())
    with torch.no_grad():
        for name in NAMES:
            embeddings = [model.encode_text(clip.tokenizer([t.replace("{}", name)]))[0].numpy() for t in TEMPLATES]
            rows.append(unit(np.mean([unit(e) for e in embeddings], axis=0)))
        x = model.encode_image(clip.transform(Image.open(picture))[None].double())[0].numpy()
    head = np.exp(model.logit_scale.item()) * np.stack(rows)
    bias = 0 if getattr(model, "logit_bias", None) is None else model.logit_bias.item()
    return head, head @ unit(x) + bias


@pytest.mark.parametrize("kind", TOWERS)
def test_every_tower(kind, folders, picture, tmp_path):
    clip = load_clip(folders(kind))
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folders(kind)}")
    image = transform(Image.open(picture))[None]
    assert torch.equal(clip.transform(Image.open(picture))[None], image)
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_image(image), model.eval().encode_image(image, normalize=True), rtol=0,
                                   atol=1e-6)
        torch.testing.assert_close(clip.encode_text(NAMES), model.encode_text(clip.tokenizer(NAMES), normalize=True),
                                   rtol=0, atol=1e-6)

    head, logits = by_hand(clip, picture)
    double = zeroshot_classifier(replace(clip, model=deepcopy(clip.model).double()), NAMES, TEMPLATES)
    assert np.abs(double.head.weight.detach().numpy() - head).max() < 1e-6
    assert np.abs(double(image).detach().numpy()[0] - logits).max() < 1e-6 * np.abs(logits).max()  # float32 logits
    zeroshot = zeroshot_classifier(clip, NAMES, TEMPLATES)
    assert np.abs(zeroshot.head.weight.detach().numpy() - head).max() < 1e-5 * np.abs(head).max()
    assert np.abs(zeroshot(image).detach().numpy()[0] - logits).max() < 1e-5 * np.abs(logits).max()
    assert (zeroshot.head.bias is not None) == (clip.logit_bias is not None) == (kind == "siglip")

    finetuned = zeroshot.copy()
    assert set(finetuned.state_dict()) == {f"visual.{k}" for k in clip.model.visual.state_dict()} | {f"head.{k}"
        for k in zeroshot.head.state_dict()}
    finetuned.train()
    (-finetuned(image.expand(2, -1, -1, -1)).log_softmax(1)[:, 0].mean()).backward()
    with torch.no_grad():
        for p in finetuned.parameters():
            p -= 0.01 * p.grad
    half = interpolate(zeroshot, finetuned.eval(), 0.5)
    assert len({c.hash for c in (zeroshot, finetuned, half)}) == 3 and half.parents == [zeroshot.hash, finetuned.hash]
    half.save(tmp_path / "half")
    again = load_classifier(tmp_path / "half")
    assert again.hash == half.hash and torch.equal(again(image), half(image))
    again.check_averageable([zeroshot])
    assert average([zeroshot, finetuned, half, again]).alpha is None


@pytest.mark.parametrize("kind", ["vit", "resnet", "convnext", "siglip"])
def test_low_precision(kind, folders, picture, tmp_path):
    full, low = (zeroshot_classifier(load_clip(folders(kind), precision=p), NAMES, TEMPLATES) for p in ("fp32", "bf16"))
    assert torch.bfloat16 in {t.dtype for t in low.state_dict().values()}
    image = full.transform(Image.open(picture))[None]
    assert low.features(image).dtype == low(image).dtype == torch.float32
    assert torch.cosine_similarity(full.features(image), low.features(image)).item() > 0.99
    low.save(tmp_path / "low")
    assert load_classifier(tmp_path / "low").hash == low.hash
    assert load_classifier(tmp_path / "low", precision="fp32").state_dict()["head.weight"].dtype == torch.float32


def test_frozen_batchnorm_stays_frozen():
    "In the middle of a training, a prediction and a new head leave each layer in its mode."
    classifier = pico_classifier(NAMES).with_text().train()
    frozen = [m for m in classifier.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for m in frozen:
        m.eval()
    before = [m.training for m in classifier.modules()]
    assert frozen and any(before)
    classifier.predict_image(Image.new("RGB", (60, 48)))
    assert [m.training for m in classifier.modules()] == before
    classifier.rebuild_head()
    assert [m.training for m in classifier.modules()] == before


def test_quick_gelu_survives_saving(folders, picture, tmp_path):
    "The same weights with another activation function give other features; the folder remembers which it was."
    clip = load_clip(folders("vit-quickgelu"))
    zeroshot_classifier(clip, NAMES, TEMPLATES).save(tmp_path / "saved")
    image = clip.transform(Image.open(picture))[None]
    gelu = load_clip(folders("vit"))
    gelu.model.load_state_dict(clip.model.state_dict())
    assert (gelu.encode_image(image) - clip.encode_image(image)).abs().max() > 1e-4
    torch.testing.assert_close(load_classifier(tmp_path / "saved").clip.encode_image(image), clip.encode_image(image),
                               rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="quick_gelu is False in one and True in the other"):
        interpolate(zeroshot_classifier(gelu, NAMES, TEMPLATES), load_classifier(tmp_path / "saved"))


def test_a_tag_decides_about_quick_gelu(folders, architecture, monkeypatch):
    architecture("pico", "vit")
    architecture("pico-quickgelu", "vit-quickgelu")
    file = str(folders("vit") / "open_clip_model.safetensors")
    tags = dict(openai=dict(file=file, quick_gelu=True, **PREPROCESS), laion=dict(file=file, **PREPROCESS))
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "pico", tags)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "pico-quickgelu", dict(openai=tags["openai"]))
    with pytest.warns(UserWarning, match="load_clip\\('pico-quickgelu', 'openai'\\)") as caught:
        quick = load_clip("pico", "openai")
    assert caught[0].filename == __file__
    assert quick.config["quick_gelu"] and not load_clip("pico", "laion").config["quick_gelu"]
    assert load_clip("pico-quickgelu", "openai").config["quick_gelu"]
    with pytest.raises(ValueError, match="neither a file nor a tag of 'pico-quickgelu'"):
        load_clip("pico-quickgelu", "laion")
    with pytest.raises(ValueError, match="leave out quick_gelu"):
        load_clip("pico", "openai", quick_gelu=False)

    with pytest.raises(ValueError, match="don't show whether they were trained with QuickGELU"):
        load_clip("pico", file, preprocess=PREPROCESS)
    assert not load_clip("pico", file, preprocess=PREPROCESS, quick_gelu=False).config["quick_gelu"]
    assert load_clip("pico", file, preprocess=PREPROCESS, quick_gelu=True).config["quick_gelu"]
    assert load_clip("pico-quickgelu", file, preprocess=PREPROCESS).config["quick_gelu"]
    assert not load_clip("pico", file, preprocess="laion").config["quick_gelu"]
    with pytest.warns(UserWarning, match="QuickGELU mismatch"):
        clip = load_clip("pico", file, preprocess="openai")
    assert clip.config["quick_gelu"] and clip.preprocess["mean"] == PREPROCESS["mean"]


def test_a_file_says_nothing_about_its_pictures(folders, architecture):
    architecture("lone", "resnet")
    file = folders("resnet") / "open_clip_model.safetensors"
    with pytest.raises(ValueError, match="came without mean and std of their pictures"):
        load_clip("lone", file)
    clip = load_clip("lone", file, preprocess=dict(mean=[0.1, 0.2, 0.3], std=[1, 1, 1]))
    assert clip.preprocess["mean"] == [0.1, 0.2, 0.3] and clip.preprocess["interpolation"] == "bicubic"
    assert clip.image_size == (64, 64)
    assert clip.name == "lone"
    assert clip.provenance["source"] == "lone open_clip_model.safetensors"


def test_a_config_without_preprocessing(tmp_path):
    write(tmp_path / "clip", "vit", preprocess={})
    with pytest.raises(ValueError, match="came without mean and std"):
        load_clip(tmp_path / "clip")
    assert load_clip(tmp_path / "clip", preprocess=PREPROCESS).preprocess["resize_mode"] == "squash"


@pytest.mark.parametrize("ending", ["pt", "pth", "bin"])
def test_torch_files(ending, folders, architecture, tmp_path):
    architecture("lone", "convnext")
    state = build(config_of("convnext")).state_dict()
    torch.save(dict(state_dict={f"module.{k}": v for k, v in state.items()}, epoch=3), tmp_path / f"w.{ending}")
    clip = load_clip("lone", tmp_path / f"w.{ending}", preprocess=PREPROCESS)
    assert all(torch.equal(v, state[k]) for k, v in clip.model.state_dict().items())


@pytest.mark.filterwarnings("ignore")  # of tracing
def test_openai_archive(architecture, tmp_path):
    "OpenAI's files are TorchScript archives; their preprocessing and QuickGELU are known."
    architecture("pico", "vit")
    architecture("pico-quickgelu", "vit-quickgelu")
    model = build(config_of("vit-quickgelu"))
    model.attn_mask = None  # a constant of the program in OpenAI's files
    torch.jit.trace(model, (torch.zeros(1, 3, 32, 32), torch.zeros(1, 16, dtype=torch.long)),
                    check_trace=False).save(tmp_path / "pico.pt")
    clip = load_clip("pico", tmp_path / "pico.pt")
    assert clip.config["quick_gelu"] and clip.preprocess["mean"] == list(open_clip.OPENAI_DATASET_MEAN)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in clip.model.state_dict().items())


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil-was-here",)


def test_nothing_is_unpickled(folders, architecture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    architecture("lone", "convnext")
    write(tmp_path / "clip", "convnext")
    (tmp_path / "clip/open_clip_model.safetensors").unlink()
    torch.save(dict(state_dict=build(config_of("convnext")).state_dict(), more=Evil()),
               tmp_path / "clip/open_clip_pytorch_model.bin")
    for load in (lambda: load_clip("clip"),
                 lambda: load_clip("lone", "clip/open_clip_pytorch_model.bin", preprocess=PREPROCESS)):
        with pytest.raises(ValueError, match="is refused: it is a pickle"):
            load()
    assert not (tmp_path / "evil-was-here").exists()


def test_damaged_weights(folders, tmp_path):
    write(tmp_path / "clip", "vit")
    file = tmp_path / "clip/open_clip_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut short"):
        load_clip(tmp_path / "clip")
    state = build(config_of("vit")).state_dict()
    state["visual.proj"][0, 0] = torch.nan
    write_state_dict(state, file, force=True)
    with pytest.raises(ValueError, match="visual.proj"):
        load_clip(tmp_path / "clip")
    write_state_dict(build(config_of("resnet")).state_dict(), file, force=True)
    with pytest.raises(ValueError, match="don't fit the architecture of clip"):
        load_clip(tmp_path / "clip")


NEVER = """
import json, sys, torch, open_clip
from PIL import Image
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
out = {}
for folder in sys.argv[2:]:
    model, _, transform = open_clip.create_model_and_transforms(f'local-dir:{folder}')
    text = open_clip.get_tokenizer(f'local-dir:{folder}')(['an icon of a cat', 'a fire truck'])
    with torch.no_grad():
        image = model.eval().encode_image(transform(Image.open(sys.argv[1]))[None], normalize=True)
        out[folder] = image.tolist(), model.encode_text(text, normalize=True).tolist()
assert not [m for m in sys.modules if m.startswith('wiseft')]
print(json.dumps(out))
"""


def test_open_clip_alone_gets_the_same_features(picture, tmp_path):
    "A process that never imports wiseft loads the embedded model and a saved classifier."
    clip = load_clip()
    classifier = zeroshot_classifier(clip, NAMES, "icons").copy()
    with torch.no_grad():
        for p in classifier.visual.parameters():
            p.mul_(1.02)
    embedded, saved = str(ROOT / "wiseft/data/iconclip"), str(classifier.save(tmp_path / "saved"))
    out = json.loads(python("-c", NEVER, picture, embedded, saved, cwd=tmp_path).stdout)
    for folder, c in (embedded, clip), (saved, classifier.clip):
        image = c.encode_image(c.transform(Image.open(picture))[None])
        for got, expected in zip(out[folder], (image, c.encode_text(["an icon of a cat", "a fire truck"]))):
            torch.testing.assert_close(torch.tensor(got), expected, rtol=0, atol=1e-6)
    assert abs(np.array(out[embedded][0]) - np.array(out[saved][0])).max() > 1e-4


LOAD = "import sys; from wiseft.models.clip import load_clip; print(load_clip(*sys.argv[1:]))"


def hub(home):
    "Environment of a process with a hub's cache of its own and no network."
    return os.environ | dict(HF_HOME=str(home), HF_HUB_OFFLINE="1", PYTHONPATH=str(ROOT))


@pytest.mark.slow
def test_hub_cache(folders, tmp_path):
    "What the hub's client has in its cache loads without a network."
    commit, repo = "0123456789abcdef0123456789abcdef01234567", tmp_path / "hub/models--someone--tiny"
    write(repo / "snapshots" / commit, "vit")
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(commit)
    out = python("-c", LOAD, "hf-hub:someone/tiny", env=hub(tmp_path)).stdout
    assert out.startswith("Clip hf-hub:someone/tiny: VisionTransformer")
    (repo / "snapshots" / commit / "open_clip_model.safetensors").unlink()
    error = python("-c", LOAD, "hf-hub:someone/tiny", env=hub(tmp_path), ok=False).stderr
    assert "Could not fetch the weights of hf-hub:someone/tiny" in error and "load_clip('local-dir:FOLDER')" in error


@pytest.mark.slow
@pytest.mark.parametrize("arguments,advice", [
    (["hf-hub:someone/missing"], "bring open_clip_config.json and open_clip_model.safetensors"),
    (["ViT-B-32", "laion2b_s34b_b79k"], "bring them from https://huggingface.co/laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
])  # fmt: skip
def test_missing_hub(arguments, advice, tmp_path):
    error = python("-c", LOAD, *arguments, env=hub(tmp_path), ok=False).stderr.strip().splitlines()[-1]
    assert error.startswith("RuntimeError: Could not fetch") and advice in error and "Without a network" in error
    assert "load_clip(" in error.partition("Without a network")[2]


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "https://hub.invalid"])
def test_an_unreachable_hub_costs_seconds(endpoint, tmp_path, monkeypatch):
    "What is in the cache loads, and the rest says so; huggingface_hub sleeps for 23 s between tries of one file"
    for name, value in dict(ENDPOINT=endpoint, HF_HUB_OFFLINE=False, HF_HUB_CACHE=str(tmp_path)).items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setattr(wiseft.data.hub, "getproxies", dict)
    commit, repo = "0123456789abcdef0123456789abcdef01234567", tmp_path / "models--someone--tiny"
    write(repo / "snapshots" / commit, "vit")
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(commit)
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    assert load_clip("hf-hub:someone/tiny").name == "hf-hub:someone/tiny"
    for load in partial(load_clip, "hf-hub:someone/missing"), partial(load_vision, "test_vit"):
        with pytest.raises(RuntimeError, match=f"{endpoint} can not be reached.*Without a network: bring"):
            load()
    assert sum(slept) < 5


def test_a_missing_tokenizer_says_what_to_bring(tmp_path):
    write(tmp_path / "clip", "siglip")
    path = tmp_path / "clip/open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "someone/tokenizer"
    path.write_text(json.dumps(config))
    with pytest.raises((RuntimeError, BadFile), match="pip install transformers|tokenizer.json"):
        load_clip(tmp_path / "clip")


def test_repeated_imagenet_names(folders):
    "ImageNet's own repeats are a warning, also in a list that a saved classifier restores; a user's are an error."
    clip = load_clip(folders("vit"))
    with pytest.warns(UserWarning, match="'missile', 'sunglasses'"):
        classifier = zeroshot_classifier(clip, "imagenet", "plain")
    assert isinstance(classifier, ImageClassifier) and len(classifier.classnames) == 1000
    with pytest.raises(ValueError, match="Class names repeat: 'cat'"):
        zeroshot_head(clip, ["cat", "dog", "cat"], "plain")
