"Checkpoints that are hostile, damaged or of other programs' making."
import os
import pickle
import random
import shutil
import warnings
import zipfile

import pytest
import torch

from wiseft.weights.checkpoints import read_state_dict, write_state_dict
from wiseft.weights.safetensors_io import state_hash
from wiseft.base.lazy import open_clip


class Trap:
    "Would make a file if it were unpickled."
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.system, (f"touch {self.path}",)


def state():
    torch.manual_seed(0)
    return {"visual.w": torch.randn(40, 30), "visual.n": torch.tensor(3), "head.weight": torch.randn(5, 30).half(),
            "head.bias": torch.randn(5).bfloat16()}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    "A pico CLIP as OpenAI published theirs: traced, with the three settings among its buffers."
    torch.manual_seed(0)
    model = open_clip.CLIP(embed_dim=16, vision_cfg=dict(image_size=32, patch_size=16, width=64, layers=1),
                 text_cfg=dict(context_length=8, vocab_size=49408, width=64, heads=1, layers=1), quick_gelu=True).eval()
    for name, value in dict(input_resolution=32, context_length=8, vocab_size=49408).items():
        if hasattr(model, name):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(value))
    mask = model.attn_mask
    del model.attn_mask
    model.attn_mask = mask  # no buffer in theirs
    path = tmp_path_factory.mktemp("archive") / "ViT-pico.pt"
    image, text = torch.ones(1, 3, 32, 32), torch.zeros(1, 8, dtype=torch.int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and says much
        torch.jit.trace_module(model, dict(encode_image=(image,), encode_text=(text,))).save(path)
    return path


def rewrite(source, target, part, content):
    "A copy of a zip file with another content for the member that ends in `part`."
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for n in old.namelist():
            new.writestr(n, content if n.endswith(part) else old.read(n))
    return target


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_is_not_run(tmp_path, protocol):
    path, trapped = tmp_path / "model.pkl", tmp_path / "trapped"
    path.write_bytes(pickle.dumps({"w": 1, "trap": Trap(trapped)}, protocol))
    with pytest.raises(ValueError,
                       match=f"model.pkl is {'refused: it is a pickle' if protocol > 1 else 'not a checkpoint'}"):
        read_state_dict(path)
    assert not trapped.exists()
    pickle.loads(path.read_bytes())  # the trap is a real one
    assert trapped.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pytorch_file_is_not_run(tmp_path, zipped):
    path, trapped = tmp_path / "model.pt", tmp_path / "trapped"
    torch.save({"state_dict": state(), "trap": Trap(trapped)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError,
        match=r"model.pt is refused: it is a pickle, which may run any code. It asks to run \w+.system"):
        read_state_dict(path)
    assert not trapped.exists()


def test_an_archive_is_not_run(tmp_path, archive):
    trapped = tmp_path / "trapped"
    path = rewrite(archive, tmp_path / "bad.pt", "/data.pkl", pickle.dumps(Trap(trapped), 2))
    with pytest.raises(ValueError, match=r"bad.pt is refused.* run \w+.system"):
        read_state_dict(path)
    assert not trapped.exists()


def test_a_name_disguised_as_the_program_s_own(tmp_path, archive):
    "A name is judged as a whole: what begins like the archive's classes is no part of them, and nothing is called."
    for module, name in (("__torch__evil", "system"), ("torch", "load"), ("torch._utils", "_rebuild_tensor_v3"),
                         ("builtins", "eval")):
        path = rewrite(archive, tmp_path / "bad.pt", "/data.pkl", b"\x80\x02c" + f"{module}\n{name}\n)R.".encode())
        with pytest.raises(ValueError, match=f"(is refused|holds no state dict).*{module}.{name}"):
            read_state_dict(path)


@pytest.mark.parametrize("size, stride", [(b"M\xff\xff", b"K\x01"), (b"J\xff\xff\xff\x7f", b"K\x00")],
                         ids=["foreign memory", "all memory"])
def test_a_tensor_beyond_its_storage(tmp_path, archive, size, stride):
    "Sizes that reach past the stored bytes, or repeat one of them a billion times."
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x01tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00(" + size + b"t(" + stride + b"t\x89NtR"
    path = rewrite(archive, tmp_path / "bad.pt", "/data.pkl", b"\x80\x02c__torch__\nM\n)\x81}U\x01w" + tensor + b"sb.")
    with pytest.raises(ValueError, match="cut short or damaged .*(out of bounds|larger than)"):
        read_state_dict(path)


@pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated")
def test_openai_archive(archive):
    read = read_state_dict(archive)
    expected = torch.jit.load(archive).state_dict()
    for setting in ("input_resolution", "context_length", "vocab_size"):
        del expected[setting]
    assert state_hash(read) == state_hash(expected)
    model = open_clip.model.build_model_from_openai_state_dict(dict(read), cast_dtype=torch.float32).float()
    image = torch.randn(2, 3, 32, 32)
    mine, theirs = model.encode_image(image), open_clip.load_openai_model(str(archive), precision="fp32",
        device="cpu").encode_image(image)
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("kind", ["safetensors", "pt", "old.pt", "archive.pt"])
def test_cut_short_anywhere(tmp_path, kind, archive):
    whole, short = tmp_path / f"whole.{kind}", tmp_path / f"short.{kind}"
    if kind == "safetensors":
        write_state_dict(state(), whole)
    elif kind == "archive.pt":
        shutil.copy(archive, whole)
    else:
        torch.save(state(), whole, _use_new_zipfile_serialization=kind == "pt")
    data = whole.read_bytes()
    read_state_dict(whole)
    rng = random.Random(0)
    for n in [0, 1, 2, 8, 9, 100, len(data) // 2, len(data) - 1, *(rng.randrange(len(data)) for _ in range(10))]:
        short.write_bytes(data[:n])
        with pytest.raises(ValueError) as e:
            read_state_dict(short)
        assert str(short) in str(e.value), n


def test_flipped_bytes_never_crash(tmp_path, archive):
    "Whatever is in the file: a state dict or a ValueError with the path."
    damaged, rng = tmp_path / "damaged.pt", random.Random(0)
    with zipfile.ZipFile(archive) as z:
        content = z.read(next(n for n in z.namelist() if n.endswith("/data.pkl")))
    for _ in range(60):
        bad = bytearray(content)
        for _ in range(3):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        rewrite(archive, damaged, "/data.pkl", bytes(bad))
        try:
            read_state_dict(damaged)
        except ValueError as e:
            assert str(damaged) in str(e)


def test_precision_and_names_survive(tmp_path):
    for zipped in True, False:
        torch.save({"epoch": 1, "model": {f"module.{k}": t for k, t in state().items()}}, tmp_path / "a.pt",
                   _use_new_zipfile_serialization=zipped)
        assert state_hash(read_state_dict(tmp_path / "a.pt")) == state_hash(state())
    path = write_state_dict(state(), tmp_path / "a.safetensors")
    assert state_hash(read_state_dict(path)) == state_hash(state())
