"""NIfTI-1 and NIfTI-2 in one file: the header by nibabel, the voxels in one go, and what lies behind them.

A .nii.gz is read to its end, as only there gzip compares its checksum. Never more is allocated or unpacked than the
header says that is there, and could be there.
"""

import gzip
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from math import prod
from pathlib import Path

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling

from edm3d.formats.looks import HEAD, UNKNOWN, looks_like
from edm3d.utils.checks import MOST_GROWTH, check_memory
from edm3d.utils.files import amount

_KINDS = (nibabel.Nifti1Header, nibabel.Nifti2Header)
_MM = {"meter": 1e3, "micron": 1e-3}
_MOST_EXTENSIONS = 1 << 28  # bytes between header and voxels
_REST = 1 << 12  # bytes that may follow the voxels, where these are as many: some programs fill a block
_MOST_AXES = 7
_SLACK = 1 << 16  # bytes, so that the bound on what is claimed does not hinge on headers
_CHUNK = 1 << 20  # bytes that are unpacked at a time
_REFUSED = 40  # level of what nibabel finds in a header from which on it gives up; it mends what is below
_SILENT = logging.Logger("nibabel's findings", logging.CRITICAL + 1)


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels as nibabel gives them, scaled, and the affine [4,4] in mm; ValueError, or an error of nibabel or gzip."""
    with _opened(path) as stream:
        header = _header(stream)
        shape, dtype, start = _layout(header)
        count = _checked_claim(shape, dtype, path.stat().st_size, path.suffix.lower() == ".gz")
        affine = _affine(header, shape)
        slope, inter = header.get_slope_inter()
        if _skip(stream, start - header.sizeof_hdr) < start - header.sizeof_hdr:
            raise ValueError(f"its voxels are to begin at byte {start}, behind its end")
        content = _fill(stream, count)
        if _skip(stream, (most := min(_REST, count)) + 1) > most:
            raise ValueError(f"it goes on behind the {'x'.join(map(str, shape))} voxels of {dtype} that its header "
                             "claims: the header is damaged")
    return apply_read_scaling(np.ndarray(shape, dtype, buffer=content, order="F"), slope, inter), affine


@contextmanager
def _opened(path: Path) -> Iterator[BufferedIOBase]:
    """The file as it was before it was compressed."""
    with open(path, "rb") as file:
        if path.suffix.lower() != ".gz":
            yield file
            return
        head = file.read(HEAD)
        if not head.startswith(b"\x1f\x8b"):
            raise ValueError(looks_like(head))
        file.seek(0)
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield unpacked


def _refusal(head: bytes) -> str:
    """Why a file without the header of a NIfTI cannot be one."""
    if (what := looks_like(head)) == UNKNOWN and len(head) < _KINDS[0].sizeof_hdr:
        return f"it ends after {len(head)} bytes, within its header"
    return what


def _header(stream: BufferedIOBase) -> nibabel.Nifti1Header:
    """The header, mended as nibabel does it where that leaves no doubt."""
    block = stream.read(_KINDS[0].sizeof_hdr)
    if not _KINDS[0].may_contain_header(block):
        block += stream.read(_KINDS[1].sizeof_hdr - _KINDS[0].sizeof_hdr)
    kind = next((kind for kind in _KINDS if kind.may_contain_header(block[:kind.sizeof_hdr])), None)
    if kind is None:
        raise ValueError(_refusal(block))
    header = kind(block[:kind.sizeof_hdr], check=False)
    _check_fields(header)
    header.check_fix(logger=_SILENT, error_level=_REFUSED)
    return header


def _check_fields(header: nibabel.Nifti1Header) -> None:
    """ValueError for what nibabel would mend by a guess, or take as it is."""
    if not 1 <= (axes := int(header["dim"][0])) <= _MOST_AXES:
        raise ValueError(f"its header claims {axes} axes (dim[0]), wanted 1 to {_MOST_AXES}")
    for name in ("sform_code", "qform_code"):
        if (code := int(header[name])) not in header._field_recoders[name].value_set():
            raise ValueError(f"{name} in its header is {code}, which stands for nothing")
    sizes = header["pixdim"][1:4]
    if header["sform_code"] == 0:  # else the voxel sizes are those of the sform
        used = [size for size, n in zip(sizes, header["dim"][1:4]) if n > 1][:axes]
        if not np.isfinite(used).all() or 0 in used:
            raise ValueError(f"its header gives voxels of {'x'.join(f'{size:g}' for size in sizes)} (pixdim), and no "
                             "other geometry")


def _layout(header: nibabel.Nifti1Header) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, type and first byte of the voxels."""
    shape, dtype, start = header.get_data_shape(), header.get_data_dtype(), header["vox_offset"].item()
    if dtype.kind not in "biuf":
        raise ValueError(f"values of type {header.get_value_label('datatype')} are not numbers of one channel each")
    if not header.sizeof_hdr <= start <= _MOST_EXTENSIONS:
        raise ValueError(f"its voxels are to begin at byte {start:g} (vox_offset), wanted one behind the header" + (
            "; it is the header of a pair .hdr and .img" if header["magic"].item().startswith(b"ni") else ""))
    return tuple(int(n) for n in shape), dtype, int(start)


def _affine(header: nibabel.Nifti1Header, shape: tuple[int, ...]) -> np.ndarray:
    """Voxel index -> mm: by the sform where there is one, else by the qform, else by the voxel sizes."""
    try:
        unit = _MM.get(header.get_xyzt_units()[0], 1.0)
    except KeyError:
        raise ValueError(f"the unit of its voxel sizes is {int(header['xyzt_units'])} (xyzt_units), which stands for "
                         "nothing") from None
    try:
        affine = header.get_best_affine()
    except (HeaderDataError, ValueError) as e:
        raise ValueError(f"its qform is no rotation ({e})") from e
    return np.diag([unit, unit, unit, 1.0]) @ affine


# ---- no more than there can be ----


def _checked_claim(shape: tuple[int, ...], dtype: np.dtype, file_bytes: int, is_packed: bool) -> int:
    """Bytes of an array as its header says; ValueError where a file of that size cannot hold them, nor the memory.

    is_packed: whether they are deflated in the file.
    """
    if any(n < 0 for n in shape):
        raise ValueError(f"its header claims the shape {shape}")
    if 0 in shape:
        raise ValueError(f"its shape is {shape}: it holds no values")
    claimed = prod(shape) * dtype.itemsize
    most = MOST_GROWTH * file_bytes + _SLACK if is_packed else file_bytes
    what = f"{'x'.join(map(str, shape)) or 'one'} values of {dtype}"
    if claimed > most:
        raise ValueError(f"its header claims {what}, {_size(claimed)}, and the {_size(file_bytes)} of the file cannot "
                         "hold them: it is cut off, or its header is damaged")
    check_memory(f"an array of {what}", claimed)
    return claimed


def _size(count: int) -> str:
    return amount(count) if count >= 1 << 20 else f"{count:,} bytes"


def _fill(stream: BufferedIOBase, count: int) -> np.ndarray:
    """The next `count` bytes of a stream; ValueError where there are fewer."""
    content, done = np.empty(count, np.uint8), 0  # takes no memory before it is written to
    view = memoryview(content)
    while done < count:
        got = stream.readinto(view[done:done + _CHUNK])
        if not got:
            raise ValueError(f"it ends after {done} of {count} bytes of values: it is cut off, or its header is "
                             "damaged")
        done += got
    return content


def _skip(stream: BufferedIOBase, count: int) -> int:
    """Read over the next `count` bytes of a stream, and say how many there were."""
    done = 0
    while done < count and (got := len(stream.read(min(_CHUNK, count - done)))):
        done += got
    return done
