"""Random curves of intensity: tissues change their brightness, and their order, while shapes stay."""

import torch

from edm3d.inference.batch import Batch
from edm3d.samplers.noise import ImageGenerators
from edm3d.utils.checks import check_count, check_least


class ToneCurves:
    """With probability p an image goes through a curve of its own, linear between `levels` + 1 even heights.

    Heights are shares of the way from -1, which stays, to 1; the other heights go anywhere between 1 / levels and 1,
    each by itself, so that brighter may become darker. Of phantoms whose activities are the whole numbers up to
    `levels`, and whose largest is 1, each activity is thus drawn anew. Labels and conditions stay. ValueError for
    numbers out of range, and for images that come with condition images, which would no longer fit them.
    """

    label_dim = 0  # the network is not told

    def __init__(self, spatial_dims: int, p: float = 1, levels: int = 8):
        check_count(1, {"levels": levels})
        check_least(0, {"p": p})
        if p > 1:
            raise ValueError(f"p={p}: wanted a probability, 0 .. 1")
        self.p, self.levels = p, levels

    @torch.no_grad()
    def __call__(self, batch: Batch, generators: ImageGenerators) -> tuple[Batch, torch.Tensor]:
        """The batch with its images changed, and labels of width 0."""
        images = batch.images
        if batch.condition.images is not None:
            raise ValueError("augment=activities: images go through curves that their condition images would not, as a "
                             "low dose beside a high one; choose augment=mild")
        drawn = generators.for_purpose("tone_curves").rand((self.levels + 1,), torch.float64).to(images)
        lowest = 1 / self.levels
        nodes = lowest + (1 - lowest) * drawn[:, 1:]
        nodes = torch.cat([torch.zeros_like(nodes[:, :1]), nodes], dim=1)
        changed = 2 * curve((images + 1) / 2, nodes) - 1
        chosen = (drawn[:, 0] < self.p).view(-1, *[1] * (images.ndim - 1))
        return batch._replace(images=torch.where(chosen, changed, images)), images.new_zeros(len(images), 0)


def curve(heights: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
    """Heights [N,...] in 0 .. 1 through curves linear between the values [N,K+1] at 0, 1/K, .. 1."""
    last = nodes.shape[1] - 1
    at = heights.flatten(1).clamp(0, 1) * last
    below = at.floor().clamp_max(last - 1)
    low, high = (nodes.gather(1, below.long() + k) for k in (0, 1))
    return torch.lerp(low, high, at - below).reshape(heights.shape)
