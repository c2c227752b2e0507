"""Single volumes in files of their own: NIfTI, npy, npz, PNG, with the geometry in mm and RAS+ as nibabel has it."""

import gzip
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from edm3d.formats.items import affine_problem
from edm3d.formats.looks import check_is_plain
from edm3d.formats.nifti_file import read_nifti
from edm3d.formats.npy import names_of, read_npy
from edm3d.formats.png import read_png, read_png_map
from edm3d.utils.files import NPZ_DAMAGE, atomic_path, first_line

PICTURE = ".png"
SUFFIXES = (".nii.gz", ".nii", ".npy", ".npz", PICTURE)
KEYS = {"image": ("image", "images"), "label": ("label", "segmentation", "labels"),
        "map": ("map", "maps")}  # of arrays inside an npz, the first that is there
# what nibabel, numpy and zipfile raise on a damaged file, by place of the damage
_UNREADABLE = (*NPZ_DAMAGE, HeaderDataError, WrapStructError, ArithmeticError, LookupError, MemoryError)
VOXEL_MM = 1e-6, 1e6  # what the side of a voxel can be
FARTHEST_MM = 1e7  # of the first voxel from the origin
_FLAT = 1e-4  # see affine_problem; headers round to float32


class Volume(NamedTuple):
    """One volume in memory; a 2D image has Z = 1."""

    data: np.ndarray  # [C,X,Y,Z], type as stored
    affine: np.ndarray | None  # [4,4] float64, voxel index -> mm; None = the file has no geometry


def suffix_of(path: Path) -> str | None:
    """Return the suffix, in small letters, if the file is one we read, else None.

    It may be in capitals, but not `.Nii`, which nibabel does not find.
    """
    name = path.name
    suffix = next((s for s in SUFFIXES if name.lower().endswith(s) and not name.startswith(".")), None)
    kind = name[-len(suffix):].split(".")[1] if suffix else ""
    return suffix if kind.islower() or kind.isupper() else None


def spacing_of(affine: np.ndarray) -> np.ndarray:
    """Return the voxel size [3] in mm: the column norms, true for oblique scans."""
    return np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)


def read_volume(path: Path, spatial_dims: int | None = None, role: str = "image") -> Volume:
    """Read one file; ValueError names it if it cannot be read or has the wrong number of axes.

    NIfTI has channels on its fourth axis, npy and npz on an extra first one. An npz file holds `role` ('image', 'label'
    or 'map') under that name, or a single array, and may hold an 'affine'. spatial_dims None: as the shape suggests.
    A PNG is 2D, rows first; of a map it gives the numbers as stored.
    """
    if suffix_of(path) == PICTURE:
        return Volume(_from_png(path, spatial_dims, role), None)
    is_npy = suffix_of(path) in (".npy", ".npz")
    check_is_plain(path)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            array, affine = read_npy(path, KEYS[role]) if is_npy else read_nifti(path)
        if affine is not None:
            _check_affine(affine)
    except _UNREADABLE as error:
        raise ValueError(f"{path}: cannot be read ({first_line(error)})") from error
    if is_npy:
        return Volume(_channels_first(path, array, spatial_dims or (2 if array.ndim == 2 else 3)), affine)
    return Volume(_from_nifti(path, array, spatial_dims), affine)


def _check_affine(affine: np.ndarray) -> None:
    """ValueError unless an affine is one by which voxels have a size and a place."""
    if problem := affine_problem(affine, _FLAT):
        raise ValueError(f"its affine {problem} ({affine.tolist()})")
    sizes, (least, most) = spacing_of(affine), VOXEL_MM
    if sizes.min() < least or sizes.max() > most or np.abs(affine[:3, 3]).max() > FARTHEST_MM:
        raise ValueError(f"by its affine voxels of {'x'.join(f'{size:g}' for size in sizes)} mm begin at "
                         f"{affine[:3, 3].tolist()} mm; wanted {least:g} to {most:g} mm, within {FARTHEST_MM:g} mm")


def npz_names(path: Path) -> list[str]:
    """Return the names of the arrays in an npz file; ValueError names the file if it cannot be read."""
    check_is_plain(path)
    try:
        return names_of(path)
    except _UNREADABLE as error:
        raise ValueError(f"{path}: cannot be read ({first_line(error)})") from error


def _channels_first(path: Path, array: np.ndarray, spatial_dims: int) -> np.ndarray:
    if array.ndim not in (spatial_dims, spatial_dims + 1):
        raise ValueError(f"{path}: shape {array.shape}, wanted {spatial_dims} axes, or one more in front for channels")
    array = array if array.ndim > spatial_dims else array[None]
    return array if spatial_dims == 3 else array[..., None]


def _from_png(path: Path, spatial_dims: int | None, role: str) -> np.ndarray:
    if spatial_dims == 3:
        raise ValueError(f"{path}: a picture has two axes; give --spatial-dims 2")
    pixels = read_png(path) if role == "image" else read_png_map(path)
    return pixels[None, :, :, None]


def _from_nifti(path: Path, array: np.ndarray, spatial_dims: int | None) -> np.ndarray:
    array = array.reshape(array.shape + (1,) * (4 - array.ndim))
    if array.ndim == 5 and array.shape[3] == 1:  # vector images keep the fourth axis for time
        array = array[:, :, :, 0]
    if array.ndim != 4 or (spatial_dims == 2 and array.shape[2] != 1):
        raise ValueError(f"{path}: shape {array.shape}, wanted {spatial_dims or 3} axes, or channels on a fourth one")
    if spatial_dims == 3 and array.shape[2] == 1:
        raise ValueError(f"{path}: shape {array.shape} is a single slice; give --spatial-dims 2")
    return np.moveaxis(array, 3, 0)


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray, *, spatial_dims: int = 3, unit: str = "") -> None:
    """Write [*S] or [C,*S] as NIfTI (.nii or .nii.gz), whole or not at all; float64 becomes float32, bool uint8.

    Channels go to the fourth axis, a 2D image becomes [H,W,1]; affine [4,4] voxel index -> mm; unit of the intensities
    goes into the description field.
    """
    array = np.asarray(array)
    array = array.astype(
        {"float64": np.float32, "float16": np.float32, "bool": np.uint8}.get(array.dtype.name, array.dtype)
    )
    if array.ndim not in (spatial_dims, spatial_dims + 1):
        raise ValueError(f"{path}: shape {array.shape}, wanted {spatial_dims} axes, or one more in front for channels")
    has_channels = array.ndim > spatial_dims
    if spatial_dims == 2:
        array = array[..., None]
    if has_channels:
        array = array[0] if array.shape[0] == 1 else np.moveaxis(array, 0, -1)
    image = nibabel.Nifti1Image(array, np.asarray(affine, np.float64))
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = unit.encode(errors="replace")[:79]
    with atomic_path(path) as temporary:
        nibabel.save(image, temporary)


def is_whole(path: Path) -> bool:
    """Whether a .nii.gz is there and its checksum agrees."""
    try:
        with gzip.open(path) as file:
            while file.read(1 << 20):
                pass
    except _UNREADABLE:
        return False
    return True


def is_same_grid(first: tuple[Sequence[int], np.ndarray], second: tuple[Sequence[int], np.ndarray]) -> bool:
    """Compare two (shape, affine) pairs; corners may differ by 1/100 of a voxel, as rounding in headers does."""
    if tuple(first[0]) != tuple(second[0]):
        return False
    corners = np.array([(x, y, z, 1) for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * [*first[0], 1]
    moved = corners @ (first[1] - second[1])[:3].T
    return float(np.linalg.norm(moved, axis=1).max()) <= 0.01 * float(spacing_of(first[1]).min())
