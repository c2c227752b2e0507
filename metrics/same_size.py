"""A distance of two sets that depends on their sizes, beside its floor at the same sizes."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Distance = Callable[[np.ndarray, np.ndarray], float]
SPLITS = 20  # of the real set


class SameSize(NamedTuple):
    """A distance of generated to real items, `size` of each, and that of as many real items to as many others.

    Means over splits of the real set, and the 95 % point of the floor.
    """

    distance: float
    floor: float
    floor_p95: float
    size: int


def at_same_size(distance: Distance, real: np.ndarray, generated: np.ndarray, seed: int = 0) -> SameSize:
    """Of features [M,d] and [N,d]: real ones are split at random, time and again, into two sets that share no item.

    Sets are as large as half of the real ones, or as the generated ones where those are fewer, of which else some are
    taken at random. ValueError for fewer than 4 real, or 2 generated ones.
    """
    size = min(len(real) // 2, len(generated))
    if size < 2:
        raise ValueError(f"{len(real)} real and {len(generated)} generated items: wanted 4 and 2 or more, for two sets "
                         "of real ones that share none")
    rng, found, floors = np.random.default_rng(seed), [], []
    for _ in range(SPLITS):
        order, some = rng.permutation(len(real)), rng.permutation(len(generated))[:size]
        one, other = real[order[:size]], real[order[size:2 * size]]
        found.append(distance(one, generated[some]))
        floors.append(distance(one, other))
    return SameSize(float(np.mean(found)), float(np.mean(floors)), float(np.quantile(floors, 0.95)), size)
