"""Pieces of a mask and its Euler characteristic, exactly, by counting.

Voxels are neighbours where they share a face (an edge in 2D); what is outside them may then join by corners, as it must
for holes to be closed. (scipy labels pieces and knows no Euler characteristic.)
"""

from itertools import combinations

import numpy as np
from scipy import ndimage


def components(mask: np.ndarray) -> int:
    """Number of pieces of a mask [*S]."""
    return int(ndimage.label(mask)[1])


def euler_characteristic(mask: np.ndarray) -> int:
    """Vertices - edges + faces - cubes of the complex whose vertices are the voxels of a mask [*S].

    Its edges are pairs of neighbours, faces squares of 4, cubes blocks of 8, all inside the mask. In 3D it is pieces -
    tunnels + closed hollows, in 2D pieces - holes: 1 of a ball, 0 of a ring, 2 of a hollow shell.
    """
    mask, total = np.asarray(mask, dtype=bool), 0
    for size in range(mask.ndim + 1):
        for axes in combinations(range(mask.ndim), size):
            cells = mask
            for axis in axes:
                cells = np.moveaxis(cells, axis, 0)
                cells = np.moveaxis(cells[1:] & cells[:-1], 0, axis)
            total += (-1) ** size * np.count_nonzero(cells)
    return int(total)
