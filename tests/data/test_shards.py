"Sets in shards: from a hub of the tests' own over loopback, and against the same images as files."
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tarfile
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from threading import Thread
from types import SimpleNamespace

import huggingface_hub.constants
import numpy as np
import pandas as pd
import pytest
from conftest import later, run
from PIL import Image, ImageOps
from typer.testing import CliRunner

from wiseft.data import labels, layouts, shards
from wiseft.data.control import control_set
from wiseft.data.suites import folder_suite, load_suite
from wiseft.infer.evaluation import evaluate
from wiseft.stats.table_io import write_results
from wiseft.data.decoding import UnreadableImage
from wiseft.data.labels import image_folder
from wiseft.data.layouts import OBJECTNET_CLASSES, download_suite, imagenet_subset, inventory
from wiseft.models.testing import pico_classifier
from wiseft.base.text import BadFile
from wiseft.data.labels import imagenet_classes

HubFiles, fetch, hub_files, sets_on_hub = later("wiseft.data.hub", "HubFiles", "fetch", "hub_files", "sets_on_hub")
captioned_images = later("wiseft.train.loaders", "captioned_images")

NAMES, WNIDS = list(imagenet_classes().values()), list(imagenet_classes())
COMMIT = "614c3a5" + "0" * 33


def picture(seed, ending="jpg", border=False):
    "An image file of noise, as bytes"
    im = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 48, 3), np.uint8))
    if border:
        im = ImageOps.expand(im, 2, "red")
    file = io.BytesIO()
    im.save(file, "JPEG" if ending == "jpg" else ending)
    return file.getvalue()


def pack(path, members):
    "A tar of (name, bytes)"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def sample(i, data, label, ending):
    "Files of a sample: its image and its label"
    return [(f"s{i:07}.{ending}", data), (f"s{i:07}.cls", str(label).encode())]


def web_dataset(folder, images, names, part="test", per_shard=3):
    "(bytes, label, ending) as CLIP_benchmark's writer lays them out"
    files = [sample(i, *image) for i, image in enumerate(images)]
    shards = [files[i : i + per_shard] for i in range(0, len(files), per_shard)]
    for k, shard in enumerate(shards):
        pack(folder / part / f"{k}.tar", chain.from_iterable(shard))
    (folder / part / "nshards.txt").write_text(str(len(shards)))
    (folder / "classnames.txt").write_text("\n".join(names) + "\n")
    return folder


# ---------- a hub ----------


class Hub(BaseHTTPRequestHandler):
    "What huggingface_hub asks a hub: a repository's list of files, a file's head, a file or the rest of it"

    protocol_version = "HTTP/1.1"

    def log_message(self, *_): pass

    def do_HEAD(self): self.answer(body=False)

    def do_GET(self): self.answer()

    def answer(self, body=True):
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))
        if self.path.startswith("/api/datasets/"):
            return self.listing(self.path.split("?")[0].removeprefix("/api/datasets/"))
        repository, _, name = self.path.removeprefix("/datasets/").partition(f"/resolve/{COMMIT}/")
        if not name:
            return self.send(b"", status=404)
        data = (self.server.root / repository / name).read_bytes()
        self.send(self.server.spoil(name, data) if body else data, body, hashlib.sha256(data).hexdigest())

    def listing(self, repository):
        folder = self.server.root / repository
        if not folder.is_dir():
            return self.send(b"", status=404)
        files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
        siblings = [self.sibling(p.relative_to(folder).as_posix(), p.read_bytes()) for p in files] + self.server.more
        self.send(json.dumps(dict(id=repository, sha=COMMIT, siblings=siblings)).encode())

    def sibling(self, name, data):
        sha256 = hashlib.sha256(data).hexdigest()
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        lfs = dict(sha256=sha256, size=len(data), pointerSize=130) if name.endswith(".tar") else None
        return dict(rfilename=name, size=len(data), blobId=blob, lfs=lfs)

    def send(self, data, body=True, etag="none", status=200):
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else status)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        headers = {"Content-Length": len(data) - start, "ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
        for header in {**headers, "Accept-Ranges": "bytes"}.items():
            self.send_header(*map(str, header))
        self.end_headers()
        if body and self.server.breaks and not start and len(data) > 2000:  # a connection that ends halfway, once
            self.server.breaks -= 1
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif body:
            self.wfile.write(data[start:])


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "A server with the hub's layout, and huggingface_hub pointed at it"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.root, server.requests, server.breaks, server.more = tmp_path / "hub", [], 0, []
    server.spoil = lambda name, data: data
    server.url = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("WISEFT_DATA", str(tmp_path))
    thread = Thread(target=partial(server.serve_forever, poll_interval=.01))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def imagenet_a(server, n=4):
    "A miniature ImageNet-A on the hub"
    images = [(picture(i), i % 2, "jpg") for i in range(n)]
    return web_dataset(server.root / "clip-benchmark/wds_imagenet-a", images,
                       [NAMES[k] for k in imagenet_subset("imagenet-a")])


def got(server): return [path for command, path, _ in server.requests if command == "GET" and "/resolve/" in path]


@pytest.mark.slow
def test_download_from_the_shell(hub, tmp_path):
    imagenet_a(hub)
    env = os.environ | dict(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path / "home"), COLUMNS="200")
    command = [sys.executable, "-m", "wiseft", "data", "imagenet-a", "--data-root", tmp_path / "data", "--download"]
    done = run(*command, ok=False, env=env, input="n\n")
    assert "MIT" in done.stdout and "natural-adv-examples" in done.stdout and "under these licenses?" in done.stdout
    assert not got(hub) and not (tmp_path / "data").exists()
    done = run(*command, "--yes", env=env)
    assert re.search(r"7500 +│ +4 +│ +7,496 missing", done.stdout), done.stdout
    held = tmp_path / "data/wds_imagenet-a"
    names = [p.relative_to(held).as_posix() for p in sorted(held.rglob("*.t*")) if ".cache" not in p.parts]
    assert names == ["classnames.txt", "test/0.tar", "test/1.tar", "test/nshards.txt"]


def test_what_came_is_not_fetched_again(hub, tmp_path):
    imagenet_a(hub)
    [dataset] = sets_on_hub("imagenet-a")
    assert (dataset.commit, dataset.note, dataset.size) == (COMMIT, "", sum(f.size for f in dataset.files))
    fetch(dataset)
    (dataset.folder / "test/1.tar").unlink()
    hub.requests.clear()
    fetch(dataset)
    assert [path.rpartition("/")[2] for path in got(hub)] == ["1.tar"]


def test_a_broken_connection_is_taken_up(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # else 10 MB
    imagenet_a(hub)
    hub.breaks = 1
    fetch(sets_on_hub("imagenet-a")[0])
    halfway = [r for command, path, r in hub.requests if command == "GET" and r]
    assert len(halfway) == 1 and halfway[0] != "bytes=0-"
    assert len(image_folder(tmp_path / "wds_imagenet-a/test")) == 4


def test_a_damaged_file_is_removed_and_named(hub, tmp_path):
    imagenet_a(hub)
    hub.spoil = lambda name, data: data[::-1] if name == "test/1.tar" else data
    [dataset] = sets_on_hub("imagenet-a")
    with pytest.raises(BadFile, match="test/1.tar differs from what the hub states"):
        fetch(dataset)
    assert not (dataset.folder / "test/1.tar").exists() and (dataset.folder / "test/0.tar").exists()
    hub.spoil = lambda name, data: data
    fetch(dataset)
    (dataset.folder / "test/1.tar").write_bytes(b"of an older version")
    hub.spoil = lambda name, data: data[::-1]
    with pytest.raises(BadFile, match="was discarded"):
        fetch(dataset)
    assert (dataset.folder / "test/1.tar").read_bytes() == b"of an older version"  # until another one is whole
    with pytest.raises(ConnectionError, match="me/nothing can not be looked up"):
        hub_files("me/nothing", tmp_path)


OUTSIDE = [
    "{}", "../notes.txt", "test/../../notes.txt", "x\n/../../notes.txt", "test/./../../notes.txt", "link/notes.txt",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_hub_names_a_file_elsewhere(hub, tmp_path, monkeypatch, name):
    "Whatever a listing says, nothing outside of the set's folder is touched"
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("WISEFT_DATA", str(tmp_path / "data"))
    notes, name = tmp_path / "notes.txt", name.format(tmp_path / "notes.txt")
    notes.write_text("mine")
    imagenet_a(hub)
    hub.more = [dict(rfilename=name, size=4, blobId="0" * 40, lfs=None)]
    [dataset] = sets_on_hub("imagenet-a")
    if name.startswith("link"):  # a name that is as it should be, and a folder that leads elsewhere
        dataset.folder.mkdir()
        (dataset.folder / "link").symlink_to(tmp_path)
        with pytest.raises(BadFile, match="link/notes.txt', which is not within"):
            fetch(dataset)
    else:
        fetch(dataset)
        assert len(image_folder(dataset.folder / "test")) == 4
    assert notes.read_text() == "mine"
    by_hand = HubFiles("me/mine", COMMIT, [SimpleNamespace(rfilename=name)], "", "", tmp_path / "data/other")
    with pytest.raises(BadFile if not name.startswith("link") else ConnectionError):
        fetch(by_hand)
    assert notes.read_text() == "mine"


def test_a_set_of_ones_own_on_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("WISEFT_DATA", str(tmp_path / "data"))
    web_dataset(hub.root / "me/photos", [(picture(i), i % 2, "jpg") for i in range(12)], ["cat", "dog"], "train")
    with pytest.raises(FileNotFoundError, match="wiseft data hf:me/photos/train --download"):
        image_folder("hf:me/photos/train")
    [dataset] = sets_on_hub("hf:me/photos/train")
    assert dataset.license == "not stated"
    fetch(dataset)
    assert image_folder("hf:me/photos/train").classnames == ["cat", "dog"]
    assert len(folder_suite("hf:me/photos", []).train) == 12 - 4


def test_a_control_set_on_the_hub(hub, tmp_path, monkeypatch):
    "Named in a table, with its authors' license; a folder of that name is meant where there is one"
    monkeypatch.setenv("WISEFT_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    copy = hub.root / "clip-benchmark/wds_vtab-eurosat"
    for split in ("train", "test"):
        images = [(picture(i), i % 2, "jpg") for i in (range(12) if split == "train" else range(12, 18))]
        web_dataset(copy, images, ["forest", "river"], split)
    (copy / "zeroshot_classification_templates.txt").write_text("a satellite photo of {c}\n")
    with pytest.raises(FileNotFoundError, match="wiseft data hf:clip-benchmark/wds_vtab-eurosat --download"):
        control_set("eurosat")
    [dataset] = sets_on_hub("eurosat")
    assert dataset.license == "MIT"
    fetch(dataset)
    images = control_set("eurosat")
    assert (images.name, images.role, len(images)) == ("eurosat", "control", 6)
    assert (images.classnames, images.templates) == (["forest", "river"], ["a satellite photo of {}"])
    with pytest.raises(FileNotFoundError, match="no set of that name. Did you mean 'eurosat'"):
        control_set("eurosta")
    from wiseft.shell.cli import app

    monkeypatch.delenv("WISEFT_DATA")
    for root, code, says in (("data", 0, "river"), ("elsewhere", 1, "elsewhere/hf/clip-benchmark")):
        result = CliRunner().invoke(app, ["data", "eurosat", "--data-root", root])
        assert result.exit_code == code and says in result.output, result.output
    assert "WISEFT_DATA" not in os.environ
    for name in ("mine", "other"):
        (tmp_path / "eurosat" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "eurosat" / name / "0.png")
    assert control_set("eurosat").classnames == ["mine", "other"]


def test_cars(hub, tmp_path):
    assert inventory(tmp_path, "transfer:cars").found.eq(0).all()
    images, names = [(picture(i), i % 2, "jpg") for i in range(12)], ["Audi S4 2012", "Fiat 500"]
    copy = web_dataset(hub.root / "clip-benchmark/wds_cars", images, names)
    fetch(sets_on_hub("transfer:cars")[0])
    with pytest.raises(FileNotFoundError, match="wds_cars/train: no such folder"):
        load_suite("transfer:cars", root=tmp_path, allow_incomplete=True)
    web_dataset(copy, 7*images, names, "train")
    fetch(sets_on_hub("transfer:cars")[0])
    cars = load_suite("transfer:cars", root=tmp_path, allow_incomplete=True)
    assert (len(cars.train), len(cars.validation)) == (84 - 4, 4)  # 5 % of each class
    assert (len(cars.test), cars.classnames) == (12, names)


# ---------- as files and as shards ----------


def as_files(root, place, images):
    for i, (folder, data, ending) in enumerate(images):
        path = root / place / folder / f"{i:03}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def objectnet(files, shards):
    "Three chairs and two bananas with their red border, in both forms"
    names = dict(banana="Banana", chair="Chair")
    images = [(c, picture(100 + i, "png", border=True), "png") for i, c in enumerate(["banana"] * 2 + ["chair"] * 3)]
    as_files(files, "objectnet-1.0/images", images)
    maps = files / "objectnet-1.0/mappings"
    maps.mkdir()
    (maps / "folder_to_objectnet_label.json").write_text(json.dumps(names))
    web_dataset(shards / "wds_objectnet", [(d, list(names).index(c), e) for c, d, e in images], [*names])


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    "Two data roots with the same miniature ImageNet and its shifted sets: files, and the hub's shards"
    files, shards = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("shards")
    a, r = imagenet_subset("imagenet-a"), imagenet_subset("imagenet-r")
    some = sorted({0, a[0], a[3], r[0], r[5], 423, 559, 765, 954})
    sets = dict(wds_imagenet1k=("imagenet/val", some, None), wds_imagenet_sketch=("sketch", some, None),
                wds_imagenetv2=("imagenetv2-matched-frequency-format-val", some, None),
                **{"wds_imagenet-a": ("imagenet-a", [a[0], a[3]], a),
                   "wds_imagenet-r": ("imagenet-r", [r[0], r[5]], r)})
    for seed, (copy, (place, classes, subset)) in enumerate(sets.items()):
        folder = (lambda k: str(k)) if "v2" in copy else WNIDS.__getitem__
        order = sorted(classes, key=str) if "v2" in copy else classes  # folders are read in the order of text
        images = [(k, picture((seed, k, i)), "jpg") for k in order for i in range(2)]
        as_files(files, place, [(folder(k), *rest) for k, *rest in images])
        own = subset or range(1000)
        web_dataset(shards / copy, [(d, list(own).index(k), e) for k, d, e in images], [NAMES[k] for k in own])
    objectnet(files, shards)
    return files, shards


def test_the_same_table(family, tmp_path):
    classifier, written = pico_classifier(NAMES), []
    for root in family:
        suite = load_suite("imagenet", root=root, allow_incomplete=True, training=False)
        table = evaluate(classifier, suite, progress=False).assign(data_fingerprint="")
        written.append(write_results(table, tmp_path / f"{root.name}.csv").read_bytes())
    assert written[0] == written[1] and len(table) > 9


def test_the_red_border_is_cut(family):
    whole, packed = (load_suite("imagenet", root=r, allow_incomplete=True, training=False) for r in family)
    a, b = whole.shifts["objectnet"], packed.shifts["objectnet"]
    assert (b.classnames, b.projection, b.border) == (a.classnames, a.projection, 2)
    assert b.open(4).size == (48, 40)
    assert np.array_equal(np.asarray(a.open(4)), np.asarray(b.open(4)))


def test_names_in_another_order_are_refused(family, tmp_path):
    "Some may be in other words: nine of ten are enough."
    shutil.copytree(family[1], tmp_path, dirs_exist_ok=True)
    options = dict(root=tmp_path, allow_incomplete=True, training=False)
    for names in sorted(NAMES), [*NAMES[:899], *["?"] * 101]:
        (tmp_path / "wds_imagenet1k/classnames.txt").write_text("\n".join(names))
        with pytest.raises(BadFile, match="of 1000 names in its classnames.txt"):
            load_suite("imagenet", **options)
    (tmp_path / "wds_imagenet1k/classnames.txt").write_text("\n".join([*NAMES[:900], *["?"] * 100]))
    assert load_suite("imagenet", **options).classnames == NAMES


def test_every_class_of_objectnet_is_known():
    numbers = [k for some in OBJECTNET_CLASSES.values() for k in some]
    assert len(OBJECTNET_CLASSES) == 113 and len(set(numbers)) == len(numbers) and max(numbers) < 1000
    assert {NAMES[k] for k in OBJECTNET_CLASSES["chair"]} == {"barber chair", "folding chair", "rocking chair"}


def test_ones_own_shards_and_folders(tmp_path):
    "A suite of folders, its tars, and one by name"
    for name, filled in (("reference", 0), ("sketch", 1)):
        images = [(c, picture((filled, i), "png"), "png") for i, c in enumerate(["cat"] * 20 + ["dog"] * 20)]
        as_files(tmp_path, name, images)
        members = [(f"{name}/{c}/{i:03}.png", data) for i, (c, data, _) in enumerate(images)]
        pack(tmp_path / f"packed/{name}.tar", members)
    folders = folder_suite(tmp_path / "reference", [tmp_path / "sketch"])
    tars = folder_suite(tmp_path / "packed/reference.tar", [tmp_path / "packed/sketch.tar"])
    assert tars.name == folders.name and list(tars.shifts) == ["sketch"]
    classifier = pico_classifier(["cat", "dog"])
    tables = [evaluate(classifier, s, progress=False).assign(data_fingerprint="")
              for s in (folders, tars, load_suite(tmp_path / "packed"))]
    assert tables[0].equals(tables[1]) and tables[0].equals(tables[2])
    with pytest.warns(UserWarning, match="again: 36 of 40 test images are training or validation images"):  # by content
        folder_suite(tmp_path / "packed/reference.tar", dict(again=tmp_path / "reference"), classnames=["cat", "dog"])


def test_a_table_of_files_labels_captions_and_groups(tmp_path):
    "As open_clip and FLYP write it: tabs, filepath and title, here with label and group"
    images = [(c, picture(i, "png"), "png") for i, c in enumerate(["cat"] * 20 + ["dog"] * 20)]
    as_files(tmp_path, "photos", images)
    rows = [(f"photos/{c}/{i:03}.png", f"a photo of a {c}", c, f"camera {i % 10}") for i, (c, *_) in enumerate(images)]
    rows[0] = (str(tmp_path / rows[0][0]), *rows[0][1:])  # paths may be absolute
    columns = ["filepath", "title", "label", "group"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "t.csv", sep="\t", index=False)
    suite = folder_suite(tmp_path / "t.csv", [])
    assert suite.classnames == ["cat", "dog"] and len(set(suite.test.groups)) == 1
    table = evaluate(pico_classifier(suite.classnames), suite, metrics=["worst-group accuracy"], progress=False)
    assert table.n.tolist() == [4]
    pairs = captioned_images(tmp_path / "t.csv", tmp_path)
    assert pairs.classnames == ["a photo of a cat", "a photo of a dog"] and pairs.labels.tolist() == [0] * 20 + [1] * 20
    assert np.array_equal(np.asarray(pairs.open(0)), np.asarray(Image.open(io.BytesIO(images[0][1]))))
    pd.DataFrame(rows, columns=["filepath", "title", "kind", "group"]).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(BadFile, match="there is none named label or class"):
        folder_suite(tmp_path / "t.csv", [])


def test_what_is_damaged_is_named(tmp_path):
    images = [(picture(i), i % 2, "jpg") for i in range(150)]
    images[7] = (b"no picture", 1, "jpg")
    web_dataset(tmp_path / "photos", images, ["cat", "dog"], per_shard=50)
    photos = image_folder(tmp_path / "photos/test")
    with pytest.raises(UnreadableImage, match=r"test/0.tar/s0000007.jpg: not an image"):
        photos.open(7)
    table = evaluate(pico_classifier(["cat", "dog"]), photos, progress=False)
    assert list(table.n_skipped) == [1] and list(table.n) == [149]
    shard = tmp_path / "photos/test/2.tar"
    shard.write_bytes(shard.read_bytes()[:-20_000])
    with pytest.raises(BadFile, match="test/2.tar is not a complete tar file"):
        image_folder(tmp_path / "photos/test")
    shard.unlink()
    with pytest.raises(BadFile, match="says '3', and there are 2 shards"):
        image_folder(tmp_path / "photos/test")
    assert [*photos.identities()][149] is None and photos.hashes()[149] is None
    with pytest.raises(UnreadableImage, match="2.tar/s0000149.jpg: no such file"):
        photos.open(149)


def test_another_version_lists_a_tar_again(tmp_path, monkeypatch):
    file = pack(tmp_path / "x.tar", [(f"{c}/{n}", b".") for c in ("cat", "dog") for n in ("1.png", "2.heif")])
    monkeypatch.setattr(labels, "IMAGE_ENDINGS", (".png",))
    assert len(image_folder(file)) == 2
    monkeypatch.undo()
    monkeypatch.setattr(shards, "__version__", "another")
    assert len(image_folder(file)) == 4


def test_a_compressed_tar_is_read_twice(tmp_path):
    "The second time its copy in the cache is there."
    file = pack(tmp_path / "x.tar", [(f"{c}/1.png", picture(0, "png")) for c in ("cat", "dog")])
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(file.read_bytes()))
    for _ in range(2):
        assert image_folder(tmp_path / "x.tar.gz").open(0).size == (48, 40)


def test_long_notes_behind_short_ones(tmp_path):
    "A member of a tar may have several headers, none of them long."
    def noted(data):
        about = tarfile.TarInfo("notes")
        about.type, about.size = tarfile.XHDTYPE, len(data)
        return about.tobuf() + data + bytes(-len(data) % 512)
    (tmp_path / "x.tar").write_bytes(noted(b"6 a=b\n") + noted(b"a" * 2**21) + bytes(1024))
    with pytest.raises(BadFile, match="A header has 2,097,152 bytes"):
        image_folder(tmp_path / "x.tar")


def test_a_published_tar_that_writes_elsewhere(tmp_path, monkeypatch):
    "Even where its checksum is right."
    file = pack(tmp_path / "x.tar", [("../../notes.txt", b"theirs")])
    row = dict(place="cifar-10-batches-py", file="", address=file.as_uri(),
               checksum=f"md5:{hashlib.md5(file.read_bytes()).hexdigest()}")
    monkeypatch.setattr(layouts, "DOWNLOADS", pd.DataFrame([row]))
    with pytest.raises(tarfile.FilterError):
        download_suite("cifar10", tmp_path / "data")
    assert not (tmp_path / "notes.txt").exists()


@pytest.mark.parametrize("name, label, classnames, why", [
    ("bird.png", None, None, "1 images lie in no class folder"),
    ("bird/1.png", None, ["cat", "dog"], "class 'bird' not among the 2"),
    ("cat/1.png", b"7", ["cat", "dog"], "labels 0.7 for 2 classes"),
    ("cat/1.png", b"0", None, "no classnames.txt lies"),
])
def test_a_tar_of_other_images_is_a_bad_file(name, label, classnames, why, tmp_path):
    members = {"cat/0.png": picture(0, "png"), name: picture(1, "png")}
    if label:
        members |= {"cat/0.cls": b"0", name.replace("png", "cls"): label}
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for member, content in members.items():
            about = tarfile.TarInfo(member)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    with pytest.raises(BadFile, match=f"0.tar: .*{why}"):
        image_folder(tmp_path / "0.tar", classnames)
