"Every command × every target of --force: what wiseft didn't write is kept, whatever is asked for."
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from wiseft.shell.cli import app
from wiseft.base.files import MARKER, atomic_path, check_replaceable
from wiseft.models.testing import pico_classifier

# a command that writes a folder -> its words, and the kind of its folder
FOLDERS = {
    "zeroshot": (["zeroshot", "photos", "-o"], "classifier"),
    "probe": (["probe", "torchvision:resnet18", "photos", "-o"], "classifier"),
    "finetune": (["finetune", "zeroshot", "photos", "--epochs", "1", "-o"], "classifier"),
    "merge": (["merge", "zeroshot", "finetuned", "-o"], "classifier"),
    "export": (["export", "zeroshot", "--to", "transformers", "-o"], "transformers folder"),
    "plot": (["plot", "results.csv", "-o"], "folder of pictures"),
    "demo": (["demo", "-o"], "demo"),
    "run": (["run", "photos", "-o"], "run"),
    "ask": (["ask", "zeroshot", "finetuned", "photos", "-o"], "questions"),
}
# a command that writes a file -> its words, and the file's ending
FILES = {
    "evaluate": (["evaluate", "zeroshot", "--suite", "photos", "-o"], ".csv"),
    "ensemble": (["ensemble", "zeroshot", "finetuned", "--suite", "photos", "-o"], ".csv"),
    "sweep": (["sweep", "zeroshot", "finetuned", "--reference", "photos", "-o"], ".csv"),
    "predict": (["predict", "zeroshot", "photos", "-o"], ".csv"),
    "report": (["report", "results.csv", "-o"], ".html"),
    "onnx": (["export", "zeroshot", "--to", "onnx", "-o"], ".onnx"),
    "pt2": (["export", "zeroshot", "--to", "pt2", "-o"], ".pt2"),
    "merge files": (["merge", "a.safetensors", "b.safetensors", "-o"], ".safetensors"),
}
READS_PHOTOS = "zeroshot", "probe", "finetune", "run", "ask"


def photographs(folder):
    for c in "cat", "dog":
        (folder / c).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (40, 30), (25 * i, 80, 200 * (c == "cat"))).save(folder / c / f"{i}.jpg")
    return folder


def own(folder, kind):
    "A folder as wiseft writes it"
    if kind == "classifier":
        return shutil.copytree("finetuned", folder)
    with atomic_path(folder, kind=kind) as tmp:
        tmp.mkdir()
        (tmp / "something").write_text("of an earlier run")
    return folder


def others_kind(folder, kind): return own(folder, "demo" if kind == "classifier" else "classifier")


def with_a_stray_file(folder, kind):
    (own(folder, kind) / "notes.txt").write_text("mine")
    return folder


def without_its_marker(folder, kind):
    (own(folder, kind) / ("wiseft.json" if kind == "classifier" else MARKER)).unlink()
    return folder


def home(folder, kind):
    (folder / ".ssh").mkdir(parents=True)
    os.environ["HOME"] = str(folder)
    return folder


def empty_home(folder, kind):
    folder.mkdir()
    os.environ["HOME"] = str(folder)
    return folder


def a_file(folder, kind):
    folder.write_text("mine")
    return folder


def a_link(folder, kind):
    photographs(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")
    return folder


def this_folder(folder, kind): return Path("..", Path.cwd().name)


def above(folder, kind): return Path("..")


TARGETS = {
    "photographs": lambda folder, kind: photographs(folder), "another kind": others_kind,
    "a stray file": with_a_stray_file, "no marker": without_its_marker, "a home": home, "an empty home": empty_home,
    "a file": a_file, "a link": a_link,
    "the working folder": this_folder, "what holds it": above,
}


def contents(folder):
    "Every file below a folder with its bytes, every folder and link"
    paths = [p for p in folder.rglob("*") if "nobody" not in p.parts and ".cache" not in p.parts]
    return {p: os.readlink(p) if p.is_symlink() else p.read_bytes() if p.is_file() else None for p in paths}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    "What commands read"
    folder = tmp_path_factory.mktemp("made")
    photographs(folder / "photos")
    start = pico_classifier(["cat", "dog"], transformer=True)
    for name in "zeroshot", "finetuned":
        start.save(folder / name)
    for name in "a", "b":
        shutil.copy(folder / "zeroshot/open_clip_model.safetensors", folder / f"{name}.safetensors")
    done = CliRunner().invoke(app, ["evaluate", str(folder / "zeroshot"), "--suite", str(folder / "photos"), "-o",
                                    str(folder / "results.csv")])
    assert not done.exit_code, done.output
    return folder


@pytest.fixture
def work(template, tmp_path, monkeypatch):
    "A copy of it in the folder that one works in"
    shutil.copytree(template, tmp_path / "room")
    monkeypatch.chdir(tmp_path / "room")
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    return tmp_path / "room"


def refused(words, target, work, says):
    before = contents(work.parent)
    done = CliRunner().invoke(app, [*words, str(target), "--force"])
    assert done.exit_code == 1, done.output
    assert contents(work.parent) == before
    assert "kept" in done.output and says in done.output, done.output


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("command", FOLDERS)
def test_a_folder_that_wiseft_did_not_write_is_kept(work, command, target):
    words, kind = FOLDERS[command]
    refused(words, TARGETS[target](Path("target"), kind), work, "")


@pytest.mark.parametrize("command", FILES)
def test_a_file_does_not_replace_a_folder(work, command):
    words, ending = FILES[command]
    refused(words, photographs(Path(f"target{ending}")), work, "is a folder, which a file does not replace")


@pytest.mark.parametrize("words", [
    *[[*words, "photos"] for name, (words, _) in FOLDERS.items() if name in READS_PHOTOS],
    ["zeroshot", "photos/train", "-o", "photos"], ["finetune", "zeroshot", "photos", "-o", "zeroshot"],
    ["finetune", "zeroshot", "photos", "--checkpoints", "finetuned", "-o", "finetuned"],
    ["merge", "zeroshot", "finetuned", "-o", "finetuned"], ["merge", "zeroshot", "finetuned", "-o", "./zeroshot"],
    ["zeroshot", "cat,dog", "--model", "local-dir:zeroshot", "-o", "zeroshot"],
    ["export", "zeroshot", "--to", "transformers", "-o", "zeroshot"],
    ["evaluate", "zeroshot", "--reference", "table.csv", "-o", "table.csv"],
    ["sweep", "zeroshot", "finetuned", "--reference", "photos", "--shift", "table.csv", "-o", "table.csv"],
    ["merge", "a.safetensors", "b.safetensors", "-o", "b.safetensors"],
], ids=" ".join)
def test_what_is_read_is_kept(work, words):
    "An input, whatever it is, and whoever wrote it"
    Path("table.csv").write_text("file,label\nphotos/cat/0.jpg,cat\nphotos/dog/0.jpg,dog\n")
    Path("photos/train").mkdir()
    refused(words[:-1], words[-1], work, "this command reads")


def test_the_error_says_why_and_what_to_do(work):
    own(Path("target"), "classifier")
    (Path("target") / "holiday").mkdir()
    (Path("target") / "holiday" / "1.jpg").write_text("mine")
    refused(FOLDERS["merge"][0], "target", work, "'holiday/1.jpg', not written by wiseft")
    without_its_marker(Path("older"), "demo")
    refused(FOLDERS["demo"][0], "older", work, "remove it yourself if nothing in it is needed")
    if os.path.ismount("/dev/shm"):
        with pytest.raises(FileExistsError, match="is a mounted disk"):
            check_replaceable("/dev/shm", "classifier")


@pytest.mark.parametrize("command", ["zeroshot", "finetune", "merge", "export", "plot"])
def test_what_wiseft_wrote_is_replaced(work, command):
    "An empty folder, what the same command wrote before, and a card that came into it since"
    words, kind = FOLDERS[command]
    Path("empty").mkdir()
    targets = [own(Path("target"), kind), "empty", "empty"]
    for target in targets:
        if kind == "classifier" and target != "empty":
            assert not CliRunner().invoke(app, ["card", str(target)]).exit_code
        (Path(target) / ".DS_Store").touch()
        done = CliRunner().invoke(app, [*words, str(target), "--force"])
        assert not done.exit_code, done.output
        assert not (Path(target) / "something").exists() and not (Path(target) / ".DS_Store").exists()
