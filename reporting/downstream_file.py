"""A report of downstream networks, read again: what its table needs, checked."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from edm3d.reporting.report import REPORT
from edm3d.reporting.scores import MEASURES
from edm3d.utils.files import file_hash
from edm3d.utils.names import one_line
from edm3d.utils.plain import from_plain, read_json

KEY = "--downstream"
ENTRIES = ("title", "date", "real", "downstream", "rows", "runs")


@dataclass(frozen=True)
class Tested:
    """The test cases."""

    path: str
    content_hash: str
    split: str
    num: int
    left_out: int = 0


@dataclass(frozen=True)
class Predicted:
    """What all runs predict."""

    predicts: str
    hashes: str
    precision: str
    seed: int


@dataclass(frozen=True)
class Spread:
    """A measure of a row: mean and standard deviation over runs."""

    mean: float | None
    std: float | None
    by_class: dict[str, Any]


@dataclass(frozen=True)
class Ends:
    """A measure of a run, with its interval."""

    value: float | None
    low: float | None
    high: float | None
    used: int | None
    by_class: dict[str, Any]


@dataclass(frozen=True)
class DownstreamRow:
    """A row of the table."""

    name: str
    sources: list[str]
    items: int | None
    real_items: int | None
    is_real: bool
    runs: list[str]
    beside: dict[str, float | str | None] | None
    otherwise: list[str]
    dice: Spread | None = None
    hd95: Spread | None = None
    hd: Spread | None = None
    accuracy: Spread | None = None
    auroc: Spread | None = None


@dataclass(frozen=True)
class DownstreamRun:
    """A run of a row."""

    name: str
    path: str
    hash: str
    kimg: float
    seed: int | None
    row: str
    dice: Ends | None = None
    hd95: Ends | None = None
    hd: Ends | None = None
    accuracy: Ends | None = None
    auroc: Ends | None = None


@dataclass(frozen=True)
class DownstreamTable:
    """What is taken of the report."""

    title: str
    date: str
    real: Tested
    downstream: Predicted
    rows: list[DownstreamRow]
    runs: list[DownstreamRun]

    def __post_init__(self) -> None:
        names = {run.name for run in self.runs}
        if not self.rows:
            raise ValueError("rows is empty, wanted one or more")
        keys = measures_of(self.rows[0])
        if not keys:
            raise ValueError(f"rows have none of the measures {', '.join(MEASURES)}")
        for row in self.rows:
            if not row.runs or not names.issuperset(row.runs):
                raise ValueError(f"row {one_line(row.name)} is of runs that are not among the runs")
        if any(measures_of(each) != keys for each in (*self.rows, *self.runs)):
            raise ValueError(f"rows and runs have not all the measures {', '.join(keys)}")
        if any(row.beside and not {"row", keys[0]} <= row.beside.keys() for row in self.rows):
            raise ValueError(f"a row's beside names no row, or no {keys[0]}")
        if any(row.beside and isinstance(row.beside[keys[0]], str) for row in self.rows):
            raise ValueError(f"a row's beside.{keys[0]} is no number")


def measures_of(each: DownstreamRow | DownstreamRun) -> list[str]:
    """Measures that a row or run has."""
    return [key for key in MEASURES if getattr(each, key) is not None]


def read_downstream(path: Path) -> dict[str, Any]:
    """Of a report.json of `evaluate.py downstream`, or its folder: what its table needs, and path, sha256 of the file.

    ValueError naming it for anything else.
    """
    file = path / REPORT if path.is_dir() else path
    found = read_json(file)
    if not isinstance(found, dict) or "downstream" not in found:
        raise ValueError(f"{KEY} {file}: is no report of downstream networks; wanted the report.json, or its folder, "
                         "that evaluate.py downstream writes")
    known = {name: found[name] for name in ENTRIES if name in found}
    if "real" in known and isinstance(known["real"], dict):
        known["real"] = {field.name: known["real"][field.name] for field in fields(Tested)
                         if field.name in known["real"]}
    from_plain(DownstreamTable, known, file)
    return {"path": str(file), "sha256": file_hash(file), **known}
