"""Clinical measures of label maps: volumes, wall thickness, topology.

The heart measures know three labels: cavity and myocardium of the left ventricle, and the atrium behind the mitral
plane. The base is found from the maps themselves: the point and direction of `_base`.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from edm3d.metrics.boxes import box_of
from edm3d.metrics.overlap import count_labels

BASE_TOLERANCE = 1.5  # voxels before the mitral plane that still count as the base: a tilted plane's staircase
LEAST_ENTRY = 1 / 3   # share of the cavity's open faces that the atrium must take
MOST_OPEN = 0.1       # share of the cavity's edges in a slice at which its ring of muscle may be open
STACK = 1.3           # distance of slices over the size of pixels from which on a volume is a stack of slices


def structure_volumes(label: np.ndarray, spacing: Sequence[float], num_classes: int) -> np.ndarray:
    """Volume [num_classes] of every class of an integer map [*S] with voxels of `spacing` mm: mL, or cm^2 in 2D.

    Raises ValueError for labels outside 0 .. num_classes - 1.
    """
    _check_spacing(label, spacing)
    return count_labels(label, num_classes) * np.prod(np.asarray(spacing) / 10)


def wall_thickness(label: np.ndarray, spacing: Sequence[float], cavity: int = 1, myocardium: int = 2,
                   atrium: int = 3) -> float:
    """Mean thickness in mm of the myocardium, weighted by volume; NaN without cavity, myocardium or outside.

    At every voxel of the myocardium: distance to the nearest voxel of the cavity plus distance to the nearest voxel
    outside the heart's wall, each less the part of a voxel by which it exceeds the distance to the surface (`_gap`).
    Voxels nearest to an outside voxel behind the mitral plane are left out: there the wall ends, it is not thin.
    On 3D echo phantoms: bias +0.2 mm and standard deviation 0.1 mm at voxels of 4 mm, 0.05 and 0.05 at 2 mm; on a flat
    wall along an axis of 3 voxels, where the part is a whole voxel, 8 % too much.
    """
    _check_spacing(label, spacing)
    label = label[box_of((label == cavity) | (label == myocardium), 1)]  # with all voxels that are nearest to any in it
    blood, wall = label == cavity, label == myocardium
    outside = ~(blood | wall)
    if not (blood.any() and wall.any() and outside.any()):
        return float("nan")
    steps = np.asarray(spacing, dtype=np.float64)
    at = np.argwhere(wall)
    to_blood, to_outside = (_nearest(target, steps)[:, wall].T - at for target in (blood, outside))
    kept = np.ones(len(at), dtype=bool)
    base = _base(label, steps, cavity, atrium)
    if base is not None:
        point, direction = base
        beyond = ((at + to_outside) * steps - point) @ direction
        kept = beyond < -0.5 * np.linalg.norm(direction * steps)
    if not kept.any():
        return float("nan")
    return float((_gap(to_blood[kept], steps) + _gap(to_outside[kept], steps)).mean())


def slice_axis(spacing: Sequence[float]) -> int | None:
    """The axis across the slices of a stack: along it voxels are STACK times as long as along both others, or more.

    None for what is no stack.
    """
    axis = int(np.argmax(spacing))
    return axis if len(spacing) == 3 and spacing[axis] >= STACK * sorted(spacing)[1] else None


def stack_thickness(label: np.ndarray, spacing: Sequence[float], cavity: int = 1, myocardium: int = 2) -> float:
    """Mean thickness in mm of the ring of myocardium in the slices of a stack [3 axes], weighted by the length of its
    inner border; NaN where no slice has a ring.

    In each slice: the radius of the disc that is as large as ring and cavity together, less that of the one that is as
    large as the cavity. Areas are exact to a fraction of a pixel, and so is this. What the cavity encloses, as
    papillary muscles that are labelled as myocardium, belongs to it. A slice in which more than a tenth of the cavity's
    edges lie at neither, as where the outflow tract opens the ring, is left out. A cavity with axes of 1.2 to 1 makes
    0.6 % too much, since its border is longer than a circle's.
    On short-axis phantoms, see docs/cardiac.md. Raises ValueError for a volume that is no stack.
    """
    _check_spacing(label, spacing)
    if (axis := slice_axis(spacing)) is None:
        raise ValueError(f"spacing {tuple(spacing)}: wanted a stack of slices, {STACK} times as far apart as pixels")
    pixel = np.prod(spacing) / spacing[axis]
    radii = [pair for each in np.moveaxis(label, axis, 0) if (pair := _ring(each, cavity, myocardium)) is not None]
    if not radii:
        return float("nan")
    inner, outer = np.sqrt(np.array(radii).T * pixel / np.pi)
    return float(np.average(outer - inner, weights=inner))


def _ring(label: np.ndarray, cavity: int, myocardium: int) -> tuple[int, int] | None:
    """Pixels of the cavity, and of it and the ring of muscle around it, in a slice [2 axes]; None for no such ring."""
    blood = ndimage.binary_fill_holes(label == cavity)
    pieces, _ = ndimage.label(blood | (label == myocardium))
    if not blood.any():
        return None
    whole = pieces == np.argmax(np.bincount(pieces[blood]))
    whole, blood = np.pad(ndimage.binary_fill_holes(whole), 1), np.pad(blood & whole, 1)
    edges, open_ = 0, 0
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        edges += np.count_nonzero(blood & ~np.roll(blood, step, axis))
        open_ += np.count_nonzero(blood & ~np.roll(whole, step, axis))
    inner, outer = np.count_nonzero(blood), np.count_nonzero(whole)
    return (inner, outer) if outer > inner and open_ <= MOST_OPEN * edges else None


def ventricle_angle(label: np.ndarray, spacing: Sequence[float], left: int = 1, right: int = 3) -> float:
    """Direction in degrees, above -180 to 180, from the middle of the left to that of the right ventricle in a stack
    [3 axes], in the plane of its slices; NaN where one is not there.

    Slices seen with their first axis downwards and their second one to the right: 0 to the left, 90 downwards. It is
    the direction of the mean, over the slices that have both, of the way between their centres there.
    Raises ValueError for a volume that is no stack.
    """
    _check_spacing(label, spacing)
    if (axis := slice_axis(spacing)) is None:
        raise ValueError(f"spacing {tuple(spacing)}: wanted a stack of slices, {STACK} times as far apart as pixels")
    steps = np.delete(np.asarray(spacing, dtype=np.float64), axis)
    ways = [np.subtract(*ndimage.center_of_mass(np.ones_like(each), each, [right, left]))
            for each in np.moveaxis(label, axis, 0) if (each == left).any() and (each == right).any()]
    if not ways:
        return float("nan")
    down, across = np.mean(ways, axis=0) * steps
    return float(np.degrees(np.arctan2(down, -across)))


def cavity_enclosed(label: np.ndarray, cavity: int = 1, myocardium: int = 2, atrium: int = 3) -> bool:
    """Whether the cavity is one component whose every face neighbour is myocardium, the mitral plane aside.

    Strict: a single voxel joined to the rest by an edge or corner alone is a second component. Atrium and background
    may touch the cavity at the base only, no more than 1.5 voxels before the mitral plane, and the atrium must take at
    least a third of those faces (in 400 phantoms it takes 61 % or more). Beyond the border of the map is background.
    """
    label = label[box_of(label == cavity, 1)]
    blood = np.pad(label == cavity, 1)
    if ndimage.label(blood)[1] != 1:
        return False
    closed = blood | np.pad(label == myocardium, 1)
    entry = np.pad(label == atrium, 1)
    leaks, entries = [], 0
    for axis in range(label.ndim):
        for step in (-1, 1):
            leaks.append(np.argwhere(blood & ~np.roll(closed, -step, axis)) - 1 + 0.5 * step * np.eye(label.ndim)[axis])
            entries += np.count_nonzero(blood & np.roll(entry, -step, axis))
    leaks = np.concatenate(leaks)
    base = _base(label, np.ones(label.ndim), cavity, atrium)
    if len(leaks) == 0 or base is None:
        return len(leaks) == 0
    point, direction = base
    return bool(((leaks - point) @ direction >= -BASE_TOLERANCE).all()) and entries >= LEAST_ENTRY * len(leaks)


def _base(label: np.ndarray, steps: np.ndarray, cavity: int, atrium: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Mitral plane as (point [n], unit normal [n] towards the atrium), in mm of voxel index x steps.

    The centre of the faces between cavity and atrium, and their summed area vector. None if they do not touch.
    """
    centres, areas = [], []
    for axis in range(label.ndim):
        first, second = np.moveaxis(label, axis, 0)[:-1], np.moveaxis(label, axis, 0)[1:]
        for inner, outer, sign in ((cavity, atrium, 1.0), (atrium, cavity, -1.0)):
            faces = np.argwhere((first == inner) & (second == outer)).astype(np.float64)
            faces[:, 0] += 0.5
            order = [*range(1, axis + 1), 0, *range(axis + 1, label.ndim)]
            centres.append(faces[:, order] * steps)
            areas.append(sign * len(faces) * np.prod(steps) / steps[axis] * np.eye(label.ndim)[axis])
    centres, area = np.concatenate(centres), np.sum(areas, axis=0)
    if len(centres) == 0 or not area.any():
        return None
    return centres.mean(axis=0), area / np.linalg.norm(area)


def _nearest(target: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Index [n, *S] of the voxel of `target` nearest to each voxel."""
    return ndimage.distance_transform_edt(~target, sampling=steps, return_distances=False, return_indices=True)


def _gap(offsets: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Distance (mm) [M] to a surface whose nearest inner voxel centre is `offsets` [M, n] voxels away.

    The centre lies half a voxel v behind the surface where the distance D is v, and less where it is more, since a ball
    of radius D that cuts more of the surface finds a closer centre: for centres strewn evenly, the cap that holds one
    is D^((n-1)/2) d^((n+1)/2) in volume, so d = v/2 (v/D)^((n-1)/(n+1)).
    """
    n = offsets.shape[1]
    lengths = np.linalg.norm(offsets * steps, axis=1)
    voxels = np.linalg.norm(offsets * steps**2, axis=1) / lengths  # size of the voxel along the direction
    return lengths - 0.5 * voxels * (voxels / lengths) ** ((n - 1) / (n + 1))


def _check_spacing(label: np.ndarray, spacing: Sequence[float]) -> None:
    if len(spacing) != label.ndim or min(spacing) <= 0:
        raise ValueError(f"spacing {tuple(spacing)} for a label map of shape {label.shape}: wanted one positive number "
                         f"of mm per axis")
