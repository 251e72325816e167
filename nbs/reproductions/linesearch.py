"""The exact accuracy of an ensemble of outputs for all α at once (Och 2003).

Outputs that are linear in α are those of ensembles of logits or probabilities, and of averages of two linear heads.
An image is right on an interval of α, so that the accuracy at α is the share of intervals that contain it.
"""
import numpy as np, torch


def alpha_intervals(
    zeroshot:torch.Tensor, # (n, n_classes) outputs, alpha = 0: logits or probabilities
    finetuned:torch.Tensor, # (n, n_classes) outputs, alpha = 1
    labels:torch.Tensor, # (n,) class indices
) -> tuple: # low, high: (n,) float64 tensors; image i is right where low[i] < alpha < high[i]
    "The mixing coefficients at which each image is right; a tie goes to the lower class index, as in `argmax`"
    u, v = torch.as_tensor(zeroshot).double(), torch.as_tensor(finetuned).double()
    label, classes, infinity = torch.as_tensor(labels)[:, None], torch.arange(u.shape[1]), torch.tensor(torch.inf)
    lead_0, lead_1 = u - u.gather(1, label), v - v.gather(1, label) # of each class over the image's own
    slope = lead_0 - lead_1 # of the lead of the image's own class, as α grows
    level = lead_0/slope # the α at which the two classes are level
    low, high = level.where(slope > 0, -infinity.double()), level.where(slope < 0, infinity.double())
    # the image's class wins ties with later classes: its interval includes the end, which moves to the next float
    later = classes > label
    low, high = low.where(~later, low.nextafter(-infinity)), high.where(~later, high.nextafter(infinity))
    always_ahead = (slope == 0) & ((lead_0 > 0) | (lead_0 == 0) & (classes < label))
    return low.where(~always_ahead, infinity.double()).amax(1), high.amin(1)


class AlphaCurve:
    "Accuracy of an ensemble of outputs as a function of alpha, exact"
    def __init__(self, low, high): # (n,) each, from `alpha_intervals`
        low, high = np.asarray(low), np.asarray(high)
        self.n, ever = len(low), np.flatnonzero(low < high)
        self.low, self.high = np.sort(low[ever]), np.sort(high[ever])
        self.intervals = low[ever], high[ever], ever # and the images that they belong to
    def __repr__(self):
        ends = f'{self.accuracy(0.):.1%} at 0, {self.accuracy(1.):.1%} at 1'
        return f'AlphaCurve of {self.n} images: {ends}, {self.best()[1]:.1%} at best'
    def accuracy(self, alpha:float|np.ndarray): # of the same shape
        "Fraction of images that are right: as many as intervals have begun, less those that have ended"
        begun = np.searchsorted(self.low, alpha, 'left')
        over = np.searchsorted(self.high, alpha, 'right')
        return (begun - over)/self.n
    def steps(self, start:float=0., stop:float=1.) -> tuple: # (k+1,) alphas, (k,) accuracies between two of them
        "The staircase between two alphas"
        ends = np.concatenate([self.low, self.high])
        least = 1e-12 # what is narrower is the end of an interval, where it wins a tie
        inside = (ends > start + least) & (ends < stop - least)
        at = np.unique([start, *ends[inside], stop])
        at = at[np.diff(at, prepend=-np.inf) > least]
        return at, self.accuracy((at[1:]+at[:-1])/2)
    def best(self, start:float=0., stop:float=1.) -> tuple: # alpha, accuracy
        "Middle of the first highest step, and its accuracy"
        at, accuracy = self.steps(start, stop)
        i = accuracy.argmax()
        return at[i:i+2].mean(), accuracy[i]
