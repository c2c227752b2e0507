"""Analytic PET phantoms: activity of heads, as brains or as heaps of ellipses, with exact maps of their regions.

Frames. An image spans [-1, 1] on both axes, row 0 at the top, and a pixel has the value of the region at its centre.
The head's own frame has its centre in the middle and unit radius; z is -1 at the neck's side and 1 at the top.

Anatomy. A head is an ellipsoid of semi-axes 0.52..0.72 (across) and 0.66..0.88 (front to back), turned by up to 15
degrees and moved by up to 0.05. A plane at height z cuts an ellipse sqrt(1 - z^2) as large as that of the middle.
- brain: scalp, skull and fluid are rims of 4..7, 5..8 and 2..5 % of the radius. Within them lies the cortex, whose
  inner border waves (12..18 and 7..11 periods), around white matter, with two ventricles beside the middle and a
  nucleus beside each. Up to 3 lesions are balls of radius 0.05..0.12, within the brain.
- ellipses: a head of one activity, and 4..9 ellipsoids of semi-axes 0.08..0.4 in it, later ones over earlier ones.

Activities, drawn anew for every phantom. White matter 1.5..2.75, grey matter 3.5..4.3 times as much, nuclei 0.8..1
times that of grey matter; scalp 0.5..1.5, skull 0.2..0.6, fluid and ventricles 0..0.3. A lesion is hot (1.2..1.8 times
grey matter) or cold (0..0.5 times white matter), alike often. A head of ellipses has 0.5..4, each ellipse 0.5..12 or,
one in four, 0. Nothing is above 12.
"""

import math
from typing import NamedTuple

import numpy as np

from edm3d.utils.checks import check_choice, check_count

KINDS = ("brain", "ellipses")
BRAIN_REGIONS = ("background", "scalp", "skull", "fluid", "grey", "white", "ventricle", "nucleus", "hot lesion",
                 "cold lesion")
MOST = 12.0  # activity
_SCALP, _SKULL, _FLUID, _GREY, _WHITE, _VENTRICLE, _NUCLEUS, _HOT, _COLD = range(1, 10)
_SHAPE, _ACTIVITY = range(2)  # purposes of the random streams


class PetPhantom(NamedTuple):
    """activity [S,S] or [D,S,S] float32, 0..12; regions, uint8 of the same shape; heights z of slices, [] or [D].

    Regions are those of BRAIN_REGIONS; of ellipses 0 is outside, 1 the head, and 2, 3, ... one ellipse each.
    """

    activity: np.ndarray
    regions: np.ndarray
    heights: np.ndarray


class Blob(NamedTuple):
    """An ellipsoid in the head's frame: centre and semi-axes [3] (across, front to back, z), turn (rad) in the plane."""

    region: int
    centre: np.ndarray
    axes: np.ndarray
    turn: float


class Head(NamedTuple):
    """A head: semi-axes [2], centre [2] and turn in the image; radii of its shells in its own frame, from outside.

    waves: (amplitude, periods, phase) of the border of the innermost shell. Blobs lie within the radius `inner`.
    """

    axes: np.ndarray
    centre: np.ndarray
    turn: float
    shells: np.ndarray
    waves: tuple[tuple[float, int, float], ...]
    blobs: tuple[Blob, ...]
    inner: float


def pet_phantom(index: int, *, seed: int = 0, size: int = 64, kind: str = "brain") -> PetPhantom:
    """Slice number `index` of a seed, of a head and at a height of its own (-0.7..0.7), the same for any size."""
    shapes, activities = _generators(index, seed, kind)
    check_count(1, {"size": size})
    height = shapes.uniform(-0.7, 0.7)
    head = _HEADS[kind](shapes, np.array([height, 0.05]))
    return _cut(head, _activities(head, kind, activities), height, size)


def pet_stack(index: int, *, seed: int = 0, size: int = 64, depth: int = 32, kind: str = "brain") -> PetPhantom:
    """Head number `index` of a seed in `depth` slices along axis 0, at even heights between -1 and 1."""
    shapes, activities = _generators(index, seed, kind)
    check_count(1, {"size": size, "depth": depth})
    head = _HEADS[kind](shapes, np.array([0.0, 0.5]))
    values = _activities(head, kind, activities)
    heights = (np.arange(depth) + 0.5) * 2 / depth - 1
    cuts = [_cut(head, values, height, size) for height in heights]
    return PetPhantom(np.stack([cut.activity for cut in cuts]), np.stack([cut.regions for cut in cuts]), heights)


def _generators(index: int, seed: int, kind: str) -> list[np.random.Generator]:
    """Of shapes and of activities, so that a change of one law leaves the other's draws."""
    check_choice("kind", kind, KINDS)
    check_count(0, {"index": index, "seed": seed})
    return [np.random.default_rng([seed, index, KINDS.index(kind), purpose]) for purpose in (_SHAPE, _ACTIVITY)]


def _outline(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Semi-axes, centre and turn of a head."""
    axes = np.array([rng.uniform(0.52, 0.72), rng.uniform(0.66, 0.88)])
    return axes, rng.uniform(-0.05, 0.05, 2), math.radians(rng.uniform(-15, 15))


def _brain(rng: np.random.Generator, about: np.ndarray) -> Head:
    """about: height of the middle of the lesions, and how far from it they lie at most."""
    outline, rims = _outline(rng), rng.uniform([0.04, 0.05, 0.02], [0.07, 0.08, 0.05])
    inner = 1 - rims.sum()
    waves = ((rng.uniform(0.03, 0.06), int(rng.integers(12, 19)), rng.uniform(0, 2 * math.pi)),
             (rng.uniform(0.02, 0.05), int(rng.integers(7, 12)), rng.uniform(0, 2 * math.pi)))
    shells = np.array([1, 1 - rims[0], 1 - rims[:2].sum(), inner, inner * rng.uniform(0.74, 0.84)])
    lean, wide, long = rng.uniform(0.05, 0.3), rng.uniform(0.05, 0.1), rng.uniform(0.2, 0.32)
    beside, nucleus, back = rng.uniform(0.12, 0.16), rng.uniform(0.1, 0.15), rng.uniform(-0.1, 0.1)
    blobs = []
    for side in (-1, 1):
        blobs.append(Blob(_VENTRICLE, np.array([side * beside, back, 0.0]), np.array([wide, long, 0.6]), side * lean))
        blobs.append(Blob(_NUCLEUS, np.array([side * (beside + wide + nucleus), back, 0.0]),
                          np.array([nucleus * 0.7, nucleus * 1.6, 0.5]), -side * lean))
    for _ in range(rng.integers(0, 4)):
        distance, angle = 0.75 * inner * math.sqrt(rng.uniform()), rng.uniform(0, 2 * math.pi)
        height = about[0] + about[1] * rng.uniform(-1, 1)
        distance *= math.sqrt(1 - height**2)
        centre = np.array([distance * math.cos(angle), distance * math.sin(angle), height])
        blobs.append(Blob(int(rng.choice([_HOT, _COLD])), centre, np.full(3, rng.uniform(0.05, 0.12)), 0.0))
    return Head(*outline, shells, waves, tuple(blobs), inner)


def _ellipses(rng: np.random.Generator, about: np.ndarray) -> Head:
    """The same of ellipses; about: height of their middle, and how far from it they lie at most."""
    outline, blobs = _outline(rng), []
    for number in range(rng.integers(4, 10)):
        distance, angle = 0.7 * math.sqrt(rng.uniform()), rng.uniform(0, 2 * math.pi)
        height = about[0] + about[1] * rng.uniform(-1, 1)
        centre = np.array([distance * math.cos(angle), distance * math.sin(angle), height])
        blobs.append(Blob(2 + number, centre, rng.uniform(0.08, 0.4, 3), rng.uniform(0, math.pi)))
    return Head(*outline, np.ones(1), (), tuple(blobs), 0.95)


_HEADS = {"brain": _brain, "ellipses": _ellipses}


def _activities(head: Head, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Activity of every region by number; of lesions one for all that are hot, and one for all that are cold."""
    if kind == "ellipses":
        values = rng.uniform(0.5, MOST, 2 + len(head.blobs))
        values[2:] *= rng.uniform(size=len(head.blobs)) >= 0.25
        values[0], values[1] = 0, rng.uniform(0.5, 4)
        return values
    white = rng.uniform(1.5, 2.75)
    grey = white * rng.uniform(3.5, 4.3)
    values = np.zeros(len(BRAIN_REGIONS))
    values[[_SCALP, _SKULL, _FLUID, _VENTRICLE]] = rng.uniform([0.5, 0.2, 0.0, 0.0], [1.5, 0.6, 0.3, 0.3])
    values[[_GREY, _WHITE, _NUCLEUS]] = grey, white, grey * rng.uniform(0.8, 1.0)
    values[[_HOT, _COLD]] = grey * rng.uniform(1.2, 1.8), white * rng.uniform(0, 0.5)
    return values.clip(0, MOST)


def _cut(head: Head, activities: np.ndarray, height: float, size: int) -> PetPhantom:
    """The slice at a height."""
    middles = (np.arange(size) + 0.5) * 2 / size - 1
    x, y = _turned(middles[None] - head.centre[0], -middles[:, None] - head.centre[1], head.turn)
    x, y = x / head.axes[0], y / head.axes[1]
    radius, angle = np.hypot(x, y) / math.sqrt(1 - height**2), np.arctan2(y, x)
    wave = 1 + sum(amplitude * np.cos(periods * angle + phase) for amplitude, periods, phase in head.waves)
    regions = np.zeros((size, size), np.uint8)
    for number, shell in enumerate(head.shells, 1):
        regions[radius < (shell * wave if number == len(head.shells) else shell)] = number
    for blob in head.blobs:
        across, along = _turned(x - blob.centre[0], y - blob.centre[1], blob.turn)
        parts = across / blob.axes[0], along / blob.axes[1], (height - blob.centre[2]) / blob.axes[2]
        regions[(sum(part**2 for part in parts) < 1) & (radius < head.inner)] = blob.region
    return PetPhantom(activities[regions].astype(np.float32), regions, np.array(height))


def _turned(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along axes that are turned by an angle."""
    return x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
