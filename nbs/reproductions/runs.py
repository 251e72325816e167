"""Many fine-tunings in a row, for the reproductions: a line of results each, and tables of them with intervals.

A grid of learning rates, or five seeds, is many fine-tunings, of which each takes minutes. What is wanted of them is
always the same: which image each of its classifiers got right. That fits into a line, and what is done is not done
again. Several seeds are judged together, by the share of them that were right about an image.
"""
import argparse, base64, json, platform
from collections.abc import Callable
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
import numpy as np, pandas as pd, torch
from scipy import stats
from wiseft import __version__
from wiseft.base.files import atomic_path, package_data, sha256_file
from wiseft.data.suites import Suite, load_suite, protocol
from wiseft.infer.ensembles import members
from wiseft.infer.evaluation import evaluate
from wiseft.infer.scores import image_rows
from wiseft.models.classifier import ImageClassifier, zeroshot_classifier
from wiseft.models.clip import load_clip
from wiseft.stats.intervals import mean_over_sets, mean_difference


def protocol_zeroshot(): # `Suite`, zero-shot `ImageClassifier`
    "The embedded suite with the protocol's narrow reference, and its zero-shot classifier"
    p = protocol()
    suite = load_suite('icons').restrict_train(p['narrow_reference']['families'])
    return suite, zeroshot_classifier(load_clip(), suite.classnames, p['templates']).eval()


def largest_families(
    images, # `ImageSet`
    n:int,
) -> list: # names
    "The families with the most images; of equals the first by name"
    return sorted(set(images.groups), key=lambda family: (-images.groups.count(family), family))[:n]


def judged_sets(
    suite:Suite,
) -> dict: # (split, dataset) -> `ImageSet`
    "The images that runs are judged by: of the reference's validation, and of all test sets"
    test = {('test', d): s for d, s in suite.datasets().items()}
    return {('validation', 'reference'): suite.validation} | test


def right_answers(
    members:dict, # dict (method, alpha) -> classifier or `Member`
    sets:dict, # (split, dataset) -> `ImageSet`
    **kwargs # of `evaluate`
) -> dict: # classifiers: list of (method, alpha); correct: (n_classifiers, n_images) bool
    "Which images of all sets, one after the other, each classifier got right"
    named = {' '.join(map(str, k)): c for k, c in members.items()}
    correct = []
    for images in sets.values():
        _, predictions = evaluate(named, images, keep_predictions=True, progress=False, **kwargs)
        labels = predictions.images.label.cat.codes.to_numpy()
        right = [codes == labels for _, codes, _ in predictions.members]
        correct.append(np.stack(right))
    return dict(classifiers=list(members), correct=np.concatenate(correct, axis=1))


def judge(
    zeroshot:ImageClassifier, # classifier, alpha = 0
    finetuned:ImageClassifier, # the same, fine-tuned
    sets:dict, # (split, dataset) -> `ImageSet`
    alphas:list, # 0 for the zero-shot classifier, 1 for the fine-tuned one
    by:tuple=('weight-space',), # as in `wiseft.infer.ensembles.members`
) -> dict: # as `right_answers`
    "What is right along the way from one classifier to the other"
    between = members(zeroshot, finetuned, alphas, by).values()
    asked = [m for m in between if m.identity['alpha'] in alphas]
    asked.sort(key=lambda m: m.identity['alpha'])
    return right_answers({(m.identity['method'], m.identity['alpha']): m for m in asked}, sets)


def run_name(
    settings:dict # dict, all that tells a run from the others
) -> str:
    "The name of a run: all its settings"
    return ' '.join(f'{k}={v}' for k, v in settings.items())


def _unpack(text, n_images):
    packed = np.frombuffer(base64.b64decode(text), np.uint8)
    rows = packed.reshape(-1, -(-n_images//8))
    return np.unpackbits(rows, axis=1, count=n_images).astype(bool)


def _lines(file):
    "The lines of a file of runs, a dict each"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def finished(
    file:str|Path # .jsonl
) -> set: # names
    "The runs that have their line"
    return {line['run'] for line in _lines(Path(file))}


def run_line(
    settings:dict, # dict
    result:dict, # classifiers and correct, as `right_answers` gives them, and what else is to be noted
    seconds:float, # that it took
) -> dict:
    "A run as JSON has it"
    line = dict(run=run_name(settings)) | settings | result
    packed = np.packbits(result['correct'], axis=1).tobytes()
    correct = base64.b64encode(packed).decode()
    del line['classifiers'], line['correct'] # which come last
    return line | dict(seconds=round(seconds, 1), classifiers=result['classifiers'], correct=correct)


def make_runs(
    file:str|Path, # .jsonl, made or gone on with
    settings:list, # list of dicts, one a run
    run:Callable, # function of settings -> what `right_answers` gives, with more to be noted if need be
):
    "Make the runs that have no line yet"
    file = Path(file)
    for s in settings:
        if run_name(s) in finished(file): continue
        began = perf_counter()
        line = run_line(s, run(s), perf_counter()-began)
        lines = [*_lines(file), line]
        text = ''.join(json.dumps(r) + '\n' for r in lines)
        with atomic_path(file, force=True) as tmp: tmp.write_text(text)
        print(line['run'], flush=True)


def read_runs(
    file:str|Path, # .jsonl of `make_runs`
    suite:Suite, # that they were judged by
    sets:dict|None=None, # (split, dataset) -> `ImageSet`; default `judged_sets`
): # DataFrame (settings, method, alpha, accuracies), correct (n_classifiers, n_images), DataFrame of `images`
    "Runs as a table, with which images each classifier got right"
    sets = sets or judged_sets(suite)
    images = [image_rows({d: s}, split) for (split, d), s in sets.items()]
    images = pd.concat(images, ignore_index=True).astype({'dataset': str})
    correct, rows, shifts = [], [], []
    for line in _lines(Path(file)):
        correct.append(_unpack(line.pop('correct'), len(images)))
        rows += [line | dict(method=m, alpha=a) for m, a in line.pop('classifiers')]
    correct, table = np.concatenate(correct), pd.DataFrame(rows)
    for (split, d), s in sets.items():
        mine = (images.split == split) & (images.dataset == d)
        table[d if split == 'test' else split] = correct[:, mine].mean(1)
        if split == 'test' and s.role == 'shift': shifts.append(d)
    if shifts: table['shift'] = table[shifts].mean(1)
    return table, correct, images


def repeat_run(
    file:str|Path, # .jsonl
    settings:dict, # of the run
    run:Callable, # as in `make_runs`
) -> float: # share of answers
    "Make a run again: how many of its answers, right or wrong, differ from its line"
    name = run_name(settings)
    lines = {line['run']: line for line in _lines(Path(file))}
    if name not in lines: raise ValueError(f'{file} has no run {name!r}. It has {sorted(finished(file))}.')
    line, now = lines[name], run(settings)
    if [list(c) for c in now['classifiers']] != line['classifiers']: raise ValueError(
        f"The run {name!r} has classifiers {line['classifiers']}, and now {now['classifiers']}.")
    before = _unpack(line['correct'], now['correct'].shape[1])
    return float((before != now['correct']).mean())


def run_script(
    script:str, # __file__ of it
    settings:list, # list of dicts, one a run
    run:Callable, # as in `make_runs`
    file:str='runs.jsonl', # beside it
    argv:list|None=None,# default: the command line's
):
    "Make a folder's runs, and note where they came from; or with --repeat make one of them again"
    parser = argparse.ArgumentParser()
    parser.add_argument('--repeat', metavar='RUN',
                        help='make this run again, and say what share of its answers differs')
    name = parser.parse_args(argv).repeat
    out = Path(script).parent/file
    if name is None:
        with provenance(script, seeds=sorted({s['seed'] for s in settings if 'seed' in s})):
            make_runs(out, settings, run)
        return
    named = {run_name(s): s for s in settings}
    if name not in named: parser.error(f'There is no run {name!r}. There are:\n' + '\n'.join(named))
    print(f'{name}: {repeat_run(out, named[name], run):.4%} of the answers differ')


def n_results(
    folder:str|Path
) -> int:
    "How many results a folder of a reproduction has, in its runs.jsonl and results.csv"
    lines = [len(f.read_text().splitlines()) for f in Path(folder).glob('runs*.jsonl')]
    tables = [len(f.read_text().splitlines()) - 1 for f in Path(folder).glob('results.csv')] # a header is none
    return sum(lines) + sum(tables)


@contextmanager
def provenance(
    script:str, # whose folder has the results
    **more  # to be noted, such as seeds
):
    "Add an entry to provenance.json beside a script, also if it is stopped; the source is that of its start"
    script = Path(script)
    # what results follow from
    versions = dict(wiseft=__version__, torch=version('torch'), fastai=version('fastai'))
    versions |= dict(open_clip=version('open_clip_torch'), python=platform.python_version())
    origin = dict(threads=torch.get_num_threads(), machine=f'{platform.system()} {platform.machine()}, CPU only')
    origin['source_sha256'] = {script.name: sha256_file(script)}
    origin['model_sha256'] = sha256_file(package_data('iconclip')/'open_clip_model.safetensors')
    origin['suite_sha256'] = json.loads(package_data('icons.json').read_text())['sha256']
    # what came of the call
    began, before, file = perf_counter(), n_results(script.parent), script.with_name('provenance.json')
    try: yield
    finally:
        entries = json.loads(file.read_text()) if file.exists() else []
        seconds = round(perf_counter()-began)
        added = n_results(script.parent)-before
        entry = dict(command=f'python {script.name}', **more, date=str(date.today()), seconds=seconds, added=added)
        entries.append(entry | origin | dict(versions=versions))
        with atomic_path(file, force=True) as tmp: tmp.write_text(json.dumps(entries, indent=1) + '\n')


def parts_parser(
    description:str, # of the script: its docstring
    parts, # names that --part takes
) -> argparse.ArgumentParser:
    "Options of a script that trains part after part: `--part`, `--minutes`, and `--tables`, which trains nothing"
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--part', choices=parts)
    parser.add_argument('--minutes', type=float, help='begin nothing after so many; default: when all is done')
    parser.add_argument('--tables', action='store_true', help='train nothing')
    return parser


def provenance_table(
    folder:str|Path='.'
) -> pd.DataFrame: # a row a call
    "The calls that made a folder's results; ValueError unless between them they made every line"
    entries = json.loads((Path(folder)/'provenance.json').read_text())
    def spelled(d, digits=None): return ' '.join(f'{k} {v[:digits]}' for k, v in d.items())
    for e in entries:
        e['seeds'] = ', '.join(map(str, e['seeds']))
        e['source'], e['versions'] = spelled(e['source_sha256'], 8), spelled(e['versions'])
    table, n = pd.DataFrame(entries), n_results(folder)
    if table.added.sum() != n: raise ValueError(
        f'{folder}: provenance.json accounts for {table.added.sum()} lines of results, and there are {n}.')
    columns = ['seeds', 'date', 'seconds', 'results added', 'threads', 'machine', 'source', 'versions']
    columns += [c for c in ['note'] if c in table]
    return table.rename(columns=dict(added='results added')).set_index('command')[columns].fillna('')


def test_rows(
    images:pd.DataFrame, # of `read_runs`
    dataset:str='shift', # name of a set, or all shifts together
): # bool, one an image
    "Which rows are test images of one set, or of all shifts"
    if dataset == 'shift': return images.role == 'shift'
    return (images.dataset == dataset) & (images.split == 'test')


def _by_set(images, values, dataset):
    "Set -> values, and -> units, of the test images of one set, or of all shifts"
    by_set, units = {}, {}
    for d, rows in images[test_rows(images, dataset)].groupby('dataset', sort=False):
        by_set[d] = values[rows.index].astype(float)
        units[d] = list(rows.unit)
    return by_set, units


def share_interval(
    images:pd.DataFrame, # of `read_runs`
    values:np.ndarray, # one an image: right or wrong, or the share of runs that were right
    dataset:str='shift', # name of a set, or the mean over all shifts
) -> tuple: # (accuracy, low, high)
    "Accuracy with its 95 % interval over images"
    return mean_over_sets(*_by_set(images, values, dataset))


def share_difference(
    images:pd.DataFrame, # of `read_runs`
    a:np.ndarray, b:np.ndarray, # as `values` in `share_interval`
    dataset:str='shift', # as there
) -> tuple: # (b − a, low, high), in points
    "How much more accurate b is than a on the same images, with its 95 % interval"
    a, units = _by_set(images, a, dataset)
    b, _ = _by_set(images, b, dataset)
    return tuple(100*v for v in mean_difference(a, b, units))


def accuracy_table(
    runs:pd.DataFrame, correct:np.ndarray, images:pd.DataFrame, # of `read_runs`
    by:list, # columns of `runs` that make a group
    datasets:tuple=('reference', 'shift'),
) -> pd.DataFrame: # percent
    "Accuracies of groups of classifiers, each the mean of its runs, with 95 % intervals over images"
    n = {d: test_rows(images, d).sum() for d in datasets}
    rows = []
    for key, group in runs.groupby(by, sort=False):
        row = dict(zip(by, key)) | {('', 'runs'): len(group)}
        for d in datasets:
            interval = share_interval(images, correct[group.index].mean(0), d)
            for column, v in zip(('accuracy', 'low', 'high'), interval): row[f'{d}, n = {n[d]:,}', column] = 100*v
        rows.append(row)
    table = pd.DataFrame(rows).set_index(by)
    table.columns = pd.MultiIndex.from_tuples(table.columns)
    return table.round(1)


def change_table(
    images:pd.DataFrame, # of `read_runs`
    pairs:dict, # key -> (a, b), as in `share_difference`
    names:list, # of the key's parts
) -> pd.DataFrame: # points
    "b − a on the reference and under shift, with numbers of images and 95 % intervals"
    rows = {}
    for key, (a, b) in pairs.items():
        rows[key] = {}
        for d in ('reference', 'shift'):
            rows[key][d, 'n'] = int(test_rows(images, d).sum())
            for c, v in zip(('points', 'low', 'high'), share_difference(images, a, b, d)): rows[key][d, c] = v
    table = pd.DataFrame(rows).T.rename_axis(names)
    return table.astype({c: int for c in table if c[1] == 'n'})


def cell_interval(
    values:pd.Series, # one a run
    settings:pd.DataFrame, # with `lr` and `epochs`, in the same index
) -> tuple: # (mean, low, high), 95 % by Student's t
    "Mean over cells of learning rate × epochs, with the interval that their scatter gives"
    cells = values.groupby([settings.lr, settings.epochs]).mean()
    n, mean = len(cells), cells.mean()
    t = stats.t.ppf(.975, n-1)
    half = t*cells.std(ddof=1)/np.sqrt(n)
    return mean, mean-half, mean+half
