"""Arrays in .npy and .npz files of others: nothing is unpickled, and no claim of a header is believed unchecked."""

import warnings
import zipfile
from collections.abc import Sequence
from io import BufferedIOBase, BytesIO
from pathlib import Path
from tokenize import TokenError

import numpy as np

from edm3d.formats.bounded import DEFLATE, check_claim, fill
from edm3d.formats.looks import HEAD, looks_like

AFFINE = "affine"
_MAGIC, _ZIP = b"\x93NUMPY", b"PK"
_MOST_HEADER = 10_000  # bytes, as numpy takes them
_HEADERS = {1: (2, np.lib.format.read_array_header_1_0), 2: (4, np.lib.format.read_array_header_2_0),
            3: (4, np.lib.format.read_array_header_2_0)}  # 3 is 2 with other letters in names of fields


def read_npy(path: Path, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """The array of a .npy, or that of an .npz by the first of `keys` that is there, or its only one; and its affine.

    ValueError, or an error of zipfile.
    """
    with open(path, "rb") as file:
        head = file.read(HEAD)
        file.seek(0)
        if head.startswith(_MAGIC):
            return _array(file, path.stat().st_size), None
        if not head.startswith(_ZIP):
            raise ValueError(looks_like(head))
        with zipfile.ZipFile(file) as archive:
            return _members(archive, keys)


def names_of(path: Path) -> list[str]:
    """Names of the arrays of an .npz; ValueError, or an error of zipfile."""
    with open(path, "rb") as file:
        head = file.read(HEAD)
        if head and not head.startswith(_ZIP):
            raise ValueError(looks_like(head))
        with zipfile.ZipFile(file) as archive:
            return [_name(info) for info in archive.infolist()]


def _name(info: zipfile.ZipInfo) -> str:
    return info.filename.removesuffix(".npy")


def _members(archive: zipfile.ZipFile, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray | None]:
    members = {_name(info): info for info in archive.infolist()}
    arrays = [name for name in members if name != AFFINE]
    key = next((key for key in keys if key in arrays), arrays[0] if len(arrays) == 1 else None)
    if key is None:
        raise ValueError(f"it holds {arrays}, wanted '{keys[0]}' or a single array")
    array = _member(archive, members[key])
    if AFFINE not in members:
        return array, None
    affine = _member(archive, members[AFFINE])
    if affine.shape != (4, 4):
        raise ValueError(f"its affine has shape {affine.shape}, wanted (4, 4)")
    return array, affine.astype(np.float64)


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """An array, read to its end, where zipfile compares its checksum."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} in it is compressed as numpy never does")
    if info.file_size > DEFLATE * (info.compress_size + 64):
        raise ValueError(f"{info.filename} in it claims {info.file_size} bytes in {info.compress_size} compressed ones")
    with archive.open(info) as stream:
        return _array(stream, info.file_size, f"{info.filename}: ")


def _array(stream: BufferedIOBase, size: int, name: str = "") -> np.ndarray:
    """An array of numbers, the only content of a stream of `size` bytes."""
    shape, is_fortran, dtype, header = _header(stream)
    if dtype.hasobject:
        raise ValueError(f"{name}it holds Python objects, which are programs and are not read; save plain numbers")
    if dtype.kind not in "biuf":
        raise ValueError(f"{name}values of type {dtype} are not numbers of one channel each")
    count = check_claim(shape, dtype, size - header, is_packed=False)
    if count != size - header:
        raise ValueError(f"{name}its header claims {'x'.join(map(str, shape))} values of {dtype}, {count} bytes, and "
                         f"there are {size - header}")
    return np.ndarray(shape, dtype, buffer=fill(stream, count), order="F" if is_fortran else "C")


def _header(stream: BufferedIOBase) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, whether the first axis runs fastest, type, and the bytes that say so."""
    start = stream.read(8)
    if not start.startswith(_MAGIC) or len(start) < 8 or start[6] not in _HEADERS:
        raise ValueError("it does not begin as a .npy of versions 1 to 3 does")
    width, read = _HEADERS[start[6]]
    prefix = stream.read(width)
    length = int.from_bytes(prefix, "little")
    if length > _MOST_HEADER:
        raise ValueError(f"its header is to have {length} bytes, wanted {_MOST_HEADER} at most")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers as Python 2 wrote them
        try:
            shape, is_fortran, dtype = read(BytesIO(prefix + stream.read(length)))
        except (ValueError, TypeError, LookupError, SyntaxError, TokenError, RecursionError, MemoryError) as e:
            raise ValueError("its header is not one that numpy writes") from e
    return tuple(int(n) for n in shape), is_fortran, dtype, 8 + width + length
