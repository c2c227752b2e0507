"""Analytic phantoms: an apical 3D echo of the left heart in a cube of 128 mm, with exact attributes.

Frames. The cube spans [-64, 64] mm on each axis; array axis 0 is depth and the probe sits at the centre of the face
-64 of it, looking along +axis 0. The heart has its own frame: origin at the centre of the ventricle's ellipsoid,
axis 0 from the apex to the base, axes 1 and 2 across. Every quantity below is in mm, mL or degrees.

Anatomy. The cavity is an ellipsoid cut by the mitral plane (heart axis 0 = MITRAL x long semi-axis). The myocardium
is every point outside that ellipsoid, on the apex's side of the plane, whose distance to the ellipsoid is at most the
wall thickness at the foot point; the thickness varies smoothly over the wall. The atrium is a second ellipsoid, cut by
the same plane from behind. Because all of it is analytic, an item is one anatomy and one speckle field whatever the
number of voxels, and its 2D image is the exact central plane (axis 2 = 0) of its 3D image.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter1d, map_coordinates
from scipy.optimize import brentq

EXTENT = 128.0  # mm, edge of the cube
LABEL_CLASSES = ("background", "cavity", "myocardium", "atrium")
ATTRIBUTES = (("lv_volume", "mL"), ("wall_thickness", "mm"), ("la_volume", "mL"), ("tilt", "deg"))

MITRAL = 0.5        # mitral plane, in long semi-axes behind the centre of the ventricle
ATRIUM_OFFSET = 0.6  # centre of the atrium, in its axial semi-axes behind the mitral plane
VARIATION = 0.15    # largest relative deviation of the wall thickness before its mean is taken out
JITTER = 8.0        # mm
TILT = 15.0         # degrees
MARGIN = 1.0        # mm that the organs keep from the faces of the cube

PROBE = 12.0        # mm from the probe's face back to the virtual apex of the sector (radius of a curved array)
REACH = 140.0       # mm from the virtual apex to the far end of the sector
HALF_ANGLE = 42.0   # degrees, half opening of the cone
HALF_DEPTH = 128.0  # mm of tissue that halve the echo
BEAM_PITCH = 1 / 35  # tangent between neighbouring speckle beams: 4 mm at the far wall
RANGE_STEP = 2.0    # mm between the samples of a beam
BEAM_LENGTH = 3.0   # mm, standard deviation of the kernel that correlates the speckle along the beam
ECHOGENICITY = (0.16, 0.05, 0.33, 0.06)  # mean echo of each class at the probe: tissue, blood, muscle, blood

ANATOMY, APPEARANCE, SPECKLE = range(3)  # purposes of the random streams


class Phantom(NamedTuple):
    """One phantom: image and clean [*S] float32 in [0, 1] (clean is image without speckle), label [*S] uint8 of
    LABEL_CLASSES, attributes [4] float64 in the order and units of ATTRIBUTES, group = number of the patient.
    """

    image: np.ndarray
    clean: np.ndarray
    label: np.ndarray
    attributes: np.ndarray
    group: int
    phase: Literal["ED", "ES"]


@dataclass(frozen=True)
class Shape:
    """The organs in the heart frame. axes, atrium: semi-axes [3] of the two ellipsoids (mm); thickness: mean of the
    wall thickness over the endocardium (mm); harmonics [5]: its regional variation.
    """

    axes: np.ndarray
    thickness: float
    harmonics: np.ndarray
    atrium: np.ndarray


@dataclass(frozen=True)
class Heart:
    """A shape and its pose: x_cube = rotation @ x_heart + centre; tilt in degrees."""

    shape: Shape
    rotation: np.ndarray
    centre: np.ndarray
    tilt: float


def echo_phantom(index: int, *, seed: int, size: int, spatial_dims: int = 3, pairs: bool = False) -> Phantom:
    """Item `index` of the endless set of phantoms that `seed` names: an image of size^spatial_dims voxels.

    Depends on its arguments alone. The attributes are exact properties of the analytic anatomy, not of the voxels:
    lv_volume: closed form of the truncated ellipsoid; wall_thickness: mean over the endocardial surface (mitral plane
    left out) of the thickness along the surface's normal; la_volume: closed form, as the ventricle's; tilt: signed
    angle in [-15, 15] between long axis and depth, in the plane of array axes 0 and 1, positive when the base leans
    towards +axis 1.

    Without pairs every item is another patient at end-diastole (group = index). With pairs, items 2k and 2k+1 are
    end-diastole and end-systole of patient k, see `_systole`. spatial_dims=2: the plane axis 2 = 0 of the 3D item.
    Raises ValueError for a negative index or seed, a size below 8 and spatial_dims other than 2 and 3.
    """
    if min(index, seed) < 0 or size < 8 or spatial_dims not in (2, 3):
        raise ValueError(
            f"phantom index={index}, seed={seed}, size={size}, spatial_dims={spatial_dims}: wanted index and seed >= 0,"
            f" size >= 8 and spatial_dims 2 or 3")
    group, phase = (index // 2, ("ED", "ES")[index % 2]) if pairs else (index, "ED")
    heart = _draw_heart(np.random.default_rng([seed, group, ANATOMY]), phase, pairs)
    grid = _grid(size, spatial_dims)
    label = _label(heart, grid)
    clean, speckle = _render(label, grid, seed, group, index)
    return Phantom(np.clip(clean * speckle, 0, 1), clean, label, _attributes(heart), group, phase)


def phantom_affine(size: int, spatial_dims: int = 3) -> np.ndarray:
    """Voxel index to mm, [4, 4]: array axes are the world's axes, the origin is the centre of the cube.

    A 2D phantom, taken as [size, size, 1], lies on the plane 0 of the third axis.
    """
    voxel = EXTENT / size
    affine = np.diag([voxel, voxel, voxel, 1.0])
    affine[:spatial_dims, 3] = (voxel - EXTENT) / 2
    return affine


# Anatomy


def _draw_heart(rng: np.random.Generator, phase: str, pairs: bool) -> Heart:
    """One patient's heart at one phase, placed so that no phase of it leaves the cube."""
    axes = np.array([rng.uniform(70, 100), *rng.uniform(36, 56, size=2)]) / 2
    thickness, volume, flatness = rng.uniform(7, 13), rng.uniform(30, 80), rng.uniform(0.7, 0.95)
    harmonics, aspect = rng.standard_normal(5), rng.uniform(0.9, 1.1)
    tilt, roll, place = rng.uniform(-TILT, TILT), rng.uniform(0, 360), rng.uniform(0, 1, size=3)
    if pairs:
        volume = 30 + (volume - 30) / 2  # the atrium is smallest at end-diastole, and has to grow within 30 to 80 mL
    shape = Shape(axes, thickness, harmonics, _atrium(volume, flatness, aspect, axes[0], thickness))
    shapes = [shape, _systole(shape, rng)] if pairs else [shape]
    rotation = _rotation(np.radians(tilt), np.radians(roll))
    # The apex of the outer wall stays where it is from phase to phase; the ventricle's centre moves along the axis.
    shifts = [(s.axes[0] + s.thickness - axes[0] - thickness) * rotation[:, 0] for s in shapes]
    limits = [_limits(s, rotation) for s in shapes]
    low = np.max([[np.full(3, -JITTER)] + [low - shift for (low, _), shift in zip(limits, shifts)]], axis=(0, 1))
    high = np.min([[np.full(3, JITTER)] + [high - shift for (_, high), shift in zip(limits, shifts)]], axis=(0, 1))
    chosen = ("ED", "ES").index(phase)
    return Heart(shapes[chosen], rotation, low + place * (high - low) + shifts[chosen], tilt)


def _atrium(volume: float, flatness: float, aspect: float, long_axis: float, thickness: float) -> np.ndarray:
    """Semi-axes [3] of an atrium of `volume` mL: `flatness` is axial over mean transverse semi-axis, lowered where the
    whole heart would not fit into the depth of the cube; `aspect` squared is the ratio of the transverse semi-axes.
    """
    room = EXTENT - 2 * MARGIN - (1 + MITRAL) * long_axis - (1 + VARIATION) * thickness
    cut = np.pi * _cut_factor(ATRIUM_OFFSET)
    axial = min((volume * 1e3 * flatness**2 / cut) ** (1 / 3), 0.98 * room / (1 + ATRIUM_OFFSET))
    across = np.sqrt(volume * 1e3 / (cut * axial))
    return np.array([axial, across * aspect, across / aspect])


def _systole(shape: Shape, rng: np.random.Generator) -> Shape:
    """End-systole of an end-diastolic shape: ejection fraction 0.5 to 0.7, the long axis 10 to 16 % shorter, wall
    thickened so that the myocardium keeps its volume (wall of even thickness), atrium 20 to 45 % larger.

    Hence axes and wall leave the end-diastolic ranges (wall up to about 20 mm), as hearts do.
    """
    ejected, shortening, filling = rng.uniform(0.5, 0.7), rng.uniform(0.84, 0.9), rng.uniform(1.2, 1.45)
    axes = shape.axes * np.array([shortening, *[np.sqrt((1 - ejected) / shortening)] * 2])
    muscle = _wall_volume(shape.axes, shape.thickness)
    thickness = brentq(lambda h: _wall_volume(axes, h) - muscle, shape.thickness, 40.0)
    return Shape(axes, thickness, shape.harmonics, shape.atrium * filling ** (1 / 3))


def _rotation(tilt: float, roll: float) -> np.ndarray:
    """Heart frame to cube [3, 3]: roll about the long axis, then tilt in the plane of axes 0 and 1."""
    (s, c), (sr, cr) = (np.sin(tilt), np.cos(tilt)), (np.sin(roll), np.cos(roll))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])


def _limits(shape: Shape, rotation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest centre [3] with which the organs stay MARGIN mm inside the cube, from support functions."""
    wall = np.linalg.norm(rotation * shape.axes, axis=1) + shape.thickness * (1 + VARIATION - _variation_mean(shape))
    middle = (MITRAL * shape.axes[0] + ATRIUM_OFFSET * shape.atrium[0]) * rotation[:, 0]
    atrium = np.linalg.norm(rotation * shape.atrium, axis=1)
    # Of the wall only the part before the mitral plane is there: its support behind is that of the plane's section.
    inside = EXTENT / 2 - MARGIN
    return np.maximum(wall, atrium - middle) - inside, inside - np.maximum(_wall_behind(shape, rotation), middle + atrium)


def _cut_factor(offset: float) -> float:
    """Volume of a unit ball cut at `offset` beyond its centre, over pi."""
    return 2 / 3 + offset - offset**3 / 3
