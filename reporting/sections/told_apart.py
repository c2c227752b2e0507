"""How far the numbers of generated volumes are from those of real ones, in their units, and tests with p values."""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from edm3d.metrics import two_sets
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.distances import resampled_floor
from edm3d.reporting.html import html_table
from edm3d.reporting.section import NOISE
from edm3d.reporting.sections.scalars import OfNumbers, Values
from edm3d.reporting.tables import finite, number, p_value
from edm3d.utils.names import titled

ALPHA = 0.01
TESTS = {"p_mean": two_sets.welch, "p_spread": two_sets.brown_forsythe, "p_ks": two_sets.kolmogorov_smirnov}


class ToldApart(OfNumbers):
    """Every number of volumes, generated against real.

    tests.{num, alpha, told_apart}                                how many tests in all, and numbers below alpha by Holm
    tests.numbers.NAME.{wasserstein, relative, floor_median, floor_p95, floor_p99, noise}   relative: of the real std
    tests.numbers.NAME.{p_mean, p_spread, p_ks, p_undefined, p_holm}              null: no test (see metrics.two_sets)
    tests.shares.NAME.{p, p_holm}                                                 Fisher's exact test
    """

    words = {
        "Wasserstein": "Wasserstein-1 distance: how far the values of one set must go, on average, to be those of the "
                       "other, in their unit; its floor: that of two sets resampled from the real one. Cases without a "
                       "value are left out.",
        "p of mean, spread, KS": "How often two sets of one distribution would differ as much: in the mean (Welch's t, "
                                 "the test that sees a heart of another size best), in the spread (Brown-Forsythe), "
                                 "anywhere (Kolmogorov-Smirnov). Shares, and cases without a value, by Fisher's exact "
                                 "test.",
        "p by Holm": "The least p of a number, made larger because there are many tests: where all numbers are of one "
                     f"distribution, one of them in all is below {ALPHA:g} in {ALPHA:.0%} of reports at most.",
    }

    def compute(self, found: Values, context: Comparison) -> dict[str, Any]:
        units = self.numbers.units(context.layout)
        sets = {name: {key: values[name] for key, values in found.items()} for name in units}
        rows = {name: distance_row(sets[name], context.seed) for name, unit in units.items() if unit is not None}
        shares = {name: {"p": share_p(sets[name])} for name, unit in units.items() if unit is None}
        num = adjust([*rows.values(), *shares.values()])
        told = [name for name, row in {**rows, **shares}.items() if row["p_holm"] is not None and row["p_holm"] < ALPHA]
        return {"tests": {"num": num, "alpha": ALPHA, "told_apart": told, "numbers": rows, "shares": shares}}

    def lines(self, report: dict) -> list[str]:
        tests = report["tests"]
        if not tests["num"]:
            return []
        told = ", ".join(f"{name} (p = {p_value(row['p_holm'])})" for name in tests["told_apart"]
                         for row in [tests["numbers"].get(name) or tests["shares"][name]])
        return [f"Told apart at p < {ALPHA:g} by Holm over {tests['num']} tests: {told or 'nothing'}"]

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        tests = report["tests"]
        lines = []
        for name, row in tests["numbers"].items():
            unit = report["metrics"][name]["unit"]
            lines.append([titled(self.numbers.title(name), unit), *(number(row[key]) for key in (
                "wasserstein", "floor_median", "floor_p99", "noise", "relative")), *(p_value(row[key]) for key in (
                    "p_mean", "p_spread", "p_ks", "p_undefined", "p_holm"))])
        lines += [[self.numbers.title(name), *["-"] * 8, p_value(row["p"]), p_value(row["p_holm"])]
                  for name, row in tests["shares"].items()]
        head = ["", "Wasserstein", "floor, median", "floor, 99 %", NOISE, "in real std", "p of mean", "p of spread",
                "p of KS", "p of shares", "p by Holm"]
        said = escape(f"Tests of generated against real volumes. By Holm's rule over all {tests['num']} of them, "
                      f"{len(tests['told_apart']) or 'none'} of {len(lines)} numbers differ at p < {ALPHA:g}.")
        return f"<h2>Distances and tests</h2><p>{said}</p>" + html_table(head, lines, main=10) if lines else ""


def distance_row(values: Mapping[str, np.ndarray], seed: int) -> dict[str, Any]:
    """Distance, floor and tests of one number, values [N] by set."""
    real, generated, noise = values["real"], values["generated"], values.get("noise")
    known = two_sets.defined(real)
    distance, spread = two_sets.wasserstein(real, generated), known.std() if len(known) else np.nan
    floor = resampled_floor(lambda i, j: two_sets.wasserstein(known[i], known[j]), len(known), len(generated), seed) \
        if len(known) else {f"floor_{key}": np.nan for key in ("median", "p95", "p99")}
    gaps = [int(np.isnan(x).sum()) for x in (real, generated)]
    missing = two_sets.fisher(gaps[0], len(real), gaps[1], len(generated)) if any(gaps) else np.nan
    row = {"wasserstein": distance, "relative": distance / spread if spread > 0 else np.nan, **floor,
           "noise": np.nan if noise is None else two_sets.wasserstein(real, noise),
           **{name: test(real, generated) for name, test in TESTS.items()}, "p_undefined": missing}
    return {key: finite(value) for key, value in row.items()}


def share_p(values: Mapping[str, np.ndarray]) -> float:
    """p of one yes or no."""
    real, generated = values["real"], values["generated"]
    return two_sets.fisher(int(real.sum()), len(real), int(generated.sum()), len(generated))


def adjust(rows: list[dict[str, Any]]) -> int:
    """Give each row the least of its p values by Holm over those of all rows, None where it has none; how many."""
    places = [(row, key) for row in rows for key in ("p", *TESTS, "p_undefined") if row.get(key) is not None]
    adjusted = two_sets.holm([row[key] for row, key in places])
    for row in rows:
        mine = [float(p) for (owner, _), p in zip(places, adjusted, strict=True) if owner is row]
        row["p_holm"] = min(mine, default=None)
    return len(places)
