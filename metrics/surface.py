"""How far the surfaces of two label maps are apart."""

import warnings
from collections.abc import Sequence

import numpy as np
import torch


def hausdorff(a: np.ndarray, b: np.ndarray, num_classes: int, spacing: Sequence[float]) -> np.ndarray:
    """Hausdorff distance in mm [2, num_classes - 1], its 95 % point and the maximum, of every class but the first.

    Between integer maps [*S], 2D or 3D, with voxels of `spacing` mm. Surface voxels of a class are those of which a
    face neighbour is of another class, or outside the map. The distance of each to the nearest surface voxel of the
    other map, between centres, is taken both ways; of either way the 95 % point (linear between ranks) or the maximum,
    and of the two the larger one: what MONAI's compute_hausdorff_distance gives by percentile 95 and None. NaN for a
    class that is not in both maps. ValueError for different shapes or a spacing that is not one above 0 per axis.
    """
    from monai.metrics.utils import get_edge_surface_distance  # here, since importing MONAI takes seconds

    if a.shape != b.shape or len(spacing) != a.ndim or not min(spacing) > 0:
        raise ValueError(f"hausdorff of label maps of shapes {a.shape} and {b.shape} with spacing {tuple(spacing)}: "
                         "wanted one shape, and one positive number of mm per axis")
    found = np.full((2, num_classes - 1), np.nan)
    steps = [float(step) for step in spacing]
    for value in range(1, num_classes):
        inside = [torch.from_numpy(labels == value) for labels in (a, b)]
        if not all(mask.any() for mask in inside):
            continue
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*always_return_as_numpy", FutureWarning)  # MONAI's, of itself
            _, distances, _ = get_edge_surface_distance(*inside, spacing=steps, symmetric=True)
        found[0, value - 1] = max(float(np.quantile(one_way.numpy(), 0.95)) for one_way in distances)
        found[1, value - 1] = max(float(one_way.max()) for one_way in distances)
    return found
