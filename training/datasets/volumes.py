"""Volumes as networks see them: images in [-1, 1] by the file's intensity contract, with their label maps."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from edm3d.formats.facts import rows_of, volume_facts
from edm3d.formats.volumes import ROLES, Item, VolumesFile
from edm3d.inference.batch import Sample
from edm3d.inference.conditions import StoredConditions
from edm3d.inference.encode import fitted
from edm3d.networks.layers import per_axis
from edm3d.utils.checks import listed


class NoItems(ValueError):
    """A file has nothing in a split."""


class VolumesDataset:
    """The items of one split of a volumes.h5; cache=True keeps what was read in memory.

    The semantic map of an item is its map, in files without maps its label map.

    size: voxels per axis of the array, to which volumes are padded or cropped centrally; None: as they are.
    """

    def __init__(self, path: str, split: str = "train", cache: bool = True, size: Sequence[int] | None = None):
        self.file, self.split = VolumesFile(path), split
        length = self.file.length(split) if split in self.file.splits else 0
        if not length:
            raise NoItems(f"{path}: split {split!r} has no items, it has {listed(self.file.splits)}; "
                             "change training.dataset.split or the file")
        self.length, self.cache, self.groups = length, {} if cache else None, self.file.groups(split)
        self.facts = volume_facts(self.file, split)
        self.size = self.facts.spatial_shape if size is None else per_axis(size, self.file.meta.spatial_dims, "size")
        if self.size != self.facts.spatial_shape:
            affine = rows_of(self.item(0).affine)
            self.facts = replace(self.facts, spatial_shape=self.size, affine=affine)
        self.targets, self.shown = (self.file.meta.numbers(role) for role in ROLES)
        self.shape = (len(self.targets), *self.facts.spatial_shape)
        self.conditions = StoredConditions(partial(self.file.table, split), self.facts)

    def __len__(self) -> int:
        return self.length

    def item(self, index: int) -> Item:
        """An item as the file has it, but for the size."""
        return fitted(self.file, self.split, index, self.size)

    def __getitem__(self, index: int) -> Sample:
        if self.cache is not None and index in self.cache:
            return self.cache[index]
        item = self.item(index)
        image = self.file.meta.intensity.to_network(item.image).astype(np.float32)
        on_grid = {"semantic": item.semantic, "images": image[self.shown]}
        sample = Sample(image[self.targets], item.label, self.conditions(index, self.size, on_grid.get))
        if self.cache is not None:
            self.cache[index] = sample
        return sample
