"""How time and memory grow with images, classes and mixing coefficients, on a simulated ImageNet.

  scale.py FOLDER          make the images in FOLDER (5 GB of tiny JPEGs, deleted afterwards), measure, write scale.csv
  scale.py --read          what people read: tables, pictures, reports, cards, predictions; writes scale_read.csv
  scale.py --one TASK …    one measurement, in a process of its own

Each measurement runs in a fresh process. `seconds` and `cpu` are those of the measured part, by the clock and of the
processor; `process` those of the whole process, imports included. `kept_GB` is what it holds afterwards, `peak_GB` the
most on the way, both above what the process held before. Images have 32 pixels, so that what is measured is everything
but decoding. The machine is busy with other work: the processor's time says more than the clock's.

The committed rows of fingerprints read the first time are of code that held all hashes at once; those of predictions
have no processor time."""
import argparse
import gc
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from wiseft.base.devices import release_memory

HERE = Path(__file__).resolve().parent
TRAIN, TEST = 1_281_167, {'imagenet/val': 50_000, 'imagenet-r': 30_000, 'sketch': 50_889, 'imagenet-a': 7_500,
                          'imagenetv2-matched-frequency-format-val': 10_000}
TASKS = {}
GB = 1e9


def task(f):
    TASKS[f.__name__] = f
    return f


# ---------- the simulated ImageNet ----------

def class_folders(place):
    "What the folders of a set are called"
    from wiseft.data.layouts import imagenet_subset
    from wiseft.data.labels import imagenet_classes
    wnids = list(imagenet_classes())
    if place.startswith('imagenetv2'): return [str(i) for i in range(1000)]
    return [wnids[k] for k in imagenet_subset(place)] if place in ('imagenet-r', 'imagenet-a') else wnids


def make_set(folder, place, n, jpeg):
    "`n` JPEGs of one picture, each with a comment of its own"
    names = class_folders(place)
    for k, name in enumerate(names):
        at = folder/place/name
        at.mkdir(parents=True)
        for i in range(k, n, len(names)):
            with open(at/f'{name}_{i:07}.JPEG', 'wb') as f: f.write(jpeg + f'{place} {i}'.encode())


def make_imagenet(folder, share=1.):
    "ImageNet and five of its shifted sets, or a share of the training images"
    with tempfile.NamedTemporaryFile(suffix='.jpg') as f:
        pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(f.name, quality=50)
        jpeg = Path(f.name).read_bytes()
    for place, n in TEST.items(): make_set(folder, place, n, jpeg)
    make_set(folder, 'imagenet/train', round(share*TRAIN), jpeg)


# ---------- what is measured ----------

def memory(): return int(Path('/proc/self/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')/GB
def peak(): return int(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1])*1024/GB
def forget_peak(): Path('/proc/self/clear_refs').write_text('5')


def worked():
    "Seconds of processor time of this process and of those it has waited for"
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


class Measured:
    "Seconds, processor time and memory of a block"
    def __enter__(self):
        gc.collect()
        release_memory()  # else what was freed counts as held
        forget_peak()
        self.before, self.start, self.worked = memory(), time.perf_counter(), worked()
        return self

    def __exit__(self, *error):
        self.seconds, self.cpu = time.perf_counter() - self.start, worked() - self.worked
        gc.collect()
        self.kept, self.peak = memory()-self.before, peak()-self.before


def some_classes(folder, classes):
    "The training images of the first classes, as links"
    links = folder/f'first {classes}'
    if not links.exists():
        links.mkdir()
        for name in class_folders('imagenet/train')[:classes]: (links/name).symlink_to(folder/'imagenet/train'/name)
    return links


@task
def listing(folder, classes, **_):
    "The list of files, held out images split off"
    from wiseft.data.labels import image_folder
    from wiseft.data.layouts import hold_out
    with Measured() as m: train, validation = hold_out(image_folder(some_classes(folder, classes)))
    return m, len(train) + len(validation)


@task
def fingerprint(folder, classes, **_):
    "Hash of all files; the first time they are read"
    from wiseft.data.labels import image_folder
    images = image_folder(some_classes(folder, classes))
    with Measured() as m: assert len(images.fingerprint) == 12
    return m, len(images)


class FirstStep(Exception):
    "A training has come to its first step"


@task
def start(folder, **_):
    "All that comes before the first step of a training: suite, fingerprint, loaders, learner, first batch"
    from fastai.callback.core import Callback
    from wiseft.data.suites import load_suite
    from wiseft.train.learner import finetune
    from wiseft.models.testing import pico_classifier

    class Leave(Callback):
        def before_batch(self): raise FirstStep('The first step is reached.')
    with Measured() as m, warnings.catch_warnings(), suppress(FirstStep):
        warnings.simplefilter('ignore')
        suite = load_suite('imagenet', root=folder, allow_incomplete=True)
        finetune(pico_classifier(suite.classnames), suite, cbs=Leave(), progress=False)
        assert False, 'The training went on.'
    return m, len(suite.train)


def predictions(images, members, classes):
    "What `members` classifiers made of `images` images of six sets"
    from wiseft.data.images import ImageSet
    from wiseft.infer.scores import KeptPredictions, image_rows
    rng, names = np.random.default_rng(0), [f'class {i}' for i in range(classes)]
    sets = {}
    for k, part in enumerate([.3, .06, .18, .3, .11, .05]):
        n = round(part*images)
        files = [f'/data/set {k}/n{i%classes:08}/n{i%classes:08}_{i:07}.JPEG' for i in range(n)]
        name, role = ('reference', 'reference') if k == 0 else (f'shift {k}', 'shift')
        s = ImageSet(name, files, rng.integers(0, classes, n), names, role=role)
        s.__dict__['pixels'] = np.zeros((n, 1, 1, 3), np.uint8) # no files: the fingerprint is that of pixels
        sets[s.name] = s
    rows = image_rows(sets, 'test')
    label = rows.label.cat.codes.to_numpy()
    who = [dict(classifier='simulated', tuning='plain', method='weight-space', alpha=a, precision='fp32', seed=0)
           for a in np.linspace(0, 1, members)]
    codes = [np.where(rng.random(len(rows)) < .7, label, rng.integers(0, classes, len(rows))).astype(np.int16)
             for _ in who]
    return KeptPredictions(rows, [(w, c, {}) for w, c in zip(who, codes)])


@task
def kept(images, members, classes, **_):
    "Predictions in memory"
    predictions(100, 2, 10)
    with Measured() as m: p = predictions(images, members, classes)
    return m, len(p.images)


@task
def table(images, members, classes, **_):
    "The table of all members with exact and bootstrap intervals"
    from wiseft.infer.scores import score
    p = predictions(images, members, classes)
    with Measured() as m: assert len(score(p.frame())) == 7*members
    return m, len(p.images)


@task
def comparing(images, members, classes, **_):
    "One paired comparison of two members"
    from wiseft.analysis.paired import compare
    p = predictions(images, members, classes)
    with Measured() as m: compare(p, dict(alpha=0.), dict(alpha=1.))
    return m, len(p.images)


def written(images, members, classes):
    from wiseft.analysis.predictions import write_predictions
    p, at = predictions(images, members, classes), Path(tempfile.mkdtemp())
    return p, at, lambda: write_predictions(p, at/'a.predictions.csv.gz')


@task
def writing(images, members, classes, **_):
    "The file of predictions written"
    p, at, write = written(images, members, classes)
    with Measured() as m: write()
    shutil.rmtree(at)
    return m, len(p.images)


@task
def reading(images, members, classes, **_):
    "The file of predictions read"
    from wiseft.analysis.predictions import read_predictions
    p, at, write = written(images, members, classes)
    path = write()
    n = len(p.images)
    del p
    with Measured() as m: again = read_predictions(path)
    shutil.rmtree(at)
    return m, n if len(again) else 0


# ---------- what people read ----------

def results(images, members, classes):
    "Predictions with their confidence, as the shell keeps them, their table, and the sets"
    from wiseft.infer.scores import METRICS, score
    p, rng = predictions(images, members, classes), np.random.default_rng(1)
    column = METRICS['ECE (15 bins)'].column
    p.members = [(w, c, {column: rng.random(len(c), np.float32)}) for w, c, _ in p.members]
    p.members[0][0].update(method='zero-shot', tuning='')
    p.members[-1][0].update(method='fine-tuned')
    return p, score(p.frame())


@task
def tabulating(images, members, classes, **_):
    "The table for people"
    from wiseft.stats.table import compact, wide
    _, table = results(images, members, classes)
    with Measured() as m: wide(table), compact(table)
    return m, images


@task
def plotting(images, members, classes, **_):
    "All pictures of a table"
    from wiseft.show.plots import pictures
    _, table = results(images, members, classes)
    with Measured() as m: assert len(list(pictures(table, .5))) > 2
    return m, images


@task
def reporting(images, members, classes, **_):
    "The report, with what changed image by image; the size of the page, and seconds until Chromium has drawn it"
    from wiseft.show.report import write_report
    p, table = results(images, members, classes)
    with tempfile.TemporaryDirectory() as at:
        with Measured() as m: page = write_report(table, Path(at, 'report.html'), predictions=p)
        m.page_MB, m.opened = page.stat().st_size/1e6, seconds_to_open(page)
    return m, images


def seconds_to_open(page):
    "Seconds until a browser has loaded and drawn a page; None without Chromium"
    from playwright.sync_api import sync_playwright
    executable = shutil.which('chromium') or shutil.which('google-chrome')
    if not executable: return None
    with sync_playwright() as playwright:
        tab = playwright.chromium.launch(executable_path=executable).new_page()
        start = time.perf_counter()
        tab.goto(page.as_uri())
        tab.evaluate('() => new Promise(drawn => requestAnimationFrame(() => setTimeout(drawn)))')
        return time.perf_counter() - start


@task
def card(images, members, classes, **_):
    "The card of a saved classifier with so many classes"
    from wiseft.models.testing import pico_classifier
    from wiseft.show.card import write_card
    _, table = results(images, members, classes)
    with tempfile.TemporaryDirectory() as at:
        folder = pico_classifier([f'class {i}' for i in range(classes)]).save(Path(at, 'classifier'))
        with Measured() as m: write_card(folder, table)
    return m, images


@task
def predicting(images, classes, **_):
    "Classes and probabilities of pictures, by a classifier that computes nothing but random logits"
    import torch
    from wiseft.data.images import ImageSet
    from wiseft.infer.classify import classify

    class Random(torch.nn.Module):
        classnames = [f'class {i}' for i in range(classes)]
        def transform(self, image): return torch.zeros(3, 1, 1)
        def forward(self, x): return torch.randn(len(x), classes)
    files = [f'/data/{i:07}.JPEG' for i in range(images)]
    some = ImageSet('pictures', files, np.zeros(images, int), Random.classnames)
    some.__dict__['pixels'] = np.zeros((images, 1, 1, 3), np.uint8)
    with Measured() as m: assert len(classify(Random(), some, progress=False)) == images
    return m, images


# ---------- one after the other ----------

def one(name, **settings):
    "A row, measured in a process of its own"
    command = [sys.executable, __file__, '--one', name, json.dumps(settings, default=str)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    row = json.loads(done.stdout.splitlines()[-1]) | dict(process=round(time.perf_counter()-start, 2))
    print(row, flush=True)
    return row


def measured(name, folder=None, **settings):
    "What `one` prints"
    m, images = TASKS[name](folder=folder and Path(folder), **settings)
    row = dict(what=name, images=images, classes=settings.get('classes', 1000), members=settings.get('members', 0),
               seconds=round(m.seconds, 2), cpu=round(m.cpu, 2), kept_GB=round(m.kept, 3), peak_GB=round(m.peak, 3))
    for k in 'page_MB', 'opened':  # of a report
        if getattr(m, k, None) is not None: row[k] = round(getattr(m, k), 2)
    return row


def on_files(folder, sizes):
    rows = []
    for classes in sizes:
        rows.append(one('listing', folder=folder, classes=classes))
        for when in 'first', 'again':
            rows.append(one('fingerprint', folder=folder, classes=classes) | dict(when=when))
    for when in 'first', 'again': rows.append(one('start', folder=folder) | dict(when=when))
    return rows


def on_predictions(whole=166_963):
    rows = []
    for name in 'kept', 'table', 'comparing', 'writing', 'reading':
        settings = [(n, 31, 1000) for n in (whole//16, whole//4, whole)] + [(whole, 8, 1000)]
        if name == 'table': settings += [(whole, 31, 10), (whole, 31, 100)]
        rows += [one(name, images=n, members=m, classes=c) for n, m, c in settings]
    return rows


def on_what_is_read():
    rows = []
    for name in 'tabulating', 'plotting', 'card', 'reporting':
        for n, c in (100_000, 1000), (1_000_000, 1000), (100_000, 21_000), (1_000_000, 21_000):
            rows.append(one(name, images=n, members=11, classes=c))
    # 21,000 classes: fewer images, as a million times 21,000 logits alone take hours
    for n, c in (100_000, 1000), (1_000_000, 1000), (10_000, 21_000), (100_000, 21_000):
        rows.append(one('predicting', images=n, classes=c))
    return rows


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', nargs='?', help='where the simulated ImageNet is made')
    parser.add_argument('--one', nargs=2, metavar=('TASK', 'SETTINGS'), help='a single measurement, as JSON')
    parser.add_argument('--read', action='store_true', help='measure what people read alone')
    parser.add_argument('--share', type=float, default=1., help='of the training images (a trial run)')
    parser.add_argument('--out', default=HERE/'scale.csv', help='the table')
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measured(chosen.one[0], **json.loads(chosen.one[1]))))
        sys.exit()
    if chosen.read:
        pd.DataFrame(on_what_is_read()).to_csv(HERE/'scale_read.csv', index=False)
        sys.exit()
    folder = Path(tempfile.mkdtemp(dir=chosen.folder)).resolve()
    # work for a part of the training images, as for photographs, and for all that are held out
    os.environ |= dict(WISEFT_CACHE=str(folder/'cache'), WISEFT_CACHE_GB='.32')
    try:
        make_imagenet(folder, chosen.share)
        rows = on_files(folder, (62, 250, 1000)) + on_predictions()
    finally: shutil.rmtree(folder)
    pd.DataFrame(rows).to_csv(chosen.out, index=False)
