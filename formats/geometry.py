"""Moving a volume to another grid without losing where it lies: orientation, spacing, padding and cropping.

Arrays are [C,X,Y,Z] (2D: Z = 1), affines [4,4] take voxel indices to mm in RAS+.
"""

from collections.abc import Sequence

import numpy as np
from nibabel import orientations
from scipy import ndimage

from edm3d.formats.nifti import spacing_of


def axis_codes(affine: np.ndarray) -> str:
    """Return where the axes point, such as 'RAS' (nearest for oblique scans)."""
    return "".join(orientations.aff2axcodes(affine))


def reorient(array: np.ndarray, affine: np.ndarray, codes: str) -> tuple[np.ndarray, np.ndarray]:
    """Flip and permute axes so that they point to `codes`; voxels keep their values and their places in mm."""
    wanted = orientations.axcodes2ornt(tuple(codes))
    transform = orientations.ornt_transform(orientations.io_orientation(affine), wanted)
    turned = orientations.apply_orientation(np.moveaxis(array, 0, -1), transform)
    return np.moveaxis(turned, -1, 0), affine @ orientations.inv_ornt_aff(transform, array.shape[1:])


def spaced_grid(shape: Sequence[int], affine: np.ndarray, spacing: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
    """Return shape and affine of the grid with another spacing [3] mm, the same axes and the same centre."""
    shape = np.asarray(shape)
    ratio = np.asarray(spacing, np.float64) / spacing_of(affine)
    ratio = np.where(np.abs(ratio - 1) < 1e-4, 1.0, ratio)  # headers store spacing in single precision
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
) -> np.ndarray:
    """Interpolate onto another grid with splines of `order` (0 = nearest), kept within the range of the channel.

    Outside the old grid stands the value `outside`, or with None that of the nearest voxel.
    """
    mapping = np.linalg.inv(affine) @ new_affine
    if tuple(new_shape) == array.shape[1:] and np.allclose(mapping, np.eye(4), atol=1e-6):
        return array
    matrix = mapping[:3, :3]
    if np.allclose(matrix, np.diag(np.diag(matrix)), atol=1e-9):
        matrix = np.diag(matrix)  # scipy is several times faster axis by axis
    mode, cval = ("nearest", 0) if outside is None else ("grid-constant", outside)
    channels = []
    for channel in array:
        moved = ndimage.affine_transform(
            channel, matrix, mapping[:3, 3], tuple(new_shape), order=order, mode=mode, cval=cval
        )
        if order > 1:  # splines overshoot at edges
            moved = moved.clip(channel.min(), channel.max())
        channels.append(moved)
    return np.stack(channels)


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
