"Merging files needs the memory of a few tensors, not of the models."
import sys

import pytest
import torch
from conftest import python

from wiseft.weights.safetensors_io import TensorFile, write_tensors
from wiseft.weights.tensors import weighted_sum

MERGE = """
import sys
from wiseft.weights.files import merge_files
def peak(): return next(int(l.split()[1])/1024 for l in open('/proc/self/status') if l.startswith('VmHWM'))  # MiB
before = peak()
merge_files(sys.argv[1:3], [.75, .25], sys.argv[3])
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_memory_of_a_merge(tmp_path):
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for i, path in enumerate(paths[:2]):
        # 200 MiB in 50 tensors
        write_tensors(path, {f"layer{k}": torch.full((1 << 20,), k + 0.1 * i) for k in range(50)})
    assert paths[0].stat().st_size > 200 * 2**20
    used = float(python("-c", MERGE, *paths, timeout=300).stdout)
    print(f"{used:.0f} MiB")
    assert used < 60, f"merging two files of 200 MiB took {used:.0f} MiB"
    a, b, merged = (TensorFile(p)["layer7"] for p in paths)
    assert torch.equal(merged, weighted_sum([a, b], [0.75, 0.25]))
