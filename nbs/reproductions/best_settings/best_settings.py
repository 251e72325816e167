#!/usr/bin/env python
"""Methods at the settings with the best validation accuracy, beside those of the bench's rule, by plan.json.

    python best_settings.py --minutes 100              # as much as fits; what is done is not done again
    python best_settings.py --part "vit, harsh"        # this part alone; a second process shares its work
    python best_settings.py --tables                   # gains.csv of complete rows, in a minute

Which images each classifier gets right lies in a folder a part and is committed as an archive (../answers.py --pack);
weights lie in build/best_settings and may be lost.
"""
import json, sys
import numpy as np
import pandas as pd
from functools import partial
from pathlib import Path
from scipy.stats import t
from wiseft.base.files import atomic_path
from wiseft.base.registry import find_method
from wiseft.bench.outcome import Bench, Entry, resampling_units
from wiseft.bench.run import Busy, Clock, TimeIsUp, Work, carry_out, plan_bench
from wiseft.bench.trial import Trial
from wiseft.shell.app import load_methods
from wiseft.bench.chance import holm_among
from wiseft.stats.table import REFERENCE

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent), str(HERE.parent/'bench'), str(HERE.parent/'campaign')]
from bench import At, BUILD, on_both_sides, stacked, start_of, suite_of, unpacked, with_chance
from runs import parts_parser, provenance
import campaign

unpacked(HERE)
PLAN = json.loads((HERE/'plan.json').read_text())
BEST, RULE, HALF = 'best on validation', 'by the rule', 'at 0.5' # what rows are called
FROM = .5/100 # that the rule gave away


class Part:
    "A part of the plan: its rows, its plan as a bench, and where its files are."
    def __init__(self, name):
        self.name, whole, part = name, campaign.PLAN, campaign.PLAN['parts'][name]
        self.folder = HERE/campaign.folder_name(name)
        self.weights = BUILD/'best_settings'/self.folder.name
        self.rows, self.edges = PLAN['parts'][name], PLAN['edge_rows'].get(name, {})
        suite = suite_of(part['recipe'])
        start = start_of(part['tower'], suite, whole['templates'])
        self.plan = plan_bench(suite, start, self.folder, [*dict.fromkeys([*self.rows, *self.edges])],
                               tuple(PLAN['seeds']), (PLAN['plain'],), tuple(whole['alphas']), {}, part['control'],
                               progress=False, **whole['recipe'])
        self.plan.contenders = self.contenders
    def contenders(self):
        "Plain fine-tuning, and each row by both settings, as far as they are known: edges decide of some."
        plain, settings = At(None, lr=PLAN['plain']), self.settings()
        def row(m, what, called): return At(find_method(m), called, *settings[m][what])
        return [plain, *[row(m, what, called) for what, called in (('best', BEST), ('rule', RULE))
                         for m in settings if what in settings[m]]]
    def edge(self, method): # `Trial` with the seed that choices were made with
        "One rate lower, at the best strength."
        setting = self.rows.get(method, {}).get('best') or self.edges[method]['rule']
        return Trial(PLAN['edge_rate'], PLAN['choice_seed'], method, setting[1])
    def accuracy(self, folder, trial):
        "Validation accuracy of a trial, at its best α."
        with np.load(folder/f'{trial.name}.validation.npz') as kept: return kept[f'right {REFERENCE}'].mean(1).max()
    def settings(self):
        "method -> best and rule -> (rate, strength), after the trials at edges"
        settings, before = dict(self.rows), campaign.HERE/self.folder.name
        for m, row in self.edges.items():
            if not (self.folder/f'{self.edge(m).name}.validation.npz').exists(): continue
            known = self.rows.get(m) or row
            lr, strength = known.get('best') or known['rule']
            was = self.accuracy(before, Trial(lr, PLAN['choice_seed'], m, strength))
            better = self.accuracy(self.folder, self.edge(m))-was
            if better > 0 and (m in self.rows or better >= FROM-1e-9):
                settings[m] = known | dict(best=[self.edge(m).lr, strength])
        return settings
    def work(self, clock):
        "All rows with their settings, so that a plain fine-tuning makes the weight averages of all beside it."
        work = Work(self.plan, self.folder, clock, weights=self.weights)
        work.entries = {row.name: Entry(row, row.chosen_trial(work)) for row in self.contenders()}
        return work
    def make(self, clock):
        "The part, or as much of it as fits: edges, then best settings of all seeds, then those of the rule."
        carry_out(self.plan, self.folder, self.weights, 1e-9, lambda line: None) # writes its plan: first of all files
        work = self.work(clock)
        def edge(trial): work.judgment(partial(work.trained_classifier, trial), trial.name, 'validation')
        all_done([partial(edge, self.edge(m)) for m in self.edges], clock)
        work = self.work(clock) # edges have decided
        for called in (('', BEST), (RULE,)):
            some = [e for e in work.entries.values() if e.row.control in called]
            all_done([partial(work.advance, e, seed) for seed in PLAN['seeds'] for e in some], clock)
    def read(self):
        "Rows that have all seeds, as a bench. Trains and judges nothing."
        work, whole = self.work(Clock(minutes=1e-9)), {}
        for name, entry in work.entries.items():
            try:
                for seed in PLAN['seeds']: work.advance(entry, seed)
            except (Busy, TimeIsUp): continue
            whole[name] = entry
        return Bench(self.plan, whole, {})


def all_done(pieces, clock):
    "Do all; one that another process is at comes again later."
    todo = [*pieces]
    while todo:
        piece = todo.pop(0)
        try: piece()
        except Busy:
            todo.append(piece)
            clock.wait(5)


def gains(part, found):
    "Each row against averages of plain fine-tuning: under shift, and on control images."
    alphas = list(found.plan.alphas)
    at = {n: e.at(alphas) for n, e in found.entries.items() if n != 'plain'}
    for n in [n for n in at if n.startswith('LoRA') and n.endswith(BEST)]:
        found.entries[f'{n}, {HALF}'] = found.entries[n]
        at[f'{n}, {HALF}'] = alphas.index(.5)
    units = {d: list(s.units) for d, s in [(REFERENCE, found.plan.suite.test), *found.plan.control.items()]}
    table = found.against_plain(at).drop(columns=['p_holm', 'smallest', 'over'])
    on_control = found.against_plain(at, units=units).set_index('method')[['shifted', 'gain', 'low', 'high', 'gain_p']]
    on_control.columns = ['control', 'control_gain', 'control_low', 'control_high', 'control_p']
    entries = [found.entries[n] for n in table.method]
    table = table.assign(part=part.name, lr=[e.trial.lr for e in entries], strength=[e.trial.strength for e in entries],
                         alpha=[found.alpha(n, at[n]) for n in table.method])
    table = table.join(on_control, on='method').join(costs_of_the_rule(found, at), on='method')
    return table


def costs_of_the_rule(found, at):
    "Rows at their best setting less the same at the rule's: mean of reference and shift, with intervals."
    rows = {}
    for n in at:
        other = n.replace(BEST, RULE)
        if not n.endswith(BEST) or other not in at: continue
        points = [(m, at[m]) for m in (n, other)]
        def lead(accuracy): return np.subtract(*np.moveaxis(np.mean(on_both_sides(accuracy), 0), -1, 0))
        seeds = range(len(found.entries['plain'].curves))
        value, error, df = with_chance(lead, stacked(found, points), [[stacked(found, points, i) for i in seeds]],
                                       resampling_units(found.plan.suite, False))
        far = error*t.ppf(.975, df)
        rows[n] = dict(rule_cost=value, rule_cost_low=value-far, rule_cost_high=value+far)
    return pd.DataFrame.from_dict(rows, 'index', columns=['rule_cost', 'rule_cost_low', 'rule_cost_high'],
                                  dtype=float)


def write_tables():
    "Of rows that have all seeds."
    parts = [*map(Part, PLAN['parts'])]
    found = [(part, part.read()) for part in parts if part.folder.exists()]
    tables = [gains(part, rows) for part, rows in found if len(rows.entries) > 1]
    if not tables: return 'no row has all seeds'
    table = pd.concat(tables, ignore_index=True)
    family = 1 + sum('best' in row for part in parts for row in part.settings().values()) # and LoRA's at 0.5
    tested = ~table.method.str.endswith(RULE)
    table.loc[tested, 'p_holm'] = holm_among(table.p[tested].to_numpy(), family)
    with atomic_path(HERE/'gains.csv', force=True) as tmp: table.round(5).to_csv(tmp, index=False)
    return f'{len(table)} rows of {", ".join(table.part.unique())}'


def main():
    args = parts_parser(__doc__, PLAN['parts']).parse_args()
    load_methods()
    if args.tables: return print(write_tables())
    with provenance(__file__, seeds=[PLAN['choice_seed'], *PLAN['seeds']]):
        clock = Clock(partial(print, flush=True), args.minutes)
        try:
            for name in [args.part] if args.part else PLAN['parts']: Part(name).make(clock)
        except TimeIsUp as e: print(e)


if __name__ == '__main__': main()
