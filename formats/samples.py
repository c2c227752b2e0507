"""Samples: files of generated volumes (.h5 or .npz) whose rows are in seed order.

Contents: seeds [N]; latents [N,C,*s] and/or images [N,C,*S] float32; labels [N,*S] uint8; trajectory [N,steps,C,*s]
float32, the denoised image of every step in the network's units, channels of label maps that it draws included; affine
[4,4], and affines [N,4,4] where they differ; what was asked for: classes [N] int64 (-1 = none), attributes [N,A]
float32 (NaN = none), maps [N,*S] uint8 and cond_images [N,C,*S] float32 in the units of the images; of scans (PET)
scales [N], by which the network saw each, slice_ids [N], draws [N] (0 is the first of its seed), and of simulated ones
doses [N], high_images and phantom [N,1,*S]; of a quality check attempts [N], the one that each is of (0 is the first),
and flagged [N] uint8, 1 for those that no attempt brought into the ranges; and as metadata `data` (names, intensity
contract, geometry), `snapshot` (path), `snapshot_hash` and `sampling` (settings).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from edm3d.formats import h5
from edm3d.formats.items import affine_problem, check_tables
from edm3d.formats.nifti import write_nifti
from edm3d.formats.npz import HASH, ArrayRows, NpzFile, write_npz
from edm3d.formats.sample_layout import KINDS, check_layout
from edm3d.formats.sample_meta import META, SampleMeta
from edm3d.formats.sample_settings import PairedClasses, SweptAttribute
from edm3d.utils.log import progress
from edm3d.utils.plain import parse_json, shown

FORMATS = ("h5", "npz")
ARRAYS = {name: kind.dtype for name, kind in KINDS.items()}
NIFTI = {"images": "_image.nii.gz", "labels": "_label.nii.gz", "maps": "_map.nii.gz", "cond_images": "_cond.nii.gz",
         "high_images": "_high.nii.gz", "phantom": "_phantom.nii.gz"}
OF_SCANS = ("scales", "doses", "slice_ids", "draws")
OF_QUALITY = ("attempts", "flagged")
TABLES = ("seeds", "affine", "affines", "classes", "attributes", *OF_SCANS, *OF_QUALITY)  # small: kept in memory
HELD_OUT = 0.1  # of samples that are trained on, the last ones


def rows_of_split(count: int, split: str) -> range:
    """Which of so many samples are of a split, none for one that samples do not have: val is the last tenth, one at
    least, train what is before it, all is everything.
    """
    train = count - max(1, round(count * HELD_OUT))
    return {"train": range(train), "val": range(train, count), "all": range(count)}.get(split, range(0))


class SamplesFile:
    """A samples file for reading, .h5 or .npz.

    names: of the arrays of ARRAYS that it holds; rows: by seed. Seeds, affine and classes are read when it is opened,
    all else row by row: from .h5 held against hashes when it is read, from .npz, whose content hash is checked when it
    is opened, as it is.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file = (_NpzArrays if self.path.suffix == ".npz" else _H5Arrays)(self.path)
        self.meta = SampleMeta.from_plain(self._file.meta, self.path)
        check_layout(self.path, self._file.layout, self.meta.facts, self.meta.stage and self.meta.stage.scaling)
        self.names = tuple(name for name in ARRAYS if name in self._file.layout)
        self._tables = {name: self._file.array(name) for name in TABLES if name in self._file.layout}
        self.seeds, self.affine = self._tables["seeds"], self._tables["affine"]
        self._check_tables()
        self.rows = {int(s): i for i, s in enumerate(self.seeds)}

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def content_hash(self) -> str:
        """The hash of all that is in the file."""
        return self._file.content_hash

    def row(self, name: str, index: int) -> np.ndarray | None:
        """A row of an array: an image [C,*S] float32, in the units of the intensity contract, a label map [*S] uint8,
        or what else ARRAYS names, such as whitened latents [C,*s] float32.

        None where there is none of that name; ValueError when it is damaged."""
        index = range(len(self))[index]
        if name in self._tables:
            return self._tables[name][index]
        return self._checked(name, self._file.row(name, index), index) if name in self.names else None

    def array(self, name: str) -> np.ndarray | None:
        """A whole array in memory, None where there is none of that name; ValueError when it is damaged."""
        if name in self._tables:
            return self._tables[name].copy()
        array = self._file.array(name) if name in self.names else None
        for index, row in enumerate(() if array is None else array):
            self._checked(name, row, index)
        return array

    def affine_of(self, index: int) -> np.ndarray:
        """Voxel index -> mm [4,4] of a row: its own where it has one, else that of all."""
        own = self.row("affines", index)
        return self.affine if own is None else own

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of an array [N,...], None where there is none of that name."""
        return self._file.layout[name][1] if name in self.names else None

    def _check_tables(self) -> None:
        """ValueError for seeds that do not rise, an affine that is none, classes that there are not, and the like."""
        if self.seeds[0] < 0 or (np.diff(self.seeds) <= 0).any():
            raise ValueError(f"{self.path}: seeds do not rise from row to row, from 0 or more")
        if problem := affine_problem(self.affine):
            raise ValueError(f"{self.path}: affine {problem}")
        tables = {name: self._tables[name] for name in ("affines", "classes", "attributes") if name in self._tables}
        check_tables(tables, [f"seed {seed}" for seed in self.seeds], str(self.path),
                     classes=self.meta.facts.class_names)
        for name in ("scales", "doses"):
            if name in self._tables and not (np.isfinite(odd := self._tables[name]) & (odd > 0)).all():
                raise ValueError(f"{self.path}: {name} are not all finite and more than 0")
        if "draws" in self._tables and (self._tables["draws"] != self.seeds % self.meta.draws).any():
            raise ValueError(f"{self.path}: draws are not those of sampling.samples_per_condition={self.meta.draws}")
        if sweep := self.meta.sweep:
            self._check_swept(sweep)
        if pairs := self.meta.pairs:
            self._check_paired(pairs)
        self._check_attempts()

    def _check_attempts(self) -> None:
        """ValueError unless attempts and flags are there just where a quality check is recorded, and can be of it."""
        quality, found = self.meta.quality, [name for name in OF_QUALITY if name in self._tables]
        if len(found) != (len(OF_QUALITY) if quality else 0):
            raise ValueError(f"{self.path}: holds {' and '.join(found) or 'no attempts'}, and sampling.quality is "
                             f"{'there' if quality else 'missing'}; wanted attempts, flagged and sampling.quality, or "
                             "none of them")
        for name, most in (("attempts", quality.attempts - 1), ("flagged", 1)) if quality else ():
            if self._tables[name].min() < 0 or self._tables[name].max() > most:
                raise ValueError(f"{self.path}: {name} are {self._tables[name].min()} to {self._tables[name].max()}, "
                                 f"wanted 0 to {most}")

    def _check_swept(self, sweep: SweptAttribute) -> None:
        """ValueError unless all rows of a sweep hold its values."""
        if "attributes" not in self._tables:
            raise ValueError(f"{self.path}: sampling.sweep is of {shown(sweep.name)}, and there are no attributes")
        wanted = np.float32([sweep.values[number % len(sweep.values)] for number in self.seeds])
        found = self._tables["attributes"][:, sweep.column]
        if len(odd := np.flatnonzero(found != wanted)):
            raise ValueError(f"{self.path}: attributes: {shown(sweep.name)} of sample {self.seeds[odd[0]]} is "
                             f"{found[odd[0]]:g}, wanted {wanted[odd[0]]:g} by sampling.sweep.values")

    def _check_paired(self, pairs: PairedClasses) -> None:
        """ValueError unless all rows of pairs are of their classes, and hold what says so."""
        which = self.seeds % len(pairs.classes)
        wanted = {"classes": np.int64(pairs.numbers)[which],
                  **({} if pairs.column is None else {"attributes": np.float32(pairs.values)[which]})}
        for name, values in wanted.items():
            if name not in self._tables:
                if name == "classes" and pairs.column is not None:
                    continue  # the attribute alone says them
                raise ValueError(f"{self.path}: sampling.pairs is of {shown(pairs.classes)}, and there are no {name}")
            found = self._tables[name] if name == "classes" else self._tables[name][:, pairs.column]
            if len(odd := np.flatnonzero(found != values)):
                raise ValueError(f"{self.path}: {name} of sample {self.seeds[odd[0]]} are {found[odd[0]]:g}, wanted "
                                 f"{values[odd[0]]:g} by sampling.pairs")

    def _checked(self, name: str, row: np.ndarray, index: int) -> np.ndarray:
        """A row as it is; ValueError naming the seed of one that holds what no sample has."""
        where = f"{self.path}: {name} of seed {self.seeds[index]}"
        if row.dtype.kind == "f" and not np.isfinite(row).all():
            raise ValueError(f"{where} have values that are not finite")
        classes = {"labels": self.meta.facts.label_classes, "maps": self.meta.facts.semantic_classes}.get(name)
        if classes and row.max() >= len(classes):
            raise ValueError(f"{where} have the value {row.max()}, and there are {len(classes)} classes")
        return row


@dataclass(frozen=True, repr=False)
class Samples:
    """Samples in memory: arrays by name as ARRAYS has them, a row for each of the rising seeds, and what they share."""

    seeds: list[int]
    arrays: dict[str, np.ndarray]
    meta: SampleMeta

    def __len__(self) -> int:
        return len(self.seeds)

    def __repr__(self) -> str:
        arrays = ", ".join(f"{name} {list(array.shape)}" for name, array in self.arrays.items())
        return f"Samples({len(self)} seeds, {arrays}, {self.units or 'no unit'})"

    @property
    def images(self) -> np.ndarray | None:
        """Images [N,C,*S] float32 in `units`, None where latents were left as they are."""
        return self.arrays.get("images")

    @property
    def labels(self) -> np.ndarray | None:
        """Label maps [N,*S] uint8 of `label_classes`, None where the network draws none."""
        return self.arrays.get("labels")

    @property
    def latents(self) -> np.ndarray | None:
        """Scaled latents [N,z,*s] float32 that the images were decoded from, None where voxels were drawn."""
        return self.arrays.get("latents")

    @property
    def classes(self) -> list[str | None] | None:
        """The class of each, None for none, and None of a network that is not told any."""
        found = self.arrays.get("classes")
        return None if found is None else [self.meta.class_name(i) for i in found]

    @property
    def ids(self) -> list[str | None]:
        """Of each the id of the row of a file that it was asked for by, None where no file asked."""
        return [self.meta.id_of(seed) for seed in self.seeds]

    @property
    def maps(self) -> np.ndarray | None:
        """The maps [N,*S] uint8 that were asked for, None where none were."""
        return self.arrays.get("maps")

    @property
    def affine(self) -> np.ndarray:
        """Voxel index -> mm [4,4]."""
        return np.asarray(self.meta.facts.affine)

    def affine_of(self, index: int) -> np.ndarray:
        """The same of a row, which differs where voxel sizes were asked for."""
        return self.arrays["affines"][index] if "affines" in self.arrays else self.affine

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size per axis in mm."""
        return self.meta.facts.spacing

    @property
    def units(self) -> str:
        """Unit of the image values."""
        return self.meta.facts.intensity.unit

    @property
    def channels(self) -> tuple[str, ...]:
        """What the channels of the images show."""
        return self.meta.facts.channels

    @property
    def label_classes(self) -> tuple[str, ...]:
        """Names of the values of the label maps."""
        return self.meta.facts.label_classes

    def save(self, path: str | Path) -> None:
        """Write a samples file, .h5 or .npz, as generate does."""
        write_samples(path, self.seeds, self.arrays, self.affine, self.meta)

    def save_nifti(self, folder: str | Path) -> list[Path]:
        """Write seed000000_image.nii.gz, _label.nii.gz, the _map.nii.gz and _cond.nii.gz that were asked for, and so on
        into a folder, after ids where there are some; what was written.

        ValueError for latents, which nothing decoded, and for signals (1D).
        """
        if self.images is None:
            raise ValueError("these samples are latents that nothing decoded: there is no image to write")
        if self.images.ndim == 3:
            raise ValueError("NIfTI holds images and volumes, these are signals (1D)")
        written = []
        for row, stem in enumerate(self.meta.file_names(self.seeds)):
            for name in NIFTI.keys() & self.arrays.keys():
                written.append(Path(folder) / f"{stem}{NIFTI[name]}")
                write_as_nifti(written[-1], name, self.arrays[name][row], self.units, self.affine_of(row))
        return sorted(written)


def write_as_nifti(path: Path, name: str, array: np.ndarray, unit: str, affine: np.ndarray) -> None:
    """Write an image [C,*S] in a unit, or a map [*S] (name "labels", "maps") without, of an affine [4,4]."""
    is_image = name not in ("labels", "maps")
    write_nifti(path, array, affine, spatial_dims=array.ndim - is_image, unit=unit if is_image else "")


class _H5Arrays(h5.LazyFile):
    """The arrays of an H5 file. Those of older files have one hash for all rows: it is checked before the first."""

    def __init__(self, path: Path):
        super().__init__(path, "samples")
        file = self._open()
        found = {name: h5.need(file, name) for name in (*ARRAYS, *TABLES) if name in file}
        self.meta = {name: h5.get_json(file, name) for name in META}
        h5.get_json(file, "provenance", dict)
        self.content_hash = h5.get_text(file, "content_hash")
        self.layout = {name: (dataset.dtype, dataset.shape) for name, dataset in found.items()}
        self._hashes = {name: h5.row_hashes(dataset) for name, dataset in found.items()}

    def array(self, name: str) -> np.ndarray:
        return h5.read(self._open()[name])

    def row(self, name: str, index: int) -> np.ndarray:
        dataset = self._open()[name]
        if name in self._hashes and self._hashes[name] is None:
            if problem := h5.problem_of(dataset):
                raise ValueError(problem)
            del self._hashes[name]
        return h5.read_row(dataset, index, self._hashes.get(name))


class _NpzArrays(NpzFile):
    """The arrays of an npz file."""

    def __init__(self, path: Path):
        super().__init__(path)
        if HASH not in self.members:
            raise ValueError(f"{path}: not a samples file: there is no content_hash in it")
        self.check_content()
        self.content_hash = str(self.array(HASH))
        self.layout = {name: member[:2] for name, member in self.members.items()}
        if self.layout.get("meta", ("", (0,)))[1] or self.layout["meta"][0].kind != "U":
            raise ValueError(f"{path}: not a samples file: there is no meta in it that is text")
        self.meta = parse_json(str(self.array("meta")), f"{path}: meta")


# ---- writing ----


def write_samples(path: str | Path, seeds: Sequence[int], arrays: Mapping[str, np.ndarray], affine: np.ndarray,
                  meta: SampleMeta) -> None:
    """Write a samples file of arrays in memory (see write_rows)."""
    write_rows(path, seeds, list(arrays), lambda name, index: arrays[name][index], affine, meta)


def write_rows(path: str | Path, seeds: Sequence[int], names: Sequence[str], row: Callable[[str, int], np.ndarray],
               affine: np.ndarray, meta: SampleMeta) -> None:
    """Write a samples file by its suffix (.h5, .npz), whole or not at all, with one row in memory at a time.

    row: gives a row of an array by its name and index; called array by array.
    """
    path = Path(path)
    if path.suffix not in (".h5", ".npz"):
        raise ValueError(f"{path}: wanted a name that ends in .h5 or .npz")
    tables = {"seeds": np.asarray(seeds, np.int64), "affine": np.asarray(affine, np.float64)}
    assert set(names) <= set(ARRAYS) and len(seeds) and (np.diff(tables["seeds"]) > 0).all()

    def rows(name: str, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        for index, seed in enumerate(progress(seeds, desc=f"write {name}", unit="sample")):
            array = np.asarray(row(name, index), ARRAYS[name])
            if array.shape != shape:
                raise ValueError(f"{path}: {name} of seed {seed} are {array.shape}, those of seed {seeds[0]} {shape}")
            yield array

    first = {name: np.shape(row(name, 0)) for name in names}
    arrays = {name: ArrayRows(np.dtype(ARRAYS[name]), (len(seeds), *shape), rows(name, shape))
              for name, shape in first.items()}
    needed = sum(prod(a.shape) * a.dtype.itemsize for a in arrays.values()) + 2 ** 20
    if path.suffix == ".npz":
        tables["meta"] = np.array(json.dumps(meta.plain()))
        if "scales" in names:
            tables["unit"] = np.array(meta.facts.intensity.unit)
        write_npz(path, arrays | {name: ArrayRows(t.dtype, t.shape, [t]) for name, t in tables.items()}, needed)
    else:
        _write_h5(path, arrays, tables, meta, needed)


def _write_h5(path: Path, arrays: Mapping[str, ArrayRows], tables: Mapping[str, np.ndarray], meta: SampleMeta,
              needed: int) -> None:
    with h5.atomic_h5(path, needed) as file:
        h5.set_format(file, "samples", {"kind": "generate", "snapshot": meta.snapshot})
        for name, value in meta.plain().items():
            h5.put_json(file, name, value)
        for name, table in tables.items():
            h5.write_array(file, name, table)
        for name, (dtype, shape, rows) in arrays.items():
            if name in TABLES:
                h5.write_array(file, name, np.array(list(rows)))
                continue
            dataset = h5.create(file, name, (0, *shape[1:]), dtype, hash_rows=True)
            for row in rows:
                h5.append_row(dataset, row)
