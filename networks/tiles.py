"""The halves of an autoencoder in parts, in the memory of a part: as tiles that are blended, or slab by slab.

Tiles are whole networks' work on a part: GroupNorm and attention see no more than it, so that the result differs from
that of the whole. Slabs are one layer's work on a part: norms take their statistics and attention its keys from the
whole, so that the result is the same but for rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from math import prod
from typing import NamedTuple, Protocol

import torch
from torch import nn
from torch.nn import functional

from edm3d.networks.autoencoder import DownsampleConv, ResBlock, Upsample
from edm3d.networks.layers import CONVS, convolve, up
from edm3d.utils.checks import check_choice

MODES = ("blend", "exact")


class Tiles(NamedTuple):
    """Parts of a volume: size [*S] in voxels, of which neighbours share `overlap`, and mode (see by_parts)."""

    size: tuple[int, ...]
    overlap: float = 0.25
    mode: str = "blend"

    def plain(self) -> dict:
        """As the settings of a file name them."""
        return {"tile": list(self.size), "tile_mode": self.mode, "tile_overlap": self.overlap}


def by_parts(net: nn.Module, tiles: Tiles) -> nn.Module:
    """An autoencoder with the weights of `net` that encodes and decodes in parts; `net` itself stays as it is.

    Mode "blend": tiles of a size, blended where they overlap; "exact": slabs of as many voxels as a tile has.
    ValueError for a tile that the network cannot divide.
    """
    tile, overlap, mode = tiles
    check_choice("tile mode", mode, MODES)
    factor = net.factor
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

    A slab has about `voxels` voxels. Of a residual block one tensor of full size is held at a time, for which the first
    convolution is made twice: for the statistics of what it gives, and for the second one.
    """

    def __init__(self, inner: nn.Sequential, voxels: int):
        super().__init__()
        self.inner, self.voxels = inner, voxels

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, norm = Repeated(x, (1,) * (x.ndim - 2)), None
        for layer in self.inner:
            if isinstance(layer, nn.GroupNorm):
                norm = layer
            elif isinstance(layer, nn.SiLU):
                assert norm is not None, "every activation follows a norm"
            elif isinstance(layer, tuple(CONVS.values())):
                source = rows if norm is None else activated(norm, rows, self.voxels)
                onto = None if norm is None else room(rows, layer.out_channels)
                beside = max(layer.kernel_size[0] // 2, 1)
                rows, norm = rows.of(written(Convolved(source, layer), self.voxels, onto, least=beside)), None
            elif isinstance(layer, ResBlock):
                rows = rows.of(res_block(layer, repeated(rows, layer), self.voxels))
            elif isinstance(layer, Upsample):
                rows = rows.of(written(Convolved(repeated(rows, layer), layer.conv), self.voxels))
            elif isinstance(layer, DownsampleConv):
                rows = rows.of(written(Convolved(rows, layer.conv, layer.pad), self.voxels))
            else:  # attention, which lies where volumes are small
                rows = rows.of(layer(rows.take(0, rows.size[0])))
        return rows.take(0, rows.size[0])


class Source(Protocol):
    """A tensor [N,C,*S] of which rows along the first axis can be had, whether it is in memory or not."""

    size: Sequence[int]

    def take(self, first: int, last: int) -> torch.Tensor: ...


class Repeated(NamedTuple):
    """A tensor in memory whose values are repeated along the axes."""

    x: torch.Tensor
    repeat: Sequence[int]

    @property
    def size(self) -> list[int]:
        """[*S]."""
        return [n * r for n, r in zip(self.x.shape[2:], self.repeat)]

    def take(self, first: int, last: int) -> torch.Tensor:
        """Rows first .. last - 1."""
        start = first // self.repeat[0]
        part = up(self.x[:, :, start:-(-last // self.repeat[0])], self.repeat)
        skipped = start * self.repeat[0]
        return part[:, :, first - skipped:last - skipped]

    def of(self, x: torch.Tensor) -> "Repeated":
        """Another tensor as it is."""
        return Repeated(x, (1,) * len(self.repeat))


class Activated(NamedTuple):
    """SiLU of scale * source + shift, both [N,C,1,..]: what GroupNorm and SiLU make of it."""

    source: Source
    scale: torch.Tensor
    shift: torch.Tensor

    @property
    def size(self) -> Sequence[int]:
        """[*S]."""
        return self.source.size

    def take(self, first: int, last: int) -> torch.Tensor:
        """Rows first .. last - 1."""
        part = self.source.take(first, last)
        return functional.silu((part * self.scale).add_(self.shift), inplace=True).to(part.dtype)


class Convolved(NamedTuple):
    """A convolution of a source, which has `far` [*S] further zeros on the far side of each axis."""

    source: Source
    layer: nn.Module
    far: Sequence[int] = (0, 0, 0)

    def sides(self) -> list[tuple[int, int]]:
        """Zeros before and behind each axis."""
        return [(near, near + far) for near, far in zip(self.layer.padding, self.far)]

    @property
    def size(self) -> list[int]:
        """[*S]."""
        layer = self.layer
        return [(n + sum(zeros) - k) // s + 1 for n, zeros, k, s
                in zip(self.source.size, self.sides(), layer.kernel_size, layer.stride)]

    def take(self, first: int, last: int) -> torch.Tensor:
        """Rows first .. last - 1."""
        layer, count, ((near, _), *others) = self.layer, self.source.size[0], self.sides()
        lo = first * layer.stride[0] - near
        hi = (last - 1) * layer.stride[0] - near + layer.kernel_size[0]
        part = self.source.take(max(lo, 0), min(hi, count))
        zeros = [width for pair in reversed(others) for width in pair] + [max(-lo, 0), max(hi - count, 0)]
        part = functional.pad(part, zeros) if any(zeros) else part
        return convolve(part, layer, layer.weight, layer.bias, [0] * (part.ndim - 2))


def slabs(size: Sequence[int], voxels: int, least: int = 1) -> Iterator[tuple[int, int]]:
    """First and past-last row of slabs of about so many voxels, but of `least` rows or more."""
    rows = max(least, voxels // prod(size[1:]))
    for first in range(0, size[0], rows):
        yield first, min(first + rows, size[0])


def activated(norm: nn.GroupNorm, source: Source, voxels: int) -> Activated:
    """The source behind a norm and SiLU; the statistics are gathered slab by slab (Chan et al. 1983)."""
    counted = source.of(source.x) if isinstance(source, Repeated) else source  # repetition changes no statistics
    count, mean, squares = 0, 0, 0
    for first, last in slabs(counted.size, voxels):
        part = counted.take(first, last)
        N, C = part.shape[:2]
        groups = part.float().reshape(N, norm.num_groups, -1)
        part_var, part_mean = (t.double() for t in torch.var_mean(groups, dim=2, correction=0))
        added = groups.shape[2]
        delta, share = part_mean - mean, added / (count + added)
        squares = squares + part_var * added + delta ** 2 * (count * share)
        mean, count = mean + delta * share, count + added
    spread, mean = (t.repeat_interleave(C // norm.num_groups, dim=1)
                    for t in ((squares / count + norm.eps).rsqrt(), mean))
    scale = spread * norm.weight.double()
    shift = norm.bias.double() - mean * scale
    shape = (N, C, *[1] * (part.ndim - 2))
    return Activated(source, scale.float().reshape(shape), shift.float().reshape(shape))


def written(source: Source, voxels: int, onto: torch.Tensor | None = None,
            add: Callable[[int, int], torch.Tensor] | None = None, least: int = 1) -> torch.Tensor:
    """The source + add(first, last), put into memory slab by slab.

    onto: what to write into. The source may still read from it, as every slab is written when the one behind it has
    been read; `least`, the rows of a slab, is then to be as many as the source reads beside a slab.
    """
    waiting = None
    for first, last in slabs(source.size, voxels, least):
        part = source.take(first, last)
        if add is not None:
            part = part.add_(add(first, last))
        if onto is None:
            onto = part.new_empty(*part.shape[:2], *source.size)
        if waiting is not None:
            onto[:, :, waiting[0]:waiting[1]] = waiting[2]
        waiting = first, last, part
    onto[:, :, waiting[0]:waiting[1]] = waiting[2]
    return onto


def room(rows: Repeated, channels: int) -> torch.Tensor | None:
    """The first channels of a tensor that is not needed any more, None where there are too few or they are repeated."""
    return rows.x[:, :channels] if max(rows.repeat) == 1 and channels <= rows.x.shape[1] else None


def res_block(block: ResBlock, rows: Repeated, voxels: int) -> torch.Tensor:
    """A residual block, written over what it is given where there is room."""
    inner = Convolved(activated(block.norm0, rows, voxels), block.conv0)
    outer = Convolved(activated(block.norm1, inner, voxels), block.conv1)

    def skip(first: int, last: int) -> torch.Tensor:
        part = rows.take(first, last)
        return part if block.skip is None else block.skip(part)

    beside = block.conv0.kernel_size[0] // 2 + block.conv1.kernel_size[0] // 2
    return written(outer, voxels, room(rows, block.conv1.out_channels), skip, max(beside, 1))


def repeated(rows: Repeated, layer: ResBlock | Upsample) -> Repeated:
    """What a layer sees of rows, which it may up-sample first."""
    return Repeated(rows.x, layer.repeat) if layer.repeat else rows
