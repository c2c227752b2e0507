"""Kernel distances between two sets of features: the squared maximum mean discrepancy, unbiased, in float64.

(MONAI's MMDMetric has the linear kernel, which compares means alone, and takes sets of equal sizes only.)
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import pdist

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]  # [N,d], [M,d] to [N,M]
BLOCK = 2**20  # numbers of a kernel matrix that are there at a time
MOST_PAIRED = 1000  # items whose distances give a bandwidth


def cubic_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x y / d + 1)^3, that of the kernel inception distance (Binkowski et al. 2018)."""
    inner = x @ y.T / x.shape[1] + 1
    return inner * inner * inner


def gaussian_kernel(bandwidth: float) -> Kernel:
    """exp(-|x - y|^2 / (2 bandwidth^2)) (Gretton et al. 2012)."""

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        squares = np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * (x @ y.T)
        return np.exp(squares.clip(0) / (-2 * bandwidth**2))

    return kernel


def median_bandwidth(x: np.ndarray) -> float:
    """The median distance of two items of [N,d], by at most MOST_PAIRED of them, evenly spaced; 0 for equal items."""
    rows = np.linspace(0, len(x) - 1, min(len(x), MOST_PAIRED)).round().astype(int)
    return float(np.median(pdist(np.asarray(x, np.float64)[rows]))) if len(x) > 1 else 0.0


class Grams(NamedTuple):
    """Kernels between the items of two sets: xx [N,N], xy [N,M], yy [M,M]."""

    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray


def gram(x: np.ndarray, y: np.ndarray, kernel: Kernel, group: int = 1) -> np.ndarray:
    """Kernels [N,M] of features [N*group,d] and [M*group,d]: means over the pairs of two groups, a block at a time.

    group: rows of one item, which follow each other.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    rows = max(1, BLOCK // max(1, len(y) * group)) * group
    blocks = [kernel(x[start:start + rows], y) for start in range(0, len(x), rows)] if group == 1 else \
        [kernel(x[start:start + rows], y).reshape(-1, group, len(y) // group, group).mean((1, 3))
         for start in range(0, len(x), rows)]
    return np.concatenate(blocks)


def grams(x: np.ndarray, y: np.ndarray, kernel: Kernel, group: int = 1) -> Grams:
    """All kernels of two sets of features."""
    return Grams(gram(x, x, kernel, group), gram(x, y, kernel, group), gram(y, y, kernel, group))


def about_common_mean(kernels: Grams) -> Grams:
    """The kernels of what is left of each item without the mean of both sets: the same distance, of which resamples
    spread less, as those of the kernels themselves also vary by what cancels where every item counts once.
    """
    whole = np.block([[kernels.xx, kernels.xy], [kernels.xy.T, kernels.yy]])
    mean = whole.mean(0)
    whole -= mean  # in place: of many volumes it is the largest array of a report
    whole -= mean[:, None]
    whole += mean.mean()
    count = len(kernels.xx)
    return Grams(whole[:count, :count], whole[:count, count:], whole[count:, count:])


def mmd2(kernels: Grams, weights_x: np.ndarray | None = None, weights_y: np.ndarray | None = None) -> np.ndarray:
    """Unbiased squared MMD [R] of sets whose items count so often, weights [R,N] and [R,M]; None: each once, R = 1.

    The U-statistic (Gretton et al. 2012, lemma 6): pairs of an item with itself are left out, in resamples as well.
    ValueError where a set has fewer than two items.
    """
    count_x, count_y = kernels.xy.shape
    if min(count_x, count_y) < 2:
        raise ValueError(f"kernel distance of {count_x} and {count_y} items: wanted at least 2 of each")
    x, y = (np.ones((1, count)) if weights is None else np.asarray(weights, np.float64)
            for count, weights in ((count_x, weights_x), (count_y, weights_y)))
    across = ((x @ kernels.xy) * y).sum(1) / (x.sum(1) * y.sum(1))
    return within(kernels.xx, x) + within(kernels.yy, y) - 2 * across


def within(kernels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means [R] of kernels [N,N] over pairs of different items, weights [R,N]; NaN where one alone has a weight."""
    total = ((weights @ kernels) * weights).sum(1) - np.square(weights) @ np.diagonal(kernels)
    pairs = weights.sum(1) ** 2 - np.square(weights).sum(1)
    return np.divide(total, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def kernel_distance(x: np.ndarray, y: np.ndarray, kernel: Kernel = cubic_kernel) -> float:
    """Unbiased squared MMD of features [N,d] and [M,d]; with the cubic kernel the KID. May be below 0 for equal laws.

    ValueError for fewer than two items, other widths, or numbers that are not finite.
    """
    x, y = (np.asarray(values, np.float64) for values in (x, y))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"kernel distance of features {list(x.shape)} and {list(y.shape)}: wanted two sets of one "
                         "width")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("kernel distance of features that are not finite")
    return float(mmd2(grams(x, y, kernel))[0])
