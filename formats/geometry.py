"""Moving a volume to another grid without losing where it lies: orientation, spacing, padding and cropping.

Arrays are [C,X,Y,Z] (2D: Z = 1), affines [4,4] take voxel indices to mm in RAS+.
"""

from collections.abc import Sequence
from math import log, sqrt

import numpy as np
from nibabel import orientations
from scipy import ndimage

from edm3d.formats.nifti import is_same_grid, spacing_of

MOST_VOXELS = 2 ** 31  # per axis
_EDGE = 0.01  # of a voxel, by which a point may lie outside of a grid
_PER_FWHM = 2 * sqrt(2 * log(2))  # full width at half maximum of a Gaussian by its sigma


def axis_codes(affine: np.ndarray) -> str:
    """Return where the axes point, such as 'RAS' (nearest for oblique scans)."""
    return "".join(orientations.aff2axcodes(affine))


def reorient(array: np.ndarray, affine: np.ndarray, codes: str) -> tuple[np.ndarray, np.ndarray]:
    """Flip and permute axes so that they point to `codes`; voxels keep their values and their places in mm."""
    wanted = orientations.axcodes2ornt(tuple(codes))
    transform = orientations.ornt_transform(orientations.io_orientation(affine), wanted)
    turned = orientations.apply_orientation(np.moveaxis(array, 0, -1), transform)
    return np.moveaxis(turned, -1, 0), affine @ orientations.inv_ornt_aff(transform, array.shape[1:])


def turned_onto(array: np.ndarray, affine: np.ndarray, shape: Sequence[int], new_affine: np.ndarray
                ) -> np.ndarray | None:
    """The same voxels on another grid, where swapping and flipping axes brings them there; else None."""
    turn = np.rint((np.linalg.inv(new_affine) @ affine)[:3, :3])
    if not (np.abs(turn) @ np.ones(3) == 1).all() or abs(np.linalg.det(turn)) != 1:
        return None
    to = np.eye(4)
    to[:3, :3] = turn
    transform = orientations.io_orientation(to)
    turned = np.moveaxis(orientations.apply_orientation(np.moveaxis(array, 0, -1), transform), -1, 0)
    moved = affine @ orientations.inv_ornt_aff(transform, array.shape[1:])
    return turned if is_same_grid((shape, new_affine), (turned.shape[1:], moved)) else None


def counts_outside(label: np.ndarray, affine: np.ndarray, shape: Sequence[int], new_affine: np.ndarray) -> np.ndarray:
    """How many voxels of each value [256] of a label map [1,X,Y,Z] uint8 have their centre outside of another grid."""
    mapping = np.linalg.inv(new_affine) @ affine
    across = np.moveaxis(np.indices(label.shape[2:]), 0, -1) @ mapping[:3, 1:3].T + mapping[:3, 3]  # of slice 0
    most = np.array(shape) - 0.5 + _EDGE
    counts = np.zeros(256, np.int64)
    for x, plane in enumerate(label[0]):
        place = across + x * mapping[:3, 0]
        outside = ((place < -0.5 - _EDGE) | (place > most)).any(-1)
        counts += np.bincount(plane[outside], minlength=256)
    return counts


def spaced_grid(shape: Sequence[int], affine: np.ndarray, spacing: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
    """Return shape and affine of the grid with another spacing [3] mm, the same axes and the same centre."""
    shape = np.asarray(shape)
    ratio = np.asarray(spacing, np.float64) / spacing_of(affine)
    ratio = np.where(np.abs(ratio - 1) < 1e-4, 1.0, ratio)  # headers store spacing in single precision
    if (shape / ratio).max() > MOST_VOXELS:
        raise ValueError(f"voxels of {'x'.join(f'{size:g}' for size in spacing)} mm are too small for its "
                         f"{'x'.join(map(str, shape))} of {'x'.join(f'{size:g}' for size in spacing_of(affine))} mm")
    new_shape = np.maximum(1, np.rint(shape / ratio)).astype(int)
    new_affine = affine.copy()
    new_affine[:3, :3] *= ratio
    new_affine[:3, 3] = affine[:3] @ [*(shape - 1) / 2, 1] - new_affine[:3, :3] @ ((new_shape - 1) / 2)
    return tuple(int(n) for n in new_shape), new_affine


def resample(
    array: np.ndarray,
    affine: np.ndarray,
    new_shape: Sequence[int],
    new_affine: np.ndarray,
    *,
    order: int,
    outside: float | None = None,
    antialias: bool = False,
) -> np.ndarray:
    """Interpolate onto another grid with splines of `order` (0 = nearest), kept within the range of the channel.

    Outside the old grid stands the value `outside`, or with None that of the nearest voxel. antialias: blur first,
    along the axes of the old grid on which new voxels are larger (see blur_sigmas).
    """
    mapping = np.linalg.inv(affine) @ new_affine
    if tuple(new_shape) == array.shape[1:] and np.allclose(mapping, np.eye(4), atol=1e-6):
        return array
    matrix = mapping[:3, :3]
    if np.allclose(matrix, np.diag(np.diag(matrix)), atol=1e-9):
        matrix = np.diag(matrix)  # scipy is several times faster axis by axis
    sigmas = blur_sigmas(mapping[:3, :3]) if antialias else np.zeros(3)
    mode, cval = ("nearest", 0) if outside is None else ("grid-constant", outside)
    channels = []
    for channel in array:
        blurred = ndimage.gaussian_filter(channel, sigmas, mode="nearest") if sigmas.any() else channel
        moved = ndimage.affine_transform(
            blurred, matrix, mapping[:3, 3], tuple(new_shape), order=order, mode=mode, cval=cval
        )
        if order > 1:  # splines overshoot at edges
            moved = moved.clip(channel.min(), channel.max())
        channels.append(moved)
    return np.stack(channels)


def blur_sigmas(matrix: np.ndarray) -> np.ndarray:
    """Sigmas [d] of the Gaussian, in old voxels, that makes old voxels see as far as new ones; 0 where none is larger.

    matrix [d,d]: new index -> old index. A new voxel is f old ones wide, f the norm of a row. Taking the spread of a
    voxel for a Gaussian whose full width at half maximum is the voxel's side, sigma^2 = (f^2 - 1) / (8 ln 2): Cardoso
    et al., Scale factor point spread function matching: beyond aliasing in image resampling, MICCAI 2015.
    """
    factor = np.linalg.norm(matrix, axis=1)
    return np.where(factor > 1 + 1e-4, np.sqrt(np.maximum(factor ** 2 - 1, 0)), 0) / _PER_FWHM


def fit_centre(
    array: np.ndarray, affine: np.ndarray, shape: Sequence[int], fill: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pad with fill [C] or crop [C,*S] to `shape`, equally on both sides; returns array, affine and valid box [2,3]."""
    old, new = np.array(array.shape[1:]), np.array(shape)
    first = np.trunc((old - new) / 2).astype(int)  # old index of the first new voxel, < 0 = padding; odd rest behind
    start, stop = np.maximum(0, -first), np.minimum(new, old - first)
    fitted = np.empty((len(array), *shape), array.dtype)
    fitted[:] = np.asarray(fill, array.dtype).reshape(-1, *[1] * len(new))
    inside = tuple(slice(a, b) for a, b in zip(start, stop))
    taken = tuple(slice(a, b) for a, b in zip(start + first, stop + first))
    fitted[(slice(None), *inside)] = array[(slice(None), *taken)]
    new_affine, flat = affine.copy(), 3 - len(new)  # a 2D image is one voxel deep
    new_affine[:3, 3] += affine[:3, :3] @ [*first, *[0] * flat]
    return fitted, new_affine, np.array([(*start, *[0] * flat), (*stop, *[1] * flat)], dtype=np.int64)
