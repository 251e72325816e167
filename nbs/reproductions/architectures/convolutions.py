#!/usr/bin/env python
"""Gradients of convolutions on a CPU, channels-last against contiguous memory.

    python convolutions.py          # every convolution of open_clip's image towers; writes convolutions.csv
    python convolutions.py --scan   # small convolutions of any shape; writes convolutions_scan.csv

oneDNN, which computes convolutions on a CPU, crashes in the backward pass of some of them (oneDNN#6035). Each comparison
runs in a process of its own, so that a crash is a row of the table. `ONEDNN_MAX_CPU_ISA` lets oneDNN compute as on
older processors. Needs Linux and a processor with AVX-512; the images of a batch are as large as the towers take them."""
import argparse
import os
import signal
import subprocess
import sys
from itertools import product
from pathlib import Path

import open_clip
import pandas as pd
import torch
from torch import nn

HERE = Path(__file__).resolve().parent
SETTINGS = [('fp32', 'AVX512_CORE'), ('fp32', 'AVX2'), ('bf16', 'DEFAULT')]
SHAPE = ['kernel', 'stride', 'padding', 'dilation', 'inputs', 'outputs', 'groups', 'bias']
BATCH, SECONDS = 6, 300
TOLERANCE = dict(fp32=1e-3, bf16=5e-2) # largest difference, as a share of the largest gradient


def image_tower(config):
    "An image tower of open_clip with random weights"
    vision = config['vision_cfg'] | dict(timm_model_pretrained=False)
    return open_clip.model._build_vision_tower(config['embed_dim'], vision, config.get('quick_gelu', False))


def of_towers():
    "Every shape of a convolution in open_clip's image towers, with the largest input that a tower gives it"
    rows = []
    for name in open_clip.list_models():
        with torch.device('meta'):
            visual = image_tower(open_clip.get_model_config(name)).eval()
            for conv in visual.modules():
                if isinstance(conv, nn.Conv2d): conv.register_forward_pre_hook(
                    lambda conv, x: rows.append(shape_of(conv) | dict(size=x[0].shape[-1], example=name)))
            size = visual.image_size
            height, width = size if isinstance(size, (tuple, list)) else (size, size)
            visual(torch.zeros(1, 3, height, width))
    groups = pd.DataFrame(rows).groupby(SHAPE)
    return groups.agg(size=('size', 'max'), architectures=('example', 'nunique'), example=('example', 'first')
                      ).reset_index()


def shape_of(conv):
    square = dict(kernel=conv.kernel_size, stride=conv.stride, padding=conv.padding, dilation=conv.dilation)
    assert all(len(set(v)) == 1 for v in square.values()), conv
    return {k: v[0] for k, v in square.items()} | dict(
        inputs=conv.in_channels, outputs=conv.out_channels, groups=conv.groups, bias=conv.bias is not None)


def scanned():
    "Small kernels and strides with few and many channels, and groups"
    plain = [dict(kernel=k, stride=s, padding=p, inputs=i, outputs=o, groups=1)
             for k, s, i, o in product((1, 2, 3), (1, 2, 3, 4), (1, 3, 8, 15, 16, 32), (16, 64)) for p in {0, k//2}]
    grouped = [dict(kernel=k, stride=s, padding=k//2, inputs=n, outputs=n, groups=g)
               for k, s, n in product((1, 3), (1, 2), (4, 16, 64)) for g in (2, n)]
    return pd.DataFrame(plain + grouped).assign(dilation=1, bias=False, size=252)[[*SHAPE, 'size']]


def gradients(row, dtype, memory_format):
    torch.manual_seed(0)
    conv = nn.Conv2d(row.inputs, row.outputs, row.kernel, row.stride, row.padding, row.dilation, row.groups, row.bias)
    conv = conv.to(dtype)
    x = torch.randn(BATCH, row.inputs, row.size, row.size).to(dtype).to(memory_format=memory_format)
    x.requires_grad_(row.inputs != 3) # images have no gradient
    out = conv(x)
    out.backward(torch.randn(out.shape).to(dtype).to(memory_format=memory_format))
    return [t.float() for t in (out.detach(), *(p.grad for p in conv.parameters()), x.grad) if t is not None]


def difference(row, precision):
    "Of outputs and gradients in the two memory formats: the largest, as a share of the largest value"
    dtype = dict(fp32=torch.float32, bf16=torch.bfloat16)[precision]
    both = [gradients(row, dtype, form) for form in (torch.contiguous_format, torch.channels_last)]
    return max(((a - b).abs().max()/a.abs().max()).item() for a, b in zip(*both))


def in_process(row, precision):
    "The difference, or how the process ended that computed it"
    read, write = os.pipe()
    if not (child := os.fork()):
        signal.alarm(SECONDS)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.write(write, f'{difference(row, precision):.1e}'.encode())
        os._exit(0)
    os.close(write)
    with open(read) as f: found = f.read()
    _, status = os.waitpid(child, 0)
    if status: return 'hangs' if os.WTERMSIG(status) == signal.SIGALRM else 'crashes'
    return found if float(found) <= TOLERANCE[precision] else f'differs {found}' # NaN too


def one_setting(path, precision):
    "Print a row's answer a line, with the environment of the process"
    for row in pd.read_csv(path).itertuples(): print(in_process(row, precision), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--scan', action='store_true')
    parser.add_argument('--setting', nargs=2)
    args = parser.parse_args()
    if args.setting: return one_setting(*args.setting)
    table, path = (scanned(), HERE/'convolutions_scan.csv') if args.scan else (of_towers(), HERE/'convolutions.csv')
    for precision, isa in SETTINGS:
        table.to_csv(path, index=False, lineterminator='\n')
        env = os.environ | dict(ONEDNN_MAX_CPU_ISA=isa, OMP_NUM_THREADS='1')
        command = [sys.executable, __file__, '--setting', str(path), precision]
        answers = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
        table[f'{precision} {isa}'] = answers.splitlines()
    table.to_csv(path, index=False, lineterminator='\n')


if __name__ == '__main__': main()
