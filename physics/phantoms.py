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
from typing import Literal, NamedTuple

import numpy as np
from scipy.ndimage import correlate1d, map_coordinates
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
ECHOGENICITY = np.array([0.15, 0.045, 0.30, 0.05])  # mean echo of each class at the probe: tissue, blood, muscle, blood

PHASES = ("ED", "ES")
ANATOMY, APPEARANCE, SPECKLE = range(3)  # purposes of the random streams


class Phantom(NamedTuple):
    """One phantom: image and clean [*S] float32 in [0, 1] (clean is image without speckle), label [*S] uint8 of
    LABEL_CLASSES, attributes [4] float64 in the order and units of ATTRIBUTES, group = number of the patient.

    Phantoms of other kinds have label classes and attributes of their own. held: first and past-last slice that hold
    image, None: all do.
    """

    image: np.ndarray
    clean: np.ndarray
    label: np.ndarray
    attributes: np.ndarray
    group: int
    phase: Literal["ED", "ES"]
    held: tuple[int, int] | None = None


@dataclass(frozen=True)
class Wall:
    """Thickness of the myocardium: mean over the endocardium (mm) and coefficients [5] of its regional variation."""

    mean: float
    harmonics: np.ndarray


@dataclass(frozen=True)
class Shape:
    """The organs in the heart frame; axes, atrium: semi-axes [3] of the two ellipsoids (mm), axial first."""

    axes: np.ndarray
    wall: Wall
    atrium: np.ndarray


@dataclass(frozen=True)
class Heart:
    """A shape and its pose: x_cube = rotation @ x_heart + centre; tilt in degrees."""

    shape: Shape
    rotation: np.ndarray
    centre: np.ndarray
    tilt: float


@dataclass(frozen=True)
class Machine:
    """The scanner's settings: echo [4] of each class at the probe, gain included; std/mean of the speckle."""

    echo: np.ndarray
    contrast: float


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
    group, phase = (index // 2, PHASES[index % 2]) if pairs else (index, "ED")
    heart = _draw_heart(np.random.default_rng([seed, group, ANATOMY]), phase, pairs)
    grid = _grid(size, spatial_dims)
    label = _draw_label(heart, grid)
    machine = _draw_machine(np.random.default_rng([seed, group, APPEARANCE]))
    clean = _echo(label, grid, machine)
    speckle = _speckle(np.random.default_rng([seed, index, SPECKLE]), grid, clean > 0, machine.contrast)
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
    wall = Wall(thickness, rng.standard_normal(5))
    aspect, tilt, roll = rng.uniform(0.9, 1.1), rng.uniform(-TILT, TILT), rng.uniform(0, 360)
    place = rng.uniform(0, 1, size=3)
    if pairs:
        volume = 30 + (volume - 30) / 2  # the atrium is smallest at end-diastole, and has to grow within 30 to 80 mL
    diastole = Shape(axes, wall, _atrium(volume, flatness, aspect, axes, wall))
    shapes = [diastole, _systole(diastole, rng)] if pairs else [diastole]
    rotation = _rotation(np.radians(tilt), np.radians(roll))
    # The outer apex stays where it is from phase to phase, so the ventricle's centre moves along the axis.
    shifts = [(s.axes[0] + s.wall.mean - axes[0] - thickness) * rotation[:, 0] for s in shapes]
    limits = [np.array(_limits(s, rotation)) - shift for s, shift in zip(shapes, shifts)]
    low = np.max([np.full(3, -JITTER), *(limit[0] for limit in limits)], axis=0)
    high = np.min([np.full(3, JITTER), *(limit[1] for limit in limits)], axis=0)
    assert (low <= high).all(), "the heart does not fit into the cube"
    i = PHASES.index(phase)
    return Heart(shapes[i], rotation, low + place * (high - low) + shifts[i], tilt)


def _atrium(volume: float, flatness: float, aspect: float, axes: np.ndarray, wall: Wall) -> np.ndarray:
    """Semi-axes [3] of an atrium of `volume` mL: `flatness` is axial over mean transverse semi-axis, lowered where the
    whole heart would not fit into the depth of the cube; `aspect` squared is the ratio of the transverse semi-axes.
    """
    room = EXTENT - 2 * MARGIN - (1 + MITRAL) * axes[0] - _thickest(axes, wall)
    cut = np.pi * _cut_ball(ATRIUM_OFFSET)
    axial = min((volume * 1e3 * flatness**2 / cut) ** (1 / 3), 0.96 * room / (1 + ATRIUM_OFFSET))
    across = np.sqrt(volume * 1e3 / (cut * axial))
    return np.array([axial, across * aspect, across / aspect])


def _systole(shape: Shape, rng: np.random.Generator) -> Shape:
    """End-systole of an end-diastolic shape: ejection fraction 0.5 to 0.7, the long axis 10 to 16 % shorter, wall
    thickened so that a wall of even thickness keeps its volume, atrium 20 to 45 % larger.

    Hence axes and wall leave the end-diastolic ranges (wall up to about 20 mm), as hearts do.
    """
    ejected, shortening, filling = rng.uniform(0.5, 0.7), rng.uniform(0.84, 0.9), rng.uniform(1.2, 1.45)
    axes = shape.axes * np.array([shortening, *[np.sqrt((1 - ejected) / shortening)] * 2])
    muscle = _muscle(shape.axes, shape.wall.mean)
    thickness = brentq(lambda h: _muscle(axes, h) - muscle, shape.wall.mean, 40.0)
    return Shape(axes, Wall(thickness, shape.wall.harmonics), shape.atrium * filling ** (1 / 3))


def _rotation(tilt: float, roll: float) -> np.ndarray:
    """Heart frame to cube [3, 3]: roll about the long axis, then tilt in the plane of axes 0 and 1 (radians)."""
    s, c, sr, cr = np.sin(tilt), np.cos(tilt), np.sin(roll), np.cos(roll)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])


def _limits(shape: Shape, rotation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest centre [3] of the ventricle with which all organs stay MARGIN mm inside the cube."""
    inside = EXTENT / 2 - MARGIN
    return _reach(shape, -rotation) - inside, inside - _reach(shape, rotation)


def _reach(shape: Shape, directions: np.ndarray) -> np.ndarray:
    """Upper bound [K] of how far the organs extend along unit vectors [K, 3] of the heart frame, from the origin."""
    axes, thickest, along = shape.axes, _thickest(shape.axes, shape.wall), directions[:, 0]
    whole = np.linalg.norm(directions * axes, axis=1) + thickest
    across = np.linalg.norm(directions[:, 1:] * axes[1:], axis=1) + thickest * np.linalg.norm(directions[:, 1:], axis=1)
    cut = np.maximum(along * MITRAL * axes[0], -along * (axes[0] + thickest)) + across
    middle = MITRAL * axes[0] + ATRIUM_OFFSET * shape.atrium[0]
    return np.maximum(np.minimum(whole, cut), along * middle + np.linalg.norm(directions * shape.atrium, axis=1))


def _cut_ball(offset: float) -> float:
    """Volume over pi of the part of a unit ball before a plane at `offset` beyond its centre."""
    return 2 / 3 + offset - offset**3 / 3


def _muscle(axes: np.ndarray, thickness: float) -> float:
    """Volume (mm^3, over pi) between the cut ellipsoids of semi-axes `axes` and `axes` + thickness."""
    outer = axes + thickness
    return np.prod(outer) * _cut_ball(MITRAL * axes[0] / outer[0]) - np.prod(axes) * _cut_ball(MITRAL)


def _variation(wall: Wall, u: np.ndarray) -> np.ndarray:
    """Relative deviation of the thickness, within +/- VARIATION, at the points axes * u of the endocardium; u [3, ...]
    unit vectors: low-order harmonics.
    """
    basis = np.stack([u[0], u[1], u[2], u[1] ** 2 - u[2] ** 2, 2 * u[1] * u[2]])
    return VARIATION / np.abs(wall.harmonics).sum() * np.tensordot(wall.harmonics, basis, 1)


def _mean_variation(axes: np.ndarray, wall: Wall) -> float:
    """Mean of `_variation` over the area of the endocardium before the mitral plane, by quadrature (to about 1e-6)."""
    nodes, weights = np.polynomial.legendre.leggauss(16)
    cosine = (nodes * (1 + MITRAL) + MITRAL - 1)[:, None] / 2  # from -1 at the apex to MITRAL
    angle = np.arange(24)[None] * (2 * np.pi / 24)
    sine = np.sqrt(1 - cosine**2)
    u = np.stack([cosine + 0 * angle, sine * np.cos(angle), sine * np.sin(angle)])
    area = weights[:, None] * np.linalg.norm(u / axes[:, None, None], axis=0)  # of axes * u per area of the unit ball
    return float((area * _variation(wall, u)).sum() / area.sum())


def _thickest(axes: np.ndarray, wall: Wall) -> float:
    """Upper bound of the wall thickness (mm)."""
    return wall.mean * (1 + VARIATION - _mean_variation(axes, wall))


def _attributes(heart: Heart) -> np.ndarray:
    """The four ATTRIBUTES [4], exact."""
    shape = heart.shape
    ventricle = np.pi * np.prod(shape.axes) * _cut_ball(MITRAL) / 1e3
    atrium = np.pi * np.prod(shape.atrium) * _cut_ball(ATRIUM_OFFSET) / 1e3
    return np.array([ventricle, shape.wall.mean, atrium, heart.tilt])


# Voxels


def _grid(size: int, spatial_dims: int) -> tuple[np.ndarray, ...]:
    """Voxel centres (mm) as three arrays that broadcast to the image; the third is 0 in 2D."""
    centres = (np.arange(size) + 0.5) * (EXTENT / size) - EXTENT / 2
    grid = np.meshgrid(*[centres] * spatial_dims, indexing="ij", sparse=True)
    return (*grid, np.zeros([1, 1])) if spatial_dims == 2 else tuple(grid)


def _draw_label(heart: Heart, grid: tuple[np.ndarray, ...]) -> np.ndarray:
    """Label map [*S] uint8: the organ that holds the centre of each voxel."""
    shape, rotation = heart.shape, heart.rotation
    moved = [x - c for x, c in zip(grid, heart.centre)]
    x = np.stack([sum(rotation[j, i] * moved[j] for j in range(3)) for i in range(3)])
    axes = shape.axes.reshape([3] + [1] * (x.ndim - 1))
    level = ((x / axes) ** 2).sum(axis=0)
    front = x[0] <= MITRAL * shape.axes[0]
    # A point at distance d from the ellipsoid has sqrt(level) <= 1 + d / least semi-axis.
    outermost = (1 + _thickest(shape.axes, shape.wall) / shape.axes.min()) ** 2
    near = np.flatnonzero(front & (level > 1) & (level < outermost))
    label = np.where(front & (level <= 1), 1, 0).astype(np.uint8)
    label.flat[near] = 2 * _in_wall(shape, x.reshape(3, -1)[:, near])
    middle = MITRAL * shape.axes[0] + ATRIUM_OFFSET * shape.atrium[0]
    behind = sum(((x[i] - middle * (i == 0)) / shape.atrium[i]) ** 2 for i in range(3)) <= 1
    label[~front & behind] = 3
    return label


def _in_wall(shape: Shape, x: np.ndarray) -> np.ndarray:
    """Whether points [3, N] outside the ellipsoid are no farther from it than the wall is thick at their foot points.

    The foot point of x is y = A^2 x / (A^2 + t), where t >= 0 solves f(t) = |A x / (A^2 + t)| = 1; Newton on 1/f, which
    is nearly linear in t.
    """
    squares = shape.axes[:, None] ** 2
    scaled = shape.axes[:, None] * x
    t = np.zeros(x.shape[1])
    for _ in range(6):
        ratio = (scaled / (squares + t)) ** 2
        f = ratio.sum(axis=0)
        t += f * (np.sqrt(f) - 1) / (ratio / (squares + t)).sum(axis=0)
    u = scaled / (squares + t)
    distance = np.linalg.norm(x - shape.axes[:, None] * u, axis=0)
    thickness = shape.wall.mean * (1 + _variation(shape.wall, u) - _mean_variation(shape.axes, shape.wall))
    return distance <= thickness


# Image


def _draw_machine(rng: np.random.Generator) -> Machine:
    """Gain 0.8 to 1.2 in all and 0.92 to 1.08 per class; contrast 0.26 to 0.34."""
    echo = ECHOGENICITY * rng.uniform(0.8, 1.2) * rng.uniform(0.92, 1.08, size=len(ECHOGENICITY))
    return Machine(echo, rng.uniform(0.26, 0.34))


def _polar(grid: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Range from the virtual apex (mm) and the two tangents of the beam, for every point of the grid."""
    ahead = grid[0] + EXTENT / 2 + PROBE
    return np.sqrt(ahead**2 + grid[1] ** 2 + grid[2] ** 2), grid[1] / ahead, grid[2] / ahead


def _echo(label: np.ndarray, grid: tuple[np.ndarray, ...], machine: Machine) -> np.ndarray:
    """Mean echo [*S] float32: echogenicity x attenuation over the path from the probe, 0 outside the sector."""
    length, v, w = _polar(grid)
    sector = (v**2 + w**2 <= np.tan(np.radians(HALF_ANGLE)) ** 2) & (length <= REACH)
    return np.where(sector, machine.echo[label] * 0.5 ** ((length - PROBE) / HALF_DEPTH), 0).astype(np.float32)


def _speckle(rng: np.random.Generator, grid: tuple[np.ndarray, ...], where: np.ndarray, contrast: float) -> np.ndarray:
    """Multiplicative speckle [*S] float32 of mean 1 and std `contrast`: (1 + b g)^2 / (1 + b^2), g standard normal.

    g is white over beams that fan out from the virtual apex and correlated along each; between the samples it is
    interpolated, and divided by the std that interpolation leaves, so that the contrast is the same everywhere.
    1 outside `where`.
    """
    length, v, w = (np.broadcast_to(c, where.shape)[where] for c in _polar(grid))
    beams = int(np.ceil(np.tan(np.radians(HALF_ANGLE)) / BEAM_PITCH))
    kernel = np.exp(-0.5 * (np.arange(-5, 6) * RANGE_STEP / BEAM_LENGTH) ** 2)
    kernel /= np.linalg.norm(kernel)
    samples = int(np.ceil((REACH - PROBE) / RANGE_STEP)) + 1
    field = rng.standard_normal((samples + 10, 2 * beams + 1, 2 * beams + 1), dtype=np.float32)
    field = correlate1d(field, kernel, axis=0)[5:-5]
    at = np.stack([(length - PROBE) / RANGE_STEP, v / BEAM_PITCH + beams, w / BEAM_PITCH + beams])
    cross = (at % 1) * (1 - at % 1)
    variance = np.prod(1 - 2 * cross * np.array([[1 - kernel[1:] @ kernel[:-1]], [1.0], [1.0]]), axis=0)
    g = map_coordinates(field, at, order=1, mode="nearest") / np.sqrt(variance)
    square = np.sqrt(1 + contrast**2 / (2 - contrast**2)) - 1  # b^2, from contrast^2 = (4 b^2 + 2 b^4) / (1 + b^2)^2
    speckle = np.ones(where.shape, dtype=np.float32)
    speckle[where] = (1 + np.sqrt(square) * g) ** 2 / (1 + square)
    return speckle
