"""Arrays that were measured, or that measurements are simulated of, out of files of others: no layout but rows."""

from pathlib import Path

import numpy as np

from edm3d.formats import h5
from edm3d.formats.nifti import read_volume, suffix_of
from edm3d.formats.npy import read_npy
from edm3d.formats.samples import SamplesFile
from edm3d.formats.volumes import VolumesFile, held_out_first
from edm3d.utils.checks import check_memory, listed
from edm3d.utils.files import can_be, npz_damage_named
from edm3d.utils.plain import shown

KEYS = ("y", "measurements", "measurement", "images", "image", "phantoms")  # of arrays inside an npz, the first found
WANTED = ".npy, .npz, .nii, .nii.gz, or a .h5 of volumes or samples"


def read_measured(source: str, key: str) -> np.ndarray:
    """The array of a file, float32, as it lies there; of volumes the images of the first of test, val and train.

    ValueError naming the key of the configuration and the file, also for values that are not finite.
    """
    path = Path(source)
    if not source.strip() or not can_be(path) or not path.is_file():
        raise ValueError(f"{key}={shown(source)}: no such file; wanted {WANTED}")
    try:
        array = np.asarray(_array(path))
    except ValueError as e:
        raise ValueError(f"{key}: {e}") from e
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{key}: {path} holds values of {array.dtype}, wanted real numbers")
    check_memory(f"{key}: {path}", 4 * array.size)
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, np.float32)
    if not array.size or not np.isfinite(array).all():
        raise ValueError(f"{key}: {path} holds " + ("values that are not finite (NaN or infinite)" if array.size else
                                                     "no values") + "; wanted numbers alone")
    return array


def _array(path: Path) -> np.ndarray:
    suffix = suffix_of(path)
    if path.suffix.lower() == ".h5":
        return _of_h5(path)
    if suffix in (".npy", ".npz"):
        with npz_damage_named(path):
            return read_npy(path, KEYS)[0]
    if suffix in (".nii", ".nii.gz"):
        data = read_volume(path).data
        return data[..., 0] if data.shape[-1] == 1 else data
    raise ValueError(f"{path}: cannot be read by its name; wanted {WANTED}")


def _of_h5(path: Path) -> np.ndarray:
    kind = h5.read_format(path)
    if kind == "samples":
        images = SamplesFile(path).array("images")
        if images is None:
            raise ValueError(f"{path}: holds samples without images; decode them")
        return images
    if kind != "volumes":
        raise ValueError(f"{path}: holds {kind}, wanted volumes or samples")
    file = VolumesFile(path)
    split = next((split for split in held_out_first(file.splits) if file.length(split)), None)
    if split is None:
        raise ValueError(f"{path}: its splits {listed(file.splits)} are empty")
    channels = file.meta.numbers("target")
    return np.stack([file.read(split, i).image[channels] for i in range(file.length(split))])
