"""Semantic maps as networks see them: features at every level, which modulate the norms (SPADE, Park et al. 2019)."""

from collections.abc import Sequence
from math import prod, sqrt

import torch
from torch import nn
from torch.nn.functional import relu

from edm3d.networks.grids import fold_map, nearest_map
from edm3d.networks.layers import conv, down, linear


class MapFeatures(nn.Module):
    """Features [N,hidden,*s] for every level of a UNet, of a map [N,*S] of the classes 0..K, K being none known.

    A network's cell has `factor` voxels. grid "fold": what share of a cell each class has and which voxels of it, as
    channels that are averaged from level to level; "nearest": at every level the map resized to the nearest voxel.
    What all norms of a level share is made once: relu of a convolution of the level's kernel. Where the folded channels
    outnumber `hidden`, they are first brought down to it cell by cell, which leaves the rank of what follows as it is.
    """

    def __init__(self, dims: int, classes: int, hidden: int, grid: str, factor: Sequence[int],
                 strides: Sequence[Sequence[int]], kernels: Sequence[Sequence[int]]):
        super().__init__()
        self.classes, self.grid, self.factor, self.strides = classes + 1, grid, tuple(factor), list(strides)
        folds = grid == "fold" and prod(factor) > 1
        voxels = self.classes * prod(factor)
        channels = self.classes + (voxels if folds else 0)
        self.from_shares = self.from_voxels = None
        if folds and channels > hidden:
            self.from_shares = linear(self.classes, hidden, init=sqrt(1 / 2))
            self.from_voxels = linear(voxels, hidden, bias=False, init=sqrt(1 / 2))
            channels = hidden
        self.levels = nn.ModuleList(conv(dims, channels, hidden, kernel, init=sqrt(2)) for kernel in kernels)

    def forward(self, semantic: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
        maps = self.nearest(semantic, dtype) if self.grid == "nearest" else self.folded(semantic, dtype)
        return [relu(level(channels)) for level, channels in zip(self.levels, maps, strict=True)]

    def folded(self, semantic: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
        """Channels of the map at every level, averaged from one to the next."""
        device = semantic.device.type
        if device != "meta" and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)  # at once, as they are as large as the full map times its classes
        shares, voxels = fold_map(semantic, self.classes, self.factor, dtype)
        if self.from_shares is not None:
            cells = self.from_shares(shares) + self.from_voxels(voxels.flatten(2))
        else:
            cells = shares if prod(self.factor) == 1 else torch.cat([shares, voxels.flatten(2)], dim=2)
        size = [n // f for n, f in zip(semantic.shape[1:], self.factor, strict=True)]
        found = [cells.transpose(1, 2).contiguous().unflatten(2, size)]
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
