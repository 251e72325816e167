"Saving that is interrupted, or has no place to write to, leaves what was there."
import pytest
from tests.models.test_load import NAMES, TEMPLATES, folders  # noqa: F401, a fixture

import wiseft.models.save
from wiseft.models.classifier import zeroshot_classifier
from wiseft.models.clip import load_clip
from wiseft.models.load import load_classifier


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
    with pytest.raises(OSError, match="File exists|Not a directory"):
        classifier.save(tmp_path / "file/saved")
