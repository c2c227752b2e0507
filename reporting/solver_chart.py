"""How good samplers are against what they cost."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from edm3d.reporting.charts import chart, legend


def solver_chart(rows: Sequence[Mapping]) -> Figure:
    """A line for each sampler over calls of the network: its distance to real volumes above the band that real ones
    fill among themselves, or, where there are none, its error. Rows: those of inference.solvers.Tried.
    """
    key = "distance" if any(row["distance"] is not None for row in rows) else "error"
    what = "Frechet distance to real" if key == "distance" else "off the exact solution (rms, relative)"
    figure, axes = chart("calls of the network per volume", what)
    known = [row for row in rows if row[key] is not None]
    for name in dict.fromkeys(row["sampler"] for row in known):
        points = sorted((row["calls"], row[key]) for row in known if row["sampler"] == name)
        axes.plot(*zip(*points, strict=True), marker="o", ms=4, lw=1.6, label=name)
    if key == "distance":
        axes.axhspan(0, known[0]["floor_p95"], color="#dfe5ea", zorder=0, label="real to real, to 95 %")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    if known and min(row[key] for row in known) > 0:
        axes.set_yscale("log")
    legend(figure)
    return figure
