"""How well scores and classes of images agree with the true ones.

Weights [R,N] say how often each of N cases counts, in R resamples of them (metrics/bootstrap.py); None: each once, R =
1. (torchmetrics and sklearn, which have these for one set of cases, are no requirements of ours; MONAI's AUROC walks
over pairs.)
"""

import numpy as np


def auroc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Area under the ROC curve [R] of scores [N] for cases that are positive [N], or not.

    The share of pairs of a positive and a negative case in which the positive one has the higher score, a tie being
    half: the rank formula, U / (positives * negatives) of Mann and Whitney with mid-ranks. NaN where there are no
    positive or no negative cases.
    """
    weights = np.ones((1, len(scores))) if weights is None else np.asarray(weights, np.float64)
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)  # of every run of equal scores
    hits, misses = (np.add.reduceat(np.where(mask[order], weights[:, order], 0), starts, axis=1)
                    for mask in (positive, ~positive))
    below = np.cumsum(misses, axis=1) - misses
    pairs = hits.sum(1) * misses.sum(1)
    return np.divide((hits * (below + misses / 2)).sum(1), pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def class_aurocs(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """AUROC [R,K] of every class against all others, of scores [N,K] and true classes [N]."""
    return np.stack([auroc(scores[:, k], truth == k, weights) for k in range(scores.shape[1])], axis=1)


def roc_curve(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Shares of negative and of positive cases [2,M] whose score is at least a threshold, from none to all.

    NaN where there are no negative or no positive cases.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=np.nan) != 0)  # of every run of equal scores
    counts = [np.concatenate([[0], np.cumsum(mask[order])[last]]) for mask in (~positive, positive)]
    return np.stack([count / count[-1] if count[-1] else np.full(len(count), np.nan) for count in counts])


def confusion(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """How many cases [K,K] of every true class, by row, are held for each."""
    return np.bincount(truth * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)
