"""Intervals of what is measured over cases, by resampling these: nothing is measured, or inferred, again.

(scipy.stats.bootstrap resamples single cases, and gives no interval where one resample has no value.)
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
MOST_WEIGHTS = 2**20  # at a time


class Intervals(NamedTuple):
    """Ends [S] of the interval of every statistic, NaN where no resample has a value, and how many had one [S]."""

    low: np.ndarray
    high: np.ndarray
    used: np.ndarray


def bootstrap(statistics: Callable[[np.ndarray], np.ndarray], groups: Sequence[object], seed: int = 0,
              resamples: int = RESAMPLES, level: float = LEVEL) -> Intervals:
    """Percentile bootstrap (Efron 1979): the middle `level` of statistics over cases that are drawn with replacement.

    statistics: values [R,S] of weights [R,N], how often each of N cases was drawn in R resamples. groups [N]: cases of
    one group, as images of one patient, are drawn together; as many groups are drawn as there are. A resample in which
    a statistic has no value (NaN), as an AUROC without one of the classes, is left out of the interval of this one.
    """
    _, group = np.unique(np.asarray([str(name) for name in groups]), return_inverse=True)
    count, rng = int(group.max()) + 1, np.random.default_rng(seed)
    draws, at_once = [], max(1, MOST_WEIGHTS // len(group))
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        draws.append(statistics(np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)[:, group]))
    values = np.sort(np.concatenate(draws), axis=0)  # NaN last
    used = np.isfinite(values).sum(axis=0)
    ends = [[np.quantile(column[:n], q) if n else np.nan for column, n in zip(values.T, used, strict=True)]
            for q in ((1 - level) / 2, (1 + level) / 2)]
    return Intervals(np.array(ends[0]), np.array(ends[1]), used)


def weighted_means(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Means [R,S] over cases of values [N,S], without those that are NaN; NaN where none is left.

    weights [R,N]: how often each case counts; None: each once, R = 1.
    """
    weights = np.ones((1, len(values))) if weights is None else np.asarray(weights, np.float64)
    known = ~np.isnan(values)
    total, count = weights @ np.where(known, values, 0), weights @ known.astype(np.float64)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
