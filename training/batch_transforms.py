"""From a raw batch to what diffusion sees, (x, Condition), on the device, with one generator per image."""

from collections.abc import Sequence

import torch

from networks.conditioning import Condition
from networks.latent_codec import whiten
from samplers.noise import ImageGenerators
from training.batch import Batch


class Identity:
    """Voxel space: the images themselves."""

    def __call__(self, batch: Batch, generators: ImageGenerators) -> tuple[torch.Tensor, Condition]:
        return batch.images, batch.condition


class DrawLatents:
    """Draw latents from their posterior, mean + std * eps, and whiten them per channel to std sigma_data.

    Batches hold mean and std side by side, images [N,2C,*s]; channel_mean and channel_std [C] come from latents.h5.
    """

    def __init__(self, channel_mean: Sequence[float], channel_std: Sequence[float], sigma_data: float = 0.5):
        self.channel_mean = torch.as_tensor(channel_mean, dtype=torch.float32)
        self.channel_std = torch.as_tensor(channel_std, dtype=torch.float32)
        self.sigma_data = sigma_data

    def __call__(self, batch: Batch, generators: ImageGenerators) -> tuple[torch.Tensor, Condition]:
        mean, std = batch.images.chunk(2, dim=1)
        eps = generators.for_purpose("posterior").randn(mean.shape[1:]).to(mean.device)
        channel_mean, channel_std = self.channel_mean.to(mean.device), self.channel_std.to(mean.device)
        return whiten(mean + std * eps, channel_mean, channel_std, self.sigma_data), batch.condition
