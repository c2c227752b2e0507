"""Precision, recall, density and coverage of a set of features against a real one, by balls around their items.

Improved precision and recall (Kynkaanniemi et al. 2019); density and coverage (Naeem et al. 2020). Balls reach to the
k-th nearest neighbour of their own set and are open. A set of more than k equal items has balls of no size, which hold
nothing.
"""

from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

NEAREST = 5  # k, as the authors of density and coverage propose


class Prdc(NamedTuple):
    """What each item counts for: its mean over the set is the measure.

    precision [M]: whether a real ball holds the other item; recall [N]: whether a ball of the others holds the real
    item; density [M]: how many real balls hold it, by k; coverage [N]: whether the real item's ball holds one of the
    others.
    """

    precision: np.ndarray
    recall: np.ndarray
    density: np.ndarray
    coverage: np.ndarray

    def means(self) -> dict[str, float]:
        """The measures by name."""
        return {name: float(values.mean()) for name, values in self._asdict().items()}


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Euclidean distances [N,M] of features [N,d] and [M,d], exactly 0 for equal items."""
    return cdist(np.asarray(x, np.float64), np.asarray(y, np.float64))


def radii(within: np.ndarray, k: int = NEAREST) -> np.ndarray:
    """Distances [N] to the k-th nearest other item, of distances [N,N] within a set; ValueError for k or fewer items.
    """
    if len(within) <= k:
        raise ValueError(f"{len(within)} items have no {k}-th nearest neighbour; wanted more than {k}")
    return np.partition(within, k, axis=1)[:, k]  # the nearest is the item itself


def prdc_items(real_radii: np.ndarray, across: np.ndarray, other_radii: np.ndarray, k: int = NEAREST) -> Prdc:
    """What each item counts for, of radii [N] and [M] and distances [N,M] from real to other items."""
    in_real = across < real_radii[:, None]
    return Prdc(in_real.any(0).astype(np.float64), (across < other_radii).any(1).astype(np.float64),
                in_real.sum(0) / k, (across.min(1) < real_radii).astype(np.float64))


def prdc(real: np.ndarray, other: np.ndarray, k: int = NEAREST) -> dict[str, float]:
    """Precision, recall, density and coverage of features [M,d] against real ones [N,d], as the package prdc has them.

    ValueError for k or fewer items, other widths, or numbers that are not finite.
    """
    if real.ndim != 2 or other.ndim != 2 or real.shape[1] != other.shape[1]:
        raise ValueError(f"precision of features {list(real.shape)} and {list(other.shape)}: wanted two sets of one "
                         "width")
    if not (np.isfinite(real).all() and np.isfinite(other).all()):
        raise ValueError("precision of features that are not finite")
    real_radii, other_radii = (radii(distances(x, x), k) for x in (real, other))
    return prdc_items(real_radii, distances(real, other), other_radii, k).means()
