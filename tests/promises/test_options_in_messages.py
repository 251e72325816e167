"A message names an argument to who calls a function, and an option to who runs a command."
import shutil

import pytest
from conftest import later
from tests.shell.test_cli import wiseft

from wiseft.all import image_folder, load_clip, load_suite, zeroshot_classifier
from wiseft.models.load import load_classifier

finetune = later("wiseft.train.learner", "finetune")

CLASSES = ["camera", "heart", "star"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A folder with a zero-shot classifier, images of its classes, and an empty folder."
    root = tmp_path_factory.mktemp("doors")
    icons = load_suite("icons").train
    for name in CLASSES:
        (root / "photos" / name).mkdir(parents=True)
        mine = [p for p, y in zip(icons.paths, icons.labels) if icons.classnames[y] == name]
        for path in mine[:12]:
            shutil.copy(path, root / "photos" / name)
    (root / "empty").mkdir()
    zeroshot_classifier(load_clip(), CLASSES, "icons").save(root / "zeroshot")
    return root


def tune(folder, **settings):
    images = image_folder(folder / "photos")
    finetune(load_classifier(folder / "zeroshot"), images, images, epochs=1, **settings)


TUNE = "finetune zeroshot photos --epochs 1 -o finetuned"
MESSAGES = {
    "an existing folder": (
        lambda f: load_classifier(f / "zeroshot").save(f / "zeroshot"), "replace it with force=True.",
        "zeroshot camera,heart -o zeroshot", "replace it with --force."),
    "a folder without a classifier": (
        lambda f: load_classifier(f / "empty"), "use zeroshot_classifier(load_clip(FOLDER), CLASSNAMES).",
        "evaluate empty", "use `wiseft zeroshot CLASSES --model FOLDER -o OUTPUT`."),
    "weights twice": (
        lambda f: load_clip("iconclip", "openai"), "leave out pretrained and quick_gelu.",
        "zeroshot icons --pretrained openai -o other", "leave out --pretrained and --quick-gelu."),
    "more blocks than there are": (
        lambda f: tune(f, train="last:99"), "train='head' trains none, train='all' everything.",
        f"{TUNE} --train last:99", "--train head trains none, --train all everything."),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_names_what_the_reader_can_write(folder, name):
    call, in_python, line, in_shell = MESSAGES[name]
    printed = " ".join(wiseft(*line.split(), cwd=folder, code=1).stderr.split())
    assert in_shell in printed and f" {in_python}" not in printed, printed
    with pytest.raises((ValueError, OSError)) as raised:  # after the command, in the same process
        call(folder)
    message = str(raised.value)
    assert in_python in message and "--" not in message, message
