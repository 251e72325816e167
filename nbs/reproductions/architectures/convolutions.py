#!/usr/bin/env python
"""Every shape of a convolution in open_clip's image towers, on a CPU: channels-last against contiguous memory.

    python convolutions.py    # writes convolutions.csv, ten minutes on one core

oneDNN, which computes convolutions on a CPU, crashes in the backward pass of some (oneDNN#6035). Each comparison
of an output and its gradients runs in a process of its own, so that a crash is an entry of the table.
`ONEDNN_MAX_CPU_ISA` lets oneDNN compute as on older processors. Needs Linux."""
import os
import signal
import sys
from pathlib import Path
from subprocess import PIPE, run

import open_clip
import pandas as pd
import torch
from torch import nn

TABLE = Path(__file__).with_suffix('.csv')
SETTINGS = [('fp32', 'AVX512_CORE'), ('fp32', 'AVX2'), ('bf16', 'DEFAULT')]
SHAPE = ['kernel', 'stride', 'padding', 'dilation', 'inputs', 'outputs', 'groups', 'bias']
DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16)


def shapes():
    "Every shape, with the largest input that a tower gives it"
    rows = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision = config['vision_cfg'] | dict(timm_model_pretrained=False)
        def note(conv, x, name=name): rows.append(shape_of(conv) | dict(size=x[0].shape[-1], example=name))
        with torch.device('meta'):
            quick_gelu = config.get('quick_gelu', False)
            tower = open_clip.model._build_vision_tower(config['embed_dim'], vision, quick_gelu).eval()
            for conv in tower.modules():
                if isinstance(conv, nn.Conv2d): conv.register_forward_pre_hook(note)
            height, width = tower.image_size if isinstance(tower.image_size, (tuple, list)) else [tower.image_size]*2
            tower(torch.zeros(1, 3, height, width))
    groups = pd.DataFrame(rows).groupby(SHAPE)
    columns = dict(size=('size', 'max'), architectures=('example', 'nunique'), example=('example', 'first'))
    return groups.agg(**columns).reset_index()


def shape_of(conv):
    square = dict(kernel=conv.kernel_size, stride=conv.stride, padding=conv.padding, dilation=conv.dilation)
    assert all(len(set(v)) == 1 for v in square.values()), conv
    return {k: v[0] for k, v in square.items()} | dict(
        inputs=conv.in_channels, outputs=conv.out_channels, groups=conv.groups, bias=conv.bias is not None)


def gradients(row, dtype, memory_format):
    "The output of a convolution, and the gradients of its weights and its input"
    torch.manual_seed(0)
    conv = nn.Conv2d(row.inputs, row.outputs, row.kernel, row.stride, row.padding, row.dilation, row.groups, row.bias)
    conv = conv.to(dtype)
    x = torch.randn(2, row.inputs, row.size, row.size).to(dtype).to(memory_format=memory_format)
    x.requires_grad_(row.inputs != 3) # images have no gradient
    out = conv(x)
    out.backward(torch.randn(out.shape).to(dtype).to(memory_format=memory_format))
    return [t.float() for t in (out.detach(), *(p.grad for p in conv.parameters()), x.grad) if t is not None]


def difference(row, precision):
    "The largest difference between both memory formats, as a share of the largest value; how it ended if it crashed"
    read, write = os.pipe()
    if not (child := os.fork()):
        signal.alarm(300)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        both = [gradients(row, DTYPES[precision], f) for f in (torch.contiguous_format, torch.channels_last)]
        largest = max(((a - b).abs().max()/a.abs().max()).item() for a, b in zip(*both))
        os.write(write, f'{largest:.1e}'.encode())
        os._exit(0)
    os.close(write)
    with open(read) as f: found = f.read()
    _, status = os.waitpid(child, 0)
    return found if not status else 'hangs' if os.WTERMSIG(status) == signal.SIGALRM else 'crashes'


def main():
    if len(sys.argv) > 1: # a process with one setting
        for row in pd.read_csv(TABLE).itertuples(): print(difference(row, sys.argv[1]), flush=True)
        return
    table = shapes()
    for precision, isa in SETTINGS:
        table.to_csv(TABLE, index=False, lineterminator='\n')
        env = os.environ | dict(ONEDNN_MAX_CPU_ISA=isa, OMP_NUM_THREADS='1')
        out = run([sys.executable, __file__, precision], env=env, stdout=PIPE, text=True, check=True).stdout
        table[f'{precision} {isa}'] = out.split()
    table.to_csv(TABLE, index=False, lineterminator='\n')


if __name__ == '__main__': main()
