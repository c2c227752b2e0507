"""The report of downstream networks on real test cases: train on X, test on real.

Keys of its report.json, besides those of reporting.report and of its sections:
  real.{path, content_hash, split, num, left_out}    the test cases; left_out: those without a class to be tested
  downstream.{predicts, hashes, precision, seed}     what all runs predict, and the hashes of their snapshots
  notes.[...]                                        what is to be known before the numbers are believed
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from edm3d.formats.prediction import Prediction
from edm3d.reporting.cases import Case
from edm3d.reporting.html import html_facts
from edm3d.reporting.report import Frame
from edm3d.reporting.section import Context, Section
from edm3d.reporting.tables import aligned


@dataclass(frozen=True)
class TrainedRun:
    """A run: as it was asked for, its snapshot, and the number of the row that it is of. seed None: not known."""

    name: str
    path: str
    hash: str
    kimg: float
    seed: int | None
    row: int


@dataclass(frozen=True)
class TrainingRow:
    """Runs that differ by their seed alone.

    sources: files that they were trained on; items: how many of all, and real_items of the real file, None: not known;
    is_real: trained on the real file alone; recipe: hash of all else that they were trained by.
    """

    name: str
    sources: tuple[str, ...]
    items: int | None
    real_items: int | None
    is_real: bool
    recipe: str


@dataclass(frozen=True, kw_only=True)
class DownstreamContext(Context):
    """What was tested: rows, runs, and of the test cases ids and groups, by their number.

    case: a test case by its number; found: what the first run of a row, by number, gave of it as label map.
    """

    predicts: Prediction
    rows: Sequence[TrainingRow]
    runs: Sequence[TrainedRun]
    ids: Sequence[str]
    groups: Sequence[str]
    case: Callable[[int], Case]
    found: Callable[[int, int], np.ndarray]
    seed: int = 0
    notes: Sequence[str] = ()

    def runs_of(self, row: int) -> list[TrainedRun]:
        """The runs of a row."""
        return [run for run in self.runs if run.row == row]


def keys(context: DownstreamContext, name: str, ids: Sequence[str]) -> dict[str, Sequence[str]]:
    """Run, what it was trained on, id and group of every case."""
    run = next(run for run in context.runs if run.name == name)
    return {"run": [name] * len(ids), "trained_on": [context.rows[run.row].name] * len(ids), "id": ids,
            "group": context.groups}


def head(report: dict, facts: list[tuple[str, str]]) -> str:
    """Top of the page."""
    real, notes = report["real"], "".join(f"<p class=missing>{escape(line)}</p>" for line in report["notes"])
    number = (str(real["num"]), f"real cases of split {real['split']!r}")
    return (f"<h1>Tested on real data</h1>\n<p class=\"lead\">{escape(report['title'])}, {escape(report['date'])}. "
            f"Predicted: {escape(report['downstream']['predicts'])}.</p>\n{html_facts([number, *facts])}{notes}")


def origin(report: dict) -> list[list[str]]:
    """What was tested."""
    real = report["real"]
    return [["real", f"{real['path']} (content {real['content_hash'][:16]}), split {real['split']}"],
            *([f"run {run['name']}", f"{run['path']} ({run['hash'][:16]})"] for run in report["runs"])]


def text(sections: Sequence[Section], report: dict) -> str:
    """The table of what was trained on what, and what all sections say, for the terminal."""
    real = report["real"]
    table = aligned([row for section in sections for row in section.rows(report)])
    return "\n".join([f"Test      {real['num']} real cases of split {real['split']!r} of {real['path']}",
                      f"Predicted {report['downstream']['predicts']}\n\n{table}\n",
                      *(line for section in sections for line in section.lines(report)), *report["notes"]])


def frame_of(runs: Sequence[TrainedRun]) -> Frame:
    """What stands around the sections."""
    return Frame([run.name for run in runs], keys, head, origin)
