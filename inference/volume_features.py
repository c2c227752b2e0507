"""Features of volumes by a network that has learned nothing, batch by batch."""

from collections.abc import Iterable

import numpy as np
import torch

from edm3d.formats.intensity import Intensity
from edm3d.networks.random_features import RandomFeatures


class VolumeFeatures:
    """Features [N,d] of images in stored units, of so many channels and axes; torch's generator is left as it was.

    Distances of them compare within one table alone.
    """

    def __init__(self, channels: int, spatial_dims: int, intensity: Intensity, device: torch.device):
        with torch.random.fork_rng():
            self.net = RandomFeatures(channels, spatial_dims).to(device).eval().requires_grad_(False)
        self.intensity, self.device = intensity, device

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Of images [N,C,*S]."""
        seen = torch.from_numpy(np.ascontiguousarray(self.intensity.to_network(images), dtype=np.float32))
        return self.net(seen.to(self.device)).cpu().numpy()

    def of(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """Of images [C,*S], one at a time."""
        return np.concatenate([self(image[None]) for image in images])
