"""Histograms and power spectra."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from edm3d.reporting import charts
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.distances import radial_log_power, resampled_floor, spectrum_distance
from edm3d.reporting.html import html_grid, html_table
from edm3d.reporting.section import COMPARED, NOISE, Score, Section
from edm3d.reporting.tables import number

HISTOGRAM_BINS = 64
Curves = dict[str, np.ndarray]  # by set, [N,C,K]


class TextureRow(NamedTuple):
    """Of one volume and each channel [C,K]: shares of voxels per bin, of which the outer hold what lies beyond the
    range; and log10 of the radial power, K frequencies from 1 cycle per volume up to Nyquist.
    """

    histograms: np.ndarray
    spectra: np.ndarray


class Texture(Section):
    """Mean histograms and mean spectra.

    intensity.CHANNEL.{distance, floor_median, floor_p95, floor_p99, noise, bins, *_curve}
    spectrum.CHANNEL.{distance, floor_median, floor_p95, floor_p99, noise, *_curve}
    """

    words = {
        "intensity distance": "Wasserstein-1 distance between mean histograms, as a share of the intensity range; its "
                              "floor: the distance of two sets resampled from the real one.",
        "spectrum distance": "Root mean square over frequencies of the difference in mean log radial power, in dB; its "
                             "floor: the distance of two sets resampled from the real one.",
    }

    def measure(self, item: Case, context: Comparison) -> TextureRow:
        layout = context.layout
        images = item.inside.image
        edges, clipped = intensity_bins(layout), np.clip(images, layout.lo, layout.hi)
        return TextureRow(np.stack([np.histogram(volume, bins=edges)[0] / volume.size for volume in clipped]),
                          np.stack([radial_log_power(volume) for volume in images]))

    def gather(self, rows: dict[str, list], context: Comparison) -> dict[str, Curves]:
        return {name: {key: np.stack([getattr(row, name) for row in kept]) for key, kept in rows.items()}
                for name in TextureRow._fields}

    def compute(self, found: dict[str, Curves], context: Comparison) -> dict[str, Any]:
        bins = {"bins": [float(edge) for edge in intensity_bins(context.layout)]}
        channels = list(enumerate(context.layout.channels))
        return {"intensity": {name: curve_row(found["histograms"], c, histogram_distance, context.seed, bins)
                              for c, name in channels},
                "spectrum": {name: curve_row(found["spectra"], c, spectrum_distance, context.seed, {})
                             for c, name in channels}}

    def figures(self, found: dict[str, Curves], context: Comparison, report: dict) -> dict[str, Figure]:
        figures = {}
        for name in context.layout.channels:
            figures[f"histogram_{name}"] = charts.histogram_chart(report["intensity"][name], f"intensity of {name}",
                                                                  context.layout.unit)
            figures[f"spectrum_{name}"] = charts.spectrum_chart(report["spectrum"][name])
        return figures

    def scores(self, report: dict) -> Mapping[str, Sequence[Score]]:
        return {"congruence": [Score(f"{title}, {channel}", row["distance"], unit=unit, floor=row["floor_p99"],
                                     ceiling=row["noise"])
                               for title, key, unit in (("histogram distance", "intensity", ""),
                                                        ("spectrum distance", "spectrum", "dB"))
                               for channel, row in report[key].items()]}

    def rows(self, report: dict) -> list[tuple[str, ...]]:
        return [(f"{title}, {channel}", "", "", number(row["distance"]), number(row["floor_p99"]), number(row["noise"]))
                for title, key in (("histogram distance", "intensity"), ("spectrum distance [dB]", "spectrum"))
                for channel, row in report[key].items()]

    def page(self, report: dict, figures: Mapping[str, bytes]) -> str:
        rows = [[f"{title}, {channel}", *(number(row[k], digits) for k in
                                          ("distance", "floor_median", "floor_p99", "noise"))]
                for key, title, digits in (("intensity", "histogram", 4), ("spectrum", "spectrum [dB]", 2))
                for channel, row in report[key].items()]
        names = [f"{kind}_{channel}" for channel in report["intensity"] for kind in ("histogram", "spectrum")]
        head = ["distance", "generated", "floor, median", "floor, 99 %", NOISE]
        return "<h2>Intensity and texture</h2>" + html_table(head, rows, main=1) + html_grid(names, figures)


def intensity_bins(layout: Layout) -> np.ndarray:
    """Edges [HISTOGRAM_BINS + 1] of the intensity histogram, over the stored range."""
    return np.linspace(layout.lo, layout.hi, HISTOGRAM_BINS + 1)


def histogram_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Wasserstein-1 distance of two histograms [K] as a share of the intensity range."""
    return float(np.abs(np.cumsum(a - b)).mean())


def curve_row(curves: Curves, channel: int, distance: Callable[[np.ndarray, np.ndarray], float], seed: int,
              more: dict[str, Any]) -> dict[str, Any]:
    """Distance of the mean curves of a channel to the real one, its floor, and the mean curves themselves."""
    of = {key: values[:, channel] for key, values in curves.items()}
    real, means = of["real"], {key: values.mean(0) for key, values in of.items()}
    return {
        "distance": distance(means["real"], means["generated"]),
        **resampled_floor(lambda i, j: distance(real[i].mean(0), real[j].mean(0)), len(real), len(of["generated"]),
                          seed),
        "noise": distance(means["real"], means["noise"]) if "noise" in means else None, **more,
        **{f"{key}_curve": means[key].tolist() if key in means else None for key in COMPARED},
    }
