"""Batches of a dataset, read in this process or in others, which end with it and whose errors come through as they are.
"""

import signal
import traceback
from collections.abc import Sequence
from multiprocessing import active_children
from multiprocessing.process import BaseProcess

import torch
from torch.utils.data import DataLoader, Sampler

from edm3d.inference.batch import Batch, Sample, collate
from edm3d.utils.stop import shield_worker

Round = tuple[list[int], Batch | None]  # indices into the dataset, and their samples; None where there are none
Found = tuple[int, Sample | Exception]
END_S = 5  # what a process gets to end by itself


class Numbered:
    """A dataset that gives every sample with its index, so that a log can name the items of a batch.

    In place of a sample that cannot be read it gives the error: torch would make it one of many lines of its own.
    """

    def __init__(self, dataset: Sequence[Sample]):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Found:
        try:
            return index, self.dataset[index]
        except (ValueError, OSError) as e:
            e.add_note(traceback.format_exc())  # of the process that reads, for training.options.debug
            return index, e


def collate_numbered(found: Sequence[Found]) -> Round | Exception:
    """Indices and stacked samples of a `Numbered` dataset, or the first error among them."""
    errors = [sample for _, sample in found if isinstance(sample, Exception)]
    if errors:
        return errors[0]
    return [index for index, _ in found], collate([sample for _, sample in found]) if found else None


class Rounds:
    """Batches in the order of a sampler, read by `num_workers` processes; raises ValueError or OSError of the dataset.

    batch_size None: the sampler gives the indices of whole batches, which may be empty. The loader draws a seed from
    torch's generator when this is made, not in a step. The processes live until `close`.
    """

    def __init__(self, dataset: Sequence[Sample], sampler: Sampler[int] | Sampler[list[int]], batch_size: int | None,
                 num_workers: int, device: torch.device):
        before = active_children()
        order = {"batch_sampler": sampler} if batch_size is None else {"sampler": sampler, "batch_size": batch_size}
        self.stream = iter(DataLoader(Numbered(dataset), collate_fn=collate_numbered, num_workers=num_workers,
                                      worker_init_fn=shield_worker, pin_memory=device.type == "cuda", **order))
        self.workers = [process for process in active_children() if process not in before]

    def __iter__(self) -> "Rounds":
        return self

    def __next__(self) -> Round:
        found = next(self.stream)
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        """End the processes, those that do not listen too."""
        self.stream = iter(())  # nobody holds the loader's now: it tells them to end, and waits a little
        end(self.workers)


def end(workers: list[BaseProcess]) -> None:
    """Kill processes that do not end by themselves: they ignore the SIGTERM after which multiprocessing would wait."""
    left = [process for process in workers if process.is_alive()]
    if not left:
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch takes their death for an error of its own
    try:
        for process in left:
            process.kill()
            process.join(END_S)
    finally:
        signal.signal(signal.SIGCHLD, before)
