"A table as people have it: columns by their names, splits and domains, in every format, in Python and in the shell."
import re
import shlex
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import unboxed
from PIL import Image
from typer.testing import CliRunner

from wiseft.base.progress import SAID
from wiseft.data.control import control_set
from wiseft.data.objects import image_set
from wiseft.data.suites import Suite, folder_suite
from wiseft.infer.rules import choose_alpha
from wiseft.models.save import read_card
from wiseft.models.testing import pico_classifier
from wiseft.shell.cli import app
from wiseft.shell.run import Run

NAMES = ["cat", "dog"]
SITES = ["site A", "site B", "site C", "site D"]
PARQUET = pytest.param("parquet", marks=pytest.mark.skipif(not find_spec("pyarrow"), reason="pyarrow isn't installed"))


def draw(path, seed):
    "An image of noise"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Where the images lie, and each table is written"
    folder = tmp_path_factory.mktemp("clinic")
    for row in clinic().itertuples(): draw(folder / row.path, row.Index)
    return folder


def clinic():
    "18 patients of each of four sites, with three images each; one in six is a dog; a patient is in one split"
    rows = []
    for s, site in enumerate(SITES):
        for p in range(18):
            of_patient = dict(label=NAMES[p in (6, 7, 8)], patient=f"{s}-{p}", site=site,
                              split=["train", "valid", "test"][p % 3])
            rows += [dict(path=f"images/{s}-{p}-{i}.png", **of_patient) for i in range(3)]
    return pd.DataFrame(rows)


def save(table, kind, folder):
    "A source of images of some kind"
    if kind == "frame": return table.assign(path=[str(folder / f) for f in table.path])
    file = folder / f"table.{kind}"
    if kind == "parquet": table.to_parquet(file)
    else: table.to_csv(file, index=False, sep="\t" if kind == "tsv" else ",")
    return file


def counts(suite):
    return {f"{name} {split}": len(s) for (name, split), s in suite.sets().items()}


@pytest.fixture(autouse=True)
def nothing_is_said_yet():
    SAID.clear()


@pytest.mark.parametrize("kind", ["csv", "tsv", PARQUET, "frame"])
def test_site_and_patient(kind, folder, capsys):
    "Three sets of the reference, and shifted ones: no row of a test split trains, and no patient is on two sides"
    table = clinic()
    source = save(table, kind, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        suite = folder_suite(source, [], group="patient", domain="site", reference_domain="site A")
    n = table.groupby(["site", "split"]).size()
    words = dict(train="train", validation="valid", test="test")
    sets = dict(zip(["reference", *SITES[1:]], SITES))
    assert counts(suite) == {f"{name} {s}": n[site, words[s]] for name, site in sets.items() for s in words}
    where = {f.rpartition("/")[2]: (t, s) for f, t, s in zip(table.path, table.site, table.split)}
    for images, split in (suite.train, "train"), (suite.validation, "valid"), (suite.test, "test"):
        assert {where[f.rpartition("/")[2]] for f in images.files()} == {("site A", split)}
    patients = [{*s.groups} for s in suite.sets().values()]
    assert sum(map(len, patients)) == len(set.union(*patients))
    unused = n[SITES[1:]].xs("train", level="split").sum()
    assert f"{unused} training images of other domains ('site B', 'site C', 'site D') are not trained on" in \
        capsys.readouterr().err


@pytest.mark.parametrize("word", ["val", "valid", "validation", "dev", "Val"])
def test_a_split_makes_three_sets(word, folder):
    "Python trained on test rows"
    table = clinic().replace(dict(split=dict(valid=word)))
    for kind in "csv", "frame":
        suite = folder_suite(save(table, kind, folder), [])
        n = table.split.value_counts()
        assert counts(suite) == {"reference train": n["train"], "reference validation": n[word],
                                 "reference test": n["test"]}
    assert len(Suite.for_evaluation(save(table, "csv", folder)).test) == n["test"]


@pytest.mark.parametrize("file, label", [("file", "label"), ("filepath", "class"), ("path", "target"), ("image", "y"),
                                         ("filename", "label")])
def test_names_of_columns(file, label, folder):
    table = clinic().rename(columns=dict(path=file, label=label)).drop(columns="split")
    table.to_csv(folder / "t.csv", index=False)
    frame = table.assign(**{file: [str(folder / f) for f in table[file]]})
    for source in folder / "t.csv", frame: assert list(image_set(source).counts()) == [180, 36]


def test_columns_that_the_user_names(folder):
    table = clinic().rename(columns=dict(path="Image Index", label="Finding", split="fold"))
    table.to_csv(folder / "t.csv", index=False)
    frame = table.assign(**{"Image Index": [str(folder / f) for f in table["Image Index"]]})
    named = dict(file="Image Index", label="Finding", split="fold", domain="site")
    for source in folder / "t.csv", frame:
        suite = folder_suite(source, [], reference_domain=["site A", "site B"], **named)
        assert [*suite.shifts] == ["site C", "site D"] and suite.classnames == NAMES
        missing = "none named file or filepath or path or image or filename. Rename one, or say which it is: file="
        with pytest.raises(ValueError, match=f"has the columns 'Image Index', .*: there is {missing}"):
            image_set(source)
        with pytest.raises(ValueError, match="has the columns .* label='finding' is not among them. Did you mean 'F"):
            image_set(source, file="Image Index", label="finding")
    with pytest.raises(TypeError, match="There is no argument lable"):
        image_set(frame, lable="Finding")
    said = r"group= takes the name of a column of a table. image_set\(…, groups=…\) takes a name for each image.$"
    with pytest.raises(TypeError, match=said):
        image_set(folder / "images", group=["a", "b"] * 40_000)
    with pytest.raises(ValueError, match="The DataFrame has the columns 'a': there is none named file"):
        image_set(pd.DataFrame(dict(a=[1])))
    with pytest.raises(ValueError, match="split='fold' names a column of a table, and .* has no columns"):
        folder_suite(folder / "images", [], split="fold")
    for options in dict(domain="site"), dict(reference_domain="site A"):
        with pytest.raises(ValueError, match=f"icons is a suite, .* Leave out {next(iter(options))}"):
            Suite.of("icons", **options)


def test_wilds_words(folder):
    "id_val and id_test are of the reference, test is shifted, and val is never used for choosing"
    table = clinic().drop(columns="site")
    words = np.array(["train", "train", "train", "id_val", "id_test", "val", "test"])
    table["split"] = words[np.arange(len(table)) % 7]
    n = table.split.value_counts()
    for kind in "csv", "frame":
        suite = folder_suite(save(table, kind, folder), [])
        assert counts(suite) == {"reference train": n["train"], "reference validation": n["id_val"],
                                 "reference test": n["id_test"], "ood validation": n["val"], "ood test": n["test"]}
    with pytest.raises(ValueError, match="make the reference. Leave out reference_domain"):
        folder_suite(save(table.assign(domain="x"), "csv", folder), [], reference_domain="x")


def test_domains_without_splits(folder):
    "The reference is split 80/10/10, and all rows of the others are test images"
    table = clinic().drop(columns="split").rename(columns=dict(site="domain", patient="group"))
    suite = folder_suite(save(table, "csv", folder), [], reference_domain=SITES[0])
    n = len(table) // 4
    assert {s: len(x) for s, x in suite.shifts.items()} == dict.fromkeys(SITES[1:], n)
    assert sum(map(len, (suite.train, suite.validation, suite.test))) == n
    whole = folder_suite(save(table, "csv", folder), [], reference_domain=SITES)
    assert not whole.shifts and len(whole.train) > 2*n


MISTAKES = {
    "a domain column, and no reference": (
        lambda t: t.rename(columns=dict(site="domain")), {}, "has images of the domains 'site A', .* Say which are the "
        r"reference, .*folder_suite\(…, reference_domain='site A'\)"),
    "an unknown domain": (
        lambda t: t, dict(domain="site", reference_domain="A"), "has no domain 'A': reference_domain is one of"),
    "no domain column": (
        lambda t: t, dict(reference_domain="site A"), "there is none named domain. Say which it is: domain='COLUMN'"),
    "an unknown split": (
        lambda t: t.replace(dict(split=dict(test="holdout"))), {}, "the column of splits has 'holdout'. Expected"),
    "a split is missing": (
        lambda t: t.assign(split=["", *t.split[1:]]), {}, "has no split for .*0-0-0.png'. Write train, validation, or"),
    "a file twice": (
        lambda t: pd.concat([t, t[:1]]), {}, "names '.*0-0-0.png' more than once"),
    "a domain of other classes": (
        lambda t: t.assign(label=np.where(t.site == "site D", "cow", t.label)), dict(domain="site",
                                                                                     reference_domain="site A"),
        "the domain 'site D' has no images of the classes of the reference, only of 'cow'"),
}


@pytest.mark.parametrize("kind", ["csv", "frame"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake(mistake, kind, folder):
    change, options, words = MISTAKES[mistake]
    source = save(change(clinic()), kind, folder)
    with pytest.raises(ValueError, match=words):
        folder_suite(source, [], **options)


def test_a_label_that_only_one_split_has(folder):
    "By name, in both directions"
    table = clinic()
    for split, words in dict(test="There are no training images of 'cow', but test or validation images",
                             train="reference: there are no images of 'cow', 1 of 3 classes").items():
        rows = table.index[table.split == split][:6]
        labels = [("cow" if i in rows else y) for i, y in enumerate(table.label)]
        source = save(table.assign(label=labels), "csv", folder)
        with pytest.warns(UserWarning, match=words):
            folder_suite(source, [])


def test_unused_candidates_are_named_once(folder, capsys):
    source = save(clinic(), "csv", folder)
    for _ in range(2): folder_suite(source, [])
    said = capsys.readouterr().err
    assert said.count("has a column patient, which is not used. If images with one patient belong together") == 1
    assert said.count("has a column site, which is not used. If it is a domain, domain='site' with reference_") == 1


def test_rows_of_all_splits_as_one_set(folder):
    "A warning in every format"
    for kind in "csv", "frame":
        with pytest.warns(UserWarning, match="has a column of splits with 'train', .*not used: all rows are one"):
            assert len(image_set(save(clinic(), kind, folder))) == 4*18*3
    with pytest.warns(UserWarning, match="has a column of splits with 'train', "):
        control_set(folder / "table.csv")


def folders_of_domains(folder, splits=()):
    for d, domain in enumerate(["art", "photo", "sketch"]):
        for s, split in enumerate(splits or [""]):
            for i in range(24): draw(folder / domain / split / NAMES[i % 2] / f"{i}.png", 1000*d + 100*s + i)
    return folder


@pytest.mark.parametrize("splits", [(), ("train", "val", "test")])
def test_a_folder_of_domains(splits, tmp_path):
    "It trained on styles as classes"
    pacs = folders_of_domains(tmp_path / "pacs", splits)
    for source in pacs, str(pacs):
        with pytest.raises(ValueError, match=r"holds the domains 'art', 'photo', 'sketch', .* folder_suite\(.*pacs', "
                                             r"reference_domain='art'\)"):
            folder_suite(source, [])
    suite = folder_suite(pacs, [], reference_domain="photo")
    assert [*suite.shifts] == ["art", "sketch"] and suite.classnames == NAMES and suite.name == "pacs"
    assert {p.parts[-3 - bool(splits)] for p in suite.train.paths} == {"photo"}
    two = folder_suite(pacs, [], reference_domain=["photo", "art"])
    assert [*two.shifts] == ["sketch"] and len(two.train) == 2*len(suite.train)
    assert {p.parts[-3 - bool(splits)] for p in two.test.paths} == {"photo", "art"}
    with pytest.raises(ValueError, match="has no domain 'cartoon'"):
        folder_suite(pacs, [], reference_domain="cartoon")
    with pytest.raises(ValueError, match="is no folder of domains"):
        folder_suite(pacs / "photo", [], reference_domain="photo")


def test_domains_with_some_classes_of_their_own(tmp_path):
    "Classes are those of all domains, as in a table; a folder without images is no domain"
    pacs = folders_of_domains(tmp_path / "pacs", ("train", "val", "test"))
    (pacs / "splits").mkdir()
    for i in range(3): draw(pacs / "sketch/test/cow" / f"{i}.png", i)
    draw(pacs / "photo/train/owl/1.png", 7)
    with pytest.raises(ValueError, match=r"holds the domains 'art', 'photo', 'sketch', .* name them: classnames"):
        folder_suite(pacs, [])
    with pytest.warns(UserWarning, match="no training images of 'cow', but test or validation images"):
        suite = folder_suite(pacs, [], reference_domain=["photo", "art"])
    assert suite.classnames == ["cat", "cow", "dog", "owl"]
    assert suite.train.counts().tolist() == [24, 0, 24, 1] and suite.shifts["sketch"].counts()["cow"] == 3
    for i in range(2): draw(tmp_path / "other" / ["photo/cat", "sketch/cow"][i] / "1.png", i)
    with pytest.raises(ValueError, match="'sketch' has no images of the classes of the reference, only of 'cow'"):
        folder_suite(tmp_path / "other", [], reference_domain="photo")


def test_domains_from_a_mac_have_the_classes_of_others(tmp_path):
    "A class in two spellings of Unicode is one"
    for i, place in enumerate(["art/caf\u00e9", "photo/cafe\u0301", "art/tea", "photo/tea"]):
        for k in range(8): draw(tmp_path / place / f"{k}.png", 10 * i + k)
    suite = folder_suite(tmp_path, [], reference_domain="photo")
    assert suite.classnames == ["caf\u00e9", "tea"] and suite.shifts["art"].counts().tolist() == [8, 8]


def test_what_is_no_folder_of_domains(tmp_path):
    "Classes with folders in them, given by name; and splits"
    for name in NAMES:
        for view in "front", "side": draw(tmp_path / "views" / name / view / "1.png", 1)
        for split in "train", "test": draw(tmp_path / "splits" / name / split / "1.png", 1)
    assert len(image_set(tmp_path / "views", NAMES)) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(image_set(tmp_path / "splits")) == 4


def test_the_shell_says_what_is_meant(tmp_path, folder):
    "With options of the shell; and a table with renamed columns is read by every command"
    def said(*words): return " ".join(CliRunner().invoke(app, list(map(str, words))).output.split())
    pacs = folders_of_domains(tmp_path / "pacs")
    assert "the others are shifted sets: --reference-domain art." in said("run", pacs, "-o", tmp_path / "out")
    table = clinic().rename(columns=dict(label="Finding"))
    file = save(table, "csv", folder)
    assert "or say which it is: --column label=COLUMN." in said("run", file, "-o", tmp_path / "out")
    named = "--column", "label=Finding", "--column", "domain=site", "--group", "patient"
    assert "shifted sets: --reference-domain 'site A'." in said("run", file, *named, "-o", tmp_path / "out")
    listed = said("data", file, *named, "--reference-domain", "site A")
    assert "site D" in listed and "reference" in listed
    assert "--column takes one of file, label" in said("data", file, "--column", "lable=Finding")


@pytest.mark.parametrize("metric, words", {"ECE (15 bins)": "not one number per image",
                                           "recall of cow": "no class 'cow'"}.items())
def test_a_metric_that_cannot_choose_is_named_before_training(metric, words, tmp_path):
    photos = folders_of_domains(tmp_path) / "photo"
    done = CliRunner().invoke(app, ["run", str(photos), "-o", str(tmp_path / "out"), "--metric", metric])
    assert words in " ".join(done.output.split()) and not (tmp_path / "out").exists()


def test_a_metric_and_test_images_alone(tmp_path):
    photos = folders_of_domains(tmp_path, ("test",)) / "photo"
    done = CliRunner().invoke(app, ["run", str(photos), "-o", str(tmp_path / "out"), "--metric", "macro-F1"])
    assert "no training images" in " ".join(done.output.split())


@pytest.mark.slow
def test_run_by_a_loss(tmp_path, monkeypatch):
    "In percent is accuracy"
    monkeypatch.chdir(tmp_path)
    pico_classifier(NAMES).save(tmp_path / "tiny")
    photos = str(folders_of_domains(tmp_path) / "photo")
    done = CliRunner().invoke(app, ["run", photos, "--model", "local-dir:tiny", "--epochs", "1", "-o", "out",
                                    "--metric", "NLL"])
    assert done.exit_code == 0, done.output
    assert "Accuracy on the reference" in done.stdout
    assert "by NLL on" in read_card(Path("out/averaged"))["recipe"]["merge"]["chosen"]


@pytest.mark.slow
def test_a_newcomers_trial(folder, tmp_path, monkeypatch):
    "From the file to a decision in one command; the same in Python"
    monkeypatch.chdir(tmp_path)
    pico_classifier(NAMES).save(tmp_path / "tiny")
    file = save(clinic(), "csv", folder)
    table = "--group", "patient", "--column", "domain=site", "--reference-domain", "site A"
    metric = "balanced accuracy"
    words = "run", str(file), *table, "--model", "local-dir:tiny", "--epochs", "1", "-o", "out", "--metric", metric
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    lines = done.stderr.splitlines()
    assert re.search("Verdict (Keep|The data cannot tell; keep)", unboxed(done.stdout))
    warned = [line for line in lines if line.startswith("warning: ")]
    assert len({*warned}) == len(warned) and "no test set" not in done.stderr
    assert "which is not used" not in done.stderr
    assert "Balanced accuracy on the reference" in done.stdout and "weight-space" not in done.stdout
    again = CliRunner().invoke(app, shlex.split(Path("out/commands.sh").read_text().splitlines()[-3])[1:])
    assert again.exit_code == 0, again.output
    suite = folder_suite(file, [], group="patient", domain="site", reference_domain=["site A"])
    run = Run("out")
    assert run.finetuned.recipe["images"].split(",")[0] == suite.train.fingerprint
    assert run.finetuned.recipe["validation_images"] == suite.validation.fingerprint
    evaluated = dict(zip(run.table.dataset, run.table.data_fingerprint))
    assert {name: evaluated[name] for name in suite.datasets()} == \
        {name: s.fingerprint for name, s in suite.datasets().items()}
    assert choose_alpha(run.initial, run.finetuned, suite, metric=metric, progress=False) == run.averaged.alpha
