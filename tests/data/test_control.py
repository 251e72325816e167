"Control sets: their heads, what they cost, what is refused, what ships, in benches and reports, the command line."
import html
import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import later, ROOT
from PIL import Image
from tests.bench.test_run import PIECES, methods, small  # noqa: F401, a fixture
from tests.shell.test_cli import wiseft

from wiseft.all import ImageSet, evaluate, interpolate, load_suite, read_results, sweep, zeroshot_classifier
from wiseft.base.files import package_data, sha256_file
from wiseft.data.control import control_set
from wiseft.data.suites import Suite
from wiseft.infer.ensembles import members
from wiseft.analysis.flips import forgotten_images
from wiseft.analysis.forgetting import forgetting, say_forgetting
from wiseft.methods.dawin import dawin
from wiseft.models.classifier import ImageClassifier
from wiseft.models.clip import Clip, load_clip
from wiseft.models.head import unseen_words
from wiseft.models.testing import pico_clip
from wiseft.stats.intervals import mean_difference
from wiseft.stats.table import CONTROL_MEAN, MEAN

bench = later("wiseft.bench.run", "bench")
write_report = later("wiseft.show.report", "write_report")
write_bench_report = later("wiseft.show.bench_report", "write_bench_report")

TASK, PETS, TEMPLATES = ["box", "disc"], ["cat", "dog", "parrot"], ["a {}", "one {} more"]
ALPHAS = [0.25, 0.5, 0.75]
CLASSES = json.loads((ROOT / "nbs/reproductions/icons/classes.json").read_text())["classes"]
WAYS = ["weight-space", "logits", "probabilities", dawin]


def pictures(folder, n, seed):
    "Files of coarse noise, of many colors."
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(n):
        noise = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8) // (1 + i % 3)
        Image.fromarray(noise).resize((48, 48), Image.Resampling.NEAREST).save(folder / f"{i}.png")
    return sorted(folder.glob("*.png"))


def labeled(name, paths, classifier, **kwargs):
    "Images whose classes are those that a classifier sees in them, so that it knows more than chance."
    images = ImageSet(name, paths, np.zeros(len(paths), int), classifier.classnames, **kwargs)
    x = torch.stack([classifier.transform(images.open(i)) for i in range(len(images))])
    with torch.no_grad():
        z = classifier(x)
    images.labels = z.argmax(1).numpy()
    return images


def shaken(start, text=False):
    "The same classifier after a fine-tuning, of one tower or both."
    finetuned, rng = (start.with_text() if text else start).copy(), torch.Generator().manual_seed(1)
    for p in finetuned.parameters():
        if p.ndim:
            p.data += 0.3 * p.std(correction=0) * torch.randn(p.shape, generator=rng)
    finetuned.alpha, finetuned.recipe = 1.0, dict(tuning="plain")
    return finetuned.rebuild_head().eval()


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    "A classifier whose features lie around 0, so that its answers differ."
    clip = pico_clip()
    paths = pictures(tmp_path_factory.mktemp("start") / "start", 60, 3)
    x = torch.stack([clip.transform(Image.open(p)) for p in paths])
    with torch.no_grad():
        clip.model.visual.attnpool.c_proj.bias -= clip.model.visual(x).mean(0)
    return zeroshot_classifier(clip, TASK, TEMPLATES)


@pytest.fixture(scope="module")
def ends(start):
    "Name -> the fine-tuned end, whose text tower trained or not."
    return dict(image=shaken(start), both=shaken(start, text=True))


@pytest.fixture(scope="module")
def pets(start, tmp_path_factory):
    paths = pictures(tmp_path_factory.mktemp("pets") / "pets", 60, 1)
    return labeled("pets", paths, zeroshot_classifier(start.clip, PETS, TEMPLATES), role="control",
                    templates=TEMPLATES)


@pytest.fixture(scope="module")
def task(start, tmp_path_factory):
    paths = pictures(tmp_path_factory.mktemp("task") / "task", 30, 2)
    test = labeled("reference", paths, start)
    return Suite("task", TASK, TEMPLATES, test=test.subset(range(20)), shifts=dict(line=test.subset(range(20, 30))))


def logits(member, images):
    x = torch.stack([member.transform(images.open(i)) for i in range(len(images))])
    with torch.no_grad():
        return member.on(images)(x)


@pytest.mark.parametrize("trained", ["image", "both"])
def test_heads_are_zeroshot_classifiers_to_the_bit(start, ends, pets, trained):
    models = members(start, ends[trained], ALPHAS, ["weight-space"])
    head = zeroshot_classifier(start.clip, PETS, TEMPLATES).head
    some, outputs = pets.subset(range(9)), []
    x = torch.stack([start.transform(some.open(i)) for i in range(9)])
    for m in models.values():
        outputs.append(logits(m, some))  # the tower that all averages share is now at this α
        at = m.modules[0]
        words = zeroshot_classifier(at.clip, PETS, TEMPLATES)
        assert torch.equal(words.head.weight, head.weight) == (trained == "image" or m.identity["alpha"] == 0)
        with torch.no_grad():
            assert torch.equal(outputs[-1], words(x)), m
    initial, finetuned = (start.with_text(), ends["both"]) if trained == "both" else (start, ends["image"])
    half = zeroshot_classifier(interpolate(initial, finetuned, 0.5).clip, PETS, TEMPLATES)
    with torch.no_grad():
        torch.testing.assert_close(logits(models["plain", "weight-space", 0.5], some), half(x), rtol=1e-4, atol=1e-4)
    assert len(outputs) == 5 and not torch.equal(outputs[0], outputs[1])


@pytest.mark.parametrize("trained, heads", [("image", 1), ("both", 5)])
def test_images_are_decoded_once_and_towers_run_once_a_batch(start, ends, pets, task, monkeypatch, tmp_path, trained,
                                                             heads):
    opened, texts, passes = Counter(), [], Counter()
    read, encode, forward = ImageSet.open, Clip.encode_text, type(start.visual).forward
    monkeypatch.setattr(ImageSet, "open", lambda s, i, *a: opened.update([str(s.paths[i])]) or read(s, i, *a))
    monkeypatch.setattr(Clip, "encode_text", lambda clip, t, **k: texts.append(len(t)) or encode(clip, t, **k))
    monkeypatch.setattr(type(start.visual), "forward", lambda v, x: passes.update([id(v)]) or forward(v, x))
    monkeypatch.setenv("WISEFT_CACHE", str(tmp_path / "one"))
    evaluate(start, task, control=[pets], progress=False)
    for_one = Counter(opened)
    for counted in (opened, texts, passes):
        counted.clear()
    monkeypatch.setenv("WISEFT_CACHE", str(tmp_path / "all"))
    table = sweep(start, ends[trained], task, ALPHAS, by=WAYS, control=[pets], batch_size=15, progress=False)
    assert opened == for_one and len(opened) == 60 + 20 + 10
    assert len(table) == (2 + 3 * 3 + 1) * 5
    assert texts.count(len(PETS) * len(TEMPLATES)) == heads
    batches = 4 + 2 + 1  # of pets, reference, line
    assert sorted(passes.values()) == [batches, batches, 3 * batches]  # the ends, and one tower for all averages


def test_a_mix_mixes_what_its_ends_say_with_the_heads_of_the_set(start, ends, pets):
    classifiers = members(start, ends["image"], ALPHAS, WAYS)
    z, f = (logits(classifiers[key], pets) for key in [("", "zero-shot", 0), ("plain", "fine-tuned", 1)])
    assert torch.equal(logits(classifiers["plain", "logits", 0.25], pets), 0.75 * z + 0.25 * f)
    expected = 0.75 * z.softmax(1) + 0.25 * f.softmax(1)
    assert torch.equal(logits(classifiers["plain", "probabilities", 0.25], pets), expected.log())
    by_image = next(m for m in classifiers.values() if m.identity["method"] == "DaWin")
    grid = torch.stack([z, *(logits(classifiers["plain", "weight-space", a], pets) for a in ALPHAS), f])
    assert (logits(by_image, pets)[None] == grid).all(2).any(0).all()  # of each image the logits at one α


def test_a_table_has_control_sets_apart(start, ends, pets, task):
    other = replace(pets.subset(range(0, 60, 2)), name="others")
    table, predictions = sweep(start, ends["image"], task, [0.5], control=[pets, other], keep_predictions=True,
                               progress=False, metrics=["accuracy", "KL from start"])
    plain = sweep(start, ends["image"], task, [0.5], progress=False)
    t = table[table.metric == "accuracy"]
    same = t[t.role != "control"].reset_index(drop=True)
    assert same.equals(plain)
    assert set(t[t.role == "control"].dataset) == {"pets", "others", CONTROL_MEAN} and MEAN in set(t.dataset)
    kl = table[table.metric == "KL from start"].set_index(["method", "dataset"]).value
    assert kl["zero-shot", "reference"] == 0 and kl["fine-tuned", "reference"] > kl["weight-space", "reference"] > 0
    lost = forgetting(predictions).set_index(["method", "dataset"])
    def right(method, name):
        frame = predictions.frame(method=method)
        return frame.correct[frame.dataset == name].astype(float).to_numpy()

    a, b = (dict(pets=right(m, "pets"), others=right(m, "others")) for m in ("zero-shot", "fine-tuned"))
    units = {d: list(s.units) for d, s in dict(pets=pets, others=other).items()}
    row = lost.loc["fine-tuned", CONTROL_MEAN]
    assert (row.change, row.low, row.high) == mean_difference(a, b, units)
    assert row.n_sets == 2 and row.fell == (lost.high["fine-tuned"].drop(CONTROL_MEAN) < 0).sum()


def refused(classifier, task, control, message):
    with pytest.raises(ValueError, match=message):
        evaluate(classifier, task, control=control, progress=False)


def test_what_is_no_control_set_is_refused_by_name(start, pets, task):
    wordless = ImageClassifier(replace(start.clip, tokenizer=None), start.head, TASK, TEMPLATES, alpha=0.0)
    refused(wordless, task, pets, "'pets' is a control set. .* has no text tower to read them")
    labels = np.random.default_rng(0).permutation(pets.labels)
    refused(start, task, [replace(pets, labels=labels)], "'pets' is not a control set: .* where guessing gives")
    refused(start, task, [pets, pets], "A control set is called 'pets', a name that the table has")


def test_other_icons_are_what_was_laid_down():
    "Names that mean none of the suite's classes, known to the text tower, from families that nothing was trained on"
    record = json.loads((ROOT / "nbs/reproductions/icons/control.json").read_text())
    about = json.loads(package_data("other-icons.json").read_text())
    families = json.loads((ROOT / "nbs/reproductions/icons/families.json").read_text())["families"]
    assert sha256_file(package_data("other-icons.zip")) == about["sha256"]
    images, suite = control_set("other-icons"), load_suite("icons")
    assert (images.name, images.role, images.classnames) == ("other-icons", "control", about["classes"])
    assert {families[g]["split"] for g in images.groups} == {"test"}
    assert not set(images.units) & set(suite.test.units) and images.counts().between(8, 16).all()
    few = about["near_duplicates"]["classes with too few"]
    assert sorted([*images.classnames, *few]) == sorted(record["classes"])
    meant = [n for c, names in CLASSES.items() if c in suite.classnames for n in names]
    assert not {n for names in record["classes"].values() for n in names} & {*meant, *suite.classnames}
    excluded = {f.replace(":", ".", 1) for files in record["excluded"].values() for f in files}
    assert not excluded & {p.stem for p in images.paths}
    assert not unseen_words(load_clip(), images.classnames)


@pytest.mark.slow
def test_a_bench_with_control_sets(tmp_path):
    "Control is judged in the same pass, stands in no mean, and is the plan's; answers say what the curves say"
    suite, first = small()
    first = zeroshot_classifier(load_clip(), suite.classnames, "icons")
    control = control_set("other-icons")
    control = control.subset(range(0, len(control), 40))
    settings = dict(say=lambda line: None, **PIECES | dict(seeds=(0,)))
    plain = bench(suite, first, tmp_path / "plain", ["LiNeS"], **settings)
    result = bench(suite, first, tmp_path / "a", ["LiNeS"], control=[control], answers=True, **settings)
    curves = result.curves()
    same = ["method", "alpha", "reference", "shifted", "kl"]
    assert curves[same].equals(plain.curves()[same]) and (curves.kl[curves.alpha == 0] == 0).all()
    assert (curves.kl[curves.alpha == 1] > 0).all() and "control" not in plain.curves()
    own = evaluate(first, suite, control=[control], progress=False).set_index("dataset").value
    assert (curves.control[curves.alpha == 0] == own["other-icons"]).all()
    by_set = result.accuracies().query("method == 'zero-shot'").set_index("dataset")
    assert by_set.role["other-icons"] == by_set.role[CONTROL_MEAN] == "control" and by_set.role["solid"] == "shift"
    with np.load(tmp_path / "a/answers/plain, lr 0.001, seed 0.test.npz") as kept:
        for d, right in result.entries["plain"].curves[0].test.items():
            assert (right == (kept[f"answer {d}"] == kept[f"label {d}"])).all()
            assert kept[f"confidence {d}"].shape == right.shape
        assert set(kept["classes"]) == {*suite.classnames, *control.classnames}
    plan = json.loads((tmp_path / "a/plan.json").read_text())
    assert plan["control"] == {"other-icons": control.fingerprint}
    with pytest.raises(ValueError, match="another plan: control was"):
        bench(suite, first, tmp_path / "a", ["LiNeS"], **settings)
    assert "What else was forgotten" in write_bench_report(result, tmp_path / "a.html").read_text()
    wrong = replace(control, labels=np.random.default_rng(0).permutation(control.labels))
    with pytest.raises(ValueError, match="'other-icons' is not a control set"):
        bench(suite, first, tmp_path / "c", ["LiNeS"], control=[wrong], **settings)


def test_a_set_that_was_fine_tuned_on_is_no_control_set(start, ends, pets, task):
    finetuned = ends["image"].copy()
    finetuned.recipe = dict(finetuned.recipe, images=f"{pets.fingerprint}, {len(pets)}")
    with pytest.warns(UserWarning, match="was fine-tuned on images of pets.* A control set is of another task"):
        evaluate(dict(before=start, after=finetuned), task, control=[pets], progress=False)


def test_a_report_shows_what_was_forgotten(tmp_path, start, ends, pets, task):
    table, predictions = sweep(start, ends["image"], task, [0.5], control=[pets], keep_predictions=True, progress=False)
    images = task.datasets() | dict(pets=pets)
    page = write_report(table, tmp_path / "r.html", predictions=predictions, images=images).read_text()
    lost = forgotten_images(predictions)
    right = {m: predictions.frame(method=m).query("role == 'control'").correct.astype(bool) for m in
             ("zero-shot", "fine-tuned", "weight-space")}
    was_lost = right["zero-shot"].to_numpy() & ~right["fine-tuned"].to_numpy()
    assert len(lost) == was_lost.sum() and lost.back.sum() == right["weight-space"].to_numpy()[was_lost].sum()
    assert f"Of 60 images {len(lost)} were forgotten" in page and 'data-kind="control"' in page
    assert html.escape(say_forgetting(forgetting(predictions))).split(": ")[0] in page[:page.index("<figure")]
    what = page[page.index("What it forgot</h2>"):]
    assert what[:what.index("<h2 ")].count('class="small"') == min(12, len(lost))
    value = table.set_index(["method", "dataset"]).value["weight-space", CONTROL_MEAN]
    assert f'<td class="n">{100 * value:.1f}</td>' in page[page.index("Accuracy in percent"):]
    predictions.members = [m for m in predictions.members if m[0]["method"] in ("zero-shot", "fine-tuned")]
    ends_alone = table[table.method.isin(["zero-shot", "fine-tuned"])]
    page = write_report(ends_alone, tmp_path / "e.html", predictions=predictions).read_text()
    assert f"Of 60 images {len(lost)} were forgotten.</p>" in page


def copied(images, names, most, folder):
    "A folder of class folders, with some icons of each class."
    for name in names:
        (folder / name).mkdir(parents=True)
        own = [p for p, y in zip(images.paths, images.labels) if images.classnames[y] == name]
        for path in own[:most]:
            shutil.copy(path, folder / name / path.name)


@pytest.mark.slow
def test_the_command_line_takes_a_folder_with_other_classes(tmp_path):
    icons, names = load_suite("icons"), ["bell", "book", "house", "key"]
    start = zeroshot_classifier(load_clip(), ["camera", "heart", "star"], "icons")
    start.save(tmp_path / "zeroshot")
    shaken(start).save(tmp_path / "finetuned")
    copied(icons.test, start.classnames, 6, tmp_path / "photos/test")
    copied(icons.shifts["solid"], start.classnames, 6, tmp_path / "other")
    copied(icons.test, names, 8, tmp_path / "pets")
    line = "sweep zeroshot finetuned --reference photos --shift other --control pets/ --alphas 0.3,0.6 -o t.csv"
    done = wiseft(*line.split(), cwd=tmp_path)
    assert "On control set pets (32 images), against the initial model: fine-tuned -" in done.stderr
    assert "; weight-space at α = 0.6 " in done.stderr
    t = read_results(tmp_path / "t.csv")
    pets = t[(t.dataset == "pets") & (t.method == "zero-shot")]
    own = evaluate(zeroshot_classifier(start.clip, names), tmp_path / "pets", progress=False).value[0]
    assert pets.value.tolist() == [own] and pets.role.tolist() == ["control"]
    line = "report t.csv --reference photos --shift other --control pets -o report.html"
    done = wiseft(*line.split(), cwd=tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "no pictures" not in done.stderr and "What it forgot" in page
    assert "mean over" not in page.split("</title>")[0], "the title names sets"
    line = "evaluate zeroshot finetuned --reference photos --control pets --metrics"
    done = wiseft(*line.split(), "accuracy,KL from start", cwd=tmp_path)
    assert "KL from start" in done.stdout and "pets" in done.stdout
    assert "against the initial model: fine-tuned -" in done.stderr
