"""The part of a label map that each class lies in, so that measures need not look at the rest."""

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from edm3d.metrics.boxes import widened


def class_masks(label: np.ndarray, num_classes: int, margin: int = 0) -> Iterator[tuple[np.ndarray, tuple[slice, ...]]]:
    """Mask and place of each class but the first of a map [*S]: its box and `margin` voxels around, as far as the map
    reaches. An empty mask where there are no voxels of it; ValueError for labels outside the classes.
    """
    label = np.asarray(label)
    if label.size and (label.min() < 0 or label.max() >= num_classes):
        raise ValueError(f"labels from {label.min()} to {label.max()}, wanted 0 to {num_classes - 1}")
    boxes = ndimage.find_objects(label.astype(np.int32), max_label=max(num_classes - 1, 1))
    for value, box in enumerate(boxes[:num_classes - 1], 1):
        if box is None:
            yield np.zeros([0] * label.ndim, bool), (slice(0),) * label.ndim
            continue
        wide = widened(box, margin)
        yield label[wide] == value, wide
