"""Snapshots and training states: tensors and plain data in one file, written whole or not at all, checked on load."""

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from edm3d.utils.checks import is_whole, listed
from edm3d.utils.files import atomic_path, first_line, write_error
from edm3d.utils.torch_files import check_archive, check_tree

VERSION = 2
KINDS = ("snapshot", "state")
DAMAGED = "{}: damaged or incomplete, or no file of this program"


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
    if not is_whole(version) or not 1 <= version <= VERSION:
        raise ValueError(f"{path}: format version {version!r:.60}, this program reads up to {VERSION}; update it")
    try:
        agrees = stored == checksum(data)
    except (ValueError, TypeError) as e:  # as of numbers of thousands of digits
        raise ValueError(f"{path}: not what a {kind} file holds: {first_line(e)}") from e
    if not agrees:
        older = f" or of an older program (format version {version})" if version < VERSION else ""
        raise ValueError(f"{path}: the checksum does not match, the file is damaged{older}")
    return Checked(data, stored)


def read_plain(path: Path) -> object:
    """The content of a torch file: tensors and plain data; ValueError when it is damaged or holds anything else."""
    try:
        check_archive(path)
        with warnings.catch_warnings(action="ignore"):  # what it warns of is no file of ours, and refused
            content = torch.load(path, map_location="cpu", weights_only=True)
    except ValueError as e:
        if str(path) in str(e):
            raise
        raise ValueError(DAMAGED.format(path)) from e
    except Exception as e:  # zipfile and torch raise what they please on a damaged or hostile file
        raise ValueError(DAMAGED.format(path)) from e
    check_tree(content, path)
    return content


# ---- weights ----


def check_finite(weights: Mapping[str, torch.Tensor], source: object, key: str) -> None:
    """ValueError naming file and weight for one that is NaN or infinite."""
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise ValueError(f"{source}: {key}.{name} has values that are not finite")


def check_weights(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], source: object, key: str
                  ) -> None:
    """ValueError naming file and weight unless tensors are, by name, type and shape, those of a network."""
    if lacking := [name for name in wanted if name not in found]:
        raise ValueError(f"{source}: {key} lacks {listed(lacking)}")
    if unknown := [name for name in found if name not in wanted]:
        raise ValueError(f"{source}: {key} has {listed(unknown)}, which the network has not")
    for name, tensor in wanted.items():
        for what, got, asked in (("shape", list(found[name].shape), list(tensor.shape)),
                                 ("type", found[name].dtype, tensor.dtype)):
            if got != asked:  # another type would be cast in silence
                raise ValueError(f"{source}: {key}.{name} has {what} {got}, wanted {asked}")
