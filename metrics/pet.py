"""How far images of PET are from the activity, or from another image of the same scan, in units of activity.

An image is [*S], 2D or 3D; all is computed in float64.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage


class ActivityLevels(NamedTuple):
    """Kinds of pixels of phantoms, by their activity: above the lower edge and up to the upper one, [L] each."""

    lower: np.ndarray
    upper: np.ndarray

    def __len__(self) -> int:
        return len(self.lower)

    def number(self, phantom: np.ndarray) -> np.ndarray:
        """The number of the level of every pixel, -1 where it is of none."""
        place = np.searchsorted(self.upper, phantom, side="left")
        inside = place < len(self)
        return np.where(inside & (phantom > self.lower[np.minimum(place, len(self) - 1)]), place, -1)


class Recovered(NamedTuple):
    """Sums over the pixels of every level [L]: how many, of the activity, and of the image."""

    count: np.ndarray
    truth: np.ndarray
    image: np.ndarray


def relative_l2(image: np.ndarray, truth: np.ndarray) -> float:
    """|image - truth| / |truth|, Euclidean norms over all pixels; NaN for an empty truth."""
    error, size = _difference(image, truth), np.linalg.norm(np.asarray(truth, np.float64))
    return float(np.linalg.norm(error) / size) if size > 0 else float("nan")


def rmse(image: np.ndarray, truth: np.ndarray) -> float:
    """Root of the mean squared error over all pixels."""
    return float(np.sqrt(np.mean(_difference(image, truth) ** 2)))


def nmae(image: np.ndarray, truth: np.ndarray) -> float:
    """Sum of absolute errors over the sum of absolute truth; NaN for an empty truth."""
    error, size = np.abs(_difference(image, truth)).sum(), np.abs(np.asarray(truth, np.float64)).sum()
    return float(error / size) if size > 0 else float("nan")


def exact_levels(values: np.ndarray) -> ActivityLevels:
    """A level for each of some rising activities > 0, up to half of the way to its neighbours."""
    between = (values[1:] + values[:-1]) / 2
    return ActivityLevels(*(np.concatenate(ends)[:len(values)] for ends in (([0.0], between), (between, [np.inf]))))


def even_levels(largest: float, count: int = 8) -> ActivityLevels:
    """Levels of one width, from 0 to the largest activity."""
    edges = np.linspace(0, largest, count + 1)
    edges[-1] = np.inf
    return ActivityLevels(edges[:-1], edges[1:])


def recovered(image: np.ndarray, phantom: np.ndarray, levels: ActivityLevels) -> Recovered:
    """What an image holds of every level of its phantom."""
    number = levels.number(phantom).ravel()
    known, size = number >= 0, len(levels)
    number = number[known]
    sums = [np.bincount(number, np.asarray(array, np.float64).ravel()[known], size) for array in (phantom, image)]
    return Recovered(np.bincount(number, minlength=size).astype(np.float64), *sums)


def bias(truth: np.ndarray, image: np.ndarray) -> np.ndarray:
    """(image - truth) / truth of sums over levels, NaN where a level has no activity."""
    return np.divide(image - truth, truth, out=np.full(np.shape(truth), np.nan), where=truth > 0)


def contrast_recovery(truth: np.ndarray, image: np.ndarray, background: int) -> np.ndarray:
    """(I / I_b - 1) / (T / T_b - 1) of mean activities of an image I [...,L] and the truth T [...,L] by level.

    The contrast recovery coefficient of NEMA NU 2 (image quality, hot spheres), with `background`, a level, as the
    background b; 1: all contrast is there, 0: none. NaN for the background itself, and where it is empty.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        found = image / image[..., background, None] - 1
        wanted = truth / truth[..., background, None] - 1
        ratio = np.where(np.abs(wanted) > 1e-12, found / wanted, np.nan)
    return np.where(np.isfinite(ratio), ratio, np.nan)


def uniform_regions(phantom: np.ndarray, least: int = 4) -> np.ndarray:
    """Numbers of uniform regions, 0 outside of them: connected pixels (over faces) of one activity > 0, without those
    that touch a pixel of another, over faces or corners; regions of fewer than `least` pixels are left out.
    """
    footprint = np.ones((3,) * phantom.ndim)
    same = ndimage.minimum_filter(phantom, footprint=footprint, mode="nearest") == \
        ndimage.maximum_filter(phantom, footprint=footprint, mode="nearest")
    # Two regions of different activity cannot touch any more: each has lost the rim at which they did.
    numbers, count = ndimage.label(same & (phantom > 0))
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)
    kept = np.flatnonzero((sizes >= least) & (np.arange(count + 1) > 0))
    new = np.zeros(count + 1, np.int64)
    new[kept] = np.arange(1, len(kept) + 1)
    return new[numbers]


def noise(image: np.ndarray, regions: np.ndarray) -> float:
    """Standard deviation over mean (the coefficient of variation) inside of uniform regions, averaged over these by
    their pixels; NaN where there is no region, or none with a mean above 0.
    """
    index = np.arange(1, regions.max() + 1)
    if len(index) == 0:
        return float("nan")
    image = np.asarray(image, np.float64)
    mean, sd = ndimage.mean(image, regions, index), ndimage.standard_deviation(image, regions, index)
    size = np.bincount(regions.ravel())[1:]
    sd = sd * np.sqrt(size / (size - 1))
    good = mean > 0
    return float(np.average(sd[good] / mean[good], weights=size[good])) if good.any() else float("nan")


def post_filter(image: np.ndarray, width: float, spacing: Sequence[float]) -> np.ndarray:
    """An image convolved with a Gaussian of a standard deviation in the unit of the spacing [S]; 0 leaves it as it is.

    Nothing lies outside of the image: activity next to the border is spread over it and lost.
    """
    image = np.asarray(image, np.float64)
    return image if width == 0 else ndimage.gaussian_filter(image, [width / step for step in spacing], mode="constant")


def _difference(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
    if image.shape != truth.shape or image.size == 0:
        raise ValueError(f"images of {image.shape} and {truth.shape}: wanted one shape and at least one pixel")
    return np.asarray(image, np.float64) - truth
