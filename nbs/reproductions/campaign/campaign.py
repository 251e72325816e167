#!/usr/bin/env python
"""The bench once more, with control sets judged and answers kept, by plan.json; its questions are asked elsewhere.

    python campaign.py --minutes 100            # as much as fits; what is done is not done again
    python campaign.py --part "vit, harsh"      # this part alone
    python campaign.py --first                  # of all parts what `forgotten` and `labels` ask for first
    python campaign.py --held                   # the seeds that ../bench has, too: how many answers are the same
    python campaign.py --tables                 # gains.csv, control.csv and meter.csv of what there is, in a minute

Settings are chosen as ../bench chose them: by its own trials, which are read and not trained again, and by those of
methods that are new. Weights lie in build/campaign and may be lost. All else lies here and is committed, but for the
answers of rows other than plain fine-tuning (some 150 MB), which no question asks for.
"""
import json, shutil, sys
import numpy as np
import pandas as pd
from pathlib import Path
from dataclasses import replace
from functools import partial
from itertools import compress
from tempfile import TemporaryDirectory
from time import perf_counter
from wiseft.bench.outcome import Entry
from wiseft.bench.plan import Contender
from wiseft.bench.run import Busy, Clock, TimeIsUp, Work, carry_out, plan_bench
from wiseft.base.files import atomic_path
from wiseft.base.registry import find_method
from wiseft.bench.trial import Trial
from wiseft.methods.car_ft import context_head
from wiseft.models.classifier import zeroshot_classifier
from wiseft.shell.app import load_methods
from wiseft.bench.chance import holm_among
from wiseft.bench.matched_accuracy import matched_gains
from wiseft.stats.table import REFERENCE

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent/'bench'), str(HERE.parent/'names')]
from bench import At, BUILD, start_of, suite_of, unpacked
from names import part_numbers, start_with
from runs import parts_parser

unpacked(HERE)
BENCH = HERE.parent/'bench'
PLAN = json.loads((HERE/'plan.json').read_text())
NEW = ['LDIFS', 'ProLIP', 'R-Adapter', 'task arithmetic', 'TIES', 'TSV-M', 'Iso-C', 'RegMean'] # a family of their own
SAME_END = ['ensemble', 'merge'] # kinds whose α = 1 is plain fine-tuning itself, where they are of one run


def folder_name(part): return part.replace(', ', '-').replace(' ', '-')


def bring_trials(folder, tower, recipe):
    "What the bench's trials made of validation images, but for those that it chose, which are trained again."
    gains = pd.read_csv(BENCH/'gains.csv', keep_default_na=False)
    mine = gains[(gains.tower == tower) & (gains.recipe == recipe) & (gains.lr != '')]
    def setting(r): return Trial(float(r.lr), PLAN['seeds'][0], r.method, float(r.strength) if r.strength else None)
    chosen = {setting(r).name for r in mine.itertuples()}
    for file in (BENCH/folder.name).glob(f'*, seed {PLAN["seeds"][0]}.validation.npz'):
        again = file.name.removesuffix('.validation.npz') in chosen or ' of ' in file.name
        if not again and not (folder/file.name).exists(): shutil.copy(file, folder/file.name)


def of_classes(images, which):
    "The images of some classes, numbered anew. `which`: (n_classes,) bool"
    some = images.subset(which[images.labels])
    return replace(some, labels=np.cumsum(which)[some.labels] - 1, classnames=list(compress(images.classnames, which)))


def half_the_classes(suite):
    "Split the classes with seed 0: a suite of one half, and control sets of the other, one of each test set."
    n = len(suite.classnames)
    taught = np.random.default_rng(0).permutation(n) < n//2
    parts = {k: of_classes(getattr(suite, k), taught) for k in ('train', 'validation', 'test')}
    for k in ('shifts', 'shift_validation', 'shift_train'):
        parts[k] = {d: of_classes(s, taught) for d, s in getattr(suite, k).items()}
    control = []
    for d, s in suite.datasets().items():
        name = 'untaught' if s.role == 'reference' else f'untaught, {d}'
        others = replace(of_classes(s, ~taught), name=name, role='control', templates=suite.templates)
        if len(others): control.append(others)
    return replace(suite, classnames=list(compress(suite.classnames, taught)), **parts), control


def plan_of(name):
    "What is to be done in a part, and the folder it is done in."
    part = PLAN['parts'][name]
    suite, tower, folder = suite_of(part['recipe']), part['tower'], HERE/folder_name(name)
    start, contexts = start_of(tower, suite, PLAN['templates']), start_of(tower, suite, suite.templates)
    control = part['control']
    if control == ['half']: # of the classes; the others have all prompts of the suite
        suite, control = half_the_classes(suite)
        start = zeroshot_classifier(start.clip, suite.classnames, start.templates)
    if 'unknown' in part: start = start_with(start, part_numbers(suite.classnames, part['unknown'], seed=0))
    given = {'CAR-FT': dict(contexts=context_head(contexts))} if 'CAR-FT' in part['methods'] else {}
    plan = plan_bench(suite, start, folder, part['methods'], tuple(PLAN['seeds']), tuple(part['lrs']),
                   tuple(PLAN['alphas']), given, control, progress=False,
                   **PLAN['recipe'] | part.get('how', {}))
    plan.controls = [At(None if name == 'plain' else find_method(name), what, **how)
                     for name, rows in part.get('further', {}).items() for what, how in rows.items()]
    return plan, folder


def begun(name):
    "A part's plan, its folder and where its weights are kept; trials are brought to it."
    plan, folder = plan_of(name)
    weights = BUILD/'campaign'/folder_name(name)
    carry_out(plan, folder, weights, 1e-9, lambda line: None) # writes its plan: a bench begins in an empty folder
    part = PLAN['parts'][name]
    if part.get('trials') == 'of the bench': bring_trials(folder, part['tower'], part['recipe'])
    return plan, folder, weights


def carried_out(name, minutes=None):
    "A part, or as much of it as fits; a `Bench`."
    plan, folder, weights = begun(name)
    return carry_out(plan, folder, weights, minutes, answers=True)


def first(name, minutes=None):
    "Of a part the rows that the first questions ask for, by all seeds: plain fine-tuning, and the plan's `further`."
    plan, folder, weights = begun(name)
    work = Work(plan, folder, Clock(partial(print, flush=True), minutes), answers=True, weights=weights)
    entries = [Entry(row) for row in (Contender(), *plan.controls)]
    for seed in plan.seeds:
        for entry in entries:
            try: work.advance(entry, seed)
            except Busy as e: print(f'{e}: another process is at it', flush=True)
            except TimeIsUp as e: return e
    return f'{sum(len(e.curves) for e in entries)} curves'


def held():
    "Test images of each training that the bench has, too: the share answered rightly by both or by neither."
    rows = []
    for file in sorted(HERE.glob('*/*.test.npz')):
        before = BENCH/file.parent.name/file.name
        if not before.exists(): continue
        new, old = np.load(file), np.load(before)
        same = [(new[k] == old[k]).mean() for k in old.files if k.startswith('right ') and new[k].shape == old[k].shape]
        rows.append(dict(part=file.parent.name, training=file.name.removesuffix('.test.npz'), same=np.mean(same)))
    return pd.DataFrame(rows)


def read(name):
    "What is there of a part, by the seeds that all rows have. Trains and judges nothing, whatever weights there are."
    plan, folder = plan_of(name)
    with TemporaryDirectory() as empty: return carry_out(plan, folder, empty, 1e-9, lambda line: None)


def gains(found):
    "As the bench has them, with a family of Holm's for the new methods."
    rows = [n for n in found.entries if n not in found.baselines]
    new = [n for n in rows if n in NEW]
    found.families = [dict(day='', rows=[n for n in rows if n not in new]), dict(day=PLAN['decided'], rows=new)]
    return found.gains()


def on_control(found):
    """What each row, where validation puts it, has on control images beyond plain averages as good on the reference.

    With two rows of plain fine-tuning `_best` columns are against the one at its best rate; `p_holm` is for both."""
    alphas, entries, baselines = found.plan.alphas, found.entries, found.baselines
    at = {n: e.at(alphas) for n, e in entries.items()}
    both, seeds = [REFERENCE, *found.plan.control], range(len(entries['plain'].curves))
    def shares(n, but):
        known = entries[n].shares(but)
        return known and {d: known[d] for d in both}
    def against(baseline):
        def judged(but=None): # points of the rows, and the curve of plain fine-tuning
            known = {n: s for n in entries if n not in baselines and (s := shares(n, but))}
            return {n: {d: v[at[n]] for d, v in s.items()} for n, s in known.items()}, shares(baseline, but)
        return matched_gains(*judged(), at[baseline], without=[judged(i) for i in seeds])
    first, *second = tables = [against(b) for b in baselines]
    p = np.reshape(holm_among(np.concatenate([t.gain_p for t in tables]), len(tables)*len(first)), (len(tables), -1))
    signs = np.sign([t.gain for t in tables])
    p_holm = np.where(np.isnan(p).any(0), np.nan, np.where((signs == signs[0]).all(0), p.max(0), 1))
    table = first.assign(alpha=[found.alpha(n, at[n]) for n in first.method], p=first.gain_p, p_holm=p_holm)
    table = table.rename(columns={'shifted': 'control'})
    columns = ['method', 'alpha', 'reference', 'control', 'gain', 'low', 'high', 'baseline', 'p', 'p_holm', 'over']
    best = [t[['gain', 'low', 'high', 'gain_p']].rename(columns={'gain_p': 'p'}).add_suffix('_best') for t in second]
    return pd.concat([table[columns], *best], axis=1)


def meter(found):
    "Of each classifier of rows that end elsewhere than plain fine-tuning: divergence at α = 1, and what control lost."
    control, rows = next(iter(found.plan.control)), []
    for n, e in found.entries.items():
        same = getattr(e.row.method, 'kind', '') in SAME_END and not e.several
        if same or len(e.curves[0].validation) == 1: continue
        for c in e.curves: # one a seed; of merges of all seeds one
            right = c.test[control].mean(1)
            rows.append(dict(method=n, kl=c.kl[REFERENCE][-1], lost=right[0]-right[-1]))
    return pd.DataFrame(rows)


def write_tables():
    "Of all parts that are there: gains.csv, control.csv, meter.csv. Halves of the classes are described, not judged."
    whole = [name for name in PLAN['parts'] if not name.endswith('half')]
    found = {name: read(name) for name in whole if (HERE/folder_name(name)).exists()}
    ready = {name: f for name, f in found.items() if len(f.entries) > 1 and len(f.entries['plain'].curves) == 5}
    for make in (gains, on_control, meter):
        tables = [make(f).assign(part=folder_name(name)) for name, f in ready.items()]
        with atomic_path(HERE/f'{make.__name__.removeprefix("on_")}.csv', force=True) as tmp:
            pd.concat(tables).round(5).to_csv(tmp, index=False)
    return f'tables of {", ".join(ready)}'


def main():
    parser = parts_parser(__doc__, PLAN['parts'])
    parser.add_argument('--first', action='store_true', help='only what the first questions ask for')
    parser.add_argument('--held', action='store_true', help='train nothing')
    args, began = parser.parse_args(), perf_counter()
    load_methods()
    if args.tables: return print(write_tables())
    if args.held: return print(held().groupby('part').same.describe().round(4).to_string())
    for name in [args.part] if args.part else PLAN['parts']:
        left = args.minutes and args.minutes - (perf_counter()-began)/60
        if left is not None and left <= 0: break
        print(name, flush=True)
        print((first if args.first else carried_out)(name, left), flush=True)


if __name__ == '__main__': main()
