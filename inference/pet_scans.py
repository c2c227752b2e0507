"""Scans of samples files of PET networks: every one with the draws of it, read one at a time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edm3d.formats.facts import Facts
from edm3d.formats.nifti import spacing_of
from edm3d.formats.sample_meta import SampleMeta
from edm3d.formats.samples import SamplesFile
from edm3d.utils.checks import listed
from edm3d.utils.names import one_line

KEY = "--samples"
REFERENCES = {"phantom": "phantom", "high": "high_images"}  # what images are held against, and where that is in files
MADE = "draw them by generate.py -cn=pet_phantoms"


class ScanImages(NamedTuple):
    """Of a scan, [*S] float64 in units of activity: phantom and high dose where they are known, and draws [K,*S]."""

    phantom: np.ndarray | None
    high: np.ndarray | None
    low: np.ndarray
    draws: np.ndarray

    def reference(self, name: str) -> np.ndarray | None:
        """One of REFERENCES."""
        return self.phantom if name == "phantom" else self.high


class DrawnScan(NamedTuple):
    """A scan: number of its file, rows of its draws in that, its seed, number and name of its slice or stack."""

    file: int
    rows: list[int]
    seed: int
    slice: int
    name: str


class DrawnScans:
    """All scans of some samples files that one network drew in one way.

    ValueError for files that say no low dose, or nothing that draws could be held against, and for those that cannot
    be taken together: of other networks, phantoms or settings, with a scan twice, or with unlike numbers of draws.
    """

    def __init__(self, paths: Sequence[Path]):
        self.files = [SamplesFile(path) for path in paths]
        for file in self.files:
            check_arrays(file)
        check_alike(self.files)
        self.all = [scan for number, file in enumerate(self.files) for scan in scans_of(number, file)]
        self._check_scans()
        self.names = [scan.name for scan in self.all]
        self.draws = len(self.all[0].rows)
        self.references = [name for name, array in REFERENCES.items() if array in self.files[0].names]

    def __len__(self) -> int:
        return len(self.all)

    @property
    def meta(self) -> SampleMeta:
        """What all samples share."""
        return self.files[0].meta

    @property
    def facts(self) -> Facts:
        """What is known of the data."""
        return self.meta.facts

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image [*S]."""
        return self.files[0].shape("images")[2:]

    @property
    def spacing(self) -> tuple[float, ...]:
        """Pixel size per axis: in mm where files, or of slices the simulation, say it, else 1."""
        affine, dims = self.files[0].affine, len(self.shape)
        simulated = (self.simulation or {}).get("pixel_mm")
        known = isinstance(simulated, (int, float)) and 0 < simulated < 1e4
        if dims == 2 and known and np.array_equal(affine, np.eye(4)):
            return (float(simulated),) * 2
        return tuple(float(step) for step in spacing_of(affine)[:dims])

    @property
    def in_mm(self) -> bool:
        """Whether that is mm."""
        return self.spacing != (1.0,) * len(self.shape)

    @property
    def simulation(self) -> dict[str, Any] | None:
        """The node of physics.dose.DoseSimulation that the low doses were made by, None where the files have none."""
        scan = self.meta.sampling.get("scan")
        found = scan.get("simulation") if isinstance(scan, Mapping) else None
        return dict(found) if isinstance(found, Mapping) else None

    def read(self, index: int) -> ScanImages:
        """A scan; ValueError for one that is damaged."""
        scan = self.all[index]
        file, first = self.files[scan.file], scan.rows[0]
        phantom, high, low = (self._image(file, name, first) for name in ("phantom", "high_images", "cond_images"))
        return ScanImages(phantom, high, low, np.stack([self._image(file, "images", row) for row in scan.rows]))

    def image(self, index: int, name: str) -> np.ndarray:
        """One image [*S] of a scan, by the name of its array."""
        scan = self.all[index]
        return self._image(self.files[scan.file], name, scan.rows[0])

    def _image(self, file: SamplesFile, name: str, row: int) -> np.ndarray | None:
        found = file.row(name, row)
        return None if found is None else found[0].astype(np.float64)

    def _check_scans(self) -> None:
        """ValueError for scans that are there twice, and of unlike numbers of draws."""
        seen: dict[int, DrawnScan] = {}
        for scan in self.all:
            if (first := seen.setdefault(scan.seed, scan)) is not scan:
                raise ValueError(f"{KEY}: scan {first.name} is in {self.files[first.file].path} and in "
                                 f"{self.files[scan.file].path}; name files of other seeds")
        counts = {len(scan.rows): scan for scan in reversed(self.all)}
        if len(counts) > 1:
            said = ", ".join(f"{scan.name} of {self.files[scan.file].path} {count}" for count, scan in counts.items())
            raise ValueError(f"{KEY}: scans have unlike numbers of draws: {said}; wanted as many of each (generate the "
                             "seeds that are missing)")


def check_arrays(file: SamplesFile) -> None:
    """ValueError for a samples file that lacks what an enhancement is held against, or has several channels."""
    path, names = file.path, file.names
    if missing := [name for name in ("images", "cond_images", "slice_ids", "draws") if name not in names]:
        raise ValueError(f"{path}: holds no {listed(missing)}; wanted samples of a network that is told a low dose, "
                         f"{MADE}")
    if sweep := file.meta.sweep:
        raise ValueError(f"{path}: samples of a sweep of {one_line(sweep.name)}, which are told other things, not the "
                         f"scan alone; wanted those without sampling.sweep, {MADE}")
    if not {*REFERENCES.values()} & {*names}:
        raise ValueError(f"{path}: holds neither phantom nor high_images: draws of a scan of your own have nothing to "
                         f"be held against; wanted samples of phantoms, {MADE}")
    for name in ("images", "cond_images", *REFERENCES.values()):
        if name in names and file.shape(name)[1] != 1:
            raise ValueError(f"{path}: {name} are {list(file.shape(name))}, wanted one channel, the activity")
    if len(file.shape("images")) not in (4, 5):
        raise ValueError(f"{path}: images are {list(file.shape('images'))}, wanted slices [N,1,H,W] or stacks "
                         "[N,1,D,H,W]")


def check_alike(files: Sequence[SamplesFile]) -> None:
    """ValueError for files that are not of one network, one set of phantoms, one set of settings and one size."""
    first = files[0]
    for file in files[1:]:
        facts, other = first.meta.facts, file.meta.facts
        unlike = {"snapshot": (first.meta.snapshot_hash[:16], file.meta.snapshot_hash[:16]),
                  "data": (f"{facts.source} {facts.content_hash[:16]}", f"{other.source} {other.content_hash[:16]}"),
                  "arrays": (listed(first.names), listed(file.names)),
                  "size": (list(first.shape("images")[1:]), list(file.shape("images")[1:])),
                  "settings": (first.meta.made_of["sampling"], file.meta.made_of["sampling"])}
        for what, (one, two) in unlike.items():
            if one != two:
                if what == "settings":
                    keys = sorted(key for key in {*one, *two} if one.get(key) != two.get(key))
                    one, two = ({key: found.get(key) for key in keys} for found in (one, two))
                raise ValueError(f"{KEY}: {first.path} and {file.path} are of unlike {what}: {one_line(str(one))} and "
                                 f"{one_line(str(two))}; evaluate them one by one")


def scans_of(number: int, file: SamplesFile) -> list[DrawnScan]:
    """The scans of a file, by its number: rows whose sample number less that of their draw is the same."""
    draws, slices = file.array("draws"), file.array("slice_ids")
    keys = file.seeds - draws
    if (draws < 0).any() or (keys < 0).any():
        raise ValueError(f"{file.path}: draws are {draws.min()} to {draws.max()}, wanted 0 up to the sample's number")
    found = []
    for key in dict.fromkeys(keys.tolist()):
        rows = np.flatnonzero(keys == key).tolist()
        if len(numbers := {*slices[rows].tolist()}) > 1:
            raise ValueError(f"{file.path}: the draws of sample {key} are of slices {listed(sorted(numbers))}, wanted "
                             "one slice")
        seed, slice_ = file.meta.noise_of(key), int(slices[rows[0]])
        name = one_line(file.meta.id_of(key) or f"slice{slice_:03d}")
        found.append(DrawnScan(number, rows, seed, slice_, f"{name} seed{seed:06d}"))
    return found
