"""A scale of images by another image and a label map on the same grid, as for noise that grows with the signal."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from edm3d.utils.tensors import tensor_on

LEAST_STD = 0.1  # share of the overall standard deviation below which no group's own one is taken


class LocalScaling(NamedTuple):
    """x = (image - mean) / std * sigma_data, with mean and std by label class and by the other image at a voxel.

    For each class (one where there are no label maps) and channel: rising values of the other image, with mean and
    gain = sigma_data / std at each, straight lines between them, and the first and the last beyond. One value is one
    mean and one gain for all voxels of the class.
    """

    values: list[list[list[float]]]
    mean: list[list[list[float]]]
    gain: list[list[list[float]]]

    @classmethod
    def measured(cls, images: torch.Tensor, others: torch.Tensor, labels: torch.Tensor | None, classes: int, bins: int,
                 sigma_data: float) -> "LocalScaling":
        """By voxels of images [C,V], other images [C,V] and labels [V]: groups of a class and about as many voxels.

        `bins` of them for all voxels together; for a class as its share of these, but 4 at least where there are more
        than one. A class that there are no voxels of is scaled as all. ValueError for images that are the same
        everywhere.
        """
        tables: list[list[tuple[list[float], ...]]] = []
        everywhere = torch.ones(images.shape[1], dtype=torch.bool)
        for k in range(max(classes, 1)):
            chosen = labels == k if labels is not None and bool((labels == k).any()) else everywhere
            count = max(round(bins * float(chosen.double().mean())), 4 if bins > 1 else 1)
            tables.append([table(image.double(), other.double(), chosen, count, sigma_data)
                           for image, other in zip(images, others, strict=True)])
        return cls(*([[channel[part] for channel in of_class] for of_class in tables] for part in range(3)))

    def scaled(self, image: torch.Tensor, other: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """x [N,C,*S] of images [N,C,*S], by the other [N,C,*S] and labels [N,*S]."""
        mean, gain = self.at(other, labels)
        return (image - mean) * gain

    def restored(self, x: torch.Tensor, other: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Images [N,C,*S] of x: the inverse of `scaled`."""
        mean, gain = self.at(other, labels)
        return x / gain + mean

    def at(self, other: torch.Tensor, labels: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and gain [N,C,*S] at the voxels of the other image [N,C,*S]; ValueError where labels are missing."""
        if labels is None and len(self.values) > 1:
            raise ValueError(f"it is scaled by {len(self.values)} label classes, and there is no label map")
        mean, gain = torch.empty_like(other), torch.empty_like(other)
        for k, tables in enumerate(zip(self.values, self.mean, self.gain, strict=True)):
            for c, (values, means, gains) in enumerate(zip(*tables, strict=True)):
                for onto, found in zip((mean, gain), interpolated(other[:, c], values, means, gains), strict=True):
                    onto[:, c] = found if k == 0 else torch.where(labels == k, found, onto[:, c])
        return mean, gain


def table(image: torch.Tensor, other: torch.Tensor, chosen: torch.Tensor, bins: int, sigma_data: float
          ) -> tuple[list[float], list[float], list[float]]:
    """Values, means and gains of the chosen voxels [V]; ValueError for an image that is the same in all voxels."""
    least = LEAST_STD * float(image.std())
    if not least > 0:
        raise ValueError("it is the same in all voxels")
    image, other = image[chosen], other[chosen]
    parts = grouped(other, bins)
    spread = [max(float(image[part].std(correction=0)), least) for part in parts]
    return ([float(other[part].mean()) for part in parts], [float(image[part].mean()) for part in parts],
            [sigma_data / std for std in spread])


def grouped(values: torch.Tensor, bins: int) -> list[torch.Tensor]:
    """Indices of values [V] in rising groups of about as many, equal values in one group."""
    order = values.argsort(stable=True)
    ranked = values[order]
    starts = {int(torch.searchsorted(ranked, ranked[int(k * len(values) / bins)])) for k in range(bins)}
    return [order[a:b] for a, b in pairwise([*sorted(starts), len(values)])]


def interpolated(x: torch.Tensor, knots: Sequence[float], *tables: Sequence[float]) -> list[torch.Tensor]:
    """Straight lines through (knots, table) at x for each table, knots rising; beyond the ends its first and last."""
    at, *values = (tensor_on(x.device, numbers, x.dtype) for numbers in (knots, *tables))
    if len(at) == 1:
        return [each.expand_as(x) for each in values]
    right = torch.searchsorted(at, x.contiguous()).clamp(1, len(at) - 1)
    width = (at[right] - at[right - 1]).clamp(min=torch.finfo(x.dtype).tiny)  # knots may be one number in this dtype
    share = ((x - at[right - 1]) / width).clamp(0, 1)
    return [torch.lerp(each[right - 1], each[right], share) for each in values]
