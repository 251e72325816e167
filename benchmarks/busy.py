"""Speed of fine-tuning steps alone and beside a busy program, with shards and without.

  busy.py     writes busy.csv: a row for each tower, number of shards, and number of busy programs

On an idle machine. All rows of a tower are measured in turns, again and again; a row is the median of its steps.
"""
import argparse
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command wiseft sets it, before torch is imported

import open_clip
import pandas as pd
import torch
from fastai.callback.core import Callback, CancelFitException

from wiseft.base.files import available_cores
from wiseft.data.suites import load_suite
from wiseft.models.classifier import zeroshot_classifier
from wiseft.models.clip import load_clip
from wiseft.train.learner import clip_learner
from wiseft.train.loaders import clip_dataloaders

HERE = Path(__file__).resolve().parent


class Steps(Callback):
    "Seconds of each step after the first, until there are enough"

    def __init__(self, enough):
        self.enough = enough

    def before_fit(self):
        self.seconds, self.last = [], None

    def after_batch(self):
        now = perf_counter()
        if self.last:
            self.seconds.append(now - self.last)
        self.last = now
        if len(self.seconds) == self.enough:
            raise CancelFitException


@contextmanager
def busy(programs):
    "So many programs that compute all the time"
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def learners(towers):
    "Name of a tower, images of a step, learner, and steps of a turn"
    suite = load_suite("icons")
    clips = {"iconclip": (load_clip, 128, 6), "ViT-B-32": (open_clip.create_model, 128, 1)}
    for tower in towers:
        load, batch, steps = clips[tower]
        classifier = zeroshot_classifier(load(tower), suite.classnames, suite.templates)
        dls = clip_dataloaders(suite.train, classifier, batch, suite.validation.subset(range(8)), progress=False)
        learn = clip_learner(classifier, dls, precision="bf16", progress=False)
        learn.initial_accuracy = 0.  # it is not computed
        yield tower, batch, learn, steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--towers", nargs="*", default=["iconclip", "ViT-B-32"])
    parser.add_argument("--shards", nargs="*", type=int, default=[0, 2])
    parser.add_argument("--programs", nargs="*", type=int, default=[0, 1])
    args = parser.parse_args()
    rows = []
    for tower, batch, learn, steps in learners(args.towers):
        cases = [(shards, programs) for programs in args.programs for shards in args.shards]
        seconds = {case: [] for case in cases}
        for _ in range(args.turns):
            for shards, programs in cases:
                learn.chosen_shards = shards
                timed = Steps(steps)
                with busy(programs):
                    learn.fit(1, 1e-5, cbs=timed)
                seconds[shards, programs] += timed.seconds
        for (shards, programs), measured in seconds.items():
            rows.append(dict(tower=tower, batch=batch, cores=available_cores(), threads=torch.get_num_threads(),
                             shards=shards, busy_programs=programs, steps=len(measured),
                             images_per_second=round(batch/median(measured), 1)))
            print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(HERE/"busy.csv", index=False)


if __name__ == "__main__":
    main()
