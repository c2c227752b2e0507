"""Latents of a cohort: posterior mean and std side by side, drawn and scaled by the batch transform."""

import numpy as np

from edm3d.formats.diff3 import open_latents
from edm3d.formats.latents import FirstStageRecord
from edm3d.inference.batch import Sample
from edm3d.inference.conditions import StoredConditions


class LatentsDataset:
    """The items of one split of a latents.h5, ours or DIFF-3's, in memory; images [2C,*s] hold mean, then std."""

    def __init__(self, path: str, split: str = "train"):
        self.file = open_latents(path)
        latents = self.file.read(split)
        if not latents.ids:
            raise ValueError(f"{path}: split {split!r} has no items")
        self.images = np.concatenate([latents.mean, latents.std], axis=1)
        self.facts, self.shape, self.round_trip = self.file.facts, latents.mean.shape[1:], self.file.round_trip
        self.conditions = StoredConditions(latents.tables.get, self.facts)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.images[index], None, self.conditions[index])

    def first_stage(self) -> FirstStageRecord | None:
        """The autoencoder that made the latents, None where the file does not hold it."""
        return self.file.first_stage()
