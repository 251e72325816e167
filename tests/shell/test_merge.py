"`wiseft merge`: what its page shows after a training, whose numbers other machines may not repeat."
import pytest
import torch
from tests.shell.test_cli import wiseft
from typer.testing import CliRunner

from wiseft.shell.cli import app
from wiseft.shell.merge import _validation_source
from wiseft.weights.checkpoints import read_state_dict
from wiseft.weights.merge import interpolate
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


def test_files_of_pytorch(tmp_path, monkeypatch):
    "`wiseft merge a.pt b.pt` asked for a conversion; the error for another output says what it is called"
    monkeypatch.chdir(tmp_path)
    states = [{"w": torch.full((2, 2), float(v)), "n": torch.tensor(3)} for v in (0, 1)]
    torch.save(states[0], "a.pt")
    torch.save(dict(state_dict={f"module.{k}": t for k, t in states[1].items()}, epoch=3), "b.pt")
    done = CliRunner().invoke(app, ["merge", "a.pt", "b.pt", "-o", "c"])
    assert done.exit_code == 1 and "Call it c.safetensors." in done.output
    done = CliRunner().invoke(app, ["merge", "a.pt", "b.pt", "--alpha", "0.25", "-o", "c.safetensors"])
    assert done.exit_code == 0, done.output
    assert read_state_dict("c.safetensors")["w"].tolist() == [[.25, .25]]*2
    for again in ["merge", "c.recipe.yml", "-o", "d.safetensors"], ["merge", "c.recipe.yml", "--dry-run", "-o", "e"]:
        done = CliRunner().invoke(app, again)
        assert done.exit_code == 0, done.output
    with pytest.raises(TypeError, match=r"interpolate\(read_state_dict\('a.pt'\), read_state_dict\('b.pt'\)\)"):
        interpolate("a.pt", "b.pt", .5)
    with pytest.raises(TypeError, match=r"interpolate\(before.state_dict\(\), after.state_dict\(\)\)"):
        interpolate(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
