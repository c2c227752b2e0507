"""Semantic maps as networks see them: features at every level, which modulate the norms (SPADE, Park et al. 2019)."""

from collections.abc import Sequence
from math import prod, sqrt

import torch
from torch import nn
from torch.nn.functional import relu

from edm3d.networks.grids import fold_map, nearest_map
from edm3d.networks.layers import conv, down


class MapFeatures(nn.Module):
    """Features [N,hidden,*s] for every level of a UNet, of a map [N,*S] of the classes 0..K, K being none known.

    A network's cell has `factor` voxels. grid "fold": shares and voxels of a cell (grids.fold_map), averaged from level
    to level; "nearest": at every level the map resized to the nearest voxel. What all norms of a level share is made
    once: relu of a convolution of the level's kernel. Where the folded channels outnumber `hidden`, a 1x1 convolution
    before the first level brings them down to it, which leaves the rank of what follows as it is.
    """

    def __init__(self, dims: int, classes: int, hidden: int, grid: str, factor: Sequence[int],
                 strides: Sequence[Sequence[int]], kernels: Sequence[Sequence[int]]):
        super().__init__()
        self.classes, self.grid, self.factor, self.strides = classes + 1, grid, tuple(factor), list(strides)
        voxels = prod(factor)
        channels = self.classes * (1 + voxels if grid == "fold" and voxels > 1 else 1)
        self.squeeze = conv(dims, channels, hidden, 1, init=1) if grid == "fold" and channels > hidden else None
        channels = channels if self.squeeze is None else hidden
        self.levels = nn.ModuleList(conv(dims, channels, hidden, kernel, init=sqrt(2)) for kernel in kernels)

    def forward(self, semantic: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
        maps = self.nearest(semantic, dtype) if self.grid == "nearest" else self.folded(semantic, dtype)
        return [relu(level(channels)) for level, channels in zip(self.levels, maps, strict=True)]

    def folded(self, semantic: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
        """Channels of the map at every level, averaged from one to the next."""
        channels = fold_map(semantic, self.classes, self.factor, dtype)
        found = [channels if self.squeeze is None else self.squeeze(channels)]
        for stride in self.strides:
            found.append(down(found[-1], stride))
        return found

    def nearest(self, semantic: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
        """Channels of the map at every level, each resized from the full map."""
        factor, found = self.factor, []
        for stride in ((1,) * len(self.factor), *self.strides):
            factor = tuple(f * s for f, s in zip(factor, stride, strict=True))
            found.append(nearest_map(semantic, self.classes, factor, dtype))
        return found


def modulation(dims: int, hidden: int, channels: int) -> nn.Module:
    """The layer that makes gamma and beta of a norm with so many channels of a map's features; zeros at the start."""
    return conv(dims, hidden, 2 * channels, 1, init=0)


def modulate(x: torch.Tensor, layer: nn.Module | None, features: torch.Tensor | None) -> torch.Tensor:
    """x (1 + gamma) + beta of normalised x [N,C,*s], gamma and beta [N,C,*s] of features [N,hidden,*s]; x without."""
    if layer is None:
        return x
    gamma, beta = layer(features).chunk(2, dim=1)
    return torch.addcmul(beta, x, gamma + 1)
