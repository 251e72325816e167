"The command line: each command's smallest real job, help, errors, exit codes, interruption."
import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import command_line, Forked, python, run
from typer.testing import CliRunner
from wiseft.data.suites import load_suite
from wiseft.models.classifier import zeroshot_classifier
from wiseft.models.load import load_classifier
from wiseft.stats.table_io import recipes_file, write_recipes

WISEFT = Path(sys.executable).with_name("wiseft")
COMMANDS = "models data cache zeroshot finetune merge evaluate sweep ensemble predict plot report demo".split()
CLASSES = ["camera", "heart", "star"]


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    "A folder with a small suite cut from the embedded one, a zero-shot and a fine-tuned classifier, and their sweep."
    work = tmp_path_factory.mktemp("cli")
    icons, suite = Path(load_suite("icons").train.root), work / "suite"
    for style in "reference", "solid":
        for split in (icons / style).iterdir():
            for name in CLASSES:
                for image in sorted((split / name).glob("*.png"))[:12]:
                    target = suite / image.relative_to(icons)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(image, target)
    wiseft("zeroshot", ",".join(CLASSES), "-o", "zeroshot", cwd=work)
    # in a process of its own: one that goes on, in this, must give the same
    run(WISEFT, "finetune", "zeroshot", "suite", "--epochs", "2", "--lr", "1e-3", "-o", "finetuned", cwd=work)
    wiseft("sweep", "zeroshot", "finetuned", "--suite", "suite", "--alphas", "0.3,0.5", "-o", "sweep.csv", cwd=work)
    return work


def wiseft(*args, cwd=".", code=0):
    "Run a command line in this process, which saves the imports; `stdout` and `stderr` are as a terminal's."
    from wiseft.shell.cli import app

    here = os.getcwd()
    os.chdir(cwd)
    try:
        done = CliRunner().invoke(app, list(map(str, args)))
    finally:
        os.chdir(here)
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done


def test_help_loads_no_torch():
    code = f"""
import sys
from typer.testing import CliRunner
from wiseft.shell.cli import app
for args in [[], *([c] for c in {COMMANDS})]:
    done = CliRunner().invoke(app, [*args, '--help'])
    assert done.exit_code == 0, done.output
    assert not args or f'wiseft {{args[0]}}' in done.output.partition('Examples:')[2], done.output
assert not {{'torch', 'fastai', 'open_clip', 'pandas', 'matplotlib'}} & set(sys.modules)
"""
    python("-c", code)


HEAVY = ("open_clip.model torchvision timm fastai fastprogress transformers seaborn matplotlib scipy statsmodels "
         "sklearn huggingface_hub httpx requests onnx IPython spacy sympy torch._dynamo torch._inductor")


@pytest.mark.parametrize("code, heavy", [
    ("import typer.testing, wiseft.shell.cli; typer.testing.CliRunner().invoke(wiseft.shell.cli.app, ['models'])",
     f"torch safetensors.torch {HEAVY}"),
    ("from wiseft.all import *", HEAVY),
], ids=["models", "all"])
def test_what_is_heavy_is_imported_when_it_is_used(code, heavy):
    "Also what was imported for a moment, and is in `sys.modules` no more."
    watch = """
import sys
class Watch:
    seen = set()
    def find_spec(name, *_): Watch.seen.add(name)
sys.meta_path.insert(0, Watch)
"""
    loaded = python("-c", f"{watch}{code}; print(*Watch.seen)").stdout.split()
    modules = set(heavy.split()).intersection(loaded)
    assert "wiseft.base.lazy" in loaded and not modules


def test_help_names_every_command():
    assert all(c in wiseft("--help").stdout for c in COMMANDS)


def test_models():
    out = wiseft("models", "icon").stdout
    assert "iconclip" in out and "ViT" not in out


def test_saved_folders_hold_what_open_clip_reads(work):
    for name in "zeroshot", "finetuned":
        files = {p.name for p in (work / name).iterdir()}
        assert {"open_clip_config.json", "open_clip_model.safetensors", "head.safetensors", "wiseft.json"} <= files


def test_sweep_has_all_methods(work):
    table = pd.read_csv(work / "sweep.csv")
    pairs = set(zip(table.method, table.alpha))
    inner = {(m, a) for m in ("weight-space", "logits", "probabilities") for a in (0.3, 0.5)}
    assert pairs == inner | {("zero-shot", 0), ("fine-tuned", 1)}
    assert set(table.dataset) == {"reference", "solid", "mean over shifts"}


def test_merge_and_evaluate_agree_with_the_sweep(work, tmp_path):
    wiseft("merge", work / "zeroshot", work / "finetuned", "--alpha", "0.3", "-o", tmp_path / "averaged")
    out = wiseft("evaluate", tmp_path / "averaged", "--suite", work / "suite", "-o", tmp_path / "results.csv")
    assert "mean over shifts" in out.stdout and "wrote" in out.stderr
    swept, one = pd.read_csv(work / "sweep.csv"), pd.read_csv(tmp_path / "results.csv")
    swept = swept[(swept.method == "weight-space") & (swept.alpha == 0.3)]
    assert dict(zip(swept.dataset, swept.value)) == dict(zip(one.dataset, one.value))


def test_merge_files(work, tmp_path):
    from safetensors.torch import load_file

    paths = [work / n / "head.safetensors" for n in ("zeroshot", "finetuned")]
    wiseft("merge", *paths, "--alpha", "0.25", "-o", tmp_path / "head.safetensors")
    a, b = (load_file(p)["weight"] for p in paths)
    assert (load_file(tmp_path / "head.safetensors")["weight"] - (0.75 * a + 0.25 * b)).abs().max() < 1e-5


def test_evaluate_on_folders(work):
    out = wiseft("evaluate", "zeroshot", "--reference", "suite/reference", "--shift", "suite/solid/test",
                 cwd=work).stdout
    assert "reference" in out and "test" in out


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_ensemble(work, tmp_path, average):
    wiseft("ensemble", "zeroshot", "finetuned", "--average", average, "--suite", "suite", "-o", tmp_path / "out.csv",
           cwd=work)
    swept, table = pd.read_csv(work / "sweep.csv"), pd.read_csv(tmp_path / "out.csv")
    mine, theirs = table[table.method == average], swept[(swept.method == average) & (swept.alpha == 0.5)]
    assert dict(zip(mine.dataset, mine.value)) == dict(zip(theirs.dataset, theirs.value))


def test_plot_and_report(work, tmp_path):
    wiseft("plot", "sweep.csv", "-o", tmp_path / "pictures", cwd=work)
    drawn = {"frontier.png", "alpha.png", "shifts.png"}
    assert {p.name for p in (tmp_path / "pictures").iterdir()} == {".wiseft", *drawn}
    wiseft("report", "sweep.csv", "-o", tmp_path / "report.html", cwd=work)
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png" in page and "http" not in page.replace("http://www.w3.org", "")


def test_a_report_is_about_the_average_that_was_chosen(work, tmp_path):
    shutil.copy(work / "sweep.csv", tmp_path)
    chosen = dict(name="weight-space", alpha=0.3, chosen="α = 0.3 was chosen on 36 validation images.")
    write_recipes(dict(finetuned=dict(merge=chosen)), recipes_file(tmp_path / "sweep.csv"))
    wiseft("report", "sweep.csv", "-o", "report.html", cwd=tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    assert "weights averaged, α = 0.3" in page and "weights averaged, α = 0.5" not in page


@pytest.mark.slow
def test_bench(work, tmp_path):
    "Tables, a picture and a page, also of a method that can't run; intervals over families, which a table names"
    shutil.copytree(work / "suite", tmp_path / "suite")
    files = sorted((tmp_path / "suite").rglob("*.png"))
    rows = [dict(file=f.relative_to(tmp_path / "suite").as_posix(), family=i % 7) for i, f in enumerate(files)]
    pd.DataFrame(rows).to_csv(tmp_path / "suite/families.csv", index=False)
    out = wiseft("bench", work / "zeroshot", "--suite", "suite", "--methods", "lines,uniform soup", "--epochs", "1",
                 "--seeds", "1", "--lrs", "1e-3", "--groups", "-o", "bench", cwd=tmp_path).stdout
    tables, pictures = ("gains", "curves", "accuracies", "choices", "costs"), ("bench.png", "bench.svg", "gains.png")
    assert {*(f"{t}.csv" for t in tables), *pictures} <= {p.name for p in (tmp_path / "bench").iterdir()}
    gains, page = pd.read_csv(tmp_path / "bench/gains.csv"), (tmp_path / "bench/report.html").read_text()
    assert gains.method.tolist() == ["plain", "LiNeS", "uniform soup"]
    for sentence in gains.why.dropna().tolist() + [f"LiNeS (α = {gains.alpha[1]:g}): {100*gains.reference[1]:.1f} %"]:
        assert sentence in out and sentence in page
    assert "groups: reference 7, solid 7" in page and "families of images that belong together" in page


def test_control_images_of_a_bench(work, tmp_path):
    "The plan looks at them: here they have the classes of the task"
    command = ["bench", "zeroshot", "--suite", "suite", "--methods", "lines", "--dry-run", "-o", tmp_path / "bench"]
    for control in ([], ["--control", "suite/solid/test"]):
        done = wiseft(*command, *control, cwd=work)
        assert ("'test' has the classes of the task" in done.stderr) == bool(control), done.stderr


def test_flyp_with_captions_from_class_names(work, tmp_path):
    "Both towers train, and the head is the new text tower's"
    wiseft("finetune", work / "zeroshot", work / "suite", "--method", "flyp", "--epochs", "1", "--precision", "fp32",
           "-o", "finetuned", cwd=tmp_path)
    card = json.loads((tmp_path / "finetuned/wiseft.json").read_text())
    assert card["recipe"]["loss"]["name"] == "FLYP"
    start, finetuned = (load_classifier(folder) for folder in (work / "zeroshot", tmp_path / "finetuned"))
    for name in "visual.conv1.weight", "text_projection":
        assert not torch.equal(*(c.clip.model.state_dict()[name] for c in (start, finetuned))), name
    again = zeroshot_classifier(finetuned.clip, finetuned.classnames, finetuned.templates)
    torch.testing.assert_close(again.head.weight, finetuned.head.weight)


def test_data_names_unreadable_images(work, tmp_path):
    shutil.copytree(work / "suite/solid/test", tmp_path / "set")
    (tmp_path / "set/heart/text.png").write_text("no picture")
    err = wiseft("data", "set", cwd=tmp_path, code=1).stderr
    assert "text.png" in err and "1 of" in err


@pytest.mark.parametrize("args, words", [
    (["models", "nonesuch"], "no model"),
    (["data", "nowhere"], "no such folder"),
    (["ensemble", "zeroshot", "finetuned", "--average", "weights"], "--average weights: expected 'logits'"),
    (["zeroshot", "camera", "-o", "x"], "neither a file nor a folder"),
    (["zeroshot", "camera,camera", "-o", "x"], "repeat"),
    (["zeroshot", "camera,heart", "--templates", "icon", "-o", "x"], "templates"),
    (["zeroshot", "camera,heart", "--model", "ViT-B-23", "-o", "x"], "ViT-B-32"),
    (["finetune", "suite", "icons", "-o", "x"], "wiseft.json"),
    (["finetune", "zeroshot", "icons", "-o", "x"], "class"),
    (["merge", "zeroshot", "sweep.csv", "-o", "x"], "classifier folders or files, not both"),
    (["merge", "sweep.csv", "sweep.csv", "-o", "x.safetensors"], "is not a checkpoint"),
    (["zeroshot", "camera,heart", "--device", "gpu", "-o", "x"], "no device 'gpu'"),
    (["evaluate", "zeroshot", "--suite", "suite", "--device", "cuda:77"], "cuda:77"),
    (["zeroshot", "camera,heart", "--model", "ViT-B-32", "--pretrained", "zeroshot/head.safetensors", "-o", "x"],
     "no image tower"),
    (["zeroshot", "camera,heart", "--model", "ViT-B-32", "--pretrained", "zeroshot/open_clip_model.safetensors", "-o",
      "x"], "--preprocess TAG"),
    (["predict", "zeroshot", "nowhere.png"], "no picture"),
    (["merge", "finetuned", "zeroshot", "--alpha", "0.8", "-o", "x"], "swapped"),
    (["sweep", "finetuned", "zeroshot", "--suite", "suite", "-o", "x.csv"], "swapped"),
    (["evaluate", "nowhere"], "nowhere"),
    (["sweep", "zeroshot", "finetuned", "-o", "x.csv"], "Give --reference FOLDER, or --suite."),
    (["plot", "nowhere.csv", "-o", "x"], "nowhere.csv"),
    (["report", "zeroshot/wiseft.json", "-o", "x.html"], "results"),
], ids=lambda o: " ".join(o) if isinstance(o, list) else "")
def test_errors_are_a_line(work, args, words):
    err = wiseft(*args, cwd=work, code=1).stderr
    assert words in err and [line for line in err.splitlines() if line.startswith("error: ")]
    assert len([line for line in err.splitlines() if not line.startswith("warning")]) <= 4
    assert not (work / "x").exists() and not list(work.glob(".x*"))


@pytest.mark.parametrize("args", [
    ["nonesuch"], ["merge", "zeroshot"], ["merge", "zeroshot", "finetuned", "-o", "x", "--alpha", "much"],
    ["ensemble", "zeroshot"],
    ["sweep", "zeroshot", "finetuned", "--alphas", "0.1;0.2"], ["report", "sweep.csv", "-o", "r.xyz"],
    ["plot", "sweep.csv", "-o", "r.png"], ["zeroshot", "cat,dog", "-o", "r.pt"],
    ["sweep", "zeroshot", "finetuned", "-o", "r.xyz"], ["predict", "zeroshot", "suite", "-o", "r.xyz"],
    ["evaluate", "zeroshot", "--shift", "suite"],
    ["finetune", "zeroshot", "suite", "-o", "r", "--precision", "float32"],
], ids=" ".join)
def test_wrong_command_lines(work, args):
    wiseft(*args, cwd=work, code=2)


def test_debug_shows_the_traceback(work):
    for args in (["--debug", "evaluate", "nowhere"], ["evaluate", "nowhere", "--debug"]):
        done = run(WISEFT, *args, cwd=work, ok=False)
        assert done.returncode == 1 and "Traceback" in done.stderr and "FileNotFoundError" in done.stderr


def test_existing_targets_are_kept(work, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/mine.txt").write_text("mine")
    assert "--force" in wiseft("plot", work / "sweep.csv", "-o", "pictures", cwd=tmp_path, code=1).stderr
    assert (tmp_path / "pictures/mine.txt").read_text() == "mine"
    error = wiseft("plot", work / "sweep.csv", "-o", "pictures", "--force", cwd=tmp_path, code=1).stderr
    assert "no folder of pictures that wiseft wrote" in error and (tmp_path / "pictures/mine.txt").read_text() == "mine"
    wiseft("plot", work / "sweep.csv", "-o", "other", cwd=tmp_path)
    wiseft("plot", work / "sweep.csv", "-o", "other", "--force", cwd=tmp_path)
    assert {p.suffix for p in (tmp_path / "other").iterdir() if p.name != ".wiseft"} == {".png"}


def test_warnings_are_a_line(work, tmp_path):
    done = wiseft("merge", "zeroshot", "finetuned", "--alpha", "1.5", "-o", tmp_path / "beyond", cwd=work)
    assert [line for line in done.stderr.splitlines() if line.startswith("warning: ") and "1.5" in line], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name)
def test_stopped_training_leaves_whole_checkpoints_and_goes_on(work, tmp_path, sent):
    command = ["finetune", work / "zeroshot", work / "suite", "--lr", "1e-4", "--checkpoints", "run", "-o", "out"]
    log = tmp_path.with_suffix(".txt")
    training = Forked(log, command_line, tmp_path, *command, "--epochs", "5000")
    checkpoint = tmp_path / "run/checkpoint.safetensors"
    training.wait(lambda lines: checkpoint.exists())
    time.sleep(0.5)
    code, word = (75, "SIGTERM: step") if sent == signal.SIGTERM else (130, "stopped")
    assert training.end(sent) == code, training.lines()
    assert word in log.read_text() and "Traceback" not in log.read_text(), log.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert [p.name for p in (tmp_path / "run").iterdir()] == [checkpoint.name]
    if sent == signal.SIGINT:  # what is left is the same
        assert "--force" not in wiseft(*command, "--epochs", "5000", cwd=tmp_path, code=1).stderr
        assert "epochs" in wiseft(*command, "--epochs", "9", "--resume", cwd=tmp_path, code=1).stderr


@pytest.mark.slow
def test_requeued_after_sigterm(work, tmp_path):
    "A scheduler's SIGTERM: exit code 75, and the same command ends with the weights of a run without a stop"
    command = ["finetune", work / "zeroshot", work / "suite", "--lr", "1e-3", "--epochs", "8", "--batch-size", "8",
               "--checkpoints", "run", "--resume", "-o", "out"]
    training = Forked(tmp_path.with_suffix(".txt"), command_line, tmp_path, *command)
    training.wait(lambda lines: (tmp_path / "run/checkpoint.safetensors").exists())
    assert training.end(signal.SIGTERM) == 75, training.lines()
    assert not (tmp_path / "out").exists()
    assert "resumes epoch" in wiseft(*command, cwd=tmp_path).stderr
    wiseft(*command[:-5], "-o", "whole", cwd=tmp_path)
    for file in "head.safetensors", "open_clip_model.safetensors":
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_run_goes_on_from_its_checkpoint(work, tmp_path):
    command = ["finetune", work / "zeroshot", work / "suite", "--epochs", "2", "--lr", "1e-3", "-o", "out"]
    wiseft(*command, "--checkpoints", "run", cwd=tmp_path)
    shutil.rmtree(tmp_path / "out")
    wiseft(*command, "--checkpoints", "run", "--resume", cwd=tmp_path)
    assert (tmp_path / "out/head.safetensors").read_bytes() == (work / "finetuned/head.safetensors").read_bytes()


def test_a_decision_where_validation_chose_the_fine_tuned_model(work, tmp_path):
    "α = 1 is no average: the one at 0.5 is compared, and report, card, and decision name no third α"
    from wiseft.infer.rules import ChosenAlpha
    from wiseft.show.plot_data import verdict_beside
    from wiseft.weights.merge import interpolate

    ends = [load_classifier(work / name) for name in ("zeroshot", "finetuned")]
    interpolate(*ends, ChosenAlpha(1., "α = 1 was chosen on 36 validation images.")).save(tmp_path / "averaged")
    wiseft("sweep", "zeroshot", "finetuned", "--averaged", tmp_path / "averaged", "--suite", "suite",
           "-o", tmp_path / "results.csv", cwd=work)
    wiseft("report", tmp_path / "results.csv", "-o", tmp_path / "page.html", cwd=work)
    decision = verdict_beside(tmp_path / "results.csv", 1., chosen=True)
    assert decision.alpha == .5 and (decision.established or decision.keep != "the average")
    page = (tmp_path / "page.html").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    assert "α = 1 was chosen on 36 validation images." in page and decision.keep in page
    assert "keep the average (α = 0.9)" not in page


def test_python_m_wiseft():
    assert python("-m", "wiseft", "--version").stdout.startswith("wiseft ")


@pytest.mark.parametrize("top", [1, 3])
def test_predict(work, tmp_path, top):
    wiseft("predict", "zeroshot", "suite/solid/test", "--top", top, "-o", tmp_path / "predictions.csv", cwd=work)
    table = pd.read_csv(tmp_path / "predictions.csv")
    swept = pd.read_csv(work / "sweep.csv").query("method == 'zero-shot' and dataset == 'solid'")
    right = [Path(f).parent.name == c for f, c in zip(table.file, table["class"])]
    assert sum(right) / len(right) == swept.value.item() and len(right) == swept.n.item()
    assert len(table.columns) == 2 + 2 * top


def test_doubts_are_said(work):
    err = wiseft("sweep", "zeroshot", "finetuned", "--suite", "suite", "--alphas", "0,50,100", cwd=work).stderr
    assert "Did you mean a percentage?" in err and "has 32 images" in err, err


def test_the_device_is_said(work):
    output = wiseft("evaluate", "zeroshot", "--suite", "suite", "--device", "cpu", cwd=work).stderr
    assert re.search(r"on the CPU, float32, \d+ thread", output), output


def test_every_command_that_computes_takes_a_device_and_readers():
    from typer.main import get_command
    from wiseft.shell.cli import app

    def takes(command, option):
        return any(option in p.opts for p in command.params)

    def without(option):
        return {name for name, c in get_command(app).commands.items() if not takes(c, option)}
    neither = set("models methods data cache plot report show card push export".split())  # export: on the CPU
    assert without("--device") == neither
    assert without("--workers") == neither | {"zeroshot", "demo"}  # which read no images, or icons


def test_what_was_predicted_lies_beside_the_table_and_is_in_the_report(work, tmp_path):
    from wiseft.analysis.predictions import compare_ends, read_predictions

    swept = pd.read_csv(work / "sweep.csv").set_index(["method", "alpha", "dataset"]).value
    for g in compare_ends(read_predictions(work / "sweep.predictions.csv.gz")).itertuples():
        assert abs(
            g.difference
            - (swept["weight-space", 0.5, g.dataset] - swept[g.a, float(g.a == "fine-tuned"), g.dataset])) < 1e-9
    wiseft("report", "sweep.csv", "--suite", "suite", "-o", tmp_path / "report.html", cwd=work)
    page = (tmp_path / "report.html").read_text()
    assert "Comparisons on the same images" in page and 'class="small"' in page and "How it was fine-tuned" in page


def test_training_into_a_file_is_a_line_an_epoch(work, tmp_path):
    done = wiseft("finetune", "zeroshot", "suite", "--epochs", "2", "-o", tmp_path / "finetuned", cwd=work)
    lines = [o for o in done.stderr.splitlines() if o.startswith("epoch")]
    assert [o.partition(":")[0] for o in lines] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert all(w in o for o in lines for w in ("loss ", "validation accuracy ", " images per second, "))
    assert " left" in lines[0]
    assert "\r" not in done.output and len(done.stderr) < 2000


def test_resume_says_where_it_begins(work, tmp_path):
    tune = ["finetune", "zeroshot", "suite", "--epochs", "2", "--train", "head", "--checkpoints", tmp_path, "--resume"]
    assert "checkpoint.safetensors yet: starting at epoch 1" in wiseft(*tune, "-o", tmp_path / "a", cwd=work).stderr
    output = wiseft(*tune, "-o", tmp_path / "b", cwd=work).stderr
    assert f"resuming from {tmp_path / 'checkpoint.safetensors'}\nall 2 epochs were done\n" in output


def test_completion_is_installed_and_completes(tmp_path):
    inside = f"{WISEFT} --install-completion bash; exit $?"  # typer looks which shell it was called from
    run("bash", "-c", inside, env=os.environ | dict(HOME=str(tmp_path)))
    assert "wiseft" in (tmp_path / ".bashrc").read_text()
    completion = dict(COMP_WORDS="wiseft me", COMP_CWORD="1", _WISEFT_COMPLETE="complete_bash")
    assert run(WISEFT, env=os.environ | completion).stdout.split() == ["methods", "merge"]


def test_quiet(work, tmp_path):
    "Before or after the command: results, warnings and errors alone"
    done = wiseft("evaluate", work / "zeroshot", "--suite", work / "suite", "-q", "-o", tmp_path / "table.csv")
    assert "solid" in done.stdout and all(line.startswith("warning: ") for line in done.stderr.splitlines())
    assert wiseft("-q", "merge", work / "zeroshot", work / "finetuned", "-o", tmp_path / "averaged").output == ""
    assert wiseft("-q", "show", tmp_path / "gone", code=1).stderr.startswith("error: ")
    assert "wrote" in wiseft("merge", work / "zeroshot", work / "finetuned", "-o", tmp_path / "other").stderr


def test_a_report_of_two_tables_of_one_name(work, tmp_path):
    for name in "first", "second":
        (tmp_path / name).mkdir()
        for ending in "csv", "predictions.csv.gz", "recipes.json":
            shutil.copy(work / f"sweep.{ending}", tmp_path / name / f"results.{ending}")
    wiseft("report", "first/results.csv", "second/results.csv", "-o", "both.html", cwd=tmp_path)
    page = (tmp_path / "both.html").read_text()
    assert all(str(Path(name, "results.csv")) in page for name in ("first", "second"))


def test_a_report_of_runs_is_about_an_average_that_all_of_them_have(work, tmp_path):
    "And how one run's α was chosen isn't said of the others"
    ends = work / "zeroshot", work / "finetuned"
    wiseft("merge", *ends, "--alpha", "auto", "--suite", work / "suite", "-o", "chosen", cwd=tmp_path)
    sweep = ["sweep", *ends, "--suite", work / "suite"]
    wiseft(*sweep, "--averaged", "chosen", "--alphas", "0.2,0.3,0.5", "-o", "one.csv", cwd=tmp_path)
    wiseft(*sweep, "--alphas", "0.3", "-o", "two.csv", cwd=tmp_path)
    wiseft("report", "one.csv", "two.csv", "-o", "both.html", cwd=tmp_path)
    page = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert "was chosen on" not in page and "How it was fine-tuned" not in page
    leads = re.findall(r'<p class="lead">(\w+): ', page)
    assert leads == ["one", "two"]


def test_a_card_decides_about_weight_averages_alone(work, tmp_path):
    merge = ["merge", work / "zeroshot", work / "finetuned", "--alpha", "0.3"]
    for rule in "weight-space", "lines":
        wiseft(*merge, "--rule", rule, "-o", rule, cwd=tmp_path)
        wiseft("card", rule, "--results", work / "sweep.csv", cwd=tmp_path)
        card = (tmp_path / rule / "README.md").read_text(encoding="utf-8")
        assert ("the fine-tuned model" in card) == (rule == "weight-space")


def test_pictures_in_a_report_where_the_reference_lacks_a_class(work, tmp_path):
    shutil.copytree(work / "suite/reference/test", tmp_path / "few", ignore=shutil.ignore_patterns("star"))
    images = ["--reference", "few", "--shift", work / "suite/solid/test"]
    wiseft("sweep", work / "zeroshot", work / "finetuned", *images, "--alphas", "0.5", "-o", "few.csv", cwd=tmp_path)
    wiseft("report", "few.csv", *images, "-o", "few.html", cwd=tmp_path)


def test_many_class_names(tmp_path):
    names = [f"class number {i}" for i in range(30)]
    wiseft("zeroshot", ",".join(names), "-o", "zeroshot", cwd=tmp_path)
    assert load_classifier(tmp_path / "zeroshot").classnames == names


def test_images_of_an_option_replace_those_of_a_recipe(work, tmp_path):
    (tmp_path / "recipe.yml").write_text(f"rule: RegMean\nmodels:\n- model: {work}/finetuned\nsuite: icons\n")
    result = wiseft("merge", "recipe.yml", "--reference", "nowhere", "-o", "merged", cwd=tmp_path, code=1)
    assert "nowhere" in result.stderr
