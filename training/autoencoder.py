"""The autoencoder task: reconstruct images and label maps through a bottleneck."""

from collections.abc import Callable

import torch

from networks.autoencoder import Reconstruction
from samplers.noise import ImageGenerators
from training.batch import Batch, LossOutput, Phase, Task


def autoencoder_task(net: torch.nn.Module, loss: Callable[..., dict[str, torch.Tensor]],
                     optimizer: torch.optim.Optimizer, snapshot: dict, augment: Callable | None = None) -> Task:
    """Train net(image, label, eps) -> Reconstruction by the terms that `loss` gives, on augmented images if asked."""

    def phase_loss(module: torch.nn.Module, batch: Batch, generators: ImageGenerators) -> LossOutput:
        if augment is not None and module.training:
            batch, _ = augment(batch, generators)
        latent_shape = net.latent_shape(batch.images.shape[2:])
        eps = generators.for_purpose("posterior").randn(latent_shape).to(batch.images.device)
        out: Reconstruction = module(batch.images, batch.labels, eps)
        terms = {name: value.sum() for name, value in loss(out, batch.images, batch.labels).items()}
        return LossOutput(sum(terms.values()), len(batch.images), terms)

    return Task([Phase("autoencoder", net, optimizer, phase_loss)], net, snapshot)
