"""Which of K classes every voxel is to be."""

from collections.abc import Sequence

import numpy as np

from edm3d.networks.parts.base import PartKind


class Semantic(PartKind):
    """[N,*S] whole numbers, 0 to K - 1, of volumes at full size; null: K, the width."""

    one, many = "semantic map", "map classes"
    width_key, dropout_key = "semantic_dim", "semantic_dropout"
    stored, names, grid, dtype = "maps", "semantic_classes", "map", np.int16

    def null(self, width: int | None) -> float:
        if width is None:
            raise ValueError("dropping a semantic map needs its width, the number of its classes and of its null")
        return width

    def shape(self, width: int, size: Sequence[int]) -> tuple[int, ...]:
        return tuple(size)

    def value(self, row: np.ndarray) -> np.ndarray:
        return row.astype(np.uint8)
