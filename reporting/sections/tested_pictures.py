"""Pictures of the worst, median and best test cases, with what is true and what was predicted."""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from edm3d.reporting.downstream import DownstreamContext
from edm3d.reporting.html import html_strips
from edm3d.reporting.scores import ImageScores, Scores, VoxelScores, chosen, letter
from edm3d.reporting.section import Section
from edm3d.reporting.strips import pictures_of, strips

MOST_ROWS = 4  # of runs
HEADS = {"worst": "Worst cases", "median": "Median cases", "best": "Best cases"}


class TestedPictures(Section):
    """Cases by how well all runs do on them, in the mean.

    shown.{worst, median, best}.[{id, value}]         value: mean Dice, or the mean score of the true class
    """

    def compute(self, found: dict[str, Scores], context: DownstreamContext) -> dict[str, Any]:
        values = of_all(found)
        return {"shown": {name: [{"id": context.ids[i], "value": float(values[i])} for i in cases]
                          for name, cases in chosen(values).items()}}

    def figures(self, found: dict[str, Scores], context: DownstreamContext, report: dict) -> dict[str, Figure]:
        draw = self.of_voxels if context.predicts.of_voxels else self.of_images
        drawn: dict[str, Figure] = {}
        for name, cases in chosen(of_all(found)).items():
            drawn |= draw(name, cases, found, context)
        return drawn

    def of_voxels(self, name: str, cases: list[int], found: dict[str, VoxelScores], context: DownstreamContext
                  ) -> dict[str, Figure]:
        """The truth, and below it the label maps of the first run of every row."""
        shown, blocks = [context.case(i) for i in cases], []
        captions = [case.id for case in shown]
        for place, row in enumerate(context.rows[:MOST_ROWS]):
            run = context.runs_of(place)[0]
            values = found[run.name].of_cases()
            captions = [f"{text}\n{letter(place)}: Dice {values[i]:.3f}" for text, i in zip(captions, cases)]
            blocks.append((f"{letter(place)}: {row.name}", [(case.image, context.found(place, i))
                                                           for case, i in zip(shown, cases)]))
        return strips(name, [("Truth", pictures_of(shown)), *blocks], context.layout, captions=captions, aligned=True,
                      plain_once=True)

    def of_images(self, name: str, cases: list[int], found: dict[str, ImageScores], context: DownstreamContext
                  ) -> dict[str, Figure]:
        """The images, with the class that they are of and what the first run of every row says."""
        shown, names, captions = [context.case(i) for i in cases], context.predicts.names, []
        for case, i in zip(shown, cases):
            lines = [case.id, f"true: {names[next(iter(found.values())).truth[i]]}"]
            for place in range(min(MOST_ROWS, len(context.rows))):
                scores = found[context.runs_of(place)[0].name]
                k = scores.found[i]
                lines.append(f"{letter(place)}: {names[k]} {scores.scores[i, k]:.2f}")
            captions.append("\n".join(lines))
        return strips(name, [(HEADS[name], [(case.image, None) for case in shown])], context.layout, captions=captions)

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        rows = report["rows"]
        legend = "; ".join(f"{letter(i)}: {row['name']} ({row['runs'][0]})" for i, row in enumerate(rows[:MOST_ROWS]))
        more = f" {len(rows) - MOST_ROWS} more rows are not shown." if len(rows) > MOST_ROWS else ""
        value = "mean Dice of its classes" if "classes" in report else "score of its true class"
        body = (f"<h2>Cases</h2><p class=note>By the mean over all runs of a case's {value}. Shown is the first "
                f"run of every row: {escape(legend)}.{more}</p>")
        for name, cases in report["shown"].items():
            said = ", ".join(f"{case['id']} {case['value']:.3f}" for case in cases)
            body += f"<h2>{HEADS[name]}</h2><p class=note>{escape(said)}</p>{html_strips(name, figures)}"
        return body


def of_all(found: Mapping[str, Scores]) -> np.ndarray:
    """How well all runs do each case [N], in the mean."""
    return np.mean([scores.of_cases() for scores in found.values()], axis=0)
