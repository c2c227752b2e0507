"""What tasks are made of, as the loop sees it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from inference.batch import Batch
from inference.snapshot import Snapshot
from samplers.noise import ImageGenerators


class LossOutput(NamedTuple):
    """loss: sum over the images of a batch, count: how many, parts: further sums over the images, for the log, where
    a name with a / stands as it is and those named data_... are figures of the data and no losses.

    Where a task has noise levels, losses [N] are those of the images and sigma [N] the levels they were taken at.
    totals: further sums over the images that the phase's `absorb` asks for, alike in shape in every call.
    """

    loss: torch.Tensor
    count: int
    parts: dict[str, torch.Tensor]
    losses: torch.Tensor | None = None
    sigma: torch.Tensor | None = None
    totals: dict[str, torch.Tensor] | None = None


@dataclass
class Phase:
    """One optimiser's part of a task: loss(module, batch, generators) is minimised over the module's parameters.

    Until start_kimg the phase rests. absorb(totals, key) gets the totals of the whole step, summed over rounds and
    ranks, once all weights have moved, for what moves by other means than gradients; key is the number of images seen.
    What it returns are figures of the step for the log, by name.
    """

    name: str
    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[torch.nn.Module, Batch, ImageGenerators], LossOutput]
    start_kimg: float = 0
    absorb: Callable[[dict[str, torch.Tensor], int], dict[str, float] | None] | None = None


@dataclass
class Task:
    """What the loop trains: phases in order, the network whose average is kept, and what a snapshot adds to it.

    A phase's loss must reach no weights of another phase: all gradients of a step are taken before any weight moves.
    clean(batch, generators) gives what the network is to learn the distribution of, where there is such a thing.
    warn(tick) gives lines for the log at the end of a tick.
    """

    phases: list[Phase]
    net: torch.nn.Module
    snapshot: Snapshot
    clean: Callable[[Batch, ImageGenerators], torch.Tensor] | None = None
    warn: Callable[[int], list[str]] | None = None
