"""Which item comes next: the endless stream of indices over all ranks (not to be confused with samplers/)."""

from collections.abc import Iterator, Sequence, Sized
from itertools import count
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from edm3d.utils.checks import check_count

CHUNK = 2 ** 12  # swaps that are drawn at once


class InfiniteSampler(Sampler[int]):
    """Endless stream of indices into a dataset, one stream for all ranks, each rank taking every num_replicas-th.

    The order starts as one shuffle and is stirred after every position by a swap inside a trailing window of
    window_size times the dataset's length, so that no two passes are alike and no item is starved (Karras et al.
    2022, public behaviour of EDM's loader). start_idx continues the stream at a position (images seen so far), by the
    swaps of all before it: about 0.3 s per million images.
    """

    def __init__(self, dataset: Sized, rank: int = 0, num_replicas: int = 1, shuffle: bool = True, seed: int = 0,
                 window_size: float = 0.5, start_idx: int = 0):
        if len(dataset) < 1:
            raise ValueError("InfiniteSampler: the dataset is empty")
        if not 0 <= rank < num_replicas:
            raise ValueError(f"InfiniteSampler: rank={rank}, wanted 0..{num_replicas - 1}")
        if not 0 <= window_size <= 1:
            raise ValueError(f"InfiniteSampler: window_size={window_size}, wanted 0..1")
        check_count(0, {"InfiniteSampler: seed": seed, "InfiniteSampler: start_idx": start_idx})
        if seed >= 2 ** 32:
            raise ValueError(f"InfiniteSampler: seed={seed}, wanted 0..2^32 - 1")
        self.length, self.rank, self.num_replicas = len(dataset), rank, num_replicas
        self.shuffle, self.seed, self.window_size, self.start_idx = shuffle, seed, window_size, start_idx

    def __iter__(self) -> Iterator[int]:
        order, random = np.arange(self.length), np.random.RandomState(self.seed)
        if self.shuffle:
            random.shuffle(order)
        order = order.tolist()
        for position, (i, j) in enumerate(self.swaps(random)):
            if position >= self.start_idx and position % self.num_replicas == self.rank:
                yield order[i]
            order[i], order[j] = order[j], order[i]

    def swaps(self, random: np.random.RandomState) -> Iterator[tuple[int, int]]:
        """The place of every position of the stream in the order, and the one to swap it with after that."""
        window = int(np.rint(self.length * self.window_size)) if self.shuffle else 0
        for first in count(step=CHUNK):
            i = np.arange(first, first + CHUNK) % self.length
            back = random.randint(window, size=CHUNK) if window >= 2 else 0
            yield from zip(i.tolist(), ((i - back) % self.length).tolist(), strict=True)


class LogicalBatch(NamedTuple):
    """What a rank reads of one Poisson batch: the items of each round, and the number of the unit that each is of.

    Rows of a unit follow each other, over the ends of rounds too. Rounds may be empty, and there may be none.
    """

    items: list[list[int]]
    units: list[list[int]]


class PoissonSampler(Sampler[list[int]]):
    """Endless batches into which every unit enters independently with probability `rate`, for all ranks by one mask.

    units: the items of each unit of privacy, which enter together. Ranks take the chosen units in turn and read as many
    rounds as each other, of `most` rows at most; where one has fewer rows its last rounds are empty. repeats: rows for
    each item. seed: the same on all ranks, and a secret. The sampler itself gives the items of round after round.
    """

    def __init__(self, units: Sequence[Sequence[int]], rate: float, most: int, *, seed: int, rank: int = 0,
                 num_replicas: int = 1, repeats: int = 1):
        if not len(units):
            raise ValueError("PoissonSampler: there are no units to choose from")
        if not 0 < rate <= 1:
            raise ValueError(f"PoissonSampler: rate={rate}, wanted more than 0, and 1 at most")
        if not 0 <= rank < num_replicas:
            raise ValueError(f"PoissonSampler: rank={rank}, wanted 0..{num_replicas - 1}")
        check_count(1, {"PoissonSampler: most": most, "PoissonSampler: repeats": repeats})
        self.units, self.rate, self.most, self.seed = units, rate, most, seed
        self.rank, self.num_replicas, self.repeats = rank, num_replicas, repeats

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.logical():
            yield from batch.items

    def logical(self) -> Iterator[LogicalBatch]:
        """Batch after batch, the same as the sampler itself gives."""
        random = np.random.Generator(np.random.PCG64(self.seed))
        while True:
            chosen = np.flatnonzero(random.random(len(self.units)) < self.rate).tolist()
            shares = [self.rounds(chosen[r::self.num_replicas]) for r in range(self.num_replicas)]
            mine, longest = shares[self.rank], max(map(len, shares))
            padded = mine + [[]] * (longest - len(mine))
            yield LogicalBatch([[item for _, item in rows] for rows in padded],
                               [[unit for unit, _ in rows] for rows in padded])

    def rounds(self, chosen: Sequence[int]) -> list[list[tuple[int, int]]]:
        """Rows (unit, item) of the chosen units, in rounds."""
        rows = [(unit, item) for unit in chosen for item in self.units[unit] for _ in range(self.repeats)]
        return [rows[first:first + self.most] for first in range(0, len(rows), self.most)]
