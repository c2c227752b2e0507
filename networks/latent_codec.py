"""Between volumes and the whitened latents that diffusion sees."""

from collections.abc import Sequence

import torch
from torch import nn


def whiten(z: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, sigma_data: float) -> torch.Tensor:
    """Latents [N,C,*s] scaled per channel (mean, std [C]) to mean 0 and standard deviation sigma_data."""
    shape = (-1, *[1] * (z.ndim - 2))
    return (z - mean.reshape(shape)) * (sigma_data / std.reshape(shape))


def unwhiten(x: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, sigma_data: float) -> torch.Tensor:
    """The inverse of `whiten`."""
    shape = (-1, *[1] * (x.ndim - 2))
    return x * (std.reshape(shape) / sigma_data) + mean.reshape(shape)


class LatentCodec(nn.Module):
    """A frozen first stage with the channel figures of its latents: volumes <-> whitened latents."""

    def __init__(self, autoencoder: nn.Module, channel_mean: Sequence[float], channel_std: Sequence[float],
                 sigma_data: float = 0.5):
        super().__init__()
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.sigma_data = sigma_data
        self.register_buffer("channel_mean", torch.as_tensor(channel_mean, dtype=torch.float32))
        self.register_buffer("channel_std", torch.as_tensor(channel_std, dtype=torch.float32))

    @torch.no_grad()
    def encode(self, image: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """Whitened posterior means [N,z,*s] of images in [-1,1] and label maps."""
        mean = self.autoencoder.encode(image, label).mean
        return whiten(mean, self.channel_mean, self.channel_std, self.sigma_data)

    @torch.no_grad()
    def decode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images [N,C,*S] in [-1,1] (not clipped) and label maps [N,*S] uint8 of whitened latents."""
        z = unwhiten(x.float(), self.channel_mean, self.channel_std, self.sigma_data)
        image, logits = self.autoencoder.decode(z)
        return image, None if logits is None else logits.argmax(1).to(torch.uint8)
