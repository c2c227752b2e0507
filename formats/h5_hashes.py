"""Hashes of what lies in an HDF5 file, whatever its layout there."""

import hashlib
from collections.abc import Iterable, Iterator

import h5py
import numpy as np

_BLOCK_BYTES = 4 << 20


def dataset_hash(dataset: h5py.Dataset) -> str:
    """SHA-256 of type, shape and values, whatever the layout in the file."""
    return digest(dataset, blocks(dataset))


def digest(dataset: h5py.Dataset, values: Iterable[np.ndarray]) -> str:
    """The same of its values, in blocks of rows."""
    text = h5py.check_string_dtype(dataset.dtype) is not None
    found = hashlib.sha256(f"{'utf-8' if text else dataset.dtype.newbyteorder('<').str}{dataset.shape}".encode())
    for block in values:
        if text:
            for string in np.ravel(block):
                found.update(len(string).to_bytes(8, "little") + string)
        else:
            found.update(np.ascontiguousarray(block, dataset.dtype.newbyteorder("<")).data)
    return found.hexdigest()


def row_digest(row: np.ndarray) -> bytes:
    """SHA-256 of a row."""
    dtype = row.dtype.newbyteorder("<")
    found = hashlib.sha256(f"{dtype.str}{row.shape}".encode())
    found.update(np.ascontiguousarray(row, dtype).data)
    return found.digest()


def blocks(dataset: h5py.Dataset) -> Iterator[np.ndarray]:
    """The values of a data set in blocks of rows."""
    if not dataset.shape:
        yield np.asarray(dataset[()])
        return
    if dataset.size == 0:
        return
    step = max(1, _BLOCK_BYTES // max(1, dataset.dtype.itemsize * dataset.size // dataset.shape[0]))
    for start in range(0, dataset.shape[0], step):
        yield dataset[start : start + step]


def walk(group: h5py.Group) -> Iterator[h5py.Group | h5py.Dataset]:
    """A group and all below it, by name."""
    yield group
    for name in sorted(group):
        node = group[name]
        if isinstance(node, h5py.Group):
            yield from walk(node)
        else:
            yield node


def datasets(group: h5py.Group) -> list[h5py.Dataset]:
    """All data sets in a group and below it."""
    return [node for node in walk(group) if isinstance(node, h5py.Dataset)]
