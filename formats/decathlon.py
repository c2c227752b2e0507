"""A task folder of the Medical Segmentation Decathlon: its dataset.json says files, channels and label classes."""

import json
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from edm3d.formats.nifti import suffix_of
from edm3d.formats.pairing import CaseFiles
from edm3d.utils.checks import listed

KEYS = ("modality", "labels", "training")


class DecathlonTask(NamedTuple):
    """The cases of a task's training list, sorted by id, and what their numbers mean."""

    cases: list[CaseFiles]
    channels: tuple[str, ...]  # of the images' fourth axis
    classes: tuple[str, ...]  # of the label values, background first
    unlisted: int  # images of the test list, which have no label map


def read_task(folder: Path, images_only: bool = False) -> DecathlonTask:
    """Read FOLDER/dataset.json; ValueError names what it lacks and every listed file that is not there.

    images_only: cases without their label maps.
    """
    path = folder / "dataset.json"
    task = _read_json(path)
    cases = [_case(path, entry, images_only) for entry in task["training"]]
    if not cases:
        raise ValueError(f"{path}: its training list is empty")
    if double := [id_ for id_, n in Counter(case.id for case in cases).items() if n > 1]:
        raise ValueError(f"{path}: listed twice: {listed(double)}")
    files = [file for case in cases for file in (*case.images, case.label) if file]
    if absent := [str(file.relative_to(folder)) for file in files if not file.is_file()]:
        raise ValueError(f"{path}: {len(absent)} of {len(files)} listed files are not there: {listed(absent)}; "
                         "unpack the whole task")
    return DecathlonTask(sorted(cases), _names(path, task, "modality"), _names(path, task, "labels"),
                         len(task.get("test", [])))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; --decathlon wants a task folder such as Task01_BrainTumour")
    try:
        task = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from error
    if lacking := [key for key in KEYS if not isinstance(task, dict) or key not in task]:
        raise ValueError(f"{path}: has no {', '.join(lacking)}; wanted the dataset.json of a Medical Decathlon task")
    return task


def _case(path: Path, entry: Any, images_only: bool) -> CaseFiles:
    if not isinstance(entry, dict) or not {"image", "label"} <= entry.keys():
        raise ValueError(f"{path}: training entry {entry!r}; wanted image and label of each")
    image, label = (_inside(path, str(entry[role])) for role in ("image", "label"))
    return CaseFiles(image.name.removesuffix(suffix_of(image) or ""), (image,), None if images_only else label)


def _inside(path: Path, name: str) -> Path:
    """The file of a relative name; ValueError for one out of the folder."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"{path}: {name} lies outside its folder")
    return path.parent / relative


def _names(path: Path, task: dict[str, Any], key: str) -> tuple[str, ...]:
    """Names by number, {"0": name, ...}, in order; ValueError where numbers are missing."""
    named = task[key]
    if not isinstance(named, dict) or not named or sorted(named) != sorted(map(str, range(len(named)))):
        raise ValueError(f"{path}: {key} is {named!r}, wanted a name for each number from 0 on")
    return tuple(str(named[str(i)]) for i in range(len(named)))
