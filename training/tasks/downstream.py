"""What the tasks have in common that tell something of images: segmentation and classification."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from edm3d.formats.prediction import Prediction
from edm3d.inference.batch import Batch
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.patches import PatchAugment
from edm3d.training.phases import Best, LossOutput, Numbers, Phase, Task
from edm3d.training.tasks.base import Data, TaskType, build_augment, build_parts
from edm3d.training.validation import Held
from edm3d.utils.config import build

Measure = Callable[[torch.Tensor, torch.Tensor, Prediction], Numbers]


class DownstreamTask(TaskType):
    """Training a network that gives the classes of images, or of their voxels."""

    needs = (*TaskType.needs, "batch_transform")
    target: type  # of batch_transform
    best: Best

    def assemble(self, training: dict, data: Data, held: Held | None = None, imagined: bool = False) -> Task:
        """The task on whole images, or on the patches that the augmentation cuts."""
        target = build(training["batch_transform"], path="training.batch_transform")
        if not isinstance(target, self.target):
            raise ValueError(f"training.batch_transform._target_={training['batch_transform']['_target_']}: "
                             f"training.task={training['task']} learns a training.targets.{self.target.__name__}")
        if data.facts.latents:
            raise ValueError(f"training.dataset: {data.facts.file} holds latents; training.task={training['task']} "
                             "sees images, choose volumes or samples")
        predicts = target.prediction(data.facts)
        augment = build_augment(training, data)
        shape = tuple(data.shape)
        if isinstance(augment, PatchAugment):
            augment.check(shape[1:])
            shape = (shape[0], *augment.size)
        net, loss, optimizer, snapshot = build_parts(training, data, augment, shape, imagined, len(predicts.names))
        check_norms(net)
        task = downstream_task(net, loss, optimizer, replace(snapshot, predicts=predicts), target, self.measured,
                               self.best, augment)
        task.trained_shape = shape
        return task

    def measured(self, net: torch.nn.Module, images: torch.Tensor, target: torch.Tensor, snapshot: Any) -> Numbers:
        """Of held-out images [N,C,*S] and their target: sums by name."""
        raise NotImplementedError


def downstream_task(net: torch.nn.Module, loss: Callable, optimizer: torch.optim.Optimizer, snapshot: Any,
                    target: Callable[[Batch], torch.Tensor], measured: Callable[..., Numbers], best: Best,
                    augment: Callable | None = None) -> Task:
    """Train net(images) by loss(logits, target), terms by name, on augmented images if asked."""

    def phase_loss(module: torch.nn.Module, batch: Batch, generators: ImageGenerators) -> LossOutput:
        if augment is not None and module.training:
            batch, _ = augment(batch, generators)
        terms = {name: term.sum() for name, term in loss(module(batch.images), target(batch)).items()}
        return LossOutput(sum(terms.values()), len(batch.images), terms if len(terms) > 1 else {})

    def measure(module: torch.nn.Module, batch: Batch, generators: ImageGenerators) -> Numbers:
        return measured(module, loss, batch.images, target(batch), snapshot)

    return Task([Phase(snapshot.task, net, optimizer, phase_loss)], net, snapshot, measured=measure, best=best)


def check_norms(net: torch.nn.Module) -> None:
    """ValueError naming a layer that takes statistics over the images of a batch: ranks would not agree."""
    for name, module in net.named_modules():
        if isinstance(module, _BatchNorm):
            raise ValueError(f"training.network: {name} is a {type(module).__name__}, whose statistics hang on which "
                             "images are on a rank together; choose instance or group norm, as in "
                             "training.network.norm=[group,{num_groups:8}] (norm_name of DynUNet)")
