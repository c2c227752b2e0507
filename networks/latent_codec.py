"""Between the latents of a first stage and the scaled ones that diffusion sees."""

from collections.abc import Sequence
from math import sqrt

import torch

from edm3d.utils.checks import check_choice

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
