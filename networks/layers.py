"""Leaf layers and small maths that all networks share, for 1, 2 and 3 spatial dimensions."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOLS = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def per_axis(value: int | Sequence[int], dims: int, name: str) -> tuple[int, ...]:
    """A number for each spatial axis from one number or one per axis."""
    values = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(values) != dims or any(not isinstance(v, int) or v < 1 for v in values):
        raise ValueError(f"{name}={value!r}: wanted a positive number or {dims} of them, one per axis")
    return values


def per_level(value: int | Sequence, levels: int, dims: int, name: str) -> list[tuple[int, ...]]:
    """Numbers for each level and axis: one number for all, or a list with one entry (number or per axis) per level."""
    entries = [value] * levels if isinstance(value, int) else list(value)
    if len(entries) != levels:
        raise ValueError(f"{name}={value!r}: wanted one number or {levels} entries, one per level")
    return [per_axis(entry, dims, name) for entry in entries]


def conv(dims: int, in_channels: int, out_channels: int, kernel: int | Sequence[int] = 3, *, bias: bool = True,
         init: float | None = None) -> nn.Module:
    """Same-size convolution; `init` scales a Kaiming-uniform start (weight and bias), None is PyTorch's own."""
    kernel = per_axis(kernel, dims, "kernel_size")
    if any(k % 2 == 0 for k in kernel):
        raise ValueError(f"kernel_size={kernel}: wanted odd numbers, so that the size is kept")
    layer = CONVS[dims](in_channels, out_channels, kernel, padding=tuple(k // 2 for k in kernel), bias=bias)
    return scale_init(layer, init, in_channels * math.prod(kernel))


def linear(in_features: int, out_features: int, *, bias: bool = True, init: float | None = None) -> nn.Linear:
    """Linear layer with the same choice of start as `conv`."""
    return scale_init(nn.Linear(in_features, out_features, bias=bias), init, in_features)


@torch.no_grad()
def scale_init(layer: nn.Module, init: float | None, fan_in: int) -> nn.Module:
    """Redraw a layer's weight and bias uniformly with variance init^2 / fan_in (0: zeros)."""
    if init is not None:
        bound = init * math.sqrt(3 / fan_in)
        layer.weight.uniform_(-bound, bound)
        if layer.bias is not None:
            layer.bias.uniform_(-bound, bound)
    return layer


def group_norm(channels: int, eps: float = 1e-5, max_groups: int = 32, min_per_group: int = 4) -> nn.GroupNorm:
    """GroupNorm with as many groups as divide the channels, at most max_groups of at least min_per_group channels."""
    groups = min(max_groups, max(1, channels // min_per_group))
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels, eps=eps)


def down(x: torch.Tensor, stride: Sequence[int]) -> torch.Tensor:
    """Box down-sampling: mean over stride-sized blocks."""
    return x if all(s == 1 for s in stride) else POOLS[x.ndim - 2](x, tuple(stride))


def up(x: torch.Tensor, stride: Sequence[int]) -> torch.Tensor:
    """Box up-sampling: each value repeated stride times along each axis."""
    return x if all(s == 1 for s in stride) else functional.interpolate(x, scale_factor=tuple(map(float, stride)))


def timestep_embedding(x: torch.Tensor, channels: int, max_positions: float = 10000, *, endpoint: bool = False
                       ) -> torch.Tensor:
    """Sinusoidal embedding [N,channels] (cosines, then sines) of numbers x [N] (Ho et al. 2020, ADM's order)."""
    freqs = torch.arange(channels // 2, dtype=torch.float32, device=x.device)
    freqs = (1 / max_positions) ** (freqs / (channels // 2 - (1 if endpoint else 0)))
    phases = x.float().outer(freqs).to(x.dtype)
    return torch.cat([phases.cos(), phases.sin()], dim=1)


def attention(qkv: torch.Tensor, heads: int) -> torch.Tensor:
    """Self-attention over all positions: qkv [N, heads*c*3, *S] with channels in the order head, c, q/k/v."""
    n, channels, *size = qkv.shape
    q, k, v = qkv.reshape(n, heads, channels // (3 * heads), 3, -1).transpose(2, 4).unbind(3)
    out = functional.scaled_dot_product_attention(q, k, v)
    return out.transpose(2, 3).reshape(n, channels // 3, *size)


def check_divides(size: Sequence[int], factor: Sequence[int], network: str) -> None:
    """ValueError naming the nearest sizes that work when a network cannot divide a size."""
    if len(size) != len(factor):
        raise ValueError(f"{network}: got an image with {len(size)} spatial axes, spatial_dims is {len(factor)}")
    bad = [axis for axis, (s, f) in enumerate(zip(size, factor, strict=True)) if s % f or s < f]
    if bad:
        lower = tuple(max(s // f, 1) * f for s, f in zip(size, factor, strict=True))
        upper = tuple(-(-s // f) * f for s, f in zip(size, factor, strict=True))
        raise ValueError(f"{network}: size {tuple(size)} must divide by {tuple(factor)}; nearest that do: {lower} "
                         f"and {upper} (change the data's --size or the network's strides)")
