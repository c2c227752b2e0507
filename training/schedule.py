"""Learning rate and weights of losses as pure functions of the images seen."""

from collections.abc import Sequence
from itertools import pairwise
from math import cos, inf, pi

from edm3d.utils.checks import check_choice


def lr_factor(nimg: int, total_kimg: float, rampup_kimg: float = 0, schedule: str = "constant") -> float:
    """What the base learning rate is multiplied by: linear ramp-up from 0, then constant or a cosine to 0."""
    check_choice("training.options.lr_schedule", schedule, ("constant", "cosine"))
    factor = min(nimg / max(rampup_kimg * 1000, 1e-8), 1)  # the step at nimg 0 has rate 0, as in EDM
    if schedule == "cosine":
        factor *= (1 + cos(pi * min(nimg / (total_kimg * 1000), 1))) / 2
    return factor


def scheduled(points: float | Sequence[Sequence[float]], kimg: float) -> float:
    """A number that changes with kimg: itself, or points [kimg, value] in order, joined by straight lines.

    Before the first point and behind the last their values hold; two points at one kimg are a step there.
    """
    if not isinstance(points, Sequence):
        return points
    before = [point for point in points if point[0] <= kimg]
    if not before or len(before) == len(points):
        return (before or points[:1])[-1][1]
    (k0, v0), (k1, v1) = before[-1], points[len(before)]
    return v0 + (v1 - v0) * (kimg - k0) / (k1 - k0)


def check_schedule(key: str, points: float | Sequence[Sequence[float]]) -> None:
    """ValueError unless this is a number of 0 or more, or points [kimg, number] of which kimg never falls."""
    listed = points if isinstance(points, Sequence) else [[0, points]]
    if not listed or not all(isinstance(point, Sequence) and len(point) == 2 for point in listed) \
            or any(a[0] > b[0] for a, b in pairwise(listed)) \
            or not all(0 <= number < inf for point in listed for number in point):
        raise ValueError(f"{key}={points}: wanted a number of 0 or more, or points [kimg, number] in the order of "
                         "kimg, as in [[0,1e-6],[100,1]]; two points at one kimg make a step")


def highest(points: float | Sequence[Sequence[float]]) -> float:
    """The largest value that a schedule takes."""
    return max(value for _, value in points) if isinstance(points, Sequence) else points
