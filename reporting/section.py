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
CRITERIA = {  # of the scorecard for synthetic medical data (Zamzmi et al. 2025), and what is asked by each
    "congruence": "Are generated volumes distributed as real ones?",
    "coverage": "Do they vary as real ones do, and reach what those reach?",
    "constraint": "Do they keep to what anatomy and physics allow?",
    "completeness": "Is there all that a user of such data needs: channels, labels, classes?",
    "compliance": "Is nobody's privacy harmed, and are the terms of use known?",
    "comprehension": "Is it known and written down how they were made?",
    "consistency": "Do they agree with what was asked for, alike in all groups, and serve as real ones do?",
}


class Padding(NamedTuple):
    """Slices of padding that a real file records: in so many `volumes` of `num`, so many `slices` in all.

    depth: slices of what is compared; kept: first and past-last one of those that count, None: all.
    """

    volumes: int
    num: int
    slices: int
    depth: int
    kept: tuple[int, int] | None


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a section may ask for besides what it measured.

    provenance: how the real file was made; missing: why a set is not there; first: the first SHOWN volumes of each set,
    there as soon as all is measured. padding: that of the real file, None where it records none; animate: whether GIFs
    are wanted.
    """

    layout: Layout
    provenance: Mapping[str, Any]
    missing: Mapping[str, str] = field(default_factory=dict)
    first: Mapping[str, list] = field(default_factory=dict)
    padding: Padding | None = None
    animate: bool = False


class Score(NamedTuple):
    """A figure of the scorecard: a value in its unit, or what is said in place of one, and what it stands beside.

    low, high: ends of its 95 % interval; floor: what chance, or real against real, comes to; ceiling: the best that is
    to be had, and of a distance that of decoded noise; real: the same figure of real volumes.
    """

    name: str
    value: float | None = None
    unit: str = ""
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    ceiling: float | None = None
    real: float | None = None
    said: str = ""


class Section:
    """A part of a report, made once for all reports; each method is left out where there is nothing of its kind.

    words: what its words mean, for the foot of the page. sets: those whose volumes it measures. citations: what to cite
    where it is used, by name.
    """

    words: Mapping[str, str] = {}
    sets: Sequence[str] = COMPARED
    citations: Mapping[str, str] = {}

    def measure(self, item: Case | DecodedCase, context: Context) -> Any:
        """What is kept of one volume; never the volume."""

    def gather(self, rows: dict[str, list], context: Context) -> Any:
        """What `compute`, `figures` and `columns` work on, of all that was measured in each set."""
        return rows

    def compute(self, found: Any, context: Context) -> dict[str, Any]:
        """Its entries of report.json."""
        return {}

    def summarise(self, report: dict) -> dict[str, Any]:
        """Entries of report.json that are made of those of all sections, after all have computed theirs."""
        return {}

    def scores(self, report: dict) -> Mapping[str, Sequence[Score]]:
        """Its figures of the scorecard, by criterion (CRITERIA); none where its part is missing."""
        return {}

    def cited(self, report: dict) -> Mapping[str, str]:
        """Of its citations those of what this report uses."""
        return self.citations

    def figures(self, found: Any, context: Context, report: dict) -> dict[str, Figure]:
        """Pictures by the name of their file."""
        return {}

    def animations(self, found: Any, context: Context, report: dict) -> dict[str, bytes]:
        """GIFs by the name of their file, where the context wants any."""
        return {}

    def embedded(self, found: Any, context: Context, report: dict) -> dict[str, bytes]:
        """What its part of the page takes besides pictures, by name; no file is written of it."""
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
        """Its part of the page; figures: PNGs, GIFs and what else is embedded, of all sections by name.
        """
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
