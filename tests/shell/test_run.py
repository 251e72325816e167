"The full pipeline in one command is what its commands are one by one, and goes on where it was stopped."
import re
import shlex
import shutil
import signal
from functools import wraps
from pathlib import Path

import huggingface_hub
import pandas as pd
import pytest
import torch
from PIL import Image, ImageOps
from conftest import command_line, Forked, plain, unboxed
from safetensors.torch import save_file
from tests.promises.test_no_file_is_lost import photographs
from typer.main import get_command
from typer.testing import CliRunner

from wiseft.base.files import check_replaceable
from wiseft.models.load import load_classifier
from wiseft.models.save import read_card
from wiseft.models.testing import pico_classifier
from wiseft.shell import evaluate
from wiseft.shell.cli import app
from wiseft.shell.run import run
from wiseft.show.plot_data import verdict_beside
from wiseft.base.lazy import timm

OWN = "commands.sh", "inputs.json", ".wiseft"  # of a run, and not of its commands alone
MADE = ["zeroshot", "finetuned", "averaged"]
WORDS = ["run", "photos", "--shift", "others", "--model", "local-dir:tiny", "--epochs", "2", "-o", "out"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    "Photographs, others, a tiny CLIP, and a run; with one thread"
    work, threads = tmp_path_factory.mktemp("road"), torch.get_num_threads()
    torch.set_num_threads(1)
    for name in "photos", "others":
        photographs(work / name)
    pico_classifier(["cat", "dog"]).save(work / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        output = wiseft(*WORDS).stderr
    yield work, output
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def in_room(work, monkeypatch):
    monkeypatch.chdir(work[0])


def wiseft(*words, code=0):
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == code, done.output
    return done


def hashes(folder): return [load_classifier(Path(folder) / name).hash for name in MADE]


def test_a_run_is_its_commands():
    "Table and weights; Python's `run` gives the same"
    text = Path("out/commands.sh").read_text()
    lines = [line for line in text.splitlines() if line.startswith("wiseft")]
    assert [line.split()[1] for line in lines] == ["zeroshot", "finetune", "merge", "sweep", "report", "card"]
    for line in lines:
        wiseft(*shlex.split(line.replace("out/", "alone/"))[1:])
    again = run("photos", "python", shift="others", model="local-dir:tiny", epochs=2)
    assert hashes("out") == hashes("alone") == [c.hash for c in (again.initial, again.finetuned, again.averaged)]
    table = pd.read_csv("out/results.csv")
    pd.testing.assert_frame_equal(table, pd.read_csv("alone/results.csv"))
    assert again.table.value.tolist() == table.value.tolist()
    for file in Path("out").rglob("*.*"):
        assert (Path("alone") / file.relative_to("out")).exists() or file.name in OWN, file


def test_what_chose_alpha_is_told_everywhere(work):
    card = read_card(Path("out/averaged"))
    chosen = card["recipe"]["merge"]["chosen"]
    assert f"α = {card['alpha']:g} was chosen on 2 validation images (one standard error:" in chosen
    assert work[1].count(f"\n{chosen}\n") == 1
    assert chosen in Path("out/averaged/README.md").read_text()
    box = Path("out/report.html").read_text().split("</section>")[0]
    assert chosen in box[box.index('<section class="verdict"'):]
    assert "is not an average of these two" in wiseft("sweep", "out/finetuned", "out/zeroshot", "--averaged",
                                                 "out/averaged", "--reference", "photos", code=1).stderr


def test_it_ends_with_the_verdict_of_the_report_and_the_next_command():
    "In a box: what to keep, three numbers, why; the tables are in the report"
    printed = unboxed(wiseft(*WORDS).stdout)
    verdict = verdict_beside("out/results.csv", read_card(Path("out/averaged"))["alpha"], chosen=True)
    card, page = (plain(Path(file).read_text()) for file in ("out/averaged/README.md", "out/report.html"))
    assert len(verdict.numbers) == 3
    for words in verdict.lead, verdict.reason, *(w for number in verdict.numbers for w in number):
        assert plain(words) in printed and plain(words) in card and plain(words) in page, words
    assert printed.startswith("Verdict " + verdict.lead) and "fine-tuned ┃" not in printed
    pictures = re.findall(r"!\[.+\]\((.*)\)", Path("out/averaged/README.md").read_text())  # as the hub finds them
    assert pictures[0] == "frontier.png" and all(Path("out/averaged", name).is_file() for name in pictures)
    following = printed.partition("Next: wiseft ")[2]
    wiseft(*following.replace("PICTURES", "others").split())
    assert len(pd.read_csv("predictions.csv")) == len([*Path("others").rglob("*.jpg")])


@pytest.mark.slow
def test_another_metric_chooses_decides_and_leads_the_table():
    again = run("photos", "balanced", shift="others", model="local-dir:tiny", epochs=2, metric="balanced accuracy")
    chosen = read_card(Path("balanced/averaged"))["recipe"]["merge"]["chosen"]
    assert "was chosen by balanced accuracy on 2 validation images" in chosen
    assert list(again.table.metric.unique()) == ["balanced accuracy", "accuracy"]
    assert "balanced accuracy" in str(again.decision)
    assert again.decision.reason in Path("balanced/averaged/README.md").read_text()
    page = Path("balanced/report.html").read_text()
    assert "Balanced accuracy in percent" in page and "fewer than 5 images" in page
    lines = Path("balanced/commands.sh").read_text()
    assert "--metric 'balanced accuracy'" in lines and "--metrics 'balanced accuracy,accuracy'" in lines
    assert "--metric goes with --alpha auto" in wiseft(
        "merge", "out/zeroshot", "out/finetuned", "--metric", "AUROC", "-o", "no", code=2).stderr


@pytest.mark.slow
def test_a_stopped_run_goes_on(monkeypatch):
    "What is there is not made again"
    @wraps(evaluate.sweep_)
    def stopped(**given): raise KeyboardInterrupt
    words = [*WORDS[:-1], "stopped"]
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "sweep_", stopped)
        assert "the same command goes on from here" in wiseft(*words, code=130).stderr
    times = {name: (Path("stopped") / name / "wiseft.json").stat().st_mtime_ns for name in MADE}
    assert "was begun by other commands" in wiseft(*words, "--seed", 1, code=1).stderr
    output = wiseft(*words).stderr
    assert "wiseft sweep" in output and "wiseft merge" not in output
    assert times == {name: (Path("stopped") / name / "wiseft.json").stat().st_mtime_ns for name in MADE}
    assert hashes("stopped") == hashes("out") and not Path("stopped/checkpoints").exists()


def test_a_killed_fine_tuning_goes_on():
    "From its checkpoint; and --force knows what a killed run has left"
    words = [*WORDS[:-1], "killed", "--epochs", "20", "--device", "cpu"]
    child = Forked("killed.txt", command_line, ".", *words)
    checkpoint = Path("killed/checkpoints/checkpoint.safetensors")
    child.wait(lambda lines: checkpoint.exists())
    child.end(signal.SIGKILL)
    assert checkpoint.exists() and not Path("killed/finetuned").exists()
    check_replaceable("killed", "run")
    log = wiseft(*words).stderr
    assert f"resuming from {checkpoint}" in log and re.search(r"resumes epoch \d+ at step 1 of 1|all 20 epochs", log)


def test_an_image_model_goes_the_road():
    "With random weights, which `--pretrained` names"
    save_file(timm.create_model("test_vit").state_dict(), "vit.safetensors")
    words = ["run", "photos", "--shift", "others", "--probe", "test_vit", "--pretrained", "vit.safetensors"]
    wiseft(*words, "--epochs", 1, "-o", "probed")
    assert "\nwiseft probe test_vit photos -o probed/start --weights vit" in Path("probed/commands.sh").read_text()
    assert load_classifier("probed/averaged").clip.name == "test_vit" and Path("probed/report.html").exists()


FAILED = {
    "run photos --model ViT-B-32 --pretrained laion2b_s34b_b79k": "--pretrained FILE --preprocess laion2b_s34b_b79k",
    "run photos --model ViT-B-32 --pretrained stem.safetensors": "--preprocess TAG",
    "run photos --model hf-hub:someone/tiny": "--model local-dir:FOLDER",
    "run photos --probe test_vit": "https://huggingface.co/timm/test_vit.r160_in1k and give --pretrained FILE",
    "probe test_vit photos": "https://huggingface.co/timm/test_vit.r160_in1k and give --weights FILE",
    "zeroshot photos --model ViT-B-32 --pretrained laion2b_s34b_b79k": "--pretrained FILE --preprocess laion2b",
}


@pytest.mark.slow
def test_what_fails_offline_names_options_that_are_there(monkeypatch):
    "Those of the command that was given; and a run whose first step failed refuses no other"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    save_file({"visual.conv1.weight": torch.zeros(1)}, "stem.safetensors")
    for line, advice in FAILED.items():
        error = wiseft(*line.split(), "-o", "failed", code=1).stderr.partition("error: ")[2]
        has = {o for p in get_command(app).commands[line.split()[0]].params for o in [*p.opts, *p.secondary_opts]}
        assert advice in error and set(re.findall(r"(?<!\w)--[a-z-]+", error)) <= has, error
        assert line.split()[0] == "run" or not Path("failed").exists()
        if line.startswith("run photos --probe"):
            wiseft(*WORDS[:-1], "failed")
            shutil.rmtree("failed")


@pytest.mark.parametrize("folder, named", [("photos", "error: the training images"), ("others", "error: others")])
def test_changed_images_are_refused(folder, named):
    "A run is of the images that it was begun with"
    file = next(Path(folder).rglob("*.*"))
    before = file.read_bytes()
    try:
        file.write_bytes(before + b" ")
        error = wiseft(*WORDS, code=1).stderr
    finally:
        file.write_bytes(before)
    assert named in error and "these images are not those that out was begun with" in error, error
    wiseft(*WORDS)


def test_a_finished_run_is_shown_without_its_images():
    "And --force replaces none where there are no images"
    Path("others").rename("moved")
    try:
        again = wiseft(*WORDS).output
        assert "the images were not found, and this run is finished" in again and "keep the" in again.lower(), again
        assert "others: no such folder" in wiseft(*WORDS, "--force", code=1).stderr
    finally:
        Path("moved").rename("others")
    assert hashes("out") and Path("out/report.html").exists()


def test_a_shifted_set_that_is_wrong_is_found_before_training():
    Path("other classes/unicorn").mkdir(parents=True)
    for shift, why in (("nowhere", "nowhere: no such folder"), ("other classes", "other classes")):
        done = wiseft("run", "photos", "--shift", shift, "-o", "early", code=1)
        assert why in done.stderr and not Path("early").exists()


def test_changed_validation_images_are_refused():
    "Where they have a folder of their own"
    for k, split in enumerate(["train", "validation", "test"]):
        for file in photographs(Path("splits") / split).rglob("*.jpg"):
            file.write_bytes(file.read_bytes() + b" "*k)  # other files
    words = ["run", "splits", "--model", "local-dir:tiny", "--epochs", 1, "-o", "of-splits"]
    wiseft(*words)
    file = next(Path("splits/validation").rglob("*.*"))
    file.write_bytes(file.read_bytes() + b" ")
    assert "error: the validation images: these images are not those" in wiseft(*words, code=1).stderr


def test_force_replaces_a_run_and_nothing_else():
    check_replaceable("out", "run")
    Path("out/averaged/notes.txt").write_text("mine")
    assert "also holds 'averaged/notes.txt'" in wiseft(*WORDS, "--force", code=1).stderr


@pytest.fixture(scope="module")
def own_run(work, tmp_path_factory):
    "A finished run of its own, of training, validation, and test images; the words to run it again"
    folder = tmp_path_factory.mktemp("own") / "now"
    for green, split in (110, "train"), (150, "validation"), (190, "test"):
        for i, file in enumerate(photographs(folder / "own" / split).rglob("*.jpg")):
            Image.new("RGB", (40, 30), (12*i, green, 200*(file.parent.name == "cat"))).save(file)
    words = ["run", folder / "own", "--shift", work[0] / "others", "--model", f"local-dir:{work[0] / 'tiny'}"]
    words += ["--epochs", 1, "-o", folder / "made"]
    wiseft(*words)
    return folder, words


@pytest.fixture
def own(own_run):
    "The same, and afterwards as it was"
    folder, words = own_run
    shutil.copytree(folder, folder.with_name("before"))
    yield folder, words
    shutil.rmtree(folder)
    folder.with_name("before").rename(folder)


def made(folder):
    "When each output of a run was written"
    return {f.relative_to(folder).as_posix(): f.stat().st_mtime_ns for f in folder.rglob("*.*") if f.suffix != ".sh"}


def made_again(log): return re.findall(r"(\S+) is made again", log)


@pytest.mark.slow
def test_all_that_came_of_a_deleted_fine_tuning_is_made_again(own):
    "The average, table, and report of a training on other images are of the new one; each says why"
    folder, words = own
    out, before = folder / "made", made(folder / "made")
    shutil.rmtree(out / "finetuned")
    for file in (folder / "own/train").rglob("*.jpg"):
        ImageOps.invert(Image.open(file)).save(file)
    log = wiseft(*words).stderr
    names = ["averaged", "results.csv", "report.html"]
    assert [Path(p).name for p in made_again(log)][:3] == names, log
    assert f"{out}/averaged is made again, because these have changed: {out}/finetuned" in log.replace("\n", " ")
    after = made(out)
    assert all(after[name] > before[name] for name in ("averaged/wiseft.json", "averaged/README.md", *names[1:]))
    assert after["zeroshot/wiseft.json"] == before["zeroshot/wiseft.json"]
    ends = [load_classifier(out / name) for name in ("zeroshot", "finetuned")]
    assert read_card(out / "averaged")["parents"] == [c.hash for c in ends]
    assert not made_again(wiseft(*words).stderr) and made(out) == after


@pytest.mark.slow
def test_what_is_made_again_the_same_changes_nothing_else(own):
    "A start that is written again, and a fine-tuning on the same images; other validation or test images count"
    folder, words = own
    out, before = folder / "made", made(folder / "made")
    for name in "zeroshot", "finetuned":
        shutil.rmtree(out / name)
        assert not made_again(wiseft(*words).stderr)
    assert all(t == before[name] for name, t in made(out).items() if name.startswith(("averaged", "results", "report")))
    for split, first in ("validation", "averaged"), ("test", "results.csv"):
        shutil.rmtree(out / "finetuned")
        Image.new("RGB", (40, 30), (90, 90, 90)).save(next((folder / "own" / split).rglob("*.jpg")))
        assert Path(made_again(wiseft(*words).stderr)[0]).name == first
    wiseft(*words)


def test_a_run_that_an_earlier_version_began_goes_on(own):
    "Without a record of what its steps have read"
    folder, words = own
    out, before = folder / "made", made(folder / "made")
    (out / "inputs.json").unlink()
    assert not made_again(wiseft(*words).stderr) and made(out) | {"inputs.json": 0} == before | {"inputs.json": 0}
