"LoRA on every kind of image tower."
import pytest
import torch
from conftest import later
from tests.models.test_load import NAMES, TEMPLATES, folders  # noqa: F401, a fixture

from wiseft.methods.lora import lora
from wiseft.models.classifier import zeroshot_classifier
from wiseft.models.clip import load_clip

parametrized, plain_weights = later("wiseft.train.trainable", "parametrized", "plain_weights")


@pytest.mark.parametrize("kind, n", [("vit", 2), ("timm-vit", 6), ("siglip", 6), ("coca", 1)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_trains_every_kind_of_transformer(folders, kind, n, checkpointing):
    "Attention and MLP of all blocks get gradients, also where layers are computed twice, and merge into plain weights."
    clip = load_clip(f"local-dir:{folders(kind)}", device="cpu")
    start = zeroshot_classifier(clip, NAMES, TEMPLATES)
    low = start.copy()
    lora(low, rank=2)
    assert len(parametrized(low)) == 4*n
    low.visual.set_grad_checkpointing(checkpointing)
    for name, p in low.named_parameters():
        if name.endswith(".B"):
            torch.nn.init.normal_(p, std=0.1)
    x = torch.randn(2, 3, *clip.image_size)
    logits = low.train()(x)
    logits.sum().backward()
    trained = [p for p in low.parameters() if p.requires_grad]
    head = list(low.head.parameters())
    assert len(trained) == 2*4*n + len(head) and all(p.grad is not None and p.grad.any() for p in trained)
    merged = plain_weights(low.eval())
    torch.testing.assert_close(merged(x), low(x), rtol=1e-4, atol=1e-4)
    assert list(merged.state_dict()) == list(start.state_dict()) and merged.hash != start.hash


@pytest.mark.parametrize("kind", ["resnet", "convnext"])
def test_lora_is_refused_to_other_towers(folders, kind):
    start = zeroshot_classifier(load_clip(f"local-dir:{folders(kind)}", device="cpu"), NAMES, TEMPLATES)
    with pytest.raises(ValueError, match="LoRA needs a transformer as image tower"):
        lora(start)
