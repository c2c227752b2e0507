"""How segmenters do on every class: overlap, distances, and what is empty."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from edm3d.reporting import charts
from edm3d.reporting.downstream import DownstreamContext
from edm3d.reporting.html import html_grid, html_table
from edm3d.reporting.scores import MEASURES, VoxelScores
from edm3d.reporting.section import Section
from edm3d.reporting.sections.trained_on import spread
from edm3d.utils.checks import listed
from edm3d.utils.names import one_line, titled

MOST_CLASSES = 8  # with charts of their own
DISTANCES = ("hd95", "hd")
COLUMNS = {"dice": "dice", "hd95": "hd95_mm", "hd": "hd_mm"}  # of cases.csv, before the name of the class


class VoxelClasses(Section):
    """Every class but the first.

    classes.NAME.ROW.{missed, invented, absent}      numbers of cases, summed over the row's runs
    never_found.RUN.[NAME]                           classes that test cases have and the run finds in none of these
    """

    words = {
        "Dice": "2 |A and B| / (|A| + |B|) of a class in truth and prediction, over the cases whose truth has it; 0 "
                "where the prediction has nothing of it. Dice of all is the mean over classes of these means.",
        "Hausdorff": "Distance in mm of each surface voxel of one map to the nearest of the other, by the voxel size "
                     "of the case, taken both ways: the maximum, or the 95 % point of either way, of which the larger. "
                     "Defined where truth and prediction have the class. Of all: the mean over classes, none where a "
                     "class that truth has is missed in all its cases.",
        "empty": "missed: the truth has the class, the prediction nothing of it (Dice 0, no distance). invented: the "
                 "prediction has it, the truth does not (left out of Dice and distances). absent: neither has it "
                 "(left out).",
    }

    def compute(self, found: dict[str, VoxelScores], context: DownstreamContext) -> dict[str, Any]:
        names = context.predicts.names[1:]
        empty = {run: scores.empty() for run, scores in found.items()}
        return {"classes": {name: {row.name: {key: int(sum(empty[run.name][key][k] for run in context.runs_of(i)))
                                              for key in ("missed", "invented", "absent")}
                                   for i, row in enumerate(context.rows)} for k, name in enumerate(names)},
                "never_found": {run: [name for name, never in zip(names, scores.never_found(), strict=True) if never]
                                for run, scores in found.items() if scores.never_found().any()}}

    def lines(self, report: dict) -> list[str]:
        return [f"{one_line(run)}: no mean Hausdorff distance, as it finds nothing of {listed(names)} in any of the "
                "test cases that have it" for run, names in report["never_found"].items()]

    def figures(self, found: dict[str, VoxelScores], context: DownstreamContext, report: dict) -> dict[str, Figure]:
        colours, drawn = charts.row_colours([row.is_real for row in context.rows]), {}
        for k, name in enumerate(context.predicts.names[1:MOST_CLASSES + 1]):
            for key in ("dice", "hd95"):
                values = {row.name: np.concatenate([cases_of(found[run.name], key)[:, k] for run in context.runs_of(i)])
                          for i, row in enumerate(context.rows)}
                drawn[f"{key}_{name}"] = charts.boxes_chart(values, colours, f"{name}: {MEASURES[key].title}",
                                                            MEASURES[key].unit)
        return drawn

    def columns(self, found: dict[str, VoxelScores], context: DownstreamContext, name: str
                ) -> dict[str, Sequence[str]]:
        return {f"{COLUMNS[key]}_{of_class}": [f"{v:.6g}" for v in cases_of(found[name], key)[:, k]]
                for key in COLUMNS for k, of_class in enumerate(context.predicts.names[1:])}

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        lines = []
        for name, empty in report["classes"].items():
            lines += [[f"{name}, {row['name']}", *(spread_of(row, key, name) for key in ("dice", *DISTANCES)),
                       *(str(empty[row["name"]][key]) for key in ("missed", "invented", "absent"))]
                      for row in report["rows"]]
        heads = ["class, trained on", *(titled(MEASURES[key].title, MEASURES[key].unit)
                                        for key in ("dice", *DISTANCES)), "missed", "invented", "absent"]
        shown = [f"{key}_{name}" for name in report["classes"] for key in ("dice", "hd95")]
        rest = len(report["classes"]) - MOST_CLASSES
        note = f"<p class=note>Charts of the first {MOST_CLASSES} classes; cases.csv has {rest} more.</p>"
        table = html_table(heads, lines, main=1)
        said = "".join(f"<p class=note>{escape(line)}</p>" for line in self.lines(report))
        return f"<h2>Classes</h2>{said}{table}{note if rest > 0 else ''}{html_grid(shown, figures)}"


def cases_of(scores: VoxelScores, key: str) -> np.ndarray:
    """A measure of every case and class [N,K], NaN where it is left out."""
    return {"dice": np.where(scores.in_truth, scores.dice, np.nan), "hd95": scores.hd95, "hd": scores.hd}[key]


def spread_of(row: Mapping[str, Any], key: str, name: str) -> str:
    """Mean of a class over the runs of a row, with its standard deviation where there are several."""
    cell, digits = row[key]["by_class"][name], MEASURES[key].digits
    return spread(cell, digits).removesuffix(" ± -")
