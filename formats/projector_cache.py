"""System matrices of projectors on disk, one file per geometry: read where it holds what was written, else made anew.

Worth it where a matrix takes a second or more, from some 128 x 128 pixels on; whoever asks decides.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from scipy.sparse import csr_array

from edm3d.formats.kept_arrays import read_kept, write_kept
from edm3d.utils.files import first_line, remove_temporary
from edm3d.utils.locks import Busy, take

_ARRAYS = {"data": "<f8", "indices": "<i4", "indptr": "<i8", "shape": "<i8"}
_LONGEST = 300.0  # seconds that another process may take for a matrix


class MatrixGeometry(Protocol):
    """Lines across an image, as physics.projector.ParallelBeam."""

    @property
    def matrix_shape(self) -> tuple[int, int]: ...
    def key(self) -> str: ...


class Cached(NamedTuple):
    """A system matrix; note: why it is not kept on disk, None where it is."""

    matrix: csr_array
    note: str | None = None


def cached_matrix(geometry: MatrixGeometry, compute: Callable[[], csr_array], folder: str | Path) -> Cached:
    """The system matrix of a geometry, out of its file in the folder where that is whole, else made and written there.

    The file is named by the hash of the geometry and says it inside, with a checksum: one that is damaged, half written
    or of another geometry is made anew. Of processes that start together one computes, and the others wait for it.
    Where nothing can be written the matrix is made, and the note says why it was not kept.
    """
    path = Path(folder) / f"projector-{geometry.key()[:24]}.npz"
    matrix = _read(path, geometry)
    if matrix is not None:
        return Cached(matrix)
    try:
        with _turn(path):
            matrix = _read(path, geometry)  # another process may have written it meanwhile
            if matrix is None:
                matrix = compute()
                remove_temporary(path.parent, path.name, spare_living=True)
                _write(path, matrix, geometry)
    except (OSError, ValueError) as error:
        if matrix is None:
            matrix = compute()
        return Cached(matrix, f"{path}: the projector is not kept ({first_line(error)}); it is made anew each time")
    return Cached(matrix)


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Wait until no other process makes the file; ValueError for one that takes too long, OSError where none can be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, handle, end = path.with_name(f".lock-{path.name}"), None, time.monotonic() + _LONGEST
    while True:
        try:
            handle = take(lock)
            break
        except Busy as busy:
            if time.monotonic() > end:
                raise ValueError(f"{busy.owner} has been making it for {_LONGEST:.0f} seconds") from busy
        time.sleep(0.05)
    try:
        yield
    finally:
        if handle:
            lock.unlink(missing_ok=True)
            handle.close()


def _write(path: Path, matrix: csr_array, geometry: MatrixGeometry) -> None:
    matrix.sort_indices()
    arrays = {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr, "shape": np.array(matrix.shape)}
    write_kept(path, geometry.key(), {name: np.asarray(array, _ARRAYS[name]) for name, array in arrays.items()})


def _read(path: Path, geometry: MatrixGeometry) -> csr_array | None:
    """The matrix of a file; None where there is no file, or not all in it is as it was written for the geometry."""
    arrays = read_kept(path, geometry.key())
    return None if arrays is None or arrays.keys() != _ARRAYS.keys() else _matrix(arrays, geometry.matrix_shape)


def _matrix(arrays: dict[str, np.ndarray], shape: tuple[int, int]) -> csr_array | None:
    """What the arrays say, None where they are no matrix of lengths of this shape, whatever their checksum."""
    data, indices, indptr = (arrays[name] for name in ("data", "indices", "indptr"))
    if any(arrays[name].dtype != dtype or arrays[name].ndim != 1 for name, dtype in _ARRAYS.items()):
        return None
    sound = (tuple(arrays["shape"]) == shape and len(indptr) == shape[0] + 1 and len(data) == len(indices)
             and indptr[0] == 0 and indptr[-1] == len(data) and (np.diff(indptr) >= 0).all()
             and (indices >= 0).all() and (indices < shape[1]).all()
             and np.isfinite(data).all() and (data >= 0).all())
    return csr_array((data, indices, indptr), shape=shape) if sound else None
