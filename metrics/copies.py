"""How near a volume is to the nearest of others, however it was flipped, shifted or scaled on its way.

Volumes are compared by what tells them apart. Their cosine transform is divided by the power that volumes of the
reference set have at each frequency (a noise floor added, so that what is weaker than it counts little), the mean
volume is taken off with the gain that fits best, and what is left is correlated: 1 for a copy, whatever its gain and
offset. That is done over three bands of frequency, of which a copy may keep but one: a smoothed copy has lost the high
ones, and noise hides them.

The search goes over all flips and shifts on a grid of at most COARSE numbers, by one matrix product of all moved
versions of a volume and all of the reference set; the best are held against it again on a grid of at most MIDDLE
numbers, and the best of these on one of at most FINE. So N volumes against M take O(N M) operations, 2 COARSE for each
pair and move, and memory of M (COARSE + 2 MIDDLE) numbers.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import product
from math import ceil, prod
from typing import NamedTuple

import numpy as np
from scipy import fft, ndimage, stats

COARSE, MIDDLE, FINE = 512, 4096, 65536  # numbers of a volume, at most
BANDS = (1.0, 0.5, 0.25)  # of the finest grid, shares of its highest frequency up to which each goes
BANDS_OF = ((1.0,), (1.0, 0.5), BANDS)
FLOOR = 0.02  # of the intensity range, standard deviation of noise below which nothing counts
CANDIDATES = (16, 4)  # that are held again on the next grid
LEVEL = 0.01
CALIBRATED, RARE, LEAST = 128, 0.05, 0.05  # see Reference.calibrate
REACH = 2  # voxels


class AxisMove(NamedTuple):
    """What is done to a volume: axes that are flipped, then voxels by which it is shifted along each axis."""

    flips: tuple[bool, ...]
    shifts: tuple[int, ...]


class Nearest(NamedTuple):
    """The nearest volume of a reference set: its index, the move that takes the volume there, the distance, and the
    correlation in each of BANDS.
    """

    index: int
    move: AxisMove
    distance: float
    correlations: tuple[float, ...]


def moved(image: np.ndarray, move: AxisMove) -> np.ndarray:
    """An image [C,*S] flipped, then shifted; what comes in over an edge has the values at the edge."""
    flipped = _flipped(image, move.flips)
    if not any(move.shifts):
        return flipped
    reach = max(map(abs, move.shifts))
    return _shifted(np.pad(flipped, [(0, 0)] + [(reach, reach)] * len(move.shifts), mode="edge"), move.shifts, reach)


def moved_back(image: np.ndarray, move: AxisMove) -> np.ndarray:
    """An image [C,*S] brought back from where a move took it."""
    back = moved(image, AxisMove((False,) * len(move.flips), tuple(-s for s in move.shifts)))
    return _flipped(back, move.flips)


class SearchGrid:
    """Volumes [C,*S] on a grid of at most so many numbers: blurred, every factor-th voxel."""

    def __init__(self, shape: Sequence[int], most: int):
        channels, *sizes = shape
        self.factor = 1
        while channels * prod(ceil(size / self.factor) for size in sizes) > most and self.factor < max(sizes):
            self.factor += 1
        self.sigma = 0.5 * self.factor if self.factor > 1 else 0.0
        self.shape = (channels, *(len(range(self.first, size, self.factor)) for size in sizes))

    @property
    def first(self) -> int:
        """The first voxel that is taken, so that the taken ones lie in the middle."""
        return (self.factor - 1) // 2

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The waves [C,K] of an image [C,*S]."""
        return self.waves(self.taken(self.blurred(np.asarray(image, np.float32))))

    def blurred(self, image: np.ndarray) -> np.ndarray:
        """The image, blurred as it must be before voxels are left out."""
        return ndimage.gaussian_filter(image, (0, *[self.sigma] * (image.ndim - 1)), mode="nearest") \
            if self.sigma else image

    def taken(self, blurred: np.ndarray) -> np.ndarray:
        """Every factor-th voxel of [...,*S]."""
        return blurred[(..., *[slice(self.first, None, self.factor)] * (len(self.shape) - 1))]

    def waves(self, taken: np.ndarray) -> np.ndarray:
        """Cosine transform [...,C,*s], flat [...,C,K]."""
        axes = tuple(range(-(len(self.shape) - 1), 0))
        found = fft.dctn(taken, axes=axes, norm="ortho", overwrite_x=False)
        return found.reshape(*found.shape[:-len(axes)], -1)

    def frequencies(self) -> np.ndarray:
        """Of each wave [K], 1 for the highest along an axis."""
        sizes = self.shape[1:]
        grids = np.meshgrid(*[np.arange(n) / max(n - 1, 1) for n in sizes], indexing="ij", sparse=True)
        return np.sqrt(sum(grid**2 for grid in grids)).ravel()

    def floor(self, std: float) -> float:
        """Power that white noise of a standard deviation has in each wave, after blurring."""
        if not self.sigma:
            return std**2
        kernel = ndimage.gaussian_filter1d(np.eye(1, 8 * self.factor + 9, 4 * self.factor + 4)[0], self.sigma)
        return std**2 * float(kernel @ kernel) ** (len(self.shape) - 1)


class BandMoments:
    """Mean and power of the waves of volumes, one after another."""

    def __init__(self, shape: tuple[int, ...]):
        self.count, self.total, self.squares = 0, np.zeros(shape), np.zeros(shape)

    def add(self, waves: np.ndarray) -> None:
        """One volume [C,K]."""
        self.count, self.total, self.squares = self.count + 1, self.total + waves, self.squares + waves.astype(float)**2


class Whitening:
    """What tells volumes apart, as unit vectors [..., sum of the bands' waves], from waves [...,C,K]."""

    def __init__(self, grid: SearchGrid, moments: BandMoments, floor: float, bands: Sequence[float]):
        frequencies, mean = grid.frequencies(), moments.total / moments.count
        power = np.maximum(moments.squares / moments.count - mean**2, 0)
        self.gain = (1 / np.sqrt(np.stack([_by_ring(row, frequencies, min(grid.shape[1:])) for row in power])
                                 + max(grid.floor(floor), np.finfo(float).tiny))).astype(np.float32)
        self.gain[:, 0] = 0  # the offset of each channel
        self.bands = [np.flatnonzero(frequencies <= share) if share < 1 else np.arange(len(frequencies))
                      for share in bands]
        self.means = [_unit((mean * self.gain)[:, band]).astype(np.float32) for band in self.bands]

    def __call__(self, waves: np.ndarray) -> list[np.ndarray]:
        """Of each band [...,C*K'], zero for what has nothing of its own there."""
        whole, found = waves * self.gain, []
        for band, mean in zip(self.bands, self.means, strict=True):
            part = whole if len(band) == whole.shape[-1] else whole[..., band]
            own = part - (part * mean).sum(-1, keepdims=True) * mean
            size, before = (np.sqrt((x**2).sum((-2, -1), keepdims=True)) for x in (own, part))
            own = np.divide(own, size, out=np.zeros_like(own), where=size > 1e-3 * before)
            found.append(own.reshape(*own.shape[:-2], -1))
        return found


class Reference:
    """Volumes that others are held against, by number: read(i) -> [C,*S].

    scale: of the intensities, their range. like: another set that says what is usual, None: itself. ValueError for
    fewer than 2 volumes where it is itself, for none, and for volumes that are all the same.
    """

    def __init__(self, read: Callable[[int], np.ndarray], count: int, scale: float, like: "Reference | None" = None,
                 progress: Callable[[Iterable[int]], Iterable[int]] = iter):
        if count < (2 if like is None else 1):
            raise ValueError(f"{count} volume(s) to hold others against, wanted 2 or more: of one alone it is not "
                             "known what is its own")
        self.read, self.count = read, count
        shape = read(0).shape
        self.grids = [SearchGrid(shape, most) for most in (COARSE, MIDDLE, FINE)] if like is None else like.grids
        waves: list[list[np.ndarray]] = [[], []]
        moments = [BandMoments((shape[0], prod(grid.shape[1:]))) for grid in self.grids]
        for i in progress(range(count)):
            found = [grid(read(i)) for grid in self.grids[:None if like is None else -1]]
            for rows, each in zip(waves, found):
                rows.append(each)
            for moment, each in zip(moments, found):
                moment.add(each)
        self.whitenings = [Whitening(*args) for args in zip(self.grids, moments, [FLOOR * scale] * 3, BANDS_OF)] \
            if like is None else like.whitenings
        self.features = [self.whitenings[k](np.stack(rows)) for k, rows in enumerate(waves)]
        if like is None and not any(band.any() for bands in self.features for band in bands):
            raise ValueError(f"all {count} volumes are the same: nothing tells one from another")
        step = 1 if self.grids[0].factor < 8 else REACH
        self.moves = [AxisMove(flips, shifts) for flips in product((False, True), repeat=len(shape) - 1)
                      for shifts in product(range(-REACH, REACH + 1, step), repeat=len(shape) - 1)]
        self.seen: dict[int, list[np.ndarray]] = {}
        self.rare = np.ones(len(BANDS)) if like is None else like.rare

    def calibrate(self, progress: Callable[[Iterable[int]], Iterable[int]] = iter) -> None:
        """Make distances of the bands alike: 1 is what RARE of its own volumes (CALIBRATED at most) have to their
        nearest, at least LEAST.
        """
        chosen = np.unique(np.linspace(0, self.count - 1, min(CALIBRATED, self.count)).astype(int))
        found = np.array([self.nearest(self.read(int(i)), {int(i)}).correlations for i in progress(chosen)])
        self.rare = np.maximum(np.quantile(1 - found, RARE, axis=0), LEAST)

    def __len__(self) -> int:
        return self.count

    def nearest(self, image: np.ndarray, without: Collection[int] = ()) -> Nearest:
        """The nearest volume to an image [C,*S], but for those of the numbers `without`."""
        blurred = [grid.blurred(np.asarray(image, np.float32)) for grid in self.grids]
        products = self.views(0, blurred, self.moves)[0] @ self.features[0][0].T
        closest = products.max(0)
        closest[list(without)] = -np.inf
        first = [int(i) for i in np.argsort(-closest, kind="stable")[:CANDIDATES[0]] if i not in without]
        moves = [self.moves[int(products[:, i].argmax())] for i in first]
        scores = sum((own * theirs[first]).sum(1)
                     for own, theirs in zip(self.views(1, blurred, moves), self.features[1]))
        best = np.argsort(-scores, kind="stable")[:CANDIDATES[1]]
        return min((self.held(blurred, first[k], moves[k]) for k in best), key=lambda each: each.distance)

    def views(self, number: int, blurred: Sequence[np.ndarray], moves: Sequence[AxisMove]) -> list[np.ndarray]:
        """What tells an image apart after moves, of each band of the grid of that number [M,C*K']; blurred: the image,
        as each grid wants it.
        """
        grid, padded = self.grids[number], {}
        for flips in {move.flips for move in moves}:
            padded[flips] = np.pad(_flipped(blurred[number], flips), [(0, 0)] + [(REACH, REACH)] * len(flips),
                                   mode="edge")
        taken = np.stack([grid.taken(_shifted(padded[flips], shifts, REACH)) for flips, shifts in moves])
        return self.whitenings[number](grid.waves(taken))

    def held(self, blurred: Sequence[np.ndarray], index: int, move: AxisMove) -> Nearest:
        """An image held against a volume after the best move near one, found on the middle grid, in all of BANDS."""
        near = [[s + d for d in (-1, 0, 1) if abs(s + d) <= REACH] for s in move.shifts]
        moves = [AxisMove(move.flips, shifts) for shifts in product(*near)]
        scores = sum(own @ theirs[index] for own, theirs in zip(self.views(1, blurred, moves), self.features[1]))
        move = moves[int(scores.argmax())]
        if index not in self.seen:
            theirs = self.whitenings[2](self.grids[2](self.read(index)))
            self.seen = {**dict(list(self.seen.items())[-63:]), index: theirs}
        mine = self.views(2, blurred, [move])
        found = np.array([own[0] @ their for own, their in zip(mine, self.seen[index], strict=True)], dtype=float)
        return Nearest(index, move, float(max(((1 - found) / self.rare).min(), 0)), tuple(found.tolist()))


class Threshold(NamedTuple):
    """A distance below which a share LEVEL of volumes that are no copies falls.

    num: how many of them it is from; rank: which of their distances it is, 1 the least; expected: the share of false
    alarms that it stands for, low and high: 95 % interval of what it may be.
    """

    value: float
    num: int
    rank: int
    expected: float
    low: float
    high: float


def threshold(distances: np.ndarray, level: float = LEVEL) -> Threshold:
    """From distances of volumes that are no copies: the largest of them below which at most `level` are expected.

    Of fewer than 1 / level - 1 volumes that is the least, and more false alarms than `level` are expected. (The true
    share below the k-th of n is Beta(k, n - k + 1).) ValueError for none.
    """
    count = len(distances)
    if not count:
        raise ValueError("no volumes that are no copies: nothing says which distances are usual")
    rank = max(1, int(level * (count + 1) + 1e-9))
    law = stats.beta(rank, count - rank + 1)
    low, high = (float(law.ppf(q)) for q in (0.025, 0.975))
    return Threshold(float(np.sort(distances)[rank - 1]), count, rank, rank / (count + 1), low, high)


def nearest_features(mine: np.ndarray, theirs: np.ndarray, scale: np.ndarray | None = None,
                     without: Sequence[Collection[int]] | None = None, at_once: int = 256
                     ) -> tuple[np.ndarray, np.ndarray]:
    """Index [N] of the nearest of features [M,d] to features [N,d], and the Euclidean distance, each feature in units
    of scale [d] (None: of its standard deviation among `theirs`). without: of each of N the numbers of those of M that
    it is not held against.
    """
    scale = theirs.std(0) if scale is None else scale
    centre = theirs.mean(0)
    unit = np.where(scale > 1e-6 * max(float(scale.max(initial=0)), 1e-30), scale, np.inf)
    a, b = ((np.asarray(each, np.float64) - centre) / unit for each in (mine, theirs))
    found, sizes = [], (b**2).sum(1)
    for start in range(0, len(a), at_once):
        part = a[start:start + at_once]
        squares = (part**2).sum(1)[:, None] + sizes - 2 * part @ b.T
        for row, numbers in zip(squares, without[start:start + at_once] if without else ()):
            row[list(numbers)] = np.inf
        index = squares.argmin(1)
        found.append((index, np.sqrt(((part - b[index])**2).sum(1))))
    index, distances = zip(*found, strict=True)
    return np.concatenate(index), np.concatenate(distances)


# ---- planted copies ----


def planted(kind: str, image: np.ndarray, rng: np.random.Generator, lo: float, hi: float) -> np.ndarray:
    """A copy of an image [C,*S] of a kind of PLANTED, within [lo,hi]."""
    if kind == MOVED:
        return moved(image, random_move(image.ndim - 1, rng))
    if kind == "noise":
        return np.clip(image + rng.normal(0, 0.05 * (hi - lo), image.shape), lo, hi).astype(np.float32)
    if kind == "gain":
        return np.clip(lo + (image - lo) * rng.uniform(0.8, 1.2), lo, hi).astype(np.float32)
    return image.copy()


def random_move(axes: int, rng: np.random.Generator) -> AxisMove:
    """A flip of one axis or more with a shift by up to REACH voxels along one or more."""
    flips: tuple[bool, ...] = (False,) * axes
    while not any(flips):
        flips = tuple(bool(bit) for bit in rng.integers(2, size=axes))
    shifts = (0,) * axes
    while not any(shifts):
        shifts = tuple(int(shift) for shift in rng.integers(-REACH, REACH + 1, size=axes))
    return AxisMove(flips, shifts)


MOVED = "flipped and shifted"
PLANTED = ("exact", MOVED, "noise", "gain")


# ---- pieces ----


def _flipped(image: np.ndarray, flips: Sequence[bool]) -> np.ndarray:
    return image[(slice(None), *(slice(None, None, -1 if flip else None) for flip in flips))]


def _shifted(padded: np.ndarray, shifts: Sequence[int], reach: int) -> np.ndarray:
    """Of a volume padded by `reach` on all sides, the volume shifted."""
    return padded[(slice(None), *(slice(reach - s, size - reach - s)
                                  for s, size in zip(shifts, padded.shape[1:], strict=True)))]


def _by_ring(power: np.ndarray, frequencies: np.ndarray, rings: int) -> np.ndarray:
    """The mean of values over waves of about one frequency, at each of them."""
    ring = np.rint(frequencies * rings).astype(int)
    sums, counts = np.bincount(ring, power), np.bincount(ring)
    return (sums / np.maximum(counts, 1))[ring]


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows [C,K] of length 1, or 0."""
    sizes = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, sizes, out=np.zeros_like(rows), where=sizes > 0)
