"""From the grid of a volume to that of a network, each of whose cells is a box of voxels: maps and images."""

from collections.abc import Sequence
from math import prod

import torch

from edm3d.networks.codecs import fold


def fold_map(semantic: torch.Tensor, classes: int, factor: Sequence[int], dtype: torch.dtype
             ) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a map [N,*S] of whole numbers below `classes`, for each of the P cells in the order of the network's axes:
    what share of it each class has [N,P,classes], and for each class which of its F voxels are of it [N,P,classes,F].
    """
    voxels = one_hot(fold(semantic.unsqueeze(1), factor)[:, 0].flatten(2).transpose(1, 2).contiguous(), classes, 2)
    voxels = voxels.view(torch.uint8).to(dtype)  # from bool it takes half as long again, and a mean in bf16 seven times
    return voxels @ voxels.new_ones(voxels.shape[3]) / voxels.shape[3], voxels


def nearest_map(semantic: torch.Tensor, classes: int, factor: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Channels [N,classes,*s] of a map [N,*S]: the class of each cell's first voxel, as by nearest resizing."""
    return one_hot(semantic[(slice(None), *(slice(None, None, f) for f in factor))], classes, 1).to(dtype)


def one_hot(numbers: torch.Tensor, classes: int, axis: int) -> torch.Tensor:
    """Which class each number is, bool, with a further axis of the classes."""
    wanted = torch.arange(classes, dtype=numbers.dtype, device=numbers.device)
    return numbers.unsqueeze(axis) == wanted.reshape(-1, *[1] * (numbers.ndim - axis))


def image_channels(images: torch.Tensor, size: Sequence[int], folded: bool, dtype: torch.dtype) -> torch.Tensor:
    """Channels [N,C,*s] of images [N,c,*S], S a multiple of s: the mean over each cell; `folded`: its F voxels, channel
    by channel; and whether there is an image, 1 where any value of it is not 0.
    """
    there = (images != 0).flatten(1).any(1).to(dtype).reshape(-1, *[1] * (len(size) + 1))
    images, there = images.to(dtype), there.expand(len(images), 1, *size)
    factor = [full // cells for full, cells in zip(images.shape[2:], size, strict=True)]
    if prod(factor) == 1:
        return torch.cat([images, there], dim=1)
    voxels = fold(images, factor)
    return torch.cat([voxels.mean(2), *([voxels.flatten(1, 2)] if folded else []), there], dim=1)


def count_image_channels(width: int, factor: Sequence[int], folded: bool) -> int:
    """How many channels `image_channels` makes of `width`."""
    return width * (1 + (prod(factor) if folded and prod(factor) > 1 else 0)) + 1
