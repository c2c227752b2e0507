"""What an npz file says of its arrays, held against what is in it before any of them is read."""

import zipfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from edm3d.utils.checks import check_memory

MOST_GROWTH = 1100  # of a member by deflate, which can make 1032 of one byte
_LOCAL_HEADER = 30  # bytes before the name in front of a member; those from 26 on are the lengths of name and extra
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Member(NamedTuple):
    """An array of an npz file: its values begin behind a header of so many bytes, and in the file at `place`.

    place None: they are compressed. fortran: the first axis runs fastest.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    header: int
    place: int | None
    fortran: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return prod(self.shape) * self.dtype.itemsize


def members_of(path: str | Path, names: Sequence[str] = ()) -> dict[str, Member]:
    """The arrays of an npz file, these or all, by name.

    ValueError or what zipfile raises where directory, local header and the array's own header disagree, where there are
    two of a name, and where an array claims more than is stored of it, or than there is memory for.
    """
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        found: dict[str, Member] = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if names and name not in names:
                continue
            if name in found:
                raise ValueError(f"two members are called {info.filename!r}")
            found[name] = _member(file, archive, info)
        return found


def _member(file: IO[bytes], archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    _check_sizes(info, file)
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise ValueError(f"{info.filename!r} is an array of version {version}, wanted numbers or text alone")
        shape, fortran, dtype = _HEADERS[version](stream)
        header = stream.tell()
    member = Member(dtype, shape, header, None, fortran)
    if dtype.hasobject or dtype.names or dtype.subdtype or min(shape, default=0) < 0:
        raise ValueError(f"{info.filename!r} is {dtype} {shape}, wanted numbers or text alone")
    if info.file_size != header + member.nbytes:
        raise ValueError(f"{info.filename!r} claims {member.nbytes:,} bytes in shape {shape}, and has "
                         f"{info.file_size - header:,}")
    check_memory(repr(info.filename), 0 if info.compress_type == zipfile.ZIP_STORED else member.nbytes)
    if info.compress_type != zipfile.ZIP_STORED:
        return member
    file.seek(info.header_offset)
    lengths = np.frombuffer(file.read(_LOCAL_HEADER)[26:], "<u2")
    return member._replace(place=info.header_offset + _LOCAL_HEADER + int(lengths.sum()) + header)


def _check_sizes(info: zipfile.ZipInfo, file: IO[bytes]) -> None:
    """ValueError for sizes that cannot be."""
    size = file.seek(0, 2)
    growth = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: MOST_GROWTH}.get(info.compress_type, 0)
    if not growth:
        raise ValueError(f"{info.filename!r} is compressed by method {info.compress_type}; wanted none or deflate, as "
                         "numpy writes them")
    if info.flag_bits & 1:
        raise ValueError(f"{info.filename!r} is encrypted")
    if info.compress_size > size or info.file_size > growth * info.compress_size + 1024:
        raise ValueError(f"{info.filename!r} claims {info.file_size:,} bytes, and {info.compress_size:,} are stored of "
                         "it")
