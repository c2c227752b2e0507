"""The part of an array that something lies in, so that measures need not look at the rest."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage


def box_of(mask: np.ndarray, margin: int = 0) -> tuple[slice, ...]:
    """The least box of a mask [*S] that holds all of it, `margin` voxels wider; of an empty mask an empty one."""
    boxes = ndimage.find_objects(np.asarray(mask, bool).view(np.uint8), max_label=1)
    return (slice(0),) * np.ndim(mask) if boxes[0] is None else widened(boxes[0], margin)


def widened(box: Sequence[slice], margin: int) -> tuple[slice, ...]:
    """A box and `margin` voxels around, as far as there are some below."""
    return tuple(slice(max(0, part.start - margin), part.stop + margin) for part in box)
