"""How long two fine-tunings at once take on this machine, as a multiple of one, for each way to start them.

  two_jobs.py     writes two_jobs.csv: a row for each way

On an idle machine: seconds are those of the clock, from the start of a process to its end, of two at once to the end of
the later. Two at once that aren't done after `--limit` seconds are stopped and count as that long.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve().parent
COMMAND = "finetune zeroshot icons --epochs {epochs}"
# What is added to the command, and to the environment
WAYS = {"as it is": ("", {}), "--shards 0": ("--shards 0", {}),
        "--shards 0, OMP_NUM_THREADS=1": ("--shards 0", {"OMP_NUM_THREADS": "1"})}
SET = "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY"


def start(command, work, variables):
    "A process that does a command of this checkout's wiseft"
    environment = {k: v for k, v in os.environ.items() if k not in SET}
    environment |= {"PYTHONPATH": str(HERE.parent), "WISEFT_CACHE": str(work/"cache")} | variables
    return subprocess.Popen([sys.executable, "-m", "wiseft", *command.split()], cwd=work, env=environment,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def seconds(command, jobs, work, variables, limit):
    "Seconds until so many processes that do one command at once are done"
    began = time.perf_counter()
    running = [start(f"{command} -o out-{time.time_ns()}", work, variables) for _ in range(jobs)]
    try:
        for process in running:
            assert process.wait(max(0, began + limit - time.perf_counter())) == 0
    except subprocess.TimeoutExpired:
        for process in running:
            process.kill()
            process.wait()
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=300, help="seconds for two at once")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        assert start("zeroshot icons -o zeroshot", work, {}).wait() == 0
        assert start(f"{COMMAND.format(epochs=1)} -o first", work, {}).wait() == 0  # decodes the images
        for way, (options, variables) in WAYS.items():
            command = f"{COMMAND.format(epochs=args.epochs)} {options}"
            one, two = (seconds(command, jobs, work, variables, args.limit) for jobs in (1, 2))
            rows.append(dict(way=way, epochs=args.epochs, cores=os.cpu_count(), one=round(one, 1), two=round(two, 1),
                             times=round(two/one, 2)))
            print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(HERE/"two_jobs.csv", index=False)


if __name__ == "__main__":
    main()
