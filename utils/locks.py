"""One command at a time on an output: locks that the system lifts when their process dies in whatever way."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from edm3d.utils import distributed
from edm3d.utils.files import remove_temporary, resolved, tail

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Busy(ValueError):
    """Another command has the lock; `owner` says which."""

    def __init__(self, owner: str):
        super().__init__(owner)
        self.owner = owner


def take(path: Path) -> IO[str] | None:
    """Lock by a file, made where there is none, until it is closed; None where the file system knows no locks.

    A record lock: forked processes do not share it. Busy when another process has it, OSError where no file can be
    written.
    """
    while True:
        handle = open(path, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            handle.seek(0)
            owner = handle.read().strip()
            handle.close()
            if e.errno in NO_LOCKS:
                return None
            raise Busy(owner or "another process") from e
        if _is_at(handle, path):  # whoever had it may have deleted the file, and a third have made another
            handle.truncate(0)
            print(f"process {os.getpid()} on {socket.gethostname()}", file=handle, flush=True)
            return handle
        handle.close()


def _is_at(handle: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


@contextmanager
def output(dest: Path, key: str = "--dest", *, is_folder: bool = False) -> Iterator[None]:
    """Keep other commands off an output, a file or a folder, while the block lasts; every rank calls this.

    ValueError naming it, and who is at it. What killed commands left half-written goes. The lock is a hidden file, in
    the folder or beside the file, and gone at the end.
    """
    target = resolved(dest)  # through links: two names of one output are one
    path = target / ".lock-output" if is_folder else target.with_name(f".lock-{tail(target.name)}")
    made = [folder for folder in path.parents if not folder.exists()]
    handle = None

    def lock() -> None:
        nonlocal handle
        try:
            handle = _take_in_new_folder(path)
        except Busy as e:
            raise ValueError(f"{key} {dest}: another command is at work on it ({e.owner}); wait for its end, or choose "
                             "another") from e
        except OSError as e:
            raise ValueError(f"{key} {dest}: no files can be written there ({e.strerror})") from e
        for folder in [target, *filter(Path.is_dir, target.iterdir())] if is_folder else [target.parent]:
            remove_temporary(folder, "" if is_folder else target.name, spare_living=is_folder)

    try:
        distributed.from_rank_0(lock)
        yield
    finally:
        if handle:
            path.unlink(missing_ok=True)
            handle.close()
        for folder in made if distributed.rank() == 0 else ():
            with suppress(OSError):  # something was written into it
                folder.rmdir()


def _take_in_new_folder(path: Path) -> IO[str] | None:
    """The same where the folder may not be there: whoever leaves it empty may be deleting it."""
    for _ in range(100):
        with suppress(FileNotFoundError):
            path.parent.mkdir(parents=True, exist_ok=True)
            return take(path)
    raise FileNotFoundError(errno.ENOENT, "the folder is deleted again and again", str(path.parent))
