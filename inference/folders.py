"""Folders that a command fills with files: what may be there before, and what is said of it."""

from collections.abc import Iterable, Sequence
from typing import Any

from edm3d.formats.manifest import Manifest
from edm3d.inference.parts import check_alike
from edm3d.utils.checks import listed
from edm3d.utils.names import renamed


def begin(manifest: Manifest, names: Iterable[str], overwrite: bool) -> list[str]:
    """Make a folder, and its record, ready for files of these names. Rank 0 calls this, under a lock; notes to give.

    ValueError as `check` says.
    """
    if check(manifest, names, overwrite) is None:
        manifest.path.unlink(missing_ok=True)
    return manifest.begin()


def check(manifest: Manifest, names: Iterable[str], overwrite: bool) -> dict[str, Any] | None:
    """What the files of a folder were made of by its record, None where there is none that can be read.

    ValueError where the record is of something else and may not be overwritten, and for files of others: without a
    record all of a folder is others', and names of theirs are not even overwritten.
    """
    folder, names = manifest.folder, list(names)
    try:
        had = manifest.found()
    except ValueError as e:
        if not overwrite:  # which would be refused, too, for files that then may be anybody's
            can = "delete" if any((folder / name).exists() for name in names) else "--overwrite"
            raise ValueError(f"--dest {folder}: {e}; choose another, or {can} it") from e
        had = None
    if had is None:
        check_others(manifest, names, overwrite)
    elif not overwrite:
        check_alike(f"{folder}: holds volumes of", had, {name: manifest.made_of[name] for name in manifest.depends_on},
                    "choose another --dest, or --overwrite it")
    return had


def check_others(manifest: Manifest, names: Iterable[str], overwrite: bool) -> None:
    """ValueError where a folder without a record holds files that would be in the way."""
    folder, kind = manifest.folder, manifest.made_of["kind"]
    if in_the_way := [name for name in names if (folder / name).exists()]:
        raise ValueError(f"--dest {folder}: nothing says that {kind} made {listed(in_the_way)} in it, and what others "
                         "made is not overwritten; choose another folder")
    if not overwrite and folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ValueError(f"--dest {folder}: the folder is not empty, and nothing says that {kind} filled it; choose "
                         "another, or fill it all the same by --overwrite")


def told_of_names(ids: Sequence[str], names: Sequence[str]) -> list[str]:
    """A note on ids that are called something else as files."""
    changed = renamed(ids, names)
    return [f"Note: {len(changed)} ids are no names of files, and are written as others: {listed(changed)}"] \
        if changed else []


def told_of_changes(names: Sequence[str]) -> list[str]:
    """A note on files that were written once, and are others by now, or gone."""
    return [f"Note: {len(names)} files are not as they were written (changed, cut off or gone), and are made anew: "
            f"{listed(sorted(names))}"] if names else []
