"""Leaf layers and small maths that all networks share, for 1, 2 and 3 spatial dimensions."""

import math
from collections.abc import Iterable, Sequence
from functools import reduce

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from edm3d.networks.single_volume import SingleVolume, is_single
from edm3d.utils.checks import check_choice

CONVOLVE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
FEW = 64  # positions of an image, below which sums of weights cost more than they save
POOLS = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def convolve(x: torch.Tensor, layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None,
             padding: Sequence[int]) -> torch.Tensor:
    """A layer's convolution of x [N,C,*S], with so many zeros around it; on a CPU of a single volume by oneDNN."""
    how = layer.stride, padding, layer.dilation, layer.groups
    if is_single(x, weight):
        return SingleVolume.apply(x, weight, bias, *how)
    return CONVOLVE[x.ndim - 2](x, weight, bias, *how)


class Conv3d(nn.Conv3d):
    """PyTorch's, but for `convolve`."""

    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self.padding_mode != "zeros" or isinstance(self.padding, str):
            return super()._conv_forward(input, weight, bias)
        return convolve(input, self, weight, bias, self.padding)


CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: Conv3d}


class RepeatConv(nn.Module):
    """A convolution of what is up-sampled by the box first: x [N,C,*S] to [N,C',*S*repeat]. Base of REPEAT_CONVS.

    Up-sampled neighbours are equal, so that their weights can be added up before: what is left is a transposed
    convolution of x. At a kernel of 3^3 and strides of 2 that is 64 products for each voxel of x in place of 216, and x
    is not held up-sampled (Shi et al. 2016 for learned kernels).
    """

    repeat: tuple[int, ...]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if math.prod(x.shape[2:]) < FEW:
            return super().forward(up(x, self.repeat))
        weight = box_sums(self.weight, self.repeat).transpose(0, 1)
        return TRANSPOSED[x.ndim - 2](x, weight, self.bias, self.repeat, self.padding)


class RepeatConv1d(RepeatConv, nn.Conv1d):
    """In one dimension."""


class RepeatConv2d(RepeatConv, nn.Conv2d):
    """In two dimensions."""


class RepeatConv3d(RepeatConv, Conv3d):
    """In three dimensions."""


REPEAT_CONVS = {1: RepeatConv1d, 2: RepeatConv2d, 3: RepeatConv3d}


def box_sums(weight: torch.Tensor, stride: Sequence[int]) -> torch.Tensor:
    """Weights [C',C,*K], flipped and convolved with a box as large as the stride: [C',C,*K+stride-1]."""
    kernel, places = weight.shape[2:], []
    for k, s in zip(kernel, stride, strict=True):
        behind = torch.arange(k + s - 1, device=weight.device)[:, None] - torch.arange(k, device=weight.device).flip(0)
        places.append(((behind >= 0) & (behind < s)).to(weight.dtype))
    sums = weight.flatten(2) @ reduce(torch.kron, places).T
    return sums.unflatten(2, [k + s - 1 for k, s in zip(kernel, stride, strict=True)])


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
         init: float | None = None, glorot: bool = False, repeat: Sequence[int] = ()) -> nn.Module:
    """Same-size convolution; `init` scales its start (see `scale_init`), None is PyTorch's own.

    repeat: strides by which the box up-samples before, if any.
    """
    check_choice("spatial_dims", dims, CONVS)
    kernel = per_axis(kernel, dims, "kernel_size")
    if any(k % 2 == 0 for k in kernel):
        raise ValueError(f"kernel_size={kernel}: wanted odd numbers, so that the size is kept")
    layer = (REPEAT_CONVS if repeat else CONVS)[dims](in_channels, out_channels, kernel,
                                                      padding=tuple(k // 2 for k in kernel), bias=bias)
    if repeat:
        layer.repeat = tuple(repeat)
    return scale_init(layer, init, glorot)


def linear(in_features: int, out_features: int, *, bias: bool = True, init: float | None = None, glorot: bool = False
           ) -> nn.Linear:
    """Linear layer with the same choice of start as `conv`."""
    return scale_init(nn.Linear(in_features, out_features, bias=bias), init, glorot)


@torch.no_grad()
def scale_init(layer: nn.Module, init: float | None, glorot: bool = False) -> nn.Module:
    """Redraw a layer uniformly with variance init^2 / fan (0: zeros); None leaves it alone.

    fan is the fan-in and the bias is drawn as well (He et al. 2015), or with `glorot` the mean of fan-in and fan-out
    and the bias is 0 (Glorot and Bengio 2010).
    """
    if init is not None:
        fan_in, fan_out = layer.weight[0].numel(), layer.weight.numel() // layer.weight.shape[1]
        bound = init * math.sqrt(3 / ((fan_in + fan_out) / 2 if glorot else fan_in))
        layer.weight.uniform_(-bound, bound)
        if layer.bias is not None:
            bound = 0 if glorot else bound
            layer.bias.uniform_(-bound, bound)
    return layer


def class_embedding(classes: int, channels: int) -> nn.Linear:
    """Layer that turns one-hot labels [N,classes] into vectors [N,channels], unit normal at the start."""
    layer = nn.Linear(classes, channels, bias=False)
    nn.init.normal_(layer.weight)
    return layer


def group_norm(channels: int, eps: float = 1e-5, max_groups: int = 32, min_per_group: int = 4) -> nn.GroupNorm:
    """GroupNorm with as many groups as divide the channels, at most max_groups of at least min_per_group channels."""
    groups = min(max_groups, max(1, channels // min_per_group))
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels, eps=eps)


class Standardise(torch.autograd.Function):
    """x [N,G,C,*S] less its mean over C, divided by its standard deviation, at each voxel and group.

    By hand its gradient takes half the time of autograd's, and one tensor of the size of x is kept for it and not two.
    It also gives one over the standard deviation, which is kept as well.
    """

    generate_vmap_rule = True  # gradients of each image by itself

    @staticmethod
    def forward(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
        apart = x - x.mean(2, keepdim=True)
        spread = torch.rsqrt(apart.square().mean(2, keepdim=True) + eps)
        return apart * spread, spread

    @staticmethod
    def setup_context(ctx, inputs: tuple[torch.Tensor, float], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*output)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None]:
        y, spread = ctx.saved_tensors
        along = (grad * y).mean(2, keepdim=True)
        return torch.addcmul(grad - grad.mean(2, keepdim=True), y, along, value=-1) * spread, None


class VoxelNorm(nn.GroupNorm):
    """GroupNorm whose statistics are over the channels of a group at each voxel alone, so that no voxel sees another.

    x [N,C,*S]; at least in float32, as PyTorch's GroupNorm.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        groups = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, (self.num_groups, -1))
        weight, bias = (each.reshape(self.num_groups, -1, *[1] * (x.ndim - 2)) for each in (self.weight, self.bias))
        return torch.addcmul(bias, Standardise.apply(groups, self.eps)[0], weight).flatten(1, 2).to(x.dtype)


def voxel_norm(channels: int, eps: float = 1e-5) -> VoxelNorm:
    """VoxelNorm of groups of 32 channels or more: all but two numbers of a voxel's group are free, of 4 it were half.
    """
    return VoxelNorm(group_norm(channels, eps, min_per_group=32).num_groups, channels, eps=eps)


NORMS = {"group": group_norm, "voxel": voxel_norm}


def is_box(filter: Sequence[float]) -> bool:
    """Whether a resampling filter is the box, [1,1], which serves any stride."""
    return len(filter) == 2 and filter[0] == filter[1]


def check_filter(filter: Sequence[float], strides: Iterable[Sequence[int]]) -> tuple[float, ...]:
    """A resampling filter fit for all strides; ValueError when it has an odd length, no sum or a stride it cannot."""
    if len(filter) < 2 or len(filter) % 2 or not all(map(math.isfinite, filter)) or not sum(filter):
        raise ValueError(f"resample_filter={list(filter)}: wanted an even number of finite weights that do not sum to "
                         "0, such as [1,1] or [1,3,3,1]")
    bad = sorted({s for stride in strides for s in stride if s > 2})
    if bad and not is_box(filter):
        raise ValueError(f"resample_filter={list(filter)}: only [1,1] works at strides={bad[0]}, "
                         "wanted strides of 1 or 2 on every axis")
    return tuple(filter)


def down(x: torch.Tensor, stride: Sequence[int], filter: Sequence[float] = (1, 1)) -> torch.Tensor:
    """Down-sample x [N,C,*S] to [N,C,*S/stride] by a 1D filter along every axis of stride > 1.

    [1,1] is the box, the mean over stride-sized blocks; longer filters (stride 2) see zeros outside and sum to 1.
    """
    return shrink(add_margin(x, stride, filter), stride, filter)


def add_margin(x: torch.Tensor, stride: Sequence[int], filter: Sequence[float]) -> torch.Tensor:
    """Zeros around x [N,C,*S] as far as the filter of `down` looks beyond the border; none for the box."""
    widths = [0 if s == 1 else len(filter) // 2 - 1 for s in reversed(stride) for _ in range(2)]
    return functional.pad(x, widths) if any(widths) else x


def shrink(x: torch.Tensor, stride: Sequence[int], filter: Sequence[float]) -> torch.Tensor:
    """`down` of what already has the filter's margin."""
    if is_box(filter):
        return x if all(s == 1 for s in stride) else POOLS[x.ndim - 2](x, tuple(stride))
    for axis, s in enumerate(stride, start=2):
        x = x if s == 1 else halve(x, axis, filter)
    return x


def up(x: torch.Tensor, stride: Sequence[int], filter: Sequence[float] = (1, 1)) -> torch.Tensor:
    """Up-sample x [N,C,*S] to [N,C,*S*stride]: the transpose of `down`, times the number of new voxels per old one.

    The box repeats each value stride times along each axis.
    """
    if is_box(filter):
        return x if all(s == 1 for s in stride) else functional.interpolate(x, scale_factor=tuple(map(float, stride)))
    for axis, s in enumerate(stride, start=2):
        x = x if s == 1 else double(x, axis, filter)
    return x


def halve(x: torch.Tensor, axis: int, filter: Sequence[float]) -> torch.Tensor:
    """y[i] = sum_k f[k] x[2i + k] along an axis, f being the filter with sum 1.

    A sum of strided views, not a depthwise convolution: the same in any number of dimensions and on any device.
    """
    half = (x.shape[axis] - len(filter)) // 2 + 1
    return weighted_sum([(f / sum(filter), window(x, axis, k, half, step=2)) for k, f in enumerate(filter)])


def double(x: torch.Tensor, axis: int, filter: Sequence[float]) -> torch.Tensor:
    """y[j] = 2 sum_{i,k} f[k] x[i] along an axis, over 2i + k = j + m with f of length 2m + 2."""
    m, margin, size = len(filter) // 2 - 1, len(filter) // 4, x.shape[axis]
    x = functional.pad(x, [0, 0] * (x.ndim - 1 - axis) + [margin, margin])
    even_odd = [weighted_sum([(2 * f / sum(filter), window(x, axis, margin + (p + m - k) // 2, size))
                              for k, f in enumerate(filter) if (p + m - k) % 2 == 0]) for p in (0, 1)]
    return torch.stack(even_odd, dim=axis + 1).flatten(axis, axis + 1)


def window(x: torch.Tensor, axis: int, start: int, length: int, step: int = 1) -> torch.Tensor:
    """View of `length` entries along an axis, every step-th from `start`."""
    return x[(slice(None),) * axis + (slice(start, start + (length - 1) * step + 1, step),)]


def weighted_sum(terms: Sequence[tuple[float, torch.Tensor]]) -> torch.Tensor:
    """Sum of weight * tensor."""
    (weight, total), *rest = terms
    total = weight * total
    for weight, term in rest:
        total = total.add(term, alpha=weight)
    return total


def waves(x: torch.Tensor, freqs: torch.Tensor) -> torch.Tensor:
    """Cosines, then sines [N,2F] of numbers x [N] times angular frequencies [F], in the precision of x."""
    phases = x.outer(freqs.to(x.dtype))
    return torch.cat([phases.cos(), phases.sin()], dim=1)


def timestep_embedding(x: torch.Tensor, channels: int, max_positions: float = 10000, *, endpoint: bool = False
                       ) -> torch.Tensor:
    """Sinusoidal embedding [N,channels] of numbers x [N] (Ho et al. 2020): frequencies fall from 1 to 1/max_positions.

    The last frequency is 1/max_positions itself only with `endpoint`.
    """
    steps = torch.arange(channels // 2, dtype=x.dtype, device=x.device)
    return waves(x, (1 / max_positions) ** (steps / (channels // 2 - (1 if endpoint else 0))))


class FourierEmbedding(nn.Module):
    """Embedding [N,channels] of numbers x [N] by fixed random frequencies (Tancik et al. 2020, Song et al. 2021)."""

    def __init__(self, channels: int, scale: float = 16):
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return waves(x, 2 * math.pi * self.freqs.to(x.dtype))


def attention(qkv: torch.Tensor, heads: int) -> torch.Tensor:
    """Self-attention over all positions: qkv [N, heads*c*3, *S] with channels in the order head, c, q/k/v."""
    n, channels, *size = qkv.shape
    parts = qkv.reshape(n, heads, channels // (3 * heads), 3, math.prod(size)).permute(3, 0, 1, 4, 2)
    q, k, v = parts.contiguous().unbind(0)  # flash kernels take nothing but contiguous channels
    out = functional.scaled_dot_product_attention(q, k, v)
    return out.transpose(2, 3).reshape(n, channels // 3, *size)


class SizeError(ValueError):
    """A size [*S] that a network cannot divide; larger: the nearest [*S] that it can and that holds all of it."""

    def __init__(self, message: str, size: Sequence[int], larger: Sequence[int]):
        super().__init__(message)
        self.size, self.larger = tuple(size), tuple(larger)


def size_error_of(error: BaseException | None) -> SizeError | None:
    """The SizeError that an error is or was raised from, None where there is none."""
    return error if error is None or isinstance(error, SizeError) else size_error_of(error.__cause__)


def check_divides(size: Sequence[int], factor: Sequence[int], network: str) -> None:
    """SizeError naming the nearest sizes that work when a network cannot divide a size."""
    if len(size) != len(factor):
        raise ValueError(f"{network}: got an image with {len(size)} spatial axes, spatial_dims is {len(factor)}")
    bad = [axis for axis, (s, f) in enumerate(zip(size, factor, strict=True)) if s % f or s < f]
    if bad:
        lower = tuple(max(s // f, 1) * f for s, f in zip(size, factor, strict=True))
        upper = tuple(-(-s // f) * f for s, f in zip(size, factor, strict=True))
        nearest = f"that do: {lower} and {upper}" if lower != upper else f"that does: {lower}"
        raise SizeError(f"{network}: size {tuple(size)} must divide by {tuple(factor)}; nearest {nearest}", size, upper)
