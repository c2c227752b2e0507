"""The files below a folder: those that are read, and those that are passed over, so that this can be said."""

import os
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from edm3d.formats.nifti import PICTURE, SUFFIXES, suffix_of
from edm3d.utils.checks import listed
from edm3d.utils.names import one_line

_NO_VOLUMES = """
    .txt .json .jsonl .csv .tsv .md .rst .pdf .xml .yaml .yml .toml .ini .bval .bvec .log .out .err .html .htm .xls
    .xlsx .ods .doc .docx .ppt .pptx .py .ipynb .sh .m .r .md5 .sha1 .sha256 .lock .bak .url .lnk .tmp"""
NO_VOLUMES = frozenset(_NO_VOLUMES.split())  # suffixes of what lies beside volumes and is none
NO_VOLUMES_STEMS = ("readme", "license", "licence", "changes", "changelog", "makefile", "thumbs.db", "citation",
                    "events.out.tfevents")
PICTURES = (".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm")  # of formats that are not read

MOST_LETTERS = 300  # of a path in a message


class Tree(NamedTuple):
    """What lies below a folder."""

    root: Path
    files: list[Path]  # that are wanted, by path
    others: list[Path]  # that are not, and may hold volumes all the same
    beside: list[Path]  # that hold none by their names
    closed: list[Path]  # hidden folders, and links to folders that are there already: not entered
    called: list[Path]  # folders that have the name of a volume: what they hold is read
    pictures: list[Path]  # PNG beside volumes of other formats


def walk(root: Path, is_wanted: Callable[[Path], object] = suffix_of, without: Iterable[Path] = ()) -> Tree:
    """Everything below a folder, folders `without` and what is below them left out.

    Links to folders are followed, each folder is entered once. ValueError for a folder that cannot be read.
    """
    found = Tree(root, [], [], [], [], [], [])
    entered = {_identity(folder) for folder in without}
    folders, links = [root], []  # links come last: where a folder is there twice, it has its own name
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        try:
            if (identity := _identity(folder)) in entered:
                found.closed.extend([folder] if folder.is_symlink() else [])
                continue
            with os.scandir(folder) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError as error:
            raise ValueError(f"{one_line(str(folder))[:MOST_LETTERS]}: cannot be read ({error.strerror})") from error
        entered.add(identity)
        found.called.extend([folder] if suffix_of(folder) and folder != root else [])
        for entry in entries:
            path = folder / entry.name
            if not _is_folder(entry):
                _sort_in(path, found, is_wanted)
            elif entry.name.startswith("."):
                found.closed.append(path)
            else:
                (links if entry.is_symlink() else folders).append(path)
    for paths in found[1:]:
        paths.sort()
    return found


def without_pictures(found: Tree) -> Tree:
    """A tree whose PNG are set aside where there are volumes of other formats, which they are pictures of."""
    pictures = [path for path in found.files if suffix_of(path) == PICTURE]
    if len(pictures) == len(found.files):
        return found
    return found._replace(files=[path for path in found.files if suffix_of(path) != PICTURE], pictures=pictures)


def check_names(found: Tree) -> None:
    """ValueError naming all files below a folder whose names are not UTF-8."""
    if odd := [path for path in found.files if not is_utf8(str(path.relative_to(found.root)))]:
        raise ValueError(f"{one_line(str(found.root))}: names that are not UTF-8: {listed(relative(odd, found.root))}; "
                         "rename them")


def _identity(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _sort_in(path: Path, found: Tree, is_wanted: Callable[[Path], object]) -> None:
    if is_wanted(path) and _is_readable(path):
        found.files.append(path)
    elif is_beside(path.name):
        found.beside.append(path)
    else:
        found.others.append(path)


def _is_readable(path: Path) -> bool:
    """Whether a path is a file, or a link to none, which reading it will report; no pipe, which would never end."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def is_beside(name: str) -> bool:
    """Whether a file by its name holds no volume: notes, tables, side files, hidden files of systems."""
    name = name.lower()
    if name.endswith(SUFFIXES):
        return False
    return name.startswith((".", *NO_VOLUMES_STEMS)) or os.path.splitext(name)[1] in NO_VOLUMES


# ---- names ----


def is_utf8(name: str) -> bool:
    """Whether a name can be written into files and messages."""
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def stem_of(path: Path) -> str:
    """The name of a volume without its suffix, in the one Unicode form (NFC) in which names are compared."""
    return unicodedata.normalize("NFC", path.name[: -len(suffix_of(path) or "") or None])


def stems(found: Tree, is_deep: bool) -> Iterator[tuple[str, Path]]:
    """The files with their names without suffix; is_deep: with those of their folders in front, `p1/t1` as `p1_t1`."""
    for path in found.files:
        folders = path.relative_to(found.root).parts[:-1] if is_deep else ()
        yield unicodedata.normalize("NFC", "_".join((*folders, stem_of(path)))), path


def relative(paths: Iterable[Path], root: Path) -> list[str]:
    """Paths below a folder, as messages name them."""
    return [str(path.relative_to(root)) for path in paths]


# ---- what is said of the rest ----


def passed_over(found: Tree) -> list[str]:
    """A line on what lies below a folder and is not read, if there is anything, with what to do about it."""
    parts = []
    if found.others:
        renamed = [path for path in found.others if path.name.lower().endswith(SUFFIXES)]
        advice = ["convert to .nii.gz what holds volumes"] if len(renamed) < len(found.others) else []
        advice += ["to .png what are pictures"] if any(path.suffix.lower() in PICTURES for path in found.others) else []
        advice += ["rename what is hidden, no plain file, or in mixed case, as .Nii.gz"] if renamed else []
        parts.append(f"{len(found.others)} file(s) that are not read ({listed(relative(found.others, found.root))}); "
                     f"{', and '.join(advice)}")
    if found.pictures:
        parts.append(f"{len(found.pictures)} picture(s) beside volumes of other formats "
                     f"({listed(relative(found.pictures, found.root))})")
    if found.beside:
        kinds = sorted({path.suffix.lower() or path.name for path in found.beside})
        parts.append(f"{len(found.beside)} file(s) that hold no volumes ({listed(kinds)})")
    if found.closed:
        parts.append(f"folders that are hidden, or there twice by links ({listed(relative(found.closed, found.root))})")
    if found.called:
        parts.append("folders that have the name of a volume, of which what lies in them is read "
                     f"({listed(relative(found.called, found.root))})")
    return [f"{one_line(str(found.root))}: passed over: {'; '.join(parts)}"] if parts else []
