"Caches and folders as other users, other systems and other programs leave them."
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import numpy as np
import pytest
from conftest import ROOT, run
from crash import ended, started, table
from PIL import Image
from typer.testing import CliRunner

import wiseft
from wiseft.base.files import atomic_path
from wiseft.data.disk_cache import cache_table, clear_cache
from wiseft.data.pixels import Pixels, ShortSide, decode_once
from wiseft.data.labels import image_folder
from wiseft.models.testing import pico_classifier
from wiseft.shell.cli import app
from wiseft.stats.table import results_table
from wiseft.stats.table_io import append_results, read_results, write_results

pytestmark = pytest.mark.skipif(os.name == "nt", reason="users and modes of POSIX")
NOBODY = 65534


def as_nobody(task, *args):
    "Run a task as a user without rights: in a process of its own, which root gives to nobody."
    def other():
        if not os.geteuid():
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        task(*args)
    assert ended(started(other)) == 0


@pytest.fixture
def pictures(tmp_path):
    for c in "ab":
        (tmp_path / "pictures" / c).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (40, 40), (40 * i, 0, ord(c))).save(tmp_path / "pictures" / c / f"{i}.png")
    for folder in (tmp_path, *tmp_path.parents):  # pytest closes its own to other users
        if folder == tmp_path or folder.name.startswith(("pytest-", "popen-")):
            folder.chmod(0o755)
    return tmp_path / "pictures"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "A cache of this test alone."
    monkeypatch.setenv("WISEFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def decoded(pictures):
    "The pixels of all images, by the cache if that can be; and the set's fingerprint."
    images = image_folder(pictures)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a cache that can't be written
        kept = decode_once(Pixels(images, ShortSide(32)), progress=False)
    return [np.asarray(kept[i]).tolist() for i in range(len(images))], images.fingerprint


def same(pictures, expected):
    assert decoded(pictures) == expected


@pytest.mark.parametrize("mode", [0o755, 0o700, 0o777], ids=oct)
def test_two_users_of_one_cache(mode, pictures, cache):
    "The second one reads what the first one has, or does without; neither spoils anything."
    expected = decoded(pictures)
    cache.chmod(mode)
    as_nobody(same, pictures, expected)
    assert decoded(pictures) == expected and len(cache_table()) == 1
    clear_cache()
    assert decoded(pictures) == expected


def test_a_cache_that_nobody_may_write(pictures, cache):
    expected = decoded(pictures)
    clear_cache()
    cache.chmod(0o555)
    as_nobody(same, pictures, expected)
    assert not len(cache_table())


def test_a_linked_cache(pictures, cache, tmp_path, monkeypatch):
    "The cache may be a link; what links within it point to is never removed."
    (tmp_path / "link").symlink_to(cache)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    monkeypatch.setenv("WISEFT_CACHE", str(tmp_path / "link"))
    expected = decoded(pictures)
    (cache / "pixels/linked").symlink_to(tmp_path / "mine")
    assert decoded(pictures) == expected and len(cache_table()) == 2
    clear_cache()
    assert not len(cache_table()) and (tmp_path / "mine/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002], ids=oct)
def test_modes_are_the_users(mask, tmp_path):
    "What is written has the mode that umask says, not that of a temporary file."
    before = os.umask(mask)
    try:
        write_results(table(0.5), tmp_path / "t.csv")
        with atomic_path(tmp_path / "folder", kind="pair") as tmp:
            tmp.mkdir()
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("t.csv", "folder")]
    assert modes == [0o666 & ~mask, 0o777 & ~mask]


def test_a_replaced_file_keeps_its_mode(tmp_path):
    "Rows are added to a private table."
    append_results(table(0.25), tmp_path / "t.csv")
    (tmp_path / "t.csv").chmod(0o600)
    append_results(table(0.75), tmp_path / "t.csv")
    assert stat.S_IMODE((tmp_path / "t.csv").stat().st_mode) == 0o600


def refused(folder):
    with pytest.raises(PermissionError):
        write_results(table(0.75), folder / "t.csv", force=True)


def test_a_folder_that_is_only_read(tmp_path):
    "Writing there is refused, and what is there stays."
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    (tmp_path / "shut").mkdir()
    write_results(table(0.25), tmp_path / "shut/t.csv")
    (tmp_path / "shut").chmod(0o555)
    as_nobody(refused, tmp_path / "shut")
    assert set(read_results(tmp_path / "shut/t.csv").value) == {0.25}
    assert [p.name for p in (tmp_path / "shut").iterdir()] == ["t.csv"]


WRITING = """
zeroshot cat,dog --model local-dir:tiny -o shut/new
probe resnet18 photos -o shut/new
finetune zeroshot photos -o shut/deep/new
finetune zeroshot photos --checkpoints shut/new -o open/finetuned
merge zeroshot finetuned -o shut/new
merge weights.safetensors weights.safetensors -o shut/new.safetensors
evaluate zeroshot --suite photos -o shut/new.csv
sweep zeroshot finetuned --reference photos -o shut/new.csv
ensemble zeroshot finetuned --suite photos -o shut/new.csv
predict zeroshot no-picture.jpg -o shut/new.csv
ask zeroshot finetuned no-picture.jpg -o shut/new
plot table.csv -o shut/new
report table.csv -o shut/new.html
card shut/zeroshot --results table.csv
export zeroshot --to pt2 -o shut/new.pt2
bench zeroshot --reference photos --shift photos --methods LiNeS --epochs 1 -o shut/new
run photos --model local-dir:tiny -o shut/new
demo -o shut/new
data cifar10.1 --download --data-root shut
""".strip().splitlines()


def written(lines, log):
    "The end of what each command line prints."
    for line in lines:
        done = CliRunner().invoke(app, line.split())
        end = " ".join(done.output.splitlines()[-2 if "not foreseen" in done.output else -1:])
        with open(log, "a") as file:
            file.write(f"{done.exit_code} {line}: {end}\n")


def test_every_command_says_that_a_folder_is_only_read(tmp_path, monkeypatch):
    "And does so before it reads a picture; `report` beside its table, too."
    monkeypatch.chdir(tmp_path)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for variable in "WISEFT_CACHE", "MPLCONFIGDIR", "HOME":
        monkeypatch.setenv(variable, str(tmp_path / "open/cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "open"))
    for name in "cat", "dog":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(20):
            noise = np.random.default_rng([k, len(name), ord(name[0])]).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(noise).save(tmp_path / f"photos/{name}/{k}.png")
    zeroshot, finetuned = pico_classifier(["cat", "dog"]), pico_classifier(["cat", "dog"], 1)
    zeroshot.alpha, finetuned.alpha = 0., 1.
    for folder, classifier in dict(zeroshot=zeroshot, finetuned=finetuned, tiny=zeroshot).items():
        classifier.save(tmp_path / folder)
    shutil.copytree("zeroshot", "shut/zeroshot")
    shutil.copy("tiny/open_clip_model.safetensors", "weights.safetensors")
    rows = [dict(classifier="tiny", method=m, alpha=a, dataset="reference", role="reference", value=.5, n=40)
            for m, a in (("zero-shot", 0), ("weight-space", .5), ("fine-tuned", 1))]
    for file in "table.csv", "shut/table.csv":
        write_results(results_table(rows), file)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    for folder in "shut/zeroshot", "shut":
        (tmp_path / folder).chmod(0o555)
    before = sorted((tmp_path / "shut").rglob("*"))
    for module in walk_packages(wiseft.__path__, "wiseft."):
        import_module(module.name)  # nobody may not read the libraries, if these are in root's home
    written(["report table.csv -o open/page.html"], os.devnull)
    as_nobody(written, [*WRITING, "report shut/table.csv"], tmp_path / "open/log.txt")
    refused = (tmp_path / "open/log.txt").read_text().splitlines()
    assert len(refused) == len(WRITING) + 1
    sentence = r"1 .*: error: You may not write into the folder shut(/zeroshot)?\. (Choose|Name) another .*\.$"
    assert [line for line in refused if not re.match(sentence, line)] == []
    assert sorted((tmp_path / "shut").rglob("*")) == before


@pytest.mark.slow
def test_no_program_is_run_that_nobody_named(tmp_path):
    "Python files in the folder that one works in are read only where `--use` names them."
    for name in ("mine", "methods", "wiseft", "torch", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"open('run', 'a').write('{name} ')")
    run(Path(sys.executable).with_name("wiseft"), "methods", "--use", "mine.py", cwd=tmp_path)
    assert (tmp_path / "run").read_text() == "mine "


FULL = """
import sys, torch
from pathlib import Path
from wiseft.weights.checkpoints import read_state_dict, write_state_dict
full = Path(sys.argv[1])
write_state_dict({"w": torch.zeros(10_000)}, full/"model.safetensors")
for size in (100_000, 1_000_000):
    try: write_state_dict({"w": torch.ones(size)}, full/"model.safetensors", force=True)
    except OSError as e: print(type(e).__name__, e.errno)
print([p.name for p in full.iterdir()], read_state_dict(full/"model.safetensors")["w"].unique().tolist())
"""


def test_a_full_disk(tmp_path):
    "On a disk of a quarter of a megabyte: what is there stays, and nothing half-written is left."
    (tmp_path / "full").mkdir()
    mount = f"mount -t tmpfs -o size=256k none {tmp_path}/full && exec {sys.executable} -W ignore -c '{FULL}' $0"
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        can = subprocess.run([*unshare, f"mount -t tmpfs none {tmp_path}/full"], capture_output=True).returncode == 0
    except FileNotFoundError:
        can = False
    if not can:
        pytest.skip("no file systems can be mounted here")
    here = ROOT / "tests"
    done = subprocess.run([*unshare, mount, tmp_path / "full"], capture_output=True, text=True, cwd=here)
    assert done.stdout.splitlines() == ["OSError 28", "OSError 28", "['model.safetensors'] [0.0]"], done.stderr


NO_MEMORY = """
import pickle, resource, sys, warnings
from pathlib import Path
import numpy as np, torch
from PIL import Image
from wiseft.data.arrays import read_array, read_pickle_as_data
from wiseft.data.decoding import open_image
from wiseft.data.labels import image_folder
from wiseft.infer.evaluation import evaluate
from wiseft.models.load import load_classifier
from wiseft.models.testing import pico_classifier
from wiseft.weights.checkpoints import read_state_dict, write_state_dict
from wiseft.weights.files import merge_files
from wiseft.weights.merge import interpolate
warnings.simplefilter("ignore")
here = Path(sys.argv[1])
state = {"w": torch.zeros(2**24)}  # 64 MB
write_state_dict(state, here/"a.safetensors")
torch.save(state, here/"a.pt")
np.save(here/"a.npy", np.zeros(2**24, np.uint8))
(here/"held.pkl").write_bytes(pickle.dumps({"w": np.zeros(2**24, np.uint8)}))
classifier = pico_classifier(["a", "b"])
classifier.save(here/"classifier")
for c in "ab":
    (here/"set"/c).mkdir(parents=True)
    for ending in ("png", "jpg", "tif"): Image.new("RGB", (2000, 2000)).save(here/"set"/c/f"a.{ending}")
ends = [here/"a.safetensors"]*2
tasks = [lambda: read_state_dict(here/"a.safetensors"), lambda: read_state_dict(here/"a.pt"),
         lambda: merge_files(ends, [.5, .5], here/"merged.safetensors"), lambda: interpolate(state, state, .5),
         lambda: read_array(here/"a.npy"), lambda: read_pickle_as_data(here/"held.pkl"),
         lambda: load_classifier(here/"classifier"), lambda: evaluate(classifier, image_folder(here/"set"))]
tasks += [lambda f=f: open_image(f) for f in sorted((here/"set/a").iterdir())]
before = sorted(here.rglob("*"))
for task in tasks:
    used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (2**10*used + 2**20, resource.RLIM_INFINITY))
    try: task()
    except (MemoryError, RuntimeError) as e: said = f"{type(e).__name__}: {e}"
    else: said = "done"
    finally: resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,)*2)
    print(said)
assert sorted(here.rglob("*")) == before, "something was left"
for task in tasks: task()  # nothing is wrong with the files
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no number of what a process has mapped")
def test_too_little_memory(tmp_path):
    "While weights are read, merged and averaged and pictures decoded: no file is blamed, and nothing half-written"
    lines = run(sys.executable, "-W", "ignore", "-c", NO_MEMORY, tmp_path).stdout.splitlines()
    assert len(lines) == 11
    assert all(line.startswith("MemoryError") or "can't allocate memory" in line for line in lines), lines
