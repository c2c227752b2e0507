"""Whether draws are spread as the high doses of PET scans are."""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from edm3d.metrics.bootstrap import bootstrap
from edm3d.metrics.calibration import coverage, flatness, spread_skill
from edm3d.reporting import dose_charts
from edm3d.reporting.enhancement import EnhancementContext, ScanScores
from edm3d.reporting.html import html_grid, html_table
from edm3d.reporting.section import Section, missing
from edm3d.reporting.sections.dose_methods import cell, intervals, with_ends
from edm3d.reporting.tables import finite, number, percent
from edm3d.utils.names import titled

LEVELS = (0.5, 0.8, 0.9, 0.95)
CURVE = np.linspace(0.02, 0.98, 49)
GROUPS = 10  # of pixels by the spread of their draws, as many in each


class DoseCalibration(Section):
    """Pixels of the high dose among the draws, by region: inside and outside of the head, or all without phantoms.

    calibration.{available, reason}
    calibration.REGION.{pixels, coverage.LEVEL.{value, low, high}, ranks, flatness, crps.{mean, low, high}, empty}
        LEVEL: 50, 80, 90, 95; ranks: share of each of the K + 1 ranks; empty: share of pixels of the lowest rank
    calibration.spread.{ratio, expected, error, pixels}     expected and error by ten groups of pixels
    """

    words = {
        "coverage": "The share of pixels of the high-dose image that lie in the central interval of the draws. Its "
                    "ends are order statistics, at random one of two neighbours, so that draws from the right "
                    "posterior cover exactly what the interval says, whatever their number; where an end lies beyond "
                    "the outermost draw, it is at infinity as often as that takes.",
        "rank": "How many of the draws lie below the high dose, ties at random by --seed: each number equally often "
                "where the posterior is right, those at both ends too often where the draws are too alike.",
        "flatness": "Chi-square of the ranks against equal shares, per degree of freedom. Pixels of an image "
                    "hang together, so that it is above 1 also of the right posterior; no p value is told.",
        "CRPS": "Continuous ranked probability score of draws against the high dose, its fair estimate (Ferro 2014); "
                "the lower, the better; of a single image it would be the mean absolute error.",
        "spread": "Root mean squared error of the posterior mean to the high dose over that which the draws' standard "
                  "deviation s lets expect, s sqrt(1 + 1/K) (Fortin et al. 2014): 1 is right, more is overconfident. "
                  "By groups of pixels the error varies less than expected where draws are few, as their spread is "
                  "then uncertain itself.",
    }

    def compute(self, found: ScanScores, context: EnhancementContext) -> dict[str, Any]:
        if context.uncalibrated:
            return {"calibration": missing(context.uncalibrated)}
        regions = {name: self.region(rows, found.crps[name], context) for name, rows in found.histograms.items()}
        return {"calibration": {"available": True, **regions, "spread": spread_of(found.spread, context.draws)}}

    def region(self, rows: np.ndarray, crps: np.ndarray, context: EnhancementContext) -> dict[str, Any]:
        """What report.json says of the pixels of a region, of histograms [N,K+1] of the scans."""
        total = rows.sum(0)

        def covered(weights: np.ndarray) -> np.ndarray:
            histograms = weights.astype(np.float64) @ rows
            return np.stack([coverage(histograms, level) for level in LEVELS], axis=1)

        values, low, high = covered(np.ones((1, len(rows))))[0], [np.nan] * len(LEVELS), [np.nan] * len(LEVELS)
        if len({*context.groups}) > 1:
            low, high, _ = bootstrap(covered, context.groups, context.seed)
        shares = total / max(total.sum(), 1)
        return {"pixels": int(total.sum()),
                "coverage": {f"{100 * level:.0f}": {"value": finite(values[k]), "low": finite(low[k]),
                                                    "high": finite(high[k])} for k, level in enumerate(LEVELS)},
                "ranks": [float(share) for share in shares], "flatness": finite(flatness(total)),
                "crps": intervals(crps[:, None], context)[0]}

    def figures(self, found: ScanScores, context: EnhancementContext, report: dict) -> dict[str, Figure]:
        known = report["calibration"]
        if not known["available"]:
            return {}
        regions = {name: rows.sum(0) for name, rows in found.histograms.items() if rows.any()}
        drawn = {"coverage": dose_charts.coverage_chart(CURVE, {
            name: [float(coverage(rows, level)) for level in CURVE] for name, rows in regions.items()}),
            "ranks": dose_charts.ranks_chart({name: known[name]["ranks"] for name in regions})}
        if known["spread"]["expected"]:
            drawn["spread"] = dose_charts.spread_chart(known["spread"]["expected"], known["spread"]["error"],
                                                       context.unit)
        return drawn

    def columns(self, found: ScanScores, context: EnhancementContext, name: str) -> dict[str, list[str]]:
        """Of every scan, in the rows of its posterior mean."""
        if context.uncalibrated:
            return {}
        is_mean = name == "mean"
        return {f"coverage_90_{region}": [cell(value) if is_mean else "" for value in coverage(rows, 0.9)]
                for region, rows in found.histograms.items()}

    def facts(self, report: dict) -> list[tuple[str, str]]:
        known = report["calibration"]
        if not known["available"]:
            return []
        region = "inside" if "inside" in known else "all"
        return [(percent(known[region]["coverage"]["90"]["value"]),
                 f"of the high dose's pixels, {dose_charts.WORDS[region]}, in the 90 % interval")]

    def lines(self, report: dict) -> list[str]:
        known = report["calibration"]
        if not known["available"]:
            return [f"Calibration: not available: {known['reason']}"]
        return [f"High dose in the draws' intervals, {dose_charts.WORDS[name]}: " + ", ".join(
            f"{level} %: {percent(found['value'])}" for level, found in known[name]["coverage"].items())
            for name in dose_charts.WORDS if name in known]

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        known, body = report["calibration"], "<h2>Calibration of the draws</h2>"
        if not known["available"]:
            return f"{body}<p class=missing>{escape('Not available: ' + known['reason'])}</p>"
        unit = report["samples"]["unit"]
        head = ["high dose", "pixels", *(f"in the {100 * level:.0f} % interval [%]" for level in LEVELS),
                "flatness of ranks", titled("CRPS", unit)]
        rows = [[dose_charts.WORDS[name], f"{found['pixels']:,}",
                 *(with_ends(value, 1, 100) for value in found["coverage"].values()), number(found["flatness"], 1),
                 with_ends(found["crps"], 3)] for name in dose_charts.WORDS if (found := known.get(name))]
        where = "inside of the head" if "inside" in known else "of all pixels"
        said = "" if known["spread"]["ratio"] is None else \
            (f"<p>Error of the posterior mean {where}: {known['spread']['ratio']:.2f} of what the draws' spread lets "
             "expect.</p>")
        return f"{body}{html_table(head, rows, main=4)}{said}{html_grid(('coverage', 'ranks', 'spread'), figures)}"


def spread_of(bins: np.ndarray, draws: int) -> dict[str, Any]:
    """Error against spread of all pixels, and of GROUPS of them by their spread; bins [B,3] as measured."""
    count, total = bins[:, 0], bins.sum(0)
    if not total[0]:
        return {"ratio": None, "expected": [], "error": [], "pixels": []}
    group = np.minimum(((np.cumsum(count) - count / 2) / total[0] * GROUPS).astype(int), GROUPS - 1)
    sums = np.stack([np.bincount(group, column, GROUPS) for column in bins.T], axis=1)
    sums = sums[sums[:, 0] > 0]
    variance, error = sums[:, 1] / sums[:, 0], sums[:, 2] / sums[:, 0]
    return {"ratio": finite(spread_skill(total[1], total[2], draws)),
            "expected": np.sqrt(variance * (1 + 1 / draws)).tolist(), "error": np.sqrt(error).tolist(),
            "pixels": sums[:, 0].astype(int).tolist()}
