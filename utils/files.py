"""Files that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_free_disk(folder: str | Path, needed_bytes: int) -> None:
    """Raise ValueError if the disk that holds `folder`, or will hold it, has less than `needed_bytes` left."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise ValueError(
            f"{folder}: not enough free disk: {needed_bytes / 2**30:.2f} GiB needed, {free / 2**30:.2f} GiB free; "
            "free some space or write elsewhere (--dest, sampling.outdir, training.options.run_root)"
        )


@contextmanager
def atomic_path(path: str | Path, needed_bytes: int = 0) -> Iterator[Path]:
    """Give a temporary path beside `path` (same suffixes): synced and renamed on clean exit, else removed."""
    path = Path(path)
    check_free_disk(path.parent, needed_bytes)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Write a small text file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
