"""Whether draws of a posterior are spread as the truth is: ranks, coverage of intervals, and scores.

K draws and the truth are exchangeable where the posterior is the right one: then the rank of the truth among them, 0 to
K, has each of its K + 1 values equally often, whatever the distribution (Talagrand et al. 1997; Hamill 2001).
"""

from collections.abc import Sequence

import numpy as np


def ranks(draws: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How many of the draws [K,*S] lie below the truth [*S], 0 to K; draws equal to it count at random as below it or
    not, each number equally often.
    """
    below, equal = (draws < truth).sum(0), (draws == truth).sum(0)
    return below + rng.integers(0, equal, endpoint=True)


def rank_histogram(found: np.ndarray, draws: int) -> np.ndarray:
    """How often each rank [K+1] was found."""
    return np.bincount(np.ravel(found), minlength=draws + 1).astype(np.float64)


def interval_weights(draws: int, level: float) -> np.ndarray:
    """By rank of the truth [K+1], how often the central interval of K draws holds it.

    The interval goes from the a-th smallest to the a-th largest draw. It holds the truth with probability
    1 - 2 a / (K + 1), if they are exchangeable, so that a = (K + 1) (1 - level) / 2 gives just `level`. That is no
    whole number as a rule: then each end is at random at one of the two draws beside it, so that a is right in the mean
    (of 32 draws and 90 %: a = 1.65, the smallest draw in 35 % and the second one in 65 % of the cases). The interval
    holds the truth of a rank as often as these weights say, and its coverage is exactly `level`. (Quantiles that numpy
    interpolates by default cover less: 85 % instead of 90 % for 32 normal draws.) Where a < 1 an end is, with
    probability 1 - a, at infinity.
    """
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"intervals of {draws} draws at {level}: wanted 1 or more, and more than 0 and less than 1")
    left_out = (draws + 1) * (1 - level) / 2  # of the cells at either end
    inside = np.clip(np.arange(draws + 1) + 1 - left_out, 0, 1)
    return inside + inside[::-1] - 1  # both ends may lie in one cell


def coverage(histogram: np.ndarray, level: float) -> np.ndarray:
    """The share of truths in the central interval of that level, of rank histograms [...,K+1]; NaN for empty ones."""
    total = histogram.sum(-1)
    inside = histogram @ interval_weights(histogram.shape[-1] - 1, level)
    return np.divide(inside, total, out=np.full(np.shape(total), np.nan), where=total > 0)


def flatness(histogram: np.ndarray) -> float:
    """Chi-square of a rank histogram [K+1] against a flat one, per degree of freedom: 1 in the mean of independent
    truths, more where they hang together, as pixels of an image do. NaN for an empty one.
    """
    expected = histogram.sum() / len(histogram)
    if expected == 0 or len(histogram) < 2:
        return float("nan")
    return float(((histogram - expected) ** 2 / expected).sum() / (len(histogram) - 1))


def crps(draws: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Continuous ranked probability score [*S] of draws [K,*S], K >= 2, in the unit of the truth; lower is better.

    mean |draw - truth| - half the mean distance of two different draws: the fair estimate, whose mean does not depend
    on K (Ferro 2014). Of a single image, without spread, it would be the absolute error.
    """
    K = len(draws)
    if K < 2:
        raise ValueError(f"crps of {K} draws: wanted 2 or more")
    ordered = np.sort(np.asarray(draws, np.float64), axis=0)
    places = 2 * np.arange(1, K + 1) - K - 1
    return np.abs(ordered - truth).mean(0) - np.tensordot(places, ordered, 1) / (K * (K - 1))


def spread_skill(variance: Sequence[float] | np.ndarray, squared_error: Sequence[float] | np.ndarray, draws: int
                 ) -> np.ndarray:
    """Root mean squared error of the mean of K draws over what their spread lets expect: 1 where truth and draws are
    exchangeable, more for draws that are too alike (Fortin et al. 2014).

    variance: means of the sample variance of the draws (over K - 1); squared_error: of the mean of the draws.
    """
    expected = np.asarray(variance, np.float64) * (1 + 1 / draws)
    error = np.asarray(squared_error, np.float64)
    return np.sqrt(np.divide(error, expected, out=np.full(expected.shape, np.nan), where=expected > 0))
