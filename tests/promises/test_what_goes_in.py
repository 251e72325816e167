"What you hold in Python goes in: every object with every function, with the same answers as the folder of its images."
import json
import re
import warnings
from importlib.util import find_spec
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, later, slow_except
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import wiseft
from wiseft.base.lazy import Later, open_clip, timm, torchvision
from wiseft.base.progress import SAID
from wiseft.data.images import ImageSet
from wiseft.data.labels import image_folder
from wiseft.data.suites import Suite, folder_suite
from wiseft.models.testing import pico_classifier

bench = later("wiseft.bench.run", "bench")
clip_dataloaders = later("wiseft.train.loaders", "clip_dataloaders")
ImageFolder = later("torchvision.datasets", "ImageFolder")
T, v2 = Later("torchvision.transforms"), Later("torchvision.transforms.v2")
datasets = Later("datasets") if find_spec("datasets") else None

NAMES, EACH = ["cat", "dog"], 10


class Pets(Dataset):
    "A dataset of one's own"
    def __init__(self, pixels, labels, transform=None):
        self.pixels, self.labels_, self.transform = pixels, labels, transform

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, i):
        image = Image.fromarray(self.pixels[i])
        return (self.transform(image) if self.transform else image), int(self.labels_[i])


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    "The folder of images, and what somebody may hold instead of it, by name"
    folder = tmp_path_factory.mktemp("held") / "pets"
    rng, labels = np.random.default_rng(0), np.repeat([0, 1], EACH)
    pixels = rng.integers(0, 200, (2*EACH, 48, 48, 3), dtype=np.uint8)
    pixels[labels == 1, :, :24] += 50
    for i, (x, y) in enumerate(zip(pixels, labels)):
        (folder / NAMES[y]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(x).save(folder / NAMES[y] / f"{i:02}.png")
    images, transform = image_folder(folder), pico_classifier(NAMES).transform
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    objects = {
        "files": ([str(p) for p in images.paths], labels),
        "pairs": [(str(p), NAMES[y]) for p, y in zip(images.paths, labels)],
        "DataFrame": pd.DataFrame(dict(file=[str(p) for p in images.paths], label=np.array(NAMES)[labels])),
        "PIL images": ([Image.fromarray(x) for x in pixels], np.array(NAMES)[labels]),
        "array": (pixels, labels),
        "tensor": (tensor, torch.tensor(labels)),
        "floats": (tensor.float()/255, labels.tolist()),
        "ImageFolder": ImageFolder(str(folder)),
        "Dataset": Pets(pixels, labels),
        "ToTensor": Pets(pixels, labels, T.ToTensor()),
        "TensorDataset": TensorDataset(tensor, torch.tensor(labels)),
        "Subset": Subset(ImageFolder(str(folder)), range(2*EACH)),
        "DataLoader": DataLoader(Pets(pixels, labels, transform), batch_size=7),
        "ImageSet": images,
    }
    if datasets:
        datasets.disable_progress_bars()
        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=NAMES))
        rows = [dict(image=Image.fromarray(x), label=int(y)) for x, y in zip(pixels, labels)]
        objects["Hugging Face"] = datasets.Dataset.from_list(rows, features=features)
        objects["Hugging Face"].save_to_disk(folder.parent / "arrow")
        objects["Arrow"] = folder.parent / "arrow"
        objects["Hugging Face"].to_parquet(folder.parent / "pets.parquet")
        objects["parquet"] = folder.parent / "pets.parquet"
    return str(folder), objects


OBJECTS = ["files", "pairs", "DataFrame", "PIL images", "array", "tensor", "floats", "ImageFolder", "Dataset",
           "ToTensor", "TensorDataset", "Subset", "DataLoader", "ImageSet", "Hugging Face", "Arrow", "parquet"]
quick = dict(epochs=1, batch_size=8, precision="fp32", progress=False)


def start(seed=0):
    return pico_classifier(NAMES, seed)


def end():
    "Another end of a path, near the start"
    other, noise = start().copy(), torch.Generator().manual_seed(1)
    other.alpha = 1.
    with torch.no_grad():
        for p in other.visual.parameters():
            p += .02*torch.randn(p.shape, generator=noise)
    return other


def first_batch(dls):
    "Of validation images"
    return wiseft.clip_learner(start(), dls, progress=False).dls.valid.one_batch()[0].sum().item()


def bench_of(images):
    "A bench with the images as a shifted set, too"
    return curves_of(folder_suite(images, dict(again=images), classnames=NAMES))


def curves_of(suite):
    with TemporaryDirectory() as folder:
        found = bench(suite, start(), folder, ["logits"], (0,), (1e-3,), say=lambda line: None, **quick)
        return found.curves().to_csv()


FUNCTIONS = {
    "finetune": lambda images: wiseft.finetune(start(), images, **quick).hash,
    "linear_probe": lambda images: wiseft.linear_probe(start().clip, NAMES, images, **quick).hash,
    "clip_learner": first_batch,
    "evaluate": lambda images: wiseft.evaluate(start(), images, progress=False).value.tolist(),
    "sweep": lambda images: wiseft.sweep(start(), end(), images, [0, .5, 1], progress=False).value.tolist(),
    "choose_alpha": lambda images: float(wiseft.choose_alpha(start(), end(), images, progress=False)),
    "classify": lambda images: wiseft.classify(start(), images, progress=False).probability.tolist(),
    "bench(folder_suite(…))": bench_of,
}
TRAINING = "finetune", "linear_probe", "clip_learner", "bench(folder_suite(…))"
REFUSED = {("DataLoader", f): "clip_learner" for f in TRAINING}


@pytest.fixture(scope="module")
def answers(held):
    return {}


@pytest.mark.filterwarnings("ignore:.*all .* test images|.*shares|.*guessing|.*test images are|.*validation images")
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", slow_except(OBJECTS, ["array", "Dataset", "DataLoader"]))
def test_same_answers_as_the_folder(held, answers, name, function):
    folder, objects = held
    if name not in objects:
        pytest.skip("datasets is not installed")
    source = objects[name]
    if name == "files" and function == "classify":
        source = source[0]
    if (name, function) in REFUSED:
        with pytest.raises(TypeError, match=REFUSED[name, function]):
            FUNCTIONS[function](source)
        return
    if function not in answers:
        answers[function] = FUNCTIONS[function](folder)
    expected = answers[function]
    if name == "ImageSet" and function in ("finetune", "linear_probe", "clip_learner", "choose_alpha"):
        if function == "choose_alpha":  # it chooses on all of them
            expected = FUNCTIONS[function](image_folder(folder))
        else:
            train, validation = image_folder(folder).split((.1,))
            expected = {
                "finetune": lambda: wiseft.finetune(start(), train, validation, **quick).hash,
                "linear_probe": lambda: wiseft.linear_probe(start().clip, NAMES, train, validation, **quick).hash,
                "clip_learner": lambda: first_batch(clip_dataloaders(train, start(), 8, validation)),
            }[function]()
    assert FUNCTIONS[function](source) == expected


def test_splits(held):
    "A dict of splits, as a `DatasetDict` of Hugging Face is one"
    folder, objects = held
    pixels, labels = objects["array"]
    parts = dict(train=slice(None, None, 2), validation=slice(1, None, 4), test=slice(3, None, 4))
    split = {name: (pixels[part], labels[part]) for name, part in parts.items()}
    suite = Suite.of(split, NAMES)
    assert [len(s) for s in suite.sets().values()] == [10, 5, 5]
    assert len(Suite.of(folder).train) == 16 == len(Suite.of(objects["array"], NAMES).train)
    if not datasets:
        return
    some = objects["Hugging Face"].train_test_split(.25, seed=0)
    assert list(wiseft.evaluate(start(), datasets.DatasetDict(some), progress=False).n) == [5]
    some.save_to_disk(folder + " in splits")
    assert len(Suite.of(folder + " in splits").test) == 5


@pytest.mark.filterwarnings("ignore:.*all .* test images|.*shares|.*test images are|.*validation images")
def test_learner_and_bench_take_a_suite(held, tmp_path):
    folder, objects = held
    suite = folder_suite(folder, dict(again=folder))
    assert first_batch(suite) == first_batch(folder)
    for part in "reference", "again":
        (tmp_path / part).symlink_to(folder)
    assert len(curves_of(tmp_path)) == len(curves_of(suite))
    for source in folder, objects["array"]:
        with pytest.raises(ValueError, match=r"no shifted set. Give folder_suite\("):
            curves_of(source)


def test_one_picture(held):
    "A file, a PIL image, an array, and a tensor are the same picture"
    folder, objects = held
    pixels = objects["array"][0][0]
    expected = start().predict_image(objects["files"][0][0])
    for picture in Image.fromarray(pixels), pixels, torch.from_numpy(pixels).permute(2, 0, 1)/255:
        assert start().predict_image(picture).equals(expected)
        assert wiseft.classify(start(), picture, progress=False)["class"][0] == expected.index[0]


# ---------- models ----------


class Net(nn.Module):
    "A model of one's own"
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 5, stride=4), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x).relu().mean((2, 3)))


def own_transform(image):
    return T.functional.to_tensor(image.resize((32, 32)).transpose(Image.Transpose.FLIP_LEFT_RIGHT))


MODELS = {
    "timm": lambda: (timm.create_model("test_resnet"), None),
    "torchvision": lambda: (torchvision.models.resnet18(), T.Compose(
        [T.Resize(64), T.CenterCrop(48), T.ToTensor(), T.Normalize([.5]*3, [.2]*3)])),
    "v2": lambda: (Net(), v2.Compose([
        v2.Resize((32, 32)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([.5]*3, [.2]*3)])),
    "not normalized": lambda: (Net(), T.Compose([T.Resize((32, 32)), T.ToTensor()])),
    "its own": lambda: (Net(), own_transform),
}


@pytest.mark.filterwarnings("ignore:The transform")
@pytest.mark.parametrize("model", MODELS)
def test_your_own_model(held, tmp_path, model):
    "A probe, a fine-tuning, an evaluation, and a saved folder"
    folder, _ = held
    module, transform = MODELS[model]()
    probe = wiseft.linear_probe(module, NAMES, folder, transform=transform, **quick)
    picture = Image.open(next(image_folder(folder).paths.__iter__()))
    if transform is not None:
        assert torch.allclose(probe.transform(picture), transform(picture), atol=1e-6)
    finetuned = wiseft.finetune(probe, folder, lr=1e-3, **quick)
    assert finetuned.hash != probe.hash
    table = wiseft.evaluate(finetuned, folder, progress=False)
    finetuned.save(tmp_path / "saved")
    own = transform if model == "its own" else None
    again = wiseft.load_classifier(tmp_path / "saved", module=module, transform=own)
    assert wiseft.evaluate(again, folder, progress=False).value.tolist() == table.value.tolist()


@pytest.mark.filterwarnings("ignore")
def test_your_own_trained_model(held):
    "The ends of a sweep are the module's own logits, before and after training"
    ends = [Net(), Net()]
    for net in ends:
        net.head = nn.Linear(8, 2)
    ends = {net: wiseft.image_classifier(net, NAMES, own_transform) for net in ends}
    x = torch.rand(3, 3, 32, 32)
    for net, classifier in ends.items():
        assert torch.equal(net.eval()(x), classifier.eval()(x))
    table = wiseft.sweep(*ends.values(), held[0], [0, .5, 1], progress=False)
    assert set(table.alpha) == {0, .5, 1}
    with pytest.raises(TypeError, match="Give linear_probe or image_classifier a transform=…"):
        wiseft.image_classifier(Net(), NAMES)


def test_a_transform_of_ones_own_is_said_once(held):
    with pytest.warns(UserWarning, match="used as it is") as said:
        probe = wiseft.linear_probe(Net(), NAMES, held[0], transform=own_transform, **quick)
        wiseft.finetune(probe, held[0], lr=1e-3, **quick)
    assert len([w for w in said if "used as it is" in str(w.message)]) == 1


def test_model_of_open_clip():
    "It is found among the architectures of open_clip"
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms("ViT-S-32-alt")
    zeroshot = wiseft.zeroshot_classifier(model, NAMES, ["a {}"])
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 250, 3), dtype=np.uint8))
    assert torch.equal(zeroshot.transform(picture), transform(picture))
    with torch.no_grad():
        tokens = open_clip.get_tokenizer("ViT-S-32-alt")([f"a {n}" for n in NAMES])
        texts = nn.functional.normalize(model.encode_text(tokens), dim=1)
        image = nn.functional.normalize(model.encode_image(transform(picture)[None]), dim=1)
        expected = (model.logit_scale.exp()*image @ texts.T).softmax(1)[0]
    assert np.allclose(zeroshot.predict_image(picture)[NAMES], expected, atol=1e-5)


# ---------- what can't go in says what can ----------


@pytest.mark.parametrize("call, words", {
    "DataLoaders": (lambda f, o: wiseft.finetune(start(), clip_dataloaders(f, start(), 8)), r"clip_learner\(cl"),
    "no labels": (lambda f, o: wiseft.finetune(start(), o["array"][0]), r"\(images, labels\)"),
    "numbers": (lambda f, o: wiseft.zeroshot_classifier(3, NAMES), "Expected a Clip"),
    "bytes": (lambda f, o: start().predict_image(b"GIF89a"), "an array, or a tensor; got bytes"),
    "order": (lambda f, o: wiseft.classify(f, start()), r"classify\(classifier, pictures\) takes an Im"),
    "evaluate's order": (lambda f, o: wiseft.evaluate(f, start()), r"evaluate\(classifier, .* not a str"),
    "sweep's order": (lambda f, o: wiseft.sweep(f, start(), end()), r"sweep\(zeroshot, .* not a str"),
    "choose_alpha's order": (lambda f, o: wiseft.choose_alpha(f, start(), end()), r"choose_alpha\(.* not a str"),
    "bench's order": (lambda f, o: bench(start(), f, "b"), r"bench\(suite, zeroshot, folder\) .* not a str"),
    "a module": (lambda f, o: wiseft.sweep(Net(), Net(), f), r"not a Net.*image_classifier\(MODULE, CL"),
    "images last": (lambda f, o: wiseft.sweep(start(), end(), start()), "labeled images: .*; got ImageClassifier"),
    "finetune's order": (lambda f, o: wiseft.finetune(Suite.of(f), start()), "takes an ImageClassifier, not a Suite"),
    "learner's order": (lambda f, o: wiseft.clip_learner(clip_dataloaders(f, start(), 8), start()), r"r\(classifier,"),
    "bs": (lambda f, o: wiseft.finetune(start(), f, bs=16), "called batch_size"),
    "no transform": (lambda f, o: wiseft.linear_probe(Net(), NAMES, f), "Give linear_probe or image_classifier a tr"),
}.values(), ids=lambda o: "")
def test_the_message(held, call, words):
    with pytest.raises(TypeError, match=words):
        call(*held)


def test_normalized_images_are_refused(held):
    pixels, labels = held[1]["array"]
    with pytest.raises(ValueError, match="before any normalization"):
        wiseft.finetune(start(), (pixels/127.5-1, labels), **quick)


@pytest.mark.parametrize("normalized", [True, False])
def test_a_loader_without_normalization_gets_a_warning(held, normalized):
    (pixels, labels), transform = held[1]["array"], start().transform
    if not normalized:
        transform = T.Compose([T.Resize(transform.settings["size"]), T.ToTensor()])
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        wiseft.evaluate(start(), DataLoader(Pets(pixels, labels, transform), batch_size=7), progress=False)
    assert any("not normalized as this CLIP's" in str(w.message) for w in messages) != normalized


def test_a_loader_of_another_size(held):
    (pixels, labels), transform = held[1]["array"], start().transform
    larger = T.Compose([T.Resize(64), T.ToTensor(), T.Normalize(transform.settings["mean"], transform.settings["std"])])
    with pytest.raises(ValueError, match=r"gives images of \(64, 64\) pixels, and the model takes \(48, 48\)"):
        wiseft.evaluate(start(), DataLoader(Pets(pixels, labels, larger), batch_size=7), progress=False)


def test_which_images_validate_is_said(held, capsys):
    folder, o = held
    SAID.clear()  # other tests may have heard it
    wiseft.choose_alpha(start(), end(), folder, progress=False)
    assert "2 of 20 images are held out, as in finetune" in capsys.readouterr().out
    suite = folder_suite(dict(train=o["ImageFolder"], validation=o["Dataset"]), [], classnames=NAMES)
    assert [len(s) for s in (suite.train, suite.validation, suite.test)] == [18, 2, 20]
    assert "the validation images are taken as one" in capsys.readouterr().err
    assert "weight-space" in set(wiseft.sweep(start(), end(), suite, by="weight-space", progress=False).method)


def test_the_page_says_so():
    "The table of objects, cell by cell"
    page = json.loads((ROOT / "nbs/howto/what_goes_in.ipynb").read_text(encoding="utf-8"))
    text = "\n".join("".join(cell["source"]) for cell in page["cells"]).partition("| you have |")[2]
    _, *rows = [[c.strip() for c in row[1:-1].split("|")] for row in text.splitlines() if row.startswith("|")]
    rows = {name: set(re.findall(r"`([^`]+)`", not_with)) for name, _, not_with in rows}
    assert set(rows) == set(OBJECTS) - {"ToTensor", "TensorDataset", "Subset"}
    for name, not_with in rows.items():
        assert not_with == {function for function in FUNCTIONS if (name, function) in REFUSED}


def test_columns_of_a_table_are_classified(held):
    table = held[1]["DataFrame"]
    expected = wiseft.classify(start(), table["file"].tolist(), progress=False)
    pd.testing.assert_frame_equal(wiseft.classify(start(), table["file"], progress=False), expected)


def test_image_set_of_itself(held):
    images = held[1]["ImageSet"]
    assert isinstance(images, ImageSet) and wiseft.image_set(images) is images
