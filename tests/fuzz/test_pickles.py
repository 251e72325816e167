"Pickles of any instructions in any order: what they hold, or an error; nothing runs, in little time and memory."
import io
import os
import pickle
import pickletools
import resource
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from wiseft.weights.checkpoints import read_checkpoint, read_state_dict
from wiseft.weights.pickle_reader import StubUnpickler
from wiseft.base.text import BadFile

SECONDS = float(os.environ.get("WISEFT_FUZZ_SECONDS", 3))

NAMES = ["posix system", "builtins eval", "builtins getattr", "collections OrderedDict",
         "torch.storage _load_from_bytes", "torch._utils _rebuild_tensor_v2",
         "src.models.modeling ImageClassifier", "torch.nn.modules.linear Linear", "__builtin__ set", "_codecs encode",
         "torch Size", "__torch__ M"]
BLOB = pickle.dumps(nn.Linear(2, 2), 2)
TEXT = [op.code.encode("latin1") for op in pickletools.opcodes if op.arg is None and op.name != "STOP"]
ARGUED = [b"X\x02\x00\x00\x00hi", b"K\x01", b"J\xff\xff\xff\x7f", b"\x8a\x09" + b"\x7f" * 9, b"U\x05touch", b"h\x00",
          b"q\x00", b"r\xff\xff\xff\x7f", b"G" + bytes(8),
          b"B\x03\x00\x00\x00abc", b"B\xff\xff\xff\x7fabc", b"\x8e" + b"\xff" * 8, b"\x95" + b"\xff" * 8, b"\x82\x01",
          b"B" + len(BLOB).to_bytes(4, "little") + BLOB]
INSTRUCTIONS = TEXT + ARGUED + [b"c" + n.replace(" ", "\n").encode() + b"\n"
                                for n in NAMES] + [b"i" + n.replace(" ", "\n").encode() + b"\n" for n in NAMES]
programs = st.lists(st.sampled_from(INSTRUCTIONS), max_size=60).map(lambda parts: b"\x80\x02" + b"".join(parts) + b".")


def bounded(check, inputs):
    "Run a check on generated inputs for as long as there is time."
    end = time.monotonic() + SECONDS

    @settings(max_examples=10**9, deadline=None, database=None, derandomize=SECONDS == 3,
              suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(inputs)
    def one(data):
        if time.monotonic() > end:
            raise TimeoutError
        check(data)

    with pytest.raises(TimeoutError):
        one()


@pytest.mark.slow
def test_any_instructions(tmp_path, monkeypatch):
    "What runs here would leave `trapped` behind, or call one of these."
    monkeypatch.chdir(tmp_path)
    for module, name in ((os, "system"), (pickle, "loads"), (pickle, "load")):
        monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail("something ran"))
    path, before, read = tmp_path / "any.pkl", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []

    def check(data):
        began = time.process_time()
        try:
            read.append(StubUnpickler(io.BytesIO(data), most_bytes=2 * len(data)).load())
        except Exception:  # the next lines see which
            path.write_bytes(data)
            with pytest.raises(BadFile, match="any.pkl"):
                read_checkpoint(path)
        read[10:] = []
        assert time.process_time() - began < 60

    check(pickle.dumps({"a": [1, 2.5, "x"]}, 2))
    bounded(check, programs)
    assert read and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


LARGE = {  # small files that ask for much time or memory
    "a list read again and again": b"\x80\x02c__builtin__\nset\nq\x00(" + b"K\x01" * 50_000 + b"l\x85q\x010"
    + b"h\x00h\x01R0" * 20_000 + b"N.",
    "attributes taken again and again": b"\x80\x02}q\x01("
    + b"".join(b"J%cZ%c\x01N" % (i % 256, i // 256) for i in range(20_000)) + b"u0ca\nb\n)\x81" + b"h\x01b" * 50_000
    + b".",
    "arguments used again and again": b"\x80\x02ctorch\nSize\nq\x00()" + b"K\x01" * 50_000 + b"tq\x01"
    + b"h\x00h\x01R0" * 8_000 + b"N.",
    "a set read again and again": b"\x80\x02c__builtin__\nset\nq\x00\x8f("
    + b"".join(b"J" + i.to_bytes(4, "little") for i in range(20_000)) + b"\x90\x85q\x01"
    + b"h\x00h\x01R0" * 8_000 + b"N.",
    "a long name of what is stored": b"\x80\x02(U\x06moduleN" + b"N" * 200_000 + b"tq\x01"
    + b"h\x01Q0" * 20_000 + b"N.",
    "a name of a million letters": b"\x80\x04X\x40\x42\x0f\x00" + b"a" * 1_000_000 + b"q\x00" + b"h\x00\x93" * 3,
    "keys of a million digits": b"\x80\x04}\x8b\x40\x42\x0f\x00" + b"\x7f" * 1_000_000 + b"q\x00" + b"h\x00Ns" * 100_000
    + b".",
    "lists in lists": b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".",
    "marks": b"\x80\x02" + b"(" * 500_000 + b".",
    "attributes within attributes": b"\x80\x02" + b"ca\nb\n)\x81}U\x08_modules}U\x01a" * 20_000 + b"N" + b"ssb" * 20_000
    + b".",
}


@pytest.mark.parametrize("kind", LARGE)
def test_little_time_and_memory(kind, tmp_path):
    path, began = tmp_path / "large.pkl", time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path.write_bytes(LARGE[kind])
    with pytest.raises(BadFile, match="large.pkl"):
        read_checkpoint(path)
    assert time.process_time() - began < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


def test_bytes_and_numbers_of_numpy_beside_weights(tmp_path):
    "As trainers save them: the best accuracy, and the state of the random numbers."
    state = {"state_dict": {"w": torch.ones(2)}, "best": np.float64(0.8), "raw": b"abc", "rng": np.random.get_state()}
    torch.save(state, tmp_path / "checkpoint.pt")
    assert read_state_dict(tmp_path / "checkpoint.pt")["w"].tolist() == [1, 1]
