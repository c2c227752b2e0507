"""What a sweep of an attribute does to the volumes of each seed, as pictures and by the number of that name."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from edm3d.metrics.agreement import rank_correlation, slope
from edm3d.reporting import charts
from edm3d.reporting.cases import Case
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.html import html_grid, html_missing, html_strips, html_table
from edm3d.reporting.section import Section, missing
from edm3d.reporting.sections.asked_attributes import match
from edm3d.reporting.sections.scalars import MeasuredOnce, Numbers
from edm3d.reporting.strips import evenly, pictures_of, strips
from edm3d.reporting.tables import finite, number
from edm3d.utils.names import one_line, titled

SEEDS, VALUES = 3, 8  # rows and columns of the pictures at most
FEWEST = 2  # values of a seed that were measured
MEASURES = {"slope": slope, "rho": rank_correlation}


class Swept(NamedTuple):
    """Seeds of a sweep, the places [S,V] of their volumes among the generated ones, -1 where there is none, what was
    measured on these [S,V], NaN where nothing was, and by which number, None and why where by none.
    """

    seeds: list[int]
    places: np.ndarray
    measured: np.ndarray
    by: str | None
    reason: str


class AttributeSweep(Section):
    """Volumes of a sweep, a row for each seed and a column for each value, and the number of the attribute's name.

    sweep.{available, name, unit, values, seeds}
    sweep.measured.{available, by}
    sweep.measured.{slope, rho}.{mean, lowest, highest}                          over seeds
    sweep.measured.of_seed.[{seed, values, slope, rho}]                          values: what was measured
    """

    words = {"sweep": "All volumes of a row begin with the same noise and are asked for one value each. Slope: of the "
             "straight line through what is measured over what was asked for, 1 where volumes follow; rho: Spearman's "
             "rank correlation, 1 where what is measured rises with every value."}
    sets = ("generated",)

    def __init__(self, numbers: Iterable[Numbers] | MeasuredOnce):
        self.numbers = MeasuredOnce.of(numbers)

    def measure(self, item: Case, context: Comparison) -> float:
        by, _ = self.by(context)
        return float("nan") if by is None else float(self.numbers.measure(item, context.layout)[by])

    def by(self, context: Comparison) -> tuple[str | None, str]:
        """The number of the swept attribute's name and unit, or why there is none."""
        if context.sweep is None:
            return None, ""
        units = {name: unit for name, unit in self.numbers.units(context.layout).items() if unit is not None}
        found = match(context.sweep.column, context.sweep.name, context.sweep.unit, units)
        return found.number, found.reason

    def gather(self, rows: dict[str, list], context: Comparison) -> Swept | None:
        if context.sweep is None:
            return None
        count = len(context.sweep.values)
        seeds = list(dict.fromkeys(int(each) // count for each in context.seeds))
        places = np.full((len(seeds), count), -1)
        for place, each in enumerate(context.seeds):
            places[seeds.index(int(each) // count), int(each) % count] = place
        measured = np.array([*rows["generated"], np.nan])[places]  # -1: the last one
        return Swept(seeds, places, measured, *self.by(context))

    def compute(self, found: Swept | None, context: Comparison) -> dict[str, Any]:
        if found is None:
            return {"sweep": missing("the samples are no sweep of an attribute (sampling.sweep)")}
        sweep = context.sweep
        return {"sweep": {"available": True, "name": sweep.name, "unit": sweep.unit, "values": list(sweep.values),
                          "seeds": found.seeds, "measured": measured_of(found, np.array(sweep.values))}}

    def figures(self, found: Swept | None, context: Comparison, report: dict) -> dict[str, Figure]:
        if found is None:
            return {}
        sweep, part = context.sweep, report["sweep"]["measured"]
        columns = evenly(len(sweep.values), VALUES)
        whole = [row for row in range(len(found.seeds)) if (found.places[row, columns] >= 0).all()][:SEEDS]
        blocks = [(f"Seed {found.seeds[row]}", pictures_of([context.generated.case(int(place))
                                                           for place in found.places[row, columns]])) for row in whole]
        captions = [f"{one_line(sweep.name)}\n{sweep.values[k]:g} {one_line(sweep.unit)}".rstrip() for k in columns]
        drawn = strips("sweep", blocks, context.layout, captions=captions, plain_once=True) if blocks else {}
        return drawn | ({"sweep_measured": charts.sweep_chart(np.array(sweep.values), found.measured, found.seeds,
                                                              sweep.name, sweep.unit)} if part["available"] else {})

    def columns(self, found: Swept | None, context: Comparison, name: str) -> dict[str, Sequence[str]]:
        return {} if found is None or name != "generated" else {
            "noise_seed": [str(int(each) // len(context.sweep.values)) for each in context.seeds]}

    def lines(self, report: dict) -> list[str]:
        part = report["sweep"]
        if not part["available"]:
            return []
        measured, name = part["measured"], titled(one_line(part["name"]), part["unit"])
        return [f"Sweep of {name}: {len(part['seeds'])} seeds, {len(part['values'])} values; " + (
            ", ".join(f"{key} {said(measured[key])}" for key in MEASURES) if measured["available"] else
            f"not measured: {measured['reason']}")]

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        part, title = report["sweep"], "<h2>Sweep</h2>"
        if not part["available"]:
            return title + html_missing("Sweep of an attribute", part)
        measured, name = part["measured"], titled(part["name"], part["unit"])
        note = (f"<p class=note>{escape(name)}, {len(part['values'])} values for each of {len(part['seeds'])} seeds. "
                "Each row of pictures begins with the same noise.</p>")
        body = title + note + html_missing("Measured values", measured)
        if measured["available"]:
            rows = [[f"seed {row['seed']}", *(number(row[key]) for key in MEASURES)] for row in measured["of_seed"]]
            rows.append(["mean of seeds (lowest to highest)", *(said(measured[key]) for key in MEASURES)])
            body += html_grid(["sweep_measured"], figures) + html_table(
                [f"measured {measured['by'].replace('_', ' ')} over asked", "slope", "rho"], rows, main=1)
        return body + html_strips("sweep", figures)


def measured_of(found: Swept, values: np.ndarray) -> dict[str, Any]:
    """What was measured, by seed and over all of them."""
    if found.by is None:
        return missing(found.reason)
    rows = []
    for seed, row in zip(found.seeds, found.measured, strict=True):
        there = np.isfinite(row)
        rows.append({"seed": seed, "values": [finite(value) for value in row], **{
            name: finite(of(values[there], row[there])) if there.sum() >= FEWEST else None
            for name, of in MEASURES.items()}})
    if not any(row["slope"] is not None for row in rows):
        return missing(f"no seed has {FEWEST} values that could be measured")
    return {"available": True, "by": found.by, **{name: spread([row[name] for row in rows]) for name in MEASURES},
            "of_seed": rows}


def spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean, least and greatest of what there is."""
    known = [value for value in values if value is not None]
    ends = (float(np.mean(known)), min(known), max(known)) if known else (None,) * 3
    return dict(zip(("mean", "lowest", "highest"), ends, strict=True))


def said(row: Mapping[str, float | None]) -> str:
    """A mean with what it is of."""
    return number(row["mean"]) + ("" if row["mean"] is None else
                                  f" ({number(row['lowest'])} to {number(row['highest'])})")
