"`wiseft merge`: what its page shows after a training, whose numbers other machines may not repeat."
import torch
from tests.shell.test_cli import wiseft

from wiseft.weights.safetensors_io import write_tensors


def test_a_dry_run_says_that_nothing_is_missing(tmp_path):
    for name in "a", "b":
        write_tensors(tmp_path / f"{name}.safetensors", dict(weight=torch.ones(2)))
    done = wiseft("merge", "a.safetensors", "b.safetensors", "--dry-run", "-o", "c.safetensors", cwd=tmp_path)
    assert done.stderr.strip() == "nothing is missing: a.safetensors, b.safetensors can be merged"
    assert not (tmp_path / "c.safetensors").exists()
