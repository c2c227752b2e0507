"""Held-out data, measured with averaged weights and the same noise every time, so that ticks compare."""

from collections.abc import Sized
from dataclasses import dataclass

import torch

from edm3d.inference.batch import collate
from edm3d.samplers.noise import ImageGenerators, mix_seed
from edm3d.training.phases import Task
from edm3d.training.ticks import report
from edm3d.utils import distributed
from edm3d.utils.precision import autocast
from edm3d.utils.stats import Collector


@dataclass
class Held:
    """Held-out data that is measured with the averaged weights every few ticks."""

    dataset: Sized
    every_ticks: int
    fingerprint: str = ""  # of what is measured: numbers of one fingerprint compare


@torch.no_grad()
def validate(held: Held, task: Task, net: torch.nn.Module, *, seed: int, batch_size: int, precision: str,
             device: torch.device) -> dict[str, float]:
    """Means of what a task measures over the held-out items of all ranks.

    The noise of an item, its level included, is a function of the seed and the item's place. All ranks call the network
    equally often, as shared weights ask: where one has run out of items it takes the first again, and reports nothing.
    """
    items, ranks = range(len(held.dataset)), distributed.world_size()
    mine, stats = items[distributed.rank()::ranks], Collector()
    for start in range(0, len(items[::ranks]), batch_size):
        keys = mine[start:start + batch_size]
        batch = collate([held.dataset[i] for i in keys or items[:1]])
        generators = ImageGenerators(keys or items[:1], seed=mix_seed("validation", seed), device=device)
        with autocast(precision, device):
            numbers = task.measure(net, batch.to(device), generators)
        assert task.best.of_samples or task.best.name in numbers, \
            f"network-best goes by {task.best.name}, measured are {', '.join(numbers)}"
        seen = Collector()
        report(seen, "val", numbers)
        stats.add_all(seen, names_only=not keys)
    return stats.means()
