"""Which item comes next: the endless stream of indices over all ranks (not to be confused with samplers/)."""

from collections.abc import Iterator, Sized
from itertools import count

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
