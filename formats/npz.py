"""npz files in pieces: hashed block by block, written and read row by row, stored as they are and not compressed."""

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from edm3d.utils.files import atomic_path, blocks_hash, npz_damage_named, read_npz

HASH = "content_hash"
_BLOCK_BYTES = 1 << 20
_LOCAL_HEADER = 30  # bytes before the name in front of a member; those from 26 on are the lengths of name and extra
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Member(NamedTuple):
    """An array of an npz file: its values begin behind a header of so many bytes, and in the file at `place`.

    place None: they are compressed.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    header: int
    place: int | None


class ArrayRows(NamedTuple):
    """An array that is to be written, row by row; one of no axes is a single row."""

    dtype: np.dtype
    shape: tuple[int, ...]
    rows: Iterable[np.ndarray]


class NpzFile:
    """An npz file for reading; holds nothing in memory but compressed arrays that were asked for."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with npz_damage_named(path), open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            self.members = {info.filename.removesuffix(".npy"): _member(file, archive, info)
                            for info in archive.infolist()}
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
        dtype, (_, *shape), _, place = self.members[name]
        if place is not None:
            with npz_damage_named(self.path):
                offset = place + index * prod(shape) * dtype.itemsize
                return np.fromfile(self.path, dtype, prod(shape), offset=offset).reshape(shape)
        if name not in self._unpacked:
            self._unpacked[name] = self.array(name)
        return self._unpacked[name][index]


def _member(file: IO[bytes], archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    """What directory, local header and npy header say of a member; ValueError where they disagree."""
    with archive.open(info) as stream:
        shape, fortran, dtype = _HEADERS[np.lib.format.read_magic(stream)](stream)
        header = stream.tell()
    if fortran or dtype.hasobject or info.file_size != header + prod(shape) * dtype.itemsize:
        raise ValueError(f"{info.filename} is not a plain array of {info.file_size} bytes")
    if info.compress_type != zipfile.ZIP_STORED:
        return Member(dtype, shape, header, None)
    file.seek(info.header_offset)
    lengths = np.frombuffer(file.read(_LOCAL_HEADER)[26:], "<u2")
    return Member(dtype, shape, header, info.header_offset + _LOCAL_HEADER + int(lengths.sum()) + header)


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


def _written(archive: zipfile.ZipFile, name: str, array: ArrayRows) -> Iterator[bytes]:
    """Add a member row by row, yielding what was written of each."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
        np.lib.format.write_array_header_1_0(stream, {
            "descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape})
        for row in array.rows:
            block = row.tobytes()
            stream.write(block)
            yield block
