"""Files of activity phantoms, as PET simulations are made of: an .npz with `phantoms`, or a folder of one per slice."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edm3d.formats.nifti import npz_names
from edm3d.utils.checks import listed
from edm3d.utils.files import file_hash, plain_hash, read_npz
from edm3d.utils.names import one_line

KEY, SLICE_KEY = "phantoms", "arr_0"
ORDERS = ("file", "string")
WANTED = f"wanted an .npz with {KEY!r} [slices,S*S] or [slices,H,W], or a folder of .npz with {SLICE_KEY!r} [H,W]"
SLICE_NAME = re.compile(r"(?P<before>.*?)(?:id(?P<subject>\d{1,9}))?_?slice_?(?P<slice>\d{1,9})")


class Phantoms(NamedTuple):
    """Slices of activity [N,H,W] float32, subject by subject, each from one end to the other.

    subjects [N] int64: number of the subject of each; ids: name of each; unit: of the activities.
    """

    source: str
    content_hash: str
    slices: np.ndarray
    subjects: np.ndarray
    ids: list[str]
    unit: str

    def heights(self) -> np.ndarray:
        """Where each slice lies in its subject [N] float32: 0 for the first, 1 for the last."""
        found = np.zeros(len(self.slices), np.float32)
        for subject in np.unique(self.subjects):
            rows = np.flatnonzero(self.subjects == subject)
            found[rows] = np.linspace(0, 1, len(rows)) if len(rows) > 1 else 0
        return found


def read_phantoms(path: str | Path, order: str = "file", subjects: int | None = None) -> Phantoms:
    """Phantoms of a file or folder; ValueError naming it for what is none, and for activities that cannot be.

    order: file, as the rows stand, or string, where those of each subject stand in string order of the slice number (0,
    1, 10, 100, 101, ...), as BrainWeb's do; a folder is sorted by the numbers in its names. subjects: how many there
    are, each with as many rows, in a file that does not say by an array `subjects` [N].
    """
    path = Path(path)
    if path.is_dir():
        if order != "file" or subjects is not None:
            raise ValueError(f"{path}: order and subjects of a folder are in the names of its files; leave both away")
        return read_slices(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file or folder; {WANTED}")
    if path.suffix.lower() != ".npz":
        raise ValueError(f"{path}: {WANTED}")
    return of_archive(path, order, subjects)


def is_phantoms(path: str | Path) -> bool:
    """Whether a file is an .npz of phantoms, or a folder of slices, by its names alone."""
    path = Path(path)
    if path.is_dir():
        return any(SLICE_NAME.fullmatch(file.stem) for file in path.glob("*.npz"))
    if path.suffix.lower() != ".npz" or not path.is_file():
        return False
    return KEY in npz_names(path)


def content_hash_of(path: str | Path) -> str:
    """Hash of all that a file or folder of phantoms holds, wherever it lies."""
    path = Path(path)
    return files_hash(slice_files(path)) if path.is_dir() else file_hash(path)


def of_archive(path: Path, order: str, subjects: int | None) -> Phantoms:
    """Those of an .npz."""
    archive = read_npz(path)
    if KEY not in archive:
        raise ValueError(f"{path}: no array {KEY!r}, it has {listed(archive) or 'none'}; {WANTED}")
    slices = as_slices(archive[KEY], path)
    numbers = subject_numbers(archive, len(slices), subjects, path)
    if order not in ORDERS:
        raise ValueError(f"training.dataset.order={order!r}: wanted {listed(ORDERS)}")
    if order == "string":
        slices = by_number(slices, numbers)
    ids = [f"id{subject}slice{k}" for subject, k in zip(numbers.tolist(), places(numbers).tolist(), strict=True)]
    unit = archive.get("unit")
    if unit is not None and (unit.ndim or unit.dtype.kind != "U"):
        raise ValueError(f"{path}: unit is {unit.dtype} {list(unit.shape)}, wanted one text")
    return Phantoms(str(path), file_hash(path), slices, numbers, ids, "activity" if unit is None else str(unit))


def subject_numbers(archive: Mapping[str, np.ndarray], rows: int, count: int | None, path: Path) -> np.ndarray:
    """Number of the subject of each row [N]; ValueError where what is said of them cannot be."""
    if "subjects" in archive:
        numbers = archive["subjects"]
        if numbers.shape != (rows,) or numbers.dtype.kind not in "iu":
            raise ValueError(f"{path}: subjects are {numbers.dtype} {list(numbers.shape)}, wanted whole numbers "
                             f"[{rows}]")
        if (np.diff(numbers.astype(np.int64)) < 0).any():
            raise ValueError(f"{path}: subjects do not rise; wanted the rows of each subject together, in order")
        return numbers.astype(np.int64)
    count = 1 if count is None else count
    if not 1 <= count <= rows or rows % count:
        raise ValueError(f"training.dataset.subjects={count}: {path} has {rows} rows, which is not as many for each; "
                         "wanted a number that divides them")
    return np.repeat(np.arange(count), rows // count)


def places(subjects: np.ndarray) -> np.ndarray:
    """Number of each row within its subject [N]."""
    starts = np.r_[0, np.flatnonzero(np.diff(subjects)) + 1]
    return np.arange(len(subjects)) - np.repeat(starts, np.diff(np.r_[starts, len(subjects)]))


def by_number(slices: np.ndarray, subjects: np.ndarray) -> np.ndarray:
    """The rows of each subject, which stand in string order of their numbers, in order of these."""
    ordered = np.empty_like(slices)
    for subject in np.unique(subjects):
        rows = np.flatnonzero(subjects == subject)
        ordered[rows[sorted(range(len(rows)), key=str)]] = slices[rows]
    return ordered


def slice_files(path: Path) -> dict[Path, tuple[int, int]]:
    """The files of a folder that are called as low_res_ph_id0slice12.npz, sorted by the numbers of subject and slice.
    """
    named = {file: SLICE_NAME.fullmatch(file.stem) for file in path.glob("*.npz")}
    found = {file: (int(m["subject"] or 0), int(m["slice"])) for file, m in named.items() if m}
    if not found:
        raise ValueError(f"{path}: holds no .npz called as id0slice12.npz; {WANTED}")
    if odd := sorted(file.name for file, m in named.items() if not m):
        raise ValueError(f"{path}: {one_line(odd[0])}: wanted a name that ends in slice and a number, as in "
                         "id0slice12.npz")
    return {file: found[file] for file in sorted(found, key=lambda file: (found[file], file.name))}


def files_hash(files: Iterable[Path]) -> str:
    """Hash of the names and contents of files."""
    return plain_hash([[file.name, file_hash(file)] for file in files])


def read_slices(path: Path) -> Phantoms:
    """Those of a folder with a file for each slice."""
    found = slice_files(path)
    files, keys = list(found), list(found.values())
    if double := next((i for i in range(1, len(keys)) if keys[i] == keys[i - 1]), None):
        raise ValueError(f"{path}: {one_line(files[double - 1].name)} and {one_line(files[double].name)} are the same "
                         "slice; keep one of them")
    slices = [slice_of(file) for file in files]
    if odd := next((i for i, array in enumerate(slices) if array.shape != slices[0].shape), None):
        raise ValueError(f"{files[odd]}: is {list(slices[odd].shape)}, {files[0].name} is {list(slices[0].shape)}; "
                         "wanted one size")
    ids = [f"id{subject}slice{k}" for subject, k in keys]
    return Phantoms(str(path), files_hash(files), as_slices(np.stack(slices), path),
                    np.array([subject for subject, _ in keys], np.int64), ids, "activity")


def slice_of(file: Path) -> np.ndarray:
    """The array of a slice [H,W]."""
    archive = read_npz(file)
    if SLICE_KEY not in archive or archive[SLICE_KEY].ndim != 2:
        raise ValueError(f"{file}: wanted one array {SLICE_KEY!r} [H,W]")
    return archive[SLICE_KEY]


def as_slices(rows: np.ndarray, source: Path) -> np.ndarray:
    """Activities [N,H,W] float32 of rows [N,S*S] or [N,H,W]; ValueError for what can be none."""
    size = round(rows.shape[1] ** 0.5) if rows.ndim == 2 else 0
    if rows.ndim not in (2, 3) or 0 in rows.shape or (rows.ndim == 2 and size ** 2 != rows.shape[1]):
        raise ValueError(f"{source}: {KEY} are {list(rows.shape)}, wanted [slices,S*S] or [slices,H,W], none empty")
    if rows.dtype.kind not in "iufb":
        raise ValueError(f"{source}: {KEY} are {rows.dtype}, wanted numbers")
    slices = rows.astype(np.float32).reshape(len(rows), *((size, size) if rows.ndim == 2 else rows.shape[1:]))
    bad = ~(np.isfinite(slices) & (slices >= 0)).reshape(len(rows), -1).all(1)
    if bad.any():
        row = int(bad.argmax())
        what = "negative" if np.isfinite(slices[row]).all() else "not finite"
        raise ValueError(f"{source}: slice {row} has activities that are {what}; wanted 0 or more")
    return slices
