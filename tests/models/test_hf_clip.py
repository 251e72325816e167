"Checkpoints of wise-ft, FLYP, model-soups, and transformers give the logits of what was saved, without its classes."
import json
import os
import pickle
import shutil
import subprocess
import sys
from copy import deepcopy

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from tests.models.test_load import small_siglip
from tokenizers import Tokenizer, models, pre_tokenizers

from wiseft.weights.checkpoints import write_state_dict
from wiseft.models import hf_clip
from wiseft.models.clip import load_clip
from wiseft.models.open_clip_config import write_json
from wiseft.models.load import load_classifier
from wiseft.models.classifier import ImageClassifier
from wiseft.models.head import ClassificationHead
from wiseft.base.text import BadFile
from wiseft.base.lazy import Later, open_clip

transformers = Later("transformers")

CLIP = '''
import torch
from torch import nn

class QuickGELU(nn.Module):
    def forward(self, x): return x * torch.sigmoid(1.702 * x)

class ResidualAttentionBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))
    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))

class Transformer(nn.Module):
    def __init__(self, width, layers, heads):
        super().__init__()
        self.resblocks = nn.Sequential(*[ResidualAttentionBlock(width, heads) for _ in range(layers)])
    def forward(self, x): return self.resblocks(x)

class VisionTransformer(nn.Module):
    def __init__(self, width=32, heads=4, dim=12):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 8, 8, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(17, width))
        self.ln_pre, self.transformer, self.ln_post = nn.LayerNorm(width), Transformer(width, 2, heads), nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, dim))
    def forward(self, x):
        x = self.conv1(x).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        x = self.transformer(self.ln_pre(x).permute(1, 0, 2)).permute(1, 0, 2)
        return self.ln_post(x[:, 0]) @ self.proj

class CLIP(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual, self.transformer = VisionTransformer(), Transformer(24, 1, 2)
        self.token_embedding, self.positional_embedding = nn.Embedding(100, 24), nn.Parameter(torch.randn(8, 24))
        self.ln_final, self.text_projection = nn.LayerNorm(24), nn.Parameter(torch.randn(24, 12))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
    def encode_image(self, x): return self.visual(x)
'''

MODELING = '''
import torch
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor
from clip.model import CLIP

def _convert_image_to_rgb(image): return image.convert("RGB")

class ImageEncoder(torch.nn.Module):
    def __init__(self, keep_lang=False):
        super().__init__()
        self.model = CLIP()
        scale = Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
        self.val_preprocess = Compose([Resize(32, InterpolationMode.BICUBIC), CenterCrop(32), _convert_image_to_rgb, ToTensor(), scale])
        self.cache_dir = None
        if not keep_lang:
            del self.model.transformer
    def forward(self, x): return self.model.encode_image(x)

class CLIPEncoder(ImageEncoder):
    def __init__(self): super().__init__(keep_lang=True)

class ClassificationHead(torch.nn.Linear):
    def __init__(self, normalize):
        super().__init__(12, 5)
        self.normalize = normalize
    def forward(self, x): return super().forward(x / x.norm(dim=-1, keepdim=True) if self.normalize else x)

class ImageClassifier(torch.nn.Module):
    def __init__(self, encoder, head):
        super().__init__()
        self.image_encoder, self.classification_head, self.process_images = encoder, head, True
        self.train_preprocess = self.val_preprocess = encoder.val_preprocess
    def forward(self, x): return self.classification_head(self.image_encoder(x))
'''

SAVE = '''
import pickle, sys, torch
from src.models.modeling import *
torch.manual_seed(0)
x = torch.randn(3, 3, 32, 32)
said = {}
def keep(name, model, out):
    with open(f"{name}.pkl", "wb") as f: pickle.dump(model, f)
    torch.save(model, f"{name}.pt")
    torch.save(model, f"{name}.old.pt", _use_new_zipfile_serialization=False)
    said[name] = out
with torch.no_grad():
    for name, encoder, head in (("wiseft", ImageEncoder(), ClassificationHead(True)), ("raw", ImageEncoder(), ClassificationHead(False)),
                                ("flyp", CLIPEncoder(), ClassificationHead(True))):
        model = ImageClassifier(encoder, head).eval()
        keep(name, model, model(x))
    keep("encoder", model.image_encoder, model.image_encoder(x))
    keep("head", head, x)
torch.save(dict(x=x, **said), "said.pt")
'''


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "Files of modules whose classes only another process had, and what these modules said."
    folder = tmp_path_factory.mktemp("foreign")
    for path, text in {"clip/model.py": CLIP, "src/models/modeling.py": MODELING, "save.py": SAVE}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    subprocess.run([sys.executable, "save.py"], cwd=folder, check=True)
    return folder, torch.load(folder / "said.pt")


@pytest.mark.filterwarnings("ignore:Not read in")
@pytest.mark.parametrize("suffix", ["pkl", "pt", "old.pt"])
def test_modules_without_their_classes(saved, suffix):
    folder, expected = saved
    with pytest.raises((ModuleNotFoundError, AttributeError)):
        with open(folder / "wiseft.pkl", "rb") as f:
            pickle.load(f)
    for name, text in (("wiseft", False), ("raw", False), ("flyp", True)):
        c = load_classifier(folder / f"{name}.{suffix}", device="cpu")
        torch.testing.assert_close(c(expected["x"]), expected[name], rtol=1e-5, atol=1e-5)
        assert (c.clip.preprocess["mean"], c.clip.config["quick_gelu"],
                "text_cfg" in c.clip.config) == ([0.4, 0.5, 0.6], True, text)
        assert c.recipe["unread"] == ("" if text
            else "'image_encoder.model.positional_embedding', 'image_encoder.model.text_projection', "
                                      "'image_encoder.model.token_embedding.weight', "
                                      "'image_encoder.model.ln_final.weight', 'image_encoder.model.ln_final.bias'")
    clip = load_clip(folder / f"encoder.{suffix}", device="cpu")
    torch.testing.assert_close(clip.model.visual(expected["x"]), expected["encoder"], rtol=1e-5, atol=1e-5)
    with pytest.raises(BadFile, match=r"holds a head \(5 classes, 12 dimensions\) and no image tower"):
        load_clip(folder / f"head.{suffix}")


def test_a_file_on_its_start(saved, tmp_path):
    "An initial model, its fine-tuned files in several layouts, and the folder that is saved of them."
    folder, expected = saved
    start = load_clip(folder / "flyp.pt", device="cpu")
    c = load_classifier(folder / "wiseft.pkl", base=start, classnames=list("abcde"))
    torch.testing.assert_close(c(expected["x"]), expected["wiseft"], rtol=1e-5, atol=1e-5)
    assert c.clip.model.token_embedding.weight is start.model.token_embedding.weight
    head = {f"module.classification_head.{k}": v for k, v in c.head.state_dict().items()}
    soup = {f"module.model.{k}": v for k, v in c.clip.model.state_dict().items()} | head
    for name, content in {"soup": soup,
                          "ema": {"state_dict_ema": {f"_orig_mod.{k}": v for k, v in soup.items()}}}.items():
        torch.save(content, tmp_path / f"{name}.pt")
        torch.testing.assert_close(load_classifier(tmp_path / f"{name}.pt", base=start)(expected["x"]), expected["wiseft"],
                                   rtol=1e-5, atol=1e-5)
    training = {f"module.{k}": v for k, v in c.clip.model.state_dict().items()}
    torch.save(
        dict(epoch=3, name="run", state_dict=training,
             optimizer=dict(state={0: dict(step=torch.tensor(1.0))},
                            param_groups=[dict(lr=0.1)])), tmp_path / "epoch_3.pt")
    start.save(tmp_path / "start")
    (tmp_path / "start/open_clip_model.safetensors").unlink()
    (tmp_path / "epoch_3.pt").rename(tmp_path / "start/open_clip_pytorch_model.bin")
    torch.testing.assert_close(load_clip(tmp_path / "start").model.visual(expected["x"]), c.visual(expected["x"]))
    c.save(tmp_path / "saved")
    assert load_classifier(tmp_path / "saved").hash == c.hash


class Trap:
    "Would make a file if it were unpickled."
    def __init__(self, how, path): self.how, self.path = how, path
    def __reduce__(self):
        return (os.system, (f"touch {self.path}",)) if self.how == "system" else (eval,
            (f"open({str(self.path)!r}, 'w')",))


@pytest.mark.filterwarnings("ignore:Not read in")
@pytest.mark.parametrize("how", ["system", "eval"])
def test_a_trap_in_a_module(tmp_path, how):
    "A good module with a hostile attribute: refused, by each way in, and nothing was made."
    module, trapped = torch.nn.Linear(2, 2), tmp_path / "trapped"
    module.note = Trap(how, trapped)
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(module))
    torch.save(module, tmp_path / "zip.pt")
    torch.save(module, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in "bare.pt", "zip.pt", "old.pt":
        for load in load_classifier, load_clip, lambda path: load_clip("ViT-B-32", path):
            with pytest.raises(BadFile, match=rf"{name} is refused.*It asks to run \w+\.{how}"):
                load(tmp_path / name)
    assert not trapped.exists()
    pickle.loads((tmp_path / "bare.pt").read_bytes())
    assert trapped.exists()


THEIRS = '''
import sys, torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel
model, tokenizer = CLIPModel.from_pretrained("theirs").eval(), AutoTokenizer.from_pretrained("theirs")
said = torch.load("ours.pt")
picture = Image.open("picture.png")
pixels = CLIPImageProcessor.from_pretrained("theirs")(picture, return_tensors="pt")["pixel_values"]
with torch.no_grad():
    torch.testing.assert_close(pixels[0], said["pixels"], rtol=0, atol=0.02)
    torch.testing.assert_close(model.get_image_features(said["pixels"][None]).pooler_output, said["image"], rtol=1e-5, atol=1e-5)
    ids = tokenizer(said["texts"], padding="max_length", max_length=12, truncation=True, return_tensors="pt")["input_ids"]
    torch.testing.assert_close(model.get_text_features(ids).pooler_output, said["text"], rtol=1e-5, atol=1e-5)
assert not any(m.partition(".")[0] == "wiseft" for m in sys.modules)
'''


@pytest.mark.slow
def test_a_folder_for_transformers(tmp_path):
    "A process without wiseft sees the same pixels, tokens and features in the folder that was written for it."
    config = dict(embed_dim=16, quick_gelu=True,
                  vision_cfg=dict(image_size=32, patch_size=8, width=32, layers=2, head_width=8),
                  text_cfg=dict(context_length=12, vocab_size=49408, width=16, heads=2, layers=1))
    torch.manual_seed(0)
    (tmp_path / "ours").mkdir()
    write_state_dict(open_clip.CLIP(**config).state_dict(), tmp_path / "ours/open_clip_model.safetensors")
    write_json(tmp_path / "ours/open_clip_config.json",
               dict(model_cfg=config, preprocess_cfg=dict(mean=[0.5] * 3, std=[0.2] * 3)))
    clip, texts = load_clip(tmp_path / "ours", device="cpu"), ["a photo of a star", "two Houses, in the snow!"]
    clip.save_transformers(tmp_path / "theirs")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    picture.save(tmp_path / "picture.png")
    with torch.no_grad():
        pixels = clip.transform(picture)
        torch.save(
            dict(pixels=pixels, texts=texts, image=clip.model.encode_image(pixels[None]),
                 text=clip.model.encode_text(clip.tokenizer(texts))), tmp_path / "ours.pt")
    subprocess.run([sys.executable, "-c", THEIRS], cwd=tmp_path, check=True, env=os.environ | dict(HF_HUB_OFFLINE="1"))


TEXTS = ["a photo of a star", "two houses"]


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    "A folder as transformers writes it, its model, and pictures as numbers."
    folder, sizes = tmp_path_factory.mktemp("siglip"), dict(hidden_size=32, intermediate_size=96, num_hidden_layers=2)
    words = ["<pad>", "<unk>", *dict.fromkeys(" ".join(TEXTS).split())]
    special = dict(pad_token_id=0, bos_token_id=1, eos_token_id=1)
    small_siglip()  # for what is made of it in our format
    config = transformers.SiglipConfig(
        vision_config=sizes | dict(num_attention_heads=4, image_size=32, patch_size=8),
        text_config=sizes | special | dict(num_attention_heads=2, vocab_size=len(words), max_position_embeddings=8))
    torch.manual_seed(0)
    model = transformers.SiglipModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    model.save_pretrained(folder)
    transformers.SiglipImageProcessor(size=dict(height=32, width=32)).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    fast.save_pretrained(folder)
    return folder, model, torch.randn(2, 3, 32, 32)


def features(clip, images):
    with torch.no_grad():
        return clip.model.encode_image(images), clip.model.encode_text(clip.tokenizer(TEXTS))


def test_siglip_there_and_back(siglip, tmp_path):
    "transformers → wiseft → transformers, and the folder in between in open_clip."
    folder, model, images = siglip
    clip = load_clip(folder, device="cpu")
    image, text = features(clip, images)
    with torch.no_grad():
        theirs = model.get_image_features(images).pooler_output
        torch.testing.assert_close(image, theirs, rtol=1e-5, atol=1e-5)
        theirs = model.get_text_features(clip.tokenizer(TEXTS)).pooler_output
        torch.testing.assert_close(text, theirs, rtol=1e-5, atol=1e-5)
    clip.save_transformers(tmp_path / "back")
    again = transformers.SiglipModel.from_pretrained(tmp_path / "back").eval()
    assert again.config.vision_config.hidden_act == again.config.text_config.hidden_act == "gelu_pytorch_tanh"
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)
    for one, other in zip(features(load_clip(tmp_path / "back", device="cpu"), images), (image, text)):
        torch.testing.assert_close(one, other)
    clip.save(tmp_path / "saved")
    for one, other in zip(features(load_clip(tmp_path / "saved", device="cpu"), images), (image, text)):
        torch.testing.assert_close(one, other)
    alone = open_clip.create_model(f"local-dir:{tmp_path / 'saved'}").eval()
    with torch.no_grad():
        torch.testing.assert_close(alone.encode_text(clip.tokenizer(TEXTS)), text, rtol=1e-5, atol=1e-5)
        off = (alone.encode_image(images) - image).abs().max()
    assert 1e-6 < off < 0.02  # open_clip gives timm's tower GELU itself


def test_what_the_config_of_a_siglip_leaves_out_is_the_default(siglip, tmp_path):
    folder, _, images = siglip
    file = shutil.copytree(folder, tmp_path / "sparse") / "config.json"
    config = json.loads(file.read_text())
    for part in "vision_config", "text_config":
        del config[part]["hidden_act"], config[part]["layer_norm_eps"]
    file.write_text(json.dumps(config))
    for one, other in zip(*(features(load_clip(f, device="cpu"), images) for f in (file.parent, folder))):
        assert torch.equal(one, other)


def test_siglip_as_it_is_on_the_hub(siglip, tmp_path, monkeypatch):
    "An image tower alone from a folder, and the whole by its name on the hub, from the hub's cache."
    folder, model, images = siglip
    vision = transformers.SiglipVisionModel(model.config.vision_config).eval()
    vision.save_pretrained(tmp_path / "vision")
    (tmp_path / "vision/preprocessor_config.json").write_bytes((folder / "preprocessor_config.json").read_bytes())
    alone = load_clip(tmp_path / "vision", device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(alone.model.visual(images), vision(images).pooler_output, rtol=1e-5, atol=1e-5)
    assert alone.tokenizer is None
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "hub/models--someone--siglip/snapshots" / commit
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(folder)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs/main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    torch.testing.assert_close(features(load_clip("hf:someone/siglip", device="cpu"), images)[0],
                               features(load_clip(folder, device="cpu"), images)[0])
    with pytest.raises(RuntimeError, match="Could not fetch .*config.json.* of hf:someone/gone"):
        load_clip("hf:someone/gone")


def test_a_larger_picture_is_cut(tmp_path):
    config = dict(size=dict(shortest_edge=256), crop_size=dict(height=224, width=224), do_center_crop=True)
    for config, part in ((config, 224/256), (config | dict(size=224, crop_size=224), None),
                         (config | dict(do_center_crop=False), None)):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
        assert hf_clip._read_preprocess(tmp_path).get("crop_pct") == part


def test_squashed_before_a_crop(tmp_path):
    "A size with height and width is no short side, as transformers has it."
    config = dict(size=dict(height=224, width=224), crop_size=dict(height=224, width=224), do_center_crop=True)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    assert hf_clip._read_preprocess(tmp_path)["resize_mode"] == "squash"


def test_an_adapter_of_a_siglip(siglip, tmp_path):
    "Of queries and an MLP of both towers, with transformers' names."
    folder, model, images = siglip
    head = ClassificationHead(torch.eye(2, 32), torch.zeros(2))
    base = ImageClassifier(load_clip(folder, device="cpu"), head, ["star", "houses"], ["{}"])
    names = [f"{tower}_model.encoder.layers.1.{name}" for tower in ("vision", "text")
             for name in ("self_attn.q_proj", "mlp.fc1")]
    changed, state = deepcopy(model), {}
    for name in names:
        layer = changed.get_submodule(name)
        a, b = torch.randn(2, layer.in_features), torch.randn(layer.out_features, 2)
        state |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
        layer.weight.data += 0.5 * b @ a
    write_state_dict(state, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(dict(peft_type="LORA", r=2, lora_alpha=1)))
    image, text = features(load_classifier(tmp_path, base=base).clip, images)
    with torch.no_grad():
        torch.testing.assert_close(image, changed.get_image_features(images).pooler_output, rtol=1e-4, atol=1e-4)
        theirs = changed.get_text_features(base.clip.tokenizer(TEXTS)).pooler_output
        torch.testing.assert_close(text, theirs, rtol=1e-4, atol=1e-4)
