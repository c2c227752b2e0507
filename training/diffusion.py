"""The diffusion task: one network, one optimiser, one denoising loss."""

from collections.abc import Callable

import torch

from samplers.noise import ImageGenerators
from training.batch import Batch, LossOutput, Phase, Task


def diffusion_task(net: torch.nn.Module, loss: Callable, optimizer: torch.optim.Optimizer, batch_transform: Callable,
                   snapshot: dict) -> Task:
    """Train net(x, sigma, condition) by `loss` on what `batch_transform` makes of the batches."""

    def phase_loss(module: torch.nn.Module, batch: Batch, generators: ImageGenerators) -> LossOutput:
        x, condition = batch_transform(batch, generators)
        if not getattr(net, "label_dim", 0):
            condition = condition._replace(class_labels=None)
        per_image = loss(module, x, condition, generators).loss.flatten(1).mean(1)
        squares = {"data_square": x.square().flatten(1).mean(1).sum()}
        return LossOutput(per_image.sum(), len(x), squares)

    return Task([Phase("diffusion", net, optimizer, phase_loss)], net, snapshot)
