#!/usr/bin/env python
"""Name the images that the second protocol keeps in reserve, reserve.csv, and those left out and why, left_out.csv.

    python ../icons/build_suite.py && python reserve.py    # the first makes the pretraining images, a few minutes

They are the outline and solid images of those training families that neither protocol fine-tunes on. All were looked at
in contact sheets, one row per class; audit.json lists those that do not show their class. An image nearly like one of
pretraining or of the fine-tuned families is left out too, measured as the suite itself does.
"""
import json, sys
from pathlib import Path
import numpy as np, pandas as pd
from PIL import Image
from wiseft.data.suites import load_suite
from wiseft.base.files import atomic_path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from near_duplicates import gray_thumbnails, near_duplicates
from runs import largest_families

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[2]/'build'/'icons' # what icons/build_suite.py makes
FAMILIES = 8 # as many as either protocol fine-tunes on


def read(files, root):
    "16 × 16 gray versions of image files."
    return gray_thumbnails([np.asarray(Image.open(root/f).convert('RGB')) for f in files])


def main():
    suite = load_suite('icons')
    table = pd.read_csv(suite.train.root/'icons.csv', keep_default_na=False)
    table['file'] = table.file.str.removeprefix('icons/')
    train = table[(table.split == 'train') & table['style'].isin(['outline', 'solid'])]
    seen = train.family.isin(largest_families(suite.train, FAMILIES))
    left = train.loc[~seen, ['file', 'style', 'class', 'family']].copy()
    audit = json.loads((HERE/'audit.json').read_text())
    wrong = {f'{c}/{name}' for c, names in audit['wrong'].items() for name in names}
    shown = left['class'] + '/' + left.file.str.extract(r'([^/]+)\.png$')[0]
    assert wrong <= set(shown), wrong - set(shown)
    pretrained = np.load(BUILD/'pretraining.npy', mmap_mode='r')
    pretrained = np.concatenate([gray_thumbnails(pretrained[k:k+8192]) for k in range(0, len(pretrained), 8192)])
    images = read(left.file, suite.train.root)
    left['out'] = ''
    left.loc[near_duplicates(images, pretrained), 'out'] = 'like a pretraining image'
    left.loc[near_duplicates(images, read(train[seen].file, suite.train.root)),
             'out'] = 'like an image of the eight families'
    left.loc[shown.isin(wrong), 'out'] = 'does not show its class'
    print(left.groupby(['style', 'out']).size())
    files = {'reserve.csv': left[left.out == ''].drop(columns='out'), 'left_out.csv': left[left.out != '']}
    for name, rows in files.items():
        with atomic_path(HERE/name, force=True) as tmp: rows.to_csv(tmp, index=False, lineterminator='\n')


if __name__ == '__main__': main()
