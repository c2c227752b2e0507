"""Exact codecs without weights: the 2^d voxels of a cell become channels, and go back.

fold: the voxels as they are, which inverts to the bit. haar: one step of the orthonormal Haar transform along every
axis (Haar 1910), whose sub-bands of white noise are white noise of the same variance; it inverts but for rounding.
Both turn channels [C] into [C * 2^d], of image channel c those from c * 2^d on. Of these, number sum_a b_a 2^(d-1-a) is
the voxel that lies b_a (0 or 1) into its cell along axis a, or the band that is a difference along the axes with
b_a = 1 and a sum along the others: band 0 is the mean times 2^(d/2).
"""

from collections.abc import Sequence
from math import prod

import torch

CODECS = ("none", "fold", "haar")


def cell_of(codec: str, dims: int) -> tuple[int, ...]:
    """Voxels per axis of the cells of a codec."""
    return (1 if codec == "none" else 2,) * dims


def to_cells(codec: str, x: torch.Tensor) -> torch.Tensor:
    """Channels [N,C * 2^d,*S/2] of voxels [N,C,*S] with even S; x itself of codec "none"."""
    if codec == "none":
        return x
    cells = fold(x, cell_of(codec, x.ndim - 2))
    return (haar(cells) if codec == "haar" else cells).flatten(1, 2)


def to_voxels(codec: str, x: torch.Tensor) -> torch.Tensor:
    """Voxels [N,C,*S] of channels [N,C * 2^d,*S/2]: the inverse of `to_cells`."""
    if codec == "none":
        return x
    cell = cell_of(codec, x.ndim - 2)
    cells = x.unflatten(1, (-1, prod(cell)))
    return unfold(haar(cells) if codec == "haar" else cells, cell)


def fold(x: torch.Tensor, factor: Sequence[int]) -> torch.Tensor:
    """The voxels of each cell [N,C,F,*s] of x [N,C,*S], S = factor * s, in the order of the volume's axes."""
    n, c, *size = x.shape
    cells = [s // f for s, f in zip(size, factor, strict=True)]
    boxes = x.reshape(n, c, *(number for pair in zip(cells, factor) for number in pair))
    axes = range(2, 2 + 2 * len(cells), 2)
    return boxes.permute(0, 1, *(axis + 1 for axis in axes), *axes).reshape(n, c, prod(factor), *cells)


def unfold(cells: torch.Tensor, factor: Sequence[int]) -> torch.Tensor:
    """x [N,C,*S] of the voxels of its cells [N,C,F,*s]: the inverse of `fold`."""
    n, c, _, *size = cells.shape
    dims = len(size)
    boxes = cells.reshape(n, c, *factor, *size)
    pairs = (axis for a in range(dims) for axis in (2 + dims + a, 2 + a))
    return boxes.permute(0, 1, *pairs).reshape(n, c, *(s * f for s, f in zip(size, factor, strict=True)))


def haar(cells: torch.Tensor) -> torch.Tensor:
    """Haar's bands [N,C,2^d,*s] of the voxels of cells [N,C,2^d,*s], or the voxels of bands: it is its own inverse.

    Sums and differences in the precision of the cells, which no autocast lowers as it would a matrix product.
    """
    n, c, count, *size = cells.shape
    x = cells.reshape(n, c, *[2] * len(size), *size)
    for axis in range(2, 2 + len(size)):
        first, second = x.unbind(axis)
        x = torch.stack([first + second, first - second], dim=axis)
    return x.reshape(n, c, count, *size) * count ** -0.5
