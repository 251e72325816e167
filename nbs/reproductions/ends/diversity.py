"How two classifiers' errors differ, which is what averaging lives on; the notebook beside this file explains each."
import numpy as np
import torch
from wiseft.stats.metrics import batch_kl, correct


def doubled(t):
    "A tensor of anything, on the CPU in double precision"
    return torch.as_tensor(t).detach().cpu().double()


def prediction_diversity(a, b, labels):
    "Share of images on which exactly one of two classifiers is right, of their logits (n, n_classes)"
    return float((correct(a, labels) != correct(b, labels)).mean())


def kappa_complement(a, b):
    "1 − Cohen's κ of two classifiers' predicted classes, of logits (n, n_classes): 0 equal, 1 agreement as by chance"
    a, b = (doubled(t).argmax(1).numpy() for t in (a, b))
    n_classes = max(a.max(), b.max()) + 1
    of_a, of_b = np.bincount(a, minlength=n_classes), np.bincount(b, minlength=n_classes)
    chance = (of_a*of_b).sum()/len(a)**2
    return float((a != b).mean()/(1-chance)) if chance < 1 else 0.


def mean_kl(a, b):
    "Mean Kullback–Leibler divergence of `b`'s probabilities from `a`'s, in nats, of logits (n, n_classes)"
    return float(batch_kl(doubled(a), doubled(b)).mean())


def cka_complement(a, b):
    "1 − linear CKA of two towers' features (n, dim of either), 0 if the same but for turning and scaling (1905.00414)"
    a, b = (f-f.mean(0) for f in (doubled(a), doubled(b)))
    return 1-float((b.T@a).norm()**2/((a.T@a).norm()*(b.T@b).norm()))


def margins(logits):
    "Largest minus second-largest logit of each image (n,)"
    top = torch.as_tensor(logits).detach().cpu().topk(2, dim=1).values
    return (top[:, 0]-top[:, 1]).numpy()


def overrides(zeroshot, finetuned, averaged, labels):
    "Where two classifiers disagree: how often their average follows which, and rightly, as shares of all images"
    right = correct(averaged, labels)
    z, f, m = (torch.as_tensor(t).argmax(1).numpy() for t in (zeroshot, finetuned, averaged))
    sides = {"zero-shot": m == z, "fine-tuned": m == f, "third class": (m != z) & (m != f)}
    follows = {side: (z != f) & images for side, images in sides.items()}
    shares = {side: float(images.mean()) for side, images in follows.items()}
    return shares | {f"{side}, right": float((images & right).mean()) for side, images in follows.items()}
