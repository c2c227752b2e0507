"""A step that is queued on the device: the host hears of it a step late, and so never waits for it in between."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from edm3d.formats.training_state import Progress
from edm3d.training.phases import PhaseStep
from edm3d.utils.schema import Options
from edm3d.utils.stats import Collector
from edm3d.utils.tensors import tensor_on


class Sent:
    """Numbers on their way from the device to the host, which waits for them, and not for what the device does later.
    """

    def __init__(self, numbers: torch.Tensor):
        self.numbers = numbers.to("cpu", non_blocking=True)  # where they come from a GPU, into memory that is pinned
        self.there = torch.cuda.Event() if numbers.is_cuda else None
        if self.there is not None:
            self.there.record()

    def read(self) -> list[float]:
        """The numbers, as soon as they are there."""
        if self.there is not None:
            self.there.synchronize()
        return self.numbers.tolist()


class LossScale(NamedTuple):
    """What the loss is multiplied by, and the good steps since that last changed: [] on the device."""

    value: torch.Tensor
    steps: torch.Tensor


class Pending(NamedTuple):
    """What is taken in of a step when it is known whether it was skipped.

    sent: whether it was, and the loss scale behind it; scale: the latter, on the device, for the next step. nimg,
    tick_seconds and rates: images seen, seconds of the tick and learning rates by phase and group before the step.
    stats: of the step where it is not skipped; waits: of the step in any case.
    """

    sent: Sent
    scale: LossScale
    nimg: int
    tick_seconds: float
    rates: list[list[float]]
    items: Sequence[int]
    stats: Collector
    waits: Collector


def known_scale(p: Progress, device: torch.device) -> LossScale:
    """The loss scale that the host knows, on a device."""
    return LossScale(*tensor_on(device, [p.loss_scale, float(p.scale_steps)]))


def is_bad(steps: Iterable[PhaseStep], device: torch.device) -> torch.Tensor:
    """Whether what any phase made of a step is not finite: [] bool, on the device."""
    return ~sum((step.check for step in steps), torch.zeros((), device=device)).isfinite()


def too_many(p: Progress, before: str, options: Options, precision: str) -> ValueError:
    """The error of steps in a row that were skipped; before: images seen of the state from before them, in words."""
    started = f", or from other weights than {options.init_from}" if options.init_from else ""
    go_on = "" if precision == "fp32" else "go on from it with training.options.precision=fp32, or "
    return ValueError(f"loss or gradients were not finite in {p.bad_steps} steps in a row (up to {p.nimg} images); "
                      f"training-state-{before}.pt is from before them; {go_on}start anew with a lower "
                      f"training.optimizer.lr or with training.options.grad_clip{started}")


def rates_of(optimizers: Sequence[torch.optim.Optimizer]) -> list[list[float]]:
    """The learning rates of optimisers, by group."""
    return [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]


def set_rates(optimizers: Sequence[torch.optim.Optimizer], rates: Sequence[Sequence[float]]) -> None:
    """Give optimisers learning rates, by group."""
    for optimizer, ours in zip(optimizers, rates, strict=True):
        for group, rate in zip(optimizer.param_groups, ours, strict=True):
            group["lr"] = rate
