"""What a classifier's probabilities tell of images without labels: an α, and estimates of accuracy.

Formulas and what goes wrong: nbs/explanations/without_labels.ipynb. V are labeled validation images of the reference,
U new images without labels.
"""
import numpy as np
import pandas as pd
import torch

TEMPERATURES = torch.tensor(np.geomspace(.1, 10, 95), dtype=torch.float32) # in steps of 5 %
MOST_VALIDATION = 1000 # images of V for a temperature


def nll_by_temperature(logits, labels):
    "(n, number of `TEMPERATURES`) negative log-likelihood of labels (n,), of logits (n, classes) at each temperature."
    z = logits.float() - logits.float().amax(1, keepdim=True)
    own = z.gather(1, labels[:, None])
    return torch.cat([(z/t).logsumexp(1, keepdim=True) - own/t for t in TEMPERATURES.tolist()], 1)


def best_temperature(nll):
    "The temperature at which labels are most likely."
    return float(TEMPERATURES[int(np.asarray(nll).mean(0).argmin())])


def confident(alphas, validation, labels, new):
    """The α with the highest calibrated confidence on U; 0.5 unless it is two standard errors above that at 0.5.

    validation and new are logits (n_alphas, n, classes) of V and U, labels (n_V,) those of V.
    """
    table = above_half(alphas, validation, labels, new)
    best = table.above.idxmax()
    above, error = table.loc[best]
    return float(best if above > 2*error else .5)


def above_half(alphas, validation, labels, new):
    "Mean confidence on U at each α less that at 0.5, and its standard error, over images and temperatures."
    # the best temperature, and those of resampled validation images, the same for all α: positions in `TEMPERATURES`
    rng = np.random.default_rng(0)
    some = np.sort(rng.permutation(len(labels))[:MOST_VALIDATION])
    n = len(some)
    times = np.vstack([np.ones(n), rng.multinomial(n, np.full(n, 1/n), 200)])
    def best(z): return (times @ nll_by_temperature(z[some], labels[some]).numpy()).argmin(1)
    draws = pd.DataFrame({a: best(z) for a, z in zip(alphas, validation)})
    # the confidence of each image at all of these temperatures, which lie close together
    first, last = draws.min().min(), draws.max().max()
    temperatures = TEMPERATURES[first:last+1].tolist()
    def confidence(z): return torch.stack([(z/t).softmax(1).amax(1) for t in temperatures], 1).numpy()
    sure = {a: confidence(z) for a, z in zip(alphas, new)}
    # the error comes from the images, and from the temperatures, which move all images at once
    rows, half, at_half = {}, sure[.5], draws[.5] - first
    for a, c in sure.items():
        at = draws[a] - first
        by_image = c[:, at[0]] - half[:, at_half[0]]
        by_draw = c.mean(0)[at] - half.mean(0)[at_half]
        rows[a] = by_image.mean(), np.hypot(by_image.std()/np.sqrt(len(c)), by_draw.std())
    return pd.DataFrame(rows, index=['above', 'error']).T


def average_confidence(new):
    "Mean over U of the confidence, the highest probability."
    return float(np.mean(new))


def difference_of_confidences(correct, confidence, new):
    "Accuracy on V − (confidence on V − confidence on U), arXiv 2107.03315."
    return float(np.mean(correct) - (np.mean(confidence) - np.mean(new)))


def negative_entropy(probabilities):
    "Σ p log p over the classes: (n,), 0 where the classifier is certain."
    p = np.asarray(probabilities, float)
    return (p*np.log(np.maximum(p, 1e-300))).sum(1)


def thresholded_confidence(correct, score, new):
    """ATC, arXiv 2201.04234: the share of U whose score reaches t; as many of V fall below t as are wrong.

    Where all of V is right, t is the lowest score on V: a search that starts at 0 would return 0 or 1 for any images.
    """
    score = np.append(np.sort(score), np.inf)
    threshold = score[np.count_nonzero(~np.asarray(correct, bool))]
    return float((np.asarray(new) >= threshold).mean())


def agreement(a, b):
    "Share of U to which two classifiers give the same answer, arXiv 2106.13799."
    return float((np.asarray(a) == np.asarray(b)).mean())


def nuclear_norm(probabilities):
    "‖P‖∗/√(n·min(n, C)) of the probabilities of U, (n, C), arXiv 2302.01094: 0 to 1, a score and no accuracy."
    p = np.asarray(probabilities, float)
    return float(np.linalg.norm(p, 'nuc')/np.sqrt(len(p)*min(p.shape)))
