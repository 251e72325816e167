#!/usr/bin/env python
"""Choose prompts, the narrow reference and the fine-tuning recipe on validation families alone, and write them down.

    python choose.py            # tries everything (a few minutes), writes choice.csv
    python choose.py --write    # from choice.csv: writes wiseft/data/protocol.json, before any test image is looked at

Prompts: highest zero-shot accuracy on validation (mean of the reference and the mean over shifts).
Narrow reference: the families with the most training images; as many as gain most by averaging on validation shifts.
Recipe: highest accuracy of the fine-tuned classifier on the reference's validation images, which people tune for.
"""
import argparse, csv, json, sys
from datetime import date
from itertools import product
from pathlib import Path
from wiseft.data.suites import load_suite
from wiseft.infer.ensembles import sweep
from wiseft.infer.evaluation import evaluate
from wiseft.base.files import atomic_path, package_data, sha256_file
from wiseft.train.learner import finetune
from wiseft.models.clip import load_clip
from wiseft.models.classifier import zeroshot_classifier
from wiseft.data.prompts import find_templates
from wiseft.stats.table import MEAN, REFERENCE

sys.path.append(str(Path(__file__).resolve().parents[1]))
from runs import largest_families

HERE = Path(__file__).resolve().parent
ALPHA, SEED = 0.5, 100 # a seed that the measurement does not use
PROMPTS = dict(plain=['{}'], icon=['an icon of a {}'], icons=find_templates('icons'), simple=find_templates('simple'))
FAMILIES, LRS, EPOCHS = (4, 8), (3e-4, 1e-3, 2e-3), (10, 20)
FIXED = dict(batch_size=128, train='all', wd=0.1, label_smoothing=0., precision='bf16', crop_scale=[0.9, 1.0])
COLUMNS = ['what', 'prompts', 'families', 'images', 'lr', 'epochs', 'method', 'alpha', 'reference', 'shift']


def accuracies(table, **which):
    "Accuracy on the reference and mean over shifts of one classifier in a results table."
    if which: table = table.loc[(table[list(which)] == which).all(axis=1)]
    t = table.set_index('dataset').value
    return dict(reference=round(t[REFERENCE], 4), shift=round(t[MEAN], 4))


def try_prompts(clip, suite):
    for name, texts in PROMPTS.items():
        table = evaluate(zeroshot_classifier(clip, suite.classnames, texts), suite, split='validation', progress=False)
        yield dict(what='prompts', prompts=name, method='zero-shot', alpha=0., **accuracies(table))


def try_recipes(clip, suite, prompts):
    zeroshot = zeroshot_classifier(clip, suite.classnames, PROMPTS[prompts])
    for n, lr, epochs in product(FAMILIES, LRS, EPOCHS):
        narrow = suite.restrict_train(largest_families(suite.train, n))
        finetuned = finetune(zeroshot, narrow, epochs=epochs, lr=lr, seed=SEED, progress=False, **FIXED)
        table = sweep(zeroshot, finetuned, suite, [0, ALPHA, 1], split='validation', progress=False)
        for method, alpha in (('zero-shot', 0.), ('weight-space', ALPHA), ('logits', ALPHA), ('fine-tuned', 1.)):
            yield dict(what='recipe', prompts=prompts, families=n, images=len(narrow.train), lr=lr, epochs=epochs,
                       method=method, alpha=alpha,
                       **accuracies(table, method=method))


def best_prompts(rows):
    return max((r for r in rows if r['what'] == 'prompts'),
               key=lambda r: float(r['reference']) + float(r['shift']))['prompts']


def write_choice():
    clip, suite = load_clip(), load_suite('icons')
    rows = list(try_prompts(clip, suite))
    for r in rows: print(*r.values())
    for r in try_recipes(clip, suite, best_prompts(rows)):
        rows.append(r)
        print(*r.values(), flush=True)
    with atomic_path(HERE/'choice.csv', force=True) as tmp, open(tmp, 'w', newline='') as f:
        out = csv.DictWriter(f, COLUMNS, lineterminator='\n')
        out.writeheader()
        out.writerows(rows)


def best_recipe(rows):
    "Families by gain on the validation shifts, then learning rate and epochs by reference validation accuracy."
    runs = {}
    for r in rows:
        if r['what'] == 'recipe':
            runs.setdefault((int(r['families']), float(r['lr']), int(r['epochs'])), {})[r['method']] = r
    finetuned = lambda run: float(run['fine-tuned']['reference'])
    gain = lambda run: float(run['weight-space']['shift']) - max(float(run[m]['shift'])
                                                                 for m in ('zero-shot', 'fine-tuned'))
    def best(n): return max((k for k in runs if k[0] == n), key=lambda k: finetuned(runs[k]))
    return max(map(best, FAMILIES), key=lambda k: gain(runs[k]))


COMPARISONS = [
    dict(claim='averaging beats the zero-shot classifier under shift', dataset=MEAN, a='zero-shot', b='weight-space',
         expect='low > 0'),
    dict(claim='averaging beats the fine-tuned classifier under shift', dataset=MEAN, a='fine-tuned', b='weight-space',
         expect='low > 0'),
    dict(claim='averaging costs at most a point on the reference', dataset=REFERENCE, a='fine-tuned', b='weight-space',
         expect='low > -0.01'),
    dict(claim='weights against logits under shift', dataset=MEAN, a='logits', b='weight-space', expect='open'),
    dict(claim='weights against probabilities under shift', dataset=MEAN, a='probabilities', b='weight-space',
         expect='open'),
]
SAYING = dict(
    seeds_combined='an image counts as the share of the five seeds that classify it rightly; that share is what is '
    'averaged and resampled, so an interval speaks of new images (or families) and of these five fine-tunings; the '
    'seeds are shown next to it',
    intervals='paired bootstrap, 10,000 resamples, 95 %: over images (a recoloured copy is drawn together with its '
    'original), and over set families where every set compared has five or more')


def write_protocol():
    rows, suite = list(csv.DictReader(open(HERE/'choice.csv'))), load_suite('icons')
    families, lr, epochs = best_recipe(rows)
    names = largest_families(suite.train, families)
    protocol = dict(decided=str(date.today()),
                    chosen_by='nbs/reproductions/icons/choose.py, on validation families (choice.csv)',
        suite_sha256=json.loads(package_data('icons.json').read_text())['sha256'],
        model_sha256=sha256_file(package_data('iconclip')/'open_clip_model.safetensors'),
        templates=PROMPTS[best_prompts(rows)], classnames='one a class: the suite\'s own',
        narrow_reference=dict(families=names, images=len(suite.restrict_train(names).train)),
        recipe=dict(epochs=epochs, lr=lr, **FIXED), alpha=ALPHA, alphas=[round(a/10, 1) for a in range(11)],
        seeds=[0, 1, 2, 3, 4],
        comparisons=COMPARISONS, **SAYING)
    with atomic_path(package_data('icons.json').with_name('protocol.json'), force=True) as tmp:
        tmp.write_text(json.dumps(protocol, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--write', action='store_true', help='write the protocol from choice.csv')
    write_protocol() if p.parse_args().write else write_choice()
