"""What a step makes of its images: which they are, and the gradients of a phase. The loop applies them."""

from collections.abc import Callable, Iterator, Sized
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from edm3d.inference.batch import Batch
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.data_sampler import InfiniteSampler
from edm3d.training.loader import Round, Rounds
from edm3d.training.loss_scale import unscale
from edm3d.training.machine import as_called
from edm3d.training.phases import PhaseStep, Task
from edm3d.training.ticks import report_loss
from edm3d.utils import distributed, sharding
from edm3d.utils.precision import autocast
from edm3d.utils.schema import Options
from edm3d.utils.stats import Collector


class PlainStep:
    """Gradients of the mean loss over batch_size images of an endless stream, the same on 1 rank as on several.

    losses: names of what it reports that are losses, each with what people call it.
    """

    def __init__(self, task: Task, dataset: Sized, options: Options, *, precision: str, device: torch.device):
        self.task, self.dataset, self.options, self.precision, self.device = task, dataset, options, precision, device
        self.rank, self.ranks = distributed.rank(), distributed.world_size()
        self.batch_gpu, self.rounds = split_batch(options.batch_size, options.batch_gpu, self.ranks)
        self.modules = [as_called(p.module, options, device) for p in task.phases]
        self.losses: dict[str, str] = {}
        self.loss_scale: torch.Tensor | None = None  # of the step in fp16, which the loop sets
        self.part: Callable[[str], AbstractContextManager] = nullcontext  # around parts of a step, by name

    def batches(self, nimg: int) -> Rounds:
        """This rank's batches from a number of images seen on, to be closed."""
        sampler = InfiniteSampler(self.dataset, self.rank, self.ranks, seed=self.options.seed, start_idx=nimg)
        return Rounds(self.dataset, sampler, self.batch_gpu, self.options.num_workers, self.device)

    def take(self, data: Iterator[Round]) -> list[Round]:
        """The rounds of the next step out of the batches."""
        if self.options.graphs and self.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # nothing is read any more of what the step before left there
        return [next(data) for _ in range(self.rounds)]

    def generators(self, nimg: int, round_: int) -> ImageGenerators:
        """One generator per image of a round: a function of the run's seed and the image's place in the stream."""
        first = nimg + round_ * self.batch_gpu * self.ranks + self.rank
        positions = range(first, first + self.batch_gpu * self.ranks, self.ranks)
        return ImageGenerators(positions, seed=self.options.seed, device=self.device, scheme=self.options.noise)

    def gradients(self, index: int, batches: list[Batch], nimg: int, stats: Collector, handed: list[Any]) -> PhaseStep:
        """Accumulate a phase's gradients and totals over rounds and ranks; nimg: images seen before the step.

        handed: by the phase before, for each round; let go of as it is used. The check is the norm of the gradients
        plus this rank's loss and the totals. The host waits for none of it.
        """
        phase, (total, totals, hands) = self.task.phases[index], self.accumulate(index, batches, nimg, stats, handed)
        with self.part("norm, sums over ranks"):
            totals = {name: distributed.all_reduce_sum(value).to(self.device) for name, value in totals.items()}
            total = sum((value.sum() for value in totals.values()), total)  # to be finite, too
            parameters = [p for p in phase.module.parameters() if p.requires_grad]
            sharding.sum_gradients(parameters)
            if self.loss_scale is not None:
                unscale(parameters, self.loss_scale)
            norm = sharding.clip_gradients(parameters, self.options.grad_clip)
        stats.report(f"grad_norm{'' if index == 0 else '/' + phase.name}", norm)
        return PhaseStep(norm + total, totals, hands)

    def accumulate(self, index: int, batches: list[Batch], nimg: int, stats: Collector, handed: list[Any]
                   ) -> tuple[torch.Tensor, dict[str, torch.Tensor], list[Any]]:
        """Leave this rank's part of a phase's gradients, by itself; its loss, totals, and what it hands on."""
        phase, total, totals, hands = self.task.phases[index], 0.0, {}, []
        phase.optimizer.zero_grad(set_to_none=True)
        for round_, batch in enumerate(batches):
            given, handed[round_] = [handed[round_]] if handed[round_] is not None else [], None
            with self.part("forward"), autocast(self.precision, self.device):
                out = phase.loss(self.modules[index], batch.to(self.device), self.generators(nimg, round_), *given)
            with self.part("backward"):
                self.per_image(out.loss).backward()
            self.losses.update(report_loss(stats, phase.name, out))
            total += out.loss.detach()
            totals = {name: value + totals.get(name, 0) for name, value in (out.totals or {}).items()}
            hands.append(out.handed)
        return total, totals, hands

    def per_image(self, loss: torch.Tensor) -> torch.Tensor:
        """What is taken gradients of: a round's part of the mean over the images of a step, in fp16 scaled up."""
        if self.loss_scale is None:
            return loss / self.options.batch_size
        return loss.float() * (self.loss_scale / self.options.batch_size)

    def applied(self) -> None:
        """Weights have moved by the step; of a plain one nothing is kept."""


def split_batch(batch_size: int, batch_gpu: int | None, ranks: int) -> tuple[int, int]:
    """Images per rank and round, and rounds per step; ValueError when the batch does not divide."""
    if batch_size < 1 or batch_size % ranks:
        raise ValueError(f"training.options.batch_size={batch_size} does not divide over {ranks} ranks; "
                         f"use {max(1, batch_size // ranks) * ranks}")
    per_rank = batch_size // ranks
    batch_gpu = min(batch_gpu or per_rank, per_rank)
    if batch_gpu < 1 or per_rank % batch_gpu:
        raise ValueError(f"training.options.batch_size={batch_size} does not divide over {ranks} ranks x "
                         f"batch_gpu={batch_gpu}; use a batch_gpu that divides {per_rank}")
    return batch_gpu, per_rank // batch_gpu
