"Mutated checkpoints: a state dict or a BadFile that names the file, whatever the bytes."
import io
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wiseft.checkpoints import read_state_dict
from wiseft.text import BadFile


def seed(zipped):
    "A small file of PyTorch's."
    file = io.BytesIO()
    state = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2).half()}
    torch.save({"epoch": 1, "state_dict": state}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


SEEDS = [seed(True), seed(False), b"\x80\x02Nr\xff\xff\xff\x0f."]
CHANGES = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=8)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, deadline=10_000, suppress_health_check=[HealthCheck.function_scoped_fixture],
          derandomize=True)
@given(start=st.sampled_from(SEEDS), changes=CHANGES)
def test_pickles(start, changes, tmp_path):
    data = bytearray(start)
    for place, value in changes:
        data[place % len(data)] = value
    path = Path(tmp_path) / "mutated.pt"
    path.write_bytes(data)
    try:
        state = read_state_dict(path)
    except BadFile as e:
        assert "mutated.pt" in str(e)
    else:
        assert sum(t.numel() * t.element_size() for t in state.values()) <= 100 * len(data)
