"""What each of several processes holds and sends, against the size of the model and the number of processes.

  ranks.py                  one, two and three processes fine-tune CLIPs of two sizes; writes ranks.csv
  ranks.py --one …          what each of them does

Processes meet over gloo, on one CPU. Sent is what the system says was acknowledged on a process's sockets, on average
over them; `peak_GB` is the most that one of them took above what it held before."""
import argparse
import gc
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback
from open_clip import CLIP
from PIL import Image
from safetensors.torch import save_file
from scale import memory, peak
from wiseft.models.classifier import zeroshot_classifier
from wiseft.models.clip import load_clip
from wiseft.data.labels import image_folder
from wiseft.train.learner import finetune
from wiseft.base.distributed import start

HERE = Path(__file__).resolve().parent
STEPS, BATCH = 12, 24


def vit(width, folder):
    "A CLIP with a small ViT of random weights"
    config = dict(embed_dim=32, vision_cfg=dict(image_size=32, patch_size=16, width=width, layers=2, head_width=32),
                  text_cfg=dict(context_length=12, vocab_size=49408, width=16, heads=2, layers=1))
    torch.manual_seed(0)
    save_file(CLIP(**config).state_dict(), Path(folder, 'open_clip_model.safetensors'))
    colors = dict(size=32, mean=[.48, .46, .41], std=[.27, .26, .28])
    Path(folder, 'open_clip_config.json').write_text(json.dumps(dict(model_cfg=config, preprocess_cfg=colors)))
    return load_clip(f'local-dir:{folder}')


def make_images(folder, n):
    "PNGs of noise, of two classes"
    rng = np.random.default_rng(0)
    for i in range(n):
        path = Path(folder, 'photos', 'ab'[i % 2], f'{i}.png')
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)


def sent():
    "Bytes that others have acknowledged on this process's sockets (Linux)"
    total = 0
    for fd in Path('/proc/self/fd').iterdir():
        try:
            if not os.readlink(fd).startswith('socket:'): continue
            with socket.socket(fileno=os.dup(int(fd.name))) as s:
                told = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
        except OSError: continue # closed meanwhile, or of another kind
        total += struct.unpack_from('Q', told, 120)[0] # tcpi_bytes_acked
    return total


class Sent(Callback):
    "What was sent by the end of each step"
    def before_fit(self): self.seen = []
    def after_batch(self):
        if self.training: self.seen.append(sent())


def one(width, photos):
    "What a process of a training sent and held"
    with tempfile.TemporaryDirectory() as folder: clip = vit(width, folder)
    zeroshot, images = zeroshot_classifier(clip, ['a', 'b'], ['{}']), image_folder(photos)
    start()
    gc.collect()
    before, counted = memory(), Sent()
    finetuned = finetune(zeroshot, images, images.subset(range(8)), epochs=1, batch_size=BATCH, precision='fp32',
                     progress=False, cbs=counted)
    took, (first, last) = peak() - before, (counted.seen[1], counted.seen[-1])
    return dict(weights=sum(p.numel() for p in finetuned.parameters()), step_MB=(last-first)/(STEPS-2)/1e6,
                peak_GB=took)


def row(width, n, work):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        place = dict(WORLD_SIZE=n, MASTER_ADDR='127.0.0.1', MASTER_PORT=s.getsockname()[1])
    command = [sys.executable, __file__, '--one', str(width), f'{work}/photos']
    def process(k):
        "Of one rank"
        own = place | dict(RANK=k, LOCAL_RANK=k, OMP_NUM_THREADS=1, WISEFT_CACHE=f'{work}/cache')
        env = os.environ | {name: str(v) for name, v in own.items()}
        return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE)
    running = list(map(process, range(n)))
    said = [p.communicate()[0] for p in running]
    t = pd.DataFrame([json.loads(text.splitlines()[-1]) for text in said])
    made = dict(processes=n, weights=int(t.weights[0]), step_MB=round(t.step_MB.mean(), 4),
                peak_GB=round(t.peak_GB.max(), 3))
    print(made, flush=True)
    return made


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--one', nargs=2, metavar=('WIDTH', 'IMAGES'), help='what one process does')
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(one(int(chosen.one[0]), chosen.one[1])))
        sys.exit()
    with tempfile.TemporaryDirectory() as work:
        make_images(work, STEPS*BATCH)
        rows = [row(w, n, work) for w in (256, 1024) for n in (1, 2, 3)]
    pd.DataFrame(rows).to_csv(HERE/'ranks.csv', index=False)
