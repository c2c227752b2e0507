"""What an experiment will ask of a machine, found out without data and without memory: its own step on fake tensors."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from edm3d.formats.facts import Facts
from edm3d.formats.privacy import Ledger
from edm3d.inference.batch import Batch
from edm3d.inference.first_stage import FirstStage, tiles_of
from edm3d.networks.conditioning import blank, takes_of
from edm3d.networks.tiles import Tiles
from edm3d.training.data_sampler import LogicalBatch
from edm3d.training.live_memory import LiveMemory, fake_tensors, imagine, tensor_bytes
from edm3d.training.phases import LossOutput, Task
from edm3d.training.private.accounting import ACCOUNTANT
from edm3d.training.private.budget import Budget
from edm3d.training.private.noise import DRAWS
from edm3d.training.private.release import Release
from edm3d.training.private.start import asked_privacy
from edm3d.training.private.step import PrivateStep
from edm3d.training.resume import RunRecord
from edm3d.training.step import split_batch
from edm3d.training.tasks import TASKS
from edm3d.training.tasks.base import PlannedData, key_of_size_named
from edm3d.training.training_loop import Trainer
from edm3d.utils.config import build
from edm3d.utils.log import RunLog
from edm3d.utils.precision import resolve_precision
from edm3d.utils.schema import Options, Privacy
from edm3d.utils.stats import Collector

ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
             lambda q, k, v, *rest, **more: sdpa_flop_count(q, k, v),
             torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
             lambda grad, q, k, v, *rest, **more: sdpa_backward_flop_count(grad, q, k, v)}


class StepPlan(NamedTuple):
    """Numbers of one training step of one rank; bytes but for parameters and flops (two per multiplication and sum).

    activations: what the forward pass keeps for the backward pass. temporary: the rest of what lives at the peak,
    gradients included. gradients: of all weights together, which need not all be there at the peak. trained: how many
    of the parameters move.
    """

    parameters: int
    flops: int
    weights: int
    averages: int
    optimizer: int
    gradients: int
    activations: int
    temporary: int
    peak: int
    trained: int


class DecodePlan(NamedTuple):
    """Numbers of decoding `batch` volumes of a size [*S], whole or in tiles: flops, bytes of weights and at the peak.
    """

    size: tuple[int, ...]
    batch: int
    tile: tuple[int, ...] | None
    flops: int
    weights: int
    peak: int


class ImaginedStep(PrivateStep):
    """A private step on fake tensors, whose batch is there: full rounds."""

    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        rows, privacy = range(self.options.batch_size), self.budget.options
        of_unit = privacy.noise_multiplicity * (2 if privacy.unit == "group" else 1)
        rounds = [rows[first:first + self.batch_gpu] for first in rows[::self.batch_gpu]]
        self.batch = LogicalBatch(list(map(list, rounds)), [[row // of_unit for row in part] for part in rounds])

    def noise(self, like: torch.Tensor, std: float) -> torch.Tensor:
        """As large as what a card draws."""
        return sum(torch.empty_like(like) for _ in range(DRAWS))

    def hooked(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        """The same; Opacus copies layers to the meta device, which fake weights do not go to."""
        kept = [(part, dict(part._parameters)) for part in module.modules()]
        with unset_fake_temporarily():
            for part, own in kept:
                for name, p in own.items():
                    bare = p is not None and torch.empty(p.shape, dtype=p.dtype, device="meta")
                    part._parameters[name] = None if p is None else torch.nn.Parameter(bare, p.requires_grad)
            made = super().hooked(module, optimizer)
        for part, own in kept:
            part._parameters.update(own)
        for p in module.parameters():
            p.grad_sample, p._forward_counter = None, 0
        return made


class ImaginedTrainer(Trainer):
    """A trainer of fake tensors, which are where they are."""

    private_step = ImaginedStep

    def place(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        """Leave it."""


# ---- what is planned for ----


def find_source(training: dict, shape: tuple[int, ...] | None, classes: int) -> PlannedData:
    """The data of an experiment from `shape` and a number of label classes, or from its file; ValueError for neither.
    """
    if shape:
        names = tuple(f"class{i}" for i in range(classes))
        return PlannedData(tuple(shape), Facts("", "", label_classes=names), {})
    named = training["dataset"].get("path")
    paths = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    if path := next((path for path in paths if not Path(str(path)).exists()), None):
        raise ValueError(f"training.dataset.path={path}: not there; give the size of its items by --shape, channels "
                         "and voxels per axis as in 1 160 160 128 (and --classes K)")
    dataset = build(training["dataset"], path="training.dataset")
    record = dataset.first_stage() if dataset.facts.latents else None
    return PlannedData(tuple(dataset.shape), dataset.facts, record.network if record else {})


# ---- one step ----


def plan_step(training: dict, source: PlannedData) -> StepPlan:
    """Numbers of a training step, its second: optimisers have their state, late phases have begun."""
    options = Options(**training["options"])
    options = replace(options, precision=resolve_precision(options.precision, torch.device("cpu")), compile=False)
    batch_gpu, rounds = split_batch(options.batch_size, options.batch_gpu, 1)
    privacy = asked_privacy(training, options)
    planned = 3 if privacy else min(rounds, 2)  # private batches differ in size; the third has all beside it
    options = replace(options, batch_gpu=batch_gpu, batch_size=batch_gpu * planned)
    training = {**training, "options": vars(options)}
    with key_of_size_named(training, source), fake_tensors(), LiveMemory() as memory:
        task = TASKS[training["task"]].assemble(training, source, imagined=True)
        shape = task.trained_shape or task.snapshot.shape
        kept: list[int] = []
        for phase in task.phases:
            phase.loss = watched(phase.loss, memory, kept)
        trainer = ImaginedTrainer(task, [], options, run_dir=Path(), device=torch.device("cpu"), log=RunLog(False),
                                  record=RunRecord({}, source.facts),
                                  private=imagined_release(privacy, options.batch_size) if privacy else None)
        batches = [imagined_batch(task, shape, batch_gpu)] * trainer.stepper.rounds
        trainer.progress.nimg = int(options.total_kimg * 1000) // options.batch_size * options.batch_size
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as flops:
            one_step(trainer, batches)
        memory.restart()
        one_step(trainer, batches)
        modules = [phase.module for phase in task.phases]
        weights, averages = module_bytes(modules), module_bytes(trainer.emas)
        states = tensor_bytes([[dict(s) for s in phase.optimizer.state.values()] for phase in task.phases])
        activations = max(kept)
        return StepPlan(sum(p.numel() for module in modules for p in module.parameters()),
                        flops.get_total_flops() * rounds // trainer.stepper.rounds, weights, averages, states,
                        tensor_bytes([[p.grad for p in module.parameters()] for module in modules]), activations,
                        memory.peak - weights - averages - states - activations, memory.peak,
                        sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad))


def imagined_release(privacy: Privacy, batch_size: int) -> Release:
    """That of a private run in whose batches every one of as many records is."""
    ledger = Ledger(privacy.unit, batch_size, privacy.max_grad_norm, ACCOUNTANT, "")
    units = [[i] for i in range(batch_size)]
    return Release(Budget(privacy, units, batch_size, ledger, privacy.noise_multiplier or 1.0, 2 ** 20))


def one_step(trainer: Trainer, batches: list[Batch]) -> None:
    """What a trainer does with the batches of a step, its statistics and meetings aside."""
    steps = trainer.all_gradients(batches, Collector())
    trainer.apply(steps, torch.tensor(False), Collector())
    trainer.average(trainer.progress.nimg)


def watched(loss: Callable[..., LossOutput], memory: LiveMemory, kept: list[int]) -> Callable[..., LossOutput]:
    """A phase's loss that notes how many bytes live when it is done that did not before."""
    def watch(*arguments: object) -> LossOutput:
        before = memory.now
        out = loss(*arguments)
        kept.append(memory.now - before)
        return out
    return watch


def imagined_batch(task: Task, shape: tuple[int, ...], images: int) -> Batch:
    """A batch of items of a shape [C,*S], with label maps where the data have them and what the network takes."""
    labels = torch.zeros(images, *shape[1:], dtype=torch.uint8) if task.snapshot.facts.label_classes else None
    factor = getattr(task.net, "grid_factor", None) or (1,) * len(shape[1:])
    full = [s * f for s, f in zip(shape[1:], factor, strict=True)]
    return Batch(torch.empty(images, *shape), labels, blank(takes_of(task.net), full, images))


def module_bytes(modules: list[torch.nn.Module]) -> int:
    """Bytes of parameters and buffers."""
    return tensor_bytes([[*module.parameters(), *module.buffers()] for module in modules])


# ---- encoding and decoding ----


def plan_encode(source: PlannedData, batch: int, tiles: Tiles | None) -> int:
    """Bytes at the peak of encoding `batch` volumes of the source's shape by its first stage, in float32."""
    with fake_tensors(), LiveMemory() as memory, torch.no_grad():
        net = imagine(lambda: build(source.first_stage)).eval()
        images = torch.empty(batch, *source.shape)
        labels = torch.zeros(images.shape[0], *images.shape[2:], dtype=torch.uint8) if net.num_classes else None
        stage = FirstStage(net, source.facts).in_parts(tiles)
        memory.restart()
        semantic = torch.zeros(images.shape[0], *images.shape[2:], dtype=torch.uint8) if stage.masked else None
        assert stage.posterior(images, labels, semantic).mean.shape[1:] == net.latent_shape(images.shape[2:])
        return memory.peak


def plan_decode(config: dict, source: PlannedData) -> DecodePlan | None:
    """Numbers of decoding what the task decodes, None for nothing."""
    sampling, cpu = config["sampling"], torch.device("cpu")
    decoding = TASKS[config["training"]["task"]].decoding(config, source)
    if decoding is None:
        return None
    with fake_tensors(), LiveMemory() as memory, torch.no_grad():
        net = imagine(decoding.make).eval()
        size = decoding.size or tuple(s * f for s, f in zip(source.shape[1:], net.factor, strict=True))
        tiles = tiles_of(sampling)
        stage = FirstStage(net, source.facts, precision=resolve_precision(sampling["precision"], cpu)).in_parts(tiles)
        z = torch.empty(decoding.batch, *net.latent_shape(size))
        memory.restart()
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as flops:
            image, label = stage.decode(z)
        assert image.shape[2:] == size and (label is None or label.shape[1:] == size)
        return DecodePlan(size, decoding.batch, tiles and tiles.size, flops.get_total_flops(), module_bytes([net]),
                          memory.peak)
