"Images that belong together: no split divides a group, groups come through every door, and shared ones are reported."
import os
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from wiseft.base.progress import SAID
from wiseft.data.images import ImageSet
from wiseft.data.objects import image_set
from wiseft.data.suites import folder_suite, load_suite

NAMES = ["cat", "dog"]
N_GROUPS, EACH = 24, 4


def draw(path, seed):
    "An image of noise"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path)


def rows_of(folder, start=0, n=N_GROUPS):
    "Images of a folder, four a video, in class folders; a DataFrame of file, label, and group"
    rows = []
    for g in range(start, start + n):
        for i in range(EACH):
            file = f"{NAMES[g % 2]}/{g}-{i}.png"
            draw(folder / file, 1000*g + i)
            rows.append(dict(file=file, label=NAMES[g % 2], group=f"video {g}"))
    return pd.DataFrame(rows)


def groups_of(images):
    "Groups by the names of files, which the images can't lose"
    return {os.path.basename(f).partition("-")[0] for f in images.files()}


def check_apart(*parts, n_groups=N_GROUPS):
    "No group on two sides, and all there; with `groups` that say the same"
    groups = [groups_of(p) for p in parts]
    assert sum(map(len, groups)) == len(set.union(*groups)) == n_groups
    for part, expected in zip(parts, groups):
        assert not part.missing and len(set(part.groups)) == len(expected)


SOURCES = ["csv", "tsv", "frame", "suite", "groups", "hugging face"]
COLUMNS = ["group", "family", "Patient-Nr", None]


def source_of(kind, column, tmp_path):
    "A source of images, and options that say which column has the groups"
    folder = tmp_path / ("suite/reference" if kind == "suite" else "photos")
    t = rows_of(folder)
    if column is None: t = t.drop(columns="group")
    else: t = t.rename(columns=dict(group=column))
    options = dict(group=column) if column == "Patient-Nr" else {}
    if kind == "csv": t.to_csv(folder / "t.csv", index=False)
    if kind == "tsv": t.to_csv(folder / "t.tsv", index=False, sep="\t")
    if kind in ("csv", "tsv"): return folder / f"t.{kind}", options
    t["file"] = [str(folder / f) for f in t.file]
    if kind == "frame": return t.sample(frac=1, random_state=0), options
    if kind == "groups":
        groups = None if column is None else list(t[column])
        return image_set((list(t.file), t.label.to_numpy()), groups=groups), {}
    if kind == "suite":
        rows_of(tmp_path / "suite/night", 100, 4)
        t = pd.concat([t, rows_of(tmp_path / "suite/night", 100, 4).rename(columns=dict(group=column or "group"))])
        t["filepath"] = [os.path.relpath(p if os.path.isabs(p) else tmp_path / "suite/night" / p, tmp_path / "suite")
                         for p in t.file]
        t = t.drop(columns=["file"] if column else ["file", "group"])
        t.to_csv(tmp_path / "suite/images.csv", index=False)
        return tmp_path / "suite", options
    datasets = pytest.importorskip("datasets")
    columns = dict(t, image=list(t.file), label=[NAMES.index(y) for y in t.label])
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=NAMES),
                                 **({column: datasets.Value("string")} if column else {}))
    return datasets.Dataset.from_dict({k: list(columns[k]) for k in features}, features=features), options


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("kind", SOURCES)
def test_groups_come_through_every_door_and_no_split_divides_them(kind, column, tmp_path):
    "Source by column by who splits: `folder_suite`, and `finetune` for its own validation"
    from wiseft.train.loaders import _labeled_sets

    source, options = source_of(kind, column, tmp_path)
    if kind == "suite": suite = load_suite(source, **options)
    elif kind == "groups": suite = folder_suite(dict(train=source), [])
    else: suite = folder_suite(source, [], **options)
    parts = suite.train, suite.validation, suite.test
    images = source if kind == "groups" or kind == "suite" else image_set(source, **options)
    two = _labeled_sets(images, None, NAMES) if kind != "suite" else ()
    if column is None:
        assert all(p.groups is None for p in (*parts, *two))
        assert [len(p) for p in parts] == [76, 10, 10]
    elif kind == "hugging face":
        groups = [set(p.groups) for p in parts]
        assert sum(map(len, groups)) == len(set.union(*groups)) == N_GROUPS
    else:
        check_apart(*parts)
        if two: check_apart(*two)


def test_the_table_of_the_first_reader(tmp_path):
    "Validation shared 5 of 5 videos with training, and test 6 of 6"
    rows_of(tmp_path).to_csv(tmp_path / "t.csv", index=False)
    s = folder_suite(tmp_path / "t.csv", [])
    assert not set(s.validation.groups) & set(s.train.groups)
    assert not set(s.test.groups) & (set(s.train.groups) | set(s.validation.groups))


@pytest.mark.parametrize("header", ["file,group", "file,family", "path,group", "image,family"])
def test_a_suite_folder_takes_the_names_that_tables_take(header, tmp_path):
    "`group` was dropped there without a word, and so were other names of the column of files"
    t = rows_of(tmp_path / "suite/reference")
    t["file"] = "reference/" + t.file
    (tmp_path / "suite/images.csv").write_text("\n".join([header, *t.file + "," + t.group]))
    (tmp_path / "suite/answers.csv").write_text("file,group,label,predicted\nx.png,a,cat,dog\n")  # no table of images
    s = load_suite(tmp_path / "suite")
    check_apart(s.train, s.validation, s.test)


def test_copies_of_one_original_stay_together(tmp_path):
    "By `units`, and where an image has a group and a unit, both bind"
    t = rows_of(tmp_path)
    images = image_set((list(str(tmp_path / f) for f in t.file), t.label.to_numpy()))
    copies = ImageSet("copies", images.paths, images.labels, NAMES, units=list(t.group))
    parts = copies.split()
    assert sum(len(set(p.units)) for p in parts) == N_GROUPS
    pairs = [f"pair {int(g.split()[1]) // 4}" for g in t.group]  # two videos of each class
    both = ImageSet("both", images.paths, images.labels, NAMES, groups=pairs, units=list(t.group))
    assert sum(len(set(p.groups)) for p in both.split()) == N_GROUPS // 4
    assert sum(len(set(p.units)) for p in both.split()) == N_GROUPS
    rows = t.assign(original=[f if f.endswith("-0.png") else f"{f[:-6]}-0.png" for f in t.file]).drop(columns="group")
    rows.to_csv(tmp_path / "t.csv", index=False)
    parts = image_set(tmp_path / "t.csv").split()
    assert sum(len(groups_of(p)) for p in parts) == N_GROUPS


def plain_set(labels, groups=None, **kwargs):
    "An image set without files"
    pixels = np.zeros((len(labels), 2, 2, 3), np.uint8)
    return ImageSet("s", [f"{i}.png" for i in range(len(labels))], labels, NAMES, groups, pixels=pixels, **kwargs)


def test_sets_without_groups_keep_their_splits():
    "Fingerprints of parts as they were before groups counted; unknown groups and equal ids bind nobody"
    labels = np.random.default_rng(3).integers(0, 2, 137)
    def prints(parts): return [p.fingerprint for p in parts]
    for groups in None, [""]*137, [f"g{i}" for i in range(137)]:
        assert prints(plain_set(labels, groups).split()) == ["67d9c24c0289", "74a9a16cd188", "b19b21c1330e"]
    assert prints(plain_set(labels).split((.1,))) == ["b2d649bd2bff", "74a9a16cd188"]
    four = plain_set(labels).split((.3, .05, .1), np.random.default_rng(7))
    assert prints(four) == ["a66d5ac774e9", "d1007e6665c8", "fca058c44e41", "3befa038993f"]


def test_classes_keep_their_shares():
    "As far as groups allow: at least as well as StratifiedGroupKFold of scikit-learn, on groups of unequal sizes"
    from sklearn.model_selection import StratifiedGroupKFold

    ours, theirs = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(60), (rng.pareto(1, 60)*5 + 1).clip(max=200).astype(int))
        labels = rng.binomial(1, rng.beta(.3, .3, 60)[groups])
        parts = plain_set(labels, groups).split()
        assert sum(len(set(p.groups)) for p in parts) == 60
        ours += [abs(p.counts() / np.bincount(labels) - .1).mean() for p in parts[1:]]
        folds = list(StratifiedGroupKFold(10, shuffle=True, random_state=seed).split(labels, labels, groups))
        theirs += [abs(np.bincount(labels[test], minlength=2) / np.bincount(labels) - .1).mean()
                   for _, test in folds[:2]]
    assert np.mean(ours) < np.mean(theirs) and np.mean(ours) < .03


def test_a_class_of_too_few_groups(tmp_path):
    "It is said, never split; where one class alone could be held out, it is an error"
    groups, labels = np.repeat(np.arange(12), 5), np.repeat([0]*10 + [1]*2, 5)
    with pytest.raises(ValueError, match="no validation images of 'dog', because fewer than 3 groups"):
        folder_suite(plain_set(labels, groups), [])
    with pytest.raises(ValueError, match="no validation images of 'cat', 'dog'"):
        folder_suite(plain_set([0]*8 + [1]*8, ["a"]*4 + ["b"]*4 + ["c"]*4 + ["d"]*4), [])
    three = ImageSet("s", [f"{i}.png" for i in range(65)], [*labels, *[2]*5], [*NAMES, "cow"],
                     [*groups, *[99]*2, *[98]*2, 97], pixels=np.zeros((65, 2, 2, 3), np.uint8))
    with pytest.warns(UserWarning, match="no validation images of 'dog', because fewer than 3 groups"):
        s = folder_suite(three, [])
    assert set(s.validation.labels) == {0, 2} == set(s.test.labels) and set(s.train.labels) == {0, 1, 2}


def test_shared_groups_are_reported(tmp_path):
    "With how many groups and images; subgroups are not"
    def part(groups, **kwargs): return plain_set(np.arange(len(groups)) % 2, groups, **kwargs)
    splits = dict(train=part(["a", "b", "c"]*4), validation=part(["d", "a"]*2), test=part(["c", "d", "e", ""]))
    night = part(["b", "b", "z"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        folder_suite(splits, dict(night=night, dusk=part(["y", "", "z"])))
    said = [str(w.message) for w in caught]
    assert len(said) == 3
    assert said[0].startswith("validation: 2 images are of 1 group with training images of the reference ('a')")
    assert said[1].startswith("reference: 2 images are of 2 groups with training or validation images")
    assert said[2].startswith("night: 2 images are of 1 group with training or validation images")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder_suite({k: part(None or [""]*12, subgroups=["a"]*12) for k in splits}, [])


def test_a_column_that_looks_like_a_group_is_named_once(tmp_path, capsys):
    "At every door, in any case; not where a group is used already"
    t = rows_of(tmp_path).rename(columns=dict(group="Patient_ID"))
    t.to_csv(tmp_path / "t.csv", index=False)
    SAID.clear()
    for _ in range(2): folder_suite(tmp_path / "t.csv", [])
    said = capsys.readouterr().err
    assert said.count("has a column Patient_ID, which is not used") == 1 and "group='Patient_ID'" in said
    t["file"] = [str(tmp_path / f) for f in t.file]
    image_set(t)
    assert "The DataFrame has a column Patient_ID" in capsys.readouterr().err
    image_set(t, group="Patient_ID")
    image_set(t.assign(group="x"))
    assert "which is not used" not in capsys.readouterr().err


def test_a_group_that_is_not_there(tmp_path):
    "It is refused, wherever it is named"
    t = rows_of(tmp_path / "suite/reference")
    t.to_csv(tmp_path / "suite/reference/t.csv", index=False)
    with pytest.raises(ValueError, match="group='patient' is not among them"):
        folder_suite(tmp_path / "suite/reference/t.csv", [], group="patient")
    with pytest.raises(ValueError, match="has no columns"):
        folder_suite(tmp_path / "suite/reference", [], group="patient")
    with pytest.raises(ValueError, match="no table of images there has it"):
        load_suite(tmp_path / "suite", group="patient")
    with pytest.raises(ValueError, match="knows its groups"):
        load_suite("icons", group="patient")
    rows_of(tmp_path / "night")
    s = folder_suite(tmp_path / "suite/reference/t.csv", [tmp_path / "night"], group="group")
    assert s.train.groups and not s.shifts["night"].groups  # a shift may be a folder


def test_groups_of_a_part_and_of_a_torch_subset(tmp_path):
    "They stay with their images; numbers with gaps are the names that they were"
    from torch.utils.data import Subset

    images = plain_set([0, 1, 0, 1], [7., np.nan, 3, None], subgroups=["x", "y", "x", "y"])
    assert images.groups == ["7", "", "3", ""] and images.subset([2, 0]).subgroups == ["x", "x"]
    part = image_set(Subset(images, [2, 1]))
    assert (part.groups, part.subgroups, part.units[0]) == (["3", ""], ["x", "y"], "2.png")
