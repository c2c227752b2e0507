"""Label maps in a folder, as NIfTI, and a record of what they are."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from edm3d.formats.manifest import Manifest
from edm3d.formats.nifti import is_whole, read_volume
from edm3d.formats.prediction import Prediction
from edm3d.formats.samples import write_as_nifti
from edm3d.inference import folders
from edm3d.inference.parts import Arrays
from edm3d.inference.segment_sources import Row
from edm3d.utils import distributed
from edm3d.utils.checks import listed
from edm3d.utils.names import file_names

RECORD = "segment.json"
MONTAGE = "labels.png"


class LabelFolder:
    """Label maps as NIfTI in DEST/labels, called as `prepare` pairs them with the images.

    One is known by its image: new images are added, and what somebody has changed since it was written stays.
    """

    def __init__(self, dest: Path, rows: Sequence[Row], provenance: Mapping[str, Any], depends_on: Sequence[str],
                 predicts: Prediction):
        self.ids, self.names = [row.id for row in rows], file_names([row.id for row in rows])
        self.of = self._hashes(rows)
        made_of = {**provenance, "classes": list(predicts.names)}
        self.manifest = Manifest(dest, RECORD, made_of, depends_on, distributed.rank())
        self.kept: list[str] = []
        self.overwrite = False

    @staticmethod
    def _hashes(rows: Sequence[Row]) -> list[str]:
        """What each image is made of; every rank reads its share."""
        rank, ranks = distributed.rank(), distributed.world_size()
        mine = {number: rows[number].of() for number in range(rank, len(rows), ranks)}
        found = {number: of for each in distributed.gather_objects(mine) for number, of in each.items()}
        return [found[number] for number in range(len(rows))]

    def name(self, number: int) -> str:
        """The label map of an image, below the folder."""
        return f"labels/{self.names[number]}.nii.gz"

    def check(self, overwrite: bool) -> None:
        """Learn what is there, on all ranks, before anything is written; ValueError for a folder of anything else."""
        self.overwrite = overwrite
        alike = distributed.from_rank_0(lambda: self._check())
        if alike:
            self.manifest.load()

    def _check(self) -> bool:
        """Whether the folder is one of this network; ValueError for files in the way that are not ours, and for label
        maps of other images of these names.
        """
        manifest, numbers = self.manifest, range(len(self.ids))
        names = [MONTAGE, *map(self.name, numbers)]
        had = folders.check(manifest, names, self.overwrite)
        if had is None:
            return False
        manifest.load()
        files, manifest.files = manifest.files, {}
        if strange := [name for name in names if name not in files and (manifest.folder / name).exists()]:
            raise ValueError(f"--dest {manifest.folder}: segment did not make {listed(strange)} in it, and what others "
                             "made is not overwritten; choose another folder")
        others = [self.ids[n] for n in numbers if (entry := files.get(self.name(n))) and entry.of != self.of[n]]
        if others and not self.overwrite:
            raise ValueError(f"--dest {manifest.folder}: holds label maps of other images of the same names: "
                             f"{listed(others)}; choose another --dest, or --overwrite these")
        return all(had[name] == manifest.made_of[name] for name in manifest.depends_on)

    def begin(self) -> list[str]:
        """Make the record one of these images, on all ranks, after `check`; notes."""
        names = [MONTAGE, *map(self.name, range(len(self.ids)))]
        notes = distributed.from_rank_0(lambda: folders.begin(self.manifest, names, self.overwrite))
        self.manifest.load()
        written = tuple(f"{self.manifest.folder / name}: " for name in names)  # over corrected ones, as was asked
        return [*(note for note in notes if not note.startswith(written)),
                *folders.told_of_names(self.ids, self.names)]

    def is_whole(self, number: int) -> bool:
        """Whether a label map is there as it was written, or as somebody has corrected it since."""
        name = self.name(number)
        if self.manifest.is_finished(name, self.of[number]):
            return True
        entry = self.manifest.files.get(name)
        is_corrected = entry is not None and entry.of == self.of[number] and is_whole(self.manifest.folder / name)
        if is_corrected and not self.overwrite:
            self.manifest.changed.remove(name)
            self.kept.append(name)
            return True
        return False

    def changed(self) -> list[str]:
        """Notes on files that any rank found to be others than were written."""
        kept = sorted(chain(*distributed.gather_objects(self.kept)))
        return [*folders.told_of_changes(list(chain(*distributed.gather_objects(self.manifest.changed)))),
                *([f"Note: {len(kept)} label maps were changed since they were written, and stay as they are: "
                   f"{listed(kept)}"] if kept else [])]

    def write(self, number: int, arrays: Arrays) -> None:
        """Write the label map of an image."""
        with self.manifest.writing(self.name(number), self.ids[number], self.of[number]) as temporary:
            write_as_nifti(temporary, "labels", arrays["label"], "", arrays["affine"])

    def read(self, number: int) -> dict[str, np.ndarray]:
        """The label map [*S] of an image, uint8."""
        data = read_volume(self.manifest.folder / self.name(number), role="label").data[0]
        return {"label": np.asarray(data, np.uint8)}

    def has_montage(self) -> bool:
        """Whether the picture is there as it was written."""
        return self.manifest.is_finished(MONTAGE)

    @contextmanager
    def writing_montage(self) -> Iterator[Path]:
        """Give a path for the picture, which appears at the end."""
        with self.manifest.writing(MONTAGE) as temporary:
            yield temporary
