"Which images the classifiers along α get right, seed by seed, and numbers of them with their intervals."
import numpy as np
from pathlib import Path
from scipy import stats
from wiseft.bench.chance import both_chances, seed_variance
from wiseft.bench.matched_accuracy import resampled
from answers import unpacked

HERE, CONTROL = Path(__file__).resolve().parent, 'other-icons'


def read_seeds(folder, setting, split='test', seeds=range(30, 35)):
    "Of each seed: set name -> (11, n) right or wrong along α"
    files = [np.load(unpacked(HERE/folder)/f'{setting}, seed {s}.{split}.npz') for s in seeds]
    return [{k.removeprefix('right '): f[k] for k in f.files if k.startswith('right ')} for f in files]


def share(runs, sets): # set name -> (11, n)
    "Share of the seeds that are right"
    return {d: np.mean([r[d] for r in runs], 0) for d in sets}


def but(runs, i): return runs[:i] + runs[i+1:]


def with_interval(number, runs, sets):
    "A number of accuracies along α, set name -> (…, 11), with its 95 % interval over images and seeds"
    def of(some): return number({d: v.mean(1)[None] for d, v in share(some, sets).items()})[0]
    value, whole = of(runs), share(runs, sets)
    images = number(resampled(whole)).var(ddof=1)
    seeds = seed_variance(np.array([of(but(runs, i)) for i in range(len(runs))]))
    error, df = both_chances(images, seeds, min(v.shape[1] for v in whole.values()), len(runs))
    width = error*stats.t.ppf(.975, df)
    return value, value-width, value+width


def told(*of):
    "The same in words"
    return '{:.1f} ({:.1f} to {:.1f})'.format(*with_interval(*of))
