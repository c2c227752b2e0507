"""Folders with index files: training.npy, validation.npy and testing.npy name samples, each a stack with its labels.

An index is a 1-D array of text, paths as they are or from the folder on. A sample is an .npz: `image` [D,H,W] in [0,1],
and where there are any `labels` [K], a number for each attribute (NaN: missing), `segmentation` [D,H,W], whole numbers,
and `affine` [4,4]; or an .npy of the image alone.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edm3d.formats import phases
from edm3d.formats.cohort import CohortTable, Record, names_and_units
from edm3d.formats.folders import stem_of
from edm3d.formats.nifti import KEYS, npz_names, suffix_of
from edm3d.formats.npy import AFFINE
from edm3d.formats.pairing import CaseFiles
from edm3d.formats.prepare_facts import raise_all
from edm3d.utils.checks import listed
from edm3d.utils.files import can_be, read_npz
from edm3d.utils.log import progress
from edm3d.utils.names import one_line
from edm3d.utils.numpy_files import member_of

FILES = {"train": "training.npy", "val": "validation.npy", "test": "testing.npy"}
ATTRIBUTES = (("LVEDV", "mL"), ("LVESV", "mL"), ("LVEF", "%"), ("RVEDV", "mL"), ("RVESV", "mL"), ("RVEF", "%"),
              ("MYOESTHICK", "mm"), ("MYOEDTHICK", "mm"), ("AGE", "y"), ("SEX", ""), ("BMI", "kg/m2"),
              (phases.ATTRIBUTE, ""), ("ANGLE", "deg"), ("DEPTH", ""))
LABEL_CLASSES = ("background", "lv", "myocardium", "rv")  # of segmentations with these four values
LABELS, SEGMENTATION = "labels", "segmentation"
_MOST = float(np.finfo(np.float32).max)


class IndexData(NamedTuple):
    """The cases in the order of the index files, with what is known of each; and what to tell.

    with_affine: whether any says where its voxels lie, lacking: one that does not; label_classes: names of the values
    of the segmentations, () where there are none or others.
    """

    cases: list[CaseFiles]
    table: CohortTable
    with_affine: bool
    lacking: Path | None
    label_classes: tuple[str, ...]


class _Sample(NamedTuple):
    """What a file says besides its image."""

    labels: np.ndarray | None  # [K] float32
    highest: int | None  # value of its segmentation
    has_affine: bool


def read_index(folder: Path, attributes: Sequence[str] = ()) -> IndexData:
    """Read the index files of a folder, and of each sample all but the image.

    attributes: names of the numbers in `labels`, `AGE [y]` with their unit; (): those of ATTRIBUTES. ValueError naming
    every file that is not there, is listed twice or cannot be used, with the reason.
    """
    paths = {split: _paths(folder, name) for split, name in FILES.items()
             if split == "train" or (folder / name).is_file()}
    files = [(split, path) for split, found in paths.items() for path in found]
    if not paths["train"]:
        raise ValueError(f"{folder / FILES['train']}: names no samples")
    _check_files(folder, [path for _, path in files])
    names, units = _attributes(attributes)
    samples = _read_all([path for _, path in files], names, bool(attributes))
    ids = _ids([path for _, path in files])
    if all(sample.labels is None for sample in samples):
        names, units = (), ()
    missing = np.full(len(names), np.nan, np.float32)
    records = {id_: Record(id_, _class_of(sample, names), split, missing if sample.labels is None else sample.labels)
               for id_, (split, _), sample in zip(ids, files, samples, strict=True)}
    counts = listed(f"{FILES[split]} {len(found)}" for split, found in paths.items())
    notes = [f"splits: by the index files ({counts}); --split is not used"]
    if names and (without := [id_ for id_, sample in zip(ids, samples) if sample.labels is None]):
        notes.append(f"Note: {len(without)} of {len(samples)} samples have no {LABELS}, all their attributes are "
                     f"missing: {listed(without)}")
    classes = phases.NAMES if any(record.class_name for record in records.values()) else ()
    table = CohortTable(records, names, units, classes, (), False, tuple(notes))
    cases = [CaseFiles(id_, (path,), None if sample.highest is None else path)
             for id_, (_, path), sample in zip(ids, files, samples, strict=True)]
    lacking = next((path for (_, path), sample in zip(files, samples) if not sample.has_affine), None)
    named = max(sample.highest or 0 for sample in samples) == len(LABEL_CLASSES) - 1
    return IndexData(cases, table, any(sample.has_affine for sample in samples), lacking,
                     LABEL_CLASSES if named else ())


def with_table(found: CohortTable, table: CohortTable, path: Path) -> CohortTable:
    """What index files say of samples, with the patients and further attributes of a table.

    ValueError where the table says what they say already.
    """
    if any(row.split for row in table.rows.values()):
        raise ValueError(f"{path}: has a column split, and the index files say the splits; leave one of them out")
    if table.class_names and found.class_names:
        raise ValueError(f"{path}: has a column class, and {phases.ATTRIBUTE} of the samples says the classes; leave "
                         "one of them out")
    if double := sorted({*found.attribute_names} & {*table.attribute_names}):
        raise ValueError(f"{path}: has columns {listed(double)}, which the samples' {LABELS} have too; leave them "
                         "out of the table")
    missing = np.full(len(found.attribute_names), np.nan, np.float32)
    rows = {id_: row._replace(attributes=np.concatenate([missing, row.attributes])) for id_, row in table.rows.items()}
    rows |= {id_: Record(rows[id_].group, own.class_name or rows[id_].class_name, own.split,
                         np.concatenate([own.attributes, table.rows[id_].attributes]))
             for id_, own in found.rows.items() if id_ in rows}
    return table._replace(rows=rows, attribute_names=found.attribute_names + table.attribute_names,
                          attribute_units=found.attribute_units + table.attribute_units,
                          class_names=found.class_names or table.class_names, notes=found.notes + table.notes)


def index_line(path: Path) -> str | None:
    """What an index file is, in a line; None for what is none: its suffix is another, or it holds no text."""
    if suffix_of(path) != ".npy" or not path.is_file():
        return None
    try:
        member = member_of(path)
    except (ValueError, OSError):  # what reads it as a volume says what is wrong
        return None
    is_text = len(member.shape) == 1 and member.dtype.kind in "US"
    return f"{path}: {member.shape[0]} paths of samples, as prepare --index reads them" if is_text else None


# ---- index files ----


def _paths(folder: Path, name: str) -> list[Path]:
    """The paths that an index file names, from its folder on where they are relative."""
    path, wanted = folder / name, "wanted a 1-D array of text, as np.save(FILE, np.array(PATHS, dtype=str)) writes it"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; --index wants a folder with {', '.join(FILES.values())}, of which all "
                         "but the first may be missing")
    try:
        member = member_of(path)
    except ValueError as e:
        raise ValueError(f"{path}: {e}; {wanted}") from e
    if len(member.shape) != 1 or (member.dtype.kind not in "US" and member.shape != (0,)):
        raise ValueError(f"{path}: is {member.dtype} {member.shape}; {wanted}")
    texts = np.load(path, allow_pickle=False) if member.dtype.kind in "US" else ()
    return [folder / (text.decode(errors="surrogateescape") if isinstance(text, bytes) else str(text))
            for text in texts]


def _check_files(folder: Path, paths: list[Path]) -> None:
    """ValueError naming the samples that are not there, have another suffix, or are listed twice."""
    if odd := [path for path in paths if suffix_of(path) not in (".npz", ".npy")]:
        raise ValueError(f"{folder}: its index files name {len(odd)} samples that are no .npz or .npy: {listed(odd)}")
    if absent := [path for path in paths if not (can_be(path) and path.is_file())]:
        raise ValueError(f"{folder}: {len(absent)} of {len(paths)} samples that its index files name are not there: "
                         f"{listed(absent)}; paths go as they are, or from this folder on: correct the index files")
    if double := [path for path, count in Counter(os.path.abspath(path) for path in paths).items() if count > 1]:
        raise ValueError(f"{folder}: its index files name samples twice: {listed(double)}")


def _ids(paths: list[Path]) -> list[str]:
    """The names of files without suffix; where two have one name, with those of the folders in which they differ."""
    ids = [stem_of(path) for path in paths]
    if len({*ids}) < len(ids):
        whole = [os.path.abspath(path) for path in paths]
        common = os.path.commonpath([os.path.dirname(path) for path in whole])
        ids = ["_".join((*Path(os.path.relpath(path, common)).parts[:-1], stem)) for path, stem in zip(whole, ids)]
    if double := [id_ for id_, count in Counter(ids).items() if count > 1]:
        raise ValueError(f"samples of one name, with their folders and without suffix: {listed(double)}; rename them")
    return ids


# ---- samples ----


def _attributes(words: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and units of the labels; a name of ATTRIBUTES has its unit where none is given."""
    if not words:
        return tuple(zip(*ATTRIBUTES, strict=True))
    names, units = names_and_units("--attributes", words)
    known = dict(ATTRIBUTES)
    return names, tuple(unit or known.get(name, "") for name, unit in zip(names, units, strict=True))


def _read_all(paths: list[Path], names: Sequence[str], are_given: bool) -> list[_Sample]:
    """What all files say besides their images; ValueError naming every one that cannot be used."""
    samples, problems = [], []
    for path in progress(paths, desc="labels", unit="sample"):
        try:
            samples.append(_read(path, names))
        except ValueError as e:
            problems.append(str(e))
    raise_all(problems, len(paths))
    if are_given and all(sample.labels is None for sample in samples):
        raise ValueError(f"--attributes {listed(names, ' ')}: no sample has {LABELS} that they could be the names of")
    mapped = [sample.highest is not None for sample in samples]
    if any(mapped) and not all(mapped):
        raise ValueError(f"{SEGMENTATION} is in some samples, and missing in "
                         f"{listed(path for path, has in zip(paths, mapped) if not has)}; wanted one in all or in none "
                         "(--images-only leaves them aside)")
    return samples


def _read(path: Path, names: Sequence[str]) -> _Sample:
    if suffix_of(path) == ".npy":
        try:
            member_of(path)
        except ValueError as e:
            raise ValueError(f"{path}: {e}; wanted the image alone, or an .npz, as np.savez(FILE, image=IMAGE, "
                             "labels=LABELS) writes it") from e
        return _Sample(None, None, False)
    held = npz_names(path)
    if not {*KEYS["image"]} & {*held}:
        raise ValueError(f"{path}: holds {listed(held) or 'nothing'}, wanted an image")
    highest = None
    if SEGMENTATION in held:
        values = read_npz(path, SEGMENTATION)[SEGMENTATION]
        highest = int(values.max()) if values.size and values.dtype.kind in "biu" else 0
    return _Sample(_labels(path, names) if LABELS in held else None, highest, AFFINE in held)


def _labels(path: Path, names: Sequence[str]) -> np.ndarray:
    """The numbers of a sample [K] float32; ValueError for another count, and for what is no number."""
    labels = read_npz(path, LABELS)[LABELS]
    if labels.dtype.kind not in "biuf" or labels.ndim != 1:
        raise ValueError(f"{path}: {LABELS} is {labels.dtype} {labels.shape}, wanted {len(names)} numbers, [K]")
    if len(labels) != len(names):
        raise ValueError(f"{path}: {LABELS} has {len(labels)} numbers, and there are {len(names)} names "
                         f"({', '.join(map(one_line, names))}); correct it, or name its numbers by --attributes")
    labels = labels.astype(np.float64)
    if odd := [f"{name} {value:g}" for name, value in zip(names, labels) if abs(value) > _MOST]:
        raise ValueError(f"{path}: {LABELS} has numbers that are not finite within float32: {listed(odd)}; NaN says "
                         "that one is missing")
    if (phase := dict(zip(names, labels)).get(phases.ATTRIBUTE, np.nan)) == phase and phase not in phases.VALUES:
        wanted = ", ".join(f"{value:g} ({name})" for value, name in zip(phases.VALUES, phases.NAMES))
        raise ValueError(f"{path}: {phases.ATTRIBUTE} is {phase:g}, wanted {wanted}, or NaN")
    return labels.astype(np.float32)


def _class_of(sample: _Sample, names: Sequence[str]) -> str | None:
    """The phase of a sample, where it says one."""
    if sample.labels is None or phases.ATTRIBUTE not in names:
        return None
    value = float(sample.labels[list(names).index(phases.ATTRIBUTE)])
    return phases.NAMES[phases.VALUES.index(value)] if value in phases.VALUES else None
