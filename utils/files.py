"""Files that appear whole or not at all, and hashes of plain data."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from edm3d.utils.numpy_files import arrays_of

# what numpy and zipfile raise on a damaged file, by place of the damage
NPZ_DAMAGE = (OSError, EOFError, KeyError, TypeError, ValueError, RuntimeError, OverflowError, MemoryError, zlib.error,
              struct.error, zipfile.BadZipFile)
TEMPORARY = re.compile(r"\.tmp-(\d+)-(?:[0-9a-f]{16}-)?(.+)")  # names that atomic_path gives, by process and file
_TAIL_BYTES = 100  # of a file's name, in the temporary one: the suffix is there, and it is no longer than names may be
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_free_disk(folder: str | Path, needed_bytes: int) -> None:
    """Raise ValueError if the disk that holds `folder`, or will hold it, has less than `needed_bytes` left."""
    folder = what_exists(folder)
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise ValueError(
            f"{folder}: not enough free disk: {amount(needed_bytes)} needed, {amount(free)} free; "
            "free some space or write elsewhere (--dest, sampling.outdir, training.options.run_root)"
        )


def read_bounded(path: Path, most_bytes: int, kind: str) -> str:
    """The text of a file; ValueError naming it when it is missing, no UTF-8, or larger than any of its kind."""
    try:
        if (size := path.stat().st_size) > most_bytes:
            raise ValueError(f"{path}: {size:,} bytes, more than {kind} has")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"{path}: cannot be read ({e})") from e


def what_exists(folder: str | Path) -> Path:
    """A folder, or the nearest one above it that is there."""
    folder = Path(folder).absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def can_be(path: Path) -> bool:
    """Whether a path could be that of a file, there or not; those that are too long, or run in circles, cannot."""
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except (OSError, ValueError) as e:
        return isinstance(e, PermissionError | NotADirectoryError)
    return True


def amount(count: int) -> str:
    """Bytes in GiB, or in MiB where there are few."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.2f} MiB"


@contextmanager
def atomic_path(path: str | Path, needed_bytes: int = 0) -> Iterator[Path]:
    """Give a temporary path beside `path` (same suffixes): synced and renamed on clean exit, else removed.

    ValueError when the disk lacks `needed_bytes` beforehand, OSError with that number when it fills up on the way.
    """
    path = Path(path)
    check_free_disk(path.parent, needed_bytes)
    path = path.resolve() if path.is_symlink() else path  # what a link leads to is replaced, and not the link
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(8)}-{tail(path.name)}")
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # follows no link that lies in wait
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        if error.errno not in _FULL:
            if error.filename:
                error.filename = without_temporary(str(error.filename))
            raise
        raise write_error(path, needed_bytes, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def tail(name: str) -> str:
    """The end of a name, with its suffixes: so much of it as another name has room for."""
    return name.encode()[-_TAIL_BYTES:].decode(errors="ignore")


def without_temporary(text: str) -> str:
    """A message that names files, and not what they are called while they are written."""
    return re.sub(r"\.tmp-\d+-[0-9a-f]{16}-", "", text)


def write_error(path: str | Path, needed_bytes: int, error: Exception) -> OSError:
    """The error to raise for a write that failed half-way, most likely because the disk is full."""
    needed = f"about {amount(needed_bytes)} are needed; " if needed_bytes else ""
    return OSError(f"{path}: could not be written, is the disk full? {needed}what was there before is unharmed "
                   f"({without_temporary(first_line(error))})")


def remove_temporary(folder: str | Path, name: str = "", spare_living: bool = False) -> list[Path]:
    """Delete the temporary files that killed processes left in a folder, of which this process is the only writer.

    name: only those of a file of this name, whose only writer this process is. spare_living: others write there, too;
    what processes of this machine have that are alive stays.
    """
    found = sorted(p for p in Path(folder).iterdir() if _is_temporary(p.name, name, spare_living) and p.is_file())
    for path in found:
        path.unlink(missing_ok=True)
    return found


def _is_temporary(found: str, name: str, spare_living: bool) -> bool:
    match = TEMPORARY.fullmatch(found)
    return match is not None and (not name or match[2] == tail(name)) and not (spare_living and _lives(int(match[1])))


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # of somebody else
        return True
    return process != os.getpid()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_npz(path: str | Path, *names: str) -> dict[str, np.ndarray]:
    """Arrays of an npz file by name, these or all; ValueError names the file if it is missing or damaged."""
    with npz_damage_named(path):
        return arrays_of(path, *names)


@contextmanager
def npz_damage_named(path: str | Path) -> Iterator[None]:
    """Turn what is raised on an npz file that is missing or damaged, or is none, into a ValueError that names it."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: {'a folder, wanted a file' if Path(path).is_dir() else 'no such file'}")
    try:
        yield
    except NPZ_DAMAGE as error:
        raise ValueError(f"{path}: not an npz file, or damaged ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    """First line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def check_dest(dest: Path, suffix: str, inputs: Mapping[str, str | Path | None]) -> None:
    """ValueError where no file of that name, which must have the suffix, can be written, or one of the inputs lies.

    inputs: files and folders that are read, by the option that names them; None, and what is no path, counts as absent.
    """
    for option, path in inputs.items():
        if path is not None and is_one(dest, Path(path)):
            raise ValueError(f"--dest {dest} is {option}; what is written needs a file of its own")
    if dest.is_dir():
        raise ValueError(f"--dest {dest}: is a folder; wanted the name of a file ({suffix})")
    if dest.suffix != suffix:
        raise ValueError(f"--dest {dest}: wanted a file whose name ends in {suffix}")
    check_folder(dest.parent, f"--dest {dest}")


def check_dest_folder(dest: Path, inputs: Mapping[str, str | Path | None]) -> None:
    """ValueError where no folder of that name can be, or it is or holds one of the inputs (see check_dest)."""
    check_folder(dest, f"--dest {dest}")
    for option, path in inputs.items():
        if path is not None and Path(path).exists() and resolved(dest) in (resolved(path), *resolved(path).parents):
            raise ValueError(f"--dest {dest}: is or holds {option} {path}; what is written needs a folder of its own")


def check_replaced(dest: Path, overwrite: bool, check_kind: Callable[[Path], object]) -> None:
    """ValueError for a file that is there and may not be overwritten, or is none of the kind that will be written.

    check_kind raises the ValueError that says so.
    """
    if not dest.exists():
        return
    try:
        check_kind(dest)
    except ValueError as e:
        why = str(e).removeprefix(f"{dest}: ")
        raise ValueError(f"--dest {dest}: {why}; nothing of another kind is overwritten, choose another name") from e
    if not overwrite:
        raise ValueError(f"--dest {dest}: is there already; choose another, or --overwrite it")


def is_one(first: Path, second: Path) -> bool:
    """Whether two names are those of one file or folder, through links of both kinds."""
    return resolved(first) == resolved(second) or (first.exists() and second.exists() and first.samefile(second))


def resolved(path: str | Path) -> Path:
    """What a name leads to through links; ValueError for links in a circle."""
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError) as e:
        raise ValueError(f"{path}: its links lead nowhere ({first_line(e)})") from e


def check_folder(folder: Path, key: str) -> None:
    """ValueError where there can be no folder of that name, as a file is in its way; key: what the user gave."""
    if not (found := what_exists(resolved(folder))).is_dir():
        raise ValueError(f"{key}: {found} is a file, wanted a folder")


def write_text(path: str | Path, text: str) -> None:
    """Write a small text file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def overwrite_text(path: str | Path, text: str) -> None:
    """Write a small text file in place: where there is no room for a new one, but for what is there."""
    with open(path, "r+", encoding="utf-8") as file:
        file.write(text)
        file.truncate()


def blocks_hash(arrays: Iterable[tuple[str, np.dtype, tuple[int, ...], Iterable[bytes]]]) -> str:
    """sha256 over arrays in the order of their names: name, type, shape and values, in C order, block by block."""
    digest = hashlib.sha256()
    for name, dtype, shape, blocks in arrays:
        digest.update(f"{name}{dtype.str}{shape}".encode())
        for block in blocks:
            digest.update(block)
    return digest.hexdigest()


def arrays_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """The same of arrays in memory."""
    return blocks_hash((name, array.dtype, array.shape, [array.tobytes()]) for name, array in sorted(arrays.items()))


def file_hash(path: str | Path) -> str:
    """sha256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain_hash(value: object) -> str:
    """sha256 of plain data by its JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
