"""Distances of sets of features beside what real against real comes to, at one number of volumes."""

from collections.abc import Iterator, Mapping
from math import ceil
from typing import Any, NamedTuple

import numpy as np

from edm3d.metrics.frechet import frechet_distance, resampled_frechet
from edm3d.metrics.kernel_distance import (
    Grams,
    about_common_mean,
    cubic_kernel,
    gaussian_kernel,
    gram,
    median_bandwidth,
    mmd2,
)
from edm3d.metrics.prdc import NEAREST, Prdc, distances, prdc_items, radii
from edm3d.reporting.section import missing

EXTRAPOLATED = "frechet_extrapolated"
DISTANCES, SHARES = ("frechet", EXTRAPOLATED, "kid", "mmd"), Prdc._fields
METRICS = (*DISTANCES, *SHARES)
MOST = 2048  # volumes of a set between all of which kernels and distances are taken
DRAWS, FEWEST_DRAWS = 100, 20
SPLITS, FEWEST_SPLITS = 10, 5  # of both sets into halves
FEWEST_HALVED = 4  # volumes of a set
PER_FEATURE = 1.5  # volumes, fewer of which add what is not about inverse to their number
RESAMPLES = 1000  # of intervals that cost little
BESIDE = ("noise", "train")  # sets that stand beside real and generated ones, where they are
LEVELS = {"floor_median": 0.5, "floor_p95": 0.95, "floor_p99": 0.99}
Values = dict[str, float | None]


class HeldAgainst(NamedTuple):
    """Features of one set: all rows [N*group,d] float64, rows of one volume together; of at most MOST volumes `used`,
    evenly spaced, those that kernels are taken of [n*group,d] and one row of each volume [n,d], of slices in turn.
    """

    rows: np.ndarray
    group: int
    used: np.ndarray
    ones: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, group: int) -> "HeldAgainst":
        """Those of a set."""
        rows = np.asarray(features, np.float64)
        volumes = rows.reshape(-1, group, rows.shape[1])
        chosen = np.linspace(0, len(volumes) - 1, min(len(volumes), MOST)).round().astype(int)
        used = rows if len(chosen) == len(volumes) else volumes[chosen].reshape(-1, rows.shape[1])
        return cls(rows, group, used, volumes[chosen, chosen % group])

    @property
    def num(self) -> int:
        """Volumes."""
        return len(self.rows) // self.group

    def taken(self, volumes: np.ndarray) -> np.ndarray:
        """Rows [k*group,d] of some of all volumes."""
        return self.rows.reshape(self.num, self.group, -1)[volumes].reshape(len(volumes) * self.group, -1)

    def some(self, volumes: np.ndarray) -> np.ndarray:
        """Rows [k*group,d] of some of the volumes that are used."""
        return self.used.reshape(-1, self.group, self.used.shape[1])[volumes].reshape(-1, self.used.shape[1])


class Matrices(NamedTuple):
    """Kernels and distances [n,m] between the volumes of two sets."""

    cubic: np.ndarray
    gaussian: np.ndarray | None
    apart: np.ndarray

    @classmethod
    def of(cls, a: HeldAgainst, b: HeldAgainst, bandwidth: float) -> "Matrices":
        """All of them; none with a Gaussian kernel of no width."""
        return cls(gram(a.used, b.used, cubic_kernel, a.group),
                   gram(a.used, b.used, gaussian_kernel(bandwidth), a.group) if bandwidth else None,
                   distances(a.ones, b.ones))

    def some(self, rows: np.ndarray, columns: np.ndarray) -> "Matrices":
        """Those of some volumes."""
        index = np.ix_(rows, columns)
        return Matrices(*(None if each is None else each[index] for each in self))


class SetPair(NamedTuple):
    """Real volumes and others, and the matrices within and between them."""

    real: HeldAgainst
    other: HeldAgainst
    within: Matrices
    across: Matrices
    others: Matrices

    @classmethod
    def of(cls, real: HeldAgainst, within: Matrices, other: HeldAgainst, bandwidth: float) -> "SetPair":
        """Of real volumes, whose own matrices are there already."""
        return cls(real, other, within, Matrices.of(real, other, bandwidth), Matrices.of(other, other, bandwidth))

    @property
    def lengths(self) -> tuple[int, int]:
        """Volumes that are used of each."""
        return self.across.cubic.shape

    def measure(self, rows: np.ndarray, columns: np.ndarray, frechet: bool) -> Values:
        """Every metric of some real volumes and some others."""
        found = measured(self.within.some(rows, rows), self.across.some(rows, columns),
                         self.others.some(columns, columns))
        if frechet:
            found["frechet"] = resampled_frechet(self.real.some(rows), self.other.some(columns))
        return found


def measured(within: Matrices, across: Matrices, others: Matrices) -> Values:
    """Every metric but the Frechet distances, of the matrices within two sets and between them."""
    found: Values = dict.fromkeys(METRICS)
    least = min(across.cubic.shape)
    if least >= 2:
        found["kid"] = float(mmd2(Grams(within.cubic, across.cubic, others.cubic))[0])
        if within.gaussian is not None:
            found["mmd"] = float(mmd2(Grams(within.gaussian, across.gaussian, others.gaussian))[0])
    if least > NEAREST:
        found |= prdc_items(radii(within.apart), across.apart, radii(others.apart)).means()
    return found


def draws_of(num: int, width: int) -> int:
    """How many resamples of `num` rows are drawn, so that wide features and many rows take no longer than others."""
    least = min(num, width)
    return int(np.clip(DRAWS * 4.8e8 / (num * width * least + 10 * least**3), FEWEST_DRAWS, DRAWS))


def halves(length: int, num: int, draws: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Two sets of `num` volumes of one of `length`, without a common one."""
    for _ in range(draws):
        both = rng.permutation(length)[:2 * num]
        yield both[:num], both[num:]


def subsets(pair: SetPair, num: int, draws: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Sets of `num` volumes of each side."""
    for _ in range(draws):
        yield tuple(rng.permutation(length)[:num] for length in pair.lengths)


def quantiles(found: list[Values], levels: Mapping[str, float]) -> dict[str, Values]:
    """Points of every metric over draws, by name of the point: of shares, that so many draws reach or surpass."""
    out = {key: dict.fromkeys(METRICS) for key in levels}
    for metric in METRICS:
        values = [draw[metric] for draw in found if draw[metric] is not None]
        for key, level in levels.items():
            if values:
                out[key][metric] = float(np.quantile(values, 1 - level if metric in SHARES else level))
    return out


class Whole(NamedTuple):
    """Metrics of all volumes, and the ends of their 95 % intervals."""

    value: Values
    low: Values
    high: Values


def whole(pair: SetPair, frechet: bool, rng: np.random.Generator) -> Whole:
    """Metrics of two whole sets.

    Intervals by resampling the volumes of both sets with replacement. The Frechet distance has none: few volumes push
    it up by more than it varies. That of unlimited volumes (see extrapolated_frechet) has; repeats push up the draws,
    which are moved so that their median is the value. Of precision to coverage the balls stay, and what is held to lie
    in them is resampled.
    """
    low, high = (dict.fromkeys(METRICS) for _ in range(2))
    values = measured(pair.within, pair.across, pair.others)
    if frechet:
        values["frechet"] = frechet_distance(pair.real.rows, pair.other.rows)
    if frechet and min(pair.real.num, pair.other.num) >= fewest_extrapolated(pair.real.rows.shape[1]):
        count = draws_of(max(len(pair.real.rows), len(pair.other.rows)), pair.real.rows.shape[1])
        draws = np.array([resampled_frechet(*(held.taken(rng.integers(held.num, size=held.num))
                                              for held in (pair.real, pair.other))) for _ in range(count)])
        splits = max(FEWEST_SPLITS, count * SPLITS // DRAWS)
        values[EXTRAPOLATED] = far = extrapolated_frechet(pair, values["frechet"], splits, rng)
        low[EXTRAPOLATED], high[EXTRAPOLATED] = (float(end) for end in np.quantile(draws, (0.025, 0.975))
                                                 - np.median(draws) + far)
    weights = tuple(rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64) for n in pair.lengths)
    spread: dict[str, np.ndarray] = {}
    if values["kid"] is not None:
        cubic = Grams(pair.within.cubic, pair.across.cubic, pair.others.cubic)
        spread["kid"] = mmd2(about_common_mean(cubic), *weights)
    if values["mmd"] is not None:
        spread["mmd"] = mmd2(about_common_mean(
            Grams(pair.within.gaussian, pair.across.gaussian, pair.others.gaussian)), *weights)
    if values["precision"] is not None:
        items = prdc_items(radii(pair.within.apart), pair.across.apart, radii(pair.others.apart))
        for metric, each in items._asdict().items():
            counted = weights[0] if len(each) == pair.lengths[0] and metric in ("recall", "coverage") else weights[1]
            spread[metric] = counted @ each / len(each)
    for metric, drawn in spread.items():
        low[metric], high[metric] = (float(end) for end in np.nanquantile(drawn, (0.025, 0.975)))
    return Whole(values, low, high)


def fewest_extrapolated(width: int) -> int:
    """Volumes of a set from which on its Frechet distance goes as their number does, and has an interval that holds."""
    return max(FEWEST_HALVED, ceil(PER_FEATURE * width))


def extrapolated_frechet(pair: SetPair, value: float, splits: int, rng: np.random.Generator) -> float:
    """The Frechet distance that unlimited volumes would come to, of that of all volumes; may be below 0 for equal laws.

    What few volumes add is about inverse to their number (Chong and Forsyth 2020): 2 value - that of halves, the mean
    over splits of both sets into two halves.
    """
    found = []
    for _ in range(splits):
        both = [(held, rng.permutation(held.num), held.num // 2) for held in (pair.real, pair.other)]
        found += [resampled_frechet(*(held.taken(order[:half]) for held, order, half in both)),
                  resampled_frechet(*(held.taken(order[half:2 * half]) for held, order, half in both))]
    return float(2 * value - np.mean(found))


def compare_view(sets: Mapping[str, np.ndarray], group: int, min_samples: int, seed: int) -> dict[str, Any]:
    """What is said of one view: of sets real, generated and, where they are, noise and train; group: rows per volume.

    What stands beside the values is of `at` volumes of each side, which half of the real set has; of noise and training
    volumes of as many as there are, if fewer.
    """
    rng = np.random.default_rng(seed)
    held = {name: HeldAgainst.of(features, group) for name, features in sets.items()}
    real, bandwidth = held["real"], median_bandwidth(held["real"].ones)
    frechet = min(real.num, held["generated"].num) >= max(2, min_samples)
    within = Matrices.of(real, real, bandwidth)
    pair = SetPair.of(real, within, held["generated"], bandwidth)
    at = min(len(real.ones) // 2, len(pair.other.ones))
    draws = draws_of(at * group, real.rows.shape[1])
    both_real = SetPair(real, real, within, within, within)
    columns = {**whole(pair, frechet, rng)._asdict(),
               **quantiles([both_real.measure(*rows, frechet and at > 1)
                            for rows in halves(len(real.ones), at, draws, rng)], LEVELS),
               "matched": middle(pair, at, draws // 4, frechet, rng)}
    numbers = dict.fromkeys(BESIDE)
    for name in (name for name in BESIDE if name in held):
        numbers[name] = min(at, len(held[name].ones))
        other = SetPair.of(real, within, held[name], bandwidth)
        columns[name] = middle(other, numbers[name], draws // 4, frechet, rng)
    said = {metric: {"available": True, **dict.fromkeys(BESIDE),
                     **{key: each[metric] for key, each in columns.items()}}
            if columns["value"][metric] is not None else missing(why_not(metric, held, min_samples))
            for metric in METRICS}
    return {"num": {name: each.num for name, each in held.items()}, "rows_per_volume": group, "at": at,
            **{f"at_{name}": number for name, number in numbers.items()}, "draws": draws, "bandwidth": bandwidth,
            **said}


def why_not(metric: str, held: Mapping[str, HeldAgainst], min_samples: int) -> str:
    """The reason why there is no such number of the two sets."""
    real, generated = held["real"].num, held["generated"].num
    if min(real, generated) < 2:
        return f"{generated} generated and {real} real volumes: wanted two or more of each"
    if metric == EXTRAPOLATED and min(real, generated) >= max(2, min_samples):
        width = held["real"].rows.shape[1]
        return (f"{generated} generated and {real} real volumes of {width} features: wanted "
                f"{fewest_extrapolated(width)} or more of each, since what fewer add to the distance does not halve "
                "where they double")
    if metric in ("frechet", EXTRAPOLATED):
        return (f"{generated} generated and {real} real volumes: fewer than {min_samples} of a set (--min-samples) "
                "bias it; see the kernel distance, which is unbiased")
    if metric == "mmd":
        return "half of the pairs of real volumes have equal features: the kernel has no width"
    return f"{generated} generated and {real} real volumes: wanted more than {NEAREST} of each"


def middle(pair: SetPair, at: int, draws: int, frechet: bool, rng: np.random.Generator) -> Values:
    """The median of every metric over draws of `at` volumes of each side."""
    found = [pair.measure(*rows, frechet and at > 1) for rows in subsets(pair, at, max(draws, 5), rng)]
    return quantiles(found, {"median": 0.5})["median"]
