"""The page *A first CLIP*, and the published sets that it downloads.

No published CLIP is at hand here, and no network: the embedded CLIP stands in for it, and small pictures in files of
the same names and formats, served by a server of our own, for the downloads.
"""
import hashlib
import io
import json
import os
import pickle
import tarfile
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from conftest import ROOT

from wiseft.base.lazy import open_clip
from wiseft.base.text import BadFile
from wiseft.data import layouts
from wiseft.data.control import control_set
from wiseft.data.suites import load_suite
from wiseft.stats.table_io import read_results

NOTEBOOK = ROOT / "nbs/reproductions/first_clip/first_clip.ipynb"
EXTRA = "speckle_noise spatter gaussian_blur saturate".split()  # in the archive, and not part of the set
SIZES = {("reference", "train"): 200, ("reference", "test"): 10, ("cifar-10.1", "test"): 20, ("cifar-10.2", "test"): 30,
         ("cifar-10-c", "test"): 15 * 5 * 10}


def pictures(n, seed=0):
    "Pictures of a color per class, with noise."
    labels = np.arange(n) % 10
    noise = np.random.default_rng(seed).integers(0, 60, (n, 32, 32, 3))
    return (noise + labels[:, None, None, None] * [10, 15, 5]).astype(np.uint8), labels


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def batch(pixels, labels):
    "A batch of CIFAR-10, as Python 2 pickled it."
    rows = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    return pickle.dumps({b"data": rows, b"labels": labels.tolist(), b"batch_label": b"a batch"}, 2)


def write_downloads(folder):
    "The files that the authors publish, small."
    test = pictures(10, seed=6)
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as tar:
        for i in range(1, 6):
            add(tar, f"cifar-10-batches-py/data_batch_{i}", batch(*pictures(40, seed=i)))
        add(tar, "cifar-10-batches-py/test_batch", batch(*test))
    for key, array in zip(("data", "labels"), pictures(20, seed=7)):
        (folder / f"cifar10.1_v6_{key}.npy").write_bytes(npy(array.astype(array.dtype if key == "data" else np.int32)))
    images, labels = pictures(30, seed=8)
    np.savez(folder / "cifar102_test.npz", images=images, labels=labels, ti_indices=np.arange(30),
             keywords=np.array(["a word"] * 30), label_names=np.array(layouts.CIFAR10_CLASSES))
    with tarfile.open(folder / "CIFAR-10-C.tar", "w") as tar:
        add(tar, "CIFAR-10-C/labels.npy", npy(np.tile(test[1], 5).astype(np.uint8)))
        for c in [*layouts.PUBLISHED_CORRUPTIONS, *EXTRA]:
            severities = [test[0] // severity for severity in range(1, 6)]
            add(tar, f"CIFAR-10-C/{c}.npy", npy(np.concatenate(severities)))


@pytest.fixture
def served(tmp_path, monkeypatch):
    "Downloads lead to a server on this machine; returns the folder that it serves, and the paths that were asked for."
    folder, requests = tmp_path / "served", []
    folder.mkdir()
    write_downloads(folder)

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            requests.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    Thread(target=server.serve_forever, daemon=True).start()
    names = layouts.DOWNLOADS.address.str.rpartition("/")[2]
    kept = names.map(lambda n: (folder / n).exists())
    digests = {n: hashlib.md5((folder / n).read_bytes()).hexdigest() for n in names[kept]}
    here = layouts.DOWNLOADS[kept].assign(address=f"http://127.0.0.1:{server.server_port}/" + names[kept],
                                          checksum="md5:" + names[kept].map(digests))
    monkeypatch.setattr(layouts, "DOWNLOADS", here)
    sizes = [SIZES.get((r.set, r.split), r.images) for r in layouts.PUBLISHED_SETS.itertuples()]
    monkeypatch.setattr(layouts, "PUBLISHED_SETS", layouts.PUBLISHED_SETS.assign(images=sizes))
    yield folder, requests
    server.shutdown()
    server.server_close()


def test_the_suites_by_name(served, tmp_path):
    data = tmp_path / "data"
    for name in "cifar10", "cifar10-c":
        layouts.download_suite(name, data)
    assert sorted(p.name for p in data.iterdir()) == ["CIFAR-10-C", "CIFAR-10.1", "CIFAR-10.2", "cifar-10-batches-py"]
    n = len(served[1])
    for name in "cifar10", "cifar10.1", "cifar10.2", "cifar10-c":
        layouts.download_suite(name, data)
    assert len(served[1]) == n  # nothing is downloaded twice
    suite = load_suite("cifar10", root=data)
    assert [len(s) for s in suite.datasets().values()] == [10, 20, 30]
    corrupted = load_suite("cifar10-c", root=data).shifts["cifar-10-c"]
    assert len(corrupted) == 15 * 5 * 10 and set(corrupted.units) == set(suite.test.units)
    for i in 0, 9, 49, 50, len(corrupted) - 1:
        original, severity = suite.test.open(i % 10), i % 50 // 10 + 1
        assert (np.asarray(corrupted.open(i)) == np.asarray(original) // severity).all()
        assert corrupted.labels[i] == suite.test.labels[i % 10]


def test_a_control_set_by_name(served, tmp_path, monkeypatch):
    monkeypatch.setenv("WISEFT_DATA", str(tmp_path))
    for name, n in {"cifar10.1": 20, "cifar10.2": 30, "cifar10": 10}.items():
        layouts.download_suite(name, tmp_path)
        images = control_set(name)
        assert (images.name, images.role, len(images), images.templates) == (name, "control", n, "cifar")


def test_a_wrong_checksum(served, tmp_path):
    folder, _ = served
    with (folder / "CIFAR-10-C.tar").open("ab") as f:
        f.write(b"more")
    (folder / "cifar102_test.npz").unlink()
    with pytest.raises(BadFile, match="CIFAR-10-C.tar differs from what its authors published"):
        layouts.download_suite("cifar10-c", tmp_path / "data")
    with pytest.raises(ConnectionError, match="cifar102_test.npz could not be downloaded .*Run it again"):
        layouts.download_suite("cifar10.2", tmp_path / "data")
    assert not [p for p in (tmp_path / "data").rglob("*") if p.is_file()]


def test_a_checksum_of_git(tmp_path):
    (tmp_path / "a").write_bytes(b"hello\n")
    assert layouts.git_hash(tmp_path / "a") == "ce013625030ba8dba906f756967f9e9ca394464a"  # `git hash-object a`


def code_cells():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run_cells(namespace, after):
    "Run the page's code, without what is Colab's own; `after` replaces settings."
    for source in code_cells():
        if not any(words in source for words in ("google.colab", "drive.mount", "!pip")):
            exec(compile(source, NOTEBOOK.name, "exec"), namespace)
            namespace.update(after)


def test_its_clips_are_published():
    namespace = dict(Path=Path)
    exec(next(source for source in code_cells() if "CLIPS =" in source), namespace)
    assert len(namespace["CLIPS"]) == 4 and set(namespace["CLIPS"]) <= set(open_clip.list_pretrained())


@pytest.mark.slow
def test_the_page_runs_and_goes_on(served, tmp_path):
    out = tmp_path / "out"
    here = dict(CLIPS=[("iconclip", None)], DATA=tmp_path / "data", OUT=out)
    namespace = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few images
        run_cells(namespace, here)
        page = (out / "first_clip.md").read_text(encoding="utf-8")
        folder = out / "iconclip-None"
        table = read_results(folder / "results.csv")
        assert {"reference", "cifar-10.1", "cifar-10.2", "cifar-10-c"} < set(table.dataset)
        assert set(table.alpha.dropna()) == set(namespace["ALPHAS"])
        for what in "iconclip-None-cifar10", "cifar-10-c (750)", "versions", "zero-shot", "fine-tuned":
            assert what in page
        assert "CIFAR-10" in (folder / "report.html").read_text(encoding="utf-8")

        # a run that was stopped while it evaluated goes on from the fine-tuned classifier
        (folder / "report.html").unlink()
        before = (folder / "finetuned/wiseft.json").stat().st_mtime_ns
        run_cells({}, here)
        assert (folder / "report.html").exists() and (folder / "finetuned/wiseft.json").stat().st_mtime_ns == before
        assert (out / "first_clip.md").read_text(encoding="utf-8") == page
        done = (folder / "report.html").stat().st_mtime_ns
        run_cells({}, here)
        assert (folder / "report.html").stat().st_mtime_ns == done  # and what is done is left alone


def test_a_stopped_download_goes_on(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "blur.tar", "w") as tar:
        for name in "defocus_blur/1.jpg", "glass_blur/1.jpg":
            tar.addfile(tarfile.TarInfo(name))
    checksum = "md5:" + hashlib.md5((tmp_path / "blur.tar").read_bytes()).hexdigest()
    place, replace, n = tmp_path / "data/defocus_blur", os.replace, []

    def stopped(*paths):
        n.append(paths)
        if len(n) == 2:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        layouts._download((tmp_path / "blur.tar").as_uri(), place, checksum)
    layouts._download((tmp_path / "blur.tar").as_uri(), place, checksum)
    assert sorted(p.name for p in place.parent.iterdir()) == ["defocus_blur", "glass_blur"]
