"Saving that is interrupted, or has no place to write to, leaves what was there."
import json

import pytest
import torch
from conftest import later
from tests.models.test_load import NAMES, TEMPLATES, folders  # noqa: F401, a fixture

import wiseft.models.save
from wiseft.base.text import BadFile
from wiseft.models.classifier import zeroshot_classifier
from wiseft.models.clip import load_clip
from wiseft.models.load import load_classifier
from wiseft.models.testing import pico_classifier

image_classifier, load_vision = later("wiseft.models.vision", "image_classifier", "load_vision")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_interrupted_save_leaves_what_was_there(error, folders, tmp_path, monkeypatch):
    classifier = zeroshot_classifier(load_clip(folders("vit")), NAMES, TEMPLATES)
    classifier.save(tmp_path / "saved")

    def fail(*args, **kwargs):
        raise error

    with monkeypatch.context() as m:
        m.setattr(wiseft.models.save, "write_json", fail)
        for target in "saved", "new":
            with pytest.raises((KeyboardInterrupt, OSError)):
                classifier.save(tmp_path / target, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]
    assert load_classifier(tmp_path / "saved").hash == classifier.hash


def test_existing_and_readonly_targets(folders, tmp_path):
    classifier = zeroshot_classifier(load_clip(folders("vit")), NAMES, TEMPLATES)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="force"):
        classifier.save(tmp_path / "mine")
    assert (tmp_path / "mine/notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file is not a folder, so nothing can be written"):
        classifier.save(tmp_path / "file/saved")


@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel,
                                  lambda visual: torch.compile(torch.nn.DataParallel(visual))])
@pytest.mark.parametrize("where", ["classifier", "clip", "within"])
def test_a_wrapped_tower_is_saved_without_its_wrapper(wrap, where, tmp_path):
    "Training can go on in a compiled or DataParallel module; loading knows the module within."
    plain, c = pico_classifier(["a", "b"], transformer=True), pico_classifier(["a", "b"], transformer=True)
    if where == "classifier":
        c.visual = wrap(c.visual)
    if where == "clip":
        c.clip.model.visual = c.visual = wrap(c.visual)
    if where == "within":
        c.visual.transformer = wrap(c.visual.transformer)
    assert c.hash == plain.hash
    for precision in None, "bf16":
        c.save(tmp_path / "saved", precision=precision, force=True)
        loaded = load_classifier(tmp_path / "saved")
        assert precision or loaded.hash == plain.hash
        assert all(k in plain.state_dict() for k in loaded.state_dict())


def test_a_wrapped_module_of_torchvision(tmp_path):
    from torchvision.models import resnet18
    torch.save(resnet18(num_classes=1000).state_dict(), tmp_path / "weights.pt")
    c = image_classifier(load_vision("torchvision:resnet18", tmp_path / "weights.pt"), ["a", "b"], rows=[0, 1])
    expected = c.hash
    c.visual = torch.nn.DataParallel(c.visual)
    c.save(tmp_path / "saved")
    assert load_classifier(tmp_path / "saved").hash == expected == c.hash


def changed_card(folder, **changes):
    "Without its hash, as after a change on purpose."
    card = json.loads((folder / "wiseft.json").read_text()) | changes
    del card["sha256"]
    (folder / "wiseft.json").write_text(json.dumps({k: v for k, v in card.items() if v is not ...}))


def test_a_later_format_is_refused(tmp_path):
    pico_classifier(["a", "b"]).save(tmp_path / "saved")
    changed_card(tmp_path / "saved", format=99, classnames=...)  # which may lack what ours has
    with pytest.raises(BadFile, match=r"wiseft.json was written by a later version .* format is 99.* Update wiseft"):
        load_classifier(tmp_path / "saved")
    pico_classifier(["a", "b"]).save(tmp_path / "saved", force=True)
    changed_card(tmp_path / "saved", format="2")
    with pytest.raises(BadFile, match="'format'"):
        load_classifier(tmp_path / "saved")


def test_a_card_without_alpha_is_a_bad_file(tmp_path):
    pico_classifier(["a", "b"]).save(tmp_path / "saved")
    changed_card(tmp_path / "saved", alpha=...)
    with pytest.raises(BadFile, match="wiseft.json: 'alpha' is missing"):
        load_classifier(tmp_path / "saved")
