"""From the grid of a volume to that of a network, each of whose cells is a box of voxels: maps and images."""

from collections.abc import Sequence
from math import prod

import torch


def fold(x: torch.Tensor, factor: Sequence[int]) -> torch.Tensor:
    """The voxels of each cell [N,C,F,*s] of x [N,C,*S], S = factor * s, in the order of the volume's axes."""
    n, c, *size = x.shape
    cells = [s // f for s, f in zip(size, factor, strict=True)]
    boxes = x.reshape(n, c, *(number for pair in zip(cells, factor) for number in pair))
    axes = range(2, 2 + 2 * len(cells), 2)
    return boxes.permute(0, 1, *(axis + 1 for axis in axes), *axes).reshape(n, c, prod(factor), *cells)


def fold_map(semantic: torch.Tensor, classes: int, factor: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Channels [N,C,*s] of a map [N,*S] of whole numbers below `classes`: what share of a cell each class has, then for
    each class which of the cell's F voxels are of it, C = classes * (1 + F). Where a cell is a voxel these are the same
    and come once, C = classes.
    """
    voxels = one_hot(fold(semantic.unsqueeze(1), factor)[:, 0], classes).to(dtype)
    return voxels[:, :, 0] if prod(factor) == 1 else torch.cat([voxels.mean(2), voxels.flatten(1, 2)], dim=1)


def nearest_map(semantic: torch.Tensor, classes: int, factor: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Channels [N,classes,*s] of a map [N,*S]: the class of each cell's first voxel, as by nearest resizing."""
    return one_hot(semantic[(slice(None), *(slice(None, None, f) for f in factor))], classes).to(dtype)


def one_hot(numbers: torch.Tensor, classes: int) -> torch.Tensor:
    """Which class each number [N,*] is, bool [N,classes,*]."""
    wanted = torch.arange(classes, dtype=numbers.dtype, device=numbers.device)
    return numbers.unsqueeze(1) == wanted.reshape(-1, *[1] * (numbers.ndim - 1))


def image_channels(images: torch.Tensor, size: Sequence[int], factor: Sequence[int], folded: bool) -> torch.Tensor:
    """Channels [N,C,*s] of images [N,c,*S], S = factor * s: the mean over each cell; `folded`: its F voxels, channel by
    channel; and whether there is an image, 1 where any value of it is not 0. Images that come on the cells (S = s) are
    their own means.
    """
    there = (images != 0).flatten(1).any(1).to(images.dtype).reshape(-1, *[1] * (len(size) + 1))
    there = there.expand(len(images), 1, *size)
    if tuple(images.shape[2:]) == tuple(size):
        return torch.cat([images, there], dim=1)
    voxels = fold(images, factor)
    return torch.cat([voxels.mean(2), *([voxels.flatten(1, 2)] if folded else []), there], dim=1)


def count_image_channels(width: int, factor: Sequence[int], folded: bool) -> int:
    """How many channels `image_channels` makes of `width`."""
    return width * (1 + (prod(factor) if folded and prod(factor) > 1 else 0)) + 1
