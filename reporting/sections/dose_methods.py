"""Errors and noise of every method on PET scans, and how much lower those of the posterior mean are."""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from edm3d.metrics.bootstrap import bootstrap, weighted_means
from edm3d.reporting import dose_charts
from edm3d.reporting.enhancement import (
    AGAINST,
    EARLY,
    ERRORS,
    FILTERED,
    HIGH,
    LOW,
    MEAN,
    METHODS,
    RIVALS,
    TITLES,
    EnhancementContext,
    ScanScores,
)
from edm3d.reporting.html import html_grid, html_table
from edm3d.reporting.section import Section, missing
from edm3d.reporting.tables import finite, number, percent
from edm3d.utils.names import titled

NAMES = [*ERRORS]


class DoseMethods(Section):
    """Every method.

    methods.METHOD.{available, title, noise, phantom.ERROR, high.ERROR}    of each {mean, low, high}, null for none;
                                               low to high: 95 % interval over slices; {available, reason} without it
    reduction.AGAINST.METHOD.{value, low, high}     1 - error of the posterior mean / that of the method (relative L2)
    rivals.METHOD.{best, unit, values, errors}      filtered and early: what they were tried at
    METHOD: low, filtered, early, mean, draw, high; AGAINST: phantom, high; ERROR: relative_l2, rmse, psnr, ssim, nmae
    """

    words = {
        "low dose": "The image of the low dose as it was simulated, which the network is told.",
        "low dose, post-filtered": "The same convolved with a Gaussian of the standard deviation whose mean relative "
                                   "L2 error is lowest on these very slices: the filter at its best, which nobody can "
                                   "choose without the truth.",
        "low dose, stopped early": "The same counts (simulated again by the same seeds) after as many iterations of "
                                   "MLEM as have the lowest mean relative L2 error on these very slices.",
        "posterior mean": "The mean of all draws of a scan; one draw is the first of them.",
        "high dose": "The image of the high dose of the same scan, the low dose being a part of its counts.",
        "relative L2 error": "|image - truth| / |truth|, Euclidean norms over all pixels of a scan.",
        "RMSE, NMAE": "Root of the mean squared error over all pixels; sum of absolute errors over sum of the truth.",
        "PSNR, SSIM": "By the largest activity of the truth; SSIM over Gaussian windows of 7 pixels, slice by slice.",
        "noise": "Standard deviation over mean inside of uniform regions of the phantom: connected pixels of one "
                 "activity, without their rim; in the mean over regions, by their pixels.",
        "interval": "Percentile bootstrap over slices, 2000 resamples by --seed, scans of one slice together.",
    }

    def compute(self, found: ScanScores, context: EnhancementContext) -> dict[str, Any]:
        columns = {f"{name} {error}": errors[..., k] for name, errors in found.errors.items()
                   for k, error in enumerate(ERRORS)} | {"noise": found.noise}
        cells = {key: intervals(values, context) for key, values in columns.items()}
        methods = {}
        for method in METHODS:
            if method not in context.methods:
                methods[method] = missing(context.missing.get(method, "the samples do not hold it"))
                continue
            place = context.methods.index(method)
            methods[method] = {"available": True, "title": context.title(method), "noise": cells["noise"][place], **{
                name: {error: cells[f"{name} {error}"][place] for error in ERRORS} for name in found.errors}}
        return {"methods": methods, "reduction": {name: reductions(errors[..., 0], name, context)
                                                  for name, errors in found.errors.items()},
                "rivals": {name: {"best": float(curve.best), "unit": curve.unit,
                                  "values": [float(value) for value in curve.values],
                                  "errors": [finite(value) for value in curve.errors]}
                           for name, curve in context.curves.items()}}

    def figures(self, found: ScanScores, context: EnhancementContext, report: dict) -> dict[str, Figure]:
        errors = found.errors[context.against][..., 0].mean(0)
        lines = {TITLES[name]: (float(errors[context.methods.index(name)]), dose_charts.COLOURS[name])
                 for name in (MEAN, HIGH) if name in context.methods and name != context.against}
        drawn = {}
        for name, curve in context.curves.items():
            title = titled("standard deviation of the post-filter", curve.unit) if name == FILTERED else \
                "iterations of MLEM"
            drawn[f"tried_{name}"] = dose_charts.tried_chart(curve.values, curve.errors, title, lines)
        return drawn

    def columns(self, found: ScanScores, context: EnhancementContext, name: str) -> dict[str, list[str]]:
        place, columns = context.methods.index(name), {}
        for against, errors in found.errors.items():
            for k, error in enumerate(ERRORS):
                columns[f"{error}_to_{against}"] = [cell(value) for value in errors[:, place, k]]
        return {**columns, "noise": [cell(value) for value in found.noise[:, place]]}

    def facts(self, report: dict) -> list[tuple[str, str]]:
        against, gains = first_reductions(report)
        mean = report["methods"][MEAN][against]["relative_l2"]["mean"]
        facts = [(number(mean), f"relative L2 error of the posterior mean to {AGAINST[against]}")]
        if (gain := gains.get(LOW)) and gain["value"] is not None:
            facts.append((percent(abs(gain["value"])), f"{less(gain)} than that of the low dose"))
        if rival := best_rival(report):
            facts.append((percent(abs(gains[rival]["value"])), f"{less(gains[rival])} than that of {TITLES[rival]}, "
                                                               "the best rival"))
        return facts

    def rows(self, report: dict) -> list[tuple[str, ...]]:
        return [tuple(row) for row in table(report, first_reductions(report)[0], short=True)]

    def lines(self, report: dict) -> list[str]:
        return [f"Error of the posterior mean to {AGAINST[against]}, less than that of {TITLES[name]} by "
                f"{with_ends(gain, 1, 100)} %"
                for against, gains in report["reduction"].items() for name, gain in gains.items()]

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        body = ""
        for against in report["reduction"]:
            head, *rows = table(report, against)
            body += f"<h2>Errors to {escape(AGAINST[against])}</h2>{html_table(head, rows, main=1)}"
        absent = [f"{TITLES[name]}: {row['reason']}" for name, row in report["methods"].items()
                  if not row["available"] and not any(row["reason"] in note for note in report["notes"])]
        body += "".join(f"<p class=missing>{escape(line)}</p>" for line in absent)
        body += gains_table(report)
        charts = html_grid([f"tried_{name}" for name in (FILTERED, EARLY)], figures)
        return body + (f"<h2>Rivals at their best</h2>{charts}"
                       "<p class=note>Mean over these slices, which the settings are chosen by.</p>")


def intervals(values: np.ndarray, context: EnhancementContext) -> list[dict[str, Any]]:
    """Mean and 95 % interval over slices of every column of values [N,S]; no interval of one slice."""
    means = weighted_means(values)[0]
    if len({*context.groups}) < 2:
        return [{"mean": finite(mean), "low": None, "high": None} for mean in means]
    ends = bootstrap(lambda weights: weighted_means(values, weights), context.groups, context.seed)
    return [{"mean": finite(mean), "low": finite(low), "high": finite(high)}
            for mean, low, high in zip(means, ends.low, ends.high, strict=True)]


def reductions(errors: np.ndarray, against: str, context: EnhancementContext) -> dict[str, dict[str, Any]]:
    """By how much the mean error [N,methods] of the posterior mean is below that of every rival, and of the high dose.
    """
    names = [name for name in (*RIVALS, HIGH) if name in context.methods and name != against]
    places = [context.methods.index(name) for name in names]

    def gains(weights: np.ndarray | None = None) -> np.ndarray:
        means = weighted_means(errors, weights)
        return 1 - means[:, [context.methods.index(MEAN)]] / means[:, places]

    with np.errstate(divide="ignore", invalid="ignore"):
        values = gains()[0]
        if len({*context.groups}) < 2:
            return {name: {"value": finite(value), "low": None, "high": None} for name, value in zip(names, values)}
        ends = bootstrap(gains, context.groups, context.seed)
    return {name: {"value": finite(value), "low": finite(low), "high": finite(high)}
            for name, value, low, high in zip(names, values, ends.low, ends.high, strict=True)}


# ---- as text ----


def first_reductions(report: dict) -> tuple[str, dict[str, Any]]:
    """What methods are ordered by, and the reductions to that."""
    return next(iter(report["reduction"].items()))


def less(gain: Mapping[str, Any]) -> str:
    """Which way a reduction goes."""
    return "less" if gain["value"] >= 0 else "more"


def best_rival(report: dict) -> str | None:
    """The rival of the lowest error but the low dose as it is."""
    against, gains = first_reductions(report)
    known = [name for name in (FILTERED, EARLY) if gains.get(name, {"value": None})["value"] is not None]
    return min(known, key=lambda name: report["methods"][name][against]["relative_l2"]["mean"], default=None)


def table(report: dict, against: str, short: bool = False) -> list[list[str]]:
    """Head and rows of errors; short: without intervals but that of the first."""
    head = ["method", *(titled(words.title, report["samples"]["unit"] if words.unit is None else words.unit)
                        for words in ERRORS.values()), "noise"]
    rows = [head]
    for name, row in report["methods"].items():
        if not row["available"] or name == against:
            continue
        cells = [with_ends(row[against][error], words.digits) if not short or error == NAMES[0] else
                 number(row[against][error]["mean"], words.digits) for error, words in ERRORS.items()]
        rows.append([row["title"], *cells, number(row["noise"]["mean"], 3) if short else with_ends(row["noise"], 3)])
    return rows


def gains_table(report: dict) -> str:
    """By how much the error of the posterior mean is below that of all others."""
    gains = report["reduction"]
    names = [name for name in METHODS if any(name in row for row in gains.values())]
    rows = [[TITLES[name], *("-" if name not in row else with_ends(row[name], 1, 100) for row in gains.values())]
            for name in names]
    head = ["relative L2 error of the posterior mean below that of", *(f"to {AGAINST[name]} [%]" for name in gains)]
    return html_table(head, rows, main=1)


def with_ends(found: Mapping[str, Any], digits: int, times: float = 1) -> str:
    """A mean or value with its interval over slices, where it has one."""
    value, low, high = (None if (end := found[key]) is None else end * times
                        for key in ("mean" if "mean" in found else "value", "low", "high"))
    return number(value, digits) + ("" if low is None else f" [{number(low, digits)}, {number(high, digits)}]")


def cell(value: float) -> str:
    """A number of cases.csv, nothing where there is none."""
    return f"{value:.6g}" if np.isfinite(value) else ""
