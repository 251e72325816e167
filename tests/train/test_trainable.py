"Methods whose weights are made of parts, or which train a part: what comes out is a plain classifier."
import pytest
import torch

from conftest import later
from wiseft.data.suites import load_suite
from wiseft.methods.index import all_methods
from wiseft.models.export import export_classifier
from wiseft.models.load import load_classifier
from wiseft.models.testing import pico_classifier
from wiseft.weights.merge import interpolate
from wiseft.base.lazy import Later

clip_dataloaders = later("wiseft.train.loaders", "clip_dataloaders")
clip_learner = later("wiseft.train.learner", "clip_learner")

onnxruntime = Later("onnxruntime")


@pytest.mark.parametrize("name", ["LoRA", "R-Adapter", "ProLIP"])
def test_saved_reloaded_exported_and_averaged(name, tmp_path):
    "Unfolded, folded, reloaded and exported say the same, and an average is made of plain weights."
    suite = load_suite("icons")
    start = pico_classifier(suite.classnames, transformer=True)
    images, watched = suite.train.subset(range(0, 1800, 90)), suite.validation.subset(range(4))
    dls = clip_dataloaders(images, start, 10, watched, progress=False)
    learn = clip_learner(start, dls, all_methods()[name].function, progress=False).fit_cosine(2, lr=1e-2)
    pixels = torch.randint(256, (3, 48, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = start.transform.normalize(pixels)
    with torch.no_grad():
        unfolded, folded = learn.student.eval()(x), learn.classifier.eval()
        expected = folded(x)
        assert (expected - start(x)).abs().max() > 1e-2
        torch.testing.assert_close(unfolded, expected, rtol=1e-5, atol=1e-5)
        again = load_classifier(folded.save(tmp_path/"finetuned"))
        torch.testing.assert_close(again(x), expected, rtol=1e-5, atol=1e-5)
        half = interpolate(start, again, .5)
    assert list(half.state_dict()) == list(start.state_dict())
    export_classifier(half, "onnx", tmp_path/"half.onnx")
    logits, = onnxruntime.InferenceSession(tmp_path/"half.onnx").run(None, dict(pixels=pixels.numpy()))
    torch.testing.assert_close(torch.from_numpy(logits), half(x).detach(), rtol=1e-5, atol=1e-5)
