"A model card of a classifier whose description somebody else wrote."
import json

from conftest import later
from wiseft.models.testing import pico_classifier

write_card = later("wiseft.show.card", "write_card")


def test_a_merge_that_is_not_ours(tmp_path):
    pico_classifier(["cat", "dog"]).save(tmp_path / "theirs")
    file = tmp_path / "theirs/wiseft.json"
    card = json.loads(file.read_text())
    card["recipe"]["merge"] = "by hand"
    del card["sha256"]
    file.write_text(json.dumps(card))
    assert "image classifier of 2 classes" in write_card(tmp_path / "theirs").read_text(encoding="utf-8")
