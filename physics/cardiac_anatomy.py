"""Analytic anatomy of short-axis stacks of the heart at end-diastole and end-systole, with exact attributes.

Frames. A stack [D, H, W] has slices along axis 0, from the base to the apex, and rows and columns in each; it covers
130 x 175.4 x 175.4 mm, which are 13 slices 10 mm apart and 96 x 96 pixels of 1.8269 mm. In the plane, x counts
columns (to the right) and y rows (downwards). The picture is the patient turned counter-clockwise by the attribute
ANGLE, about the middle of the image; at 0 the right ventricle lies to the left of the left one, as usual. All is in mm,
mL or degrees.

Anatomy. The left ventricle is an ellipsoid cut by the plane of its base; in each slice its border is a smooth closed
curve r(theta) about the ventricle's axis, which may be oblique. The outer border of the muscle lies, along the normal
of that curve, as far out as the wall is thick there; beyond the cavity's end the muscle closes as a cap. The right
ventricle is a crescent on the septum. All borders are kept as radii over an even grid of angles (`Contours`), so a
patient is one anatomy whatever the number of pixels; the number of slices decides where it is cut.

Motion. From ED to ES the outer apex stays, the base comes 10 to 16 % nearer to it, the cavities lose the volume that
the ejection fractions say, and the wall thickens so that an even one of round slices keeps its volume.

What the attributes mean. Volumes are sums of discs, as clinical reading has them: the area of the analytic curve in
each slice times the distance of slices. Papillary muscles belong to the cavity, also in label maps. Thickness is the
mean over the length of the inner border, in all slices that have a cavity, of the distance to the outer one, in the
plane and along the normal. Where the label map draws the line between pixels is chosen once for each structure of a
stack, within a fraction of a pixel, so that as many voxels are labelled as the volume says.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

EXTENT = (130.0, 96 * 1.8269, 96 * 1.8269)  # mm
SIZE = (13, 96, 96)
LABEL_CLASSES = ("background", "lv", "myocardium", "rv")
ATTRIBUTES = (("LVEDV", "mL"), ("LVESV", "mL"), ("LVEF", "%"), ("RVEDV", "mL"), ("RVESV", "mL"), ("RVEF", "%"),
              ("MYOESTHICK", "mm"), ("MYOEDTHICK", "mm"), ("AGE", "y"), ("SEX", ""), ("BMI", "kg/m2"), ("ESED", ""),
              ("ANGLE", "deg"), ("DEPTH", ""))

FEWEST_SLICES = 7 / 13  # of the slices of a stack, that hold image
MITRAL = 0.5     # plane of the base, in long semi-axes behind the middle of the ellipsoid
CAP = 0.6        # thickness of the muscle beyond the apex, in mean thicknesses of the wall
VARIATION = 0.15  # about the largest relative deviation of the wall's thickness
SEPTUM = np.radians(72)  # half the angle that the right ventricle takes of the border of the left
THETA = np.arange(720) * (2 * np.pi / 720)
ANATOMY = 0  # purpose of the random stream


class Patient(NamedTuple):
    """What is drawn of a patient: volumes and mean thicknesses [2] at ED and ES; lengths [2] of the left cavity;
    shape [4] of its border (size and place of two harmonics); wall [4], likewise; slope [2] of its axis in x and y per
    mm; jitter [2] of its place; angle; slices (first, past last) that hold image; base: z of its plane at ED.
    """

    lv: np.ndarray
    rv: np.ndarray
    thickness: np.ndarray
    length: np.ndarray
    shape: np.ndarray
    wall: np.ndarray
    slope: np.ndarray
    jitter: np.ndarray
    age: float
    sex: int
    bmi: float
    angle: float
    slices: tuple[int, int]
    base: float


class Contours(NamedTuple):
    """Borders in each slice, as radii [D, K] over THETA about its centre [D, 2] (x, y): of the left cavity, of the
    muscle and of the right cavity; 0 where there is none (right: where there is no more than the muscle).
    """

    centre: np.ndarray
    inner: np.ndarray
    outer: np.ndarray
    right: np.ndarray

    def volumes(self, distance: float) -> np.ndarray:
        """Of left cavity, muscle and right cavity [3] in mL, by discs that are `distance` mm apart."""
        inner, outer, right = (discs(border) for border in (self.inner, self.outer, self.right))
        return np.array([inner.sum(), (outer - inner).sum(), (right - outer).sum()]) * distance / 1e3


def check_size(size: Sequence[int]) -> None:
    """ValueError for what is no size of a stack."""
    if len(size) != 3 or size[0] < 7 or min(size[1:]) < 16:
        raise ValueError(f"size={' '.join(map(str, size))}: wanted slices, rows and columns, 7 or more and twice 16 or "
                         "more, as in 13 96 96")


def spacing_of(size: Sequence[int]) -> tuple[float, float, float]:
    """Distance of slices, rows and columns in mm."""
    depth, height, width = size
    return EXTENT[0] / depth, EXTENT[1] / height, EXTENT[2] / width


# Patients


def draw_patient(seed: int, group: int, depth: int) -> Patient:
    """Patient number `group`, in a stack of `depth` slices.

    LVEDV 80 to 220 mL, larger for men; RVEDV within a quarter of it, 80 to 220 mL as well; EF 45 to 75 %, of both
    ventricles within a few percent; wall at ED 5 to 11 mm, thicker with age, weight and for men.
    """
    rng = np.random.default_rng([seed, group, ANATOMY])
    sex, age = int(rng.integers(2)), rng.uniform(45, 80)
    bmi = 18 + 22 * rng.beta(3, 4)
    large = within(rng.uniform(-0.1, 1.1) + 0.3 * (sex - 0.5))
    lv = 80 + 140 * large
    rv = 80 + 140 * within((lv * rng.uniform(0.75, 1.25) - 80) / 140)
    share = rng.uniform(0, 1)
    ejected, ejected_right = 45 + 30 * share, 45 + 30 * within(share + rng.uniform(-0.25, 0.15))
    wall = 5 + 6 * within(rng.uniform(0, 0.8) + 0.2 * (age - 45) / 35 + 0.2 * (sex - 0.5) + 0.01 * (bmi - 27))
    length = (40 + 0.22 * lv) * rng.uniform(0.93, 1.07)
    lengths = length * np.array([1, rng.uniform(0.84, 0.9)])
    volumes = lv * np.array([1, 1 - ejected / 100])
    thickness = np.array([wall, systolic_thickness(volumes, lengths, wall)])
    distance = EXTENT[0] / depth
    needed = length + CAP * wall
    fewest = max(int(np.ceil(needed / distance)), int(np.rint(FEWEST_SLICES * depth)))
    held = int(rng.integers(fewest, depth + 1))
    first = (depth - held) // 2
    base = first * distance + rng.uniform(0, 1) * (held * distance - needed)
    shape = rng.uniform(0, 1, 4) * [0.05, np.pi, 0.02, 2 * np.pi / 3]
    variation = rng.uniform(0.2, 1, 2) * VARIATION / 2
    return Patient(volumes, rv * np.array([1, 1 - ejected_right / 100]), thickness, lengths, shape,
                   np.array([variation[0], rng.uniform(0, 2 * np.pi), variation[1], rng.uniform(0, np.pi)]),
                   rng.uniform(-0.08, 0.08, 2), rng.uniform(-4, 4, 2), age, sex, bmi, rng.uniform(-45, 45),
                   (first, first + held), base)


def within(share: float) -> float:
    """A number as one of 0 to 1: reflected at both ends."""
    share = abs(share)
    return 2 - share if share > 1 else share


def systolic_thickness(volumes: np.ndarray, lengths: np.ndarray, wall: float) -> float:
    """Thickness at ES with which a wall that is `wall` mm thick at ED keeps its volume, for round cavities of these
    volumes [2] in mL and lengths [2].

    The muscle's volume is pi L (2 m R T + T^2), R the radius of the ellipsoid and m that of slices over it in the mean.
    """
    places = (np.arange(200) + 0.5) / 200
    profile = radius(places)
    radii = np.sqrt(1e3 * volumes / (np.pi * lengths * (profile**2).mean())) * profile.mean()
    muscle = lengths[0] * (2 * radii[0] * wall + wall**2)
    return float(np.sqrt(radii[1]**2 + muscle / lengths[1]) - radii[1])


def radius(place: np.ndarray) -> np.ndarray:
    """Radius of slices of an ellipsoid of transverse semi-axis 1, at places from 0, the apex, to 1, the base."""
    return np.sqrt(np.maximum(1 - ((1 + MITRAL) * place - 1) ** 2, 0)) * (place >= 0) * (place <= 1)


def attributes(patient: Patient, phase: int) -> np.ndarray:
    """The ATTRIBUTES [14] of an item, exact; phase 0 ED, 1 ES."""
    first, last = patient.slices
    fractions = [100 * (1 - volume[1] / volume[0]) for volume in (patient.lv, patient.rv)]
    return np.array([*patient.lv, fractions[0], *patient.rv, fractions[1], patient.thickness[1], patient.thickness[0],
                     patient.age, patient.sex, patient.bmi, 1 - phase, patient.angle, last - first])


# Borders


def cut(patient: Patient, phase: int, depth: int) -> Contours:
    """The borders in the slices of a stack at one phase, 0 ED or 1 ES."""
    distance, length, thickness = EXTENT[0] / depth, patient.length[phase], patient.thickness[phase]
    z = (np.arange(depth) + 0.5) * distance
    tip = patient.base + patient.length[0] + CAP * patient.thickness[0]  # of the muscle: it stays
    place = (tip - CAP * thickness - z) / length
    inner = radius(place)[:, None] * (1 + waves(patient.shape, 2, 3))
    inner *= np.sqrt(1e3 * patient.lv[phase] / (distance * discs(inner).sum()))
    outer = offset(inner, patient.wall, place, thickness)
    beyond = -place * length / (CAP * thickness)
    cap = (beyond > 0) & (beyond < 1)
    outer[cap] = thickness * np.sqrt(1 - beyond[cap, None] ** 2)
    added, width = crescent(outer, place, 1e3 * patient.rv[phase] / distance)
    diastole = width if phase == 0 else np.ptp(cut(patient, 0, depth).right - cut(patient, 0, depth).outer)
    # The middle of both ventricles at ED lies in the middle of the image, and the axis does not move.
    centre = np.array([diastole / 2, 0.0]) + patient.jitter + patient.slope * (z - tip + patient.length[0] / 2)[:, None]
    return Contours(centre, inner, outer, outer + added)


def waves(shape: np.ndarray, low: int, high: int) -> np.ndarray:
    """Relative deviation [K] of two harmonics: size and place [mm or rad] of each."""
    return shape[0] * np.cos(low * (THETA - shape[1])) + shape[2] * np.cos(high * (THETA - shape[3]))


def discs(border: np.ndarray) -> np.ndarray:
    """Area [D] within borders [D, K] (mm^2)."""
    return (border**2).mean(axis=1) * np.pi


def offset(inner: np.ndarray, wall: np.ndarray, place: np.ndarray, mean: float) -> np.ndarray:
    """The border [D, K] that lies outside of another one by a thickness, along its normal; 0 where there is none.

    The thickness varies with the angle, differently from slice to slice, and falls by a sixth from base to apex; its
    mean over the length of the inner borders of all slices is `mean`.
    """
    there = inner[:, 0] > 0
    slope = np.fft.irfft(1j * np.arange(len(THETA) // 2 + 1) * np.fft.rfft(inner[there]), len(THETA))
    length = np.hypot(inner[there], slope)
    thick = np.stack([1 + waves(wall + np.array([0, at, 0, at]), 1, 2) + (at - 1) / 6 for at in place[there]])
    thick *= mean * length.sum() / (thick * length).sum()
    out, along = inner[there] + thick * inner[there] / length, -thick * slope / length  # along radius and angle
    angles, radii = THETA + np.arctan2(along, out), np.hypot(out, along)
    outer = np.zeros_like(inner)
    outer[there] = [np.interp(THETA, angle, border, period=2 * np.pi) for angle, border in zip(angles, radii)]
    return outer


def crescent(outer: np.ndarray, place: np.ndarray, area: float) -> tuple[np.ndarray, float]:
    """What the right cavity adds to the radii [D, K] of the muscle, and its greatest width: a bulge on the side of -x,
    widest at the base, which ends before the apex; its discs have `area` mm^2 in all.
    """
    across = np.abs(THETA - np.pi) / SEPTUM
    bulge = np.maximum(1 - across**2, 0) ** 0.75
    upward = np.clip((place - 0.12) / 0.88, 0, 1)
    along = np.where(place <= 1, np.sqrt(1 - (1 - upward) ** 2), 0) * (outer[:, 0] > 0)
    form = along[:, None] * bulge
    # Discs: the mean over angles of (outer + width form)^2 - outer^2, times pi.
    square, linear = np.pi * (form**2).mean(axis=1).sum(), 2 * np.pi * (form * outer).mean(axis=1).sum()
    width = (np.sqrt(linear**2 + 4 * square * area) - linear) / (2 * square)
    return width * form, float(width * form.max())


# Voxels


def polar(contours: Contours, patient: Patient, size: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every pixel centre its place [2, H, W] in the patient's frame, distance to the axis and angle [D, H, W]."""
    steps = [(np.arange(n) + 0.5) * step - extent / 2 for n, step, extent in zip(size, spacing_of(size), EXTENT)]
    c, s = np.cos(np.radians(patient.angle)), np.sin(np.radians(patient.angle))
    y, x = np.meshgrid(steps[1], steps[2], indexing="ij")
    place = np.stack([c * x - s * y, s * x + c * y])
    moved = place[None] - contours.centre[:, :, None, None]
    return place, np.hypot(moved[:, 0], moved[:, 1]), np.arctan2(moved[:, 1], moved[:, 0])


def at_angles(border: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Radii [D, H, W] of borders [D, K] at angles."""
    step = len(THETA) / (2 * np.pi)
    closed = np.concatenate([border, border[:, :1]], axis=1)
    place = np.arange(len(THETA) + 1) / step
    return np.stack([np.interp(angle % (2 * np.pi), place, radii) for angle, radii in zip(angles, closed)])


def draw_label(contours: Contours, patient: Patient, size: Sequence[int]) -> np.ndarray:
    """Label map [D, H, W] uint8 of LABEL_CLASSES; as many voxels of each as its volume says."""
    _, distance, angle = polar(contours, patient, size)
    inner, outer, right = (at_angles(border, angle) for border in (contours.inner, contours.outer, contours.right))
    counts = contours.volumes(spacing_of(size)[0]) / (np.prod(spacing_of(size)) / 1e3)
    label = np.zeros(tuple(size), np.uint8)
    heart = nearest(distance - outer, outer > 0, counts[0] + counts[1])
    label[heart] = 2
    label[nearest(distance - inner, (inner > 0) & heart, counts[0])] = 1
    label[nearest(distance - right, (right > outer) & ~heart, counts[2])] = 3
    return label


def nearest(distance: np.ndarray, among: np.ndarray, count: float) -> np.ndarray:
    """Mask of the `count` voxels of least distance."""
    order = np.sort(distance[among])
    return among & (distance <= order[min(len(order), max(1, round(count))) - 1])
