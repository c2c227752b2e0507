"""npz files in pieces: hashed block by block, written and read row by row, stored as they are and not compressed."""

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edm3d.utils.files import atomic_path, blocks_hash, npz_damage_named, read_npz
from edm3d.utils.numpy_files import members_of

HASH = "content_hash"
# of a class that is not there, of a volume that came back as it was, of what is not asked for
MAY_BE = {"dice": np.isnan, "psnr": np.isposinf, "attributes": np.isnan}
_BLOCK_BYTES = 1 << 20


class ArrayRows(NamedTuple):
    """An array that is to be written, row by row; one of no axes is a single row."""

    dtype: np.dtype
    shape: tuple[int, ...]
    rows: Iterable[np.ndarray]


class NpzFile:
    """An npz file for reading; holds nothing in memory but compressed arrays that were asked for."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._stamp = self._stamped()
        with npz_damage_named(path):
            self.members = members_of(path)
            if turned := [name for name, member in self.members.items() if member.fortran]:
                raise ValueError(f"{turned[0]!r} is in Fortran order, wanted rows one after another")
        self._unpacked: dict[str, np.ndarray] = {}

    def check_content(self) -> None:
        """ValueError unless the arrays are those of the content hash among them (see utils.files.arrays_hash)."""
        with npz_damage_named(self.path), zipfile.ZipFile(self.path) as archive:
            found = blocks_hash((name, member.dtype, member.shape, _values(archive, name, member.header))
                                for name, member in sorted(self.members.items()) if name != HASH)
        if str(self.array(HASH)) != found:
            raise ValueError(f"{self.path}: damaged, its arrays differ from the stored content hash")

    def array(self, name: str) -> np.ndarray:
        """A whole array."""
        return read_npz(self.path, name)[name]

    def row(self, name: str, index: int) -> np.ndarray:
        """A row of an array, read where it lies."""
        dtype, (_, *shape), _, place, _ = self.members[name]
        if self._stamped() != self._stamp:
            raise ValueError(f"{self.path}: was changed after it was opened, and its content hash checked")
        if place is not None:
            with npz_damage_named(self.path):
                offset = place + index * prod(shape) * dtype.itemsize
                return np.fromfile(self.path, dtype, prod(shape), offset=offset).reshape(shape)
        if name not in self._unpacked:
            self._unpacked[name] = self.array(name)
        return self._unpacked[name][index]

    def _stamped(self) -> tuple[int, ...]:
        """By what a file is known to be the same one, unchanged."""
        with npz_damage_named(self.path):
            found = self.path.stat()
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _values(archive: zipfile.ZipFile, name: str, header: int) -> Iterator[bytes]:
    """The values of a member, behind its header, block by block."""
    with archive.open(f"{name}.npy") as stream:
        stream.read(header)
        yield from iter(lambda: stream.read(_BLOCK_BYTES), b"")


def write_npz(path: Path, arrays: Mapping[str, ArrayRows], needed_bytes: int) -> None:
    """Write arrays and their content hash, whole or not at all, with one row in memory at a time."""
    with atomic_path(path, needed_bytes) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        text = np.array(blocks_hash((name, array.dtype, array.shape, _written(archive, name, array))
                                    for name, array in sorted(arrays.items())))
        list(_written(archive, HASH, ArrayRows(text.dtype, (), [text])))


def is_odd(name: str, array: np.ndarray) -> bool:
    """Whether an array of an unfinished item has values that are not finite, but for those that it may have."""
    odd = ~np.isfinite(array) if array.dtype.kind == "f" else np.zeros(1, bool)
    return bool((odd & ~MAY_BE[name](array) if name in MAY_BE and odd.any() else odd).any())


def _written(archive: zipfile.ZipFile, name: str, array: ArrayRows) -> Iterator[bytes]:
    """Add a member row by row, yielding what was written of each."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
        np.lib.format.write_array_header_1_0(stream, {
            "descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape})
        for row in array.rows:
            block = row.tobytes()
            stream.write(block)
            yield block
