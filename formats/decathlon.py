"""A task folder of the Medical Segmentation Decathlon: its dataset.json says files, channels and label classes."""

import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from edm3d.formats.folders import stem_of
from edm3d.formats.nifti import SUFFIXES, suffix_of
from edm3d.formats.pairing import CaseFiles
from edm3d.utils.checks import listed
from edm3d.utils.names import one_line
from edm3d.utils.plain import read_json, shown, taken

KEYS = ("modality", "labels", "training")


class DecathlonTask(NamedTuple):
    """The cases of a task's training list, sorted by id, and what their numbers mean."""

    cases: list[CaseFiles]
    channels: tuple[str, ...]  # of the images' fourth axis
    classes: tuple[str, ...]  # of the label values, background first
    unlisted: int  # images of the test list, which have no label map
    beside: list[str]  # volumes beside the images of the training list, which no list names


def read_task(folder: Path, images_only: bool = False) -> DecathlonTask:
    """Read FOLDER/dataset.json; ValueError names what it lacks, what is of another type, and every file not there.

    images_only: cases without their label maps.
    """
    path = folder / "dataset.json"
    task = _read(path)
    channels, classes = _names(path, task, "modality"), _names(path, task, "labels")
    test = taken(task.get("test", []), list[Any], path, "test")
    entries = taken(task["training"], list[Any], path, "training")
    cases = [_case(path, entry, images_only) for entry in entries]
    if not cases:
        raise ValueError(f"{path}: its training list is empty")
    if double := [id_ for id_, n in Counter(case.id for case in cases).items() if n > 1]:
        raise ValueError(f"{path}: listed twice: {listed(double)}")
    _check_files(path, [file for case in cases for file in (*case.images, case.label) if file])
    return DecathlonTask(sorted(cases), channels, classes, len(test), _beside(folder, entries, test))


def _beside(folder: Path, entries: list[Mapping[str, str]], test: list[Any]) -> list[str]:
    """The volumes beside the images of the training list that no list names."""
    named = {folder / name for entry in entries for name in (entry["image"], entry["label"])}
    named |= {folder / name for name in test if isinstance(name, str)}
    places = {(folder / entry["image"]).parent for entry in entries}
    return sorted(str(file.relative_to(folder)) for place in places for file in place.iterdir()
                  if suffix_of(file) and file not in named)


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; --decathlon wants a task folder such as Task01_BrainTumour")
    task = read_json(path)
    if lacking := [key for key in KEYS if not isinstance(task, dict) or key not in task]:
        raise ValueError(f"{path}: has no {', '.join(lacking)}; wanted the dataset.json of a Medical Decathlon task")
    return task


def _case(path: Path, entry: Any, images_only: bool) -> CaseFiles:
    if not isinstance(entry, dict) or not {"image", "label"} <= entry.keys():
        raise ValueError(f"{path}: training entry {shown(entry)}; wanted image and label of each")
    image, label = (_below(path, taken(entry[role], str, path, f"training: {role}")) for role in ("image", "label"))
    return CaseFiles(stem_of(image), (image,), None if images_only else label)


def _below(path: Path, name: str) -> Path:
    """The file of a relative name; ValueError for one out of the folder, and for what is no name of a volume."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"{path}: {one_line(name)} lies outside its folder")
    odd = "\\" in name or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)
    if odd or not suffix_of(Path(relative.name)):
        raise ValueError(f"{path}: {shown(name)} is no name of a volume; wanted one like ./imagesTr/NAME.nii.gz, that "
                         f"ends in {', '.join(SUFFIXES)}")
    return path.parent / relative


def _check_files(path: Path, files: list[Path]) -> None:
    """ValueError naming all listed files that are not there, or are links to somewhere else."""
    folder = path.parent
    if absent := [str(file.relative_to(folder)) for file in files if not _is_file(file)]:
        raise ValueError(f"{path}: {len(absent)} of {len(files)} listed files are not there: {listed(absent)}; "
                         "unpack the whole task")
    home = folder.resolve()
    if outside := [str(file.relative_to(folder)) for file in files if not file.resolve().is_relative_to(home)]:
        raise ValueError(f"{path}: {len(outside)} of {len(files)} listed files are links that lie outside its folder: "
                         f"{listed(outside)}; copy them into it, or give --images and --labels")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for any file
        return False


def _names(path: Path, task: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Names by number, {"0": name, ...}, in order; ValueError where numbers are missing, or names no text."""
    named = task[key]
    if not isinstance(named, dict) or not named or sorted(named) != sorted(map(str, range(len(named)))):
        what = shown(named) if not isinstance(named, dict) else f"of {listed(named) or 'nothing'}"
        raise ValueError(f"{path}: {key} is {what}, wanted a name for each number from 0 on")
    return tuple(taken(named[str(i)], str, path, f"{key}.{i}") for i in range(len(named)))
