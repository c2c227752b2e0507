"""Curves and pictures of the report of PET scans: a colour for every method, one scale for all images."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from edm3d.reporting.charts import DPI, GRID, INK, chart, legend
from edm3d.reporting.words import shown_word
from edm3d.utils.names import titled

COLOURS = {"low": "#8c959f", "filtered": "#d4721c", "early": "#1a7f37", "mean": "#0969da", "draw": "#8250df",
           "high": "#24292f"}
REGIONS = {"inside": "#0969da", "outside": "#d4721c", "all": "#0969da"}
WORDS = {"inside": "inside the head", "outside": "outside", "all": "all pixels"}
PANELS = 2  # columns of a scan's picture


def activity_in(unit: str) -> str:
    """What a scale of activity is called; data without a unit of their own call it activity, too."""
    return titled("activity", "" if unit == "activity" else unit)


def tried_chart(values: Sequence[float], errors: Sequence[float], name: str, lines: Mapping[str, tuple[float, str]]
                ) -> Figure:
    """Mean error at all that a rival was tried at, its best as a dot; lines: other methods' error, and colour."""
    figure, axes = chart(name, "relative L2 error")
    best = int(np.argmin(errors))
    axes.plot(values, errors, color=INK, lw=1.6)
    axes.plot(values[best], errors[best], "o", ms=7, color=INK, clip_on=False,
              label=f"best: {values[best]:g}, {errors[best]:.3f}")
    for title, (level, colour) in lines.items():
        axes.axhline(level, color=colour, lw=1.4, ls=(0, (4, 2)), label=f"{shown_word(title)}: {level:.3f}")
    shown = [*errors[best:], *(level for level, _ in lines.values()), errors[0]]
    top = min(max(shown), 2.5 * max([errors[best], *(level for level, _ in lines.values())]))
    axes.set_ylim(0, 1.08 * top)
    legend(figure, columns=2)
    return figure


def levels_chart(activity: np.ndarray, values: Mapping[str, np.ndarray], titles: Mapping[str, str], name: str,
                 unit: str, right: float) -> Figure:
    """A number of every level by its activity, a line for each method; right: where it should be."""
    figure, axes = chart(activity_in(unit), name)
    axes.axhline(right, color=GRID, lw=2.0, zorder=0)
    for method, row in values.items():
        known = np.isfinite(row)
        axes.plot(activity[known], row[known], "o-", ms=4, lw=1.5, color=COLOURS[method],
                  label=shown_word(titles[method]))
    legend(figure, columns=2)
    return figure


def ranks_chart(shares: Mapping[str, Sequence[float]]) -> Figure:
    """How often each rank came up, of what is expected, which is 1 for all."""
    figure, axes = chart("draws below the high dose", "times as often as expected")
    for region, row in shares.items():
        height = np.array(row) * len(row)
        axes.stairs(height, np.arange(len(row) + 1) - 0.5, fill=region != "outside", alpha=0.4 if region != "outside"
                    else 1, color=REGIONS[region], lw=1.8, label=WORDS[region])
    axes.axhline(1, color=INK, lw=1.2, ls=(0, (4, 2)))
    axes.set_ylim(bottom=0)
    legend(figure)
    return figure


def coverage_chart(levels: Sequence[float], found: Mapping[str, Sequence[float]]) -> Figure:
    """The share of pixels inside of central intervals by what they should hold."""
    figure, axes = chart("interval of the draws [%]", "high dose inside of it [%]")
    axes.plot([0, 100], [0, 100], color=GRID, lw=2.0, zorder=0)
    for region, row in found.items():
        axes.plot(100 * np.array(levels), 100 * np.array(row), "-" if region != "outside" else "--",
                  color=REGIONS[region], lw=1.8, label=WORDS[region])
    axes.set(xlim=(0, 100), ylim=(0, 100))
    legend(figure)
    return figure


def spread_chart(expected: Sequence[float], error: Sequence[float], unit: str) -> Figure:
    """Error of the posterior mean by what the spread of the draws lets expect, bin by bin."""
    figure, axes = chart(titled("error expected by the draws' spread", unit), titled("error found", unit))
    top = 1.08 * max([*expected, *error])
    axes.plot([0, top], [0, top], color=GRID, lw=2.0, zorder=0)
    axes.plot(expected, error, "o-", color=REGIONS["inside"], lw=1.6, ms=5)
    axes.set(xlim=(0, top), ylim=(0, top))
    return figure


def scan_picture(images: Sequence[tuple[str, np.ndarray]], errors: Sequence[tuple[str, np.ndarray]], top: float,
                 most: float, unit: str, title: str) -> Figure:
    """Images [H,W] of a scan in one scale of activity, 0 to `top`, and below them errors in one, -most to most."""
    rows = [-(-len(part) // PANELS) for part in (images, errors)]
    figure = Figure(figsize=(4.4, 0.9 + 2.2 * sum(rows)), dpi=DPI, facecolor="white", layout="constrained")
    figure.suptitle(shown_word(title, 56), fontsize=9, color=INK)
    above, below = figure.subfigures(2, 1, height_ratios=[rows[0] + 0.25, rows[1] + 0.25])
    for part, shown, count, (lo, hi, colours), word in (
            (above, images, rows[0], (0, top, "gray_r"), activity_in(unit)),
            (below, errors, rows[1], (-most, most, "RdBu_r"), titled("error, standard deviation", unit))):
        grid = part.subplots(count, PANELS, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, (name, image) in zip(grid.flat, shown):
            drawn: AxesImage = axes.imshow(image, cmap=colours, vmin=lo, vmax=hi, interpolation="nearest")
            axes.set_title(shown_word(name, 40), fontsize=8, color=INK, pad=3)
        bar = part.colorbar(drawn, ax=[*grid.flat], location="bottom", fraction=0.05, pad=0.03, aspect=40)
        bar.set_label(shown_word(word), fontsize=8, color=INK)
        bar.ax.tick_params(labelsize=7, colors=INK)
        bar.outline.set_visible(False)
    return figure
