"""Pairs of PET images of one event at two doses: activity -> counts along lines -> thinned counts -> MLEM of both."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from scipy.sparse import csr_array

from edm3d.physics.mlem import Callback, check_counts, osem
from edm3d.physics.operators import check_blur
from edm3d.physics.projector import ParallelBeam, Projector, system_matrix
from edm3d.physics.threads import one_thread
from edm3d.utils.checks import check_count, check_finite, listed

_MOST_COUNTS = 1e15  # of a slice, far within the whole numbers that are drawn, of 64 bits
_LEAST_SHARE = 1e-9  # of the decays that must be counted, for the others to be worth an image


class RandomCounts(Protocol):
    """What is asked of a source of random numbers, one generator per image: samplers.noise.Noise has it."""

    def for_purpose(self, purpose: str) -> "RandomCounts": ...
    def poisson(self, rate: torch.Tensor) -> torch.Tensor: ...
    def binomial(self, count: torch.Tensor, prob: float) -> torch.Tensor: ...


@dataclass(frozen=True)
class DosePair:
    """Reconstructions of the two doses in units of activity [N,1,*S], and what they were made of.

    The counts are [N,1,angles,shifts], of stacks [N,1,D,angles,shifts]. calibration [N]: expected counts of the high
    dose per unit of activity. factors: of attenuation along the lines, None without.
    """

    high: torch.Tensor
    low: torch.Tensor
    high_counts: torch.Tensor
    low_counts: torch.Tensor
    calibration: torch.Tensor
    factors: torch.Tensor | None = None


@dataclass(frozen=True)
class Exposure:
    """What a scan at high dose expects: counts along lines, counts per unit of activity [N], attenuation factors."""

    expected: torch.Tensor
    calibration: torch.Tensor
    factors: torch.Tensor | None


class DoseSimulation:
    """Scans of activity images [N,1,S,S], or of stacks [N,1,D,S,S] slice by slice, at a high and a low dose.

    size, angles, shifts, pixel_mm: the lines, see ParallelBeam. counts: expected of a slice at high dose, of a stack in
    the mean over the slices that hold activity. dose: low dose / high dose, above 0, up to 1. iterations, subsets: of
    MLEM (subsets 1) or OSEM, of which each subset must expect a count of the low dose or more. attenuation: 1/cm,
    between the outermost active pixels of each row and column. background: share of randoms and scatter in the counts,
    even over the lines of a slice. blur: of the detector, standard deviation in bins, up to `shifts`. `matrix` may be
    set to a system_matrix(geometry) that is there already, before the first use, which else makes it.

    The high dose is Poisson, the low dose keeps each of its counts with the probability `dose`, so that it alone is
    Poisson too. ValueError naming the argument that is out of its range.
    """

    def __init__(self, size: int = 64, angles: int | None = None, shifts: int | None = None, pixel_mm: float = 3.0,
                 counts: float = 1e6, dose: float = 0.25, iterations: int = 50, subsets: int = 1,
                 attenuation: float = 0.0, background: float = 0.0, blur: float = 0.0):
        self.geometry = ParallelBeam(size, angles, shifts, pixel_mm)
        check_finite("counts", counts, above=0)
        check_finite("dose", dose, above=0)
        check_finite("background", background, least=0)
        for name, value, most in (("dose", dose, 1), ("background", background, 0.99)):
            if value > most:
                raise ValueError(f"{name}={value!r}: wanted a share of at most {most}")
        if counts > _MOST_COUNTS:
            raise ValueError(f"counts={counts!r}: wanted at most {_MOST_COUNTS:g}")
        check_count(1, {"iterations": iterations, "subsets": subsets})
        if subsets > self.geometry.angles:
            raise ValueError(f"subsets={subsets}: wanted at most {self.geometry.angles}, the angles")
        if 1 < subsets > (low := counts * dose):
            raise ValueError(f"subsets={subsets}: counts={counts:g} and dose={dose:g} leave {low:g} counts of a slice "
                             "for them; wanted one for each subset or more, best many: fewer subsets, or more counts")
        check_finite("attenuation", attenuation, least=0)
        check_finite("blur", blur, least=0)
        check_blur("blur", blur, self.geometry.shifts, "the shifts")
        self.counts, self.dose, self.iterations, self.subsets = float(counts), float(dose), iterations, subsets
        self.attenuation, self.background, self.blur = attenuation, background, blur
        self.matrix: csr_array | None = None
        self._projector: Projector | None = None

    @property
    def projector(self) -> Projector:
        """Of the geometry, normalised, with the blur and without attenuation."""
        if self._projector is None:
            if self.matrix is None:
                self.matrix = system_matrix(self.geometry)
            self._projector = Projector(self.geometry, blur=self.blur, matrix=self.matrix)
        return self._projector

    @one_thread()
    def pair(self, activity: torch.Tensor, noise: RandomCounts) -> DosePair:
        """Both doses of one event; noise: one generator per image. ValueError for images that cannot be scanned."""
        exposure = self.expose(activity)
        high, low = self._draw(exposure, noise)
        factors = exposure.factors
        images = self.reconstruct(torch.cat([high, low]),
                                  torch.cat([exposure.calibration, exposure.calibration * self.dose]),
                                  None if factors is None else torch.cat([factors, factors]))
        return DosePair(*images.chunk(2), high, low, exposure.calibration, factors)

    @one_thread()
    def low(self, activity: torch.Tensor, noise: RandomCounts) -> torch.Tensor:
        """The low dose alone, the same images as those of `pair` for the same noise."""
        exposure = self.expose(activity)
        counts = self._draw(exposure, noise)[1]
        return self.reconstruct(counts, exposure.calibration * self.dose, exposure.factors)

    @one_thread()
    def expose(self, activity: torch.Tensor) -> Exposure:
        """What the high dose expects of activity images; empty slices of a stack expect nothing."""
        check_activity(activity)
        factors, projector = None, self.projector
        if self.attenuation > 0:
            factors = projector.attenuation_factors(self.attenuation * support(activity))
            projector = projector.with_factors(factors)
        lines = projector.A(activity)
        slices = lines.double().sum((-2, -1), keepdim=True)  # so exact that the size of the batch is not seen in it
        seen = slices.flatten(1).sum(1) > _LEAST_SHARE * activity.double().flatten(1).sum(1)
        if not bool(seen.all()):
            raise ValueError(f"images {listed((~seen).nonzero().ravel().tolist())} of the batch: nothing of their "
                             f"activity is counted; lower attenuation={self.attenuation} or pixel_mm")
        full = (slices > 0).flatten(1).sum(1)
        calibration = self.counts * (1 - self.background) * full / slices.flatten(1).sum(1)
        scale = calibration.reshape(-1, *[1] * (lines.ndim - 1))
        even = slices * (self.background / (1 - self.background) / math.prod(self.geometry.sinogram_shape))
        return Exposure(((lines + even) * scale).to(activity), calibration.to(activity), factors)

    @one_thread()
    def reconstruct(self, counts: torch.Tensor, calibration: torch.Tensor, factors: torch.Tensor | None = None,
                    iterations: int | None = None, callback: Callback | None = None) -> torch.Tensor:
        """Activity images of counts [N,1,(D,)angles,shifts]; calibration [N]: expected counts per unit of activity.

        The background is known: its share of the counts that were measured. callback(iteration from 1, images) after
        each of `iterations` (those of the simulation where None). Slices without counts are 0.
        """
        check_counts(counts)
        background = None
        if self.background > 0:
            background = (counts.double().mean((-2, -1), keepdim=True) * self.background).to(counts)
        per_unit = calibration.reshape(-1, *[1] * (counts.ndim - 1)).to(counts)
        told = callback and (lambda iteration, images: callback(iteration, images / per_unit))
        iterations = self.iterations if iterations is None else iterations
        images = osem(self.projector.with_factors(factors), counts, iterations, self.subsets, background,
                      callback=told)
        return images / per_unit

    def _draw(self, exposure: Exposure, noise: RandomCounts) -> tuple[torch.Tensor, torch.Tensor]:
        """Counts of the high dose, and those of them that the low dose keeps."""
        high = noise.for_purpose("dose_high").poisson(exposure.expected)
        return high, noise.for_purpose("dose_low").binomial(high, self.dose)


def check_activity(activity: torch.Tensor) -> None:
    """ValueError naming the images of a batch with values that are no activity, or with none at all."""
    if not activity.is_floating_point() or activity.ndim not in (4, 5) or activity.shape[1] != 1:
        raise ValueError(f"activity: {activity.dtype} {list(activity.shape)}, wanted floating numbers [N,1,S,S] or "
                         "[N,1,D,S,S]")
    for wrong, what in ((~activity.isfinite(), "values that are not finite"), (activity < 0, "values below 0")):
        if bool((found := wrong.flatten(1).any(1)).any()):
            raise ValueError(f"activity: images {listed(found.nonzero().ravel().tolist())} of the batch have {what}; "
                             "wanted finite numbers of 0 or more")
    if bool((empty := (activity == 0).flatten(1).all(1)).any()):
        raise ValueError(f"activity: images {listed(empty.nonzero().ravel().tolist())} of the batch hold none, and "
                         "cannot be scaled to counts; leave them out")


def support(activity: torch.Tensor) -> torch.Tensor:
    """1 between the outermost active pixels of the row and of the column, else 0: cold regions inside, but no air."""
    active = (activity > 0).to(activity)
    spans = [active.cummax(axis).values * active.flip(axis).cummax(axis).values.flip(axis) for axis in (-2, -1)]
    return spans[0] * spans[1]
