"""An image on the axes that a network was trained on, and its label map back on the image's own grid."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np
import psutil

from edm3d.formats import geometry
from edm3d.formats.nifti import spacing_of
from edm3d.reporting.slices import known_affine
from edm3d.utils.files import amount


class Trained(NamedTuple):
    """How the images that a network was trained on lie: axes and voxel size [3] in mm, '' and None where nothing is
    known.
    """

    codes: str
    spacing: np.ndarray | None

    @classmethod
    def of(cls, affine: Sequence[Sequence[float]]) -> "Trained":
        """By the affine [4,4] of one of them; the identity says nothing."""
        known = known_affine(affine)
        return cls("", None) if known is None else cls(geometry.axis_codes(known), spacing_of(known))


class Difference(NamedTuple):
    """In what an image lies otherwise than those of training; all empty where it lies as they do, or nothing is known.

    turned: the axes of the image; plane: likewise, of a 2D image that lies across those of training, and stays as it
    is; spacing: voxel size in mm.
    """

    turned: str = ""
    plane: str = ""
    spacing: tuple[float, ...] = ()
    unknown: bool = False


class Placed:
    """An image [C,*S] of an affine (None: not known), brought to the axes of training.

    resample: to its voxel size as well, where both are known. image: as the network is to see it.
    """

    def __init__(self, image: np.ndarray, affine: np.ndarray | None, trained: Trained, resample: bool = False):
        self.dims, self.shape = image.ndim - 1, image.shape[1:]
        self.affine, self.image = known_affine(affine), image
        self._turned = self._grid = None  # (shape [3], affine) of the image on the axes of training, and resampled
        self.difference = difference(self.shape, self.affine, trained)
        if self.affine is None or not trained.codes or self.difference.plane:
            return
        whole = image[..., None] if self.dims == 2 else image
        whole, turned = geometry.reorient(whole, self.affine, trained.codes)
        self._turned = whole.shape[1:], turned
        if resample and self.difference.spacing:
            wanted = np.array([*trained.spacing[:self.dims], *spacing_of(turned)[self.dims:]])
            self._grid = geometry.spaced_grid(whole.shape[1:], turned, wanted)
            check_memory(len(whole) * prod(self._grid[0]), self._grid[0])
            whole = geometry.resample(whole, turned, *self._grid, order=3, antialias=True)
        self.image = np.ascontiguousarray(whole[..., 0] if self.dims == 2 else whole)

    def back(self, label: np.ndarray) -> np.ndarray:
        """A label map [*s] of `image` voxel by voxel on the image as it was, [*S]."""
        if self._turned is None:
            return label
        whole = label.reshape(1, *label.shape, *[1] * (3 - self.dims))
        shape, affine = self._turned
        if self._grid is not None:
            check_memory(len(whole) * prod(self._grid[0]), self._grid[0])
            whole = geometry.resample(whole, self._grid[1], shape, affine, order=0)
        own = (*self.shape, *[1] * (3 - self.dims))
        return np.ascontiguousarray(geometry.turned_onto(whole, affine, own, self.affine).reshape(self.shape))


def check_memory(voxels: int, shape: Sequence[int]) -> None:
    """ValueError where no memory holds so many voxels."""
    needed, free = 4 * voxels, psutil.virtual_memory().available
    if needed > free:
        raise ValueError(f"at the voxel size of training it has {'x'.join(map(str, shape))} voxels, {amount(needed)}, "
                         f"and {amount(free)} of memory are free; is its voxel size right?")


def difference(shape: Sequence[int], affine: np.ndarray | None, trained: Trained) -> Difference:
    """In what an image [*S] of a known affine, None for none, lies otherwise than those of training."""
    if affine is None or not trained.codes:
        return Difference(unknown=affine is not None or bool(trained.codes))
    codes, dims = geometry.axis_codes(affine), len(shape)
    flat = np.broadcast_to(False, (1, *shape, *[1] * (3 - dims)))
    turned, new = geometry.reorient(flat, affine, trained.codes)
    if turned.shape[1 + dims:] != (1,) * (3 - dims):
        return Difference(plane=codes)
    size = spacing_of(new)[:dims]
    other = () if np.allclose(size, trained.spacing[:dims], rtol=1e-2, atol=0) else tuple(map(float, size))
    return Difference("" if codes[:dims] == trained.codes[:dims] else codes, "", other)
