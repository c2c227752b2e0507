"""The halves of an autoencoder in parts, in the memory of a part: as tiles that are blended, or slab by slab.

Tiles are whole networks' work on a part: GroupNorm and attention see no more than it, so that the result differs from
that of the whole. Slabs are one layer's work on a part: norms take their statistics and attention its keys from the
whole, so that the result is the same but for rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from math import prod
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from networks.autoencoder import Downsample, ResBlock, Upsample
from networks.layers import CONVS, up
from utils.checks import check_choice

MODES = ("blend", "exact")
CONVOLVE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def by_parts(net: nn.Module, tile: Sequence[int], overlap: float = 0.25, mode: str = "blend") -> nn.Module:
    """An autoencoder with the weights of `net` that encodes and decodes in parts; `net` itself stays as it is.

    tile [*S] in voxels is the size of a tile, mode "blend", of which neighbours share `overlap`; or as many voxels make
    a slab, mode "exact". ValueError for a tile that the network cannot divide.
    """
    check_choice("tile mode", mode, MODES)
    tile, factor = tuple(tile), net.factor
    if len(tile) != len(factor) or any(t < f or t % f for t, f in zip(tile, factor)):
        fit = [max(round(t / f), 1) * f for t, f in zip(tile, factor)] if len(tile) == len(factor) else list(factor)
        raise ValueError(f"tile={list(tile)}: wanted one number per axis, multiples of {list(factor)}, such as {fit}")
    if not 0 <= overlap < 1:
        raise ValueError(f"tile overlap={overlap}: wanted a share of the tile, 0 or more and less than 1")
    view = copy(net)
    view._modules = dict(net._modules)
    latent = tuple(t // f for t, f in zip(tile, factor))
    step = tuple(max(round(t * (1 - overlap)), 1) for t in latent)
    if mode == "exact":
        view.encoder, view.decoder = InSlabs(net.encoder, prod(tile)), InSlabs(net.decoder, prod(tile))
    else:
        view.encoder = InTiles(net.encoder, tile, tuple(s * f for s, f in zip(step, factor)))
        view.decoder = InTiles(net.decoder, latent, step)
    return view.eval()


# ---- tiles ----


class InTiles(nn.Module):
    """What `inner` makes of overlapping tiles of x [N,C,*S], blended with Gaussian weights (MONAI's sliding window)."""

    def __init__(self, inner: nn.Module, tile: Sequence[int], step: Sequence[int]):
        super().__init__()
        self.inner, self.tile, self.step = inner, tile, step

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from monai.inferers.utils import sliding_window_inference

        tile = [min(t, size) for t, size in zip(self.tile, x.shape[2:])]
        if tile == list(x.shape[2:]):
            return self.inner(x)
        overlap = [max(0.0, 1 - (s + 0.5) / t) for s, t in zip(self.step, tile)]  # half a step, against rounding down
        return sliding_window_inference(x, tile, 1, lambda part: self.inner(part).float(), overlap, mode="gaussian")


# ---- slabs ----


class InSlabs(nn.Module):
    """What `inner`, a sequence of the layers of an autoencoder's half, makes of x [N,C,*S], slab by slab.

    A slab has about `voxels` voxels. At most two tensors of full size are held at a time.
    """

    def __init__(self, inner: nn.Sequential, voxels: int):
        super().__init__()
        self.inner, self.voxels = inner, voxels

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = None
        for layer in self.inner:
            if isinstance(layer, nn.GroupNorm):
                norm = layer
            elif isinstance(layer, nn.SiLU):
                assert norm is not None, "every activation follows a norm"
            elif isinstance(layer, ResBlock):
                x = res_block(layer, x, self.voxels)
            elif isinstance(layer, tuple(CONVS.values())):
                x, norm = convolve(Rows(x, norm and affine(norm, x, self.voxels)), layer, self.voxels), None
            elif isinstance(layer, Upsample):
                x = upsample(layer, x, self.voxels)
            elif isinstance(layer, Downsample):
                x = convolve(Rows(x), layer.conv, self.voxels, far=layer.pad)
            else:  # attention, which lies where volumes are small
                x = layer(x)
        return x


class Rows(NamedTuple):
    """Rows along the first axis of a tensor x [N,C,*S] behind a norm with SiLU (scale and shift) and a repetition."""

    x: torch.Tensor
    scale_shift: tuple[torch.Tensor, torch.Tensor] | None = None
    repeat: Sequence[int] = (1, 1, 1)

    @property
    def size(self) -> list[int]:
        """[*S] after the repetition."""
        return [n * r for n, r in zip(self.x.shape[2:], self.repeat)]

    def take(self, first: int, last: int) -> torch.Tensor:
        """Rows first .. last - 1."""
        start = first // self.repeat[0]
        part = self.x[:, :, start:-(-last // self.repeat[0])]
        if self.scale_shift is not None:
            scale, shift = self.scale_shift
            part = functional.silu((part * scale).add_(shift), inplace=True).to(part.dtype)
        if max(self.repeat) > 1:
            part = up(part, self.repeat[:part.ndim - 2])
        skipped = start * self.repeat[0]
        return part[:, :, first - skipped:last - skipped]


def slabs(count: int, thickness: int) -> Iterator[tuple[int, int]]:
    """First and past-last row of the slabs of `count` rows."""
    for first in range(0, count, thickness):
        yield first, min(first + thickness, count)


def affine(norm: nn.GroupNorm, x: torch.Tensor, voxels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift [N,C,1,..] by which GroupNorm acts on x, its statistics gathered slab by slab (Chan et al.)."""
    N, C = x.shape[:2]
    count, mean, squares = 0, 0, 0
    for first, last in slabs(x.shape[2], max(1, voxels // prod(x.shape[3:]))):
        part = x[:, :, first:last].float().reshape(N, norm.num_groups, -1)
        part_var, part_mean = (t.double() for t in torch.var_mean(part, dim=2, correction=0))
        total, delta = count + part.shape[2], part_mean - mean
        squares = squares + part_var * part.shape[2] + delta ** 2 * (count * part.shape[2] / total)
        mean, count = mean + delta * (part.shape[2] / total), total
    ones = x.new_ones(C, dtype=torch.float64)
    weight, bias = (ones, 0 * ones) if norm.weight is None else (norm.weight.double(), norm.bias.double())
    spread = (squares / count + norm.eps).rsqrt().repeat_interleave(C // norm.num_groups, dim=1)
    scale = spread * weight
    shift = bias - mean.repeat_interleave(C // norm.num_groups, dim=1) * scale
    shape = (N, C, *[1] * (x.ndim - 2))
    return scale.float().reshape(shape), shift.float().reshape(shape)


def convolve(source: Rows, layer: nn.Module, voxels: int, *, far: Sequence[int] | None = None,
             onto: torch.Tensor | None = None, add: Callable[[int, int], torch.Tensor] | None = None) -> torch.Tensor:
    """layer(source) + add(first, last), slab by slab; `far` [*S]: further zeros on the far side of each axis.

    `onto` is what to write into: it may be source.x, as every slab is written when the one behind it has been read.
    """
    size, kernel, stride = source.size, layer.kernel_size, layer.stride
    sides = [(n, n + f) for n, f in zip(layer.padding, far or [0] * len(size))]
    others = [width for pair in reversed(sides[1:]) for width in pair]
    out_size = [(n + sum(pair) - k) // s + 1 for n, pair, k, s in zip(size, sides, kernel, stride)]
    function, waiting = CONVOLVE[len(size)], None
    for first, last in slabs(out_size[0], max(kernel[0], voxels // prod(out_size[1:]))):
        lo, hi = first * stride[0] - sides[0][0], (last - 1) * stride[0] - sides[0][0] + kernel[0]
        part = source.take(max(lo, 0), min(hi, size[0]))
        zeros = [*others, max(-lo, 0), max(hi - size[0], 0)]
        part = function(functional.pad(part, zeros) if any(zeros) else part, layer.weight, layer.bias, stride)
        if add is not None:
            part += add(first, last)
        if onto is None:
            onto = part.new_empty(*part.shape[:2], *out_size)
        if waiting is not None:
            onto[:, :, waiting[0]:waiting[1]] = waiting[2]
        waiting = first, last, part
    onto[:, :, waiting[0]:waiting[1]] = waiting[2]
    return onto


def res_block(block: ResBlock, x: torch.Tensor, voxels: int) -> torch.Tensor:
    """A residual block: besides x one tensor, which the second convolution writes over."""
    h = convolve(Rows(x, affine(block.norm0, x, voxels)), block.conv0, voxels)

    def skip(first: int, last: int) -> torch.Tensor:
        return x[:, :, first:last] if block.skip is None else block.skip(x[:, :, first:last])

    return convolve(Rows(h, affine(block.norm1, h, voxels)), block.conv1, voxels, onto=h, add=skip)


def upsample(layer: Upsample, x: torch.Tensor, voxels: int) -> torch.Tensor:
    """Up-sampling, with the repetition before or behind the convolution."""
    if layer.repeat_first:
        return convolve(Rows(x, None, layer.stride), layer.conv, voxels)
    return up(convolve(Rows(x), layer.conv, voxels), layer.stride)
