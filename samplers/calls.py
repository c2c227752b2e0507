"""Calls of one network with several conditions: as one of a batch as many times as large, or one after another."""

from collections.abc import Sequence
from math import prod

import torch

from edm3d.networks.conditioning import Condition
from edm3d.samplers.denoiser import Denoiser

MOST_ON_CPU = 2048  # voxels of all images of a batch up to which a CPU is faster with a larger one


class Calls:
    """D of the same images under several conditions; what it finds out about memory, it keeps for later calls.

    together None: as one call on a GPU, until that runs out of memory, and from then on one after another. On a CPU as
    one call of small batches: ADM networks were up to twice as fast below MOST_ON_CPU voxels (latents of 8^3, images of
    32^2), and up to a fifth slower above, with twice the memory. True, False: always, never. Both differ by rounding.
    """

    def __init__(self, together: bool | None = None):
        self.together = together

    def __call__(self, net: Denoiser, x: torch.Tensor, sigma: torch.Tensor | float, conditions: Sequence[Condition],
                 augment_labels: torch.Tensor | None = None) -> list[torch.Tensor]:
        """D [N,C,*S] under each condition, of x [N,C,*S] at sigma [N] or a number."""
        if len(conditions) > 1 and self.are_together(x):
            try:
                return as_one(net, x, sigma, conditions, augment_labels)
            except torch.OutOfMemoryError:
                self.together = False
            torch.cuda.empty_cache()
        return [net(x, sigma, condition, augment_labels) for condition in conditions]

    def are_together(self, x: torch.Tensor) -> bool:
        """Whether calls of images x [N,C,*S] are made as one."""
        if self.together is not None:
            return self.together
        return x.device.type != "cpu" or len(x) * prod(x.shape[2:]) <= MOST_ON_CPU


def as_one(net: Denoiser, x: torch.Tensor, sigma: torch.Tensor | float, conditions: Sequence[Condition],
           augment_labels: torch.Tensor | None = None) -> list[torch.Tensor]:
    """The same by one call; conditions and augmentation labels have a row for each image, or one for all."""
    count, images = len(conditions), len(x)
    told = Condition({name: torch.cat([rows_of(each[name], images) for each in conditions]) for name in conditions[0]})
    if isinstance(sigma, torch.Tensor) and sigma.numel() > 1:
        sigma = sigma.reshape(-1).repeat(count)
    if augment_labels is not None:
        augment_labels = torch.cat([rows_of(augment_labels, images)] * count)
    return list(net(torch.cat([x] * count), sigma, told, augment_labels).chunk(count))


def rows_of(table: torch.Tensor, images: int) -> torch.Tensor:
    """A table of a row for each image, or of one for all, with a row for each."""
    return table if len(table) == images else table.expand(images, *table.shape[1:])
