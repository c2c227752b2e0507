"""How networks go down from level to level where voxels are longer along some axes than along others."""

from collections.abc import Callable, Sequence
from math import prod
from typing import NamedTuple

FEW = 8  # an axis of fewer positions is not halved
THIN = 2  # an axis whose voxels are so many times as long as the shortest is one of slices


class Descent(NamedTuple):
    """Levels from the full size down: sizes and spacings of each, strides between them, and which axes are of slices.
    """

    sizes: list[tuple[int, ...]]
    spacings: list[tuple[float, ...]]
    strides: list[list[int]]
    slices: Sequence[bool]

    @property
    def factor(self) -> tuple[int, ...]:
        """How many voxels one position of the lowest level covers, per axis."""
        return tuple(prod(s[axis] for s in self.strides) for axis in range(len(self.sizes[0])))

    @property
    def kernels(self) -> list[list[int]]:
        """Of each level: 1 across slices that lie much farther apart than voxels within them, else 3."""
        return [[1 if thin and long else 3 for thin, long in zip(self.slices, far_apart(level), strict=True)]
                for level in self.spacings]


def far_apart(spacing: Sequence[float]) -> list[bool]:
    """Of each axis, whether its voxels are THIN times as long as the shortest, or longer."""
    return [s >= THIN * min(spacing) * (1 - 1e-6) for s in spacing]


def descend(size: Sequence[int], spacing: Sequence[float], slices: Sequence[bool],
            enough: Callable[[int, int], bool]) -> Descent:
    """Levels of a network, down to where `enough` says so of the number of steps and positions, or nothing halves.

    An axis halves where it has FEW positions or more and its voxels are less than THIN times as long as the shortest,
    so that voxels become cubes; one of slices only where its number is even, as slices are not padded.
    """
    levels = Descent([tuple(size)], [tuple(spacing)], [], slices)
    while not enough(len(levels.strides), prod(levels.sizes[-1])):
        now, lengths = levels.sizes[-1], levels.spacings[-1]
        stride = [2 if n >= FEW and not long and not (thin and n % 2) else 1
                  for n, long, thin in zip(now, far_apart(lengths), slices, strict=True)]
        if max(stride) == 1:
            break
        levels.strides.append(stride)
        levels.sizes.append(tuple(-(-n // s) for n, s in zip(now, stride, strict=True)))
        levels.spacings.append(tuple(length * s for length, s in zip(lengths, stride, strict=True)))
    return levels


def plain_kernels(kernels: list[list[int]]) -> int | list[list[int]]:
    """Kernels per level and axis, one number where all are the same."""
    return 3 if all(k == 3 for level in kernels for k in level) else kernels
