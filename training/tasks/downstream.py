"""What the tasks have in common that tell something of images: segmentation and classification."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from edm3d.formats.facts import Facts
from edm3d.formats.prediction import ATTRIBUTE, CLASSES, MAPS, Prediction
from edm3d.inference.batch import Batch
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.class_counts import check_classes, count_targets
from edm3d.training.downstream_loss import ClassWeights
from edm3d.training.phases import Best, LossOutput, Numbers, Phase, Task
from edm3d.training.targets import KEY, ClassTarget, VoxelTarget
from edm3d.training.tasks.base import (
    Data,
    PlannedData,
    TaskType,
    build_augment,
    build_parts,
    fill_network,
    tell_only,
    trained_size,
)
from edm3d.training.tasks.downstream_checks import check_norms, check_output, divisor
from edm3d.training.validation import Held
from edm3d.utils.config import build

Target = VoxelTarget | ClassTarget


class DownstreamTask(TaskType):
    """Training a network that gives the classes of images, or of their voxels."""

    needs = (*TaskType.needs, "batch_transform")
    target: type[Target]  # of batch_transform
    best: Best

    def assemble(self, training: dict, data: Data, held: Held | None = None, imagined: bool = False) -> Task:
        """The task on whole images, or on the patches that the augmentation cuts."""
        target = self.build_target(training)
        if data.facts.latents:
            raise ValueError(f"training.dataset: {data.facts.file} holds latents; training.task={training['task']} "
                             "sees images, choose volumes or samples")
        planned = imagined and not data.facts.source
        predicts = planned_prediction(target, data.facts) if planned else target.prediction(data.facts)
        names, of_voxels = predicts.names, predicts.of_voxels
        augment = build_augment(training, data)
        shape = (data.shape[0], *self.trained_size(augment, data))
        net, loss, optimizer, snapshot = build_parts(training, data, augment, shape, imagined, len(names))
        check_norms(net, training["network"])
        check_output(snapshot.network, shape, names, of_voxels)
        notes = []
        if imagined:
            target, augment = ImaginedTarget(of_voxels), None
        else:
            split = [] if held is None else [getattr(held.dataset, "dataset", held.dataset)]
            tell_only(wanted_parts(predicts), data, *split)
            notes = settle(loss, data, target, predicts)
        task = downstream_task(net, loss, optimizer, replace(snapshot, predicts=predicts), target, self.measured,
                               self.best, augment)
        task.trained_shape, task.notes = shape, notes
        return task

    def build_target(self, training: dict) -> Target:
        """What is learnt; ValueError for what the task does not learn."""
        target = build(training["batch_transform"], path=KEY)
        if not isinstance(target, self.target):
            raise ValueError(f"{KEY}._target_={training['batch_transform']['_target_']}: "
                             f"training.task={training['task']} learns a training.targets.{self.target.__name__}")
        return target

    def trained_size(self, augment: Callable | None, data: Data) -> tuple[int, ...]:
        """Size [*S] of what the network sees in training; ValueError for patches that do not fit the images."""
        return trained_size(augment, data)

    def check(self, training: dict, loss: Any, net: torch.nn.Module | None = None) -> None:
        """ValueError for another target, and for a network with batch norm."""
        self.build_target(training)
        if net is not None:
            check_norms(net, training["network"])

    def factor(self, training: dict, data: PlannedData) -> Sequence[int]:
        """What sizes must divide by, found by trying: networks of a library do not say."""
        dims = len(data.shape) - 1
        return divisor(fill_network(training, data, outputs=2), data.shape[0], dims) or (1,) * dims

    def measured(self, net: torch.nn.Module, loss: Callable, images: torch.Tensor, target: torch.Tensor,
                 snapshot: Any) -> Numbers:
        """Of held-out images [N,C,*S] and their target: sums by name."""
        raise NotImplementedError


class ImaginedTarget:
    """The first class of all images of a batch, or of their voxels: for a plan, whose batches hold images alone."""

    def __init__(self, of_voxels: bool):
        self.of_voxels = of_voxels

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Zeros [N,*S], or [N]."""
        size = batch.images.shape[2:] if self.of_voxels else ()
        return torch.zeros(len(batch.images), *size, dtype=torch.int64, device=batch.images.device)


def downstream_task(net: torch.nn.Module, loss: Callable, optimizer: torch.optim.Optimizer, snapshot: Any,
                    target: Callable[[Batch], torch.Tensor], measured: Callable[..., Numbers], best: Best,
                    augment: Callable | None = None) -> Task:
    """Train net(images) by loss(logits, target), terms by name, on augmented images if asked.

    Images without a target weigh 0 in a step, whose loss is the sum over its images by the batch size, and do not count
    in the means of the log.
    """
    def phase_loss(module: torch.nn.Module, batch: Batch, generators: ImageGenerators) -> LossOutput:
        if augment is not None and module.training:
            batch, _ = augment(batch, generators)
        wanted = target(batch)
        terms = {name: term.sum() for name, term in loss(module(batch.images), wanted).items()}
        count = len(wanted) if wanted.ndim > 1 else (wanted >= 0).sum()
        return LossOutput(sum(terms.values()), count, terms if len(terms) > 1 else {})

    def measure(module: torch.nn.Module, batch: Batch, generators: ImageGenerators) -> Numbers:
        return measured(module, loss, batch.images, target(batch), snapshot)

    return Task([Phase(snapshot.task, net, optimizer, phase_loss)], net, snapshot, measured=measure, best=best)


def settle(loss: Any, data: Any, target: Target, predicts: Prediction) -> list[str]:
    """Count the targets, for balanced weights and for classes that are nowhere; lines to say.

    ValueError where all targets are of one class, or the weights of a loss do not fit the classes.
    """
    weights, names = getattr(loss, "class_weights", None), predicts.names
    weights = weights if isinstance(weights, ClassWeights) else ClassWeights(None)  # of a loss of somebody's own
    counts = count_targets(data, target, len(names), predicts.of_voxels)
    key = f"{KEY}.threshold={predicts.threshold:g}" if predicts.kind == ATTRIBUTE else KEY
    notes = check_classes(names, counts, key, data.facts.source, "voxel" if predicts.of_voxels else "image")
    weights.settle(names, counts)
    if weights.by_data:
        said = ", ".join(f"{name} {w:.4g}" for name, w in zip(names, weights.values, strict=True))
        notes.append(f"Note: training.loss.class_weights=balanced: {said}")
    return notes


def wanted_parts(predicts: Prediction) -> set[str]:
    """The parts of a condition that a target is made of, which data sets must read."""
    return {MAPS: {"semantic"}, CLASSES: {"class_labels"}, ATTRIBUTE: {"attributes"}}.get(predicts.kind, set())


def planned_prediction(target: Target, facts: Facts) -> Prediction:
    """What a network would give of data of which a plan knows the number of classes alone."""
    if isinstance(target, VoxelTarget):
        return target.prediction(facts)
    if target.attribute is not None:
        return Prediction(ATTRIBUTE, ("below", "above"), target.attribute, "", target.threshold)
    if len(facts.label_classes) < 2:
        raise ValueError(f"{KEY}: a plan must know how many classes there are; write --classes K, 2 or more")
    return Prediction(CLASSES, facts.label_classes)
