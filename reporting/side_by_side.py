"""Reports of generated volumes side by side: their numbers, how far these are apart, and where they do not compare.

Keys of compare.json, besides those of every report:
  reports.[{letter, path, sha256, title, date}]
  not_comparable.[{what, values, why}], notes.[...]
  scorecard.[ROW], numbers.[ROW]    ROW: {name, values, differences, intervals}; values: null or {value, low, high,
                                    floor, said} by report; differences to the first, null where they say nothing
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NamedTuple

from edm3d.reporting.report import REPORT
from edm3d.reporting.section import CRITERIA, Score
from edm3d.utils.checks import is_whole
from edm3d.utils.files import file_hash
from edm3d.utils.names import one_line
from edm3d.utils.plain import from_plain, read_json, shown

KEY = "--compare"
MOST, MOST_NUMBERS = len(ascii_uppercase), 20_000
OTHERS = {"autoencoder": "a first stage", "downstream": "downstream networks", "samples": "drawn PET scans"}
FRAME = ("title", "date", "command", "versions", "definitions", "scheme", "real", "generated", "train", "noise",
         "licences", "options", "provenance", "citations", "scorecard", "utility")  # entries without figures to compare
BESIDE = ("low", "high", "_low", "_high")  # how the names of ends of intervals end
MUCH = "all numbers"


@dataclass(frozen=True)
class Real:
    """What generated volumes were held against."""

    content_hash: str
    reference: str
    num: int


@dataclass(frozen=True)
class Generated:
    """What was generated."""

    sha256: str
    num: int
    seeds: str
    snapshot_hash: str


@dataclass(frozen=True)
class NamedExtractor:
    """What features were made by."""

    hash: str
    preprocessing: str
    relative: bool


@dataclass(frozen=True)
class SaidFigure:
    """What is taken of a report besides its figures."""

    title: str
    date: str
    versions: dict[str, str]
    real: Real
    generated: Generated
    scheme: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    extractors: dict[str, NamedExtractor] = field(default_factory=dict)


class Figure(NamedTuple):
    """A number of a report and what stands beside it."""

    value: float | None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    said: str = ""


class Read(NamedTuple):
    """A report that was read: where, and its figures by name: of the scorecard, and all."""

    path: str
    sha256: str
    said: SaidFigure
    scorecard: dict[str, Figure]
    numbers: dict[str, Figure]


class FigureRow(NamedTuple):
    """A figure of all reports, None where one has none; how far each is from the first, and whether intervals are
    apart.
    """

    name: str
    values: list[Figure | None]
    differences: list[float | None]
    intervals: str


# ---- reading ----


def read_reports(paths: Sequence[Path]) -> list[Read]:
    """Reports of generated volumes, files or folders; ValueError for fewer than two, or anything else."""
    files = [path / REPORT if path.is_dir() else path for path in paths]
    if not 2 <= len(files) <= MOST:
        raise ValueError(f"{KEY}: {len(files)} report{'s' * (len(files) != 1)}, wanted 2 to {MOST}")
    if len({file.resolve() for file in files}) < len(files):
        raise ValueError(f"{KEY}: one report is named twice; name each once")
    return [read_report(file) for file in files]


def read_report(file: Path) -> Read:
    """One of them."""
    found = read_json(file)
    if not isinstance(found, dict):
        raise ValueError(f"{KEY} {file}: holds {shown(found)}, wanted a {REPORT} of evaluate.py --generated")
    if "generated" not in found:
        other = next((what for key, what in OTHERS.items() if key in found), "")
        raise ValueError(f"{KEY} {file}: {f'is a report of {other}' if other else 'is no report of ours'}; wanted a "
                         f"{REPORT} of evaluate.py --generated")
    provenance = found.get("provenance") if isinstance(found.get("provenance"), dict) else {}
    known = {name: found[name] for name in SaidFigure.__dataclass_fields__ if name in found} | {
        name: only(kind, found[name]) for name, kind in (("real", Real), ("generated", Generated)) if name in found}
    extractors = provenance.get("extractors", {})
    known["extractors"] = {name: only(NamedExtractor, entry) for name, entry in extractors.items()} \
        if isinstance(extractors, dict) else extractors
    numbers = {}
    for name, entry in found.items():
        if name not in FRAME:
            numbers |= dict(figures_in(entry, (name,)))
            if len(numbers) > MOST_NUMBERS:
                raise ValueError(f"{KEY} {file}: holds more than {MOST_NUMBERS:,} numbers, which no report of ours "
                                 "does")
    return Read(str(file), file_hash(file), from_plain(SaidFigure, known, file), scorecard_of(found, file), numbers)


def only(kind: type, found: Any) -> Any:
    """Of names with values those that a dataclass has; anything else as it is, for its check to refuse."""
    if not isinstance(found, dict):
        return found
    return {name: found[name] for name in kind.__dataclass_fields__ if name in found}


def scorecard_of(found: Mapping[str, Any], file: Path) -> dict[str, Figure]:
    """Figures of a scorecard, {} of reports from before there was one."""
    card, figures = found.get("scorecard", {}), {}
    if not isinstance(card, dict):
        raise ValueError(f"{file}: scorecard is {shown(card)}, wanted names with values")
    for criterion in CRITERIA:
        part = card.get(criterion)
        rows = part.get("figures", []) if isinstance(part, dict) else []
        if not isinstance(rows, list):
            raise ValueError(f"{file}: scorecard.{criterion}.figures is {shown(rows)}, wanted a list")
        for i, row in enumerate(rows):
            score = from_plain(Score, row, file, f"scorecard.{criterion}.figures[{i}]")
            figures[f"{criterion}: {score.name}"] = Figure(score.value, score.low, score.high, score.floor,
                                                           " ".join(filter(None, (score.unit, score.said))))
    return figures


def figures_in(entry: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Figure]]:
    """All numbers below an entry but those in lists, as curves are, each with its interval and floor."""
    if not isinstance(entry, dict):
        if is_number(entry):
            yield ".".join(path), Figure(float(entry))
        return
    for name, value in entry.items():
        if isinstance(value, dict):
            yield from figures_in(value, (*path, name))
        elif is_number(value) and not is_beside(name):
            ends = [first_number(entry, f"{name}_{end}", end) for end in ("low", "high")]
            yield ".".join((*path, name)), Figure(float(value), *ends, first_number(entry, "floor_p99", "floor"))


def is_beside(name: str) -> bool:
    """Whether a number is what another stands beside."""
    return name.startswith("floor") or name.endswith(BESIDE)


def is_number(value: Any) -> bool:
    """Whether a value is one number."""
    return (isinstance(value, float) and isfinite(value)) or (is_whole(value) and abs(value) < 2**53)


def first_number(entry: Mapping[str, Any], *names: str) -> float | None:
    """The first of these that an entry has as a number."""
    return next((float(entry[name]) for name in names if is_number(entry.get(name))), None)


# ---- side by side ----


def rows_of(found: Sequence[Mapping[str, Figure]], relative: set[str]) -> list[FigureRow]:
    """The figures of all, in the order of the first that has them; relative: names whose figures do not compare."""
    rows = []
    for name in dict.fromkeys(name for figures in found for name in figures):
        values = [figures.get(name) for figures in found]
        compares = not any(word in name for word in relative)
        differences = [difference(values[0], value) if compares else None for value in values[1:]]
        rows.append(FigureRow(name, values, differences,
                        said_of_intervals(values) if compares else "within one report alone"))
    return rows


def difference(one: Figure | None, other: Figure | None) -> float | None:
    """The second less the first."""
    return None if one is None or other is None or None in (one.value, other.value) else other.value - one.value


def said_of_intervals(values: Sequence[Figure | None]) -> str:
    """Whether the interval of any lies apart from that of the first; '' where not all have one."""
    if any(value is None or value.low is None or value.high is None for value in values):
        return ""
    first, *others = values
    return "apart" if any(first.low > each.high or each.low > first.high for each in others) else "overlap"


def not_comparable(reports: Sequence[Read]) -> list[dict[str, Any]]:
    """In what reports differ so that their numbers do not compare: what, the values in all, and why it counts."""
    def of(get: Any) -> list[str]:
        return [one_line(str(get(each.said))) for each in reports]

    checks = [
        ("real data", of(lambda s: s.real.content_hash[:16]), f"{MUCH} are against other real volumes"),
        ("what is held against", of(lambda s: s.real.reference), f"{MUCH} are against other volumes of the file"),
        ("number of real volumes", of(lambda s: s.real.num), "distances and floors depend on how many there are"),
        ("number of generated volumes", of(lambda s: s.generated.num),
         "distances, Frechet distances above all, and floors depend on how many there are"),
        ("scheme of the report", of(lambda s: s.scheme or "not said"), "numbers of one name may be computed otherwise"),
        *((f"option {name}", of(lambda s, name=name: s.options.get(name, "not said")), f"{MUCH} are of other volumes")
          for name in ("ignore_spacing", "size"))]
    for name in shared(reports):
        has = [each.said.extractors[name] for each in reports]
        checks += [(f"extractor {name}", [one_line(e.hash[:16]) for e in has], "its features are others"),
                   (f"images as {name} sees them", [one_line(e.preprocessing) for e in has], "its features are others")]
        if any(e.relative for e in has):
            checks.append((f"extractor {name}", ["relative"] * len(has),
                           "its distances compare within one report alone: no difference is given"))
    return [{"what": what, "values": values, "why": why} for what, values, why in checks
            if len(set(values)) > 1 or set(values) == {"relative"}]


def shared(reports: Sequence[Read]) -> list[str]:
    """Extractors that all have."""
    return [name for name in reports[0].said.extractors if all(name in each.said.extractors for each in reports)]


def notes_on(reports: Sequence[Read]) -> list[str]:
    """What is to be known besides."""
    notes = []
    if len({each.said.generated.sha256 for each in reports}) == 1:
        notes.append("Note: all reports are of the same samples")
    if len({each.said.generated.seeds for each in reports}) > 1:
        notes.append("Note: the samples are of other seeds")
    for name in dict.fromkeys(name for each in reports for name in each.said.versions):
        if len(values := dict.fromkeys(each.said.versions.get(name, "none") for each in reports)) > 1:
            notes.append(f"Note: version of {one_line(name)}: {', '.join(map(one_line, values))}")
    lone = dict.fromkeys(name for each in reports for name in each.said.extractors if name not in shared(reports))
    return notes + [f"Note: extractor {one_line(name)} is not in all reports" for name in lone]


def compared(reports: Sequence[Read]) -> dict[str, Any]:
    """What compare.json holds of reports."""
    relative = {name for each in reports for name, extractor in each.said.extractors.items() if extractor.relative}
    return {"reports": [{"letter": letter, "path": each.path, "sha256": each.sha256, "title": each.said.title,
                         "date": each.said.date} for letter, each in zip(ascii_uppercase, reports)],
            "not_comparable": not_comparable(reports), "notes": notes_on(reports),
            **{key: [row._asdict() | {"values": [value and value._asdict() for value in row.values]}
                     for row in rows_of([getattr(each, key) for each in reports], relative)]
               for key in ("scorecard", "numbers")}}
