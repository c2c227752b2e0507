"""What the UNets are made of: their geometry, the style of a family of blocks, and the block."""

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import silu

from edm3d.networks.attribute_embedding import CrossAttention
from edm3d.networks.codecs import CODECS, cell_of
from edm3d.networks.layers import NORMS, attention, conv, down, is_box, linear, per_axis, per_level, up
from edm3d.networks.slice_attention import DepthAttention, within_slices
from edm3d.networks.spade import modulate, modulation
from edm3d.utils.checks import check_choice, check_count


class Style(NamedTuple):
    """What sets the blocks of one family of UNets apart from another's."""

    scale_shift: bool      # the embedding scales and shifts, or is only added
    eps: float             # of the group norms
    skip_scale: float      # factor on the sums of two branches
    resample_skip: bool    # a convolution on the skip of every resampling block, or only where the width changes
    init: float            # start of hidden layers, see layers.scale_init
    init_attention: float  # start of queries, keys and values
    glorot: bool
    attend_last: bool      # a decoder level attends in its last block only, or in all


ADM = Style(scale_shift=True, eps=1e-5, skip_scale=1, resample_skip=False, init=sqrt(1 / 3),
            init_attention=sqrt(1 / 3), glorot=False, attend_last=False)
# Song et al. draw queries, keys and values apart, with variance 0.1 / C; all in one layer, the mean of the fans is 2 C
SONG = Style(scale_shift=False, eps=1e-6, skip_scale=sqrt(1 / 2), resample_skip=True, init=1,
             init_attention=sqrt(0.2), glorot=True, attend_last=True)


class Levels(NamedTuple):
    """Geometry of a UNet, from the full size down."""

    widths: list[int]                # channels of each level
    strides: list[tuple[int, ...]]   # per axis, from each level to the next
    kernels: list[tuple[int, ...]]   # per axis, of each level
    attends: set[int]                # levels with attention


def plan_widths(model_channels: int, channel_mult: Sequence[int], channel_mult_emb: int) -> tuple[list[int], int]:
    """Channels of every level, and of the embedding."""
    check_count(1, {"model_channels": model_channels, "channel_mult": channel_mult,
                    "channel_mult_emb": channel_mult_emb})
    return [model_channels * m for m in channel_mult], model_channels * channel_mult_emb


def plan_levels(dims: int, widths: list[int], strides: int | Sequence, kernel_size: int | Sequence,
                attention_levels: Sequence[int] | None, attention_resolutions: Sequence[int] | None,
                image_size: int | Sequence[int] | None, channels_per_head: int | None, default: Sequence[int],
                codec: str = "none", bottleneck_attention: bool = True) -> Levels:
    """Geometry from the parameters of a UNet; `default` are the attending levels where nothing is said of them."""
    check_choice("codec", codec, CODECS)
    count = len(widths)
    strides = per_level(strides, count - 1, dims, "strides")
    kernels = per_level(kernel_size, count, dims, "kernel_size")
    if attention_resolutions is not None:
        if attention_levels is not None or image_size is None:
            raise ValueError(f"attention_resolutions={list(attention_resolutions)}: wanted image_size with it and no "
                             f"attention_levels, got image_size={image_size}, attention_levels={attention_levels}")
        cells = [n // c for n, c in zip(per_axis(image_size, dims, "image_size"), cell_of(codec, dims), strict=True)]
        sizes = largest_axes(cells, strides)
        attends = {level for level, size in enumerate(sizes) if size in attention_resolutions}
        if len(attention_resolutions) and not attends:
            raise ValueError(f"attention_resolutions={list(attention_resolutions)}: the largest axes of the levels are "
                             f"{', '.join(map(str, sizes))}")
    else:
        attends = {level for level in default if level < count} if attention_levels is None else set(attention_levels)
    bad = [level for level in attends if not 0 <= level < count]
    if bad:
        raise ValueError(f"attention_levels={list(attention_levels)}: level {bad[0]} is not one of 0..{count - 1}")
    for key, asked in (("attention_levels", attention_levels), ("attention_resolutions", attention_resolutions)):
        if asked is not None:
            check_attends(f"{key}={list(asked)}", attends, widths, channels_per_head)
    lowest = {count - 1} if bottleneck_attention else set()
    check_heads(channels_per_head, [widths[level] for level in sorted(attends | lowest)])
    return Levels(widths, strides, kernels, attends)


def check_attends(asked: str, attends: set[int], widths: Sequence[int], channels_per_head: int | None) -> None:
    """ValueError when a level that was asked to attend is narrower than a head: its blocks would have no attention."""
    narrow = [level for level in sorted(attends) if widths[level] < (channels_per_head or 0)]
    if narrow:
        width = widths[narrow[0]]
        raise ValueError(f"{asked}: level {narrow[0]} has {width} channels, fewer than "
                         f"channels_per_head={channels_per_head}; leave the level out or set channels_per_head={width}")


def largest_axes(size: Sequence[int], strides: Sequence[Sequence[int]]) -> list[int]:
    """Largest axis of an image at every level."""
    sizes = [tuple(size)]
    for stride in strides:
        sizes.append(tuple(n // s for n, s in zip(sizes[-1], stride, strict=True)))
    return [max(s) for s in sizes]


def check_heads(channels_per_head: int | None, widths: Sequence[int]) -> None:
    """ValueError when the width of a level that attends, as the lowest does by its
    bottleneck, does not divide into heads."""
    if channels_per_head is not None and channels_per_head < 1:
        raise ValueError(f"channels_per_head={channels_per_head}: wanted 1 or more, or null for a single head")
    for width in widths if channels_per_head else ():
        if width >= channels_per_head and width % (width // channels_per_head):
            raise ValueError(f"channels_per_head={channels_per_head}: {width} channels do not divide into "
                             f"{width // channels_per_head} heads; choose a divisor of {width}")


class UNetBlock(nn.Module):
    """Residual block with embedding, optional resampling and optional self-attention.

    x [N,in_channels,*S], emb [N,emb_channels] -> [N,out_channels,*S'], S' = S / stride (way='down'), S * stride ('up').
    map_channels: its norms are modulated by a map's features [N,map_channels,*S] `before` and [N,map_channels,*S']
    `after` resampling; token_channels: what attends also attends to tokens [N,A,token_channels]. norm is one of
    layers.NORMS, attends one of slice_attention.ATTENTIONS.
    """

    def __init__(self, style: Style, dims: int, in_channels: int, out_channels: int, emb_channels: int, *,
                 kernel: Sequence[int], stride: Sequence[int] = (), way: str = "same",
                 filter: Sequence[float] = (1, 1), heads: int = 0, dropout: float = 0, map_channels: int = 0,
                 token_channels: int = 0, norm: str = "group", attends: str = "volume"):
        super().__init__()
        assert way in ("same", "down", "up")
        self.style, self.stride, self.way, self.filter = style, stride, way, filter
        self.heads, self.dropout, self.attends = heads, dropout, attends
        init, glorot = style.init, style.glorot
        self.norm0 = NORMS[norm](in_channels, style.eps)
        self.repeats = way == "up" and is_box(filter)
        self.conv0 = conv(dims, in_channels, out_channels, kernel, init=init, glorot=glorot,
                          repeat=stride if self.repeats else ())
        self.affine = linear(emb_channels, out_channels * (2 if style.scale_shift else 1), init=init, glorot=glorot)
        self.norm1 = NORMS[norm](out_channels, style.eps)
        self.conv1 = conv(dims, out_channels, out_channels, kernel, init=0)
        convolve = in_channels != out_channels or (style.resample_skip and way != "same")
        self.skip = conv(dims, in_channels, out_channels, 1, init=init, glorot=glorot) if convolve else None
        if heads:
            self.norm2 = NORMS[norm](out_channels, style.eps)
            self.qkv = conv(dims, out_channels, out_channels * 3, 1, init=style.init_attention, glorot=glorot)
            self.proj = conv(dims, out_channels, out_channels, 1, init=0)
        self.spade0, self.spade1, self.spade2 = (
            modulation(dims, map_channels, channels) if map_channels and channels else None
            for channels in (in_channels, out_channels, out_channels if heads else 0))
        self.depth = DepthAttention(dims, out_channels, heads, style.eps, norm, style.init_attention, glorot) \
            if heads and attends == "slices_depth" else None
        self.cross = CrossAttention(dims, out_channels, token_channels, heads, style.eps, norm) \
            if heads and token_channels else None

    def resample(self, x: torch.Tensor) -> torch.Tensor:
        """The block's change of size."""
        if self.way == "same":
            return x
        return (down if self.way == "down" else up)(x, self.stride, self.filter)

    def embed(self, h: torch.Tensor, emb: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
        """Second norm and activation, told the embedding and a map's features."""
        emb = self.affine(emb).reshape(len(emb), -1, *[1] * (h.ndim - 2))
        if self.style.scale_shift:
            scale, shift = emb.chunk(2, dim=1)
            return silu(torch.addcmul(shift, modulate(self.norm1(h), self.spade1, features), scale + 1))
        return silu(modulate(self.norm1(h + emb), self.spade1, features))

    def forward(self, x: torch.Tensor, emb: torch.Tensor, before: torch.Tensor | None = None,
                after: torch.Tensor | None = None, tokens: torch.Tensor | None = None) -> torch.Tensor:
        h = silu(modulate(self.norm0(x), self.spade0, before))
        h = self.conv0(h if self.repeats else self.resample(h))
        h = self.conv1(nn.functional.dropout(self.embed(h, emb, after), self.dropout, self.training))
        x = self.resample(x)
        x = (h + (x if self.skip is None else self.skip(x))) * self.style.skip_scale
        if self.heads:
            attend = attention if self.attends == "volume" else within_slices
            found = attend(self.qkv(modulate(self.norm2(x), self.spade2, after)), self.heads)
            x = (x + self.proj(found)) * self.style.skip_scale
        if self.depth is not None:
            x = self.depth(x)
        return x if self.cross is None else self.cross(x, tokens)
