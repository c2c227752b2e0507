"""The class of an image, one of K."""

from collections.abc import Sequence

import numpy as np

from edm3d.networks.parts.base import PartKind


class ClassLabels(PartKind):
    """[N,K] one-hot, stored as the index of the class, -1 for none; null: zeros."""

    one, many = "class label", "classes"
    width_key, dropout_key = "label_dim", "label_dropout"
    stored, names = "classes", "class_names"

    def row(self, value: int | None, width: int, size: Sequence[int] = ()) -> np.ndarray:
        label = np.zeros(width, self.dtype)
        if value is not None and value >= 0:
            label[value] = 1
        return label

    def value(self, row: np.ndarray) -> np.int64:
        return row.argmax() if row.any() else np.int64(-1)

    def unasked(self, width: int, size: Sequence[int]) -> Sequence[int]:
        """All classes."""
        return range(width)
