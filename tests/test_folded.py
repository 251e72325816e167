"Methods whose weights are made of parts, or which train a part: what comes out is a plain classifier."
import onnxruntime
import pytest
import torch
from wiseft.data.suites import load_suite
from wiseft.methods.lora import lora
from wiseft.methods.prolip import prolip
from wiseft.methods.r_adapter import r_adapter
from wiseft.models.export import export_classifier
from wiseft.models.load import load_classifier
from wiseft.models.testing import pico_classifier
from wiseft.train.learner import clip_learner
from wiseft.train.loaders import clip_dataloaders
from wiseft.weights.merge import interpolate


@pytest.mark.parametrize("method", [lora, r_adapter, prolip])
def test_saved_reloaded_exported_and_averaged(method, tmp_path):
    "Unfolded, folded, reloaded and exported say the same, and an average is made of plain weights."
    suite = load_suite("icons")
    start = pico_classifier(suite.classnames, transformer=True)
    images, watched = suite.train.subset(range(0, 1800, 90)), suite.validation.subset(range(4))
    dls = clip_dataloaders(images, start, 10, watched, progress=False)
    learn = clip_learner(dls, start, method, progress=False).fit_cosine(2, lr=1e-2)
    pixels = torch.randint(256, (3, 48, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = start.clip.normalise(pixels)
    with torch.no_grad():
        unfolded, folded = learn.student.eval()(x), learn.classifier.eval()
        expected = folded(x)
        assert (expected - start(x)).abs().max() > 1e-2
        torch.testing.assert_close(unfolded, expected, rtol=1e-5, atol=1e-5)
        again = load_classifier(folded.save(tmp_path/"tuned"))
        torch.testing.assert_close(again(x), expected, rtol=1e-5, atol=1e-5)
        half = interpolate(start, again, .5)
    assert list(half.state_dict()) == list(start.state_dict())
    export_classifier(half, "onnx", tmp_path/"half.onnx")
    said, = onnxruntime.InferenceSession(tmp_path/"half.onnx").run(None, dict(pixels=pixels.numpy()))
    torch.testing.assert_close(torch.from_numpy(said), half(x).detach(), rtol=1e-5, atol=1e-5)
