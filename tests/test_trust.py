"A folder from a stranger runs nothing, asks nobody and takes no more than its files do."
import json
import sys

import pytest
from conftest import python, run
from test_models import NAMES, TEMPLATES, config_of, write

from wiseft.clips import load_clip
from wiseft.classifiers import zeroshot_classifier, load_classifier

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
    auto_map = dict(AutoTokenizer=["evil.Tokenizer", "evil.Tokenizer"], AutoConfig="evil.Tokenizer", AutoModel="evil.Tokenizer")
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
    done = run(sys.executable, "-c", "from wiseft.cli import app; app()", "merge", evil, classifier("other"), "-o", tmp_path / "m", ok=False)
    assert "tokenizer_kwargs" in done.stderr + done.stdout
    assert not (tmp_path / "marker").exists() and not (tmp_path / "m").exists()
