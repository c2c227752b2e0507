"""Real against generated: distances beside their floor and beside the noise yardstick, as dicts, text and CSV."""

import csv
import io
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from metrics import distribution, image
from reporting.features import Layout, Measured, intensity_bins, scalar_units

FLOOR_LEVELS = {"floor_median": 0.5, "floor_p95": 0.95, "floor_p99": 0.99}
RESAMPLINGS = 500
MS_SSIM_PAIRS = 128


def compare(real: Measured, generated: Measured, noise: Measured | None, layout: Layout, seed: int = 0) -> dict:
    """Every comparison of three measured sets: metrics, shares, intensity, spectrum (keys: see reporting.report)."""
    units = scalar_units(layout)
    floor = {key: distribution.ks_floor(len(generated), len(real), level) for key, level in FLOOR_LEVELS.items()}
    return {
        "metrics": {
            name: _scalar_row(real.scalars[name], generated.scalars[name], noise and noise.scalars[name], unit, floor)
            for name, unit in units.items()
        },
        "shares": {
            name: _share_row(real.flags[name], generated.flags[name], noise and noise.flags[name])
            for name in real.flags
        },
        "intensity": {
            channel: _histogram_row(real, generated, noise, i, layout, seed)
            for i, channel in enumerate(layout.channels)
        },
        "spectrum": {
            channel: _spectrum_row(real, generated, noise, i, seed) for i, channel in enumerate(layout.channels)
        },
    }


def ms_ssim_row(real: np.ndarray, generated: np.ndarray, seed: int = 0) -> tuple[dict, dict[str, np.ndarray]]:
    """MS-SSIM of random pairs within real and within generated volumes [N, 1, *S] in [0, 1]: a row, and the values."""
    if min(len(real), len(generated)) < 2:
        return {"available": False, "reason": "a set of fewer than two volumes has no pairs"}, {}
    scales = int(np.clip(np.log2(min(real.shape[2:]) / 7) + 1, 1, 3))  # the coarsest must hold a window of 7 voxels
    try:
        values = {name: image.ms_ssim_pairs(volumes, num_pairs=MS_SSIM_PAIRS, data_range=1.0, seed=seed, scales=scales)
                  for name, volumes in (("real", real), ("generated", generated))}
    except ValueError as error:  # volumes too small for the window and the scales
        return {"available": False, "reason": str(error)}, {}
    row = {"available": True, "volumes": len(generated), "pairs": len(values["generated"]), "scales": scales}
    for name, sample in values.items():
        row |= {f"{name}_mean": float(sample.mean()), f"{name}_std": float(sample.std())}
    return row | {"generated_max": float(values["generated"].max())}, values


def ks(real: np.ndarray, other: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance in which undefined values (NaN) count as one value above all others."""
    beyond = np.nanmax(np.concatenate([real, other, [0.0]])) + 1.0
    return float(distribution.ks_distance(np.nan_to_num(real, nan=beyond), np.nan_to_num(other, nan=beyond)))


def wilson_interval(successes: int, total: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share."""
    interval = stats.binomtest(successes, total).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def resampled_floor(statistic: Callable[[np.ndarray, np.ndarray], float], num_real: int, num_generated: int,
                    seed: int) -> dict[str, float]:
    """Points of statistic(rows_a, rows_b) for two bootstrap samples of the real set, num_real and num_generated."""
    rng = np.random.default_rng(seed)
    draws = [
        statistic(rng.integers(num_real, size=num_real), rng.integers(num_real, size=num_generated))
        for _ in range(RESAMPLINGS)
    ]
    return {key: float(np.quantile(draws, level)) for key, level in FLOOR_LEVELS.items()}


def text_table(comparison: dict) -> str:
    """The compact table for the terminal: one line per scalar, then shares and distances."""
    header = ("", "real", "generated", "KS", "floor p99", "noise")
    rows = [
        (_titled(name, row["unit"]), plus_minus(row, "real"), plus_minus(row, "generated"), number(row["ks"]),
         number(row["floor_p99"]), number(row["noise"]))
        for name, row in comparison["metrics"].items()
    ]
    rows += [
        (name, percent(row["real"]), percent(row["generated"]), "", "", percent(row["noise"]))
        for name, row in comparison["shares"].items()
    ]
    for title, key in (("histogram distance", "intensity"), ("spectrum distance [dB]", "spectrum")):
        rows += [
            (f"{title}, {channel}", "", "", number(row["distance"]), number(row["floor_p99"]), number(row["noise"]))
            for channel, row in comparison[key].items()
        ]
    rows += [
        (f"MS-SSIM of pairs, {channel}", plus_minus(row, "real"), plus_minus(row, "generated"), "", "", "")
        for channel, row in comparison.get("ms_ssim", {}).items() if row["available"]
    ]
    return _aligned([header, *rows])


def cases_csv(sets: dict[str, Measured], seeds: Sequence[int]) -> str:
    """CSV text, one row per case of every set; seeds belong to the rows of the set called 'generated'."""
    first = next(iter(sets.values()))
    names, flags = list(first.scalars), list(first.flags)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["set", "id", "seed", *names, *flags])
    for set_name, measured in sets.items():
        for i, case_id in enumerate(measured.ids):
            values = [f"{measured.scalars[name][i]:.6g}" for name in names]
            marks = [int(measured.flags[name][i]) for name in flags]
            writer.writerow([set_name, case_id, seeds[i] if set_name == "generated" else "", *values, *marks])
    return out.getvalue()


def number(value: float | None, digits: int = 3) -> str:
    """A figure of a table, a dash when there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def percent(share: float | None) -> str:
    """A share as a percentage."""
    return "-" if share is None else f"{100 * share:.1f} %"


def plus_minus(row: dict, key: str) -> str:
    """Mean and standard deviation of one set of a row, with about three figures."""
    mean, std = row[f"{key}_mean"], row[f"{key}_std"]
    if mean is None:
        return "-"
    size = max(abs(mean), std)
    digits = int(np.clip(2 - np.floor(np.log10(size)), 0, 4)) if size else 0
    return f"{mean:.{digits}f} ± {std:.{digits}f}"


def _titled(name: str, unit: str) -> str:
    return f"{name} [{unit}]" if unit else name


def _aligned(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
             for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _scalar_row(real: np.ndarray, generated: np.ndarray, noise: np.ndarray | None, unit: str,
                floor: dict[str, float]) -> dict:
    row: dict = {"unit": unit}
    for name, values in (("real", real), ("generated", generated), ("noise", noise)):
        row.update(_moments(name, values))
    row["ks"] = ks(real, generated)
    return row | floor | {"noise": None if noise is None else ks(real, noise)}


def _moments(name: str, values: np.ndarray | None) -> dict[str, float | int | None]:
    defined = values[np.isfinite(values)] if values is not None else np.empty(0)
    return {
        f"{name}_mean": float(defined.mean()) if len(defined) else None,
        f"{name}_std": float(defined.std()) if len(defined) else None,
        f"{name}_undefined": None if values is None else len(values) - len(defined),
    }


def _share_row(real: np.ndarray, generated: np.ndarray, noise: np.ndarray | None) -> dict:
    low, high = wilson_interval(int(generated.sum()), len(generated))
    return {
        "real": float(real.mean()), "generated": float(generated.mean()), "generated_low": low, "generated_high": high,
        "noise": None if noise is None else float(noise.mean()),
    }


def _histogram_row(real: Measured, generated: Measured, noise: Measured | None, channel: int, layout: Layout,
                   seed: int) -> dict:
    """Wasserstein-1 distance between mean histograms as a share of the intensity range."""
    rows = real.histograms[:, channel]

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(np.cumsum(a.mean(0) - b.mean(0))).mean())

    edges = intensity_bins(layout)
    return {
        "distance": distance(rows, generated.histograms[:, channel]),
        **resampled_floor(lambda i, j: distance(rows[i], rows[j]), len(real), len(generated), seed),
        "noise": None if noise is None else distance(rows, noise.histograms[:, channel]),
        "bins": [float(edge) for edge in edges],
        **_curves(real, generated, noise, "histograms", channel),
    }


def _spectrum_row(real: Measured, generated: Measured, noise: Measured | None, channel: int, seed: int) -> dict:
    """Root mean square over frequencies of the difference in mean log power, in dB."""
    rows = real.spectra[:, channel]

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(10 * np.sqrt(np.mean((a.mean(0) - b.mean(0)) ** 2)))

    return {
        "distance": distance(rows, generated.spectra[:, channel]),
        **resampled_floor(lambda i, j: distance(rows[i], rows[j]), len(real), len(generated), seed),
        "noise": None if noise is None else distance(rows, noise.spectra[:, channel]),
        **_curves(real, generated, noise, "spectra", channel),
    }


def _curves(real: Measured, generated: Measured, noise: Measured | None, name: str, channel: int) -> dict:
    sets = {"real": real, "generated": generated, "noise": noise}
    return {
        f"{key}_curve": None if measured is None else [float(v) for v in getattr(measured, name)[:, channel].mean(0)]
        for key, measured in sets.items()
    }
