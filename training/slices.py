"""Slices of volumes, a share of each drawn by the volume's own generator, for networks that see two dimensions."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from edm3d.samplers.noise import Noise


class SliceDraw(NamedTuple):
    """Which slices to take: a share of those across each of some axes of the array, None for all axes."""

    share: float = 0.25
    axes: Sequence[int] | None = None

    def check(self, path: str) -> None:
        """ValueError for a share or axes that cannot be; path: what stands before their keys."""
        if not 0 < self.share <= 1:
            raise ValueError(f"{path}share={self.share}: wanted more than 0, and at most 1 for every slice")
        if self.axes is not None and (not self.axes or not set(self.axes) <= {0, 1, 2}):
            raise ValueError(f"{path}axes={list(self.axes)}: wanted some of 0, 1 and 2, or null for all")

    def shapes(self, size: Sequence[int]) -> list[tuple[int, ...]]:
        """The different sizes of slices of volumes of a size [3], in order; images are their own slice."""
        if len(size) != 3:
            return [tuple(size)]
        return sorted({tuple(n for i, n in enumerate(size) if i != axis) for axis in self.axes or range(3)})

    def draw(self, size: Sequence[int], noise: Noise) -> dict[int, torch.Tensor]:
        """Indices [N,n] of slices by axis, for volumes of a size [3]; {} for images, which are their own slice."""
        if len(size) != 3:
            return {}
        axes = range(3) if self.axes is None else self.axes
        order = {axis: noise.rand((size[axis],)).argsort(dim=1) for axis in axes}
        return {axis: order[axis][:, :max(1, round(self.share * size[axis]))] for axis in axes}


def take_slices(x: torch.Tensor, indices: dict[int, torch.Tensor]) -> list[torch.Tensor]:
    """Slices [N,n,C,*S] of volumes [N,C,*S], one tensor per axis; images come back as slices [N,1,C,*S]."""
    if not indices:
        return [x.unsqueeze(1)]
    rows = torch.arange(len(x), device=x.device)[:, None]
    return [x.movedim(2 + axis, 1)[rows, index.to(x.device)] for axis, index in indices.items()]


def per_image(values: torch.Tensor, images: int) -> torch.Tensor:
    """Means [N] over all that belongs to an image, of values [N*n,...] in the order of `images` images."""
    return values.reshape(images, -1).mean(1)
