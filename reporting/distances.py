"""How far two sets are apart, and how far two sets of one distribution would be."""

from collections.abc import Callable

import numpy as np
from scipy import stats

from edm3d.metrics import distribution

FLOOR_LEVELS = {"floor_median": 0.5, "floor_p95": 0.95, "floor_p99": 0.99}
RESAMPLINGS = 500


def ks(real: np.ndarray, other: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance in which undefined values (NaN) count as one value above all others."""
    beyond = np.nanmax(np.concatenate([real, other, [0.0]])) + 1.0
    return float(distribution.ks_distance(np.nan_to_num(real, nan=beyond), np.nan_to_num(other, nan=beyond)))


def ks_floors(num_real: int, num_generated: int) -> dict[str, float]:
    """Points of the KS distance between two samples of one distribution."""
    return {key: distribution.ks_floor(num_generated, num_real, level) for key, level in FLOOR_LEVELS.items()}


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


def radial_log_power(volume: np.ndarray) -> np.ndarray:
    """Log10 power [K] of a volume [*S] in shells of equal frequency, from 1 cycle per shortest side up to Nyquist.

    The mean is taken off and a Hann window applied, so that borders do not leak into high frequencies.
    """
    values = np.asarray(volume, dtype=np.float64) - np.mean(volume)
    for axis, size in enumerate(values.shape):
        window = np.hanning(size + 2)[1:-1]
        values = values * window.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    power = np.abs(np.fft.fftn(values)) ** 2 / values.size
    shortest = min(values.shape)
    grids = np.meshgrid(*[np.fft.fftfreq(size) * shortest for size in values.shape], indexing="ij", sparse=True)
    shell = np.rint(np.sqrt(sum(grid**2 for grid in grids))).astype(int).ravel()
    last = shortest // 2
    inside = shell <= last
    total = np.bincount(shell[inside], weights=power.ravel()[inside], minlength=last + 1)[1:]
    count = np.bincount(shell[inside], minlength=last + 1)[1:]
    return np.log10(np.maximum(total / count, 1e-12))


def spectrum_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square over frequencies of the difference of two mean log powers [K], in dB."""
    return float(10 * np.sqrt(np.mean((a - b) ** 2)))
