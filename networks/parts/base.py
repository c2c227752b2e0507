"""What a kind of condition is: how it lies in files, how it is stacked, and what stands for its absence."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Part(NamedTuple):
    """What a network takes of a part: its width, and the share of images that it was trained without it for.

    gaps: the share of single values, as attributes have them, that were hidden each by itself.
    """

    width: int
    dropout: float = 0
    gaps: float = 0


class PartKind:
    """A kind of condition: an image's row of it has a shape and a dtype, and a null that says nothing.

    one and many name it in messages, width_key is the networks' argument for its width, dropout_key theirs or the
    preconditioners' for the share of images that are trained without it, and the purpose of the random numbers that
    choose them. stored: the array of samples files, and in volumes.h5 and latents.h5 the data set of a split, that has
    a value for each item; names: the list, among what is known of the data, as long as the part is wide, None where
    the data set is [N,width] or [N]. grid: "map" or "image" for what lies on the grid of the volumes and is moved
    along with them.
    """

    one: str
    many: str
    width_key: str
    dropout_key: str
    stored: str
    names: str | None = None
    grid: str | None = None
    dtype: type = np.float32

    def null(self, width: int | None) -> float:
        """What says nothing in a part of that width, which all but maps know without."""
        return 0

    def shape(self, width: int, size: Sequence[int]) -> tuple[int, ...]:
        """Shape of the row of an image of a size [*S]."""
        return (width,)

    def row(self, value: Any, width: int, size: Sequence[int] = ()) -> np.ndarray:
        """Row of an image of a size [*S] by its stored value; None: it is missing."""
        if value is None:
            return np.full(self.shape(width, size), self.null(width), self.dtype)
        return np.asarray(value, self.dtype)

    def value(self, row: np.ndarray) -> Any:
        """The stored value of a row."""
        return row

    def unasked(self, width: int, size: Sequence[int]) -> Sequence[Any]:
        """Values that seeds go through in turn where generation is asked for none: the null alone."""
        return [np.full(self.shape(width, size), self.null(width), self.dtype)]
