"""The KL autoencoder of a volume and its label map, for 1, 2 and 3 dimensions, with kernels and strides per axis."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import one_hot, silu

from networks.layers import CONVS, attention, check_divides, conv, group_norm, per_level, up


class Posterior(NamedTuple):
    """Diagonal Gaussian over latents: mean and logvar [N,z,*s]."""

    mean: torch.Tensor
    logvar: torch.Tensor

    @property
    def std(self) -> torch.Tensor:
        """Standard deviation [N,z,*s]."""
        return (self.logvar / 2).exp()

    def kl(self) -> torch.Tensor:
        """KL divergence to the unit Gaussian, summed per sample [N], in nats."""
        return 0.5 * (self.mean ** 2 + self.logvar.exp() - 1 - self.logvar).flatten(1).sum(1)


class Reconstruction(NamedTuple):
    """What the autoencoder makes of a batch: image [N,C,*S], logits [N,K,*S] or None without labels, posterior."""

    image: torch.Tensor
    logits: torch.Tensor | None
    posterior: Posterior


class ResBlock(nn.Module):
    """Two convolutions with a skip: [N,in_channels,*S] -> [N,out_channels,*S]."""

    def __init__(self, dims: int, in_channels: int, out_channels: int, kernel: Sequence[int]):
        super().__init__()
        self.norm0 = group_norm(in_channels)
        self.conv0 = conv(dims, in_channels, out_channels, kernel)
        self.norm1 = group_norm(out_channels)
        self.conv1 = conv(dims, out_channels, out_channels, kernel, init=0)
        self.skip = conv(dims, in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(silu(self.norm1(self.conv0(silu(self.norm0(x))))))
        return h + (x if self.skip is None else self.skip(x))


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions with a skip."""

    def __init__(self, dims: int, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = conv(dims, channels, channels * 3, 1)
        self.proj = conv(dims, channels, channels, 1, init=0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.proj(attention(self.qkv(self.norm(x)), heads=1))


class Upsample(nn.Module):
    """A convolution, then nearest up-sampling by a stride: the blocks after it smooth, at a fraction of the cost."""

    def __init__(self, dims: int, in_channels: int, out_channels: int, kernel: Sequence[int], stride: Sequence[int]):
        super().__init__()
        self.stride = stride
        self.conv = conv(dims, in_channels, out_channels, kernel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return up(self.conv(x), self.stride)


class AutoencoderKL(nn.Module):
    """Convolutional variational autoencoder with a Gaussian posterior (Kingma and Welling 2014; Rombach et al. 2022).

    channels gives the width of each level; strides one number, or one entry (number or per axis) for each of the
    transitions; kernel_size one number or one entry per level. num_classes > 0 adds the label map: one-hot in, one
    logit per class out. Encoder and decoder have their own number of residual blocks per level.
    """

    def __init__(self, in_channels: int, num_classes: int = 0, latent_channels: int = 4, spatial_dims: int = 3,
                 channels: Sequence[int] = (32, 64, 128), strides: int | Sequence = 2, kernel_size: int | Sequence = 3,
                 num_blocks: int = 2, num_blocks_decoder: int = 2, bottleneck_attention: bool = False):
        super().__init__()
        levels = len(channels)
        self.in_channels, self.num_classes, self.latent_channels = in_channels, num_classes, latent_channels
        self.spatial_dims = spatial_dims
        self.strides = per_level(strides, levels - 1, spatial_dims, "strides")
        kernels = per_level(kernel_size, levels, spatial_dims, "kernel_size")
        data = in_channels + num_classes

        encoder: list[nn.Module] = [conv(spatial_dims, data, channels[0], kernels[0])]
        for i in range(levels):
            encoder += [ResBlock(spatial_dims, channels[i], channels[i], kernels[i]) for _ in range(num_blocks)]
            if i < levels - 1:
                padding = tuple(k // 2 for k in kernels[i])
                encoder.append(CONVS[spatial_dims](channels[i], channels[i + 1], kernels[i], self.strides[i], padding))
        middle = [AttentionBlock(spatial_dims, channels[-1])] if bottleneck_attention else []
        self.encoder = nn.Sequential(*encoder, *middle, group_norm(channels[-1]), nn.SiLU(),
                                     conv(spatial_dims, channels[-1], 2 * latent_channels, 1))

        middle = [AttentionBlock(spatial_dims, channels[-1])] if bottleneck_attention else []
        decoder: list[nn.Module] = [conv(spatial_dims, latent_channels, channels[-1], kernels[-1]), *middle]
        for i in reversed(range(levels)):
            decoder += [ResBlock(spatial_dims, channels[i], channels[i], kernels[i]) for _ in range(num_blocks_decoder)]
            if i:
                decoder.append(Upsample(spatial_dims, channels[i], channels[i - 1], kernels[i - 1],
                                        self.strides[i - 1]))
        self.decoder = nn.Sequential(*decoder, group_norm(channels[0]), nn.SiLU(),
                                     conv(spatial_dims, channels[0], data, kernels[0]))

    @property
    def factor(self) -> tuple[int, ...]:
        """How many voxels one latent position covers, per axis."""
        return tuple(prod(s[axis] for s in self.strides) for axis in range(self.spatial_dims))

    def latent_shape(self, size: Sequence[int]) -> tuple[int, ...]:
        """Shape [z,*s] of the latents of volumes of a size [*S]; ValueError when the size does not divide."""
        check_divides(size, self.factor, "AutoencoderKL")
        return (self.latent_channels, *(s // f for s, f in zip(size, self.factor, strict=True)))

    def encode(self, image: torch.Tensor, label: torch.Tensor | None = None) -> Posterior:
        """Posterior of images [N,C,*S] in [-1,1] with label maps [N,*S] (integers; needed when num_classes > 0)."""
        self.latent_shape(image.shape[2:])
        if image.shape[1] != self.in_channels:
            raise ValueError(f"AutoencoderKL: got {image.shape[1]} image channels, in_channels is {self.in_channels}")
        if (label is not None) != bool(self.num_classes):
            raise ValueError(f"AutoencoderKL: num_classes is {self.num_classes}, "
                             f"the data has {'no ' if label is None else ''}labels")
        if label is not None:
            image = torch.cat([image, one_hot(label.long(), self.num_classes).movedim(-1, 1).to(image.dtype)], dim=1)
        mean, logvar = self.encoder(image).float().chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30, 20))

    def decode(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Image [N,C,*S] and label logits [N,K,*S] (None without labels) of latents [N,z,*s]."""
        out = self.decoder(z).float()
        return out[:, :self.in_channels], out[:, self.in_channels:] if self.num_classes else None

    def forward(self, image: torch.Tensor, label: torch.Tensor | None = None, eps: torch.Tensor | None = None
                ) -> Reconstruction:
        """Encode, draw mean + std * eps (the mean itself when eps is None), decode."""
        posterior = self.encode(image, label)
        z = posterior.mean if eps is None else posterior.mean + posterior.std * eps
        return Reconstruction(*self.decode(z), posterior)
