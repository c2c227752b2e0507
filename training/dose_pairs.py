"""Pairs of a low and a high dose, simulated of activity phantoms while training."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from edm3d.formats.dose import DRAWN, HIGH, HIGH_DOSE, LOW_DOSE, PAIR, DoseRecord
from edm3d.formats.facts import Facts
from edm3d.formats.intensity import Intensity
from edm3d.inference.batch import Batch, Sample, collate
from edm3d.networks.conditioning import Condition
from edm3d.physics.activity_scale import ActivityScale
from edm3d.physics.dose import DoseSimulation
from edm3d.samplers.noise import ImageGenerators
from edm3d.utils import distributed
from edm3d.utils.checks import check_choice, check_count

FEWEST = 30.0  # counts that a low dose must expect: exp(-30) = 1e-13 of the scans, none of a training, have none at all


class DosePairs:
    """The image of a high dose, told that of a low dose of the same scan; or both, as two channels.

    Both are divided by one scale, which follows from the low dose alone. drawn: high, or pair. num: items of the
    training data on which the mean scale is measured, and the share of what lies beyond it.
    """

    def __init__(self, simulation: DoseSimulation, scale: ActivityScale, drawn: str = HIGH, num: int = 64):
        check_choice("training.batch_transform.drawn", drawn, DRAWN)
        check_count(1, {"training.batch_transform.num": num})
        self.simulation, self.scale, self.drawn, self.num = simulation, scale, drawn, num

    def see(self, facts: Facts, shape: Sequence[int]) -> None:
        """Take the intensities of phantoms [1,*S], and from then on have the `shape` that a network sees.

        ValueError for data of several channels, of a size that is not the simulation's, and for a dose of so few counts
        that scans would be empty now and then.
        """
        if shape[0] != 1:
            raise ValueError(f"training.batch_transform: {facts.source} has {shape[0]} channels, a dose is simulated "
                             "of one, the activity")
        if (got := tuple(shape[-2:])) != (self.simulation.geometry.size,) * 2:
            raise ValueError(f"training.batch_transform.simulation.size={self.simulation.geometry.size}: slices of "
                             f"{facts.source} have {list(got)} pixels; wanted squares of that size")
        check_counted(self.simulation)
        self.intensity: Intensity = facts.intensity
        self.shape = (1 if self.drawn == HIGH else 2, *shape[1:])

    def open(self, dataset: Sequence[Sample], held: Sequence[Sample], split: str, device: torch.device) -> None:
        """Measure the mean scale of pairs of the training data, and the share of pixels that lie beyond theirs."""
        self.typical, self.clipped = distributed.from_rank_0(lambda: self.measure(dataset))

    def measure(self, dataset: Sequence[Sample]) -> tuple[float, float]:
        """The same, by items from all over the data."""
        scales, beyond = [], []
        for i in torch.linspace(0, len(dataset) - 1, min(self.num, len(dataset))).long().tolist():
            activity = self.activity(collate([dataset[i]]).images)
            high, _, scale = self.pair(activity, ImageGenerators([i]))
            scales.append(float(scale))
            beyond.append(float((high > 1).float().mean()))
        return sum(scales) / len(scales), sum(beyond) / len(beyond)

    def record(self, node: dict) -> DoseRecord:
        """What snapshots say; node: of this transform."""
        return DoseRecord(node["simulation"], node["scale"], self.intensity.unit, self.drawn, self.typical,
                          self.clipped)

    def told_facts(self, facts: Facts) -> Facts:
        """What is known of the data, as the network is told of them."""
        if self.drawn == PAIR:
            return replace(facts, channels=(HIGH_DOSE, LOW_DOSE))
        return replace(facts, channels=(HIGH_DOSE,), condition_channels=(LOW_DOSE,))

    def activity(self, images: torch.Tensor) -> torch.Tensor:
        """Activities [N,1,*S] of images as data sets and augmentation give them; interpolation leaves none below 0."""
        return self.intensity.from_network(images).clamp(min=0)

    def pair(self, activity: torch.Tensor, generators: ImageGenerators) -> tuple[torch.Tensor, ...]:
        """High and low dose [N,1,*S] as networks see them, and the scale [N] of each."""
        pair = self.simulation.pair(activity, generators)
        scale = self.scale(pair.low)
        return self.scale.to_network(pair.high, scale), self.scale.to_network(pair.low, scale), scale

    @torch.no_grad()
    def __call__(self, batch: Batch, generators: ImageGenerators) -> tuple[torch.Tensor, Condition]:
        if batch.images.is_meta:  # a check of shapes
            high = low = batch.images
        else:
            high, low, _ = self.pair(self.activity(batch.images), generators)
        if self.drawn == PAIR:
            return torch.cat([high, low], dim=1), batch.condition
        return high, batch.condition.replace(images=low)


def check_counted(simulation: DoseSimulation) -> None:
    """ValueError for a low dose that may well come without any count, and then has no image and no scale."""
    if (low := simulation.counts * simulation.dose) < FEWEST:
        raise ValueError(f"training.batch_transform.simulation.counts={simulation.counts:g} and "
                         f"dose={simulation.dose:g} leave {low:.3g} counts of a slice, so that a share of "
                         f"{math.exp(-low):.2g} of the scans has none at all; wanted {FEWEST:g} or more")
