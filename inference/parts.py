"""Work that is shared over ranks and loses nothing by a stop: what is there already, and is it whole, and the rest."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from edm3d.formats.npz import is_odd
from edm3d.utils import distributed
from edm3d.utils.checks import listed
from edm3d.utils.config import differences, in_short
from edm3d.utils.files import atomic_path, check_replaced, npz_damage_named, plain_hash, read_npz, remove_temporary
from edm3d.utils.log import RunLog, progress
from edm3d.utils.numpy_files import names_in

Read = TypeVar("Read")
Old = TypeVar("Old")
Arrays = Mapping[str, np.ndarray]


@contextmanager
def ranks_at_work(device: str, num_threads: int) -> Iterator[tuple[torch.device, RunLog]]:
    """The group of the ranks while the block lasts: this rank's device, and a log that speaks on rank 0 alone."""
    own = distributed.init(device)
    try:
        distributed.set_threads(num_threads)
        yield own, RunLog(distributed.rank() == 0)
    finally:
        distributed.shutdown()


class Pieces(Protocol):
    """Where finished pieces of a job lie, by number."""

    def is_whole(self, number: int) -> bool: ...
    def write(self, number: int, arrays: Arrays) -> None: ...


class Parts:
    """Pieces that are to become one file: small npz files, in a folder under a hash of all that they depend on.

    check: raises a ValueError for a number and arrays that cannot be what was made of it.
    """

    def __init__(self, folder: Path, depends_on: object, check: Callable[[int, Arrays], None]):
        self.folder, self.check = folder / plain_hash(depends_on)[:16], check

    def path(self, number: int) -> Path:
        """File of a piece."""
        return self.folder / f"{number:010d}.npz"

    def is_whole(self, number: int) -> bool:
        """Whether a piece is there, its checksums agree, and its arrays are such as are made here, and finite."""
        try:
            arrays = self.read(number)
            self.check(number, arrays)
        except ValueError:
            return False
        return not any(is_odd(name, array) for name, array in arrays.items())

    def write(self, number: int, arrays: Arrays) -> None:
        """Store the arrays of a piece."""
        with atomic_path(self.path(number), sum(a.nbytes for a in arrays.values())) as temporary:
            np.savez(temporary, **arrays)

    def read(self, number: int, *names: str) -> dict[str, np.ndarray]:
        """Arrays of a piece, these or all; ValueError when its file is damaged."""
        return read_npz(self.path(number), *names)

    def names(self, numbers: Sequence[int]) -> list[str]:
        """Names of the arrays that each of these pieces has; ValueError naming one that has others."""
        found = {}
        for number in numbers:
            with npz_damage_named(path := self.path(number)):
                found[path] = names_in(path)
        first = next(iter(found))
        for path, names in found.items():
            if set(names) != set(found[first]):
                raise ValueError(f"{path}: holds {listed(names)}, and {first} {listed(found[first])}; delete both, and "
                                 "they are made anew")
        return found[first]

    def tidy(self) -> None:
        """Delete what killed processes left half-written among these pieces, and those of other settings."""
        for folder in filter(Path.is_dir, self.folder.parent.glob("*")):
            remove_temporary(folder)

    def remove(self) -> None:
        """Delete all pieces."""
        for path in self.folder.glob("*.npz"):
            path.unlink()
        for folder in (self.folder, self.folder.parent):
            with suppress(OSError):  # there never was one, or there still are pieces of other settings
                folder.rmdir()


def check_shapes(arrays: Arrays, wanted: Mapping[str, Sequence[int | None]]) -> None:
    """ValueError unless arrays of numbers of these names are there, of these shapes, None being any length."""
    for name, shape in wanted.items():
        if name not in arrays or arrays[name].dtype.kind not in "iuf" or arrays[name].ndim != len(shape) or any(
                length not in (None, found) for length, found in zip(shape, arrays[name].shape, strict=True)):
            found = f"{arrays[name].dtype} {arrays[name].shape}" if name in arrays else "missing"
            raise ValueError(f"{name} is {found}, wanted numbers {tuple(shape)}")


def check_types(arrays: Arrays, wanted: Mapping[str, str]) -> None:
    """ValueError unless the arrays of these names have these types."""
    for name, dtype in wanted.items():
        if arrays[name].dtype != dtype:
            raise ValueError(f"{name} is {arrays[name].dtype}, wanted {dtype}")


def missing_of(pieces: Pieces, numbers: Sequence[int]) -> list[int]:
    """Those of these numbers that are not there, or not whole. Every rank looks at its share, and all know all."""
    mine = [n for n in numbers[distributed.rank()::distributed.world_size()] if not pieces.is_whole(n)]
    return sorted(chain(*distributed.gather_objects(mine)))


def make_missing(pieces: Pieces, missing: Sequence[int], batch_size: int,
                 make: Callable[[list[int], Read], list[Arrays]], *, read: Callable[[list[int]], Read], desc: str,
                 unit: str) -> None:
    """Make this rank's share of what is missing, and wait for the others.

    read gives what a batch of numbers is made of, make its pieces; the next batch is read, and the last one written,
    while `make` works.
    """
    rank, ranks = distributed.rank(), distributed.world_size()
    mine = missing[rank::ranks]
    batches = [list(mine[i:i + batch_size]) for i in range(0, len(mine), batch_size)]
    with (progress(total=len(mine), desc=desc, unit=unit, is_main=rank == 0) as bar, ThreadPoolExecutor(1) as writer):
        writing: list[Future] = []
        for batch, found in ahead(batches, read):
            made = make(batch, found)
            for done in writing:
                done.result()
            writing = [writer.submit(pieces.write, *piece) for piece in zip(batch, made, strict=True)]
            bar.update(len(batch))
        for done in writing:
            done.result()
    distributed.barrier()


def ahead(batches: Iterable[list[int]], read: Callable[[list[int]], Read]) -> Iterator[tuple[list[int], Read]]:
    """Every batch with what `read` gives of it, one read ahead by a thread."""
    with ThreadPoolExecutor(1) as reader:
        waiting: tuple[list[int], Future] | None = None
        for batch in batches:
            following = batch, reader.submit(read, batch)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def made_before(dest: Path, overwrite: bool, read: Callable[[Path], Old], check_kind: Callable[[Path], None]
                ) -> Old | None:
    """What a file that is to be made is by now; None where there is none, or it is to be overwritten.

    ValueError for one of another kind (check_kind says so), and for a damaged one.
    """
    if overwrite or not dest.exists():
        check_replaced(dest, overwrite, check_kind)
        return None
    try:
        return read(dest)
    except ValueError as e:
        check_replaced(dest, True, check_kind)
        raise ValueError(f"--dest {dest}: {e}; choose another, or --overwrite it") from e


def check_alike(what: str, had: Mapping[str, Any], wanted: Mapping[str, Any], advice: str) -> None:
    """ValueError unless what is there is of all that is wanted; `what` says what it is, up to 'another NAME'."""
    for name, value in wanted.items():
        if had.get(name) != value:
            told = listed(f"{path}: {in_short(was)}, asked for is {in_short(now)}"
                          for path, was, now in differences(had.get(name), value, name))
            raise ValueError(f"{what} another {name} ({told}); {advice}")
