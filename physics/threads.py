"""Work on one thread per operation, side by side by images.

Operations of a tenth of a millisecond gain little by several threads, and lose much where these wait for each other on
a busy machine. Parts of a batch that each run on a thread of their own meet once, at the end.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[int]:
    """Operations use one thread while the block lasts; gives how many they used before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def side_by_side(work: Callable[[slice], torch.Tensor], number: int, device: torch.device) -> torch.Tensor:
    """work(part of the batch) for all of `number` images, put together; on a CPU one part for each of torch's threads."""
    if device.type != "cpu":
        return work(slice(0, number))
    with one_thread() as threads:
        parts = max(1, min(threads, number))
        edges = [number * i // parts for i in range(parts + 1)]
        slices = [slice(first, end) for first, end in zip(edges[:-1], edges[1:], strict=True)]
        if parts == 1:
            return work(slices[0])
        with ThreadPoolExecutor(parts) as pool:
            return torch.cat(list(pool.map(work, slices)))
