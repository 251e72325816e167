"""What the long runs of this folder share: images decoded once, classifiers along alpha, one line of results a finished run."""
import base64, json, platform, time
from contextlib import contextmanager
from datetime import date
from pathlib import Path
import fastai, numpy as np, open_clip, pandas as pd, torch, wiseft
from scipy import stats
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter
from fastai.callback.core import Callback, CancelValidException
from wiseft.datasets import load_suite, protocol
from wiseft.scores import image_rows
from wiseft.files import atomic_path, package_data, sha256_file
from wiseft.learner import clip_learner
from wiseft.metrics import bootstrap_mean, paired_bootstrap
from wiseft.clips import load_clip
from wiseft.classifiers import zeroshot_classifier
from wiseft.merging import WeightPath

ALPHAS = [round(a/10, 1) for a in range(1, 10)]


def narrow_start():
    "The embedded suite with the protocol's narrow reference, and its zero-shot classifier."
    p = protocol()
    suite = load_suite('icons').restrict_train(p['narrow_reference']['families'])
    return suite, zeroshot_classifier(load_clip(), suite.classnames, p['templates']).eval()


# ---------- training ----------

class LastEpoch(Callback):
    "No validation during a fit: the weights after the last epoch are those that count."
    order = 50
    def before_validate(self): raise CancelValidException


def fit(dls, classifier, epochs, lr, seed, cbs=(), **kwargs):
    "What `wiseft.learner.finetune` does, on DataLoaders whose images stay decoded from run to run; returns the learner."
    dls.train.seed, dls.train.epoch = seed, 0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        learn = clip_learner(dls, classifier, precision='bf16', progress=False, cbs=[LastEpoch(), *cbs], **kwargs)
        learn.start_accuracy = 0. # nothing is compared with it
        return learn.fit_cosine(epochs, lr)


# ---------- predictions ----------

def looked_at(suite):
    "The image sets that runs are judged by: (split, dataset) -> `ImageSet`, the reference's validation images first."
    return {('validation', 'reference'): suite.validation} | {('test', d): s for d, s in suite.datasets().items()}


def pixels(clip, sets):
    "All images of several sets, transformed: (n, 3, height, width)."
    x = torch.stack([clip.transform(s.open(i)) for s in sets for i in range(len(s))])
    return x.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def logits(classifier, x, precision='bf16'):
    "Logits of images, (n, n_classes), computed in bfloat16 where autocast thinks it safe, or in single precision."
    with torch.autocast('cpu', torch.bfloat16, enabled=precision == 'bf16'):
        return torch.cat([classifier.eval()(b).float() for b in x.split(256)])


def along(zeroshot, finetuned, x, alphas=ALPHAS, precision='bf16'):
    "(alpha, logits) of weight-space ensembles, one at a time."
    path = WeightPath(zeroshot.copy(), zeroshot.state_dict(), finetuned.state_dict())
    for a in alphas: yield a, logits(path(a), x, precision)


# ---------- one line a run ----------

def pack(correct):
    "(n_classifiers, n_images) bool as text."
    return base64.b64encode(np.packbits(correct, axis=1).tobytes()).decode()


def unpack(text, n_images):
    bits = np.frombuffer(base64.b64decode(text), np.uint8).reshape(-1, -(-n_images//8))
    return np.unpackbits(bits, axis=1, count=n_images).astype(bool)


def finished(path):
    "Names of the runs that have their line."
    return {json.loads(l)['run'] for l in open(path)} if path.exists() else set()


def record(path, run, settings, classifiers, correct, began):
    "Append a run's line: its settings, (method, alpha) of each classifier, and which images each got right."
    line = dict(run=run, **settings, seconds=round(time.time()-began, 1), classifiers=classifiers, correct=pack(correct))
    with open(path, 'a') as f: f.write(json.dumps(line) + '\n')
    print(date.today(), time.strftime('%H:%M:%S'), run, line['seconds'], flush=True)


def read_runs(path, suite, sets=None):
    "Table with a row a classifier (settings, method, alpha, accuracies), and correct, (n_classifiers, n_images), of `images`."
    sets = sets or looked_at(suite)
    images = pd.concat([image_rows({d: s}, k) for (k, d), s in sets.items()], ignore_index=True).astype({'dataset': str})
    lines = [json.loads(l) for l in open(path)]
    correct = np.concatenate([unpack(l.pop('correct'), len(images)) for l in lines])
    table = pd.DataFrame([l | dict(method=m, alpha=a) for l in lines for m, a in l.pop('classifiers')])
    at = {d if k == 'test' else k: (images.split == k) & (images.dataset == d) for k, d in sets}
    for name, mask in at.items(): table[name] = correct[:, mask].mean(1)
    table['shift'] = table[list(suite.shifts)].mean(1)
    return table, correct, images


def chosen(images, dataset='shift'):
    "Which rows are test images of one set, or of all shifts."
    return images.is_shift if dataset == 'shift' else (images.dataset == dataset) & (images.split == 'test')


def _by_set(images, values, dataset):
    "Set -> values, and -> units, of the test images of one set, or of all shifts."
    sets = {d: rows.index for d, rows in images[chosen(images, dataset)].groupby('dataset', sort=False)}
    return {d: values[i].astype(float) for d, i in sets.items()}, {d: list(images.unit[i]) for d, i in sets.items()}


def interval(images, values, dataset='shift'):
    "(accuracy, low, high) of `values`, one an image: right or wrong, or the share of runs that were right."
    return bootstrap_mean(*_by_set(images, values, dataset), n_resamples=2000)


def difference(images, a, b, dataset='shift'):
    "(b − a, low, high) on the same images, in points."
    (a, units), (b, _) = _by_set(images, a, dataset), _by_set(images, b, dataset)
    return tuple(100*v for v in paired_bootstrap(a, b, units, n_resamples=2000))


def over_cells(values, settings):
    """(mean, low, high) over cells of learning rate × epochs, 95 % by Student's t: runs of a cell differ in little but a regulariser,
    so the cells are counted, not the runs. `values`, one a run, and `settings`, with `lr` and `epochs`, share an index."""
    cells = values.groupby([settings.lr, settings.epochs]).mean()
    half = stats.t.ppf(.975, len(cells)-1)*cells.std(ddof=1)/np.sqrt(len(cells))
    return cells.mean(), cells.mean()-half, cells.mean()+half


def changes(images, pairs, names):
    "Key -> (a, b): a table of b − a on the reference and under shift, in points, with numbers of images and 95 % intervals; `names` are those of the key's parts."
    rows = {key: {(d, c): v for d in ('reference', 'shift') for c, v in zip(('n', 'points', 'low', 'high'), (int(chosen(images, d).sum()), *difference(images, a, b, d)))} for key, (a, b) in pairs.items()}
    table = pd.DataFrame(rows).T.rename_axis(names)
    return table.astype({c: int for c in table if c[1] == 'n'})


def accuracies(runs, correct, images, by, datasets=('reference', 'shift')):
    "Accuracies of groups of classifiers (each the mean of its runs) in per cent, with numbers of images and 95 % intervals over images."
    rows = []
    for key, t in runs.groupby(by, sort=False):
        values = correct[t.index].mean(0)
        rows.append(dict(zip(by, key)) | {('', 'runs'): len(t)} | {(f'{d}, n = {chosen(images, d).sum():,}', c): 100*v
                    for d in datasets for c, v in zip(('accuracy', 'low', 'high'), interval(images, values, d))})
    table = pd.DataFrame(rows).set_index(by)
    table.columns = pd.MultiIndex.from_tuples(table.columns)
    return table.round(1)


def logit_axes(ax, xlim, ylim, step=5):
    "Both axes of accuracies on logit scales, ticks in per cent; limits as fractions."
    for axis, name, (lo, hi) in ((ax.xaxis, 'x', xlim), (ax.yaxis, 'y', ylim)):
        ax.set(**{f'{name}scale': 'logit', f'{name}lim': (lo, hi)})
        axis.set_major_locator(FixedLocator([t/100 for t in range(step, 100, step) if lo <= t/100 <= hi]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(PercentFormatter(1, 0))
    ax.grid(color='.92'); ax.set_axisbelow(True)


# ---------- where it came from ----------

def n_results(folder):
    "How many lines of results a folder has."
    lines = {f: len(f.read_text().splitlines()) for f in [*Path(folder).glob('runs*.jsonl'), *Path(folder).glob('results.csv')]}
    return sum(n - (f.suffix == '.csv') for f, n in lines.items()) # a header is none


@contextmanager
def provenance(script, **more):
    "Add to provenance.json beside a script: one entry an invocation, also where it is stopped; the source is that of its start."
    folder, began, sources = Path(script).parent, time.time(), {p.name: sha256_file(p) for p in (Path(script), Path(__file__))}
    before, file = n_results(folder), folder/'provenance.json'
    try: yield
    finally:
        about = dict(command=f'python {Path(script).name}', **more, date=str(date.today()), seconds=round(time.time()-began), added=n_results(folder)-before,
            threads=torch.get_num_threads(), machine=f'{platform.system()} {platform.machine()}, CPU only', source_sha256=sources,
            model_sha256=sha256_file(package_data('iconclip')/'open_clip_model.safetensors'), suite_sha256=json.loads(package_data('icons.json').read_text())['sha256'],
            versions={m.__name__: m.__version__ for m in (wiseft, torch, fastai, open_clip)} | dict(python=platform.python_version()))
        entries = (json.loads(file.read_text()) if file.exists() else []) + [about]
        with atomic_path(file, force=True) as tmp: tmp.write_text(json.dumps(entries, indent=1) + '\n')


def made(folder='.'):
    "The invocations that made a folder's results, as a table; between them they made every line."
    entries = json.loads((Path(folder)/'provenance.json').read_text())
    table = pd.DataFrame([e | {'seeds': ', '.join(map(str, e['seeds'])), 'source': ' '.join(f'{k} {v[:8]}' for k, v in e['source_sha256'].items()),
                               'versions': ' '.join(f'{k} {v}' for k, v in e['versions'].items())} for e in entries])
    assert table.added.sum() == n_results(folder), f'{table.added.sum()} lines accounted for, {n_results(folder)} there'
    return table.rename(columns=dict(added='results added')).set_index('command')[['seeds', 'date', 'seconds', 'results added', 'threads', 'machine', 'source', 'versions', *(['note'] if 'note' in table else [])]].fillna('')
