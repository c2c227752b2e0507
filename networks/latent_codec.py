"""Between volumes and the scaled latents that diffusion sees."""

from collections.abc import Sequence
from copy import copy
from math import sqrt

import torch
from torch import nn

from networks.tiles import by_parts
from utils.checks import check_choice

SCALINGS = ("standardize", "minmax", "scale_factor")


def shift_and_gain(channel_mean: Sequence[float], channel_std: Sequence[float], limits: Sequence[float] | None = None,
                   scaling: str = "standardize", sigma_data: float = 0.5) -> tuple[list[float], list[float]]:
    """Shift and gain per channel of x = (z - shift) * gain, from the mean and std of latents per channel.

    standardize: to mean 0 and standard deviation sigma_data per channel. minmax: limits, the lowest and highest of mean
    -/+ 3 std over the training items, to -1 and 1 (DIFF-3). scale_factor: all divided by the one standard deviation
    that the latents of all channels have together (Rombach et al. 2022). ValueError for latents that do not vary.
    """
    check_choice("scaling", scaling, SCALINGS)
    channels = len(channel_mean)
    flat = [i for i, std in enumerate(channel_std) if not std > 0]
    if (scaling == "standardize" and flat) or len(flat) == channels:
        raise ValueError(f"scaling={scaling}: latents of channel {', '.join(map(str, flat))} are the same everywhere, "
                         f"channel_std={list(channel_std)}; their first stage has collapsed, train it again")
    if scaling == "standardize":
        return list(channel_mean), [sigma_data / std for std in channel_std]
    if scaling == "scale_factor":
        mean = sum(channel_mean) / channels
        variance = sum(std ** 2 + (m - mean) ** 2 for m, std in zip(channel_mean, channel_std, strict=True)) / channels
        return [0.0] * channels, [1 / sqrt(variance)] * channels
    if limits is None or not limits[0] < limits[1]:
        raise ValueError(f"scaling=minmax: the latents come with limits={limits}, wanted a lowest and a highest value; "
                         "encode them again, or choose scaling=standardize")
    lo, hi = limits
    return [(lo + hi) / 2] * channels, [2 / (hi - lo)] * channels


def whiten(z: torch.Tensor, shift: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """Latents [N,C,*s] scaled per channel: (z - shift) * gain, both [C]."""
    shape = (-1, *[1] * (z.ndim - 2))
    return (z - shift.reshape(shape)) * gain.reshape(shape)


def unwhiten(x: torch.Tensor, shift: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """The inverse of `whiten`."""
    shape = (-1, *[1] * (x.ndim - 2))
    return x / gain.reshape(shape) + shift.reshape(shape)


class LatentCodec(nn.Module):
    """A frozen first stage with the figures of its latents (see shift_and_gain): volumes <-> scaled latents."""

    def __init__(self, autoencoder: nn.Module, channel_mean: Sequence[float], channel_std: Sequence[float],
                 limits: Sequence[float] | None = None, scaling: str = "standardize", sigma_data: float = 0.5):
        super().__init__()
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        shift, gain = shift_and_gain(channel_mean, channel_std, limits, scaling, sigma_data)
        for name, values in (("channel_mean", channel_mean), ("channel_std", channel_std), ("shift", shift),
                             ("gain", gain)):
            self.register_buffer(name, torch.as_tensor(values, dtype=torch.float32))

    @torch.no_grad()
    def encode(self, image: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """Scaled posterior means [N,z,*s] of images in [-1,1] and label maps."""
        return whiten(self.autoencoder.encode(image, label).mean, self.shift, self.gain)

    @torch.no_grad()
    def decode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images [N,C,*S] in [-1,1] (not clipped) and label maps [N,*S] uint8 of scaled latents."""
        return self.decode_latents(unwhiten(x.float(), self.shift, self.gain))

    @torch.no_grad()
    def decode_latents(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The same of latents as the first stage gives them."""
        image, logits = self.autoencoder.decode(z)
        return image, None if logits is None else logits.argmax(1).to(torch.uint8)

    def in_parts(self, tile: Sequence[int], overlap: float, mode: str) -> "LatentCodec":
        """The same in the memory of a part (networks.tiles.by_parts)."""
        codec = copy(self)
        codec._modules = {"autoencoder": by_parts(self.autoencoder, tile, overlap, mode)}
        return codec

    def noise(self, eps: torch.Tensor) -> torch.Tensor:
        """Unit normal eps [N,z,*s] with the mean and standard deviation per channel of scaled latents."""
        z = unwhiten(eps, self.channel_mean, 1 / self.channel_std)
        return whiten(z, self.shift, self.gain)
