"""What a low dose comes to without a network, at its best: a post-filter, and MLEM that stops early."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from edm3d.inference.pet_scans import DrawnScans
from edm3d.metrics.pet import post_filter, relative_l2
from edm3d.physics.dose import DosePair, DoseSimulation
from edm3d.samplers.noise import ImageGenerators
from edm3d.utils.config import build_from_file
from edm3d.utils.log import progress
from edm3d.utils.trusted import SIMULATIONS

WIDTHS = np.round(np.arange(0, 3.01, 0.05), 2)  # of a post-filter, standard deviation in pixels of the shortest side
AT_ONCE = 16  # scans that are simulated at a time
MOST_ITERATIONS, MOST_LINES = 1000, 64  # that are tried; lines: for each pixel
SAME = 1e-3  # relative L2 distance up to which a low dose that is simulated again is the same


class Choice(NamedTuple):
    """A setting tried at some values: the mean relative L2 error [V] at each, and which one is best."""

    values: np.ndarray
    errors: np.ndarray

    @property
    def place(self) -> int:
        """Number of the best value."""
        return int(self.errors.argmin())

    @property
    def best(self) -> float:
        """The best value."""
        return float(self.values[self.place])


def best_width(scans: DrawnScans, against: str) -> Choice:
    """The width of a Gaussian post-filter, in the unit of the pixel size, that is best on these very scans."""
    widths, spacing = WIDTHS * min(scans.spacing), scans.spacing
    errors = np.zeros(len(widths))
    for index in progress(range(len(scans)), desc="post-filter", unit="scan"):
        low, truth = scans.image(index, "cond_images"), scans.image(index, against)
        errors += [relative_l2(post_filter(low, width, spacing), truth) for width in widths]
    return Choice(widths, errors / len(scans))


class Again:
    """Low doses of scans once more, from phantoms and seeds: the same counts, so that MLEM can stop elsewhere.

    ValueError saying why where that cannot be.
    """

    def __init__(self, scans: DrawnScans, simulation: DoseSimulation):
        if "phantom" not in scans.references:
            raise ValueError("the samples hold no phantoms to be simulated of")
        geometry = simulation.geometry
        if (size := scans.shape[-2:]) != geometry.image_shape:
            raise ValueError(f"the samples are {'x'.join(map(str, size))}, and say that their low doses were simulated "
                             f"of {geometry.size}x{geometry.size}")
        lines = geometry.matrix_shape[0]
        if simulation.iterations > MOST_ITERATIONS or lines > MOST_LINES * geometry.size ** 2:
            raise ValueError(f"the samples say {simulation.iterations} iterations of {lines} lines, which is not tried")
        self.scans, self.simulation = scans, simulation
        self.counts: list[tuple[torch.Tensor, ...]] = []  # of every scan, with what its reconstruction takes

    def best_iteration(self) -> Choice:
        """The iteration at which MLEM is best on these very scans; ValueError where other low doses come out."""
        errors = np.zeros(self.simulation.iterations)
        for numbers, pair in self._pairs():
            truths = [self.scans.image(index, "phantom") for index in numbers]
            self._check_same(numbers, pair)

            def add(iteration: int, images: torch.Tensor, truths: Sequence[np.ndarray] = truths) -> None:
                errors[iteration - 1] += sum(relative_l2(image[0].double().numpy(), truth)
                                             for image, truth in zip(images, truths, strict=True))

            scale = pair.calibration * self.simulation.dose
            self.simulation.reconstruct(pair.low_counts, scale, pair.factors, callback=add)
            self.counts += [(pair.low_counts[i:i + 1], scale[i:i + 1],
                             None if pair.factors is None else pair.factors[i:i + 1]) for i in range(len(numbers))]
        return Choice(np.arange(1, len(errors) + 1), errors / len(self.scans))

    def image(self, index: int, iteration: int) -> np.ndarray:
        """The low dose [*S] of a scan after so many iterations, in units of activity."""
        return self.simulation.reconstruct(*self.counts[index], iterations=iteration)[0, 0].double().numpy()

    def _pairs(self) -> Iterator[tuple[list[int], DosePair]]:
        """Scans, by number, and both doses of them."""
        with progress(total=len(self.scans), desc="MLEM again", unit="scan") as bar:
            for start in range(0, len(self.scans), AT_ONCE):
                numbers = list(range(start, min(start + AT_ONCE, len(self.scans))))
                activity = np.stack([self.scans.image(index, "phantom")[None] for index in numbers])
                seeds = [self.scans.all[index].seed for index in numbers]
                yield numbers, self.simulation.pair(torch.from_numpy(activity).float(), scan_noise(seeds))
                bar.update(len(numbers))

    def _check_same(self, numbers: Sequence[int], pair: DosePair) -> None:
        for index, image in zip(numbers, pair.low, strict=True):
            off = relative_l2(image[0].double().numpy(), self.scans.image(index, "cond_images"))
            if not off <= SAME:
                raise ValueError(f"simulated again, the low dose of {self.scans.names[index]} is another one than in "
                                 f"the file (relative L2 distance {off:.3g})")


def scan_noise(seeds: Sequence[int]) -> ImageGenerators:
    """By what generation draws the counts of scans, given their seeds."""
    return ImageGenerators(seeds)


def simulation_of(scans: DrawnScans, trust: bool) -> DoseSimulation:
    """The simulation of the low doses, as the samples have it; ValueError where they have none, or none of ours."""
    if scans.simulation is None:
        raise ValueError("the samples do not say how their low doses were simulated")
    return build_from_file(scans.simulation, f"{scans.files[0].path}: sampling.scan.simulation", trust, SIMULATIONS)
