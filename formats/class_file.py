"""Classes of images in a dataset.json, as StyleGAN and EDM have it: {"labels": [[file, number], ...]}."""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edm3d.formats.folders import is_utf8
from edm3d.formats.pairing import CaseFiles
from edm3d.utils.checks import is_whole, listed
from edm3d.utils.names import one_line
from edm3d.utils.plain import read_json, shown

NAME = "dataset.json"
OF_TASKS = ("modality", "training", "channel_names", "numTraining", "file_ending")  # Decathlon's and nnU-Net's keys
MOST = 1 << 16  # classes


class FileClasses(NamedTuple):
    """The class of each case, None for one that the file has as null; the names of all classes; and what to tell."""

    of: dict[str, str | None]
    names: tuple[str, ...]
    notes: list[str]


def read_classes(images: Path, cases: Sequence[CaseFiles], names: Sequence[str] = ()) -> FileClasses | None:
    """Classes out of the dataset.json in the folder of images or the one above; None where none has any.

    The files are named relative to the file's folder or to that of the images. Every image must be listed, and what is
    listed beside is noted. names: of the classes, from number 0 on; else they are class_0, ... ValueError names what is
    no whole number, listed twice, or beyond the names.
    """
    above = (images if images.name else images.absolute()).parent
    path = next((path for path in (images / NAME, above / NAME) if path.is_file()), None)
    found = read_json(path) if path else None
    if not isinstance(found, dict) or found.get("labels") is None or set(OF_TASKS) & found.keys():
        return None
    numbers = _numbers(path, found["labels"])
    of, used = {}, set()
    for case in cases:
        keys = {key for file in case.images for key in _keys(path, images, file) if key in numbers}
        if len({numbers[key] for key in keys}) > 1:
            raise ValueError(f"{path}: images of {one_line(case.id)} have several classes: {listed(sorted(keys))}")
        if keys:
            of[case.id] = numbers[min(keys)]
        used |= keys
    if absent := [str(case.images[0]) for case in cases if case.id not in of]:
        raise ValueError(f"{path}: lists no class for {len(absent)} of {len(cases)} image(s): {listed(absent)}; list "
                         f"them, with null for no class, or rename the file. It lists {listed(sorted(numbers))}")
    highest = max((number for number in of.values() if number is not None), default=-1)
    if names and highest >= len(names):
        raise ValueError(f"{path}: class number {highest}, and --class-names has {len(names)}: {listed(names)}")
    named = tuple(names) or tuple(f"class_{number}" for number in range(highest + 1))
    unused = sorted(numbers.keys() - used)
    notes = [f"{path}: classes of {len(of)} images" + (f"; {len(unused)} listed files are none of them and are left "
                                                       f"out: {listed(unused)}" if unused else "")]
    return FileClasses({id_: None if number is None else named[number] for id_, number in of.items()}, named, notes)


def _numbers(path: Path, labels: Any) -> dict[str, int | None]:
    """The class number of each file as listed; ValueError for anything else."""
    pairs = list(labels.items()) if isinstance(labels, Mapping) else labels
    if not isinstance(pairs, list):
        raise ValueError(f"{path}: labels is {shown(labels)}, wanted [[file, class number], ...]")
    if odd := [pair for pair in pairs if not isinstance(pair, (list, tuple)) or len(pair) != 2]:
        raise ValueError(f"{path}: labels has {shown(odd[0])}, wanted [[file, class number], ...]")
    for name, number in pairs:
        if not isinstance(name, str) or not is_utf8(name):
            raise ValueError(f"{path}: labels names a file {shown(name)}, wanted the name of one")
        if number is not None and not (is_whole(number) and 0 <= number < MOST):
            raise ValueError(f"{path}: labels: the class of {shown(name)} is {shown(number)}, wanted a whole number "
                             f"from 0 to {MOST - 1}, or null")
    plain = [_plain(name) for name, _ in pairs]
    if double := [name for name, count in Counter(plain).items() if count > 1]:
        raise ValueError(f"{path}: labels has files twice: {listed(double)}")
    return dict(zip(plain, (number for _, number in pairs)))


def _plain(name: str) -> str:
    """A name as names are compared."""
    return unicodedata.normalize("NFC", name.replace("\\", "/")).removeprefix("./")


def _keys(path: Path, images: Path, file: Path) -> list[str]:
    """The names by which a file below the images may be listed."""
    below = file.relative_to(images)
    names = [below] if path.parent == images else [below, Path(images.name or images.absolute().name) / below]
    return [_plain(name.as_posix()) for name in names]
