#!/usr/bin/env python
"""What the zero-shot iconclip makes of other icons, name by name: control.csv, and results in what it prints.

    python control.py    # half a minute
"""
import sys
from pathlib import Path
from wiseft.base.files import atomic_path
from wiseft.data.control import control_set
from wiseft.infer.evaluation import evaluate
from wiseft.models.classifier import zeroshot_classifier

sys.path.append(str(Path(__file__).resolve().parents[1]))
from runs import protocol_zeroshot, provenance


def main():
    _, start = protocol_zeroshot()
    with provenance(__file__, seeds=[]):
        images = control_set('other-icons')
        classifier = zeroshot_classifier(start.clip, images.classnames, images.templates)
        table, kept = evaluate(classifier, images, keep_predictions=True, progress=False)
        seen = kept.frame()
        of_name = seen.groupby(seen.label.astype(str)).correct.agg(images='size', right='sum').rename_axis('class')
        with atomic_path(Path(__file__).with_name('control.csv'), force=True) as tmp: of_name.to_csv(tmp)
    print(table[['dataset', 'value', 'low', 'high', 'n']])


if __name__ == '__main__': main()
