"""HDF5 files that are whole or absent, carry the hash of their own content, and say clearly what is wrong with them."""

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from edm3d.formats.h5_hashes import blocks, dataset_hash, datasets, digest, row_digest, walk
from edm3d.formats.h5_structure import check_structure, is_text
from edm3d.formats.spool import Spool
from edm3d.formats.wanted import as_wanted, check_is_file
from edm3d.utils.checks import check_memory, is_whole
from edm3d.utils.files import atomic_path, first_line, write_error
from edm3d.utils.plain import parse_json, shown, taken

Columns = Mapping[str, tuple[str, tuple[int, ...]]]  # type (or "strings") and shape of a row, by data set

VERSIONS = {"volumes": 1, "latents": 1, "samples": 1}  # what this code writes; newer files are refused
# what h5py raises on a damaged file, by place of the damage
DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, OverflowError, MemoryError)
CHUNK_BYTES = 4 << 20
_OWN_ATTRIBUTES = ("sha256", "content_hash")


# ---- writing ----


_spools: dict[str, Spool] = {}  # of the files being written, by name


@contextmanager
def atomic_h5(path: str | Path, needed_bytes: int = 0) -> Iterator[h5py.File]:
    """Give a new H5 file that appears under `path`, with content hashes, only if the block ends without error."""
    with atomic_path(path, needed_bytes) as temporary:
        spool = Spool(temporary, partial(write_error, path, needed_bytes))
        file = h5py.File(spool, "w", libver="latest")
        _spools[file.filename] = spool
        try:
            yield file
            spool.check()
            seal(file)
        finally:
            del _spools[file.filename]
            file.close()
            spool.close()
        spool.check()


def set_format(file: h5py.File, name: str, provenance: dict[str, Any]) -> None:
    """Write the root attributes that every file of ours has: format, version and what made it."""
    put_text(file, "format", name)
    file.attrs["version"] = VERSIONS[name]
    put_json(file, "provenance", provenance)


def put_text(node: h5py.Group | h5py.Dataset, name: str, text: str) -> None:
    """Store a text attribute at fixed length.

    Text of variable length lies in HDF5's global heap: it has no checksum, and a zeroed block in it hangs the library.
    """
    encoded = text.encode()
    node.attrs.create(name, np.array(encoded, h5py.string_dtype("utf-8", max(1, len(encoded)))))


def put_json(node: h5py.Group, name: str, value: Any) -> None:
    """Store plain data as a JSON attribute."""
    put_text(node, name, json.dumps(value))


def create(group: h5py.Group, name: str, shape: Sequence[int], dtype: Any, *, contiguous: bool = False,
           hash_rows: bool = False, compress: bool = False) -> h5py.Dataset:
    """Make an empty data set: contiguous (fast random reads, memory-mappable), or chunked with checksums and growable.

    A chunk is one row, or a part of one where a row has more than CHUNK_BYTES. A chunked data set may grow along
    its first axis (append_row); its shape may start with 0. With hash_rows every row gets a hash of its own, so that
    `read_row` need not trust fletcher32, for which a chunk of zeros is always whole. compress: chunks by gzip.
    """
    shape = tuple(int(n) for n in shape)
    if contiguous or not shape:
        return group.create_dataset(name, shape, dtype)
    row = chunk_shape(shape[1:], np.dtype(dtype).itemsize)
    dataset = group.create_dataset(name, shape, dtype, chunks=(1, *row), maxshape=(None, *shape[1:]), fletcher32=True,
                                   **({"compression": "gzip", "compression_opts": 1} if compress else {}))
    if hash_rows:
        dataset.attrs["row_sha256"] = np.zeros((0, 32), np.uint8)  # filled in by `seal`
    return dataset


def chunk_shape(row: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Halve the longest axis of a row until it has at most CHUNK_BYTES."""
    chunk = [max(1, n) for n in row]
    while chunk and itemsize * int(np.prod(chunk)) > CHUNK_BYTES:
        axis = int(np.argmax(chunk))
        chunk[axis] = -(-chunk[axis] // 2)
    return tuple(chunk)


def append_row(dataset: h5py.Dataset, row: np.ndarray) -> None:
    """Grow a chunked data set by one row; OSError when the disk of the file has filled up."""
    check_disk(dataset)
    dataset.resize(dataset.shape[0] + 1, axis=0)
    dataset[-1] = row


def write_array(group: h5py.Group, name: str, array: np.ndarray, *, contiguous: bool = False) -> h5py.Dataset:
    """Store a whole array (see `create` for the two layouts)."""
    array = np.asarray(array)
    dataset = create(group, name, array.shape, array.dtype, contiguous=contiguous)
    if array.size:
        dataset[...] = array
    check_disk(dataset)
    return dataset


def check_disk(dataset: h5py.Dataset) -> None:
    """OSError when the disk of a file that is being written has filled up."""
    spool = _spools.get(dataset.file.filename)
    if spool is not None:
        spool.check()


def write_strings(group: h5py.Group, name: str, strings: Sequence[str]) -> h5py.Dataset:
    """Store a list of strings as utf-8, all at the length of the longest (see put_text)."""
    encoded = [string.encode() for string in strings]
    dtype = h5py.string_dtype("utf-8", max([1, *map(len, encoded)]))
    return write_array(group, name, np.array(encoded, dtype), contiguous=True)


# ---- reading ----


@contextmanager
def damage_named(path: str | Path) -> Iterator[None]:
    """Turn what h5py raises on a damaged file into a ValueError that names it; errors that name it already pass."""
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(f"{path}: damaged ({error})") from error


def open_h5(path: str | Path, format: str | None = None) -> h5py.File:
    """Open a file for reading; ValueError names the file if it is missing, damaged, or of another format.

    All of it must lie in the file and be plain (see formats/h5_structure.py). With a format also names, attributes and
    stored hashes are held against the file's content_hash; what the data sets hold is not read yet (see `read`).
    """
    path = Path(path)
    check_is_h5(path, format)
    with damage_named(path):
        try:
            file = h5py.File(path, "r", locking=False)  # finished files never change, so readers need no lock
        except OSError as error:
            raise ValueError(f"{path}: {_why_closed(path, str(error))} ({first_line(error)})") from error
        try:
            is_ours = "content_hash" in file.attrs or (format is not None and format_of(file) == format)
            check_structure(file, is_ours)
            if format is not None:
                check_format(file, format)
                check_metadata(file)
        except BaseException:
            file.close()
            raise
    return file


def _why_closed(path: Path, said: str) -> str:
    """Why HDF5 does not open a file, and what to do."""
    if "already open for" in said or "consistency flags" in said:
        return (f"another process writes it, or was killed while it did; wait for its end, or, where there is none, "
                f"write the file again, or try `h5clear -s {path}` on a copy")
    if "unable to lock" in said:
        return "another program has it locked; wait for its end, or set HDF5_USE_FILE_LOCKING=FALSE"
    return f"{'truncated' if 'truncated' in said else 'cannot be opened'}, write it again"


def check_is_h5(path: Path, format: str | None = None) -> None:
    """ValueError unless a path is an HDF5 file; format: of the one that is wanted, where that is known."""
    check_is_file(path, format)
    with damage_named(path):
        if not h5py.is_hdf5(path):
            raise ValueError(f"{path}: not an HDF5 file" + (f"; {as_wanted(format)}" if format else ""))


class LazyFile:
    """A file of a format for reading, opened when first needed in each process, so that it can be pickled and forked.
    """

    def __init__(self, path: str | Path, format: str):
        self.path, self.format = Path(path), format
        self._file: h5py.File | None = None
        self._pid = 0

    def _open(self) -> h5py.File:
        if self._file is None or self._pid != os.getpid():  # a handle does not survive a fork
            self._file = None
            self._file = open_h5(self.path, self.format)
            self._pid = os.getpid()
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def close(self) -> None:
        """Close the handle of this process; the next access opens it again."""
        if self._file is not None and self._pid == os.getpid():
            self._file.close()
        self._file = None


def check_format(file: h5py.File, format: str) -> None:
    """Raise ValueError unless the file is of this format and not newer than this code."""
    got = format_of(file)
    if got != format:
        raise ValueError(f"{file.filename}: format is '{got}', {as_wanted(format)}")
    version = file.attrs.get("version", 0)
    if not is_whole(version):
        raise ValueError(f"{file.filename}: attribute 'version' of / is {shown(version)}, wanted a whole number")
    if version > VERSIONS[format]:
        raise ValueError(
            f"{file.filename}: {format} version {version} is newer than this code reads ({VERSIONS[format]}); update it"
        )


def format_of(file: h5py.File) -> str:
    """Name of the format that a file says it is of, "none" where it says nothing."""
    return get_text(file, "format") if "format" in file.attrs else "none"


def read_format(path: str | Path) -> str:
    """The same of a file that is not open."""
    with open_h5(path) as file:
        return format_of(file)


def check_holds(path: Path, format: str) -> None:
    """ValueError unless a file that is to be written is of this format already; what makes such files is not said."""
    if (got := read_format(path)) != format:
        raise ValueError(f"{path}: format is '{got}', not '{format}'")


def check_metadata(file: h5py.File) -> None:
    """Raise ValueError unless names, attributes and the stored hashes of the data sets are as they were written."""
    if "content_hash" not in file.attrs:
        raise ValueError(f"{file.filename}: carries no content hash, so damage would not be seen; seal it (formats.h5)")
    if _content_hash(file) != get_text(file, "content_hash"):
        raise ValueError(f"{file.filename}: damaged, metadata differs from the stored content hash")


def get_text(node: h5py.Group | h5py.Dataset, name: str) -> str:
    """Read a text attribute; ValueError names file and attribute if it is missing or something else."""
    where = f"{node.file.filename}: attribute '{name}' of {node.name}"
    if name not in node.attrs:
        raise ValueError(f"{where} is missing")
    value = node.attrs[name] if is_text(node, name) else None
    if not isinstance(value, bytes):  # an array of several
        raise ValueError(f"{where} is not text, of fixed length")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 ({error})") from error


def get_json(node: h5py.Group, name: str, hint: Any = Any) -> Any:
    """Read a JSON attribute; ValueError names file and attribute if it is missing, unreadable, or not as hinted."""
    value = parse_json(get_text(node, name), f"{node.file.filename}: attribute '{name}' of {node.name}")
    return taken(value, hint, node.file.filename, f"attribute '{name}' of {node.name}")


def need(group: h5py.Group, name: str, kind: type = h5py.Dataset) -> Any:
    """Return a data set (or what `kind` says) of a group; ValueError names file and data set if it is missing."""
    found, where = group.get(name), f"{group.file.filename}: {group.name.rstrip('/')}/{name}"
    if found is None:
        raise ValueError(f"{where} is missing")
    if not isinstance(found, kind):
        raise ValueError(f"{where} is a {type(found).__name__.lower()}, wanted a {kind.__name__.lower()}")
    return found


def shape_of(group: h5py.Group, name: str) -> tuple[int, ...]:
    """Shape [N,...] of a data set that has rows; ValueError names file and data set if it is missing or has none."""
    dataset = need(group, name)
    if not dataset.shape:
        raise ValueError(f"{group.file.filename}: {dataset.name} is a single value, wanted rows")
    return tuple(map(int, dataset.shape))


def check_columns(group: h5py.Group, rows: int, columns: Columns, needed: Collection[str]) -> None:
    """Raise ValueError unless the data sets of a group have these types and row shapes; those not needed may lack.

    Further ones only need as many rows.
    """
    for name in dict.fromkeys((*needed, *group)):
        dataset = need(group, name)
        dtype = "strings" if h5py.check_string_dtype(dataset.dtype) else str(dataset.dtype)
        wanted_dtype, row = columns.get(name, (dtype, dataset.shape[1:]))
        if (dtype, dataset.shape) != (wanted_dtype, (rows, *row)):
            raise ValueError(f"{group.file.filename}: {dataset.name} is {dtype} {dataset.shape}, "
                             f"wanted {wanted_dtype} {(rows, *row)}")


def read(dataset: h5py.Dataset) -> np.ndarray:
    """All values of a data set; ValueError when they are not those of its stored hash. Strings come as bytes."""
    path = dataset.file.filename
    with damage_named(path):
        check_memory(dataset.name, dataset.nbytes)
        values = np.asarray(dataset[()], dataset.dtype.newbyteorder("="))
        if digest(dataset, [values]) != get_text(dataset, "sha256"):
            raise ValueError(f"{path}: damaged, {dataset.name} differs from its stored hash")
    return values


def problem_of(dataset: h5py.Dataset) -> str:
    """What is wrong with the values of a data set, read block by block and held against its hash; "" for nothing."""
    where = f"{dataset.file.filename}: damaged, {dataset.name}"
    try:
        return "" if dataset_hash(dataset) == get_text(dataset, "sha256") else f"{where} differs from its stored hash"
    except DAMAGE as error:
        return f"{where} cannot be read ({error})"


def row_hashes(dataset: h5py.Dataset) -> np.ndarray | None:
    """Hashes [N,32] uint8 of the rows of a data set made with hash_rows, None for others."""
    with damage_named(dataset.file.filename):
        hashes = dataset.attrs.get("row_sha256")
    if hashes is not None and (np.shape(hashes), hashes.dtype) != ((dataset.shape[:1] + (32,)), np.uint8):
        raise ValueError(f"{dataset.file.filename}: attribute 'row_sha256' of {dataset.name} is {np.shape(hashes)}, "
                         f"wanted uint8 {(*dataset.shape[:1], 32)}")
    return hashes


def read_row(dataset: h5py.Dataset, index: int, hashes: np.ndarray | None) -> np.ndarray:
    """One row of a data set, held against `hashes` (see row_hashes); ValueError when it is damaged."""
    where = f"{dataset.file.filename}: {dataset.name}, row {index}, is damaged"
    try:
        check_memory(f"a row of {dataset.name}", dataset.nbytes // dataset.shape[0])
        row = dataset[index]
        whole = hashes is None or row_digest(row) == hashes[index].tobytes()
    except DAMAGE as error:
        raise ValueError(f"{where} ({error})") from error
    if not whole:
        raise ValueError(f"{where}: it differs from its stored hash")
    return row


def read_strings(dataset: h5py.Dataset) -> list[str]:
    """Read a utf-8 string list as `read` does."""
    with damage_named(dataset.file.filename):
        return [string.decode() for string in read(dataset)]


# ---- content hashes ----


def seal(file: h5py.File) -> None:
    """Store the SHA-256 of every data set on it, and of all of them with all metadata as the root's content_hash."""
    for dataset in datasets(file):
        if "row_sha256" in dataset.attrs:
            digests = b"".join(row_digest(row) for block in blocks(dataset) for row in block)
            dataset.attrs["row_sha256"] = np.frombuffer(digests, np.uint8).reshape(-1, 32)
        put_text(dataset, "sha256", dataset_hash(dataset))
    put_text(file, "content_hash", _content_hash(file))


def _content_hash(file: h5py.File) -> str:
    entries = []
    for node in walk(file):
        attributes = {k: _plain(v) for k, v in node.attrs.items() if k not in _OWN_ATTRIBUTES}
        stored = get_text(node, "sha256") if isinstance(node, h5py.Dataset) else ""
        entries.append([node.name, stored, attributes])
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, np.ndarray):
        return [value.dtype.str, list(value.shape), value.tobytes().hex()]
    return value.tolist() if isinstance(value, np.generic) else value


def verify(path: str | Path) -> list[str]:
    """Read everything and compare with the stored hashes; returns what is wrong, one line each, [] if all is well."""
    try:
        with open_h5(path) as file, damage_named(path):
            found = datasets(file)
            problems = [p for dataset in found if "content_hash" in file.attrs and (p := problem_of(dataset))]
            if not problems:
                check_metadata(file)
            return problems
    except ValueError as error:
        return [str(error)]
