"Image models have the weights of the file that is given."
import torch
from conftest import later

from wiseft.weights.checkpoints import write_state_dict

load_vision = later("wiseft.models.vision", "load_vision")
resnet18 = later("torchvision.models", "resnet18")


def test_a_model_of_torchvision_has_the_weights_of_its_file(tmp_path):
    "Without them it would be a model of random weights, which nothing tells from one that learned badly."
    state = resnet18().state_dict()
    torch.save(state, tmp_path / "weights.pth")
    write_state_dict(state, tmp_path / "weights.safetensors")
    for file in tmp_path.iterdir():
        clip = load_vision("torchvision:resnet18", file)
        loaded = {k.removeprefix("visual.trunk."): t for k, t in clip.model.state_dict().items()}
        assert torch.equal(loaded["conv1.weight"], state["conv1.weight"])
        assert torch.equal(loaded["layer4.1.bn2.running_var"], state["layer4.1.bn2.running_var"])
        assert torch.equal(clip.own_head.weight, state["fc.weight"])
