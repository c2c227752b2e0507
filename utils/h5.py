"""HDF5 files that are whole or absent, carry the hash of their own content, and say clearly what is wrong with them."""

import errno
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from utils.files import atomic_path

VERSIONS = {"volumes": 1, "latents": 1, "samples": 1}  # what this code writes; newer files are refused
DAMAGE = (OSError, RuntimeError, KeyError, ValueError)  # what h5py raises on a damaged file, by place of the damage
CHUNK_BYTES = 4 << 20
_BLOCK_BYTES = 16 << 20
_OWN_ATTRIBUTES = ("sha256", "content_hash")


# ---- writing ----


@contextmanager
def atomic_h5(path: str | Path, needed_bytes: int = 0) -> Iterator[h5py.File]:
    """Give a new H5 file that appears under `path`, with content hashes, only if the block ends without error."""
    with atomic_path(path, needed_bytes) as temporary:
        file = h5py.File(temporary, "w", libver="latest", locking=False)
        try:
            yield file
            _finish(file, path)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise OSError(f"{path}: the disk filled up while writing; nothing was kept, free some space") from error
        finally:
            # After an error the file is deleted anyway, and the error that led here is the one the user must see.
            with suppress(OSError, RuntimeError):
                file.close()


def _finish(file: h5py.File, path: str | Path) -> None:
    try:
        seal(file)
        file.close()
    except RuntimeError as error:  # what h5py makes of a flush that fails in the middle, as on a full disk
        raise OSError(f"{path}: could not be written, is the disk full? ({str(error).splitlines()[0]})") from error


def set_format(file: h5py.File, name: str, provenance: dict[str, Any]) -> None:
    """Write the root attributes that every file of ours has: format, version and what made it."""
    file.attrs["format"] = name
    file.attrs["version"] = VERSIONS[name]
    put_json(file, "provenance", provenance)


def put_json(node: h5py.Group, name: str, value: Any) -> None:
    """Store plain data as a JSON attribute."""
    node.attrs[name] = json.dumps(value)


def create(group: h5py.Group, name: str, shape: Sequence[int], dtype: Any, *, contiguous: bool = False) -> h5py.Dataset:
    """Make an empty data set: contiguous (fast random reads, memory-mappable), or chunked with checksums and growable.

    A chunk is one row, or a part of one where a row has more than CHUNK_BYTES. A chunked data set may grow along
    its first axis (append_row); its shape may start with 0.
    """
    shape = tuple(int(n) for n in shape)
    if contiguous or not shape:
        return group.create_dataset(name, shape, dtype)
    row = chunk_shape(shape[1:], np.dtype(dtype).itemsize)
    return group.create_dataset(name, shape, dtype, chunks=(1, *row), maxshape=(None, *shape[1:]), fletcher32=True)


def chunk_shape(row: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Halve the longest axis of a row until it has at most CHUNK_BYTES."""
    chunk = [max(1, n) for n in row]
    while chunk and itemsize * int(np.prod(chunk)) > CHUNK_BYTES:
        axis = int(np.argmax(chunk))
        chunk[axis] = -(-chunk[axis] // 2)
    return tuple(chunk)


def append_row(dataset: h5py.Dataset, row: np.ndarray) -> None:
    """Grow a chunked data set by one row."""
    dataset.resize(dataset.shape[0] + 1, axis=0)
    dataset[-1] = row


def write_array(group: h5py.Group, name: str, array: np.ndarray, *, contiguous: bool = False) -> h5py.Dataset:
    """Store a whole array (see `create` for the two layouts)."""
    array = np.asarray(array)
    dataset = create(group, name, array.shape, array.dtype, contiguous=contiguous)
    if array.size:
        dataset[...] = array
    return dataset


def write_strings(group: h5py.Group, name: str, strings: Sequence[str]) -> h5py.Dataset:
    """Store a list of strings as utf-8."""
    return group.create_dataset(name, data=list(strings), shape=(len(strings),), dtype=h5py.string_dtype("utf-8"))


# ---- reading ----


def open_h5(path: str | Path, format: str | None = None) -> h5py.File:
    """Open a file for reading; ValueError names the file if it is missing, damaged, or of another format."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if not h5py.is_hdf5(path):
        raise ValueError(f"{path}: not an HDF5 file")
    try:
        file = h5py.File(path, "r", locking=False)  # finished files never change, so readers need no lock
    except OSError as error:
        what = "truncated" if "truncated" in str(error) else "cannot be opened"
        raise ValueError(f"{path}: {what}, write it again ({error})") from error
    if format is not None:
        try:
            check_format(file, format)
        except ValueError:
            file.close()
            raise
    return file


def check_format(file: h5py.File, format: str) -> None:
    """Raise ValueError unless the file is of this format and not newer than this code."""
    got = file.attrs.get("format", "none")
    if got != format:
        raise ValueError(f"{file.filename}: format is '{got}', wanted a '{format}' file")
    version = int(file.attrs.get("version", 0))
    if version > VERSIONS[format]:
        raise ValueError(
            f"{file.filename}: {format} version {version} is newer than this code reads ({VERSIONS[format]}); update it"
        )


def get_json(node: h5py.Group, name: str) -> Any:
    """Read a JSON attribute; ValueError names file and attribute if it is missing or unreadable."""
    if name not in node.attrs:
        raise ValueError(f"{node.file.filename}: attribute '{name}' of {node.name} is missing")
    try:
        return json.loads(node.attrs[name])
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{node.file.filename}: attribute '{name}' of {node.name} is not JSON: {error}") from error


def need(group: h5py.Group, name: str) -> h5py.Dataset:
    """Return a data set of a group; ValueError names file and data set if it is missing."""
    if not isinstance(group.get(name), h5py.Dataset):
        raise ValueError(f"{group.file.filename}: {group.name.rstrip('/')}/{name} is missing")
    return group[name]


def read_strings(dataset: h5py.Dataset) -> list[str]:
    """Read a utf-8 string list."""
    return [str(s) for s in dataset.asstr()[()]]


# ---- content hashes ----


def seal(file: h5py.File) -> None:
    """Store the SHA-256 of every data set on it, and of all of them with all metadata as the root's content_hash."""
    for node in _walk(file):
        if isinstance(node, h5py.Dataset):
            node.attrs["sha256"] = dataset_hash(node)
    file.attrs["content_hash"] = _content_hash(file)


def dataset_hash(dataset: h5py.Dataset) -> str:
    """SHA-256 of type, shape and values, whatever the layout in the file."""
    text = h5py.check_string_dtype(dataset.dtype) is not None
    digest = hashlib.sha256(f"{'utf-8' if text else dataset.dtype.newbyteorder('<').str}{dataset.shape}".encode())
    for block in _blocks(dataset):
        if text:
            for string in np.ravel(block):
                digest.update(len(string).to_bytes(8, "little") + string)
        else:
            digest.update(np.ascontiguousarray(block, dataset.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def _blocks(dataset: h5py.Dataset) -> Iterator[np.ndarray]:
    if not dataset.shape:
        yield np.asarray(dataset[()])
        return
    if dataset.size == 0:
        return
    step = max(1, _BLOCK_BYTES // max(1, dataset.dtype.itemsize * dataset.size // dataset.shape[0]))
    for start in range(0, dataset.shape[0], step):
        yield dataset[start : start + step]


def _walk(group: h5py.Group) -> Iterator[h5py.Group | h5py.Dataset]:
    yield group
    for name in sorted(group):
        node = group[name]
        if isinstance(node, h5py.Group):
            yield from _walk(node)
        else:
            yield node


def _content_hash(file: h5py.File) -> str:
    entries = []
    for node in _walk(file):
        attributes = {k: _plain(v) for k, v in node.attrs.items() if k not in _OWN_ATTRIBUTES}
        stored = node.attrs["sha256"] if isinstance(node, h5py.Dataset) else ""
        entries.append([node.name, stored, attributes])
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def verify(path: str | Path) -> list[str]:
    """Read everything and compare with the stored hashes; returns what is wrong, one line each, [] if all is well."""
    try:
        file = open_h5(path)
    except ValueError as error:
        return [str(error)]
    with file:
        try:
            nodes = list(_walk(file))
            if "content_hash" not in file.attrs:
                return [f"{path}: carries no content hash, so damage would not be seen"]
            problems = [p for node in nodes if isinstance(node, h5py.Dataset) for p in _dataset_problems(path, node)]
            if not problems and _content_hash(file) != file.attrs["content_hash"]:
                problems = [f"{path}: metadata differs from the stored content hash"]
            return problems
        except DAMAGE as error:
            return [f"{path}: damaged ({error})"]


def _dataset_problems(path: str | Path, dataset: h5py.Dataset) -> list[str]:
    try:
        if dataset_hash(dataset) != dataset.attrs["sha256"]:
            return [f"{path}: {dataset.name} differs from its stored hash"]
    except DAMAGE as error:
        return [f"{path}: {dataset.name} cannot be read ({error})"]
    return []
