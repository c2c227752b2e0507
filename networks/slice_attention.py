"""Attention of stacks of slices, which lie across the first axis: within each slice, and across them at every position.
"""

from math import prod

import torch
from torch import nn

from edm3d.networks.layers import NORMS, attention, conv, timestep_embedding
from edm3d.utils.checks import check_choice

ATTENTIONS = ("volume", "slices", "slices_depth")  # over all positions; within each slice; and then across them
MOST_SEQUENCES = 2 ** 16 - 1


def check_attention(name: str, dims: int) -> None:
    """ValueError for an attention that there is not, or that images of so many axes have no slices for."""
    check_choice("attention", name, ATTENTIONS)
    if name != "volume" and dims < 2:
        raise ValueError(f"attention={name}: images of one axis have no slices, spatial_dims is {dims}; wanted "
                         "attention=volume")


def within_slices(qkv: torch.Tensor, heads: int) -> torch.Tensor:
    """Self-attention within each slice of qkv [N,heads*c*3,D,*s], channels in the order of layers.attention."""
    n, channels, depth, *size = qkv.shape
    found = in_parts(qkv.transpose(1, 2).reshape(n * depth, channels, *size), heads)
    return found.reshape(n, depth, channels // 3, *size).transpose(1, 2)


def across_slices(qkv: torch.Tensor, heads: int) -> torch.Tensor:
    """Self-attention along the first axis at each position of the slices of qkv [N,heads*c*3,D,*s]."""
    n, channels, depth, *size = qkv.shape
    found = in_parts(qkv.flatten(3).permute(0, 3, 1, 2).reshape(n * prod(size), channels, depth), heads)
    return found.reshape(n, *size, channels // 3, depth).movedim((-2, -1), (1, 2))


def in_parts(qkv: torch.Tensor, heads: int) -> torch.Tensor:
    """layers.attention of any number of sequences [M,..]; CUDA takes so many at once (pytorch/pytorch#146704)."""
    if len(qkv) <= MOST_SEQUENCES:
        return attention(qkv, heads)
    return torch.cat([attention(part, heads) for part in qkv.split(MOST_SEQUENCES)])


def depth_embedding(depth: int, channels: int, like: torch.Tensor) -> torch.Tensor:
    """Sinusoidal embedding [channels,depth] of the numbers of slices, counted from 0; device and dtype as `like`."""
    numbers = torch.arange(depth, dtype=torch.float32, device=like.device)
    return timestep_embedding(numbers, channels + channels % 2)[:, :channels].T.to(like.dtype)


class DepthAttention(nn.Module):
    """x [N,C,D,*s] plus what its positions find at the same place of other slices; nothing at the start.

    Numbers of slices are added to what is attended to, so that their order counts.
    """

    def __init__(self, dims: int, channels: int, heads: int, eps: float = 1e-5, norm: str = "group",
                 init: float | None = None, glorot: bool = False):
        super().__init__()
        self.heads = heads
        self.norm = NORMS[norm](channels, eps)
        self.qkv = conv(dims, channels, channels * 3, 1, init=init, glorot=glorot)
        self.proj = conv(dims, channels, channels, 1, init=0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        numbers = depth_embedding(x.shape[2], x.shape[1], x)
        h = self.norm(x) + numbers.reshape(*numbers.shape, *[1] * (x.ndim - 3))
        return x + self.proj(across_slices(self.qkv(h), self.heads))
