"""Autoencoders of a volume and its label map, for 1, 2 and 3 dimensions, with kernels and strides per axis."""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import one_hot, pad, silu

from edm3d.networks.layers import CONVS, attention, check_divides, conv, group_norm, per_level, up
from edm3d.networks.posteriors import AnyPosterior, Draws, Posterior
from edm3d.utils.checks import check_choice, check_count

FINE_NORM = partial(group_norm, eps=1e-6, min_per_group=1)
NORMS = {"compact": group_norm, "ldm": FINE_NORM, "monai": FINE_NORM}
BACKGROUND = -1  # of images
LAST_INIT = {"compact": 0, "ldm": None, "monai": None}  # of the last convolution beside a skip, see layers.conv


class Codes(NamedTuple):
    """What quantisation did: indices [N,*s] int64 of the codes, vectors [N,D,*s] that they stand for.

    commitment and codebook [N]: mean squared distances from code to vector, with gradients to the vectors and to the
    codes; codebook is None where the codes learn without gradients.
    """

    indices: torch.Tensor
    vectors: torch.Tensor
    commitment: torch.Tensor
    codebook: torch.Tensor | None = None


class Reconstruction(NamedTuple):
    """What an autoencoder makes of a batch: image [N,C,*S], logits [N,K,*S] or None without labels.

    posterior: of the latents, z [N,z,*s]: the latents that were decoded, codes: of a quantised first stage.
    """

    image: torch.Tensor
    logits: torch.Tensor | None
    posterior: AnyPosterior
    z: torch.Tensor | None = None
    codes: Codes | None = None


class ResBlock(nn.Module):
    """Two convolutions with a skip: [N,in_channels,*S] -> [N,out_channels,*S].

    repeat: strides by which nearest up-sampling comes first, if any. A norm sees the same before and after that.
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, kernel: Sequence[int], layout: str = "compact",
                 repeat: Sequence[int] = ()):
        super().__init__()
        self.repeat = tuple(repeat)
        self.norm0 = NORMS[layout](in_channels)
        self.conv0 = conv(dims, in_channels, out_channels, kernel, repeat=repeat)
        self.norm1 = NORMS[layout](out_channels)
        self.conv1 = conv(dims, out_channels, out_channels, kernel, init=LAST_INIT[layout])
        self.skip = conv(dims, in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(silu(self.norm1(self.conv0(silu(self.norm0(x))))))
        x = x if self.skip is None else self.skip(x)
        return h + (up(x, self.repeat) if self.repeat else x)


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions with a skip."""

    def __init__(self, dims: int, channels: int, layout: str = "compact"):
        super().__init__()
        self.norm = NORMS[layout](channels)
        self.qkv = conv(dims, channels, channels * 3, 1)
        self.proj = conv(dims, channels, channels, 1, init=LAST_INIT[layout])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.proj(attention(self.qkv(self.norm(x)), heads=1))


class DownsampleConv(nn.Module):
    """A convolution by a stride, of what has zeros to keep the size, an odd one on the far side.

    pad: that one, for each axis; the others are the convolution's.
    """

    def __init__(self, dims: int, channels: int, kernel: Sequence[int], stride: Sequence[int]):
        super().__init__()
        missing = [max(k - s, 0) for k, s in zip(kernel, stride, strict=True)]
        self.pad = tuple(m % 2 for m in missing)
        self.conv = CONVS[dims](channels, channels, kernel, stride, padding=tuple(m // 2 for m in missing))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(pad(x, [side for far in reversed(self.pad) for side in (0, far)]))


class Upsample(nn.Module):
    """A convolution between two levels, of what nearest up-sampling by `repeat` makes of x.

    Without, the block behind it does that: the convolution then costs a fraction, and that block smooths.
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, kernel: Sequence[int],
                 repeat: Sequence[int] = ()):
        super().__init__()
        self.repeat = tuple(repeat)
        self.conv = conv(dims, in_channels, out_channels, kernel, repeat=repeat)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class BareNorm(nn.Module):
    """GroupNorm that no activation follows."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = FINE_NORM(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


class Trunk(NamedTuple):
    """What encoder and decoder are built of: numbers for each level, kernels and strides for each axis too."""

    dims: int
    layout: str
    channels: Sequence[int]
    kernels: list[tuple[int, ...]]
    strides: list[tuple[int, ...]]
    attention_levels: Sequence[int]
    bottleneck_attention: bool

    def encoder(self, in_channels: int, latent_channels: int, moments: int, num_blocks: int) -> nn.Sequential:
        """[N,in_channels,*S] -> [N,moments*latent_channels,*s]."""
        dims, channels, kernels, compact = self.dims, self.channels, self.kernels, self.layout == "compact"
        layers: list[nn.Module] = [conv(dims, in_channels, channels[0], kernels[0])]
        for i, wide in enumerate(channels):
            layers += self.level(i, wide if compact else channels[max(i - 1, 0)], num_blocks)
            if i < len(channels) - 1:
                layers.append(self.down(i))
        layers += [*self.middle(), *self.last_norm(channels[-1])]
        out_channels = moments * latent_channels
        if compact:
            return nn.Sequential(*layers, conv(dims, channels[-1], out_channels, 1))
        width = out_channels if self.layout == "ldm" else latent_channels
        return nn.Sequential(*layers, conv(dims, channels[-1], width, kernels[-1]), conv(dims, width, out_channels, 1))

    def decoder(self, in_channels: int, out_channels: int, num_blocks: int) -> nn.Sequential:
        """[N,in_channels,*s] -> [N,out_channels,*S]."""
        dims, channels, kernels, compact = self.dims, self.channels, self.kernels, self.layout == "compact"
        layers: list[nn.Module] = [] if compact else [conv(dims, in_channels, in_channels, 1)]
        layers += [conv(dims, in_channels, channels[-1], kernels[-1]), *self.middle()]
        repeat: Sequence[int] = ()
        for i in reversed(range(len(channels))):
            layers += self.level(i, channels[i] if compact else channels[min(i + 1, len(channels) - 1)], num_blocks,
                                 repeat)
            if i and compact:
                layers.append(Upsample(dims, channels[i], channels[i - 1], kernels[i - 1]))
                repeat = self.strides[i - 1]
            elif i:
                layers.append(Upsample(dims, channels[i], channels[i], kernels[i - 1], self.strides[i - 1]))
        return nn.Sequential(*layers, *self.last_norm(channels[0]), conv(dims, channels[0], out_channels, kernels[0]))

    def level(self, i: int, in_channels: int, num_blocks: int, repeat: Sequence[int] = ()) -> list[nn.Module]:
        """The residual blocks of a level, each with attention behind it where the level has it; see ResBlock."""
        layers: list[nn.Module] = []
        for block in range(num_blocks):
            layers.append(self.block(self.channels[i], i) if block else self.block(in_channels, i, repeat))
            if i in self.attention_levels:
                layers.append(AttentionBlock(self.dims, self.channels[i], self.layout))
        return layers

    def block(self, in_channels: int, i: int, repeat: Sequence[int] = ()) -> ResBlock:
        """A residual block of a level."""
        return ResBlock(self.dims, in_channels, self.channels[i], self.kernels[i], self.layout, repeat)

    def down(self, i: int) -> nn.Module:
        """From a level to the next."""
        wide, kernel, stride = self.channels[i], self.kernels[i], self.strides[i]
        if self.layout != "compact":
            return DownsampleConv(self.dims, wide, kernel, stride)
        return CONVS[self.dims](wide, self.channels[i + 1], kernel, stride, tuple(k // 2 for k in kernel))

    def last_norm(self, channels: int) -> list[nn.Module]:
        """What stands before the last convolutions."""
        return [BareNorm(channels)] if self.layout == "monai" else [NORMS[self.layout](channels), nn.SiLU()]

    def middle(self) -> list[nn.Module]:
        """The attention at the bottleneck, between two residual blocks unless the layout is compact."""
        if not self.bottleneck_attention:
            return []
        last = len(self.channels) - 1
        sides = 0 if self.layout == "compact" else 1
        return [*[self.block(self.channels[last], last) for _ in range(sides)],
                AttentionBlock(self.dims, self.channels[last], self.layout),
                *[self.block(self.channels[last], last) for _ in range(sides)]]


class Autoencoder(nn.Module):
    """The convolutional encoder and decoder that all first stages share; what a latent is, they say themselves.

    channels gives the width of each level; strides one number, or one entry (number or per axis) for each of the
    transitions; kernel_size one number or one entry per level. num_classes > 0 adds the label map: one-hot in, or its
    numbers as one channel (label_input=class_id), one logit per class out. Encoder and decoder have their own number
    of residual blocks per level. attention_levels, counted from 0, the full size: those with attention behind each
    block. layout "ldm" is the order of blocks of Rombach et al. (2022): widths change in a level's first block,
    up-sampling repeats before it convolves, pointwise convolutions next to the latents; "monai" is MONAI's version of
    that, with no activations before the last convolutions; "compact" costs less. masked: images come with semantic maps
    [N,*S], and where these are 0 is background: latents are 0 in cells [*s] that hold nothing else, images BACKGROUND
    in its voxels, whatever was encoded or drawn. Without a map nothing is masked.
    """

    posterior: str  # key of networks.posteriors.POSTERIORS
    moments: int  # numbers that the encoder gives for each element of the latents

    def __init__(self, in_channels: int, num_classes: int = 0, latent_channels: int = 4, spatial_dims: int = 3,
                 channels: Sequence[int] = (32, 64, 128), strides: int | Sequence = 2, kernel_size: int | Sequence = 3,
                 num_blocks: int = 2, num_blocks_decoder: int = 2, bottleneck_attention: bool = False,
                 attention_levels: Sequence[int] = (), layout: str = "compact", label_input: str = "onehot",
                 masked: bool = False):
        super().__init__()
        check_choice("layout", layout, NORMS)
        check_choice("label_input", label_input, ("onehot", "class_id"))
        check_count(1, {"channels": channels, "num_blocks": num_blocks, "num_blocks_decoder": num_blocks_decoder,
                        "latent_channels": latent_channels, "in_channels": in_channels})
        levels = len(channels)
        if any(level not in range(levels) for level in attention_levels):
            raise ValueError(f"attention_levels={list(attention_levels)}: wanted levels from 0 to {levels - 1}, as "
                             f"there are {levels} channels")
        self.in_channels, self.num_classes, self.latent_channels = in_channels, num_classes, latent_channels
        self.spatial_dims, self.label_input, self.masked = spatial_dims, label_input, masked
        self.strides = per_level(strides, levels - 1, spatial_dims, "strides")
        trunk = Trunk(spatial_dims, layout, channels, per_level(kernel_size, levels, spatial_dims, "kernel_size"),
                      self.strides, attention_levels, bottleneck_attention)
        label_channels = num_classes if label_input == "onehot" else min(num_classes, 1)
        self.encoder = trunk.encoder(in_channels + label_channels, latent_channels, self.moments, num_blocks)
        self.decoder = trunk.decoder(latent_channels, in_channels + num_classes, num_blocks_decoder)

    @property
    def factor(self) -> tuple[int, ...]:
        """How many voxels one latent position covers, per axis."""
        return tuple(prod(s[axis] for s in self.strides) for axis in range(self.spatial_dims))

    def latent_shape(self, size: Sequence[int]) -> tuple[int, ...]:
        """Shape [z,*s] of the latents of volumes of a size [*S]; ValueError when the size does not divide."""
        check_divides(size, self.factor, type(self).__name__)
        return (self.latent_channels, *(s // f for s, f in zip(size, self.factor, strict=True)))

    def joined(self, image: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """What the encoder takes, of images [N,C,*S] and label maps [N,*S]; ValueError for those it cannot take."""
        name = type(self).__name__
        self.latent_shape(image.shape[2:])
        if image.shape[1] != self.in_channels:
            raise ValueError(f"{name}: got {image.shape[1]} image channels, in_channels is {self.in_channels}")
        if (label is not None) != bool(self.num_classes):
            raise ValueError(f"{name}: num_classes is {self.num_classes}, "
                             f"the data has {'no ' if label is None else ''}labels")
        if label is None:
            return image
        if self.label_input == "onehot":
            label = one_hot(label.long(), self.num_classes).movedim(-1, 1)
        else:
            label = label.unsqueeze(1)
        return torch.cat([image, label.to(image.dtype)], dim=1)

    def inside(self, semantic: torch.Tensor | None) -> torch.Tensor | None:
        """Voxels [N,1,*S] of semantic maps [N,*S] that are not background; None where nothing is masked."""
        return (semantic > 0).unsqueeze(1) if self.masked and semantic is not None else None

    def cells(self, inside: torch.Tensor | None) -> torch.Tensor | None:
        """Cells [N,1,*s] with any of the voxels [N,1,*S] in them, None for None."""
        if inside is None:
            return None
        for axis, f in enumerate(self.factor, start=2):
            inside = inside.unflatten(axis, (-1, f)).any(axis + 1)
        return inside

    def read(self, h: torch.Tensor, image: torch.Tensor, cells: torch.Tensor | None = None) -> AnyPosterior:
        """Posterior of images [N,C,*S] by what the encoder gave [N,moments*z,*s], 0 but for the cells, if given."""
        raise NotImplementedError

    def encode(self, image: torch.Tensor, label: torch.Tensor | None = None, semantic: torch.Tensor | None = None
               ) -> AnyPosterior:
        """Posterior of images [N,C,*S] in [-1,1] with label maps [N,*S] (integers; needed when num_classes > 0).

        semantic: maps [N,*S] that say of a masked autoencoder's images where there is anything.
        """
        return self.read(self.encoder(self.joined(image, label)), image, self.cells(self.inside(semantic)))

    def prepare(self, z: torch.Tensor, cells: torch.Tensor | None = None) -> torch.Tensor:
        """What the decoder takes, of latents [N,z,*s] that count in the cells, if given."""
        return within(z, cells)

    def split(self, out: torch.Tensor, z: torch.Tensor | None = None, inside: torch.Tensor | None = None
              ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Image [N,C,*S] and logits [N,K,*S] (None without labels) in what the decoder gave of latents z [N,z,*s].

        The image is background but for the voxels [N,1,*S] inside, if given.
        """
        out = full(out)
        return (within(out[:, :self.in_channels], inside, BACKGROUND),
                out[:, self.in_channels:] if self.num_classes else None)

    def decode(self, z: torch.Tensor, semantic: torch.Tensor | None = None
               ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Image [N,C,*S] and label logits [N,K,*S] (None without labels) of latents [N,z,*s].

        semantic: maps [N,*S] by which a masked autoencoder masks them.
        """
        inside = self.inside(semantic)
        return self.split(self.decoder(self.prepare(z, self.cells(inside))), z, inside)

    def forward(self, image: torch.Tensor, label: torch.Tensor | None = None, noise: Draws | None = None,
                semantic: torch.Tensor | None = None) -> Reconstruction:
        """Encode, draw latents (the mean without noise), decode."""
        posterior = self.encode(image, label, semantic)
        z = posterior.sample(noise)
        return Reconstruction(*self.decode(z, semantic), posterior, z)


class AutoencoderKL(Autoencoder):
    """Variational autoencoder with a Gaussian posterior (Kingma and Welling 2014; Rombach et al. 2022)."""

    posterior, moments = "gaussian", 2

    def read(self, h: torch.Tensor, image: torch.Tensor, cells: torch.Tensor | None = None) -> Posterior:
        """Mean and log-variance, halves of what the encoder gave."""
        mean, logvar = full(h).chunk(2, dim=1)
        return Posterior(within(mean, cells), logvar.clamp(-30, 20), cells)


def within(x: torch.Tensor, inside: torch.Tensor | None, outside: float = 0) -> torch.Tensor:
    """x where inside (bool, broadcasts) is true, `outside` elsewhere; x itself for None."""
    return x if inside is None else torch.where(inside, x, outside)


def full(x: torch.Tensor) -> torch.Tensor:
    """x in float32, unless it is finer."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
