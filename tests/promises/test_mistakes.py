"Every source of images with every mistake: it is refused in words, or warned about, or it can't happen there, and why."
import ast
import inspect
import io
import re
import sys
import tarfile
import textwrap
import warnings
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import later
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, RandomSampler, Subset, TensorDataset

from wiseft.base.lazy import Later
from wiseft.base.progress import SAID
from wiseft.data import labels as of_paths
from wiseft.data import objects
from wiseft.data.images import ImageSet
from wiseft.data.suites import Suite

ImageFolder = later("torchvision.datasets", "ImageFolder")
T = Later("torchvision.transforms")
datasets = Later("datasets") if find_spec("datasets") else None

NAMES = ["cat", "dog"]
RNG = np.random.default_rng(0)
PIXELS, LABELS = RNG.integers(0, 200, (6, 24, 24, 3), dtype=np.uint8), np.array([0, 1, 0, 1, 0, 1])


# ---------- sources ----------


@dataclass
class Held:
    "What somebody holds: six pictures with labels, perhaps with a mistake in them"
    folder: Path
    x: np.ndarray = field(default_factory=PIXELS.copy)
    y: object = field(default_factory=LABELS.copy)
    classnames: object = field(default_factory=NAMES.copy)
    transform: object = None
    loader: dict = field(default_factory=dict)  # options of a DataLoader

    @property
    def pictures(self):
        return [Image.fromarray(x) for x in self.x]

    @property
    def tensors(self):
        return torch.from_numpy(self.x if self.x.ndim == 3 else self.x.transpose(0, 3, 1, 2))

    def files(self):
        "In folders of their classes; all in the first one's if no other is there"
        paths = [self.folder / "pets" / NAMES[LABELS[i] if np.any(self.y != 0) else 0] / f"{i}.png" for i in range(6)]
        for path, picture in zip(paths, self.pictures):
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        return list(map(str, paths))


class Pets(Dataset):
    "A dataset of one's own"
    def __init__(self, held, rows=range(6)):
        self.pictures, self.labels_, self.transform = held.pictures, list(held.y), held.transform
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        picture = self.pictures[self.rows[i]]
        return (self.transform(picture) if self.transform else picture), self.labels_[self.rows[i]]


class PetsWithTargets(Pets):
    def __init__(self, held):
        super().__init__(held)
        self.targets = held.y


def folder_of(held):
    held.files()
    return held.folder / "pets"


def flat_folder_of(held):
    "Images of two of ImageNet's classes, named by their WordNet ids"
    (held.folder / "flat").mkdir()
    ids = dict(cat="n02123045", dog="n02099601")
    for i, path in enumerate(map(Path, held.files())):
        path.rename(held.folder / "flat" / f"{ids[path.parent.name]}_{i}.png")
    return held.folder / "flat"


def tar_of(held):
    with tarfile.open(held.folder / "pets.tar", "w") as tar:
        tar.add(folder_of(held), "pets")
    return held.folder / "pets.tar"


def shards_of(held):
    "A WebDataset with labels in .cls"
    (held.folder / "shards").mkdir()
    with tarfile.open(held.folder / "shards/0.tar", "w") as tar:
        for i, (path, label) in enumerate(zip(held.files(), held.y)):
            for name, data in {f"{i}.png": Path(path).read_bytes(), f"{i}.cls": str(label).encode()}.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return held.folder / "shards"


def frame_of(held):
    return pd.DataFrame(dict(file=held.files(), label=list(held.y)))


def csv_of(held):
    frame_of(held).to_csv(held.folder / "pets.csv", index=False)
    return held.folder / "pets.csv"


def hugging_face_of(held):
    "With a ClassLabel, if it can hold the labels"
    column = dict(i=datasets.Value("int64"), f=datasets.Value("float64"), O=datasets.Value("string"))[held.y.dtype.kind]
    if held.y.ndim == 2:
        column = datasets.Sequence(column)
    elif held.y.dtype == int and held.y.max() < 2:
        column = datasets.ClassLabel(names=NAMES)
    rows = [dict(image=picture, label=label) for picture, label in zip(held.pictures, held.y.tolist())]
    found = datasets.Dataset.from_list(rows, features=datasets.Features(image=datasets.Image(), label=column))
    return found.with_transform(held.transform) if held.transform else found


def arrow_of(held):
    hugging_face_of(held).save_to_disk(held.folder / "arrow")
    return held.folder / "arrow"


def parquet_of(held):
    hugging_face_of(held).to_parquet(held.folder / "pets.parquet")
    return held.folder / "pets.parquet"


SOURCES = {
    "array": lambda held: (held.x, held.y),
    "tensor": lambda held: (held.tensors, torch.tensor(held.y)),
    "PIL images": lambda held: (held.pictures, held.y),
    "files": lambda held: (held.files(), held.y),
    "pairs": lambda held: list(zip(held.pictures, held.y)),
    "DataFrame": frame_of,
    "Dataset": Pets,
    "Dataset with targets": PetsWithTargets,
    "TensorDataset": lambda held: TensorDataset(held.tensors, torch.tensor(held.y)),
    "Subset": lambda held: Subset(Pets(held), range(6)),
    "ConcatDataset": lambda held: ConcatDataset([Pets(held, range(2)), Pets(held, range(2, 6))]),
    "DataLoader": lambda held: DataLoader(Pets(held), batch_size=4, **held.loader),
    "ImageFolder": lambda held: ImageFolder(str(folder_of(held)), transform=held.transform),
    "ImageSet": lambda held: ImageSet("pets", held.files(), held.y, held.classnames),
    "folder": folder_of,
    "tar": tar_of,
    "shards": shards_of,
    "CSV": csv_of,
}
if datasets:
    SOURCES |= {"Hugging Face": hugging_face_of, "Arrow": arrow_of, "parquet": parquet_of}

CLASS_FOLDERS = "ImageFolder", "folder", "tar"
HUGGING_FACE = "Hugging Face", "Arrow", "parquet"
ARRAYS = "array", "tensor", "TensorDataset"
OWN_DATASETS = "Dataset", "Dataset with targets", "Subset", "ConcatDataset", "DataLoader"  # have a transform


# ---------- mistakes ----------


class Impossible(str):
    "Why a mistake can't be made with a source"


FOLDER_NAMES = dict.fromkeys(CLASS_FOLDERS, Impossible("the names of folders are the labels"))
NO_TRANSFORM = {name: Impossible("no transform") for name in SOURCES if name not in OWN_DATASETS}
HAS_NAMES = {"ImageSet": Impossible("it has class names, and `classnames` is not used")}


def only(words, *sources, why):
    "What happens with some sources, where the others can't have the mistake"
    return {name: words if name in sources else Impossible(why) for name in SOURCES}


def wrong_names(classnames):
    def change(held):
        held.classnames = classnames
    return change, r"TypeError: classnames=… takes a list of texts in the order of the labels, not a ", HAS_NAMES


def changed(**fields):
    def change(held):
        for name, f in fields.items():
            setattr(held, name, f(held))
    return change


def with_none(held):
    return np.array([None, *np.array(NAMES)[LABELS[1:]]], dtype=object)


# mistake -> what it changes; the words that answer it; other words by source
MISTAKES = {
    "float labels": (
        changed(y=lambda held: held.y.astype(float)), "ValueError: .*labels of type float64 and shape",
        FOLDER_NAMES | {"shards": "ValueError: .* Expected the number of a class",
                        "CSV": r"ValueError: .*class '0\.0', '1\.0' not among the 2 classes"}),
    "one-hot labels": (
        changed(y=lambda held: np.eye(2, dtype=int)[held.y]), r"ValueError: .*shape \(\d, 2\).*give labels.argmax\(1\)",
        FOLDER_NAMES | {"shards": "ValueError: .* Expected the number of a class",
                        "CSV": r"ValueError: .*class '\[0 1\]', '\[1 0\]' not among the 2 classes",
                        "DataFrame": r"ValueError: .*labels of type object"}),
    "a label is missing": (
        changed(y=with_none), r"ValueError: .*labels of type object and shape \(\d,\), such as None",
        FOLDER_NAMES | {"tensor": Impossible("tensors hold numbers"), "TensorDataset": Impossible("the same"),
                        "shards": "ValueError: .* Expected the number of a class",
                        "CSV": "ValueError: .*has no label for",
                        "DataFrame": "ValueError: .*labels of type object and shape"}),
    "labels that begin with 1": (
        changed(y=lambda held: held.y + 1), "ValueError: .*labels 1…2 for 2 classes; expected 0…1", FOLDER_NAMES),
    "numbers without names": (
        changed(classnames=lambda held: None), "ValueError: .*its labels are numbers, and nothing names the classes",
        FOLDER_NAMES | dict.fromkeys(HUGGING_FACE, Impossible("a ClassLabel has names")) | {
            "shards": "ValueError: .*its labels are numbers, and no classnames.txt",
            "CSV": "ValueError: .*its labels are numbers, and no classnames.txt",
            "ImageSet": "TypeError"}),
    "numbers in another order": (
        changed(classnames=lambda held: NAMES[::-1]), "said: .*labels are numbers, taken as 0 = dog, 1 = cat",
        FOLDER_NAMES | HAS_NAMES | dict.fromkeys(HUGGING_FACE, Impossible("a ClassLabel has names"))),
    "class names are a set": wrong_names({"cat", "dog"}),
    "class names are a table": wrong_names(pd.DataFrame(dict(cat=[1], dog=[2]))),
    "class names are a dataset": wrong_names(TensorDataset(torch.zeros(2, 1))),
    "two class names differ by case": (
        changed(classnames=lambda held: ["cat", "dog", " Dog"]),
        "warned: The class names 'dog', ' Dog' are the same but for case or spaces", HAS_NAMES),
    "a class has no images": (
        changed(y=lambda held: np.zeros(6, int)), "warned: .*there are no images of 'dog', 1 of 2 classes",
        {"tar": "ValueError: .*6 images lie in no class folder"}),
    "four channels": (
        changed(x=lambda held: np.concatenate([held.x, held.x[..., :1]], -1)), "",
        only("ValueError: .*If the fourth channel is alpha, give PIL images", *ARRAYS, why="PIL: the fourth is alpha")),
    "masks of 0 and 1": (
        changed(x=lambda held: np.uint8(held.x[..., 0] > 99)), "warned: .*its values are 0 and 1, where white", {}),
    "8 bits in an image of 16": (
        changed(x=lambda held: np.uint16(held.x[..., 0])),
        "warned: .*all of its 16-bit values are below 4096", dict.fromkeys(ARRAYS, Impossible("their white is 255"))),
    "normalized pictures": (
        changed(x=lambda held: np.float32(held.x)/127.5 - 1), "",
        only("ValueError: .*before any normalization", *ARRAYS, why="PIL and files hold no such values")),
    "a random transform": (
        changed(transform=lambda held: T.RandomCrop(12)), "warned: .*has other pixels when it is read again",
        NO_TRANSFORM | {"ImageFolder": "warned: The transform of this ImageFolder is not used",
                        "Hugging Face": "warned: The transform of this Dataset is not used"}),
    "a transform that crops": (
        changed(transform=lambda held: T.CenterCrop(12)),
        r"said: .*the dataset's own transform comes first \(the first picture is then 12 × 12\)",
        NO_TRANSFORM | {"ImageFolder": "warned: The transform of this ImageFolder is not used",
                        "Hugging Face": "warned: The transform of this Dataset is not used",
                        "ConcatDataset": Impossible("its parts have transforms; a random one is noticed")}),
    "a sampler that draws a part": (
        changed(loader=lambda held: dict(sampler=RandomSampler(range(6), num_samples=3))), "",
        only("warned: The sampler of this DataLoader is not used: it draws 3 images, and all 6 are used", "DataLoader",
             why="no sampler")),
    "a collate_fn": (
        changed(loader=lambda held: dict(collate_fn=list)), "",
        only("warned: The collate_fn of this DataLoader is not used", "DataLoader", why="no collate_fn")),
}


def words_of(make, classnames):
    "What a user reads who brings images: the error, or warnings and lines"
    SAID.clear()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            images = Suite.for_evaluation(make(), classnames)
            [picture for picture, _ in images]
        except Exception as e:
            return f"{'ValueError' if isinstance(e, ValueError) else type(e).__name__}: {e}"  # BadFile is one
    return "\n".join([*(f"warned: {w.message}" for w in warned), *(f"said: {line}" for line in SAID)])


CELLS = {(source, mistake): otherwise.get(source, words)
         for mistake, (_, words, otherwise) in MISTAKES.items() for source in SOURCES}


@pytest.mark.parametrize("source, mistake", [cell for cell, words in CELLS.items() if type(words) is str])
def test_a_mistake(tmp_path, source, mistake):
    words, held = CELLS[source, mistake], Held(tmp_path)
    MISTAKES[mistake][0](held)
    found = words_of(lambda: SOURCES[source](held), held.classnames)
    assert re.search(words, found), found


@pytest.mark.parametrize("source", SOURCES)
def test_without_a_mistake(tmp_path, source):
    "The right labels, and no warning"
    held = Held(tmp_path)
    found = words_of(lambda: SOURCES[source](held), NAMES)
    assert re.fullmatch("(said: .*labels are numbers, taken as 0 = cat, 1 = dog)?", found), found
    (tmp_path / "again").mkdir()
    images = objects.image_set(SOURCES[source](Held(tmp_path / "again")), NAMES)
    pictures = {PIXELS[i].tobytes(): LABELS[i] for i in range(6)}
    assert [pictures[np.asarray(x).tobytes()] for x, _ in images] == list(images.labels)


def test_no_source_is_forgotten(tmp_path):
    "Each `return` of the functions that tell sources apart is reached by a source of the list"
    doors = objects._set_of_any, objects._set_at_path, of_paths.image_folder
    codes, reached = {f.__code__: f.__name__ for f in doors}, set()

    def trace(frame, event, arg):
        if frame.f_code in codes:
            reached.add((codes[frame.f_code], frame.f_lineno))
            return trace

    before = sys.gettrace()
    makers = dict.fromkeys(SOURCES.values(), NAMES) | {flat_folder_of: None}  # whose classes are ImageNet's
    for k, (make, classnames) in enumerate(makers.items()):
        (tmp_path / str(k)).mkdir()
        source = make(Held(tmp_path / str(k)))
        sys.settrace(trace)
        try:
            objects.image_set(source, classnames)
        finally:
            sys.settrace(before)
    for f in doors:
        lines, first = inspect.getsourcelines(f)
        for node in ast.walk(ast.parse(textwrap.dedent("".join(lines)))):
            line = first + getattr(node, "lineno", 0) - 1
            needs_datasets = "_set_of_hugging_face" in "".join(lines[line - first:line - first + 1])
            if isinstance(node, ast.Return) and (datasets or not needs_datasets):
                assert (f.__name__, line) in reached, f"{f.__name__}: no source reaches {lines[line - first]}"


# ---------- datasets that disagree with themselves ----------


def test_folders_that_number_classes_differently(tmp_path):
    "Parts of a ConcatDataset, of which one lacks the first class: labels go by name"
    for part, names in dict(a=NAMES, b=["dog", "fox"]).items():
        for name in names:
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), 3).save(tmp_path / part / name / "1.png")
    both = ConcatDataset([ImageFolder(str(tmp_path / "a")), ImageFolder(str(tmp_path / "b"))])
    for order in NAMES + ["fox"], ["fox", "dog", "cat"]:
        images = objects.image_set(both, order)
        assert [order[y] for y in images.labels] == ["cat", "dog", "dog", "fox"]
    backwards = objects.image_set(Subset(both, [3, 2, 0]))
    assert [backwards.classnames[y] for y in backwards.labels] == ["fox", "dog", "cat"]
    mixed = ConcatDataset([both.datasets[0], both.datasets[1], Pets(Held(tmp_path))])
    with pytest.raises(ValueError, match="Some parts of this ConcatDataset have class names, and others"):
        objects.image_set(mixed, NAMES)


def test_targets_that_disagree_anywhere():
    "Labels of the items count, though `targets` agrees with most of them, and with all that are evenly spread"
    n, held = 600, SimpleNamespace(pictures=[Image.new("RGB", (4, 4))]*600, y=np.arange(600) % 2, transform=None)
    pets = Pets(held, range(n))
    pets.targets = held.y.copy()
    for some in np.arange(n) % 20 == 7, np.isin(np.arange(n), np.linspace(0, n-1, 16).astype(int), invert=True):
        pets.targets = np.where(some, 1 - held.y, held.y)
        assert list(objects.image_set(pets, NAMES).labels) == list(held.y)
