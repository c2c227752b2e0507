"""Write the volumes of a volumes or samples file out, as NIfTI or as pictures."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edm3d.formats import h5
from edm3d.formats.manifest import Manifest
from edm3d.formats.nifti import spacing_of
from edm3d.formats.samples import SamplesFile, write_as_nifti
from edm3d.formats.seeds import parse_seeds
from edm3d.formats.volumes import VolumesFile
from edm3d.inference.folders import begin, told_of_changes, told_of_names
from edm3d.inference.latent_source import STORED
from edm3d.inference.nifti_folder import FOLDERS
from edm3d.reporting.montages import planes_figure, save_png
from edm3d.reporting.slices import Asked
from edm3d.utils import locks
from edm3d.utils.checks import listed
from edm3d.utils.files import check_dest_folder, file_hash
from edm3d.utils.log import progress
from edm3d.utils.names import file_names

RECORD = "export.json"


class Exported(NamedTuple):
    """A volume on its way out: its arrays by kind (see FOLDERS), affine [4,4], and the classes of label and map."""

    id: str
    arrays: dict[str, np.ndarray]
    affine: np.ndarray
    label_classes: tuple[str, ...]
    map_classes: tuple[str, ...]


class Exporting(NamedTuple):
    """What is written: form (nifti or png), names of the files without suffix by (split or seed, row), axes and unit.
    """

    form: str
    names: dict[tuple[str, int], str]
    dims: int
    unit: str

    def files(self, key: tuple[str, int], kinds: Sequence[str]) -> list[str]:
        """The files of a volume: those of its kinds, of one name in folders as `prepare` reads it; or a picture."""
        name = self.names[key]
        return [f"{FOLDERS[kind]}/{name}.nii.gz" for kind in kinds] if self.form == "nifti" else [f"{name}.png"]


def export(path: Path, kind: str, dest: Path, split: str | None = None, indices: str | None = None,
           overwrite: bool = False) -> Iterator[str]:
    """Write volumes to files of a kind, nifti or png, in a folder, and a record of them; gives lines to say.

    split, indices: only these, rows of each split of a volumes file, seeds of a samples file (as in 0-7,12). What is
    there already is left; ValueError for a folder of anything else, unless it is an export that may be overwritten.
    """
    form = "samples" if path.suffix == ".npz" else h5.read_format(path)
    if form not in ("volumes", "samples"):
        raise ValueError(f"{path}: format is '{form}'; volumes and samples can be exported")
    if form == "samples" and split is not None:
        raise ValueError(f"--split {split}: samples have no splits; leave it out")
    file = VolumesFile(path) if form == "volumes" else SamplesFile(path)
    keys = _volume_keys(file, split, indices) if form == "volumes" else _sample_keys(file, indices)
    check_dest_folder(dest, {"FILE": path})
    ids = [_id(file, key) for key in keys]
    work = Exporting(kind, dict(zip(keys, file_names(ids), strict=True)),
                     file.meta.spatial_dims if form == "volumes" else len(file.shape("images")) - 2,
                     file.meta.intensity.unit if form == "volumes" else file.meta.facts.intensity.unit)
    made_of = {"kind": "export", "source": str(path), "source_hash": _content_hash(file),
               "settings": {"format": kind, "split": split, "indices": indices}}
    with locks.output(dest, is_folder=True):
        record = Manifest(dest, RECORD, made_of, ("source_hash", "settings"))
        yield from told_of_names(ids, list(work.names.values()))
        yield from _export_all(file, work, record, overwrite)


def _export_all(file: VolumesFile | SamplesFile, work: Exporting, record: Manifest, overwrite: bool) -> Iterator[str]:
    """Write what is not there yet; lines to say."""
    kinds = _kinds(file)
    yield from begin(record, [name for key in work.names for name in work.files(key, kinds)], overwrite)
    record.load()
    missing = [key for key in progress(work.names, desc="look", unit="volume")
               if not all([record.is_finished(name) for name in work.files(key, kinds)])]
    yield from told_of_changes(record.changed)
    for key in progress(missing, desc="export", unit="volume"):
        volume = _exported(file, key)
        with ExitStack() as stack:
            paths = [stack.enter_context(record.writing(name, volume.id)) for name in work.files(key, kinds)]
            _write_out(volume, work, paths)
    record.settle()
    count, made = len(work.names), len(missing)
    yield (f"{record.folder}: {count} volumes" if made == count else f"{record.folder}: all {count} there already"
           if not made else f"{record.folder}: {count} volumes ({count - made} there already)")


def _kinds(file: VolumesFile | SamplesFile) -> list[str]:
    """What each volume of a file has."""
    if isinstance(file, SamplesFile):
        return [kind for kind, name in STORED.items() if name in file.names]
    meta = file.meta
    there = {"image": True, "label": meta.label_classes, "map": meta.map_classes, "cond": meta.numbers("condition")}
    return [kind for kind, is_there in there.items() if is_there]


def _content_hash(file: VolumesFile | SamplesFile) -> str:
    """Of a volumes file the hash that it carries, of samples that of the file."""
    return file.content_hash if isinstance(file, VolumesFile) else file_hash(file.path)


def _id(file: VolumesFile | SamplesFile, key: tuple[str, int]) -> str:
    """What a volume is called."""
    return file.ids(key[0])[key[1]] if isinstance(file, VolumesFile) else key[0]


def _volume_keys(file: VolumesFile, split: str | None, indices: str | None) -> list[tuple[str, int]]:
    splits = [split] if split else file.splits
    lengths = {name: file.length(name) for name in splits}
    wanted = _indices(indices)
    if wanted is not None and max(wanted) >= max(lengths.values()):
        raise ValueError(f"--indices {indices}: {file.path} has {lengths} volumes, counted from 0")
    return [(s, i) for s, n in lengths.items() for i in (range(n) if wanted is None else wanted) if i < n]


def _sample_keys(file: SamplesFile, indices: str | None) -> list[tuple[str, int]]:
    if "images" not in file.names:
        raise ValueError(f"{file.path}: holds latents only; decode them first")
    wanted = list(file.rows) if indices is None else _indices(indices)
    if absent := [seed for seed in wanted if seed not in file.rows]:
        raise ValueError(f"--indices {indices}: {file.path} has no seeds {listed(absent)}")
    return [(name, file.rows[seed]) for seed, name in zip(wanted, file.meta.file_names(wanted), strict=True)]


def _indices(text: str | None) -> list[int] | None:
    if text is None:
        return None
    wanted = f"--indices {text}: wanted a list of numbers from 0 on, such as 0-7,12"
    try:
        indices = parse_seeds(text)
    except ValueError as error:
        raise ValueError(wanted) from error
    if not indices or min(indices) < 0:
        raise ValueError(wanted)
    return sorted(set(indices))


def _exported(file: VolumesFile | SamplesFile, key: tuple[str, int]) -> Exported:
    name, index = key
    if isinstance(file, SamplesFile):
        facts = file.meta.facts
        return Exported(name, {kind: file.row(STORED[kind], index) for kind in _kinds(file)}, file.affine_of(index),
                        facts.label_classes, facts.semantic_classes)
    item, meta = file.read(name, index), file.meta
    arrays = {"image": item.image[meta.numbers("target")], "label": item.label, "map": item.map,
              "cond": item.image[meta.numbers("condition")]}
    return Exported(item.id, {kind: arrays[kind] for kind in _kinds(file)}, item.affine, meta.label_classes,
                    meta.map_classes)


def _write_out(volume: Exported, work: Exporting, paths: Sequence[Path]) -> None:
    arrays = volume.arrays
    if work.form == "nifti":
        for path, (kind, array) in zip(paths, arrays.items(), strict=True):
            write_as_nifti(path, STORED[kind], array, work.unit, volume.affine)
        return
    asked = Asked([arrays["map"]] if "map" in arrays else (), volume.map_classes,
                  [arrays["cond"]] if "cond" in arrays else ())
    figure = planes_figure(arrays["image"], arrays.get("label"), spacing_of(volume.affine)[:work.dims],
                           affine=volume.affine, label_classes=volume.label_classes, asked=asked)
    save_png(figure, paths[0])
