"""What .npz and .npy files say of their arrays, held against what is in them before any of them is read."""

import warnings
import zipfile
from collections.abc import Sequence
from io import BufferedIOBase, BytesIO
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import IO, NamedTuple

import numpy as np

from edm3d.utils.checks import MOST_GROWTH, check_memory

NPY, ZIP = b"\x93NUMPY", b"PK"  # what the files begin with
_LOCAL_HEADER = 30  # bytes before the name in front of a member; those from 26 on are the lengths of name and extra
_MOST_HEADER = 10_000  # bytes of an array's own, as numpy takes them
_HEADERS = {1: (2, np.lib.format.read_array_header_1_0), 2: (4, np.lib.format.read_array_header_2_0),
            3: (4, np.lib.format.read_array_header_2_0)}  # 3 is 2 with other letters in names of fields


class Member(NamedTuple):
    """An array of a file: its values begin behind a header of so many bytes, and in the file at `place`.

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


def names_in(path: str | Path) -> list[str]:
    """Names of the arrays of an npz file, in its order; what zipfile raises where it is none."""
    with zipfile.ZipFile(path) as archive:
        return [_name(info) for info in archive.infolist()]


def members_of(path: str | Path, names: Sequence[str] = ()) -> dict[str, Member]:
    """The arrays of an npz file, these or all, by name.

    ValueError or what zipfile raises where directory, local header and the array's own header disagree, where there are
    two of a name, and where an array claims more than is stored of it, or than there is memory for.
    """
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        found: dict[str, Member] = {}
        for info in archive.infolist():
            if names and _name(info) not in names:
                continue
            if _name(info) in found:
                raise ValueError(f"two members are called {info.filename!r}")
            found[_name(info)] = _member(file, archive, info)
        return found


def member_of(path: str | Path) -> Member:
    """The array of a .npy file, likewise; memory is not asked for, as it can be mapped."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        member = _claimed(file, size, "its array")
    return member._replace(place=member.header)


def arrays_of(path: str | Path, *names: str) -> dict[str, np.ndarray]:
    """Arrays of an npz file by name, these or all, read to their ends, where zipfile compares checksums.

    ValueError, or what zipfile and numpy raise.
    """
    found = members_of(path, names)
    check_memory("all that is asked for", sum(member.nbytes for member in found.values()))
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in names or found}


def _name(info: zipfile.ZipInfo) -> str:
    return info.filename.removesuffix(".npy")


def _member(file: IO[bytes], archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    _check_sizes(info, file)
    with archive.open(info) as stream:
        member = _claimed(stream, info.file_size, repr(info.filename))
    check_memory(repr(info.filename), 0 if info.compress_type == zipfile.ZIP_STORED else member.nbytes)
    if info.compress_type != zipfile.ZIP_STORED:
        return member
    file.seek(info.header_offset)
    lengths = np.frombuffer(file.read(_LOCAL_HEADER)[26:], "<u2")
    return member._replace(place=info.header_offset + _LOCAL_HEADER + int(lengths.sum()) + member.header)


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


def _claimed(stream: BufferedIOBase, size: int, what: str) -> Member:
    """The array that a stream of `size` bytes consists of, as its header says; ValueError, begun by `what`."""
    shape, fortran, dtype, header = _header(stream, what)
    member = Member(dtype, shape, header, None, fortran)
    if dtype.hasobject:
        raise ValueError(f"{what} holds Python objects, which are programs and are not read; save plain numbers")
    if dtype.names or dtype.subdtype:
        raise ValueError(f"{what} is of {dtype}, wanted numbers or text alone")
    if min(shape, default=0) < 0:
        raise ValueError(f"{what} claims the shape {shape}")
    if size != header + member.nbytes:
        raise ValueError(f"{what} claims {member.nbytes:,} bytes, as {dtype} {shape}, and has {size - header:,}: it is "
                         "cut off, or its header is damaged")
    return member


def _header(stream: BufferedIOBase, what: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, whether the first axis runs fastest, type, and the bytes that say so."""
    start = stream.read(8)
    if not start.startswith(NPY) or len(start) < 8 or start[6] not in _HEADERS:
        raise ValueError(f"{what} does not begin as a .npy of versions 1 to 3 does")
    width, read = _HEADERS[start[6]]
    prefix = stream.read(width)
    length = int.from_bytes(prefix, "little")
    if length > _MOST_HEADER:
        raise ValueError(f"{what} is to have a header of {length} bytes, wanted {_MOST_HEADER} at most")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers as Python 2 wrote them
        try:
            shape, fortran, dtype = read(BytesIO(prefix + stream.read(length)))
        except (ValueError, TypeError, LookupError, SyntaxError, TokenError, RecursionError, MemoryError) as e:
            raise ValueError(f"{what} has a header that is not one that numpy writes") from e
    return tuple(int(n) for n in shape), fortran, dtype, 8 + width + length
