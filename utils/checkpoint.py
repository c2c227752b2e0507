"""Snapshots and training states: tensors and plain data in one file, written whole or not at all, checked on load."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch

from utils.files import atomic_path

VERSION = 1
KINDS = ("snapshot", "state")


def walk(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Leaves of nested dicts, lists and tuples with their paths, in a fixed order."""
    if isinstance(value, dict):
        yield path, sorted(map(str, value))
        for key in sorted(value, key=str):
            yield from walk(value[key], f"{path}/{key}")
    elif isinstance(value, (list, tuple)):
        yield path, len(value)
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
            flat = torch.empty(leaf.numel(), dtype=leaf.dtype).copy_(leaf.detach().reshape(-1))  # whatever its strides
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()


def tensor_bytes(value: object) -> int:
    """Bytes held by the tensors of a tree."""
    return sum(leaf.numel() * leaf.element_size() for _, leaf in walk(value) if isinstance(leaf, torch.Tensor))


def save(path: Path, kind: str, payload: dict) -> None:
    """Write a file of a kind (snapshot, state) whole or not at all."""
    assert kind in KINDS
    data = {**payload, "format": kind, "version": VERSION}
    data["checksum"] = checksum(data)
    with atomic_path(path, int(tensor_bytes(data) * 1.05) + 2**20) as temporary:
        try:
            torch.save(data, temporary)
        except RuntimeError as e:  # what torch makes of a write that fails
            raise OSError(f"{path}: could not be written, is the disk full? ({first_line(e)})") from e


def load(path: Path, kind: str) -> dict:
    """Read a file of a kind; ValueError when it is missing, damaged, of another kind or of a newer version."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such {kind} file")
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, RuntimeError, OSError, ValueError, KeyError) as e:
        raise ValueError(f"{path}: not a readable {kind} file (damaged or incomplete): {first_line(e)}") from e
    except Exception as e:  # pickle.UnpicklingError and whatever else a hostile file provokes
        raise ValueError(f"{path}: refused, it is not plain tensors and data: {first_line(e)}") from e
    if not isinstance(data, dict) or data.get("format") != kind:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"{path}: wanted a {kind}, this is {found!r}")
    if data.get("version", 0) > VERSION:
        raise ValueError(f"{path}: format version {data['version']}, this program reads up to {VERSION}; update it")
    stored = data.pop("checksum", None)
    if stored != checksum(data):
        raise ValueError(f"{path}: the checksum does not match, the file is damaged; take the one before it")
    return data


def first_line(error: Exception) -> str:
    """First line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
