"""What a section of a report is, and the one walk over the volumes that measures for all sections."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from edm3d.reporting.cases import Case, DecodedCase, Layout

COMPARED = ("real", "generated", "noise")  # sets of `Case`s; where there is no noise, there is no such set
NOISE = "decoded noise"  # what the set `noise` is called wherever people read of it
DECODED = ("decoded",)  # the set of `DecodedCase`s
SHOWN = 8  # volumes of each set that are kept for pictures


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a section may ask for besides what it measured.

    provenance: how the real file was made; missing: why a set is not there; first: the first SHOWN volumes of each set,
    there as soon as all is measured.
    """

    layout: Layout
    provenance: Mapping[str, Any]
    missing: Mapping[str, str] = field(default_factory=dict)
    first: Mapping[str, list] = field(default_factory=dict)


class Section:
    """A part of a report, made once for all reports; each method is left out where there is nothing of its kind.

    words: what its words mean, for the foot of the page. sets: those whose volumes it measures.
    """

    words: Mapping[str, str] = {}
    sets: Sequence[str] = COMPARED

    def measure(self, item: Case | DecodedCase, context: Context) -> Any:
        """What is kept of one volume; never the volume."""

    def gather(self, rows: dict[str, list], context: Context) -> Any:
        """What `compute`, `figures` and `columns` work on, of all that was measured in each set."""
        return rows

    def compute(self, found: Any, context: Context) -> dict[str, Any]:
        """Its entries of report.json."""
        return {}

    def figures(self, found: Any, context: Context, report: dict) -> dict[str, Figure]:
        """Pictures by the name of their file."""
        return {}

    def columns(self, found: Any, context: Context, name: str) -> dict[str, Sequence[str]]:
        """Its columns of cases.csv for the volumes of the set of that name."""
        return {}

    def facts(self, report: dict) -> list[tuple[str, str]]:
        """Numbers to see first, each with what it is."""
        return []

    def rows(self, report: dict) -> list[tuple[str, ...]]:
        """Lines of the table on the terminal: name, real, generated, KS, floor, KS of decoded noise."""
        return []

    def lines(self, report: dict) -> list[str]:
        """Lines below that table."""
        return []

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        """Its part of the page; figures: PNGs of all sections by name."""
        return ""


class Walked(NamedTuple):
    """What a walk over the volumes found: ids by set, and of each section what it measured, gathered."""

    context: Context
    ids: dict[str, list[str]]
    found: list[Any]


def walk(sections: Sequence[Section], context: Context, sets: Mapping[str, Iterable],
         complete: Callable[[Context], Context] = lambda context: context) -> Walked:
    """Measure sets of volumes, one volume at a time and each once; ValueError for a set without any.

    complete: adds to the context what is known as soon as all is measured.
    """
    ids: dict[str, list[str]] = {name: [] for name in sets}
    first: dict[str, list] = {name: [] for name in sets}
    rows: list[dict[str, list]] = [{name: [] for name in sets if name in section.sets} for section in sections]
    for name, items in sets.items():
        for item in items:
            ids[name].append(item.id)
            if len(first[name]) < SHOWN:
                first[name].append(item)
            for section, kept in zip(sections, rows, strict=True):
                if name in kept:
                    kept[name].append(section.measure(item, context))
        if not ids[name]:
            raise ValueError(f"no volumes to measure: the set of {name} ones is empty")
    context = complete(replace(context, first=first))
    return Walked(context, ids, [s.gather(kept, context) for s, kept in zip(sections, rows, strict=True)])


def missing(reason: str) -> dict[str, Any]:
    """A part of a report that could not be had."""
    return {"available": False, "reason": reason}
