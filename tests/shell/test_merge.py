"`wiseft merge`: what its page shows after a training, whose numbers other machines may not repeat."
import torch
from tests.shell.test_cli import wiseft

from wiseft.shell.merge import _validation_source
from wiseft.weights.safetensors_io import write_tensors


def test_a_dry_run_says_that_nothing_is_missing(tmp_path):
    for name in "a", "b":
        write_tensors(tmp_path / f"{name}.safetensors", dict(weight=torch.ones(2)))
    done = wiseft("merge", "a.safetensors", "b.safetensors", "--dry-run", "-o", "c.safetensors", cwd=tmp_path)
    assert done.stderr.strip() == "nothing is missing: a.safetensors, b.safetensors can be merged"
    assert not (tmp_path / "c.safetensors").exists()


def test_a_suite_of_a_known_name_is_no_folder_that_is_called_like_it(tmp_path, monkeypatch):
    "In a recipe, a folder stands by its whole path, and a suite by its name"
    monkeypatch.chdir(tmp_path)
    for name in "icons", "mine":
        (tmp_path / name).mkdir()
    sources = [_validation_source(name, None)["suite"] for name in ("icons", "mine", "nowhere")]
    assert sources == ["icons", str(tmp_path / "mine"), "nowhere"]
