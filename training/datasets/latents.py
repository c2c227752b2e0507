"""Latents of a cohort: posterior mean and std side by side, drawn and scaled by the batch transform."""

from dataclasses import replace
from functools import partial

import numpy as np

from edm3d.formats.diff3 import open_latents
from edm3d.formats.facts import AttributeStatistics
from edm3d.formats.latents import FirstStageRecord
from edm3d.inference.batch import Sample
from edm3d.inference.conditions import StoredConditions


class LatentsDataset:
    """The items of one split of a latents.h5, ours or DIFF-3's, in memory; images [2C,*s] hold mean, then std.

    The semantic map of an item is its map, in files without maps its label map. cache=True keeps maps and condition
    images in memory once they are read.
    """

    def __init__(self, path: str, split: str = "train", cache: bool = True):
        self.file = open_latents(path)
        latents = self.file.read(split)
        if not latents.ids:
            raise ValueError(f"{path}: split {split!r} has no items")
        self.images, self.groups = np.concatenate([latents.mean, latents.std], axis=1), latents.groups
        self.grids = {"semantic": latents.semantic, "images": latents.grids.get("cond_images")}  # by part
        self.facts, self.shape, self.round_trip = self.file.facts, latents.mean.shape[1:], self.file.round_trip
        if self.facts.attribute_names and "attributes" in latents.tables:
            of = AttributeStatistics.of(latents.tables["attributes"])
            self.facts = replace(self.facts, attribute_statistics=of)
        self.conditions = StoredConditions(latents.tables.get, self.facts)
        self.cache: dict[tuple[str, int], np.ndarray] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.images[index], None,
                      self.conditions(index, self.facts.spatial_shape, partial(self.on_grid, index)))

    def on_grid(self, index: int, part: str) -> np.ndarray | None:
        """What an item has of a part of the condition that lies on the grid of its volume."""
        if self.grids[part] is None:
            return None
        if self.cache is not None and (part, index) in self.cache:
            return self.cache[part, index]
        values = self.grids[part][index]
        values = self.facts.intensity.to_network(values).astype(np.float32) if part == "images" else values
        if self.cache is not None:
            self.cache[part, index] = values
        return values

    def first_stage(self) -> FirstStageRecord | None:
        """The autoencoder that made the latents, None where the file does not hold it."""
        return self.file.first_stage()
