"""How rough the surface of a mask is."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

FINE, COARSE = 1.0, 1.5  # voxels, standard deviations of the two Gaussians


def roughness(mask: np.ndarray, spacing: Sequence[float]) -> float:
    """Mean angle in degrees between the normals of the surface of a mask [*S] as it is and smoothed.

    At voxels of the mask of which a face neighbour is outside, the direction of the gradient of the mask blurred by a
    Gaussian of FINE voxels against one of COARSE voxels, both in mm. 0 for a plane along an axis; about 2 for a ball,
    by its voxels' stairs; bumps and spikes of a few voxels count, size and bending hardly do. Walls of less than about
    3 voxels count as rough, since their sides blur into each other. Where the border of the map cuts the mask is no
    surface. NaN without a surface.
    """
    mask = np.asarray(mask, dtype=bool)
    surface = mask & ~ndimage.binary_erosion(mask, border_value=1)
    if not surface.any():
        return float("nan")
    fine, coarse = (_normals(mask, surface, width, spacing) for width in (FINE, COARSE))
    lengths = np.linalg.norm(fine, axis=0) * np.linalg.norm(coarse, axis=0)
    known = lengths > 0
    if not known.any():
        return float("nan")
    cosine = np.einsum("ai,ai->i", fine[:, known], coarse[:, known]) / lengths[known]
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean())


def _normals(mask: np.ndarray, surface: np.ndarray, width: float, spacing: Sequence[float]) -> np.ndarray:
    """Gradient [axes, M] per mm of the mask, blurred, at the voxels of the surface."""
    blurred = np.pad(ndimage.gaussian_filter(mask.astype(np.float32), width, mode="nearest", truncate=3), 1, "edge")
    at, found = np.argwhere(surface).T + 1, []
    for axis, step in enumerate(spacing):
        move = np.eye(mask.ndim, dtype=int)[axis][:, None]
        found.append((blurred[tuple(at + move)] - blurred[tuple(at - move)]) / step)
    return np.array(found, dtype=np.float64)
