"""Curves, dots and boxes of the reports: real in grey, generated in blue, decoded noise in orange, everywhere."""

from collections.abc import Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from edm3d.reporting.words import shown_word
from edm3d.utils.names import titled

COLOURS = {"real": "#57606a", "generated": "#0969da", "decoded": "#0969da", "noise": "#d4721c"}
STYLES = {"real": "-", "generated": "-", "decoded": "-", "noise": (0, (4, 2))}
NAMES = {"real": "real", "generated": "generated", "decoded": "decoded again", "noise": "decoded noise"}
INK, GRID = "#24292f", "#d8dee4"
SIZE = (4.2, 3.2)
DPI = 160


def overview_chart(metrics: dict[str, dict], titles: dict[str, str]) -> Figure:
    """One line per scalar: KS distance of generated and of noise to real, on the band that real against real fills."""
    size = (SIZE[0] * 1.1, 1.1 + 0.32 * len(metrics))
    figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout="constrained")
    axes = _styled(figure.subplots(), "KS distance to real", "")
    for y, row in enumerate(metrics.values()):
        axes.barh(y, row["floor_p99"], height=0.62, color="#dfe5ea", zorder=1,
                  label="real against real, to 99 %" * (y == 0))
        axes.plot([row["floor_median"]] * 2, [y - 0.31, y + 0.31], color="#8c959f", lw=1.5, zorder=2,
                  label="real against real, median" * (y == 0))
        if row["noise"] is not None:
            axes.plot(row["noise"], y, "D", ms=6, mfc="white", mec=COLOURS["noise"], mew=1.6, zorder=3, clip_on=False,
                      label=NAMES["noise"] * (y == 0))
        axes.plot(row["ks"], y, "o", ms=8, color=COLOURS["generated"], zorder=4, clip_on=False,
                  label=NAMES["generated"] * (y == 0))
    axes.set(xlim=(0, 1), ylim=(len(metrics) - 0.45, -0.55), yticks=range(len(metrics)),
             yticklabels=[shown_word(titles[name]) for name in metrics])
    axes.grid(axis="y", visible=False)
    legend(figure, columns=2)
    return figure


def distances_chart(rows: dict[str, dict], title: str) -> Figure:
    """A line per metric of a view: generated and noise, on the band that real against real fills, all of one scale.

    In units of what 99 of 100 halves of the real set stay below, shares of what they reach.
    """
    figure = Figure(figsize=(SIZE[0] * 1.1, 1.3 + 0.32 * len(rows)), dpi=DPI, facecolor="white", layout="constrained")
    axes = _styled(figure.subplots(), "by what 99 % of halves of the real set reach", "")
    for y, row in enumerate(rows.values()):
        unit = row["floor_p99"] if row["floor_p99"] and row["floor_p99"] > 0 else 1.0
        ends = sorted([row["floor_median"] / unit, row["floor_p99"] / unit])
        axes.barh(y, ends[1] - ends[0], left=ends[0], height=0.62, color="#dfe5ea", zorder=1,
                  label="real against real, median to 99 %" * (y == 0))
        for key, marker in (("noise", "D"), ("matched", "o")):
            if row[key] is not None:
                name = "noise" if key == "noise" else "generated"
                axes.plot(row[key] / unit, y, marker, ms=7, mfc="white" if key == "noise" else COLOURS[name],
                          mec=COLOURS[name], mew=1.6, zorder=3, ls="none", label=NAMES[name] * (y == 0))
    axes.set_xscale("symlog", linthresh=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(ylim=(len(rows) - 0.45, -0.55), yticks=range(len(rows)), yticklabels=[shown_word(name) for name in rows])
    axes.set_title(shown_word(title), fontsize=9, color=INK)
    axes.grid(axis="y", visible=False)
    legend(figure, columns=2)
    return figure


def distribution_chart(values: dict[str, np.ndarray | None], title: str, unit: str) -> Figure:
    """Cumulative shares of one scalar in every set; the KS distance is the largest gap between two of the curves."""
    figure, axes = chart(titled(title, unit), "share of cases at most")
    for key, sample in values.items():
        if sample is None or not np.isfinite(sample).any():
            continue
        ordered = np.sort(sample[np.isfinite(sample)])
        # Undefined cases count as lying beyond all others: their share is missing at the right end of the curve.
        axes.step(ordered, np.arange(1, len(ordered) + 1) / len(sample), where="post", color=COLOURS[key],
                  ls=STYLES[key], lw=1.8, label=f"{NAMES[key]} (n = {len(sample)})")
    axes.set_ylim(0, 1.02)
    legend(figure)
    return figure


def histogram_chart(row: dict, title: str, unit: str) -> Figure:
    """Share of voxels per intensity bin, on a logarithmic scale since most voxels of a volume are background."""
    figure, axes = chart(titled(title, unit), "share of voxels")
    for key in COLOURS:
        if row.get(f"{key}_curve") is not None:
            axes.stairs(np.maximum(row[f"{key}_curve"], 1e-6), row["bins"], color=COLOURS[key], ls=STYLES[key], lw=1.6,
                        label=NAMES[key])
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())
    legend(figure)
    return figure


def spectrum_chart(row: dict) -> Figure:
    """Mean radial power in dB over cycles per shortest side."""
    figure, axes = chart("frequency [cycles per side]", "power [dB]")
    for key in COLOURS:
        curve = row.get(f"{key}_curve")
        if curve is not None:
            axes.plot(np.arange(1, len(curve) + 1), 10 * np.array(curve), color=COLOURS[key], ls=STYLES[key], lw=1.8,
                      label=NAMES[key])
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    legend(figure)
    return figure


def bands_chart(row: dict, edges: Sequence[float]) -> Figure:
    """Mean power in dB by band of radial frequency, edges in cycles per voxel; a line before the corners, the last."""
    figure, axes = chart("frequency [cycles per voxel]", "power [dB]")
    for key in COLOURS:
        if row.get(key) is not None:
            levels = np.array(row[key], dtype=np.float64)
            axes.stairs(levels, edges, baseline=None, color=COLOURS[key], ls=STYLES[key], lw=1.8, label=NAMES[key])
    axes.axvline(edges[-2], color=GRID, lw=1.2, zorder=0)
    legend(figure)
    return figure


def neighbours_chart(curves: dict[str, list[list[float | None]]]) -> Figure:
    """Correlation of voxels by their distance [voxels], a mark for each axis."""
    figure, axes = chart("distance [voxels]", "correlation")
    for key in COLOURS:
        for axis, curve in enumerate(curves.get(key, [])):
            values = np.array(curve, dtype=np.float64)
            axes.plot(np.arange(len(values)), values, color=COLOURS[key], ls=STYLES[key], lw=1.2, ms=4,
                      marker="os^"[axis], label=f"{NAMES[key]}, axis {axis}")
    axes.axhline(np.exp(-1), color=GRID, lw=1.2, zorder=0)
    legend(figure)
    return figure


def pairs_chart(values: dict[str, np.ndarray]) -> Figure:
    """Distribution of MS-SSIM over random pairs: to the right of real = samples resemble each other too much."""
    figure, axes = chart("MS-SSIM of two volumes", "share of pairs")
    everything = np.concatenate(list(values.values()))
    edges = np.linspace(everything.min(), everything.max() + 1e-6, 25)
    for key, sample in values.items():
        shares = np.histogram(sample, bins=edges)[0] / len(sample)
        axes.stairs(shares, edges, fill=key == "real", alpha=0.35 if key == "real" else 1, color=COLOURS[key], lw=1.8,
                    label=f"{NAMES[key]} (n = {len(sample)})")
    legend(figure)
    return figure


def chart(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """An empty chart in the style of all, its axes named by words that may come out of files."""
    figure = Figure(figsize=SIZE, dpi=DPI, facecolor="white", layout="constrained")
    return figure, _styled(figure.subplots(), shown_word(xlabel), shown_word(ylabel))


def legend(figure: Figure, columns: int = 3) -> None:
    """What the colours are, below the axes, where it hides no curve."""
    figure.legend(loc="outside lower center", ncols=columns, fontsize=7.5, frameon=False, columnspacing=1.2)


def _styled(axes: Axes, xlabel: str, ylabel: str) -> Axes:
    axes.set_xlabel(xlabel, fontsize=9, color=INK)
    axes.set_ylabel(ylabel, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK, length=0)
    axes.grid(color=GRID, lw=0.6)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    return axes


def asked_chart(sets: dict[str, tuple[np.ndarray, np.ndarray]], name: str, unit: str) -> Figure:
    """What is measured [n] over what was asked for [n], by set; on the line it is the same."""
    figure, axes = chart(titled(f"{name}: asked for (real: known)", unit), titled("measured", unit))
    everything = np.concatenate([values for pair in sets.values() for values in pair])
    ends = [everything.min(), everything.max()]
    axes.plot(ends, ends, color=GRID, lw=1.2, zorder=0)
    for key, (asked, measured) in sets.items():
        axes.plot(asked, measured, ".", ms=4, color=COLOURS[key], alpha=0.5, mew=0,
                  label=f"{NAMES[key]} (n = {len(asked)})")
    legend(figure)
    return figure


# ---- downstream networks: a colour for every row of runs ----


def sweep_chart(values: np.ndarray, measured: np.ndarray, seeds: Sequence[int], name: str, unit: str) -> Figure:
    """What is measured [S,V] over the values [V] that were asked for, a line for each seed; on the grey line it is the
    same.
    """
    figure, axes = chart(titled(f"{name}: asked for", unit), titled("measured", unit))
    axes.plot(values, values, color=GRID, lw=2.4, zorder=0, label="as asked for")
    for seed, row, colour in zip(seeds, measured, cycle(row_colours([False] * 4))):
        axes.plot(values, row, "o-", ms=3.5, lw=1.2, color=colour, label=f"seed {seed}" if len(seeds) <= 8 else None)
    legend(figure)
    return figure


def row_colours(is_real: Sequence[bool]) -> list[str]:
    """Colours of rows: greys for those of real items alone, others for others."""
    greys, others = cycle(("#57606a", "#24292f", "#8c959f")), cycle(("#0969da", "#d4721c", "#1a7f37", "#8250df"))
    return [next(greys if real else others) for real in is_real]


def boxes_chart(values: dict[str, np.ndarray], colours: Sequence[str], title: str, unit: str) -> Figure:
    """A lying box for every row by name, with its cases as dots; the box ends at the quarters, the line is the median,
    whiskers reach 1.5 of its length.
    """
    figure = Figure(figsize=(SIZE[0], 1.0 + 0.5 * len(values)), dpi=DPI, facecolor="white", layout="constrained")
    axes = _styled(figure.subplots(), shown_word(titled(title, unit)), "")
    for y, (sample, colour) in enumerate(zip(values.values(), colours, strict=True)):
        known = sample[np.isfinite(sample)]
        line = {"color": colour, "lw": 1.3}
        axes.boxplot([known], positions=[y], orientation="horizontal", widths=0.5, showfliers=False, boxprops=line,
                     whiskerprops=line, capprops=line, medianprops={"color": colour, "lw": 2.4})
        offsets = 0.2 * np.sin(2.4 * np.arange(len(known)))  # apart, and the same in every picture
        axes.plot(known, y + offsets, ".", ms=4, color=colour, alpha=0.45, mew=0)
    axes.set(ylim=(len(values) - 0.5, -0.5), yticks=range(len(values)),
             yticklabels=[shown_word(name, 24) for name in values])
    axes.grid(axis="y", visible=False)
    return figure


def confusion_chart(counts: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Counts [K,K] of cases by true class (row) and predicted class, tinted by their share of the true class."""
    size = 2.2 + 0.5 * len(names)
    figure = Figure(figsize=(size, size), dpi=DPI, facecolor="white", layout="constrained")
    axes = _styled(figure.subplots(), "predicted", "true")
    total = counts.sum(1, keepdims=True)
    shares = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        axes.text(column, row, f"{counts[row, column]:g}", ha="center", va="center", fontsize=8,
                  color="white" if shares[row, column] > 0.55 else INK)
    labels = [shown_word(name, 20) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), labels)
    axes.set_title(shown_word(title, 36), fontsize=9, color=INK)
    axes.grid(visible=False)
    return figure


def roc_chart(curves: dict[str, list[np.ndarray]], colours: Sequence[str], title: str) -> Figure:
    """ROC curves [2,M] of every row by name, one for each of its runs."""
    figure, axes = chart("share of others taken for it", f"share of {title} found")
    axes.plot([0, 1], [0, 1], color=GRID, lw=1.2, zorder=0)
    for (name, runs), colour in zip(curves.items(), colours, strict=True):
        for i, curve in enumerate(runs):
            axes.plot(*curve, color=colour, lw=1.4, label=shown_word(name, 44) if i == 0 else None)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    figure.set_size_inches(SIZE[0], SIZE[0] + 0.2 * len(curves))
    legend(figure, columns=1)
    return figure
