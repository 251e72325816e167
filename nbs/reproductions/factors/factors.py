#!/usr/bin/env python
"""Plain fine-tuning with learning rates by layer, by plan.json, beside that of ../campaign with the same seeds.

    python factors.py --minutes 60   # as much as fits; what is done is not done again
    python factors.py --table        # factors.csv, in a minute

What it measures lies here; weights lie in build/factors and may be lost.
"""
import argparse, json, sys
import pandas as pd
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from wiseft.base.files import atomic_path
from wiseft.bench.run import carry_out, plan_bench
from wiseft.shell.app import load_methods
from wiseft.bench.matched_accuracy import matched_gains
from wiseft.stats.table import REFERENCE

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent/'bench'), str(HERE.parent/'campaign')]
from bench import BUILD, start_of, suite_of, unpacked
import campaign

unpacked(HERE)
PLAN = json.loads((HERE/'plan.json').read_text())


def plan_of(name):
    "The campaign's part, with plain fine-tuning by factors alone (logits of both ends cost no training)."
    whole, part = campaign.PLAN, campaign.PLAN['parts'][name]
    suite = suite_of(part['recipe'])
    start, how = start_of(part['tower'], suite, whole['templates']), dict(lr_factors=PLAN['parts'][name]['factors'])
    return plan_bench(suite, start, HERE/campaign.folder_name(name), ['logits'], tuple(whole['seeds']),
                   tuple(part['lrs']), tuple(whole['alphas']), {}, part['control'], progress=False,
                   **whole['recipe'] | how)


def carried_out(name, weights, minutes=None):
    folder = HERE/campaign.folder_name(name)
    return carry_out(plan_of(name), folder, weights, minutes, print)


def compared(name):
    "A part against each baseline of the campaign: a row under shift, and one on control images, as its tables have."
    with TemporaryDirectory() as empty: mine = carried_out(name, empty, 1e-9).entries['plain']
    before = campaign.read(name)
    alphas, [control] = before.plan.alphas, before.plan.control
    at, rows = mine.at(alphas), []
    for plain, on in product(map(before.entries.get, before.baselines), ('shifts', control)):
        seeds = range(len(plain.curves))
        def judged(but=None):
            wanted = lambda d: d == REFERENCE or (d == control) == (on == control)
            sets = lambda shares: {d: v for d, v in shares.items() if wanted(d)}
            return {name: {d: v[at] for d, v in sets(mine.shares(but)).items()}}, sets(plain.shares(but))
        table = matched_gains(*judged(), plain.at(alphas), without=[judged(i) for i in seeds])
        rows.append(table.assign(on=on, plain_lr=plain.trial.lr))
    columns = ['on', 'plain_lr', 'reference', 'shifted', 'gain', 'low', 'high', 'ahead', 'ahead_low', 'ahead_high']
    about = dict(part=campaign.folder_name(name), lr=mine.trial.lr, alpha=alphas[at])
    return pd.concat(rows)[columns].assign(**about)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, help='stop after so many; default: when all is done')
    parser.add_argument('--table', action='store_true', help='train nothing')
    args = parser.parse_args()
    load_methods()
    if not args.table:
        for name in PLAN['parts']: print(carried_out(name, BUILD/'factors'/campaign.folder_name(name), args.minutes))
    with atomic_path(HERE/'factors.csv', force=True) as tmp:
        pd.concat(map(compared, PLAN['parts'])).round(5).to_csv(tmp, index=False)


if __name__ == '__main__': main()
