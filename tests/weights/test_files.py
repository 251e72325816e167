"Merging files needs the memory of a few tensors, not of the models."
import sys

import pytest
import torch
from conftest import python

from wiseft.weights.files import merge_files, write_merged
from wiseft.weights.recipes import merge_by_recipe
from wiseft.weights.safetensors_io import TensorFile, write_tensors
from wiseft.weights.tensors import weighted_sum

PEAK = """
import sys
from wiseft.weights.files import merge_files
from wiseft.weights.recipes import merge_by_recipe
def peak(): return next(int(l.split()[1])/1024 for l in open('/proc/self/status') if l.startswith('VmHWM'))  # MiB
before = peak()
{}
print(peak() - before)
"""
MERGES = {
    "average": "merge_files(['0.safetensors', '1.safetensors'], [.75, .25], 'out.safetensors')",
    "recipe": "merge_by_recipe('recipe.yml', 'out.safetensors')",
}
RECIPE = """
merge_method: linear
models:
- {model: 0.safetensors, parameters: {weight: [{filter: layer, value: 3}, {value: 1}]}}
- {model: 1.safetensors, parameters: {weight: 1}}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
@pytest.mark.parametrize("merge", MERGES)
def test_memory_of_a_merge(merge, tmp_path):
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    (tmp_path / "recipe.yml").write_text(RECIPE)
    for i, path in enumerate(paths):
        # 200 MiB in 50 tensors
        write_tensors(path, {f"layer{k}": torch.full((1 << 20,), k + 0.1 * i) for k in range(50)})
    assert paths[0].stat().st_size > 200 * 2**20
    used = float(python("-c", PEAK.format(MERGES[merge]), timeout=900, cwd=tmp_path).stdout)
    print(f"{used:.0f} MiB")
    assert used < 60, f"merging two files of 200 MiB took {used:.0f} MiB"
    a, b, merged = (TensorFile(p)["layer7"] for p in (*paths, tmp_path / "out.safetensors"))
    assert torch.equal(merged, weighted_sum([a, b], [0.75, 0.25]))


def test_integers_keep_their_place_when_weights_become_smaller(tmp_path):
    state = dict(a=torch.arange(4.), m=torch.tensor([7, 8], dtype=torch.int32), z=torch.ones(3))
    write_tensors(tmp_path / "0.safetensors", state)
    write_merged(None, [tmp_path / "0.safetensors"], tmp_path / "out.safetensors", "uniform soup", dtype=torch.float16)
    merged = TensorFile(tmp_path / "out.safetensors").read()
    assert all(torch.equal(merged[k].to(t), t) for k, t in state.items())


def test_a_recipe_lies_beside_a_merge_that_can_be_carried_out_again(tmp_path):
    "Not where the result replaces one of its models."
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for i, path in enumerate(paths):
        write_tensors(path, dict(a=torch.full((2,), float(i))))
    merge_files(paths, None, tmp_path / "out.safetensors")
    again = merge_by_recipe(tmp_path / "out.recipe.yml", tmp_path / "again.safetensors")
    assert TensorFile(again)["a"].tolist() == TensorFile(tmp_path / "out.safetensors")["a"].tolist() == [.5, .5]
    merge_files(paths, None, paths[0], force=True)
    assert TensorFile(paths[0])["a"].tolist() == [.5, .5]
    assert not (tmp_path / "0.recipe.yml").exists()
