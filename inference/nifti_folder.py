"""Decoded volumes in a folder, as NIfTI."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from edm3d.formats.facts import Facts
from edm3d.formats.manifest import Manifest
from edm3d.formats.nifti import read_volume
from edm3d.formats.samples import write_as_nifti
from edm3d.inference import folders
from edm3d.inference.latent_source import STORED, LatentRow, affine_of
from edm3d.inference.parts import Arrays
from edm3d.utils import distributed
from edm3d.utils.names import file_names

RECORD = "decode.json"
MONTAGE = "volumes.png"
FOLDERS = {"image": "images", "label": "labels", "map": "maps", "cond": "conditions"}  # by what they hold


class NiftiFolder:
    """Decoded volumes as NIfTI in DEST/images and DEST/labels, as `prepare` reads it, and a record of what they are.

    carried: what else each of them has, in a folder of its own (see FOLDERS).
    """

    def __init__(self, dest: Path, rows: Sequence[LatentRow], facts: Facts, shape: tuple[int, ...],
                 provenance: Mapping[str, Any], depends_on: Sequence[str], carried: Sequence[str] = ()):
        self.rows, self.facts, self.shape = rows, facts, shape
        self.kinds = ("image", *(("label",) if facts.label_classes else ()), *carried)
        self.names = file_names([row.id for row in rows])
        self.manifest = Manifest(dest, RECORD, provenance, depends_on, distributed.rank())

    def name(self, number: int, kind: str) -> str:
        """The image or label map of a row, below the folder."""
        return f"{FOLDERS[kind]}/{self.names[number]}.nii.gz"

    def begin(self, overwrite: bool) -> list[str]:
        """Make the record one of these volumes, on all ranks; notes. ValueError for a folder of anything else."""
        names = [MONTAGE, *(self.name(number, kind) for number in range(len(self.rows)) for kind in self.kinds)]
        notes = distributed.from_rank_0(lambda: folders.begin(self.manifest, names, overwrite))
        self.manifest.load()
        return [*notes, *folders.told_of_names([row.id for row in self.rows], self.names)]

    def is_whole(self, number: int) -> bool:
        """Whether image and label map of a row are there as they were written."""
        return all(self.manifest.is_finished(self.name(number, kind)) for kind in self.kinds)

    def changed(self) -> list[str]:
        """Notes on files that any rank found to be others than were written."""
        return folders.told_of_changes(list(chain(*distributed.gather_objects(self.manifest.changed))))

    def write(self, number: int, arrays: Arrays) -> None:
        """Write image and label map of a row."""
        row = self.rows[number]
        for kind, array in arrays.items():
            with self.manifest.writing(self.name(number, kind), row.id) as temporary:
                write_as_nifti(temporary, STORED[kind], array, self.facts.intensity.unit, affine_of(row, self.facts))

    def read(self, number: int) -> dict[str, np.ndarray]:
        """Image [C,*S] and label map [*S] of a row, and what else there is."""
        channels = {"image": (-1,), "cond": (-1,)}
        return {kind: read_volume(self.manifest.folder / self.name(number, kind)).data.reshape(
                    *channels.get(kind, ()), *self.shape)
                for kind in self.kinds}

    def has_montage(self) -> bool:
        """Whether the picture of the volumes is there as it was written."""
        return self.manifest.is_finished(MONTAGE)

    @contextmanager
    def writing_montage(self) -> Iterator[Path]:
        """Give a path for the picture of the volumes, which appears at the end."""
        with self.manifest.writing(MONTAGE) as temporary:
            yield temporary
