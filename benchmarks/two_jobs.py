"""How long a command takes alone, and two of it at once, by this checkout and by another one of the repository.

  git worktree add ../old fbdc11f
  two_jobs.py [finetune] [sweep] --beside ../old     two rows of two_jobs.csv for each command

On an idle machine: seconds are those of the clock, from the start of a process to its end, of two at once to the end of
the later; processor seconds are of all threads, which a busy machine changes less. Neither a number of threads nor
a policy of waiting is set. The checkouts take turns, each after it has done everything once; what counts is the median.
Two at once that aren't done after `--limit` seconds are stopped and count as that long.
"""
import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import pandas as pd
from beside import commit

HERE = Path(__file__).resolve().parent
COMMANDS = {
    "finetune": "finetune zeroshot icons --epochs {epochs} -o {out}",
    "sweep": "sweep zeroshot finetuned --alphas 0,.25,.5,.75,1 -o {out}.csv",
}
SET = "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY"


class Checkout:
    "A checkout, and a work with what the commands need"
    def __init__(self, root, work, epochs):
        self.root, self.work, self.epochs, self.started = root, work, epochs, 0
        own = dict(PYTHONPATH=str(root), WISEFT_CACHE=str(work/"cache"))
        self.environment = {k: v for k, v in os.environ.items() if k not in SET} | own
        work.mkdir()
        for command in ("zeroshot icons -o zeroshot", "finetune zeroshot icons --epochs 1 -o finetuned"):
            assert self.start(command).wait() == 0

    def start(self, command):
        "A process that does a command of wiseft"
        return subprocess.Popen([sys.executable, "-m", "wiseft", *command.split()], cwd=self.work, env=self.environment,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def seconds(self, name, jobs, limit):
        "Seconds by the clock, and processor seconds, of so many processes that do one command at once"
        began, running, used = time.perf_counter(), [], processor_seconds()
        for _ in range(jobs):
            self.started += 1
            running.append(self.start(COMMANDS[name].format(epochs=self.epochs, out=f"out{self.started}")))
        try:
            for process in running:
                assert process.wait(max(0, began + limit - time.perf_counter())) == 0
        except subprocess.TimeoutExpired:
            for process in running:
                process.kill()
                process.wait()
        return time.perf_counter() - began, processor_seconds() - used


def processor_seconds():
    "What all processes that were started and have ended computed"
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def compared(name, before, now, turns, limit):
    "Two rows: a command alone, and two of it"
    seconds = {(jobs, c): [] for jobs in (1, 2) for c in (before, now)}
    for c in (before, now):
        c.seconds(name, 1, limit)
    for _ in range(turns):
        for jobs, c in seconds:
            seconds[jobs, c].append(c.seconds(name, jobs, limit))
            print(name, jobs, commit(c.root), *(round(t, 1) for t in seconds[jobs, c][-1]), flush=True)
    took = {k: median(clock for clock, _ in v) for k, v in seconds.items()}
    computed = {k: median(processor for _, processor in v) for k, v in seconds.items()}
    for jobs in (1, 2):
        yield dict(command=name, jobs=jobs, before=commit(before.root), now=commit(now.root), turns=turns,
                   epochs=now.epochs, cores=os.cpu_count(), seconds_before=round(took[jobs, before], 1),
                   seconds_now=round(took[jobs, now], 1),
                   processor_seconds_before=round(computed[jobs, before], 1),
                   processor_seconds_now=round(computed[jobs, now], 1),
                   times_one_before=round(took[jobs, before]/took[1, before], 2),
                   times_one_now=round(took[jobs, now]/took[1, now], 2))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", choices=[*COMMANDS, []])
    parser.add_argument("--beside", type=Path, required=True, metavar="CHECKOUT", help="the other one")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10, help="of a fine-tuning")
    parser.add_argument("--limit", type=float, default=600, help="seconds for two at once")
    args = parser.parse_args()
    out = HERE/"two_jobs.csv"
    with tempfile.TemporaryDirectory() as work:
        before = Checkout(args.beside.resolve(), Path(work, "before"), args.epochs)
        now = Checkout(HERE.parent, Path(work, "now"), args.epochs)
        for name in args.commands or COMMANDS:
            rows = pd.DataFrame(compared(name, before, now, args.turns, args.limit))
            print(rows.T.to_string(header=False), flush=True)
            if out.exists():
                others = pd.read_csv(out)
                rows = pd.concat([others[others.command != name], rows])
            rows.to_csv(out, index=False)


if __name__ == "__main__":
    main()
