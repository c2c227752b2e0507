"""A step with differential privacy: Poisson batches, clipped gradients of units, and noise once for all ranks."""

import secrets
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from edm3d.inference.batch import Batch, Sample
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.data_sampler import LogicalBatch, PoissonSampler
from edm3d.training.loader import Round, Rounds
from edm3d.training.phases import PhaseStep, Task
from edm3d.training.private.budget import Budget
from edm3d.training.private.clipping import ClippedSum
from edm3d.training.private.noise import secret_normal
from edm3d.training.step import split_batch
from edm3d.utils import distributed, sharding
from edm3d.utils.precision import autocast
from edm3d.utils.schema import Options
from edm3d.utils.stats import Collector

MASK_BITS, IMAGE_BITS = 128, 63  # of seeds: of the choice of units, of what images see


class PrivateStep:
    """Noisy gradients of the mean over an expected batch of batch_size units, the same in law on 1 rank as on several.

    Nothing is reported of a step, and none is skipped. All seeds come from the system and are kept nowhere: a run that
    goes on draws other units and other noise.
    """

    def __init__(self, task: Task, dataset: Sequence[Sample], options: Options, budget: Budget, *, precision: str,
                 device: torch.device):
        self.task, self.dataset, self.options, self.budget = task, dataset, options, budget
        self.precision, self.device = precision, device
        self.rank, self.ranks = distributed.rank(), distributed.world_size()
        self.batch_gpu, self.rounds = split_batch(options.batch_size, options.batch_gpu, self.ranks)
        self.losses: dict[str, str] = {}
        self.batch = LogicalBatch([], [])
        phase, = task.phases
        self.hooks, self.optimizer = self.hooked(phase.module, phase.optimizer)

    def batches(self, nimg: int) -> Rounds:
        """This rank's rounds of batches that are drawn from here on, to be closed."""
        seed = distributed.from_rank_0(lambda: secrets.randbits(MASK_BITS))
        sampler = PoissonSampler(self.budget.units, self.budget.sampling_rate, self.batch_gpu, seed=seed,
                                 rank=self.rank, num_replicas=self.ranks,
                                 repeats=self.budget.options.noise_multiplicity)
        self.plans = sampler.logical()
        return Rounds(self.dataset, sampler, None, self.options.num_workers, self.device)

    def take(self, data: Iterator[Round]) -> list[Round]:
        """The rounds of the next step out of the batches."""
        self.batch = next(self.plans)
        torch.manual_seed(secrets.randbits(IMAGE_BITS))  # dropout layers
        return [next(data) for _ in self.batch.items]

    def generators(self, nimg: int, rows: int) -> ImageGenerators:
        """Generators for the rows of a round; the numbers of the rows say which step it is."""
        return ImageGenerators(range(nimg, nimg + rows), seed=secrets.randbits(IMAGE_BITS), device=self.device,
                               scheme=self.options.noise)

    def gradients(self, index: int, batches: list[Batch | None], nimg: int, stats: Collector, handed: list[Any]
                  ) -> PhaseStep:
        """Clip, add up over rounds and ranks, add noise, and divide by the expected batch; see PlainStep.gradients."""
        phase, total = self.task.phases[index], ClippedSum(self.optimizer, self.budget.options.noise_multiplicity)
        self.optimizer.zero_grad(set_to_none=True)
        for batch, units in zip(batches, self.batch.units, strict=True):
            if batch is not None:
                self.backward(batch, self.generators(nimg, len(units)), self.precision)
                total.add(units)
        total.close()
        parameters = total.parameters
        phase.optimizer.zero_grad(set_to_none=True)  # of what backward has summed without clipping
        self.add_noise(parameters)
        sharding.sum_gradients(parameters)
        for p in parameters:
            p.grad /= self.options.batch_size
        return PhaseStep(sharding.clip_gradients(parameters, self.options.grad_clip), {}, [None] * len(batches))

    def backward(self, batch: Batch, generators: ImageGenerators, precision: str) -> None:
        """Leave the gradients of each row in `grad_sample`."""
        phase, = self.task.phases
        with autocast(precision, self.device):
            out = phase.loss(phase.module, batch.to(self.device), generators)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Full backward hook is firing")  # of first layers, as it should
            warnings.filterwarnings("ignore", "In CPU autocast, but the target dtype")  # of float32, which is meant
            out.loss.backward()

    def add_noise(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Make sums gradients, on rank 0 with the noise of the step."""
        std = self.optimizer.noise_multiplier * self.optimizer.max_grad_norm
        for p in parameters:
            p.grad, p.summed_grad = p.summed_grad, None
            if self.rank == 0:
                p.grad += self.noise(p.grad, std)

    def noise(self, like: torch.Tensor, std: float) -> torch.Tensor:
        """Noise of a standard deviation for a weight."""
        return secret_normal(like, std)

    def hooked(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        """The hooks on a module, and the optimiser that clips."""
        return hooked(module, optimizer, self.budget)

    def applied(self) -> None:
        """Write into the ledger that weights have moved by a step."""
        self.budget.spend()


def hooked(module: torch.nn.Module, optimizer: torch.optim.Optimizer, budget: Budget) -> tuple[Any, Any]:
    """Opacus' hooks on a module, by which backward leaves gradients per sample, and its optimiser, which clips them.

    By functorch alone: its own rules for layers were seen to be wrong in silence on blocks with attention. ValueError
    for a layer with buffers.
    """
    from opacus import GradSampleModule  # takes seconds, and plain runs do without
    from opacus.optimizers import DPOptimizer
    try:
        hooks = GradSampleModule(module, loss_reduction="sum", force_functorch=True)
    except NotImplementedError as e:
        raise ValueError(f"training.network: {e}: a layer with weights keeps what it saw of other images; choose one "
                         "without, as GroupNorm in place of BatchNorm") from e
    return hooks, DPOptimizer(optimizer, noise_multiplier=budget.noise_multiplier, expected_batch_size=None,
                              max_grad_norm=budget.options.max_grad_norm, loss_reduction="sum")
