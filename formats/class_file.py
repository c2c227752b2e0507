"""Classes of images in a dataset.json, as StyleGAN and EDM have it: {"labels": [[file, number], ...]}, or in the names
of files, held against what else is said of them.
"""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edm3d.formats.cohort import class_order
from edm3d.formats.folders import is_utf8
from edm3d.formats.pairing import CaseFiles
from edm3d.formats.patterns import IMAGES
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


# ---- classes in names of files ----


def classes_by_name(cases: Sequence[CaseFiles], of: Mapping[str, str | None], names: Sequence[str],
                    named: Sequence[str], numbered: bool) -> tuple[dict[str, str], tuple[str, ...], list[str]]:
    """The class of each case by its name, the names of all classes, and notes.

    of: what a table or a dataset.json says of each, None for nothing, and `names`: all that it has. named: by
    --class-names, in order; numbered: of is of a dataset.json, so that its class_0, ... where these are not given are
    the classes of the files that have them. ValueError naming files whose names say another class.
    """
    by_name = {case.id: case.class_name for case in cases}
    meant = {name: name for name in names}
    if numbered and not named:
        meant = _meant(cases, of) | {name: name for name in names if name not in of.values()}
        names = [meant[name] for name in names]
    for case in cases:
        said = of[case.id]
        if said is not None and meant[said] != case.class_name:
            raise ValueError(f"{one_line(str(case.images[0]))}: its name says class {one_line(case.class_name)!r} by "
                             f"{IMAGES}, and {NAME if numbered else '--table'} says {one_line(meant[said])!r} of it; "
                             "correct one of them")
    found = set(by_name.values())
    if numbered and (extra := sorted(found - {*names})):
        odd = next(case for case in cases if case.class_name == extra[0])
        raise ValueError(f"{one_line(str(odd.images[0]))}: its name says class {one_line(extra[0])!r} by {IMAGES}, of "
                         f"which {NAME} has no file with a number; number one of them, or rename the {NAME}")
    ordered = tuple(names) if numbered else tuple(named) or tuple(sorted({*names, *found}, key=class_order))
    count = Counter(by_name.values())
    return by_name, ordered, [f"classes: by {{class}} of {IMAGES}, "
                              + listed(f"{name} {count[name]}" for name in ordered)]


def _meant(cases: Sequence[CaseFiles], of: Mapping[str, str | None]) -> dict[str, str]:
    """Which class each number of a dataset.json stands for, by the names of its files; ValueError where these differ.
    """
    first: dict[str, CaseFiles] = {}
    for case in cases:
        if (number := of[case.id]) is None:
            continue
        for other_number, other in first.items():
            if (number == other_number) != (case.class_name == other.class_name):
                raise ValueError(f"{NAME} has {one_line(str(other.images[0]))} as {other_number} and "
                                 f"{one_line(str(case.images[0]))} as {number}, and by {IMAGES} they are of class "
                                 f"{one_line(other.class_name)!r} and {one_line(case.class_name)!r}; correct one of "
                                 "them")
        first.setdefault(number, case)
    return {number: case.class_name for number, case in first.items()}
