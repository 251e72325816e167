#!/usr/bin/env python
"""iconclip pretrained again by other seeds, and plain fine-tuning from there, by plan.json.

    python ../icons/build_suite.py       # pretraining images, once
    python starts.py --minutes 100       # as much as fits; what is done is not done again
    python starts.py --part resnet       # this tower alone: its pretrainings, then its parts
    python starts.py --tables            # starts.csv, of parts that are complete

A pretraining takes an hour on two idle cores, and goes on from its last 200 steps. Which images each classifier gets
right lies in a folder a part and a start, and is committed as an archive (../answers.py --pack), with the pretraining's
log beside it; towers and weights lie in build/starts.
"""
import json, subprocess, sys
import numpy as np
import pandas as pd
from functools import partial
from itertools import product
from pathlib import Path
from scipy.stats import t
from time import perf_counter
from wiseft.base.files import atomic_path
from wiseft.bench.run import Busy, Clock, TimeIsUp, Work, carry_out, plan_bench
from wiseft.bench.outcome import Entry
from wiseft.data.suites import load_suite, protocol
from wiseft.models.classifier import zeroshot_classifier
from wiseft.models.clip import load_clip
from wiseft.shell.app import load_methods
from wiseft.stats.table import REFERENCE

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent), *(str(HERE.parent/name) for name in ('bench', 'campaign', 'protocol2'))]
from bench import At, suite_of, unpacked
from runs import parts_parser, provenance
import bench, campaign, protocol2

unpacked(HERE)
BUILD = HERE.parents[2]/'build'/'starts'
PLAN = json.loads((HERE/'plan.json').read_text())
CONTROL = 'other-icons'


def pretrained(tower, start, seconds):
    "The folder of a tower by a seed; TimeIsUp if the time doesn't do."
    folder = BUILD/f'{tower}-{start}'
    if (folder/'iconclip.json').exists(): return folder # written last
    if not (BUILD.parent/'icons'/'pretraining.npy').exists(): raise SystemExit(
        'There are no pretraining images in build/icons. Make them first: python ../icons/build_suite.py')
    command = [HERE.parent/'icons'/'pretrain.py', '--tower', PLAN['towers'][tower], '--seed', start,
               '--out', BUILD/f'{folder.name}.run', '--log-file', HERE/f'{folder.name}.csv', '--to', folder]
    try: subprocess.run([sys.executable, *map(str, command)], check=True, timeout=seconds)
    except subprocess.TimeoutExpired: raise TimeIsUp(f'There was no time left for: pretrain {folder.name}.')
    return folder


class Part:
    "A part of the plan from one start: plain fine-tuning, at each of its rates by each of its seeds."
    def __init__(self, name, start):
        self.how, self.start = PLAN['parts'][name], start
        self.folder = HERE/f'{campaign.folder_name(name)}-{start}'
    def plan(self):
        how, suite = self.how, suite_of(self.how['families'])
        of_protocol = how['as'] == 'protocol 2'
        recipe = protocol(2)['recipe'] if of_protocol else campaign.PLAN['recipe']
        zeroshot = zeroshot_classifier(load_clip(str(BUILD/f'{how["tower"]}-{self.start}')), suite.classnames,
                                       campaign.PLAN['templates']).eval()
        plan = plan_bench(suite, zeroshot, self.folder, [], tuple(how['seeds']), tuple(how['lrs']),
                          tuple(PLAN['alphas']), {}, () if of_protocol else [CONTROL], progress=False, **recipe)
        plan.contenders = lambda: [At(None, f'lr {lr:g}' if i else '', lr) for i, lr in enumerate(how['lrs'])]
        return plan
    def file(self, lr, seed): return self.folder/f'plain, lr {lr:g}, seed {seed}.test.npz'
    @property
    def is_complete(self): return all(self.file(*k).exists() for k in product(self.how['lrs'], self.how['seeds']))
    def make(self, clock):
        if self.is_complete: return
        plan, weights = self.plan(), BUILD/self.folder.name
        carry_out(plan, self.folder, weights, 1e-9, lambda line: None) # writes its plan: first of all files
        work, entries = Work(plan, self.folder, clock, weights=weights), [Entry(c) for c in plan.contenders()]
        for seed, entry in product(plan.seeds, entries):
            try: work.advance(entry, seed)
            except Busy as e: print(f'{e}: another process is at it', flush=True)
    def accuracies(self):
        "on -> (alphas,), mean over rates and seeds"
        if self.start: files = [self.file(*k) for k in product(self.how['lrs'], self.how['seeds'])]
        elif self.how['as'] == 'protocol 2': return of_protocol2(self.how)
        else: files = [campaign.HERE/campaign.folder_name(f'{self.how["tower"]}, {self.how["families"]}')/f.name
                       for f in (self.file(*k) for k in product(self.how['lrs'], self.how['seeds']))]
        return mean_of([by_side(dict(np.load(f))) for f in files])


def by_side(arrays):
    "Accuracies along α on the reference, under shift, and on control images, where there are any."
    of = {k.removeprefix('right '): v.mean(1) for k, v in arrays.items() if k.startswith('right ')}
    control = {'control': of.pop(CONTROL)} if CONTROL in of else {}
    return dict(reference=of.pop(REFERENCE), shift=np.mean([*of.values()], 0)) | control


def mean_of(several): return {k: np.mean([one[k] for one in several], 0) for k in several[0]}


def of_protocol2(how):
    "The same of protocol 2, with the published start."
    suite, plan = load_suite('icons'), protocol2.read_plan()
    runs, _, _ = protocol2.read_runs(protocol2.RUNS, suite, protocol2.judged_by(suite))
    mine = runs[(runs.families == bench.PLAN['recipes'][how['families']]['families']) & runs.lr.isin(how['lrs'])]
    along = mine.groupby('alpha')[[REFERENCE, *plan['hypotheses']['shifts']]].mean()
    return dict(reference=along.pop(REFERENCE).to_numpy(), shift=along.mean(axis=1).to_numpy())


# ---------- tables ----------

def changes(a): # on -> accuracies along α
    "What is told of a start, in points, and the share restored in percent."
    first, half, last = (PLAN['alphas'].index(alpha) for alpha in (0, .5, 1))
    rows = {(what, on): 100*(v[i]-v[j]) for on, v in a.items()
            for what, i, j in (('0.5 less 1', half, last), ('0.5 less 0', half, first), ('1 less 0', last, first))}
    if 'control' in a:
        old = a['control']
        rows['share restored', 'control'] = 100*(old[half]-old[last])/(old[first]-old[last])
    return rows


def write_tables():
    "Of parts that are complete, and of the towers whose parts are: starts.csv, and curves.csv along α."
    starts, known = [0, *PLAN['starts']], {}
    for name in PLAN['parts']:
        if all(Part(name, s).is_complete for s in PLAN['starts']):
            known[name] = [Part(name, s).accuracies() for s in starts]
    for tower in PLAN['towers']:
        parts = [n for n, how in PLAN['parts'].items() if how['tower'] == tower]
        if not known.keys() >= {*parts}: continue
        with_control = [n for n in parts if 'control' in known[n][0]]
        def mean(i): return mean_of([{k: known[n][i][k] for k in ('reference', 'shift')} for n in parts]) | \
            mean_of([{'control': known[n][i]['control']} for n in with_control])
        known[f'{tower}, all parts'] = [mean(i) for i in range(len(starts))]
    if not known: return 'no part is complete'
    rows, curves = [], []
    for name, of_starts in known.items():
        for key, values in pd.DataFrame([*map(changes, of_starts)]).items():
            far = t.ppf(.975, len(values)-1)*values.std()/np.sqrt(len(values))
            about = dict(part=name, change=key[0], on=key[1], mean=values.mean(), low=values.mean()-far,
                         high=values.mean()+far)
            rows.append(about | {f'start {s}': v for s, v in zip(starts, values)})
        curves += [pd.DataFrame(a).assign(part=name, start=s, alpha=PLAN['alphas']) for s, a in zip(starts, of_starts)]
    for name, table in (('starts', pd.DataFrame(rows)), ('curves', pd.concat(curves))):
        with atomic_path(HERE/f'{name}.csv', force=True) as tmp: table.round(5).to_csv(tmp, index=False)
    return f'{len(known)} parts and towers'


def main():
    args, began = parts_parser(__doc__, PLAN['towers']).parse_args(), perf_counter()
    load_methods()
    if args.tables: return print(write_tables())
    clock = Clock(partial(print, flush=True), args.minutes)
    with provenance(__file__, seeds=PLAN['starts']):
        try:
            for tower, start in product([args.part] if args.part else PLAN['towers'], PLAN['starts']):
                pretrained(tower, start, args.minutes and 60*args.minutes - (perf_counter()-began))
                for name, how in PLAN['parts'].items():
                    if how['tower'] == tower: Part(name, start).make(clock)
        except TimeIsUp as e: print(e)


if __name__ == '__main__': main()
