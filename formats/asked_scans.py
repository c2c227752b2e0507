"""Low-dose reconstructions in files of the user's own: NIfTI volumes, arrays, volumes or samples, checked when read."""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edm3d.formats import h5
from edm3d.formats.asked import chosen_split
from edm3d.formats.dose import LOW_DOSE
from edm3d.formats.nifti import npz_names, read_volume, suffix_of
from edm3d.formats.npy import read_npy
from edm3d.formats.npz import HASH
from edm3d.formats.samples import SamplesFile
from edm3d.formats.volumes import VolumesFile
from edm3d.utils.checks import check_memory, listed
from edm3d.utils.files import NPZ_DAMAGE, arrays_hash, can_be, first_line, read_npz
from edm3d.utils.names import one_line
from edm3d.utils.plain import shown

KEY = "images"
NIFTI = (".nii", ".nii.gz")
WANTED = (f"wanted a low-dose scan (.nii, .nii.gz, .npy, .npz with {KEY!r}, volumes or samples with the channel "
          f"{LOW_DOSE!r}), or phantoms to simulate some of")


class ScanFile(NamedTuple):
    """Low-dose images [R,1,*S] float32 in units of activity, all finite and 0 or more, and a name for each.

    unit: as the file states it, None where it does not. affine [4,4]: of the voxels [H,W,D] of a volume, whose slices
    lie along its last axis, or None. nifti: the file whose geometry outputs have, None where it has none. depth: slices
    of the volume that `in_stacks` cut into stacks, None where it did not. ids: no matter what the file is called.
    """

    source: str
    images: np.ndarray
    ids: list[str]
    unit: str | None = None
    affine: np.ndarray | None = None
    nifti: Path | None = None
    depth: int | None = None

    @property
    def hash(self) -> str:
        """Of all that networks are told by it, and of where that lies."""
        return arrays_hash({KEY: self.images, "ids": np.array(self.ids), "unit": np.array(self.unit or ""),
                            **({} if self.affine is None else {"affine": self.affine})})

    def in_stacks(self, depth: int) -> "ScanFile":
        """A volume [1,1,D,H,W] cut into stacks of so many slices, the last one padded by empty ones; else the same."""
        if self.nifti is None or self.images.ndim != 5 or (slices := self.images.shape[2]) == depth:
            return self
        count = -(-slices // depth)
        padded = np.pad(self.images[0, 0], ((0, count * depth - slices), (0, 0), (0, 0)))
        return self._replace(images=padded.reshape(count, 1, depth, *padded.shape[1:]), depth=slices,
                             ids=[f"stack{k}" for k in range(count)])


def read_scans(source: str, dims: int, split: str | None = None) -> ScanFile:
    """Scans of a file for a network of so many axes, 2: slice by slice, 3: stacks of slices [D,H,W].

    split: of volumes, None for held-out ones first. ValueError naming the file where it holds none.
    """
    path = Path(source)
    if not source.strip() or not can_be(path):
        raise ValueError(f"sampling.conditions={shown(source)}: {WANTED}")
    if not path.is_file():
        what = "a folder without slices" if path.is_dir() else "no such file"
        raise ValueError(f"sampling.conditions={path}: {what}; {WANTED}")
    suffix = suffix_of(path) or path.suffix.lower()
    if split is not None and suffix != ".h5":
        raise ValueError(f"sampling.conditions_split={split}: {path} has no splits, only volumes and phantoms do")
    if suffix in NIFTI:
        found = of_nifti(path, dims)
    elif suffix == ".h5" and h5.read_format(path) == "volumes":
        found = of_volumes(path, dims, split)
    elif suffix == ".h5" or (suffix == ".npz" and HASH in npz_names(path)):
        found = of_samples(path, dims)
    elif suffix in (".npy", ".npz"):
        found = of_arrays(path, dims)
    else:
        raise ValueError(f"sampling.conditions={path}: {WANTED}")
    return checked(found._replace(source=source))


def checked(file: ScanFile) -> ScanFile:
    """The same; ValueError naming the image with values that no activity has, or all of whose values are 0.

    Empty slices of a volume pass, where others are not.
    """
    for id_, image in zip(file.ids, file.images, strict=True):
        where = f"{file.source}: {one_line(id_)}"
        if not np.isfinite(image).all():
            raise ValueError(f"{where} has values that are not finite; wanted activities of 0 or more")
        if image.min() < 0:
            raise ValueError(f"{where} has negative values (down to {image.min():g}), which no activity is; wanted a "
                             "reconstruction by MLEM or OSEM, or negative values set to 0")
        if not image.any() and (file.affine is None or not file.images.any()):
            raise ValueError(f"{where} is 0 everywhere, and has no scale; leave it out")
    return file


def of_nifti(path: Path, dims: int) -> ScanFile:
    """A volume [H,W,D]: its slices along the last axis, or the stack of them all."""
    data, affine = read_volume(path)
    if len(data) != 1:
        raise ValueError(f"{path}: has {len(data)} channels or frames, wanted one low-dose image [H,W,D]")
    stack = in_float32(np.moveaxis(data[0], 2, 0))
    images = stack[None, None] if dims == 3 else stack[:, None]
    return ScanFile(str(path), images, numbered(len(images), dims), None, affine, path)


def numbered(count: int, dims: int) -> list[str]:
    """Names of slices or stacks, by their numbers alone, so that a file may be called otherwise later."""
    return [f"{'slice' if dims == 2 else 'stack'}{k}" for k in range(count)]


def stem(path: Path) -> str:
    """The name of a file without its suffix."""
    return path.name[:-len(suffix_of(path) or path.suffix)]


def of_arrays(path: Path, dims: int) -> ScanFile:
    """An .npz with `images`, and perhaps `unit` and `affine`, or an .npy."""
    unit = affine = None
    if path.suffix.lower() == ".npz":
        arrays = read_npz(path)
        if KEY not in arrays:
            raw = next((name for name in arrays if "sino" in name.casefold() or "counts" in name.casefold()), None)
            more = f"; {raw!r} looks like measured counts, which have to be reconstructed first" if raw else ""
            raise ValueError(f"{path}: no array {KEY!r}, it has {listed(arrays) or 'none'}{more}; {WANTED}")
        images, unit, affine = arrays[KEY], arrays.get("unit"), arrays.get("affine")
    else:
        try:
            images, _ = read_npy(path, ())
        except NPZ_DAMAGE as e:
            raise ValueError(f"{path}: cannot be read ({first_line(e)})") from e
    if unit is not None and (unit.ndim or unit.dtype.kind != "U"):
        raise ValueError(f"{path}: unit is {unit.dtype} {list(unit.shape)}, wanted one text")
    if affine is not None and (affine.shape != (4, 4) or affine.dtype.kind not in "iuf" or not np.isfinite(affine).all()
                               or abs(np.linalg.det(affine)) < 1e-12):
        raise ValueError(f"{path}: affine is {affine.dtype} {list(affine.shape)}, wanted one of voxels, [4,4]")
    images = as_rows(images, dims, str(path))
    return ScanFile(str(path), images, numbered(len(images), dims),
                    None if unit is None else str(unit), None if affine is None else affine.astype(np.float64))


def as_rows(images: np.ndarray, dims: int, source: str) -> np.ndarray:
    """Images [R,1,*S] float32 of [*S], [R,*S] or [R,1,*S]; ValueError, begun by the source, for other arrays."""
    axes = "[H,W], [N,H,W] or [N,1,H,W]" if dims == 2 else "[D,H,W], [N,D,H,W] or [N,1,D,H,W]"
    if images.dtype.kind not in "iuf" or 0 in images.shape or images.ndim not in (dims, dims + 1, dims + 2) or (
            images.ndim == dims + 2 and images.shape[1] != 1):
        raise ValueError(f"{source}: {KEY} are {images.dtype} {list(images.shape)}, wanted numbers {axes}")
    return in_float32(images).reshape(-1, 1, *images.shape[-dims:])


def in_float32(values: np.ndarray) -> np.ndarray:
    """Numbers as float32; what is too large for it becomes infinite, which is refused with what is not finite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def of_volumes(path: Path, dims: int, split: str | None) -> ScanFile:
    """The low-dose channel of a split of a volumes file."""
    file = VolumesFile(path)
    split = chosen_split(path, {name: file.length(name) for name in file.splits}, split)
    check_dims(file.meta.spatial_dims, dims, path)
    channel, count = channel_of(file.meta.channels, path), file.length(split)
    check_memory(f"{path}: reading {count} scans", 4 * count * prod(file.spatial_shape(split)))
    images = np.stack([file.read(split, i).image[channel:channel + 1] for i in range(count)])
    return ScanFile(str(path), images.astype(np.float32), list(file.ids(split)), file.meta.intensity.unit)


def of_samples(path: Path, dims: int) -> ScanFile:
    """The low-dose images that samples were told, else those that were drawn."""
    file = SamplesFile(path)
    facts = file.meta.facts
    name, channels = (("cond_images", facts.condition_channels) if "cond_images" in file.names
                      else ("images", facts.channels))
    if name not in file.names:
        raise ValueError(f"{path}: holds latents alone; {WANTED}")
    check_dims(len(file.shape(name)) - 2, dims, path)
    channel = channel_of(channels or [""] * file.shape(name)[1], path)
    check_memory(f"{path}: reading {len(file)} scans", 4 * len(file) * prod(file.shape(name)[2:]))
    images = np.stack([file.row(name, i)[channel:channel + 1] for i in range(len(file))])
    return ScanFile(str(path), images, file.meta.file_names(file.seeds), facts.intensity.unit)


def channel_of(names: Sequence[str], path: Path) -> int:
    """Number of the low-dose channel; ValueError where none of several is called so."""
    if LOW_DOSE in names:
        return list(names).index(LOW_DOSE)
    if len(names) == 1:
        return 0
    raise ValueError(f"{path}: has channels {listed(names)}, and none is called {LOW_DOSE!r}")


def check_dims(found: int, dims: int, path: Path) -> None:
    """ValueError unless images have as many axes as those of the network."""
    if found != dims:
        raise ValueError(f"{path}: holds images of {found} axes, the network is told ones of {dims}")
