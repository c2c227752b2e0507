"""What a table says of the volumes of a cohort, and which split each patient goes to."""

import difflib
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edm3d.formats.tables import SEPARATORS, read_rows
from edm3d.formats.volumes import SPLITS
from edm3d.utils.checks import listed
from edm3d.utils.names import one_line

LEAST, MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)  # of numbers other than 0
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")

# ---- table ----


KNOWN = ("id", "group", "class", "split")
PATIENTS = ("patient", "subject", "participant", "pid", "mrn")  # what a column begins with that may be meant for groups
OWN_SPLIT = re.compile(r"\w[\w .+-]*")
RESERVED = "first_stage"  # of latents files, where splits stand beside it


class Record(NamedTuple):
    """One row of a table."""

    group: str
    class_name: str | None
    split: str | None
    attributes: np.ndarray  # [A] float32, NaN = missing


class CohortTable(NamedTuple):
    """A cohort table."""

    rows: dict[str, Record]
    attribute_names: tuple[str, ...]
    attribute_units: tuple[str, ...]
    class_names: tuple[str, ...]
    ignored: tuple[str, ...]  # columns without a single number
    has_groups: bool  # whether it has a column of groups
    notes: tuple[str, ...]  # how it was read, where that may surprise


def read_table(path: Path) -> CohortTable:
    """Read a CSV with columns id, and where wanted group, class, split; further columns of numbers are attributes.

    A unit stands in brackets in the header, `lv_volume [mL]`; an empty cell is a missing value, an empty group the id.
    ValueError for what cannot be read, numbers that float32 cannot hold, and names of columns and splits that are near
    to the right ones.
    """
    table = read_rows(path, "id")
    rows = table.rows
    _check_columns(path, table.header, rows)
    columns = [c for c in table.header if c not in KNOWN]
    ignored = tuple(c for c in columns if all(_is_text(row[c]) for row in rows)
                    and any(not _is_missing(row[c]) for row in rows))
    columns = [c for c in columns if c not in ignored]
    _check_numbers(path, rows, columns)
    names, units = names_and_units(path, columns)
    records = {
        row["id"]: Record(
            row.get("group") or row["id"],
            row.get("class") or None,
            row.get("split") or None,
            np.array([np.nan if _is_missing(row[c]) else _number(row[c]) for c in columns], np.float32),
        )
        for row in rows
    }
    classes = {record.class_name for record in records.values() if record.class_name}
    has_groups = "group" in table.header
    notes = [f"{path}: read as columns between {SEPARATORS[table.separator]}"] if table.separator != "," else []
    notes += [*_own_splits(path, records), *(_alike_groups(path, records) if has_groups else [])]
    return CohortTable(records, names, units, tuple(sorted(classes, key=class_order)), ignored, has_groups,
                       tuple(notes))


# ---- names of columns and splits ----


def _check_columns(path: Path, header: Sequence[str], rows: Sequence[dict[str, str]]) -> None:
    """ValueError for columns that seem meant for ours: `Split`, `set` of train and val, `patient` with rows of one."""
    for column in header:
        near = [name for name in KNOWN if column.casefold() in (name, f"{name}s")]
        if near and column not in KNOWN:
            raise ValueError(f"{path}: column {column!r}: did you mean {near[0]!r}? rename it, to this or to "
                             "something else")
        values = {row[column] for row in rows} - {""}
        if "split" not in header and len(values) > 1 and all(v in SPLITS or nearest_split(v) for v in values):
            raise ValueError(f"{path}: column {one_line(column)!r} holds names of splits ({listed(sorted(values))}); "
                             "rename it to 'split', or leave it out")
        several = Counter(row[column] for row in rows if row[column])
        if "group" not in header and column.casefold().startswith(PATIENTS) and max(several.values(), default=0) > 1:
            raise ValueError(f"{path}: column {column!r} has several rows of one, "
                             f"{several.most_common(1)[0][0]!r}; rename it to 'group' where these must stay "
                             "in one split, else leave it out")


def _own_splits(path: Path, records: Mapping[str, Record]) -> list[str]:
    """A note on splits of other names than ours; ValueError for one that seems to be meant for one of ours."""
    first = {}
    for id_, record in records.items():
        if record.split and record.split not in SPLITS:
            first.setdefault(record.split, id_)
    for split, id_ in first.items():
        if near := nearest_split(split):
            raise ValueError(f"{path}: split {split!r} of {one_line(id_)}: did you mean {near!r}?")
        if not OWN_SPLIT.fullmatch(split) or split == RESERVED:
            raise ValueError(f"{path}: split {split!r} of {one_line(id_)}: no name for a split; wanted "
                             f"{', '.join(SPLITS)}, or letters and digits")
    return [f"Note: {path} has splits of other names, {listed(first)}: training.dataset.split and evaluate.py's "
            f"--split take them by name, else only {', '.join(SPLITS)} are used"] if first else []


def nearest_split(name: str) -> str | None:
    """The split of ours that a name seems to be meant for; None for ours themselves and for names of another kind.

    Capital letters, other endings (training, validation, tr) and slips of a letter or two are near; what goes on in
    digits or another word (test_2, train_fold1) is a name of its own.
    """
    word = name.casefold().strip(" '\"._-")
    word = re.sub(r"[ _-](set|data|split)$", "", word)
    if name in SPLITS or not word:
        return None
    ours = [split for split in SPLITS if word.isalpha() and len(word) > 1
            and (split.startswith(word) or word.startswith(split))]
    close = difflib.get_close_matches(word, (*SPLITS, "training", "validation", "testing"), 1, 0.75)
    found = ours[:1] or (close if word.isalpha() else [])
    return next((split for split in SPLITS if found and found[0].startswith(split)), None)


def _alike_groups(path: Path, records: Mapping[str, Record]) -> list[str]:
    """A note on groups that differ in capital letters alone."""
    written: dict[str, set[str]] = defaultdict(set)
    for record in records.values():
        written[record.group.casefold()].add(record.group)
    alike = [" and ".join(sorted(names)) for names in written.values() if len(names) > 1]
    return [f"Note: {path}: groups that differ in capital letters alone count as patients of their own: "
            f"{listed(alike, '; ')}"] if alike else []


# ---- numbers ----


def names_and_units(source: Path | str, columns: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and units of attributes, `age [y]`; ValueError, begun by the source, for two of one name, or none."""
    headers = [re.fullmatch(r"(.*?)\s*(?:\[(.*)\])?", column, re.DOTALL) for column in columns]
    names, units = tuple(h[1] for h in headers), tuple(h[2] or "" for h in headers)
    if doubled := [column for column, name in zip(columns, names) if names.count(name) > 1 or not name]:
        raise ValueError(f"{source}: columns of one name, or of none, but for their units: {listed(doubled)}")
    return names, units


def _check_numbers(path: Path, rows: Sequence[dict[str, str]], columns: Sequence[str]) -> None:
    """ValueError naming the cells that hold neither nothing nor a number within float32."""
    bad = [(row["id"], c, row[c]) for row in rows for c in columns
           if not _is_missing(row[c]) and _number(row[c]) is None]
    if bad:
        comma = " (1.5 for 1,5)" if any(DECIMAL_COMMA.fullmatch(cell) for *_, cell in bad) else ""
        cells = listed((f"{id_}: {column} = '{cell}'" for id_, column, cell in bad), "; ")
        raise ValueError(f"{path}: not a finite number within float32: {cells}. Correct the cells{comma} or remove the "
                         "column")


def _is_missing(cell: str) -> bool:
    return cell.lower() in ("", "nan")


def _is_text(cell: str) -> bool:
    """Whether a cell has nothing to do with a number: an infinite one, or 1,5, is a mistake in one."""
    return _is_missing(cell) or (_float(cell) is None and not DECIMAL_COMMA.fullmatch(cell))


def _float(cell: str) -> float | None:
    """The number that a cell says, NaN left out; Python's 1_000 is none."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return None if "_" in cell or np.isnan(value) else value


def _number(cell: str) -> float | None:
    """The number of a cell, None where it says none that float32 holds."""
    value = _float(cell)
    return value if value == 0 or (value and LEAST <= abs(value) <= MOST) else None


def class_order(name: str) -> tuple[float, str]:
    """By what names of classes are sorted: numbers by their values, before words."""
    number = _number(name)
    return (np.inf if number is None else number, name)


# ---- splits ----


def parse_fractions(fractions: Sequence[float]) -> dict[str, float]:
    """Name up to three fractions train, val, test; ValueError unless they are not negative and sum to 1."""
    text = " ".join(f"{f:g}" for f in fractions)
    if not 1 <= len(fractions) <= 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6 or fractions[0] == 0:
        raise ValueError(
            f"--split {text}: wanted up to three fractions (train, val, test) that sum to 1, train above 0"
        )
    return {name: fraction for name, fraction in zip(SPLITS, fractions) if fraction > 0}


def assign_splits(groups: Sequence[str], fractions: dict[str, float], seed: int = 0) -> dict[str, str]:
    """Give every group a split, by a hash of seed and name, so that volumes divide as the fractions ask.

    groups: the group of each volume. Large groups are placed first, each where most volumes are still missing.
    ValueError if there are fewer groups than splits.
    """
    sizes = Counter(groups)
    if len(sizes) < len(fractions):
        raise ValueError(
            f"empty split: {len(sizes)} group(s) cannot fill {', '.join(fractions)}; change --split or add volumes"
        )
    missing = {split: fraction * len(groups) for split, fraction in fractions.items()}
    empty = set(fractions)
    chosen: dict[str, str] = {}
    order = sorted(sizes, key=lambda g: (-sizes[g], hashlib.sha256(f"{seed}:{g}".encode()).digest()))
    for position, group in enumerate(order):
        must_fill = len(order) - position == len(empty)  # one group left for each split that has none
        split = max((s for s in fractions if not must_fill or s in empty), key=missing.__getitem__)
        chosen[group] = split
        missing[split] -= sizes[group]
        empty.discard(split)
    return chosen
