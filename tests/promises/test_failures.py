"""Failures that a user can meet end in a sentence that says what was given, and what to do."""
import os
import shlex
import subprocess
import csv
import json
import logging
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import run as run_process
from PIL import Image
from safetensors.torch import save_file
from tests.weights.test_adapters import SETTINGS
from tests.promises.test_no_file_is_lost import photographs
from typer.main import get_command
from typer.testing import CliRunner

from wiseft.base.text import BadFile
from wiseft.analysis.ask import Questions, read_answers, write_answers
from wiseft.models.load import load_classifier
from wiseft.models.testing import pico_classifier
from wiseft.shell.cli import app
from wiseft.weights.checkpoints import read_state_dict
from wiseft.weights.recipes import read_recipe


def wiseft(*words, code=0):
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == code, done.output
    return done


@pytest.fixture(scope="module")
def classifier():
    return pico_classifier(["cat", "dog"], transformer=True)


# recipes

def recipe(folder, text):
    (folder / "recipe.yml").write_text(text)
    return folder / "recipe.yml"


def test_merge_keys_are_refused(tmp_path):
    "With PyYAML up to 6.0.3, 487 bytes of them take 395 MB."
    text = "merge_method: linear\nmodels:\n- &a {model: a, parameters: {weight: 1}}\n- {<<: *a, model: b}\n"
    with pytest.raises(BadFile, match=r"recipe.yml .*<<. Write out"):
        read_recipe(recipe(tmp_path, text))
    bomb = "- &a0 {a: 1}\n" + "".join(f"- &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 8))
    with pytest.raises(BadFile, match="<<"):
        read_recipe(recipe(tmp_path, f"merge_method: linear\nmodels:\n{bomb}"))


@pytest.mark.parametrize("parameters", ["{weight: true}", "{weight: [0, true]}", "{weight: [{value: yes}]}"])
def test_yes_is_no_weight(tmp_path, parameters):
    text = f"merge_method: linear\nmodels:\n- {{model: a, parameters: {parameters}}}\n- {{model: b}}\n"
    with pytest.raises(BadFile, match="weight is .*It is a number"):
        read_recipe(recipe(tmp_path, text + "parameters: {weight: 1}\n"))


def test_switches_of_recipes(tmp_path):
    models = "models:\n- {model: a, parameters: {weight: 1}}\n- {model: b, parameters: {weight: 2}}\n"
    result = read_recipe(recipe(tmp_path, f"merge_method: linear\nparameters: {{normalize: false}}\n{models}"))
    assert result.method.given["normalize"] is False


# weights in 8 bits

FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_float8(tmp_path, dtype):
    "Refused by name, and what helps does help."
    state, path = {"w": torch.ones(4, 4), "b": torch.zeros(4)}, tmp_path / "a.safetensors"
    save_file(state | {"w": state["w"].to(dtype)}, path)
    with pytest.raises(BadFile, match=rf"a.safetensors: 'w' is {dtype}, .*to\(torch.bfloat16\)"):
        read_state_dict(path)
    save_file({k: t.to(torch.bfloat16) for k, t in state.items()}, path)
    assert read_state_dict(path)["w"].sum() == 16


def test_float8_in_a_classifier(tmp_path, classifier):
    classifier.save(tmp_path / "c")
    file = tmp_path / "c/open_clip_model.safetensors"
    state = {k: t.to(torch.float8_e4m3fn) if t.is_floating_point() else t for k, t in read_state_dict(file).items()}
    save_file(state, file)
    settings = json.loads((tmp_path / "c/wiseft.json").read_text())
    settings.pop("sha256"), settings["files"].pop(file.name)
    (tmp_path / "c/wiseft.json").write_text(json.dumps(settings))
    with pytest.raises(BadFile, match="torch.float8_e4m3fn"):
        load_classifier(tmp_path / "c")


# adapters

MODULE = "visual.transformer.resblocks.0.mlp.c_fc"


def adapter(folder, classifier, change=lambda state: None, **settings):
    "One of rank 3, with a head"
    rows, columns = classifier.state_dict()[f"{MODULE}.weight"].shape
    prefix = f"base_model.model.{MODULE}"
    state = {f"{prefix}.lora_A.weight": torch.ones(3, columns), f"{prefix}.lora_B.weight": torch.ones(rows, 3)}
    state["base_model.model.head.weight"] = torch.ones_like(classifier.head.weight)
    change(state)
    save_file(state, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | dict(modules_to_save=["head"]) | settings))
    return folder


def complex_matrices(state):
    for k in state:
        state[k] = state[k].to(torch.complex64) if "lora" in k else state[k]


def whole_numbers(state):
    for k in state:
        state[k] = state[k].to(torch.int64) if "lora" in k else state[k]


def eight_bits(state):
    for k in state:
        state[k] = state[k].to(torch.float8_e4m3fn) if "lora" in k else state[k]


@pytest.mark.parametrize("change, says", [
    (complex_matrices, "is torch.complex64"), (whole_numbers, "is torch.int64"),
    (eight_bits, "is torch.float8_e4m3fn")])
def test_adapters_that_are_read_oddly(tmp_path, classifier, change, says):
    with pytest.raises(BadFile, match=re.escape(says)):
        load_classifier(adapter(tmp_path, classifier, change), base=classifier)


# tables that spreadsheets open

NAMES = ["=cmd|'/c calc'!A0.png", "+1.png", "-1.png", "@SUM(1).png", "\tx.png", "'=1.png", "''-1.png", "a.png",
         "'a.png"]
FORMULA = re.compile(r"[=+\-@\t\r]")


def questions(names):
    n = len(names)
    return Questions(["a", "b"], ["=1+1", "dog"], names, [[0] * n, [1] * n], [True] * n, [False] * n, n, n, False, "")


def cells(path):
    return [cell for row in csv.reader(path.open(encoding="utf-8-sig", newline="")) for cell in row]


def test_no_formulas_in_tables_of_labels(tmp_path):
    "A spreadsheet runs none, and what was written is read back."
    table, answers = tmp_path / "labels.csv", {NAMES[0]: ["=1+1"], NAMES[5]: ["dog", "=1+1"]}
    write_answers(table, questions(NAMES), answers)
    assert not [c for c in cells(table) if FORMULA.match(c)]
    assert read_answers(table, questions(NAMES)) == answers
    table.write_text(f'file,label\n"{NAMES[0]}",=1+1\n')  # as it was written before, or a spreadsheet saves it
    assert read_answers(table, questions(NAMES)) == {NAMES[0]: ["=1+1"]}


def test_no_formulas_from_the_page():
    "The page in the browser saves the same cells."
    from wiseft.analysis.ask import plain_cell
    from wiseft.show.ask import _SCRIPT
    if not shutil.which("node"):
        pytest.skip("no node to run the page's script with")
    line, = (line for line in _SCRIPT.splitlines() if "const cell" in line)
    program = f"{line.partition(', numbers')[0]}\nconsole.log(JSON.stringify({json.dumps(NAMES)}.map(cell)))"
    written = json.loads(run_process("node", "-e", program).stdout)
    assert written == ['"' + plain_cell(n).replace('"', '""') + '"' for n in NAMES]


# what was foreseen

def test_errors_with_advice(tmp_path, monkeypatch, classifier):
    "An error with advice isn't called unforeseen; one that is nobody's is."
    photographs(tmp_path / "photos")
    classifier.save(tmp_path / "c")
    done = wiseft("finetune", tmp_path / "c", tmp_path / "photos", "--epochs", 2, "--lr", "3e30", "-o",
                  tmp_path / "out",
                  code=1)
    assert "learning rate 10 times lower" in done.stderr and "not foreseen" not in done.stderr
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    done = wiseft("export", tmp_path / "c", "--to", "onnx", "-o", tmp_path / "c.onnx", code=1)
    assert "pip install wiseft[export]" in done.stderr and "not foreseen" not in done.stderr
    monkeypatch.setattr("wiseft.models.load.load_classifier", lambda *_: {}["a bug"])
    done = wiseft("export", tmp_path / "c", "--to", "onnx", "-o", tmp_path / "c.onnx", code=1)
    assert "not foreseen" in done.stderr


# memory

TOO_LITTLE = """
import faulthandler, resource, sys, torch, warnings
from pathlib import Path
from wiseft.infer.classify import classify
from wiseft.infer.evaluation import evaluate
from wiseft.data.labels import image_folder
from wiseft.models.load import load_classifier
from wiseft.train.learner import finetune
warnings.simplefilter("ignore")
faulthandler.dump_traceback_later(250, exit=True)
here = Path(sys.argv[1])
classifier, small, large = load_classifier(here/"c"), image_folder(here/"small"), image_folder(here/"large")

def limit(n): resource.setrlimit(resource.RLIMIT_AS, (n, resource.RLIM_INFINITY))

def limited(task):
    used, hog = next(2**10*int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmSize")), []
    try:
        limit(used)
        for size in 2**24, 2**20:  # what was freed before is had without asking the system
            try:
                while True: hog.append(torch.empty(size, dtype=torch.uint8))
            except RuntimeError: pass
        limit(used + 12*2**20)
        task()
    except BaseException as e: print(type(e).__name__, str(e).replace(chr(10), " "))
    else: print("done")
    finally:
        hog.clear()
        limit(resource.RLIM_INFINITY)

def predict(images): evaluate(classifier, images, batch_size=1, progress=False)
def name(folder): classify(classifier, [folder], batch_size=1)
def train(n): finetune(classifier, small, epochs=1, batch_size=n, progress=False, workers=0)
predict(small), name(here/"small/cat"), train(100)  # imports what is imported late
limited(lambda: predict(large))
limited(lambda: name(here/"large"))
limited(lambda: train(400))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no number of what a process has mapped")
def test_too_little_memory(tmp_path, classifier):
    "Predictions and training say what helps."
    for size, n, name in (48, 250, "small"), (6000, 1, "large"):
        for c in "cat", "dog":
            (tmp_path / name / c).mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (size, size), (i, len(c), ord(c[0]))).save(tmp_path / f"{name}/{c}/{i}.png")
    classifier.save(tmp_path / "c")
    lines = run_process(sys.executable, "-W", "ignore", "-c", TOO_LITTLE, tmp_path).stdout.splitlines()
    helped = [bool(re.match(r"MemoryError There is too little memory.* What helps.* smaller batch", s)) for s in lines]
    assert helped == [True] * 3, lines


# threads

@pytest.mark.slow
def test_threads_that_build_at_once(tmp_path):
    "open_clip's warning of random weights is silenced for all of them, and logging works afterwards."
    pico_classifier(["cat", "dog"]).save(tmp_path / "c")
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.root.addHandler(handler)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(load_classifier, [tmp_path / "c"] * 48))
        assert logging.root.manager.disable == 0
        assert messages == []
    finally:
        logging.root.removeHandler(handler)
        logging.disable(0)


# commands.sh

ROAD = ["--model", "local-dir:tiny", "--epochs", "1", "--batch-size", "8", "-o", "out"]


@pytest.mark.slow
@pytest.mark.parametrize("data", ["--force", "-rf", b"ph\xff".decode(errors="surrogateescape")], ids=ascii)
def test_commands_of_odd_names(tmp_path, monkeypatch, classifier, data):
    "What is written is what was run: the shell gives each command the same arguments, and a stopped run goes on."
    monkeypatch.chdir(tmp_path)
    pico_classifier(["cat", "dog"]).save("tiny")
    photographs(tmp_path / data)
    wiseft("run", *ROAD, "--", data)
    text = Path("out/commands.sh").read_bytes()
    for line in text.splitlines()[2:]:
        name, *words = shlex.split(line.decode(errors="surrogateescape"))[1:]
        with get_command(app).commands[name].make_context(name, words) as context:
            given = context.params
        for role in "data", "reference", "classes":
            assert str(given.get(role, data)) in ("None", data, f"./{data}"), line
        assert given.get("force", True), line
    shell = subprocess.run(["sh", "-c", b"wiseft() { printf '%s\\n' \"$2\"; }\n" + text.splitlines()[2]],
                           capture_output=True, check=True).stdout
    assert os.path.samefile(shell.removesuffix(b"\n"), data)
    wiseft("run", *ROAD, "--", data)
