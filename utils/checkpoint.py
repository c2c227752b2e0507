"""Snapshots and training states: tensors and plain data in one file, written whole or not at all, checked on load."""

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from edm3d.utils.files import atomic_path, first_line, write_error

VERSION = 2
KINDS = ("snapshot", "state")


def walk(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Leaves of nested dicts, lists and tuples with their paths, in a fixed order; containers give what they hold."""
    if isinstance(value, dict):
        yield path, sorted(value, key=str)
        for key in sorted(value, key=str):
            yield from walk(value[key], f"{path}/{key}")
    elif isinstance(value, (list, tuple)):
        yield path, len(value) if isinstance(value, list) else (len(value),)
        for i, part in enumerate(value):
            yield from walk(part, f"{path}/{i}")
    else:
        yield path, value


def checksum(value: object) -> str:
    """sha256 over a tree of tensors and plain data: values, shapes, dtypes and paths."""
    digest = hashlib.sha256()
    for path, leaf in walk(value):
        digest.update(path.encode())
        if isinstance(leaf, torch.Tensor):
            digest.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
            digest.update(raw_bytes(leaf))
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()


def raw_bytes(tensor: torch.Tensor) -> np.ndarray:
    """The values of a tensor as bytes in order, whatever its strides and device; a view where it can be one."""
    flat = tensor.detach().reshape(-1)
    if not flat.is_cpu or flat.stride() != (1,):
        flat = torch.empty(flat.numel(), dtype=flat.dtype).copy_(flat)
    return flat.view(torch.uint8).numpy()


def tensor_bytes(value: object) -> int:
    """Bytes held by the tensors of a tree."""
    return sum(leaf.numel() * leaf.element_size() for _, leaf in walk(value) if isinstance(leaf, torch.Tensor))


def save(path: Path, kind: str, payload: dict) -> None:
    """Write a file of a kind (snapshot, state) whole or not at all; the error says how much disk was needed."""
    assert kind in KINDS
    data = {**payload, "format": kind, "version": VERSION}
    data["checksum"] = checksum(data)
    needed = int(tensor_bytes(data) * 1.05) + 2**20
    with atomic_path(path, needed) as temporary:
        try:
            torch.save(data, temporary)
        except RuntimeError as e:  # what torch makes of a write that fails
            raise write_error(path, needed, e) from e


class Checked(NamedTuple):
    """What a file holds, and its checksum, with which that agrees."""

    content: dict
    checksum: str


def load(path: Path, kind: str) -> Checked:
    """Read a file of a kind; ValueError when it is missing, damaged, of another kind or of a newer version."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such {kind} file")
    data = read_plain(path)
    found = data.get("format") if isinstance(data, dict) else type(data).__name__
    if not isinstance(found, str) or found != kind:
        raise ValueError(f"{path}: wanted a {kind}, this is {found!r:.60}")
    version, stored = data.get("version"), data.pop("checksum", None)
    if not isinstance(version, int) or version > VERSION:
        raise ValueError(f"{path}: format version {version!r:.60}, this program reads up to {VERSION}; update it")
    try:
        whole = stored == checksum(data)
    except Exception as e:  # tensors and nestings that no file of ours holds
        raise ValueError(f"{path}: not what a {kind} file holds: {first_line(e)}") from e
    if not whole:
        older = f" or of an older program (format version {version})" if version < VERSION else ""
        raise ValueError(f"{path}: the checksum does not match, the file is damaged{older}")
    return Checked(data, stored)


def read_plain(path: Path) -> object:
    """The content of a torch file: tensors and plain data; ValueError when it is damaged or holds anything else."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not look at the CRCs
            damaged = archive.testzip()
    except Exception as e:  # zipfile raises what it pleases on a damaged file
        raise ValueError(f"{path}: damaged or incomplete, or no file of this program") from e
    if damaged:
        raise ValueError(f"{path}: the file is damaged, a checksum inside it does not match")
    try:
        with warnings.catch_warnings(action="ignore"):  # what it warns of is no file of ours, and refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise ValueError(f"{path}: refused, it is not plain tensors and data: {first_line(e)}") from e
    except Exception as e:  # whatever else a hostile or damaged file provokes
        raise ValueError(f"{path}: damaged, or no file of this program") from e
