"""Layers whose weights change by a matrix of low rank alone (LoRA, Hu et al. 2022)."""

import torch
from torch import nn

from edm3d.networks.layers import CONVS, Conv3d

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv3d)  # no subclass: its owner may use its weights by itself


class LowRank(nn.Module):
    """A linear layer or pointwise convolution `base`, and beside it `up` of `down` of x, with r channels between them.

    It gives what base gives with weight W + U D: [out,in] plus [out,r] times [r,in]. U is 0 at the start, so that
    nothing changes by it; D is drawn as PyTorch draws a layer. r is the rank, or the width of a base that is narrower.
    """

    def __init__(self, base: nn.Module, rank: int):
        super().__init__()
        wide_out, wide_in, *kernel = base.weight.shape
        make = CONVS[len(kernel)] if kernel else nn.Linear
        rank = min(rank, wide_out, wide_in)
        self.base = base
        self.down, self.up = (make(*widths, *([1] if kernel else ()), bias=False)
                              for widths in ((wide_in, rank), (rank, wide_out)))
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


def takes_low_rank(layer: nn.Module) -> bool:
    """Whether a layer is linear at each position: a linear layer, or a convolution of one voxel at a stride of 1."""
    if type(layer) not in LAYERS:
        return False
    return isinstance(layer, nn.Linear) or {*layer.kernel_size, *layer.stride, layer.groups} == {1}


def product(up: torch.Tensor, down: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """What weights `up` [out,r,*1] and `down` [r,in,*1] add to a weight `like` [out,in,*1]."""
    return (up.flatten(1) @ down.flatten(1)).reshape(like.shape)
