#!/usr/bin/env python
"""The paper's main results, for those with the data and a GPU: zero-shot, fine-tuned, and the curve over alpha.

    python reproduce.py vit_b16_imagenet_e2e --device cuda --workers 12
    python reproduce.py --list

Data lie as `wiseft data` says (data root: WISEFT_DATA). Writes zeroshot/, finetuned/, and results.csv, on every set,
into the folder of the recipe's name beside this script;
fine-tuning goes on from its checkpoint after an interruption.
"""
import argparse
from pathlib import Path
from wiseft.data.suites import load_suite
from wiseft.infer.ensembles import sweep
from wiseft.train.learner import finetune
from wiseft.models.clip import load_clip
from wiseft.models.classifier import zeroshot_classifier
from wiseft.stats.table_io import write_results

HERE = Path(__file__).resolve().parent
TOWERS = dict(vit_b16='ViT-B-16-quickgelu', vit_b32='ViT-B-32-quickgelu', vit_l14_336='ViT-L-14-336-quickgelu')
RECIPES = {f'{tower}_imagenet_{kind}': dict(model=TOWERS[tower], suite='imagenet', train=train) for tower in TOWERS
           for kind, train in (('e2e', 'all'), ('lc', 'head'))} \
    | {f'vit_l14_336_{suite}_e2e': dict(model=TOWERS['vit_l14_336'], suite=suite, train='all')
       for suite in ('cifar10', 'iwildcam', 'fmow')}
FINETUNING = dict(epochs=10, lr=3e-5, batch_size=512, wd=.1, warmup_steps=500, clip_norm=1., label_smoothing=0.,
                  crop_scale=(.9, 1.), precision='bf16')
ALPHAS = [round(a/20, 2) for a in range(21)]


def reproduce(name, device, workers, seed=0):
    "Everything of one recipe, into its folder."
    r, folder = RECIPES[name], HERE/name
    suite = load_suite(r['suite'])
    start = zeroshot_classifier(load_clip(r['model'], 'openai', device=device), suite.classnames, suite.templates)
    finetuned = finetune(start, suite, train=r['train'], seed=seed, workers=workers, checkpoint_dir=folder/'checkpoint',
                     resume=True, **FINETUNING)
    for c, part in ((start, 'zeroshot'), (finetuned, 'finetuned')): c.save(folder/part, force=True)
    write_results(sweep(start, finetuned, suite, ALPHAS, seed=seed, name=name, workers=workers), folder/'results.csv',
                  force=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', nargs='?', choices=RECIPES)
    parser.add_argument('--list', action='store_true')
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--workers', type=int, default=8)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    if args.list or not args.name: print(*[f'{k}: {v}' for k, v in RECIPES.items()], sep='\n')
    else: reproduce(args.name, args.device, args.workers, args.seed)
