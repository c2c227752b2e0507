"""Samples as networks see them: drawn images in [-1, 1] by the file's intensity contract, with their label maps."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edm3d.formats.facts import AttributeStatistics, Facts, rows_of
from edm3d.formats.geometry import fit_centre
from edm3d.formats.samples import SamplesFile, rows_of_split
from edm3d.inference.batch import Sample
from edm3d.inference.conditions import StoredConditions
from edm3d.networks.layers import per_axis
from edm3d.training.datasets.volumes import NoItems
from edm3d.utils.commands import command

SPLITS = ("train", "val", "all")


class SamplesDataset:
    """The samples of a samples file, .h5 or .npz; cache=True keeps what was read in memory.

    The semantic map of a sample is the map that was asked for, else its label map. Its label map is the one that was
    drawn; where none was, and the file's data have no maps beside their label maps, the one that was asked for.

    split goes by position: val is the last tenth, train what is before it, all is everything; others have nothing
    (NoItems). size: as of VolumesDataset. ValueError for samples that are latents.
    """

    def __init__(self, path: str, split: str = "train", cache: bool = True, size: Sequence[int] | None = None):
        self.file = SamplesFile(path)
        if (shape := self.file.shape("images")) is None:
            raise ValueError(f"{path}: holds latents that nothing decoded, and no images; "
                             f"{command('data', 'decode', '--latents', str(path), '--dest', 'FILE.h5')} makes volumes "
                             "of them")
        self.rows, self.cache = positions(len(self.file), split, path), {} if cache else None
        self.size = shape[2:] if size is None else per_axis(size, len(shape) - 2, "size")
        self.shape = (shape[1], *self.size)
        self.facts = self.known()
        self.conditions = StoredConditions(self.table, self.facts)

    def known(self) -> Facts:
        """What is known of these samples, as of volumes: what the file only names, and does not hold, is left out."""
        facts, held = self.file.meta.facts, self.file.names
        affine = self.file.affine_of(self.rows[0])
        if self.size != (old := self.file.shape("images")[2:]):
            affine = fit_centre(np.empty((1, *old), bool), affine, self.size, np.zeros(1))[1]
        asked_labels = "maps" in held and not facts.map_classes
        named = facts.attribute_names if "attributes" in held else ()
        return replace(
            facts, source=str(self.file.path), content_hash=self.file.content_hash, spatial_shape=self.size,
            affine=rows_of(affine), latents=None, first_stage=None,
            label_classes=facts.label_classes if "labels" in held or asked_labels else (),
            map_classes=facts.map_classes or None if "maps" in held else None,
            class_names=facts.class_names if "classes" in held else (),
            condition_channels=facts.condition_channels or None if "cond_images" in held else None,
            attribute_names=named, attribute_units=facts.attribute_units if named else (),
            attribute_statistics=AttributeStatistics.of(self.table("attributes")) if named else None)

    def table(self, name: str) -> np.ndarray | None:
        """The rows of a small array that are in the split, None where there is none of that name."""
        array = self.file.array(name)
        return None if array is None else array[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        if self.cache is not None and index in self.cache:
            return self.cache[index]
        row = self.rows[index]
        grids = {name: self.on_grid(name, row) for name in ("images", "labels", "maps")}
        semantic = grids["labels"] if grids["maps"] is None else grids["maps"]
        label = semantic if grids["labels"] is None else grids["labels"]
        # condition images are read where they are told alone
        told = {"semantic": lambda: semantic, "images": lambda: self.on_grid("cond_images", row)}
        sample = Sample(grids["images"], label if self.facts.label_classes else None,
                        self.conditions(index, self.size, lambda name: told[name]()))
        if self.cache is not None:
            self.cache[index] = sample
        return sample

    def on_grid(self, name: str, row: int) -> np.ndarray | None:
        """An image [C,*S] in network units, or a map [*S], padded or cropped to the size; None: the file has none."""
        values = self.file.row(name, row)
        if values is None:
            return None
        is_image, intensity = name in ("images", "cond_images"), self.facts.intensity
        channels = values if is_image else values[None]
        if channels.shape[1:] != self.size:
            fill = np.full(len(channels), intensity.lo if is_image else 0)
            channels = fit_centre(channels, np.eye(4), self.size, fill)[0]
        return intensity.to_network(channels).astype(np.float32) if is_image else channels[0]


def positions(count: int, split: str, path: str) -> range:
    """The rows of a split; NoItems where there are none."""
    if found := rows_of_split(count, split):
        return found
    why = f"of {count} samples val is the last tenth, one at least" if split in SPLITS else \
        f"samples have {', '.join(SPLITS)}"
    raise NoItems(f"{path}: split {split!r} has no items, {why}; change training.dataset.split or the file")
