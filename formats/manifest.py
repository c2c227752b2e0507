"""What a command wrote into a folder: a record of what it was made of, and of every file by the hash of its content.

The record is a JSON file, written whole. Files that were finished since are lines of a journal beside it, one for each
rank, so that noting one of ten thousand files takes no longer than noting the first; the next start takes them up.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from edm3d.utils.files import atomic_path, file_hash, write_text
from edm3d.utils.plain import from_plain, read_json, shown, taken

FILES = "files"  # in the record, beside what they were made of
MOST_BYTES = 1 << 30  # of a record: that of a million files has a fifth


class Entry(NamedTuple):
    """A file: sha256 of its content, the id of what it shows, and the hash of what it alone was made of, if any.

    before: of a file of ours that had its place when this one was about to.
    """

    sha256: str
    id: str = ""
    of: str = ""
    before: str = ""

    def is_of(self, content: str | None) -> bool:
        """Whether a file of this content is one that was written here."""
        return content is not None and content in (self.sha256, self.before)


class Manifest:
    """The record NAME of a folder.

    made_of: plain data by name, with `kind`, the command's name; depends_on: what of it files depend on, the rest is
    said for people. changed: files that a look found to be others than were written. A file's name is its path below
    the folder, with slashes.
    """

    def __init__(self, folder: Path, name: str, made_of: Mapping[str, Any], depends_on: Sequence[str], rank: int = 0):
        self.folder, self.path, self.rank = folder, folder / name, rank
        self.made_of, self.depends_on = dict(made_of), ("kind", *depends_on)
        self.files: dict[str, Entry] = {}
        self.changed: list[str] = []

    # ---- the record ----

    def found(self) -> dict[str, Any] | None:
        """What the files that are there were made of, as far as it has a name here; None where there is no record.

        ValueError for a record that is damaged, or of another command.
        """
        return self._read()[0] if self.path.is_file() else None

    def begin(self) -> list[str]:
        """Make the record one of made_of. Rank 0 calls this before any file is written; notes on what went.

        Files that were made of anything else go, unless somebody has changed them since.
        """
        notes = []
        if self.path.is_file():
            had, files = self._read()
            if self._journals():
                self._write(had, files)
            if any(had[name] != self.made_of[name] for name in self.depends_on):
                kept = [name for name, entry in files.items() if not self._remove(name, entry)]
                notes = [f"{self.folder}: {len(files) - len(kept)} files made of something else before are gone"] \
                    if len(files) > len(kept) else []
                notes += [f"{self.folder / name}: changed since it was written, left as it is" for name in kept]
                self._write(self.made_of, {})
        else:
            self._write(self.made_of, {})
        return notes

    def load(self) -> None:
        """Read what is finished. Every rank calls this, after `begin`."""
        self.files = self._read()[1]

    def settle(self) -> None:
        """Take the journals into the record. Rank 0 calls this after the last file."""
        self._write(*self._read())

    def _read(self) -> tuple[dict[str, Any], dict[str, Entry]]:
        had = taken(read_json(self.path, MOST_BYTES), dict[str, Any], self.path, "its content")
        if had.get("kind") != self.made_of["kind"]:
            raise ValueError(f"{self.path}: kind is {shown(had.get('kind'))}, wanted {self.made_of['kind']!r}: not a "
                             "record of this command")
        files = taken(had.pop(FILES, {}), dict[str, Entry], self.path, FILES)
        if lacking := self.made_of.keys() - had.keys():
            raise ValueError(f"{self.path}: {', '.join(sorted(lacking))} missing")
        for name, value in self.made_of.items():
            taken(had[name], type(value), self.path, name)
        for name, entry in files.items():
            check_entry(name, entry, self.path)
        for path in self._journals():
            files |= journal(path)
        return had, files

    def _write(self, made_of: Mapping[str, Any], files: Mapping[str, Entry]) -> None:
        plain = {name: {k: v for k, v in entry._asdict().items() if v} for name, entry in sorted(files.items())}
        write_text(self.path, json.dumps({**made_of, FILES: plain}, indent=1) + "\n")
        for path in self._journals():
            path.unlink()

    def _journals(self) -> list[Path]:
        return sorted(self.folder.glob(f".{self.path.name}-*.journal"))

    # ---- its files ----

    def is_finished(self, name: str, of: str = "") -> bool:
        """Whether a file is there as it was written."""
        entry = self.files.get(name)
        if entry is None or entry.of != of:
            return False
        if content_hash(self.folder / name) == entry.sha256:
            return True
        self.changed.append(name)
        return False

    @contextmanager
    def writing(self, name: str, id: str = "", of: str = "") -> Iterator[Path]:
        """Give a temporary path for a file, which appears, and is noted, if the block ends without error."""
        path, before = self.folder / name, self.files.get(name)
        with atomic_path(path) as temporary:
            yield temporary
            had = content_hash(path)
            entry = Entry(content_hash(temporary), id, of, had if before and before.is_of(had) else "")
            with open(self.folder / f".{self.path.name}-{self.rank}.journal", "a", encoding="utf-8") as file:
                file.write(json.dumps([name, *entry]) + "\n")  # before it appears: what lies there is known as ours
        self.files[name] = entry

    def _remove(self, name: str, entry: Entry) -> bool:
        """Delete a file if it is as it was written; whether it is gone."""
        path = self.folder / name
        if entry.is_of(content_hash(path)):
            path.unlink()
        return not path.exists()


def journal(path: Path) -> dict[str, Entry]:
    """The entries of a journal; lines that were cut off, or that a disk garbled, are of files that are not finished."""
    entries = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            name, *fields = json.loads(line)
            entry = from_plain(Entry, dict(zip(Entry._fields, fields, strict=True)), path)
            check_entry(name, entry, path)
        except (ValueError, TypeError, RecursionError):
            continue
        entries[name] = entry
    return entries


def check_entry(name: object, entry: Entry, source: Path) -> None:
    """ValueError unless a name stays below its folder, and hashes are some."""
    path = PurePosixPath(name) if isinstance(name, str) and name else PurePosixPath("..")
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in str(path) or str(path) != name:
        raise ValueError(f"{source}: {FILES} has the name {shown(name)}, wanted a path below this folder")
    if not re.fullmatch(r"[0-9a-f]{64}", entry.sha256) or not re.fullmatch(r"([0-9a-f]{64})?", entry.before):
        raise ValueError(f"{source}: {FILES}.{name} has no hash of 64 digits")


def content_hash(path: Path) -> str | None:
    """sha256 of a file's content, None where there is no file or it cannot be read."""
    try:
        return file_hash(path)
    except OSError:
        return None
