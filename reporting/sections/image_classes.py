"""How classifiers do on every class: confusion, ROC curves, AUROC."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from edm3d.metrics.classification import confusion, roc_curve
from edm3d.reporting import charts
from edm3d.reporting.downstream import DownstreamContext
from edm3d.reporting.html import html_grid, html_missing, html_table
from edm3d.reporting.scores import ImageScores, letter
from edm3d.reporting.section import Section, missing
from edm3d.reporting.sections.trained_on import class_names
from edm3d.reporting.sections.voxel_classes import MOST_CLASSES, spread_of
from edm3d.utils.checks import listed
from edm3d.utils.names import one_line


class ImageClasses(Section):
    """Every class.

    auroc.{available, left_out}             left_out: classes that no test case, or every one, is of
    num_by_class.NAME
    confusion.ROW.[[...]]                   by true class, then by predicted; numbers of cases, summed over runs
    """

    words = {
        "accuracy": "Share of cases whose class has the highest score; of a class, the share of its cases that are "
                    "found.",
        "AUROC": "Share of pairs of a case of the class and another in which the first has the higher log-odds of the "
                 "class against all others, ties being half (Mann-Whitney). Of all: the mean over the classes that "
                 "have one, each against all others; of two classes both have the same.",
    }

    def compute(self, found: dict[str, ImageScores], context: DownstreamContext) -> dict[str, Any]:
        names, truth = class_names(context), next(iter(found.values())).truth
        counts = np.bincount(truth, minlength=len(names))
        undefined = [name for name, count in zip(names, counts, strict=True) if count in (0, len(truth))]
        reason = f"all {len(truth)} test cases are of one class, {one_line(names[truth[0]])}"
        return {"auroc": missing(reason) if (counts > 0).sum() == 1 else {"available": True, "left_out": undefined},
                "num_by_class": {name: int(n) for name, n in zip(names, counts, strict=True)},
                "confusion": {row.name: sum(self.counts(found[run.name], len(names)) for run in context.runs_of(i)
                                            ).tolist() for i, row in enumerate(context.rows)}}

    def counts(self, scores: ImageScores, num_classes: int) -> np.ndarray:
        """The confusion matrix of a run."""
        return confusion(scores.truth, scores.found, num_classes)

    def figures(self, found: dict[str, ImageScores], context: DownstreamContext, report: dict) -> dict[str, Figure]:
        names, drawn = class_names(context), {}
        if len(names) <= MOST_CLASSES:
            drawn |= {f"confusion_{letter(i)}": charts.confusion_chart(np.array(counts), names, row)
                      for i, (row, counts) in enumerate(report["confusion"].items())}
        colours = charts.row_colours([row.is_real for row in context.rows])
        for k in range(1 if len(names) == 2 else 0, min(len(names), MOST_CLASSES)):
            curves = {row.name: [roc_curve(found[run.name].log_odds[:, k], found[run.name].truth == k)
                                 for run in context.runs_of(i)] for i, row in enumerate(context.rows)}
            if 0 < report["num_by_class"][names[k]] < len(next(iter(found.values())).truth):
                drawn["roc" if len(names) == 2 else f"roc_{names[k]}"] = charts.roc_chart(curves, colours, names[k])
        return drawn

    def columns(self, found: dict[str, ImageScores], context: DownstreamContext, name: str
                ) -> dict[str, Sequence[str]]:
        names, scores = class_names(context), found[name]
        return {"truth": [names[k] for k in scores.truth], "predicted": [names[k] for k in scores.found],
                **{f"score_{of_class}": [f"{v:.6g}" for v in scores.scores[:, k]] for k, of_class in enumerate(names)}}

    def lines(self, report: dict) -> list[str]:
        if not report["auroc"]["available"]:
            return [f"AUROC: not available: {report['auroc']['reason']}"]
        without = report["auroc"]["left_out"]
        return [f"AUROC: over the classes that test cases are of; none is of {listed(without)}"] if without else []

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        lines = [[f"{name}, {row['name']}", str(count), *(spread_of(row, key, name) for key in ("auroc", "accuracy"))]
                 for name, count in report["num_by_class"].items() for row in report["rows"]]
        told = self.lines(report) if report["auroc"]["available"] else []
        said = "".join(f"<p class=note>{escape(line)}</p>" for line in told)
        heads = ["class, trained on", "test cases", "AUROC against all others", "share found"]
        table = html_table(heads, lines, main=2)
        shown = [name for name in figures if name.startswith(("confusion_", "roc"))]
        note = (f"<p class=note>Confusion matrices of more than {MOST_CLASSES} classes are not drawn; report.json has "
                f"them. ROC curves are of the first {MOST_CLASSES} classes.</p>")
        return (f"<h2>Classes</h2>{html_missing('AUROC', report['auroc'])}{said}{table}"
                f"{note if len(report['num_by_class']) > MOST_CLASSES else ''}{html_grid(shown, figures)}")
