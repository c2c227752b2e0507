"""Agreement of two label maps."""

from collections.abc import Sequence

import numpy as np


def dice(a: np.ndarray, b: np.ndarray, num_classes: int) -> np.ndarray:
    """Dice 2|A and B| / (|A| + |B|) of every class [num_classes] between two integer maps of one shape.

    NaN for a class that is in neither map. Raises ValueError for different shapes or labels outside the classes.
    """
    if a.shape != b.shape:
        raise ValueError(f"dice of label maps of shapes {a.shape} and {b.shape}: wanted one shape")
    in_a, in_b, in_both = (count_labels(labels, num_classes) for labels in (a, b, a[a == b]))
    total = in_a + in_b
    return np.divide(2 * in_both, total, out=np.full(num_classes, np.nan), where=total > 0)


def joint_dice(a: np.ndarray, b: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Dice [P] of each pair of values, one of each of two integer maps of one shape whose values mean other things.

    NaN for a pair neither of whose values is there. Raises ValueError for different shapes, or values below 0.
    """
    if a.shape != b.shape:
        raise ValueError(f"dice of label maps of shapes {a.shape} and {b.shape}: wanted one shape")
    first, second = (np.asarray(x).ravel().astype(np.int64) for x in (a, b))
    if min(first.min(initial=0), second.min(initial=0)) < 0:
        raise ValueError("dice of label maps with values below 0")
    width = 1 + max(second.max(initial=0), *(j for _, j in pairs))
    height = 1 + max(first.max(initial=0), *(i for i, _ in pairs))
    counts = np.bincount(first * width + second, minlength=height * width).reshape(height, width)
    both = np.array([counts[i, j] for i, j in pairs], np.float64)
    total = np.array([counts[i].sum() + counts[:, j].sum() for i, j in pairs], np.float64)
    return np.divide(2 * both, total, out=np.full(len(pairs), np.nan), where=total > 0)


def count_labels(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Number of voxels [num_classes] of every class; raises ValueError for labels outside 0 .. num_classes - 1."""
    flat = np.asarray(labels).ravel().astype(np.int64)
    if flat.size and (flat.min() < 0 or flat.max() >= num_classes):
        raise ValueError(f"labels from {flat.min()} to {flat.max()}, wanted 0 to {num_classes - 1}")
    return np.bincount(flat, minlength=num_classes)
