"""What tasks are made of, as the loop sees it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from edm3d.inference.batch import Batch
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.conditioning import Condition
from edm3d.samplers.noise import ImageGenerators


class Sum(NamedTuple):
    """A sum over `count` values, whose mean goes into the log: of images, or of the classes that some images have."""

    total: torch.Tensor
    count: int | torch.Tensor


class ByLevel(NamedTuple):
    """Values [N] of the images of a batch, and the noise levels sigma [N] that they go by in the log."""

    values: torch.Tensor
    sigma: torch.Tensor


Numbers = dict[str, Sum | ByLevel]
OF_SAMPLES = "sample_"  # begins the names of measures of what is drawn


class LossOutput(NamedTuple):
    """loss: sum over the images of a batch, and count: how many, or how many of them have a target. Further sums over
    the images are for the log: the parts of the loss, the share of each part in the sizes of all, and what is said of
    the data.

    levels: the losses of the images where a task has noise levels. totals: sums over the images that the phase's
    `absorb` asks for, alike in shape in every call. handed: what the next phase gets for the same images.
    """

    loss: torch.Tensor
    count: int | torch.Tensor
    parts: Mapping[str, torch.Tensor]
    shares: Mapping[str, torch.Tensor] = {}
    data: Mapping[str, torch.Tensor] = {}
    levels: ByLevel | None = None
    totals: dict[str, torch.Tensor] | None = None
    handed: Any = None

    def numbers(self, name: str) -> Numbers:
        """The loss under a name, its parts, what is said of the data, and the losses by noise level."""
        sums = {name: self.loss, **self.parts, **{f"data_{key}": value for key, value in self.data.items()}}
        found: Numbers = {key: Sum(value, self.count) for key, value in sums.items()}
        return found if self.levels is None else {**found, "sigma": self.levels}


class StepStatistics(NamedTuple):
    """Numbers of one step for the log, which has them as GROUP/NAME."""

    group: str
    values: Mapping[str, float | torch.Tensor]


class PhaseStep(NamedTuple):
    """What a phase made of a step: a number [] that is finite where all is well, totals, what it hands on for each
    round.
    """

    check: torch.Tensor
    totals: dict[str, torch.Tensor]
    handed: list[Any]


@dataclass
class Phase:
    """One optimiser's part of a task: loss(module, batch, generators) is minimised over the module's parameters.

    Where the phase before, of those that are active, handed something for the same images, loss gets it as a fourth
    argument. Until start_kimg the phase rests. absorb(totals, nimg) gets the totals of the whole step, summed over
    rounds and ranks, once all weights have moved, for what moves by other means than gradients; nimg is the number of
    images seen. Of a step that is skipped the totals are 0: then it must leave weights as they are, and need not care
    for buffers.
    """

    name: str
    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[..., LossOutput]
    start_kimg: float = 0
    absorb: Callable[[dict[str, torch.Tensor], int], StepStatistics | None] | None = None


class Best(NamedTuple):
    """What network-best.pt goes by: a name among the numbers that a task measures, and which way is better."""

    name: str = "loss"
    higher: bool = False
    chosen: bool = False  # by training.validation.best, where that is another than the task's own

    @property
    def of_samples(self) -> bool:
        """Whether it is measured on what is drawn, and not on what is held out."""
        return self.name.startswith(OF_SAMPLES)

    @property
    def key(self) -> str:
        """Its name among the numbers of a tick."""
        return f"sample/{self.name.removeprefix(OF_SAMPLES)}" if self.of_samples else f"val/{self.name}"

    @property
    def words(self) -> str:
        """What the line of a tick calls it."""
        if self.of_samples:
            return self.name
        return "validation" if self.name == "loss" else f"validation {self.name}"

    def score(self, value: float) -> float:
        """A number that is lower for what is better."""
        return -value if self.higher else value


@dataclass
class Task:
    """What the loop trains: phases in order, the network whose average is kept, and what a snapshot adds to it.

    A phase's loss must reach no weights of another phase: all gradients of a step are taken before any weight moves.
    seen(batch, generators) gives what the network is to learn the distribution of, and what it is told, where there is
    such a thing.
    warn(tick) gives lines for the log at the end of a tick. measured(net, batch, generators) gives the numbers of
    held-out images, None: those of the first phase's loss. trained_shape: [C,*S] of images that augmentation has cut.
    notes: lines for the log at the start.
    """

    phases: list[Phase]
    net: torch.nn.Module
    snapshot: Snapshot
    seen: Callable[[Batch, ImageGenerators], tuple[torch.Tensor, Condition]] | None = None
    warn: Callable[[int], list[str]] | None = None
    measured: Callable[[torch.nn.Module, Batch, ImageGenerators], Numbers] | None = None
    best: Best = field(default_factory=Best)
    trained_shape: tuple[int, ...] | None = None
    notes: list[str] = field(default_factory=list)

    def measure(self, net: torch.nn.Module, batch: Batch, generators: ImageGenerators) -> Numbers:
        """Sums over held-out images by name, each with its own count."""
        if self.measured is not None:
            return self.measured(net, batch, generators)
        return self.phases[0].loss(net, batch, generators).numbers("loss")
