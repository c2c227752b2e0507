"""Arrays in .npy and .npz files of others: nothing is unpickled, and no claim of a header is believed unchecked."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edm3d.formats.looks import HEAD, looks_like
from edm3d.utils.checks import check_memory
from edm3d.utils.numpy_files import NPY, ZIP, arrays_of, member_of, members_of, names_in

AFFINE = "affine"


def read_npy(path: Path, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """The array of a .npy, or that of an .npz by the first of `keys` that is there, or its only one; and its affine.

    ValueError, or an error of zipfile.
    """
    if _begins(path, NPY, ZIP) == ZIP:
        return _members(path, keys)
    member = member_of(path)
    _check_numbers(member.dtype, member.shape)
    check_memory("its array", member.nbytes)
    return np.load(path, allow_pickle=False), None


def map_npy(path: Path) -> np.ndarray:
    """The array of a .npy, mapped from disk; ValueError."""
    _begins(path, NPY)
    member_of(path)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def names_of(path: Path) -> list[str]:
    """Names of the arrays of an .npz; ValueError, or an error of zipfile."""
    _begins(path, ZIP)
    return names_in(path)


def _begins(path: Path, *starts: bytes) -> bytes:
    """By which of these a file begins; ValueError that says what it looks like by none of them."""
    with open(path, "rb") as file:
        head = file.read(HEAD)
    for start in starts:
        if head.startswith(start):
            return start
    raise ValueError(looks_like(head))


def _members(path: Path, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray | None]:
    names = names_in(path)
    arrays = [name for name in names if name != AFFINE]
    key = next((key for key in keys if key in arrays), arrays[0] if len(arrays) == 1 else None)
    if key is None:
        raise ValueError(f"it holds {arrays}, wanted '{keys[0]}' or a single array")
    wanted = [key, AFFINE] if AFFINE in names else [key]
    for member in members_of(path, wanted).values():
        _check_numbers(member.dtype, member.shape)
    found = arrays_of(path, *wanted)
    return found[key], found[AFFINE].astype(np.float64) if AFFINE in found else None


def _check_numbers(dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """ValueError unless an array is one of real numbers, and has some."""
    if dtype.kind not in "biuf":
        raise ValueError(f"values of type {dtype} are not numbers of one channel each")
    if 0 in shape:
        raise ValueError(f"its shape is {shape}: it holds no values")
