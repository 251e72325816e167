"""What ranking costs: its time against its matrix products alone, and its memory, on made-up features.

  retrieval.py              both; writes retrieval.csv
  retrieval.py --tiny       both on few images, and writes nothing

Time is that of one processor thread: the median of several rounds, in which products and ranking take turns. Memory is
that of features and texts, and of all: the features of all members lie there, as in a sweep with texts that they share.
Blocks of similarities are as large for few images as for many, so `--ranked` images are ranked among all captions."""
import argparse
import resource
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from wiseft.stats.retrieval import recall_columns

FILE = Path(__file__).with_name("retrieval.csv")


def rows(n, dim, seed):
    "Features of length 1"
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def gallery(n, captions, dim):
    "Images, captions near them, and the pairs"
    images, owner = rows(n, dim, 0), torch.arange(n).repeat_interleave(captions)
    texts = F.normalize(images[owner] + 0.9 * rows(len(owner), dim, 1), dim=1)
    return images, texts, torch.stack([owner, torch.arange(len(owner))], 1)


def products(images, texts, block):
    "The similarities, block by block"
    for k in range(0, len(images), block):
        images[k:k + block] @ texts.T


def speed(n, captions, dim, rounds):
    "Seconds of the products, of the ranking with them, and their ratio"
    images, texts, pairs = gallery(n, captions, dim)
    block, seconds = max(1, 2**22 // len(texts)), []
    for _ in range(rounds):
        start = perf_counter()
        products(images, texts, block)
        middle = perf_counter()
        recall_columns(images, texts, pairs)
        seconds.append((middle - start, perf_counter() - middle))
    alone, ranked = np.median(seconds, axis=0)
    return dict(products_s=round(alone, 2), ranking_s=round(ranked, 2), ratio=round(ranked / alone, 2))


def peak():
    "Bytes, the most that this process took"
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory(n, captions, dim, members, ranked):
    "GB of features and texts, and of all with the ranking, beyond what Python and its libraries take"
    before = peak()
    texts, features = torch.empty(n * captions, dim).normal_(), torch.empty(members, n, dim).normal_()
    for f in (texts, *features):
        f /= f.norm(dim=1, keepdim=True)
    held = peak()
    pairs = torch.stack([torch.arange(len(texts)) % ranked, torch.arange(len(texts))], 1)
    for f in features[:2]:
        recall_columns(f[:ranked], texts, pairs)
    return dict(members=members, ranked=ranked, held_GB=round((held - before) / 1e9, 2),
                total_GB=round((peak() - before) / 1e9, 2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--ranked", type=int, default=1000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    sizes = (100, 300, 16) if given.tiny else (2_000, 20_000, 512)
    large, captions = sizes[1], 5
    table = [dict(what="time", images=sizes[0], captions=captions * sizes[0], dim=sizes[2])
             | speed(sizes[0], captions, sizes[2], rounds=3),
             dict(what="memory", images=large, captions=captions * large, dim=sizes[2])
             | memory(large, captions, sizes[2], 11, min(given.ranked, large))]
    table = pd.DataFrame(table)
    print(table.to_string(index=False, na_rep=""))
    if not given.tiny:
        table.to_csv(FILE, index=False)
