"""Ejection fraction of patients whose ventricle is there at end-diastole and at end-systole."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from edm3d.reporting import charts
from edm3d.reporting.cases import Case
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.distances import ks_floors
from edm3d.reporting.hearts import VENTRICLES, has_phases, phase_of, ventricles
from edm3d.reporting.html import html_grid, html_missing, html_table
from edm3d.reporting.section import Section, missing
from edm3d.reporting.sections.scalars import MeasuredOnce, Numbers, scalar_row
from edm3d.reporting.sections.told_apart import TESTS, adjust, distance_row
from edm3d.reporting.tables import number, p_value, plus_minus

FEWEST = 2  # pairs of each set
BOTH = ("real", "generated")


class PhaseRow(NamedTuple):
    """Of one volume: whose it is, its phase (0 ED, 1 ES) or None, and its ventricles' volumes [K]."""

    group: str | None
    phase: int | None
    volumes: list[float]


class Fractions(NamedTuple):
    """Of a set of `num` volumes: the numbers [P,2] of each pair, ED first, and its fractions [P,K] in percent."""

    num: int
    pairs: np.ndarray
    values: np.ndarray


class Ejection(Section):
    """(EDV - ESV) / EDV of pairs of volumes of one patient, generated against real; K-th ES with the K-th ED.

    ejection.{available, pairs.{real, generated}}
    ejection.ventricles.CLASS.{unit, real_mean, ..., ks, floor_*, wasserstein, relative, wasserstein_floor_*, p_mean,
                               p_spread, p_ks, p_holm}             as `metrics` and `tests` have them
    ejection.ventricles.CLASS.smaller.{real, generated}    pairs whose ventricle is smaller at ES than at ED
    """

    words = {"ejection fraction": "Share of the ventricle's volume at end-diastole that is gone at end-systole, of two "
                                  "volumes of one patient: real ones by the patient that the file names, generated "
                                  "ones by the patient whose rows asked for them, or the same noise."}

    def __init__(self, numbers: Iterable[Numbers] | MeasuredOnce):
        self.numbers = MeasuredOnce.of(numbers)

    def measure(self, item: Case, context: Comparison) -> PhaseRow:
        names = ventricles(context.layout)
        found = self.numbers.measure(item, context.layout) if names else {}
        return PhaseRow(item.group, phase_of(item, context.layout), [float(found[name]) for name in names.values()])

    def gather(self, rows: dict[str, list], context: Comparison) -> dict[str, Fractions]:
        return {name: paired(kept, len(ventricles(context.layout))) for name, kept in rows.items()}

    def compute(self, found: dict[str, Fractions], context: Comparison) -> dict[str, Any]:
        names, layout = ventricles(context.layout), context.layout
        if not layout.label_classes:
            return {"ejection": missing("there are no label maps to measure ventricles on")}
        if not names:
            return {"ejection": missing(f"no class is called as a ventricle is ({', '.join(VENTRICLES)})")}
        if not has_phases(layout):
            return {"ejection": missing("volumes are of no phases: classes called ED and ES would say which, or an "
                                        "attribute ESED of 1 and 0")}
        pairs = {name: found[name].values for name in BOTH}
        if few := [f"{len(pairs[name])} of {name} volumes" for name in BOTH if len(pairs[name]) < FEWEST]:
            return {"ejection": missing(
                f"wanted {FEWEST} pairs or more of one patient at ED and ES, there are {' and '.join(few)}; ask for "
                "generated ones by sampling.pairs=true, or by a file with a row for each phase of a patient "
                "(sampling.conditions)")}
        floors = ks_floors(len(pairs["real"]), len(pairs["generated"]))
        rows = {name: ejection_row({key: values[:, k] for key, values in pairs.items()}, floors, context.seed)
                for k, name in enumerate(names)}
        adjust(list(rows.values()))
        return {"ejection": {"available": True, "pairs": {key: len(values) for key, values in pairs.items()},
                             "ventricles": rows}}

    def figures(self, found: dict[str, Fractions], context: Comparison, report: dict) -> dict[str, Figure]:
        if not report["ejection"]["available"]:
            return {}
        return {f"ejection_{name}": charts.distribution_chart({key: found[key].values[:, k] for key in BOTH},
                                                              f"ejection fraction, {name}", "%")
                for k, name in enumerate(report["ejection"]["ventricles"])}

    def columns(self, found: dict[str, Fractions], context: Comparison, name: str) -> dict[str, Sequence[str]]:
        num, pairs, values = found[name]
        whole = np.full([num, values.shape[1]], np.nan)
        whole[pairs] = values[:, None]  # both volumes of a pair have its fraction
        return {f"{ventricle}_ejection_fraction": [f"{v:.6g}" if v == v else "" for v in whole[:, k]]
                for k, ventricle in enumerate(ventricles(context.layout))}

    def rows(self, report: dict) -> list[tuple[str, ...]]:
        rows = report["ejection"].get("ventricles", {})
        return [(f"ejection fraction, {name} [%]", plus_minus(row, "real"), plus_minus(row, "generated"),
                 number(row["ks"]), number(row["floor_p99"]), "") for name, row in rows.items()]

    def lines(self, report: dict) -> list[str]:
        part = report["ejection"]
        if not part["available"]:
            return [f"Ejection fraction: not available: {part['reason']}"]
        return [f"Pairs: {name} is smaller at ES than at ED in {smaller(part, row, 'generated')} generated ones, in "
                f"{smaller(part, row, 'real')} real ones" for name, row in part["ventricles"].items()]

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        part = report["ejection"]
        if not part["available"]:
            return "<h2>Ejection fraction</h2>" + html_missing("Ejection fraction", part)
        head = ["%", "real", "generated", "KS", "floor, 99 %", "Wasserstein", "floor, 99 %", "p of mean", "p of spread",
                "p of KS", "p by Holm", *(f"ES < ED, {name}" for name in BOTH)]
        rows = [[name, plus_minus(row, "real"), plus_minus(row, "generated"),
                 *(number(row[key]) for key in ("ks", "floor_p99", "wasserstein", "wasserstein_floor_p99")),
                 *(p_value(row[key]) for key in (*TESTS, "p_holm")), *(smaller(part, row, each) for each in BOTH)]
                for name, row in part["ventricles"].items()]
        pairs = part["pairs"]
        return (f"<h2>Ejection fraction</h2><p>{pairs['real']} real pairs of one patient at end-diastole and "
                f"end-systole, {pairs['generated']} generated ones. ES &lt; ED: in how many of them the ventricle is "
                "smaller at end-systole.</p>" + html_table(head, rows, main=3)
                + html_grid([f"ejection_{name}" for name in part["ventricles"]], figures))


def smaller(part: dict, row: dict, name: str) -> str:
    """In how many pairs of a set the ventricle of a row is smaller at end-systole, of how many."""
    return f"{row['smaller'][name]} of {part['pairs'][name]}"


def paired(rows: Sequence[PhaseRow], width: int) -> Fractions:
    """Ejection fractions of the pairs of a set; NaN where the ventricle is empty at end-diastole."""
    places: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for i, row in enumerate(rows):
        if row.group is not None and row.phase is not None:
            places[row.group][row.phase].append(i)
    pairs = np.array([pair for both in places.values() for pair in zip(*both, strict=False)], dtype=int).reshape(-1, 2)
    volumes = np.array([row.volumes for row in rows]).reshape(len(rows), width)
    before, after = volumes[pairs[:, 0]], volumes[pairs[:, 1]]
    shares = np.divide(before - after, before, out=np.full(before.shape, np.nan), where=before > 0)
    return Fractions(len(rows), pairs, 100 * shares)


def ejection_row(values: dict[str, np.ndarray], floors: dict[str, float], seed: int) -> dict[str, Any]:
    """One ventricle's fractions [P] by set, generated against real."""
    apart = distance_row(values, seed)
    renamed = {f"wasserstein_{key}" if key.startswith("floor_") else key: value for key, value in apart.items()
               if key != "noise"}
    return scalar_row(values, "%", floors) | renamed | {
        "smaller": {name: int(np.count_nonzero(values[name] > 0)) for name in BOTH}}
