"""Train on X, test on real: the table of rows, with spread over seeds, beside as many real items; and all runs."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from edm3d.metrics.bootstrap import Intervals, bootstrap
from edm3d.reporting.downstream import DownstreamContext, TrainingRow
from edm3d.reporting.html import html_table
from edm3d.reporting.scores import MEASURES, Measured, Scores, flat, unflat
from edm3d.reporting.section import Section
from edm3d.reporting.tables import finite, number
from edm3d.utils.checks import listed
from edm3d.utils.names import titled

Found = dict[str, Scores]  # by run
ENDS = ("low", "high", "used")


class TrainedOn(Section):
    """Every row, and every run.

    rows.[{name, sources, items, real_items, is_real, runs, beside, otherwise, MEASURE.{mean, std, by_class.NAME.{mean,
    std}}}]         std: over runs, that of a sample, null for one; beside: null, or {row, MEASURE}, differences;
                    otherwise: real rows of as many items by another network or other options
    runs.[{name, path, hash, kimg, seed, row, MEASURE.{value, low, high, used, by_class.NAME.{...}}}]
                    low to high: 95 % interval over cases; used: of 2000 resamples those that have a value
    MEASURE: dice, hd95 and hd, or accuracy and auroc
    """

    words = {
        "trained on": "Files of the training items. Runs that differ by their seed alone are one row: mean ± standard "
                      "deviation over runs; a single run has the 95 % interval over cases in brackets.",
        "beside real": "Difference to the row that was trained on as many items of the real file alone, by the same "
                       "network and options; of a row that was trained on real and other items, as many as it has real "
                       "ones.",
        "interval": "Percentile bootstrap over cases, 2000 resamples by --seed, cases of one group (patient) together; "
                    "nothing is inferred again. A resample in which a measure has no value, as without one of the "
                    "classes, is left out of its interval.",
    }

    def compute(self, found: Found, context: DownstreamContext) -> dict[str, Any]:
        names = class_names(context)
        measured = {name: scores.measured() for name, scores in found.items()}
        rows = [self.row(i, row, context, measured, names) for i, row in enumerate(context.rows)]
        for row, known in zip(rows, context.rows, strict=True):
            row["beside"] = beside(known, row, context.rows, rows, next(iter(measured.values())))
            row["otherwise"] = [context.rows[i].name for i in as_many(known, context.rows)
                                if not known.is_real and context.rows[i].recipe != known.recipe]
        runs = [{"name": run.name, "path": run.path, "hash": run.hash, "kimg": run.kimg, "seed": run.seed,
                 "row": context.rows[run.row].name,
                 **with_intervals(measured[run.name], intervals(found[run.name], context), names)}
                for run in context.runs]
        return {"rows": rows, "runs": runs}

    def row(self, place: int, row: TrainingRow, context: DownstreamContext, measured: Mapping[str, Measured],
            names: Sequence[str]) -> dict[str, Any]:
        """A row of runs, as report.json has it."""
        runs = [run.name for run in context.runs_of(place)]
        spread = {}
        for key in measured[runs[0]]:
            values = np.concatenate([measured[run][key] for run in runs])
            mean, std = values.mean(0), values.std(0, ddof=1) if len(runs) > 1 else np.full(values.shape[1], np.nan)
            cells = [{"mean": finite(m), "std": finite(s)} for m, s in zip(mean, std, strict=True)]
            spread[key] = cells[0] | {"by_class": dict(zip(names, cells[1:], strict=True))}
        return {"name": row.name, "sources": list(row.sources), "items": row.items, "real_items": row.real_items,
                "is_real": row.is_real, "runs": runs, **spread}

    def facts(self, report: dict) -> list[tuple[str, str]]:
        key = keys_of(report)[0]
        best = max((row for row in report["rows"] if row[key]["mean"] is not None),
                   key=lambda row: row[key]["mean"], default=None)
        return [] if best is None else [(number(best[key]["mean"], MEASURES[key].digits),
                                         f"highest {MEASURES[key].title}: trained on {best['name']}")]

    def rows(self, report: dict) -> list[tuple[str, ...]]:
        return [tuple(row) for row in table(report)]

    def lines(self, report: dict) -> list[str]:
        return unmatched(report)

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        top, *rows = table(report)
        notes = "".join(f"<p class=note>{escape(line)}</p>" for line in unmatched(report))
        body = f"<h2>Train on X, test on real</h2>{html_table(top, rows, main=3)}{notes}"
        keys = keys_of(report)
        runs = [[run["name"], run["row"], "-" if run["seed"] is None else str(run["seed"]), f"{run['kimg']:g}",
                 *(with_ends(run[key], MEASURES[key].digits) for key in keys)] for run in report["runs"]]
        heads = ["run", "trained on", "seed", "kimg", *(f"{titled(MEASURES[key].title, MEASURES[key].unit)} (95 % "
                                                       "interval)" for key in keys)]
        return f"{body}<h2>Runs</h2>{html_table(heads, runs)}"


def class_names(context: DownstreamContext) -> Sequence[str]:
    """Names of the classes that are measured: of voxels all but the first."""
    names = context.predicts.names
    return names[1:] if context.predicts.of_voxels else names


def intervals(scores: Scores, context: DownstreamContext) -> dict[str, Measured]:
    """Ends of the interval of every measure, and how many resamples had a value, by measure [1+K]."""
    like = scores.measured()
    found: Intervals = bootstrap(lambda weights: flat(scores.measured(weights)), context.groups, context.seed)
    return {name: unflat(values, like) for name, values in zip(ENDS, found, strict=True)}


def with_intervals(measured: Measured, ends: Mapping[str, Measured], names: Sequence[str]) -> dict[str, Any]:
    """Measures of a run, as report.json has them."""
    found = {}
    for key, values in measured.items():
        cells = [{"value": finite(value), **{end: finite(ends[end][key][i]) for end in ENDS}}
                 for i, value in enumerate(values[0])]
        found[key] = cells[0] | {"by_class": dict(zip(names, cells[1:], strict=True))}
    return found


def beside(row: TrainingRow, found: dict, rows: Sequence[TrainingRow], all_found: Sequence[dict], keys: Measured
           ) -> dict[str, Any] | None:
    """A row less the real row of as many items by the same recipe; None without one, and for real rows."""
    like = [i for i in as_many(row, rows) if rows[i].recipe == row.recipe]
    if row.is_real or not like:
        return None
    other = all_found[like[0]]
    pairs = {key: (found[key]["mean"], other[key]["mean"]) for key in keys}
    return {"row": other["name"], **{key: None if None in pair else pair[0] - pair[1] for key, pair in pairs.items()}}


def as_many(row: TrainingRow, rows: Sequence[TrainingRow]) -> list[int]:
    """Numbers of the real rows of as many items, whatever their recipe."""
    return [i for i, other in enumerate(rows) if other.is_real and other.items is not None
            and other.items == (row.real_items or row.items)]


# ---- as text ----


def keys_of(report: dict) -> list[str]:
    """Measures of a report, the one to look at first."""
    return [key for key in MEASURES if key in report["rows"][0]]


def table(report: dict) -> list[list[str]]:
    """Head and rows of the table of what was trained on what."""
    keys, runs = keys_of(report), {run["name"]: run for run in report["runs"]}
    lines = [["trained on", "items", "runs", *(titled(MEASURES[key].title, MEASURES[key].unit) for key in keys),
              f"beside real: {MEASURES[keys[0]].title}"]]
    for row in report["rows"]:
        cells = [spread(row[key], MEASURES[key].digits) if len(row["runs"]) > 1 else
                 with_ends(runs[row["runs"][0]][key], MEASURES[key].digits) for key in keys]
        change = row["beside"] and row["beside"][keys[0]]
        lines.append([row["name"] + ", real" * row["is_real"], "?" if row["items"] is None else str(row["items"]),
                      str(len(row["runs"])), *cells,
                      "-" if change is None else f"{change:+.{MEASURES[keys[0]].digits}f}"])
    return lines


def spread(cell: Mapping[str, Any], digits: int) -> str:
    """Mean and standard deviation over runs."""
    return "-" if cell["mean"] is None else f"{number(cell['mean'], digits)} ± {number(cell['std'], digits)}"


def with_ends(cell: Mapping[str, Any], digits: int) -> str:
    """A value with its interval over cases."""
    if cell["value"] is None:
        return "-"
    return f"{number(cell['value'], digits)} [{number(cell['low'], digits)}, {number(cell['high'], digits)}]"


def unmatched(report: dict) -> list[str]:
    """Which rows have no real one of as many items, by the same network and options, beside them."""
    lines = []
    for row in report["rows"]:
        count = row["real_items"] or row["items"]
        if row["is_real"] or row["beside"] is not None:
            continue
        if row["otherwise"]:
            lines.append(f"{row['name']}: not held against {listed(row['otherwise'])}, of as many real items, as its "
                         "network or options are others")
        else:
            lines.append(f"{row['name']}: no run was trained on " + (
                "as many real items alone (how many it had is not known)" if count is None else
                f"{count} real items alone"))
    return lines
