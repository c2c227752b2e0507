"""Numbers of single volumes, compared case by case: what a number is, and the section that shows them all."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from edm3d.reporting import charts
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.distances import ks, ks_floors, wilson_interval
from edm3d.reporting.html import html_figure, html_grid, html_missing, html_table
from edm3d.reporting.section import COMPARED, NOISE, Score, Section
from edm3d.reporting.tables import number, percent, plus_minus
from edm3d.utils.names import titled

TELLING = 0.5  # being within a 99 % floor above this says next to nothing
Values = dict[str, dict[str, np.ndarray]]  # by set and name, [N] float64 (NaN where undefined) or bool


class Numbers:
    """Numbers of one volume that `Scalars` compares.

    words: what is to be said about them at the foot of the page; titles: their names for people, where not the same.
    """

    words: Mapping[str, str] = {}
    titles: Mapping[str, str] = {}

    def units(self, layout: Layout) -> dict[str, str | None]:
        """Name -> unit of those that such volumes have, None for yes or no, of which shares of cases are compared."""
        raise NotImplementedError

    def measure(self, case: Case, layout: Layout) -> dict[str, float | bool]:
        """Name -> value, NaN where undefined; asked for only where there are units."""
        raise NotImplementedError


class MeasuredOnce:
    """Numbers of volumes, each volume measured once for all sections that ask: what the last one gave is kept."""

    def __init__(self, numbers: Iterable[Numbers]):
        self.numbers = tuple(numbers)
        self._last: tuple[Case, Layout, dict[str, float | bool]] | None = None

    @classmethod
    def of(cls, numbers: "Iterable[Numbers] | MeasuredOnce") -> "MeasuredOnce":
        """The same where they are measured already."""
        return numbers if isinstance(numbers, cls) else cls(numbers)

    def __iter__(self) -> Iterator[Numbers]:
        return iter(self.numbers)

    def units(self, layout: Layout) -> dict[str, str | None]:
        """Units of all numbers, yes or no last."""
        found = {name: unit for part in self.numbers for name, unit in part.units(layout).items()}
        return dict(sorted(found.items(), key=lambda item: item[1] is None))

    def title(self, name: str) -> str:
        """A number's name for people."""
        return next((part.titles[name] for part in self.numbers if name in part.titles), name.replace("_", " "))

    def measure(self, case: Case, layout: Layout) -> dict[str, float | bool]:
        """Name -> value of a volume."""
        if self._last is None or self._last[0] is not case or self._last[1] is not layout:
            self._last = case, layout, {name: value for part in self.numbers if part.units(layout)
                                        for name, value in part.measure(case, layout).items()}
        return self._last[2]

    def gather(self, rows: Mapping[str, Sequence[Mapping[str, float | bool]]], layout: Layout) -> "Values":
        """What was measured of the volumes of each set, by name."""
        return {key: {name: np.array([row[name] for row in kept], dtype=bool if unit is None else np.float64)
                      for name, unit in self.units(layout).items()} for key, kept in rows.items()}


class OfNumbers(Section):
    """A section of what numbers of volumes come to, by set."""

    def __init__(self, numbers: Iterable[Numbers] | MeasuredOnce):
        self.numbers = MeasuredOnce.of(numbers)

    def measure(self, item: Case, context: Comparison) -> dict[str, float | bool]:
        return self.numbers.measure(item, context.layout)

    def gather(self, rows: dict[str, list], context: Comparison) -> Values:
        return self.numbers.gather(rows, context.layout)


class Scalars(OfNumbers):
    """Every number of `numbers` in real, generated and decoded noise.

    metrics.NAME.{unit, real_mean, real_std, real_undefined, ... generated_*, noise_*, ks, floor_median, floor_p95,
                  floor_p99, noise}                               noise = KS distance of decoded noise to real
    shares.NAME.{real, generated, generated_low, generated_high, noise}                    shares of cases, 0 to 1
    """

    def __init__(self, numbers: Iterable[Numbers] | MeasuredOnce):
        super().__init__(numbers)
        self.words = {
            "KS": "Kolmogorov-Smirnov distance between generated and real cases, 0 to 1. A case without a defined "
                  "value (no wall, say) counts as lying beyond all others.",
            "floor": "The distance that two sets of as many cases have by chance though both are drawn from one "
                     "distribution, by simulation: median, 95 % and 99 % points. Generated cases whose distance is "
                     "below the 99 % point cannot be told from real ones by this scalar.",
            "decoded noise": "Standard normal latents times sigma_data, decoded by the first stage of the snapshot: "
                             "what a diffusion model that learned nothing would draw.",
        } | {word: text for part in self.numbers for word, text in part.words.items()}

    def compute(self, found: Values, context: Comparison) -> dict[str, Any]:
        units = self.numbers.units(context.layout)
        sets = {name: {key: values[name] for key, values in found.items()} for name in units}
        floors = ks_floors(*(len(next(iter(found[key].values()))) for key in ("real", "generated"))) if units else {}
        return {"metrics": {name: scalar_row(sets[name], unit, floors) for name, unit in units.items()
                            if unit is not None},
                "shares": {name: share_row(sets[name]) for name, unit in units.items() if unit is None}}

    def figures(self, found: Values, context: Comparison, report: dict) -> dict[str, Figure]:
        metrics = report["metrics"]
        return {"overview": charts.overview_chart(metrics, {name: self.numbers.title(name) for name in metrics})} | {
            f"distribution_{name}": charts.distribution_chart({key: values[name] for key, values in found.items()},
                                                              self.numbers.title(name), row["unit"])
            for name, row in metrics.items() if varies(found, name)}

    def columns(self, found: Values, context: Comparison, name: str) -> dict[str, Sequence[str]]:
        return {key: [str(int(v)) if values.dtype == bool else f"{v:.6g}" for v in values]
                for key, values in found[name].items()}

    def facts(self, report: dict) -> list[tuple[str, str]]:
        rows, facts = report["metrics"].values(), []
        if rows:
            within = sum(row["ks"] <= row["floor_p99"] for row in rows)
            telling = within < len(rows) or all(row["floor_p99"] < TELLING for row in rows)
            facts.append((f"{within} of {len(rows)}", "scalars within the 99 % floor") if telling else
                         ("too few", "volumes to tell the sets apart by a scalar"))
        return facts + [(percent(row["generated"]), self.numbers.title(name)) for name, row in report["shares"].items()]

    def scores(self, report: dict) -> Mapping[str, Sequence[Score]]:
        metrics = {self.numbers.title(name): row for name, row in report["metrics"].items()}
        within = sum(row["ks"] <= row["floor_p99"] for row in metrics.values())
        first = [Score("scalars within the 99 % floor", within, said=f"of {len(metrics)}")] if metrics else []
        return {"congruence": first + [Score(f"KS distance of {name}", row["ks"], floor=row["floor_p99"],
                                             ceiling=row["noise"]) for name, row in metrics.items()],
                "constraint": [Score(f"share: {self.numbers.title(name)}", row["generated"], low=row["generated_low"],
                                     high=row["generated_high"], real=row["real"])
                               for name, row in report["shares"].items()]}

    def rows(self, report: dict) -> list[tuple[str, ...]]:
        return [(titled(name, row["unit"]), plus_minus(row, "real"), plus_minus(row, "generated"), number(row["ks"]),
                 number(row["floor_p99"]), number(row["noise"])) for name, row in report["metrics"].items()] + [
            (name, percent(row["real"]), percent(row["generated"]), "", "", percent(row["noise"]))
            for name, row in report["shares"].items()]

    def lines(self, report: dict) -> list[str]:
        noise = report["noise"]
        return [] if noise["available"] else [f"Decoded noise: not available: {noise['reason']}"]

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        overview = html_figure("overview", figures, "Left is better; on the grey band the sets look alike.")
        return (self._metrics(report["metrics"]) + html_missing("Decoded noise", report["noise"])
                + html_missing("Label maps", report["generated"]["labels"]) + self._shares(report["shares"])
                + f'<div class="wide">{overview}</div>'
                + html_grid([f"distribution_{name}" for name in report["metrics"]], figures))

    def _metrics(self, metrics: dict) -> str:
        rows = [[titled(self.numbers.title(name), row["unit"]), *(plus_minus(row, key) for key in COMPARED),
                 *(number(row[key]) for key in ("ks", "floor_median", "floor_p99", "noise"))]
                for name, row in metrics.items()]
        head = ["", "real", "generated", NOISE, "KS", "floor, median", "floor, 99 %", f"KS of {NOISE}"]
        undefined = [f"{self.numbers.title(name)}: {row['real_undefined']} real, {row['generated_undefined']} generated"
                     for name, row in metrics.items() if row["real_undefined"] or row["generated_undefined"]]
        note = f"<p class=note>Undefined cases, counted as beyond all others: {escape('; '.join(undefined))}.</p>"
        reading = "".join(f"<p>{escape(self._example(name, row))}</p>" for name, row in list(metrics.items())[:1])
        return "<h2>Scalars</h2>" + reading + html_table(head, rows, main=4) + (note if undefined else "")

    def _example(self, name: str, row: dict) -> str:
        """How the table is read, by the numbers of one of its rows."""
        noise = "" if row["noise"] is None else (
            f"; {NOISE}, which a model that learned nothing would draw, is {number(row['noise'])} away")
        verdict = "generated volumes differ in this number from real ones by more than chance" \
            if row["ks"] > row["floor_p99"] else (
                "there are too few volumes to tell the sets apart by it" if row["floor_p99"] >= TELLING else
                "generated volumes cannot be told from real ones by this number")
        title = self.numbers.title(name)
        return (f"How to read it, by the example of {title}: the KS distance of generated to real volumes is "
                f"{number(row['ks'])}, where 0 is alike and 1 has nothing in common. Two sets of as many real "
                f"volumes would stay below {number(row['floor_p99'])} in 99 of 100 cases (the floor){noise}. So "
                f"{verdict}.")

    def _shares(self, shares: dict) -> str:
        rows = [[self.numbers.title(name), percent(row["real"]), percent(row["generated"]),
                 f"{percent(row['generated_low'])} to {percent(row['generated_high'])}", percent(row["noise"])]
                for name, row in shares.items()]
        head = ["share of cases", "real", "generated", "95 % interval", NOISE]
        return html_table(head, rows, main=2) if rows else ""


def varies(found: Values, name: str) -> bool:
    """Whether a curve of a number has anything to show: one that is the same in all volumes has not."""
    values = np.concatenate([values[name] for values in found.values()])
    return len(np.unique(values)) > 1


def scalar_row(values: dict[str, np.ndarray], unit: str, floors: dict[str, float]) -> dict[str, Any]:
    """One number, values [N] by set, held against the real."""
    row: dict[str, Any] = {"unit": unit}
    for name in COMPARED:
        row |= moments(name, values.get(name))
    noise = values.get("noise")
    return row | {"ks": ks(values["real"], values["generated"]), **floors,
                  "noise": None if noise is None else ks(values["real"], noise)}


def moments(name: str, values: np.ndarray | None) -> dict[str, float | int | None]:
    """Mean and standard deviation of the defined values of a set, and how many are not."""
    defined = values[np.isfinite(values)] if values is not None else np.empty(0)
    return {f"{name}_mean": float(defined.mean()) if len(defined) else None,
            f"{name}_std": float(defined.std()) if len(defined) else None,
            f"{name}_undefined": None if values is None else len(values) - len(defined)}


def share_row(values: dict[str, np.ndarray]) -> dict[str, float | None]:
    """Shares of cases that are so, with the Wilson interval of the generated."""
    generated, noise = values["generated"], values.get("noise")
    low, high = wilson_interval(int(generated.sum()), len(generated))
    return {"real": float(values["real"].mean()), "generated": float(generated.mean()), "generated_low": low,
            "generated_high": high, "noise": None if noise is None else float(noise.mean())}
