"""What a table says of the volumes of a cohort, and which split each patient goes to."""

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edm3d.formats.volumes import SPLITS
from edm3d.utils.checks import listed

# ---- table ----


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


def read_table(path: Path) -> CohortTable:
    """Read a CSV with columns id, and where wanted group, class, split; further columns of numbers are attributes.

    A unit stands in brackets in the header, `lv_volume [mL]`; an empty cell is a missing value, an empty group the id.
    """
    rows = _read_csv(path)
    columns = [c for c in rows[0] if c not in ("id", "group", "class", "split")]
    ignored = tuple(
        c
        for c in columns
        if all(_number(row[c]) is None for row in rows) and any(not _is_missing(row[c]) for row in rows)
    )
    columns = [c for c in columns if c not in ignored]
    bad = [
        f"{row['id']}: {c} = '{row[c]}'"
        for row in rows
        for c in columns
        if not _is_missing(row[c]) and _number(row[c]) is None
    ]
    if bad:
        raise ValueError(f"{path}: not a finite number: {listed(bad, '; ')}. Correct the cells or remove the column")
    headers = [re.fullmatch(r"(.*?)\s*(?:\[(.*)\])?", column) for column in columns]
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
    names, units = tuple(h[1] for h in headers), tuple(h[2] or "" for h in headers)
    return CohortTable(records, names, units, tuple(sorted(classes, key=_class_order)), ignored)


def _read_csv(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = [[cell.strip() for cell in line] for line in csv.reader(file, strict=True)]
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; wanted a table with a column id, as --table has it") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as a table ({error})") from error
    lines = [line for line in lines if any(line)]
    header = lines[0] if lines else []
    if "id" not in header or len(set(header)) < len(header) or "" in header:
        raise ValueError(
            f"{path}: its first line must name every column once, one of them 'id', by commas; got {listed(header)}"
        )
    if uneven := [line[0] for line in lines if len(line) != len(header)]:
        raise ValueError(f"{path}: rows with more or fewer cells than the header: {listed(uneven)}")
    rows = [dict(zip(header, line)) for line in lines[1:]]
    doubled = [row_id or "(empty)" for row_id, n in Counter(r["id"] for r in rows).items() if n > 1 or not row_id]
    if doubled or not rows:
        raise ValueError(f"{path}: {'ids empty or doubled: ' + listed(doubled) if doubled else 'has no rows'}")
    return rows


def _is_missing(cell: str) -> bool:
    return cell.lower() in ("", "nan")


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _class_order(name: str) -> tuple[float, str]:
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
