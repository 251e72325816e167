#!/usr/bin/env python
"""Pretrain `iconclip`, a small CLIP on icons and their names, with open_clip's model and loss.

    python build_suite.py                     # the images, once
    python pretrain.py                        # train, or go on after an interruption; then export
    python pretrain.py --score                # fill the zero-shot columns of the log from the kept checkpoints
    python pretrain.py --export               # write wiseft/data/iconclip from the last checkpoint
    python pretrain.py --towers 500 --batch 256 --threads 1      # several towers, 500 seconds of processor time each

Every random choice is a function of (seed, step), so a run that was killed goes on as if it had not been.
On CPUs put jemalloc in front, which is faster here and keeps memory flat (glibc's allocator grows to many GB):

    LD_PRELOAD=libjemalloc.so.2 MALLOC_CONF=oversize_threshold:0,thp:always,dirty_decay_ms:20000 python pretrain.py

Long decay times make it grow: with `dirty_decay_ms:-1` a run outgrew a machine of 24 GB.
"""
import argparse, csv, hashlib, json, math, os, platform, time
from collections import Counter, deque
from dataclasses import replace
from datetime import date
from pathlib import Path
import numpy as np, torch
import torch.nn.functional as F
import open_clip
from safetensors.torch import load_file, save_file
from wiseft.models.classifier import zeroshot_classifier
from wiseft.models.clip import load_clip
from wiseft.data.suites import load_suite
from wiseft.infer.evaluation import evaluate
from wiseft.stats import table as results

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
DATA, BUILD = ROOT/'wiseft'/'data', ROOT/'build'/'icons'
LOG = HERE/'pretraining.csv'
SIZE, MEAN, STD = 48, (0.80, 0.80, 0.80), (0.34, 0.34, 0.34)
CONTEXT, EMBED = 12, 128
RARE = {'duotone': 1, 'colour': 2, 'emoji': 2, 'pixel': 4}                # times an image is drawn per pass

TEXT = dict(context_length=CONTEXT, vocab_size=49408, width=128, heads=4, layers=3)
TOWERS = {
    'resnet':        dict(lr=1.5e-3, vision=dict(layers=[1, 2, 2, 1], width=32, head_width=64, patch_size=None)),
    'vit-12':        dict(lr=1e-3, vision=dict(layers=6, width=192, head_width=64, patch_size=12)),
    'vit-16':        dict(lr=1e-3, vision=dict(layers=6, width=192, head_width=64, patch_size=16)),
    'convnext_atto': dict(lr=4e-4, vision=dict(timm_model_name='convnext_atto', timm_pool='', timm_proj='linear')),
}
ANY = ['{}', '{}', '{}', 'an icon of a {}', 'an icon of a {}', 'a {} icon', 'the {} icon', 'icon: {}', 'a {}', 'the {}',
       'a drawing of a {}',
       'a picture of a {}', 'a photo of a {}', 'a symbol of a {}', 'an image of a {}', 'a sketch of a {}', 'a small {}',
       'a {}.', 'a rendition of a {}']
STYLED = {
    'outline': ['a line icon of a {}', 'an outline icon of a {}', 'a thin line drawing of a {}', 'outline {}'],
    'solid':   ['a solid icon of a {}', 'a filled icon of a {}', 'a silhouette of a {}', 'a black glyph of a {}'],
    'duotone': ['a duotone icon of a {}', 'a two tone drawing of a {}', 'a shaded icon of a {}'],
    'colour':  ['a colour icon of a {}', 'a colourful icon of a {}', 'a flat colour drawing of a {}',
                'a color illustration of a {}'],
    'emoji':   ['an emoji of a {}', 'a {} emoji', 'the emoji {}', 'a colour picture of a {}', 'a cartoon {}'],
    'pixel':   ['a pixel art icon of a {}', 'pixel art of a {}', 'a pixelated {}'],
}

# ---------- data ----------

def read_pairs():
    "Pretraining images (memory mapped) and their captions' material."
    rows = list(csv.DictReader(open(BUILD/'pretraining.csv')))
    return np.load(BUILD/'pretraining.npy',
                   mmap_mode='r'), [r['names'].split('|') for r in rows], [r['style'] for r in rows]

def batches(names, styles, n_batches, size, seed):
    "Indices of each batch: shuffled passes with rare styles repeated, a name once in a batch where that can be."
    rng = np.random.default_rng(seed)
    pool = np.repeat(np.arange(len(names)), [RARE.get(s, 1) for s in styles])
    first, later, source, out = [n[0] for n in names], deque(), iter(()), []
    for _ in range(n_batches):
        batch, seen = [], set()
        for _ in range(len(later)):                                       # those that met their own name before
            i = later.popleft()
            if first[i] in seen or len(batch) == size: later.append(i)
            else:
                batch.append(i)
                seen.add(first[i])
        while len(batch) < size:
            i = next(source, None)
            if i is None: source = iter(rng.permutation(pool).tolist())
            elif first[i] in seen and len(later) < 4*size: later.append(i)
            else:
                batch.append(i)
                seen.add(first[i])
        out.append(batch)
    return out

def caption(names, style, rng):
    "One caption: the icon's name or another name of it, in a template that may tell the style."
    n = names[0] if len(names) == 1 or rng.random() < .6 else names[rng.integers(1, len(names))]
    some = STYLED[style] if style in STYLED and rng.random() < .25 else ANY
    text = some[rng.integers(len(some))].format(n)
    return text.replace(' a a', ' an a') if ' a a' in text else text

def between(g, n, lo, hi): return torch.rand(n, generator=g)*(hi - lo) + lo

def augment(x, g):
    "Affine and elastic warps, other ink and ground, inversion, channel shuffles, grey, coarse pixels; x in 0...1."
    n = len(x)
    a, s, r = between(g, n, -.22, .22), between(g, n, .85, 1.3), between(g, n, .9, 1.1)
    rot = torch.stack([torch.stack([a.cos()*s*r, -a.sin()*s], -1), torch.stack([a.sin()*s, a.cos()*s/r], -1)], 1)
    theta = torch.cat([rot, between(g, (n, 2, 1), -.12, .12)], -1)
    grid = F.affine_grid(theta, x.shape, align_corners=False)
    bend = F.interpolate(torch.randn(n, 2, 6, 6, generator=g), size=SIZE, mode='bicubic')*.035
    grid = grid + (bend*(between(g, n, 0, 1) < .3).float().view(-1, 1, 1, 1)).permute(0, 2, 3, 1)
    x = 1 - F.grid_sample(1 - x, grid, align_corners=False)               # what comes in from outside is white
    u = between(g, n, 0, 1)
    coarse = u < .1                                                       # big pixels
    if coarse.any():
        k = int(torch.randint(12, 25, (1,), generator=g))
        x[coarse] = F.interpolate(F.interpolate(x[coarse], size=k, mode='area'), size=SIZE, mode='nearest')
    ink = 1 - x.mean(1, keepdim=True)
    mono = (x.amax(1) - x.amin(1)).flatten(1).amax(1) < .05
    dark, light = torch.rand(n, 3, 1, 1, generator=g)*.55, 1 - torch.rand(n, 3, 1, 1, generator=g)*.35
    flip = (between(g, n, 0, 1) < .3).view(-1, 1, 1, 1)
    fore, back = torch.where(flip, light, dark), torch.where(flip, dark, light)
    recolour = (mono & (between(g, n, 0, 1) < .4)).view(-1, 1, 1, 1)
    x = torch.where(recolour, back*(1 - ink) + fore*ink, x)
    colour = ~mono
    perm = colour & (between(g, n, 0, 1) < .2)
    if perm.any(): x[perm] = x[perm][:, torch.randperm(3, generator=g)]
    grey = colour & (between(g, n, 0, 1) < .2)
    if grey.any(): x[grey] = x[grey].mean(1, keepdim=True).expand(-1, 3, -1, -1)
    inv = colour & (between(g, n, 0, 1) < .1)
    if inv.any(): x[inv] = 1 - x[inv]
    return x.clamp_(0, 1)

def normalise(x): return (x - torch.tensor(MEAN).view(3, 1, 1))/torch.tensor(STD).view(3, 1, 1)

# ---------- model ----------

def config(tower):
    "open_clip's own configuration of the whole CLIP, image preprocessing included."
    vision = dict(image_size=SIZE, **TOWERS[tower]['vision'])
    return dict(model_cfg=dict(embed_dim=EMBED, vision_cfg=vision, text_cfg=TEXT),
                preprocess_cfg=dict(size=SIZE, mode='RGB', mean=list(MEAN), std=list(STD), interpolation='bicubic',
                                    resize_mode='shortest', fill_color=255))

def make_model(tower):
    cfg = config(tower)['model_cfg']
    return open_clip.CLIP(**cfg, output_dict=True).to(memory_format=torch.channels_last)

def words_of(tokenizer, texts):
    "Token ids with a cache: the same captions come again and again."
    cache = words_of.__dict__.setdefault('cache', {})
    for t in texts:
        if t not in cache: cache[t] = tokenizer([t])[0]
    return torch.stack([cache[t] for t in texts])

def optimiser(model, lr):
    "AdamW; no decay on gains, biases and the logit scale."
    slow = [p for p in model.parameters() if p.ndim >= 2]
    return torch.optim.AdamW([dict(params=slow, weight_decay=.1),
                              dict(params=[p for p in model.parameters() if p.ndim < 2], weight_decay=0.)],
                             lr=lr, betas=(.9, .98), eps=1e-6)

def rate(step, steps, lr, warmup):
    if step < warmup: return lr*(step + 1)/warmup
    return lr*(.5*(1 + math.cos(math.pi*(step - warmup)/max(1, steps - warmup)))*.99 + .01)

# ---------- zero-shot accuracy on validation ----------

def score(model):
    "Reference accuracy and mean over shifts on validation, or blanks while there is no suite yet."
    if not (DATA/'icons.json').exists(): return '', ''
    suite, clip = load_suite('icons'), replace(load_clip(), model=model.eval())
    zeroshot = zeroshot_classifier(clip, suite.classnames, suite.templates)
    accuracy = evaluate(zeroshot, suite, 'validation', progress=False).set_index('dataset').value
    model.train()
    return f"{accuracy[results.REFERENCE]:.4f}", f"{accuracy[results.MEAN]:.4f}"

# ---------- checkpoints, log, export ----------

def save_checkpoint(path, **state):
    "Written beside and renamed, so a kill leaves the old one whole."
    tmp = path.with_suffix('.tmp')
    torch.save(state, tmp)
    os.replace(tmp, path)

def keep(model, path):
    "The weights alone, fp16, for looking back."
    tmp = path.with_suffix('.tmp')
    save_file({k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in model.state_dict().items()}, tmp)
    os.replace(tmp, path)

COLUMNS = ['step', 'loss', 'lr', 'logit_scale', 'pairs_per_second', 'zeroshot_reference', 'zeroshot_shift']

def write_log(rows, path):
    tmp = path.with_suffix('.tmp')
    with open(tmp, 'w', newline='') as f:
        out = csv.DictWriter(f, COLUMNS)
        out.writeheader()
        out.writerows(rows)
    os.replace(tmp, path)

def sha256(path):
    h = hashlib.sha256()
    with open(path, 'rb') as f:
        for block in iter(lambda: f.read(1 << 20), b''): h.update(block)
    return h.hexdigest()

def seen_tokens(names, styles, tokenizer, least=3):
    "Ids of tokens in the names of at least `least` pairs, and those of the templates: what fewer taught is not known."
    count = Counter()
    for ns in names: count.update({i for n in ns for i in tokenizer.encode(n)[:CONTEXT - 2]})
    often = {i for i, n in count.items() if n >= least}
    for t in ANY + [t for ts in STYLED.values() for t in ts] + ['an']:
        often |= set(tokenizer([t.format('')])[0].tolist())
    return often

def export(args):
    "The last checkpoint as an open_clip `local-dir` folder."
    ck = torch.load(args.out/'last.pt', map_location='cpu', weights_only=True)
    _, names, styles = read_pairs()
    tok = open_clip.SimpleTokenizer(context_length=CONTEXT)
    seen = sorted(seen_tokens(names, styles, tok))
    state = {k: v.half() if v.is_floating_point() else v for k, v in ck['model'].items()}
    rows = torch.zeros(TEXT['vocab_size'], dtype=torch.bool)
    rows[seen] = True
    state['token_embedding.weight'] = torch.where(rows[:, None], state['token_embedding.weight'],
                                                  torch.zeros((), dtype=torch.half))
    usual = DATA/'iconclip' if ck['tower'] == 'resnet' else BUILD/ck['tower']  # the others are for studies
    folder = args.to or usual
    folder.mkdir(parents=True, exist_ok=True)
    tmp = folder/'model.tmp'
    save_file({k: v.contiguous() for k, v in state.items()}, tmp, metadata={'format': 'pt'})
    os.replace(tmp, folder/'open_clip_model.safetensors')
    families = sorted({r['family'] for r in csv.DictReader(open(BUILD/'pretraining.csv'))})
    about = dict(name=folder.name, tower=ck['tower'], steps=ck['steps'], trained_steps=ck['step'], batch=ck['batch'],
                 part=ck.get('part', ck['batch']), seed=ck['seed'], lr=TOWERS[ck['tower']]['lr'],
                 pairs=len(names), distinct_names=len({n[0] for n in names}), seen_tokens=len(seen),
                 data='@iconify/json 2.2.535',
                 images_sha256=sha256(BUILD/'pretraining.npy'), captions_sha256=sha256(BUILD/'pretraining.csv'),
                 model_sha256=sha256(folder/'open_clip_model.safetensors'),
                 script='nbs/reproductions/icons/pretrain.py', families=families, date=str(date.today()),
                 versions={m.__name__: m.__version__ for m in (torch, open_clip)}
                 | {'python': platform.python_version()})
    for name, what in [('open_clip_config.json', config(ck['tower'])), ('iconclip.json', about)]:
        (folder/(name + '.tmp')).write_text(json.dumps(what, indent=1) + '\n')
        os.replace(folder/(name + '.tmp'), folder/name)
    return folder

# ---------- training ----------

def train(args):
    torch.set_num_threads(args.threads)
    torch.backends.cuda.enable_flash_sdp(False)   # of CPUs, too: for a dozen tokens plain products are a fifth faster
    images, names, styles = read_pairs()
    args.out.mkdir(parents=True, exist_ok=True)
    lr, warmup = args.lr or TOWERS[args.tower]['lr'], 150
    torch.manual_seed(args.seed)
    model, tok, loss_fn = make_model(args.tower), open_clip.SimpleTokenizer(context_length=CONTEXT), open_clip.ClipLoss(
        )
    opt, start, rows, last = optimiser(model, lr), 0, [], args.out/'last.pt'
    if last.exists():
        ck = torch.load(last, map_location='cpu', weights_only=True)
        if (ck['tower'], ck['steps'], ck['batch'], ck['seed']) != (args.tower, args.steps, args.batch, args.seed):
            raise SystemExit(f'{last} belongs to another run: remove it, or give its tower, steps, batch and seed.')
        model.load_state_dict(ck['model'])
        opt.load_state_dict(ck['opt'])
        start, rows = ck['step'], ck['rows']
        print(f'goes on at step {start}', flush=True)
    order = batches(names, styles, args.steps, args.batch, args.seed)
    model.train()
    cpu, mark, total, count = time.process_time(), time.time(), 0., 0
    for step in range(start, args.steps):
        g, rng = torch.Generator().manual_seed(args.seed*1_000_003 + step), np.random.default_rng((args.seed, step))
        i = order[step]
        x = torch.from_numpy(images[np.sort(i)]).permute(0, 3, 1, 2).float()/255
        t = words_of(tok, [caption(names[j], styles[j], rng) for j in np.sort(i)])
        x = normalise(augment(x, g)).contiguous(memory_format=torch.channels_last)
        # in the schedule
        place = min(1, (time.process_time() - cpu)/args.seconds)*args.steps if args.seconds else step
        for group in opt.param_groups: group['lr'] = rate(place, args.steps, lr, warmup)
        with torch.autocast('cpu', torch.bfloat16):
            # parts fit the cache
            im = torch.cat([model.encode_image(part, normalize=True).float() for part in x.split(args.part)])
            tx = model.encode_text(t, normalize=True).float()
        loss = loss_fn(im, tx, model.logit_scale.exp())
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        opt.step()
        with torch.no_grad(): model.logit_scale.clamp_(0, math.log(100))
        total += loss.item()
        count += 1
        done = step + 1
        stop = args.seconds and time.process_time() - cpu > args.seconds
        if done % args.log == 0 or done == args.steps or stop:
            look = done % args.look == 0 or done == args.steps or stop
            speed = count*args.batch/(time.time() - mark)
            ref, shift = score(model) if look else ('', '')
            rows.append(dict(step=done, loss=f'{total/count:.4f}', lr=f"{opt.param_groups[0]['lr']:.6f}",
                             logit_scale=f'{model.logit_scale.exp().item():.2f}',
                             pairs_per_second=f'{speed:.0f}', zeroshot_reference=ref, zeroshot_shift=shift))
            print(*rows[-1].values(), flush=True)
            if look: keep(model, args.out/f'step{done:05d}.safetensors')
            if done % args.save == 0 or done == args.steps or stop:
                save_checkpoint(last, model=model.state_dict(), opt=opt.state_dict(), step=done, steps=args.steps,
                                batch=args.batch, seed=args.seed, part=args.part, tower=args.tower, rows=rows)
                if args.log_file: write_log(rows, args.log_file)
            mark, total, count = time.time(), 0., 0
        if stop: break
    return rows

def rescore(args):
    "Zero-shot columns of the log once more, on the suite as it is now."
    model = make_model(args.tower)
    rows = list(csv.DictReader(open(args.log_file)))
    for r in rows:
        f = args.out/f"step{int(r['step']):05d}.safetensors"
        r['zeroshot_reference'] = r['zeroshot_shift'] = ''
        if f.exists():
            model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(f).items()})
            r['zeroshot_reference'], r['zeroshot_shift'] = score(model)
            print(*r.values(), flush=True)
    write_log(rows, args.log_file)

def compare_towers(args):
    "Equal processor time for every tower, which the schedule of the learning rate spans; the table goes to towers.csv."
    table = []
    for tower in TOWERS:
        args.tower, args.lr, args.out, args.log_file = tower, None, BUILD/f'tower-{tower}', None
        args.seconds, args.look, args.save = args.towers, 10**9, 10**9
        (args.out/'last.pt').unlink(missing_ok=True)
        last = train(args)[-1]
        n = sum(p.numel() for p in make_model(tower).visual.parameters())
        table.append(dict(tower=tower, parameters=n, cpu_seconds=args.towers, steps=last['step'], loss=last['loss'],
                          zeroshot_reference=last['zeroshot_reference'], zeroshot_shift=last['zeroshot_shift']))
        with open(HERE/'towers.csv', 'w', newline='') as f:
            out = csv.DictWriter(f, list(table[0]))
            out.writeheader()
            out.writerows(table)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--tower', default='resnet', choices=TOWERS)
    p.add_argument('--steps', type=int, default=2800)
    p.add_argument('--batch', type=int, default=512)
    p.add_argument('--lr', type=float)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--part', type=int, default=128,
                   help='images that share BatchNorm statistics; the contrast is over the whole batch')
    p.add_argument('--threads', type=int, default=os.cpu_count())
    p.add_argument('--log', type=int, default=50)
    p.add_argument('--look', type=int, default=400)
    p.add_argument('--save', type=int, default=200)
    p.add_argument('--seconds', type=float, help='stop after so much processor time')
    p.add_argument('--out', type=Path, default=BUILD/'run')
    p.add_argument('--log-file', type=Path, default=LOG)
    p.add_argument('--to', type=Path, help='folder to export to; default: the embedded one, or build/icons/TOWER')
    p.add_argument('--score', action='store_true')
    p.add_argument('--export', action='store_true')
    p.add_argument('--towers', type=float)
    args = p.parse_args()
    if args.score: rescore(args)
    elif args.export: print(export(args))
    elif args.towers: compare_towers(args)
    else:
        train(args)
        print(export(args))

if __name__ == '__main__': main()
