#!/usr/bin/env python
"""The bench once more, with control sets judged and answers kept, by plan.json; its questions are asked elsewhere.

    python campaign.py --minutes 100            # as much as fits; what is done is not done again
    python campaign.py --part "vit, harsh"      # this part alone
    python campaign.py --first                  # of all parts what `forgotten` and `labels` ask for first
    python campaign.py --held                   # the seeds that ../bench has, too: how many answers are the same

Settings are chosen as ../bench chose them: by its own trials, which are read and not trained again, and by those of
methods that are new. Weights lie in build/campaign and may be lost. All else lies here and is committed, but for the
answers of rows other than plain fine-tuning (some 150 MB), which no question asks for.
"""
import argparse, json, shutil, sys
import numpy as np
import pandas as pd
from dataclasses import replace
from pathlib import Path
from functools import partial
from time import perf_counter
from wiseft.bench.outcome import Entry
from wiseft.bench.plan import Contender
from wiseft.bench.run import Busy, Clock, TimeIsUp, Work, carry_out, planned
from wiseft.bench.trial import Trial
from wiseft.methods.car_ft import context_head
from wiseft.shell.app import load_methods

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent/'bench'), str(HERE.parent/'names')]
from bench import At, BUILD, start_of, suite_of
from names import part_numbers, start_with

BENCH = HERE.parent/'bench'
PLAN = json.loads((HERE/'plan.json').read_text())


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


def plan_of(name):
    "What is to be done in a part, and the folder it is done in."
    part = PLAN['parts'][name]
    suite, tower, folder = suite_of(part['recipe']), part['tower'], HERE/folder_name(name)
    start, contexts = start_of(tower, suite, PLAN['templates']), start_of(tower, suite, suite.templates)
    if 'unknown' in part: start = start_with(start, part_numbers(suite.classnames, part['unknown'], seed=0))
    given = {'CAR-FT': dict(contexts=context_head(contexts))} if 'CAR-FT' in part['methods'] else {}
    plan = planned(suite, start, folder, part['methods'], tuple(PLAN['seeds']), tuple(part['lrs']),
                   tuple(PLAN['alphas']), given, part['control'], progress=False,
                   **PLAN['recipe'] | part.get('how', {}))
    plan.controls = [At(m, what, **how) for m in plan.methods
                     for what, how in part.get('further', {}).get(m.name, {}).items()]
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, help='stop after so many; default: when all is done')
    parser.add_argument('--part', choices=PLAN['parts'])
    parser.add_argument('--first', action='store_true', help='only what the first questions ask for')
    parser.add_argument('--held', action='store_true', help='train nothing')
    args, began = parser.parse_args(), perf_counter()
    load_methods()
    if args.held: return print(held().groupby('part').same.describe().round(4).to_string())
    for name in [args.part] if args.part else PLAN['parts']:
        left = args.minutes and args.minutes - (perf_counter()-began)/60
        if left is not None and left <= 0: break
        print(name, flush=True)
        print((first if args.first else carried_out)(name, left), flush=True)


if __name__ == '__main__': main()
