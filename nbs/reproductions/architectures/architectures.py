#!/usr/bin/env python
"""Which architectures of the installed open_clip work: one row each.

    python architectures.py            # what architectures.csv lacks; half an hour on one core
    python architectures.py ViT-B-32   # this one, anew

Every architecture is built without memory (on PyTorch's meta device), and its blocks, depths, and matrices for LoRA are
counted. The small ones are also saved with random weights, loaded, and used: they classify images, train one step of
everything, of the head, of the last block, and of LoRA, and are averaged. Of architectures whose image towers differ in
nothing but the size of images, one is used. Each runs in a process of its own, so that a crash is an entry, too."""
import json
import os
import re
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import timm
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

HERE = Path(__file__).resolve().parent
TABLE = HERE/'architectures.csv'
SMALL = 100 # millions of weights in the image tower, at most
CLASSES, TEMPLATES = ['a circle', 'a square'], ['a drawing of {}']
PREPROCESS = dict(mean=[.5]*3, std=[.25]*3)
TRAIN = {'trains all': 'all', 'trains head': 'head', 'trains last:1': 'last:1', 'trains LoRA': None}


@cache
def first_with_tower():
    "Architecture -> the one with the shortest name whose image tower differs from its own in the size of images alone"
    first, names = {}, {}
    for name in sorted(open_clip.list_models(), key=lambda name: (len(name), name)):
        config = open_clip.get_model_config(name)
        if 'hf_model_name' in config['text_cfg']: continue
        tower = {k: v for k, v in config['vision_cfg'].items() if k != 'image_size'}
        tower['timm_model_name'] = re.sub(r'_\d+$', '', tower.get('timm_model_name', ''))
        names[name] = first.setdefault(json.dumps(tower, sort_keys=True), name)
    return names


def count_parts(name):
    "What can be counted without memory; the name of the text tower if its settings are on the hub"
    from wiseft.models.build import build_model
    from wiseft.models.sources import Source
    from wiseft.models.tower import tower_blocks, tower_positions, transformer_matrices

    config = open_clip.get_model_config(name)
    row = dict(architecture=name, pixels=config['vision_cfg'].get('image_size', 224))
    if text := config['text_cfg'].get('hf_model_name'): return row | dict(needs_hub=text)
    with torch.device('meta'): model = build_model(Source(config, PREPROCESS, None, name), 'fp32', 'meta')
    positions = tower_positions(model.visual).values()
    row['million_weights'] = round(sum(p.numel() for p in model.visual.parameters())/1e6, 1)
    row['blocks'] = len({p for p in positions if p.in_block})
    assert len(tower_blocks(model.visual)) == row['blocks']
    return row | dict(depths=len({p.depth for p in positions}), lora_matrices=len(transformer_matrices(model.visual)))


def is_used(row):
    "Whether an architecture is small, and the first one with its tower"
    name = row['architecture']
    return row.get('million_weights', SMALL+1) <= SMALL and first_with_tower()[name] == name


def write_clip(name, folder):
    "The architecture with random weights in the hub's layout; a tokenizer of a few words where it has none of its own"
    config = open_clip.get_model_config(name)
    torch.manual_seed(0)
    model = open_clip.create_model(name)
    for weight in model.parameters(): # CoCa leaves some as they were in memory
        if not (weight.abs() < 1e3).all(): torch.nn.init.normal_(weight, std=.02)
    config = dict(model_cfg=config, preprocess_cfg=PREPROCESS)
    (folder/'open_clip_config.json').write_text(json.dumps(config))
    torch.save(model.state_dict(), folder/'open_clip_pytorch_model.bin')
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate('<pad> <unk> a drawing of circle square'.split())},
                                       unk_token='<unk>'))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token='<pad>').save_pretrained(folder)


def write_images(folder):
    "Two images of each class"
    for i in range(4):
        path = folder/'ab'[i % 2]/f'{i}.png'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)


def try_uses(name, lora_matrices):
    "Yield (what, None) before each use of the architecture with random weights, then (what, 'yes' or an error)"
    from wiseft.data.labels import image_folder
    from wiseft.infer.inference import predict
    from wiseft.methods.lora import lora
    from wiseft.models.classifier import zeroshot_classifier
    from wiseft.models.clip import load_clip
    from wiseft.train.learner import finetune
    from wiseft.all import interpolate, merge

    def predicts():
        images, clip = image_folder(tmp), load_clip(tmp/'clip', device='cpu')
        state.update(images=images, zeroshot=zeroshot_classifier(clip, CLASSES, TEMPLATES))
        state['images'].classnames = CLASSES
        assert predict(dict(c=state['zeroshot']), images, progress=False).logits['c'].isfinite().all()
    def trains(train):
        images = state['images']
        finetuned = finetune(state['zeroshot'], images.subset([0, 1]), images.subset([2, 3]), epochs=1, lr=1e-4,
                             batch_size=2,
                         train=train, precision='fp32', crop_scale=None, progress=False)
        changed = [k for k, t in finetuned.state_dict().items() if not torch.equal(t,
                                                                                   state['zeroshot'].state_dict()[k])]
        assert changed and all(t.isfinite().all() for t in finetuned.state_dict().values())
        if train == 'all': state['finetuned'] = finetuned
    def merges():
        ends = state['zeroshot'], state['finetuned']
        averages = dict(half=interpolate(*ends), lines=merge(ends[0], [ends[1]], 'LiNeS'))
        logits = predict(averages, state['images'], progress=False).logits
        assert all(z.isfinite().all() for z in logits.values())

    uses = {'predicts': predicts} | {k: lambda train=train or lora: trains(train) for k, train in TRAIN.items()}
    if not lora_matrices: del uses['trains LoRA']
    state, tmp = {}, Path(tempfile.mkdtemp())
    try:
        (tmp/'clip').mkdir()
        write_clip(name, tmp/'clip')
        write_images(tmp)
        for what, use in (uses | dict(merges=merges)).items():
            yield what, None
            try: use()
            except Exception as e: yield what, f'{type(e).__name__}: {e}'[:200]
            else: yield what, 'yes'
    finally: shutil.rmtree(tmp)


def run_in_process(name):
    "The row of an architecture, from a process of its own"
    read, write = os.pipe()
    if not (child := os.fork()):
        os.dup2(write, 1)
        try: print_row(name)
        except BaseException as e: # noqa: BLE001 (a fork must not return)
            print(json.dumps(dict(error=f'{type(e).__name__}: {e}'[:200])), flush=True)
        finally: os._exit(0)
    os.close(write)
    with open(read) as lines: row = {k: v for line in lines for k, v in json.loads(line).items()}
    _, status = os.waitpid(child, 0)
    crashed = {k: f'crashes (signal {os.WTERMSIG(status)})' for k, v in row.items() if v is None}
    return row | crashed | dict(open_clip=open_clip.__version__, timm=timm.__version__)


def print_row(name):
    "Print the row of an architecture, entry by entry"
    row = count_parts(name)
    print(json.dumps(row), flush=True)
    if not is_used(row): return
    for what, result in try_uses(name, row['lora_matrices']): print(json.dumps({what: result}), flush=True)


def main():
    rows = pd.read_csv(TABLE).to_dict('records') if TABLE.exists() else []
    rows = {r['architecture']: r for r in rows}
    complete = {n for n,
                r in rows.items() if not is_used(r) or r['merges'] == r['merges']} # it is the last; NaN is empty
    names = sys.argv[1:] or set(open_clip.list_models()) - complete
    for name in sorted(names, key=str.lower):
        rows[name] = run_in_process(name)
        print(rows[name], flush=True)
        columns = ['architecture', 'pixels', 'million_weights', 'needs_hub', 'blocks', 'depths', 'lora_matrices',
                   'predicts',
                   *TRAIN, 'merges', 'error', 'open_clip', 'timm']
        table = pd.DataFrame(rows.values()).reindex(columns=columns).sort_values('architecture',
                                                                                 key=lambda s: s.str.lower())
        table[['blocks', 'depths', 'lora_matrices']] = table[['blocks', 'depths', 'lora_matrices']].astype('Int64')
        table.to_csv(TABLE, index=False, lineterminator='\n')


if __name__ == '__main__': main()
