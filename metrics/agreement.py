"""How well measured values follow those that were asked for."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edm3d.metrics.bootstrap import bootstrap

MEASURES = ("r", "rho", "mae", "bias")
PERMUTATIONS = 500


class Agreement(NamedTuple):
    """Pearson's r, Spearman's rho, mean absolute error and bias (measured less asked), with the ends of their 95 %
    bootstrap intervals, each [4], NaN where undefined: r and rho where either does not vary.
    """

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray


def agreement(asked: np.ndarray, measured: np.ndarray, groups: Sequence[object], seed: int = 0) -> Agreement:
    """Of values [N] that were asked for and measured, all finite, N 1 or more; groups [N] are resampled together."""
    asked, measured = (np.asarray(x, dtype=np.float64) for x in (asked, measured))
    ends = bootstrap(lambda weights: statistics(asked, measured, weights), groups, seed)
    return Agreement(statistics(asked, measured, np.ones((1, len(asked))))[0], ends.low, ends.high)


def by_chance(asked: np.ndarray, measured: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """What a network that hears nothing would have: the 99 % point of |r|, and the median of the mean absolute error,
    of measured values [N] in random order.
    """
    rng = np.random.default_rng(seed)
    found = [statistics(asked, rng.permutation(measured), np.ones((1, len(asked))))[0] for _ in range(PERMUTATIONS)]
    size, error = np.abs([values[0] for values in found]), [values[2] for values in found]
    return float(np.quantile(size, 0.99)), float(np.median(error))


def slope(asked: np.ndarray, measured: np.ndarray) -> float:
    """Of the least-squares line through measured over asked values [N]; NaN where these do not vary."""
    off, up = (np.asarray(x, dtype=np.float64) - np.mean(x) for x in (asked, measured))
    return float(off @ up / (off @ off)) if (off != 0).any() else float("nan")


def rank_correlation(asked: np.ndarray, measured: np.ndarray) -> float:
    """Spearman's rho of values [N]; NaN where either does not vary."""
    return float(statistics(asked, measured, np.ones((1, len(asked))))[0, MEASURES.index("rho")])


def statistics(asked: np.ndarray, measured: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """MEASURES [R,4] of values [N], of which each counts as often as weights [R,N] say."""
    off, total = measured - asked, weights.sum(1)
    one, other = (np.broadcast_to(x, weights.shape) for x in (asked, measured))
    return np.stack([correlation(one, other, weights), correlation(ranks(asked, weights), ranks(measured, weights),
                                                                   weights),
                     weights @ np.abs(off) / total, weights @ off / total], axis=1)


def correlation(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's r [R] of values [R,N] with weights [R,N]; NaN where either varies by no more than rounding."""
    total = weights.sum(1, keepdims=True)
    parts = [x - (weights * x).sum(1, keepdims=True) / total for x in (a, b)]
    squares = [(weights * x**2).sum(1) for x in parts]
    varies = np.all([square > 1e-20 * (weights * x**2).sum(1) for square, x in zip(squares, (a, b))], axis=0)
    scale = np.sqrt(squares[0] * squares[1])
    return np.divide((weights * parts[0] * parts[1]).sum(1), scale, out=np.full(len(weights), np.nan), where=varies)


def ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean ranks [R,N] of values [N] in samples that hold each as often as weights [R,N] say."""
    _, place = np.unique(values, return_inverse=True)
    order = np.argsort(place, kind="stable")
    counts = np.add.reduceat(weights[:, order], np.flatnonzero(np.r_[True, np.diff(place[order]) > 0]), axis=1)
    return (np.cumsum(counts, axis=1) - (counts - 1) / 2)[:, place]
