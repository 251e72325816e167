"Gives PyTorch the device `other`; it is built in the folder $OTHER_DEVICE_BUILD, where it isn't there yet."
import os
import sys
from pathlib import Path

import torch
from torch.utils.cpp_extension import load

load("other_device", [str(Path(__file__).with_suffix(".cpp"))], extra_cflags=["-O0", "-w"], is_python_module=False,
     build_directory=os.environ["OTHER_DEVICE_BUILD"])
core = torch.ops.other_device


# ---------- what PyTorch asks a device's module ----------


def is_available():
    return True


def is_initialized():
    return True


def current_device():
    return 0


def device_count():
    return 1


def _is_in_bad_fork():
    return False


def manual_seed_all(seed):
    "Random numbers come from the CPU's generator."


def get_rng_state(device=0):
    return torch.get_rng_state()


def set_rng_state(state, device=0):
    torch.set_rng_state(state)


def get_amp_supported_dtype():
    return [torch.bfloat16, torch.float16]


torch.utils.rename_privateuse1_backend("other")
torch._register_device_module("other", sys.modules[__name__])
torch.utils.generate_methods_for_privateuse1_backend()


# ---------- what tests ask ----------


def counts():
    "Waits for the device, copies to it, operations, its bytes in use now and at most, since the last `core.reset()`."
    return dict(zip(("waits", "sent", "kernels", "bytes", "peak"), core.counts()))
