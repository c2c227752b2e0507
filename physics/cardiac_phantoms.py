"""Analytic phantoms: short-axis stacks of cine MR of the heart, in two styles, with exact labels and attributes.

The anatomy is that of `cardiac_anatomy`. Around it lie a body with a rim of fat, lungs, liver, a stomach, the aorta and
a texture, all turned with the patient; in the blood of the left ventricle two papillary muscles and trabeculae at its
border. What a pixel shows of neighbouring tissues goes by how far the border is from its centre, over the width of a
pixel.

Styles have one law of anatomy and differ in what a scanner makes of it. public: bright blood, little noise, weak
shading. private: less contrast between blood and muscle, a coil that shades strongly from one side, blur, and twice
the noise, which is correlated. The noise is that of magnitudes (Rician). Slices that hold no image are all but
constant: a level and noise of a thousandth.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from edm3d.physics.cardiac_anatomy import (
    EXTENT,
    SIZE,
    Contours,
    Patient,
    at_angles,
    attributes,
    check_size,
    cut,
    draw_label,
    draw_patient,
    polar,
    spacing_of,
)
from edm3d.physics.phantoms import PHASES, Phantom
from edm3d.utils.checks import check_choice, check_count

APPEARANCE, NOISE = 1, 2  # purposes of the random streams, beside that of the anatomy
TISSUES = ("air", "lung", "soft", "fat", "liver", "muscle", "blood")
PAPILLARY = (np.radians(55), np.radians(-50))  # where they stand, from the side that is opposite to the septum
EMPTY_NOISE = 0.001


class ScanStyle(NamedTuple):
    """What a scanner makes of tissues: brightness of TISSUES; range of the noise's standard deviation; how far noise
    is correlated and the image blurred (standard deviations in mm); shading: log of the brightness from side to side.
    """

    levels: tuple[float, ...]
    noise: tuple[float, float]
    grain: float
    blur: float
    shading: float


STYLES = {
    "public": ScanStyle((0.02, 0.07, 0.30, 0.62, 0.40, 0.22, 0.78), (0.012, 0.022), 0.0, 0.0, 0.25),
    "private": ScanStyle((0.03, 0.10, 0.36, 0.45, 0.46, 0.34, 0.66), (0.025, 0.040), 1.2, 1.4, 0.7),
}


def cardiac_phantom(index: int, *, seed: int, size: Sequence[int] = SIZE, style: str = "public") -> Phantom:
    """Item `index` of the endless set of phantoms that `seed` names: items 2k and 2k+1 are ED and ES of patient k.

    Depends on its arguments alone, its anatomy on index, seed and the number of slices. Both styles have the same law
    of anatomy and, for one seed, the same patients. `held` says which slices hold image; the others have no labels.
    Raises ValueError for a negative index or seed, a size that is not [D, H, W] of 7 or more slices and 16 or more
    rows and columns, and an unknown style.
    """
    check_count(0, {"index": index, "seed": seed})
    check_size(size)
    check_choice("style", style, STYLES)
    group, phase = index // 2, index % 2
    patient = draw_patient(seed, group, size[0])
    contours = cut(patient, phase, size[0])
    clean = scan(contours, patient, size, STYLES[style], np.random.default_rng([seed, group, APPEARANCE]))
    image = noisy(clean, patient, size, STYLES[style], np.random.default_rng([seed, index, NOISE]))
    return Phantom(image, clean, draw_label(contours, patient, size), attributes(patient, phase), group,
                   cast(Literal["ED", "ES"], PHASES[phase]), patient.slices)


def cardiac_affine(size: Sequence[int]) -> np.ndarray:
    """Voxel index to mm [4, 4]: array axes are the world's axes, the origin is the centre of the stack."""
    spacing = np.array(spacing_of(size))
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (spacing - EXTENT) / 2
    return affine


def scan(contours: Contours, patient: Patient, size: Sequence[int], style: ScanStyle, rng: np.random.Generator
         ) -> np.ndarray:
    """The image [D, H, W] float32 in [0, 1] without noise."""
    pixel = max(spacing_of(size)[1:])
    place, distance, angle = polar(contours, patient, size)
    level = dict(zip(TISSUES, np.array(style.levels) * rng.uniform(0.92, 1.08, len(TISSUES)), strict=True))
    image = surroundings(place, patient, size, level, pixel, rng)
    inner, outer, right = (at_angles(border, angle) for border in (contours.inner, contours.outer, contours.right))
    with_muscle, with_right, with_blood = outer > 0, right > outer, inner > 0
    rim = np.where(with_right, right + 3, outer)  # the free wall of the right ventricle, of 3 mm
    paint(image, level["fat"], distance - rim - rng.uniform(2, 5), pixel, with_muscle)
    paint(image, level["muscle"], distance - rim, pixel, with_muscle)
    paint(image, level["blood"], distance - right, pixel, with_right)
    paint(image, level["muscle"], distance - outer, pixel, with_muscle)
    paint(image, level["blood"], distance - inner, pixel, with_blood)
    fine = texture(rng, size, 4.0)
    trabeculae = np.clip(fine, 0, 1) * (0.8 * np.clip((distance - 0.75 * inner) / 4, 0, 1) * (distance < inner)
                                        + 0.35 * (distance < right) * (distance > outer))
    image += trabeculae * (level["muscle"] - level["blood"])
    for turn in PAPILLARY:
        papillary(image, level["muscle"], contours, place, turn + rng.uniform(-0.2, 0.2), rng.uniform(0.14, 0.2), pixel)
    image *= 1 + 0.06 * texture(rng, size, 6.0)
    toward = rng.uniform(-np.pi, 0)  # the coil lies at the front
    image *= np.exp(style.shading * (np.cos(toward) * place[0] + np.sin(toward) * place[1]) / EXTENT[1])
    if style.blur:
        image = gaussian_filter(image, [0, *(style.blur / step for step in spacing_of(size)[1:])])
    first, last = patient.slices
    image[:first] = image[last:] = level["air"]
    return np.clip(image, 0, 1).astype(np.float32)


def surroundings(place: np.ndarray, patient: Patient, size: Sequence[int], level: dict[str, float], pixel: float,
                 rng: np.random.Generator) -> np.ndarray:
    """The body without the heart [D, H, W]: ellipses in the patient's frame that shift from slice to slice."""
    image = np.full(tuple(size), level["air"])
    down = np.linspace(-1, 1, size[0])[:, None, None]  # from the base to the apex, which lies nearer to the liver
    fat = 4 + max(patient.bmi - 20, 0) * rng.uniform(0.5, 0.8)
    body = np.array([105, 88]) + rng.uniform(-4, 8, 2)
    for grown, tissue in ((0, "fat"), (-fat, "muscle"), (-fat - 9, "soft")):
        paint(image, level[tissue], ellipse(place, (5, 12), body + grown), pixel)
    paint(image, level["lung"], ellipse(place, (62 + 6 * down, -2), (38, 55) + rng.uniform(-4, 4, 2)), pixel)
    paint(image, level["lung"], ellipse(place, (-72 - 6 * down, -16), (26, 40) + rng.uniform(-4, 4, 2)), pixel)
    liver = ellipse(place, (-38, 92 - 16 * down), (62, 42) + rng.uniform(-4, 4, 2))
    paint(image, level["liver"], liver, pixel)
    vessels = np.clip(texture(rng, size, 5.0) - 0.6, 0, 1) * (liver < -3)
    image += vessels * (level["blood"] - level["liver"]) * 0.7
    paint(image, level["soft"] * rng.uniform(0.6, 1.5), ellipse(place, (52, 78 - 10 * down), (34, 24)), pixel)
    paint(image, level["blood"] * 0.95, ellipse(place, (40, 62 - 4 * down), (10, 10)), pixel)
    return image


def ellipse(place: np.ndarray, centre: Sequence[object], axes: Sequence[float] | np.ndarray) -> np.ndarray:
    """About how far [D, H, W] points [2, H, W] lie outside of an ellipse (mm); its centre may be [D, 1, 1]."""
    x, y = ((place[i] - np.asarray(centre[i])) / axes[i] for i in range(2))
    return (np.hypot(x, y) - 1) * min(axes)


def paint(image: np.ndarray, value: float, outside: np.ndarray, pixel: float, where: np.ndarray | bool = True) -> None:
    """Set what is inside of a border, by the distance `outside` of it, to a value; across the border over a pixel."""
    share = np.clip(0.5 - outside / pixel, 0, 1) * where
    image += share * (value - image)


def papillary(image: np.ndarray, value: float, contours: Contours, place: np.ndarray, turn: float, width: float,
              pixel: float) -> None:
    """A papillary muscle in the blood of the middle slices: a disc near the border of the left cavity, as wide as a
    share of its radius.
    """
    number = round(turn * contours.inner.shape[1] / (2 * np.pi)) % contours.inner.shape[1]
    border = contours.inner[:, number]
    there = (border > 0.45 * border.max()) & (border < 0.97 * border.max())
    at = contours.centre + (border * (1 - 1.3 * width))[:, None] * np.array([np.cos(turn), np.sin(turn)])
    moved = place[None] - at[:, :, None, None]
    paint(image, value, np.hypot(moved[:, 0], moved[:, 1]) - (width * border)[:, None, None], pixel,
          there[:, None, None])


def texture(rng: np.random.Generator, size: Sequence[int], length: float) -> np.ndarray:
    """A smooth field [D, H, W] of standard deviation 1, correlated over about `length` mm in the plane: the same for
    any number of pixels.
    """
    count = int(np.ceil(EXTENT[1] / length)) + 1
    rows, columns = (zoom(np.eye(count), [n / count, 1], order=3, mode="nearest", grid_mode=True) for n in size[1:])
    field = rows @ rng.standard_normal((size[0], count, count)) @ columns.T
    return field / field.std()


def noisy(clean: np.ndarray, patient: Patient, size: Sequence[int], style: ScanStyle, rng: np.random.Generator
          ) -> np.ndarray:
    """The image [D, H, W] float32 with the noise of magnitudes; slices that hold no image keep their level."""
    noise = rng.standard_normal((2, *size))
    if style.grain:
        noise = gaussian_filter(noise, [0, 0, *(style.grain / step for step in spacing_of(size)[1:])])
        noise /= noise.std()
    deviation = np.full(size[0], EMPTY_NOISE)
    deviation[slice(*patient.slices)] = rng.uniform(*style.noise)
    noise *= deviation[:, None, None]
    return np.clip(np.hypot(clean + noise[0], noise[1]), 0, 1).astype(np.float32)
