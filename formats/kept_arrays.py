"""Arrays that can be made again, kept on disk: a file says what it is of, and a checksum whether it is as written."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edm3d.utils.files import arrays_hash, atomic_path, read_npz

_KEY, _HASH = "key", "content_hash"  # beside the arrays


def write_kept(path: Path, key: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays that are of `key`, whole or not at all, also beside other writers; ValueError, OSError: no room."""
    nbytes = sum(array.nbytes for array in arrays.values()) + 4096
    with atomic_path(path, nbytes) as temporary, open(temporary, "wb") as file:
        np.savez(file, **{_KEY: np.array(key), _HASH: np.array(arrays_hash(arrays))}, **arrays)


def read_kept(path: Path, key: str) -> dict[str, np.ndarray] | None:
    """The arrays of a file; None where there is none, it is damaged, of another key, or holds not what was written."""
    try:
        arrays = read_npz(path)
        found, content = str(arrays.pop(_KEY)), str(arrays.pop(_HASH))
    except (ValueError, KeyError):
        return None
    return arrays if found == key and content == arrays_hash(arrays) else None
