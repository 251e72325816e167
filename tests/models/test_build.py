"CLIPs whose text tower or tokenizer isn't OpenAI's, from the hub's cache and from folders; warnings while building."
import json
import warnings
from copy import deepcopy

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from wiseft.base.lazy import Later, open_clip
from wiseft.base.text import BadFile
from wiseft.models.build import fill_model, quiet
from wiseft.models.clip import load_clip
from wiseft.models.open_clip_config import check_model_cfg, check_parameters
from wiseft.models.testing import pico_clip
from wiseft.weights.checkpoints import write_state_dict

transformers = Later("transformers")

TEXTS = ["lung with edema", "healthy lung"]
WORDS = ["<pad>", "<s>", "</s>", "<unk>", *dict.fromkeys(" ".join(TEXTS).split())]
VISION = dict(image_size=32, layers=1, width=32, head_width=16, patch_size=16)
PREPROCESS = dict(mean=[0.5] * 3, std=[0.5] * 3)
SIZES = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)


def save_tokenizer(folder):
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    "Makes the folder of a repository in the hub's cache."
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def make(name):
        commit, folder = "0123456789abcdef0123456789abcdef01234567", tmp_path / f"models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs/main").write_text(commit)
        (folder / "snapshots" / commit).mkdir(parents=True)
        return folder / "snapshots" / commit

    return make


def write_biomedical(folder, tower):
    "A CLIP as BiomedCLIP is published: its text tower, a BERT, is described in another repository; returns the model."
    text = dict(hf_model_name="someone/bert", hf_tokenizer_name="someone/bert", hf_proj_type="mlp",
                hf_pooler_type="cls_last_hidden_state_pooler", context_length=8)
    config = dict(embed_dim=24, vision_cfg=VISION, text_cfg=text)
    (folder / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=config, preprocess_cfg=PREPROCESS)))
    torch.manual_seed(0)
    built = deepcopy(config)
    built["text_cfg"] |= dict(hf_model_name=str(tower), hf_model_pretrained=False)
    model = open_clip.CustomTextCLIP(**built).eval()
    write_state_dict(model.state_dict(), folder / "open_clip_model.safetensors")
    return model


def write_bert(folder):
    "The repository of a text tower."
    transformers.BertConfig(vocab_size=len(WORDS), **SIZES).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def check_texts(clip, model):
    with torch.no_grad():
        theirs = torch.nn.functional.normalize(model.encode_text(clip.tokenizer(TEXTS)), dim=-1)
    torch.testing.assert_close(clip.encode_text(TEXTS), theirs)
    assert not torch.allclose(theirs[0], theirs[1])


def test_a_text_tower_of_another_repository(repository, tmp_path):
    folder = repository("someone/biomedical")
    bert = write_bert(repository("someone/bert"))
    model = write_biomedical(folder, bert)
    settings = json.loads((bert / "config.json").read_text())  # that ask for a program, which is ignored
    (bert / "config.json").write_text(json.dumps(settings | dict(attn_implementation="kernels-community/attention")))
    clip = load_clip("hf-hub:someone/biomedical")
    check_texts(clip, model)
    check_texts(load_clip(clip.save(tmp_path / "saved")), model)


def test_a_text_tower_that_is_not_there(repository, tmp_path):
    "The message says which file to copy; a folder that has it loads without a hub."
    bert = tmp_path / "bert"
    bert.mkdir()
    folder = repository("someone/biomedical")
    model = write_biomedical(folder, write_bert(bert))
    with pytest.raises(RuntimeError, match=r"bring .* and config.json .* of https://huggingface.co/someone/bert into"):
        load_clip("hf-hub:someone/biomedical")
    with pytest.raises(BadFile, match="copy config.json of https://huggingface.co/someone/bert into it"):
        load_clip(folder)
    for path in bert.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    check_texts(load_clip(folder), model)


def test_metaclip_2_of_transformers(tmp_path):
    "A CLIP that finds the end of a text by its id, with a tokenizer of its own."
    special = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    config = transformers.MetaClip2Config(
        vision_config=SIZES | dict(image_size=32, patch_size=16, hidden_act="gelu"), projection_dim=24,
        text_config=SIZES | special | dict(vocab_size=len(WORDS), max_position_embeddings=8, hidden_act="gelu"))
    torch.manual_seed(0)
    model, images = transformers.MetaClip2Model(config).eval(), torch.randn(2, 3, 32, 32)
    model.save_pretrained(tmp_path)
    transformers.CLIPImageProcessor().save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    clip = load_clip(tmp_path, device="cpu")
    with torch.no_grad():
        ids = clip.tokenizer(TEXTS)
        torch.testing.assert_close(clip.model.encode_text(ids), model.get_text_features(ids).pooler_output)
        torch.testing.assert_close(clip.model.encode_image(images), model.get_image_features(images).pooler_output)
    assert (ids.argmax(1) != (ids == 2).int().argmax(1)).any()  # a CLIP of OpenAI would look elsewhere


@pytest.mark.parametrize("kind", ["siglip2", "chinese_clip", "altclip"])
def test_other_models_of_transformers(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(dict(model_type=kind)))
    with pytest.raises(BadFile, match=r"load_clip\('ViT-B-16-SigLIP2', 'webli'\); `wiseft models` lists them"):
        load_clip(tmp_path)
    assert open_clip.pretrained.get_pretrained_cfg("ViT-B-16-SigLIP2", "webli")


def test_a_large_pad_id(tmp_path):
    "As in gte-modernbert, whose vocabulary ends with it."
    config = dict(embed_dim=24, vision_cfg=VISION, custom_text=True,
                  text_cfg=dict(context_length=8, vocab_size=50284, pad_id=50283, width=32, heads=2, layers=1))
    (tmp_path / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=config, preprocess_cfg=PREPROCESS)))
    built = {k: v for k, v in config.items() if k != "custom_text"}
    write_state_dict(open_clip.CustomTextCLIP(**deepcopy(built)).state_dict(), tmp_path / "open_clip_model.safetensors")
    assert load_clip(tmp_path).model.text.pad_id == 50283


def test_settings_of_a_newer_open_clip(tmp_path):
    "open_clip 4 has `timm_model_kwargs`: numbers and pairs of numbers. Today's open_clip is to be updated."
    naflex = dict(patch_size=32, pos_embed_grid_size=[8, 8], swiglu_mlp=True, mlp_ratio=2.6666667, depth=16)

    def config(**settings):
        vision = dict(timm_model_name="vit_base_patch16_224", timm_model_kwargs=naflex | settings)
        return dict(embed_dim=24, vision_cfg=vision, text_cfg={})

    check_model_cfg(config(), "their.json")
    for wrong in dict(pretrained_cfg=dict(url="x")), dict(checkpoint_path="x"), dict(depth=10**6):
        with pytest.raises(BadFile, match="vision_cfg: timm_model_kwargs"):
            check_model_cfg(config(**wrong), "their.json")
    if "timm_model_kwargs" not in open_clip.model.CLIPVisionCfg.__dataclass_fields__:
        (tmp_path / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=config(), preprocess_cfg=PREPROCESS)))
        write_state_dict(dict(weight=torch.ones(2)), tmp_path / "open_clip_model.safetensors")
        with pytest.raises(BadFile, match="argument 'timm_model_kwargs'.*pip install -U open_clip_torch"):
            load_clip(tmp_path)


def test_an_architecture_far_larger_than_its_weights():
    "May have twice their numbers and a million more."
    check_parameters(lambda: torch.nn.Linear(1000, 1200, bias=False), 100_000, "their.json")
    with pytest.raises(BadFile, match="their.json describes a CLIP of 1,200,001 parameters"):
        check_parameters(lambda: torch.nn.Linear(1_200_001, 1, bias=False), 100_000, "their.json")


def test_one_warning_alone_is_silenced():
    with pytest.warns(UserWarning) as record, quiet():
        warnings.warn("QuickGELU mismatch between config and tag")
        warnings.warn("something else")
    assert [str(w.message) for w in record] == ["something else"]


def test_interpolated_positions_are_said():
    model = pico_clip(transformer=True).model
    shorter = model.state_dict() | dict(positional_embedding=model.positional_embedding[:8].detach())
    with pytest.warns(UserWarning, match="another size than tiny takes: 'positional_embedding'"):
        fill_model(model, shorter, "w.pt", "tiny")
