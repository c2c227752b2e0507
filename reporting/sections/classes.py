"""Whether generated volumes are of the class that was asked for, judged by their numbers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edm3d.metrics.classes import nearest_class, nearest_class_left_out
from edm3d.reporting.cases import Case
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.distances import wilson_interval
from edm3d.reporting.html import html_missing, html_table
from edm3d.reporting.section import Score, Section, missing
from edm3d.reporting.sections.scalars import MeasuredOnce, Numbers
from edm3d.reporting.tables import percent

FEWEST = 5  # real volumes of each class


class Told(NamedTuple):
    """Numbers [N,D] of the volumes of a set that are of a class, and the number of that class [N]."""

    values: np.ndarray
    classes: np.ndarray


class AskedClasses(Section):
    """The share of generated volumes whose numbers are nearest to the real mean of the class that was asked for.

    classes.{available, chance, real, generated, generated_low, generated_high}      shares, 0 to 1; real: each held
                                                                        against the means of all other real volumes
    classes.by_class.NAME.{num, generated, real}
    """

    words = {"as asked": "Share of volumes whose class, guessed from their numbers, is the one asked for: that of the "
                         "nearest mean of real volumes, in standard deviations within the classes. Of real volumes, "
                         "each guessed by all others, it says how well the numbers tell the classes apart at all."}
    sets = ("real", "generated")

    def __init__(self, numbers: Iterable[Numbers] | MeasuredOnce):
        self.numbers = MeasuredOnce.of(numbers)

    def measure(self, item: Case, context: Comparison) -> tuple[int, list[float]] | None:
        if item.class_name not in context.layout.class_names:
            return None
        found = [float(value) for value in self.numbers.measure(item, context.layout).values()]
        return context.layout.class_names.index(item.class_name), found

    def gather(self, rows: dict[str, list], context: Comparison) -> dict[str, Told] | None:
        told = {name: [row for row in kept if row is not None] for name, kept in rows.items()}
        if not all(told.values()):
            return None
        return {name: Told(np.array([values for _, values in kept]), np.array([number for number, _ in kept]))
                for name, kept in told.items()}

    def compute(self, found: dict[str, Told] | None, context: Comparison) -> dict[str, Any]:
        if found is None:  # of data without classes nothing is said
            return {}
        names, real, generated = context.layout.class_names, found["real"], found["generated"]
        counts = {names[c]: int((real.classes == c).sum()) for c in range(len(names))}
        if few := [f"{count} of {name}" for name, count in counts.items() if count < FEWEST]:
            return {"classes": missing(f"wanted {FEWEST} real volumes of each class or more, there are "
                                       f"{', '.join(few)}")}
        right = nearest_class(real.values, real.classes, generated.values) == generated.classes
        right_real = nearest_class_left_out(real.values, real.classes) == real.classes
        low, high = wilson_interval(int(right.sum()), len(right))
        by_class = {name: {"num": int(mine.sum()), "generated": float(right[mine].mean()) if mine.any() else None,
                           "real": float(right_real[real.classes == c].mean())}
                    for c, name in enumerate(names) for mine in [generated.classes == c]}
        return {"classes": {"available": True, "chance": 1 / len(names), "real": float(right_real.mean()),
                            "generated": float(right.mean()), "generated_low": low, "generated_high": high,
                            "by_class": by_class}}

    def facts(self, report: dict) -> list[tuple[str, str]]:
        row = report.get("classes", {})
        return [(percent(row["generated"]), "of the class asked for")] if row.get("available") else []

    def scores(self, report: dict) -> Mapping[str, Sequence[Score]]:
        row = report.get("classes", {})
        if not row.get("available"):
            return {}
        there = sum(each["num"] > 0 for each in row["by_class"].values())
        return {"completeness": [Score("classes that were generated", there, said=f"of {len(row['by_class'])}")],
                "consistency": [Score("class as asked, by numbers", row["generated"], low=row["generated_low"],
                                      high=row["generated_high"], floor=row["chance"], real=row["real"])]}

    def rows(self, report: dict) -> list[tuple[str, ...]]:
        row = report.get("classes", {})
        return [("class as asked", percent(row["real"]), percent(row["generated"]), "", "", percent(row["chance"]))] \
            if row.get("available") else []

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        if "classes" not in report:
            return ""
        row = report["classes"]
        if not row["available"]:
            return "<h2>Classes</h2>" + html_missing("Classes as asked", row)
        cells = [[name, percent(each["real"]), percent(each["generated"]), str(each["num"])]
                 for name, each in row["by_class"].items()]
        every = ["all", percent(row["real"]), f"{percent(row['generated'])} ({percent(row['generated_low'])} to "
                 f"{percent(row['generated_high'])})", str(sum(each["num"] for each in row["by_class"].values()))]
        return "<h2>Classes</h2>" + html_table(["as asked", "real", "generated (95 % interval)", "generated volumes"],
                                               [*cells, every], main=2)
