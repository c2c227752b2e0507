"""How often the report's 95 % intervals of extrapolated Frechet distance and KID hold the truth of two normals.

Features of a spectrum as ours have, power 1 / k of the k-th direction, in a random basis. The second law is moved and
stretched: its true Frechet distance is `apart` of the variance of the first, half by the mean, half by the stretch.
Both truths are closed forms. `--apart 0`: of equal laws. One line of JSON for each number of volumes: how many of the
intervals hold the truth, lie above and below it, and the medians of values and ends, beside the truth. Run from the
checkout's top: python -m benchmarks.intervals [--width 64] [--apart 0.05] [--draws 200] [--nums 64 256 1000] [--seed 0]
"""

import argparse
from typing import NamedTuple

import numpy as np

from benchmarks.common import json_line
from edm3d.metrics.kernel_distance import median_bandwidth
from edm3d.reporting import feature_measures
from edm3d.reporting.feature_measures import EXTRAPOLATED, HeldAgainst, Matrices, SetPair, whole


class Law(NamedTuple):
    """A normal distribution: mean [d], and standard deviations [d] of independent directions."""

    mean: np.ndarray
    std: np.ndarray

    def draw(self, num: int, basis: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Features [num,d] in a basis [d,d]."""
        return (self.mean + self.std * rng.standard_normal((num, len(self.mean)))) @ basis


def laws(width: int, apart: float) -> tuple[Law, Law]:
    """Two laws whose Frechet distance is a share of the variance of the first."""
    std = 1 / np.sqrt(np.arange(1, width + 1))
    total = np.square(std).sum()
    mean = np.sqrt(apart / 2 * total / width) * np.ones(width)
    return Law(np.zeros(width), std), Law(mean, std * (1 + np.sqrt(apart / 2)))


def frechet_of(a: Law, b: Law) -> float:
    """Of two laws of common directions."""
    return float(np.square(a.mean - b.mean).sum() + np.square(a.std - b.std).sum())


def cubic_mean(a: Law, b: Law) -> float:
    """The mean of (x y / d + 1)^3 over independent x of a and y of b."""
    d, p, q = len(a.mean), np.square(a.std), np.square(b.std)
    one = a.mean @ b.mean
    two = one**2 + p @ q + a.mean**2 @ q + b.mean**2 @ p
    three = one**3 + 3 * one * (a.mean**2 @ q + b.mean**2 @ p + p @ q) + 6 * (p * q) @ (a.mean * b.mean)
    return float(1 + 3 * one / d + 3 * two / d**2 + three / d**3)


def kid_of(a: Law, b: Law) -> float:
    """The KID of two laws."""
    return cubic_mean(a, a) + cubic_mean(b, b) - 2 * cubic_mean(a, b)


def measured(a: Law, b: Law, num: int, seed: int) -> dict[str, tuple[float, float, float]]:
    """Value and interval of each distance, of sets of `num` drawn of both laws."""
    rng = np.random.default_rng([seed, num])
    basis = np.linalg.qr(rng.standard_normal((len(a.mean),) * 2))[0]
    real, other = (HeldAgainst.of(law.draw(num, basis, rng), 1) for law in (a, b))
    bandwidth = median_bandwidth(real.ones)
    found = whole(SetPair.of(real, Matrices.of(real, real, bandwidth), other, bandwidth), True, rng)
    return {name: (found.value[name], found.low[name], found.high[name]) for name in (EXTRAPOLATED, "kid")} | \
        {"frechet": (found.value["frechet"],) * 3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 64), ("draws", 200), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--apart", type=float, default=0.05)
    parser.add_argument("--nums", type=int, nargs="+", default=[64, 256, 1000])
    asked = parser.parse_args()
    feature_measures.PER_FEATURE = 0  # also where a report has no extrapolated distance
    a, b = laws(asked.width, asked.apart)
    truths = {EXTRAPOLATED: frechet_of(a, b), "kid": kid_of(a, b)}
    for num in asked.nums:
        rows = [measured(a, b, num, 1000 * asked.seed + draw) for draw in range(asked.draws)]
        said: dict[str, float] = {"frechet_value": float(np.median([row["frechet"][0] for row in rows]))}
        for name, truth in truths.items():
            value, low, high = np.array([row[name] for row in rows]).T
            said |= {f"{name}_held": int(((low <= truth) & (truth <= high)).sum()),
                     f"{name}_above": int((low > truth).sum()), f"{name}_below": int((high < truth).sum()),
                     f"{name}_truth": truth, f"{name}_value": float(np.median(value)),
                     f"{name}_low": float(np.median(low)), f"{name}_high": float(np.median(high))}
        print(json_line(f"95 % intervals of {num} against {num} features hold the truth", num=num, width=asked.width,
                        apart=asked.apart, draws=asked.draws, limit=0.9 * asked.draws, **said), flush=True)


if __name__ == "__main__":
    main()
