"""Grain: power by spatial frequency, how far neighbouring voxels resemble each other, and the contrast of speckle."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from edm3d.metrics import texture
from edm3d.metrics.distribution import ks_distance
from edm3d.reporting import charts
from edm3d.reporting.cases import Case, DecodedCase, Layout
from edm3d.reporting.distances import resampled_floor
from edm3d.reporting.html import html_grid, html_table
from edm3d.reporting.section import COMPARED, DECODED, NOISE, Context, Score, Section
from edm3d.reporting.tables import number, percent

LARGEST = ("largest", "floor_p99", "noise_largest")
Sets = dict[str, np.ndarray]  # of one channel, [N, ...] by set


class GrainRow(NamedTuple):
    """What is kept of one volume, by channel: see metrics.texture, and mean and standard deviation of the intensity."""

    power: np.ndarray        # [C, bands + 1]
    correlation: np.ndarray  # [C, axes, lags + 1]
    contrast: np.ndarray     # [C, K]
    uniform: np.ndarray      # [C, 1]
    moments: np.ndarray      # [C, 2]


class Measure(NamedTuple):
    """A measure of sets of volumes.

    title: of its values; of_largest: of the largest difference. value: [R] of what was `kept` of a set [N, ...], one of
    each of names. relative: differences are shares of the real value.
    """

    title: str
    of_largest: str
    kept: str
    names: Callable[[Layout], Sequence[str]]
    value: Callable[[np.ndarray, Layout], np.ndarray]
    relative: bool = False

    def difference(self, other: np.ndarray, real: np.ndarray, layout: Layout) -> np.ndarray:
        """Of the values [R] of two sets [N, ...] and [M, ...]; NaN where it is not defined."""
        found, wanted = self.value(other, layout), self.value(real, layout)
        off = found - wanted
        return np.divide(off, wanted, out=np.full_like(off, np.nan), where=wanted > 0) if self.relative else off

    def shown(self, difference: float | None) -> str:
        """A difference in a cell of a table."""
        return percent(difference) if self.relative else number(difference)


def band_names(layout: Layout) -> list[str]:
    """Where the bands lie."""
    edges = texture.band_edges()
    return [*(f"{low:.4g} to {high:.4g} cycles per voxel" for low, high in pairwise(edges)), f"beyond {edges[-1]:.4g}"]


def axis_names(layout: Layout) -> list[str]:
    """The axes of the array."""
    return [f"axis {axis}" for axis in range(len(layout.spacing))]


def mean_defined(values: np.ndarray) -> np.ndarray:
    """Mean of a set [N, ...] over the volumes that have a value, NaN where none has."""
    there = np.isfinite(values)
    count = there.sum(axis=0)
    total = np.where(there, values, 0).sum(axis=0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


MEASURES = {
    "bands": Measure("power [dB]", "band power [dB]", "power", band_names,
                     lambda power, layout: texture.decibels(power, np.ones_like(power[:1]))),
    "lag1": Measure("lag-1 correlation", "lag-1 correlation", "correlation", axis_names,
                    lambda curves, layout: mean_defined(curves)[:, 1]),
    "length_mm": Measure("correlation length [mm]", "correlation length", "correlation", axis_names,
                         lambda curves, layout: texture.correlation_length(mean_defined(curves), layout.spacing), True),
    "contrast": Measure("speckle contrast", "speckle contrast", "contrast",
                        lambda layout: layout.label_classes, lambda contrast, layout: mean_defined(contrast), True),
    "uniform": Measure("std in uniform blocks", "std in uniform blocks", "uniform", lambda layout: ["std"],
                       lambda deviation, layout: mean_defined(deviation), True),
}


class Grain(Section):
    """Texture of the volumes of a set, `generated` or `decoded`, against that of real ones.

    texture.CHANNEL.MEASURE.{names, real, OTHER, difference, largest, noise, noise_difference, noise_largest}
    texture.CHANNEL.MEASURE.{floor_median, floor_p95, floor_p99}    of `largest`; of generated volumes only
    texture.CHANNEL.contrast.SET_undefined                          volumes without such a class, or such a mean
    texture.CHANNEL.curves.SET                                      correlation by axis and lag, 0 to 12 voxels
    texture.CHANNEL.{intensity_mean_ks, intensity_std_ks}           of decoded volumes only
    MEASURE: bands (dB), lag1, length_mm (differences are shares), contrast (where there are labels; shares), uniform
    (std where the image is most uniform, in its unit; shares). Names, values, differences and counts are lists of one
    length; null where undefined.
    """

    words = {
        "band power": "Mean power of a volume by radial frequency, in cycles per voxel of each axis, from 0 to Nyquist "
                      "(0.5), and in the corners beyond; Hann window, mean taken off. Averaged over volumes, then in "
                      "dB; -3 dB is half the power.",
        "lag-1": "Correlation of a voxel with the next one along an axis. Of what is left of the volume less its local "
                 "mean within each class (a Gaussian of 2 voxels), so that anatomy does not count; 0 for white noise.",
        "correlation length": "Where that correlation, by distance, falls to 1/e. 0.63 voxels for white noise.",
        "speckle contrast": "Standard deviation over mean of the intensity within a class, above the least that is "
                            f"stored; mean over volumes. Background below {texture.EMPTY:.0%} of the range, and 2 "
                            "voxels next to it, are left out here and for lag-1.",
        "std in uniform blocks": f"Noise, found without labels: of the blocks of {texture.BLOCK} voxels per axis that "
                                 f"are not empty, the {texture.UNIFORM:.0%} with the smallest slope, without that "
                                 "slope.",
    }

    def __init__(self, other: str):
        self.other, self.sets = other, DECODED if other == "decoded" else COMPARED

    def measure(self, item: Case | DecodedCase, context: Context) -> GrainRow | tuple[GrainRow, GrainRow]:
        item, layout = item.inside, context.layout
        return (grain_of(item.real, layout), grain_of(item.decoded, layout)) if isinstance(item, DecodedCase) else \
            grain_of(item, layout)

    def gather(self, rows: dict[str, list], context: Context) -> dict[str, GrainRow]:
        """By set, the volumes along axis 0 of each part."""
        if self.other == "decoded":
            rows = dict(zip(("real", "decoded"), zip(*rows["decoded"], strict=True), strict=True))
        return {name: stacked(kept) for name, kept in rows.items()}

    def compute(self, found: dict[str, GrainRow], context: Context) -> dict[str, Any]:
        return {"texture": {name: self._channel(found, c, context) for c, name in enumerate(context.layout.channels)}}

    def _channel(self, found: dict[str, GrainRow], channel: int, context: Context) -> dict[str, Any]:
        entry: dict[str, Any] = {}
        for key, measure in MEASURES.items():
            sets = {name: getattr(row, measure.kept)[:, channel] for name, row in found.items()}
            if measure.names(context.layout):
                entry[key] = self._row(measure, sets, context)
        entry["curves"] = {name: [plain(curve) for curve in mean_defined(row.correlation[:, channel])]
                           for name, row in found.items()}
        if self.other == "decoded":
            real, decoded = (found[name].moments[:, channel] for name in ("real", "decoded"))
            entry |= {f"intensity_{key}_ks": ks_distance(real[:, i], decoded[:, i])
                      for i, key in enumerate(("mean", "std"))}
        return entry

    def _row(self, measure: Measure, sets: Sets, context: Context) -> dict[str, Any]:
        """The values of all sets, and how far they are from the real."""
        layout, real = context.layout, sets["real"]
        row: dict[str, Any] = {"names": list(measure.names(layout)), "real": plain(measure.value(real, layout))}
        for name, start in ((self.other, ""), ("noise", "noise_")):
            off = measure.difference(sets[name], real, layout) if name in sets else None
            row |= {name: None, f"{start}difference": None, f"{start}largest": None} if off is None else {
                name: plain(measure.value(sets[name], layout)), f"{start}difference": plain(off),
                f"{start}largest": plain([largest(off)])[0]}
        if measure.kept in ("contrast", "uniform"):
            row |= {f"{name}_undefined": np.isnan(values).sum(0).tolist() for name, values in sets.items()}
        if self.other == "decoded":  # the same volumes, which are no two sets by chance
            return row
        floors = resampled_floor(lambda i, j: largest(measure.difference(real[j], real[i], layout)), len(real),
                                 len(sets[self.other]), context.seed)
        return row | dict(zip(floors, plain(floors.values()), strict=True))

    def figures(self, found: dict[str, GrainRow], context: Context, report: dict) -> dict[str, Figure]:
        figures, edges = {}, texture.band_edges()
        corner = edges[-1] * np.sqrt(len(context.layout.spacing))
        for name, entry in report["texture"].items():
            figures[f"bands_{name}"] = charts.bands_chart(entry["bands"], [*edges, corner])
            figures[f"neighbours_{name}"] = charts.neighbours_chart(entry["curves"])
        return figures

    def columns(self, found: dict[str, GrainRow], context: Context, name: str) -> dict[str, Sequence[str]]:
        columns, layout = {}, context.layout
        for c, channel in enumerate(layout.channels):
            columns |= {f"lag1_axis{axis}_{channel}": found[name].correlation[:, c, axis, 1]
                        for axis in range(len(layout.spacing))}
            columns |= {f"contrast_{label}_{channel}": found[name].contrast[:, c, k]
                        for k, label in enumerate(layout.label_classes)}
        return {key: [f"{value:.6g}" if value == value else "" for value in values] for key, values in columns.items()}

    def facts(self, report: dict) -> list[tuple[str, str]]:
        rows = {channel: entry["bands"]["largest"] for channel, entry in report["texture"].items()}
        return [(f"{value:.1f} dB", f"largest difference in band power, {channel}")
                for channel, value in rows.items() if value is not None]

    def rows(self, report: dict) -> list[tuple[str, ...]]:
        return [(f"{MEASURES[key].of_largest}, {channel}", "", "", *(MEASURES[key].shown(row[k]) for k in LARGEST))
                for channel, entry in report["texture"].items() for key, row in rows_of(entry)]

    def scores(self, report: dict) -> Mapping[str, Sequence[Score]]:
        return {"congruence": [Score(f"{MEASURES[key].of_largest}, {channel}", row["largest"], floor=row["floor_p99"],
                                     ceiling=row["noise_largest"])
                               for channel, entry in report["texture"].items() for key, row in rows_of(entry)]
                } if self.other == "generated" else {}

    def lines(self, report: dict) -> list[str]:
        if self.other != "decoded":
            return []
        return [f"{channel}: power by frequency, decoded less real [dB]: "
                f"{', '.join(number(value, 1) for value in entry['bands']['difference'])}; KS of intensity mean "
                f"{number(entry['intensity_mean_ks'])}, std {number(entry['intensity_std_ks'])}"
                for channel, entry in report["texture"].items()]

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        body, sets = "<h2>Grain</h2>", ["real", self.other, "difference"]
        head, shown = (sets, sets) if self.other == "decoded" else ([*sets, NOISE], [*sets, "noise"])
        for channel, entry in report["texture"].items():
            body += self._summary(channel, entry) + html_grid([f"bands_{channel}", f"neighbours_{channel}"], figures)
            body += html_table([channel, *head], [line for key, row in rows_of(entry)
                                                  for line in self._details(key, row, shown)], main=3)
        return body

    def _summary(self, channel: str, entry: dict) -> str:
        """The largest differences, and what they would be by chance."""
        first = f"{channel}, largest difference"
        if self.other == "generated":
            keys, head = ("largest", "floor_median", *LARGEST[1:]), ["generated", "floor, median", "floor, 99 %", NOISE]
        else:
            keys, head = ("largest",), ["decoded"]
        lines = [[MEASURES[key].of_largest, *(MEASURES[key].shown(row[k]) for k in keys)]
                 for key, row in rows_of(entry)]
        if self.other == "decoded":
            lines += [[f"KS distance of the intensity's {key}", number(entry[f"intensity_{key}_ks"])]
                      for key in ("mean", "std")]
        return html_table([first, *head], lines, main=1)

    def _details(self, key: str, row: dict, shown: Sequence[str]) -> list[list[str]]:
        """A line for every band, axis or class."""
        lines, measure = [], MEASURES[key]
        for i, name in enumerate(row["names"]):
            counts = {each: row.get(f"{each}_undefined") for each in ("real", self.other)}
            left_out = ", ".join(f"{count[i]} {each} without" for each, count in counts.items() if count and count[i])
            values = {each: row[each] and row[each][i] for each in shown}
            lines.append([f"{measure.title}, {name}" + (f" ({left_out})" if left_out else ""),
                          *((measure.shown if each == "difference" else number)(values[each]) for each in shown)])
        return lines


def rows_of(entry: dict) -> list[tuple[str, dict]]:
    """The measures that there are of a channel."""
    return [(key, entry[key]) for key in MEASURES if key in entry]


def grain_of(case: Case, layout: Layout) -> GrainRow:
    """What is kept of a volume; intensities count from the least that is stored."""
    kept = []
    for image in case.image - layout.lo:
        label = case.label if layout.label_classes else None
        parts = texture.texture_parts(image, label, texture.EMPTY * layout.data_range)
        kept.append((texture.band_power(image),
                     texture.autocorrelation(texture.local_residual(image, parts), parts),
                     texture.speckle_contrast(image, parts, len(layout.label_classes)),
                     np.array([texture.uniform_std(image, texture.EMPTY * layout.data_range)]),
                     np.array([image.mean(dtype=np.float64), image.std(dtype=np.float64)])))
    return stacked(kept)


def stacked(rows: Iterable[GrainRow]) -> GrainRow:
    """All rows as one, along a new axis 0 of each part."""
    return GrainRow(*map(np.stack, zip(*rows, strict=True)))


def largest(difference: np.ndarray) -> float:
    """The largest of differences [R] without its sign; NaN where none is defined."""
    defined = np.abs(difference[np.isfinite(difference)])
    return float(defined.max()) if defined.size else float("nan")


def plain(values: Iterable[float]) -> list[float | None]:
    """Numbers as report.json has them, None for those that do not exist."""
    return [float(value) if np.isfinite(value) else None for value in values]
