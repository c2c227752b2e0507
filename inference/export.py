"""Write the volumes of a volumes or samples file out, as NIfTI or as pictures."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from edm3d.formats import h5
from edm3d.formats.nifti import spacing_of, write_nifti
from edm3d.formats.samples import SamplesFile, parse_seeds
from edm3d.formats.volumes import VolumesFile
from edm3d.reporting.montages import planes_figure, save_png
from edm3d.utils.checks import listed
from edm3d.utils.log import progress


class Exported(NamedTuple):
    """A volume on its way out: image [C,*S], label [*S] or None, affine [4,4], and the classes of the label."""

    name: str
    image: np.ndarray
    label: np.ndarray | None
    affine: np.ndarray
    label_classes: tuple[str, ...]


def export(path: Path, kind: str, dest: Path, split: str | None = None, indices: str | None = None) -> int:
    """Write volumes to files of a kind, nifti or png, in a folder; how many.

    split, indices: only these, rows of each split of a volumes file, seeds of a samples file (as in 0-7,12).
    """
    form = "samples" if path.suffix == ".npz" else h5.read_format(path)
    if form not in ("volumes", "samples"):
        raise ValueError(f"{path}: format is '{form}'; volumes and samples can be exported")
    if form == "samples" and split is not None:
        raise ValueError(f"--split {split}: samples have no splits; leave it out")
    file = VolumesFile(path) if form == "volumes" else SamplesFile(path)
    keys = _volume_keys(file, split, indices) if form == "volumes" else _sample_keys(file, indices)
    dims = file.meta.spatial_dims if form == "volumes" else len(file.shape("images")) - 2
    unit = file.meta.intensity.unit if form == "volumes" else file.meta.facts.intensity.unit
    for key in progress(keys, desc="export", unit="volume"):
        _write_out(_exported(file, key), kind, dest, dims, unit)
    return len(keys)


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
    return [(f"seed{seed:06d}", file.rows[seed]) for seed in wanted]


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
    if isinstance(file, VolumesFile):
        item = file.read(name, index)
        return Exported(item.id, item.image, item.label, item.affine, file.meta.label_classes)
    return Exported(name, file.row("images", index), file.row("labels", index), file.affine,
                    file.meta.facts.label_classes)


def _write_out(volume: Exported, kind: str, dest: Path, dims: int, unit: str) -> None:
    if kind == "nifti":
        name = f"{volume.name}.nii.gz"  # same names in two folders: what `prepare` reads
        write_nifti(dest / "images" / name, volume.image, volume.affine, spatial_dims=dims, unit=unit)
        if volume.label is not None:
            write_nifti(dest / "labels" / name, volume.label, volume.affine, spatial_dims=dims)
        return
    spacing = spacing_of(volume.affine)[:dims]
    figure = planes_figure(volume.image, volume.label, spacing, affine=volume.affine,
                           label_classes=volume.label_classes)
    save_png(figure, dest / f"{volume.name}.png")
