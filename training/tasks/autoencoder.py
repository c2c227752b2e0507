"""The autoencoder task: reconstruct images and label maps through a bottleneck, against an adversary if asked."""

from collections.abc import Callable, Sequence
from math import inf

import torch

from inference.batch import Batch
from inference.snapshot import Snapshot
from networks.autoencoder import Reconstruction
from samplers.noise import ImageGenerators
from training.adversarial import Adversary
from training.phases import LossOutput, Phase, Task
from training.tasks.codes import CodeWatch, code_totals

Rounds = dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]]


def autoencoder_task(net: torch.nn.Module, loss: Callable[..., dict[str, torch.Tensor]],
                     optimizer: torch.optim.Optimizer, snapshot: Snapshot, augment: Callable | None = None,
                     adversary: Adversary | None = None, *, batch_size: int) -> Task:
    """Train net(image, label, noise) -> Reconstruction by the terms that `loss` gives, on augmented images if asked.

    batch_size: images per step. Weights that change are those of the step's first image; held-out data is measured
    with the last ones and without the adversary.
    """
    rounds: Rounds = {}  # images and reconstructions of this step that the discriminator is yet to see

    def phase_loss(module: torch.nn.Module, batch: Batch, generators: ImageGenerators) -> LossOutput:
        training = module.training
        if augment is not None and training:
            batch, _ = augment(batch, generators)
        nimg = step_start(generators.keys, batch_size) if training else inf
        out: Reconstruction = module(batch.images, batch.labels, generators.for_purpose("posterior"))
        terms = loss(out, batch.images, batch.labels, nimg / 1000, generators)
        if adversary is not None and training:
            weight = adversary.weight_at(nimg)
            terms["adversarial"] = weight * adversary.reconstruction_loss(out.image, generators) if weight \
                else out.image.new_zeros(len(out.image))
            if adversary.is_on(nimg):
                rounds[tuple(generators.keys)] = batch.images, out.image.detach()
        totals = code_totals(net, out.codes, generators, batch_size) if out.codes is not None and training else None
        return weighed({name: value.sum() for name, value in terms.items()}, len(batch.images), training, totals)

    watch = CodeWatch(net) if hasattr(net, "absorb") else None
    phases = [Phase("autoencoder", net, optimizer, phase_loss, absorb=watch.absorb if watch else None)]
    if adversary is not None:
        phases.append(discriminator_phase(adversary, rounds))
    return Task(phases, net, snapshot, warn=watch.warn if watch else None)


def discriminator_phase(adversary: Adversary, rounds: Rounds) -> Phase:
    """What the discriminator learns from: the images and reconstructions that the phase before it left in `rounds`."""

    def phase_loss(module: torch.nn.Module, batch: Batch, generators: ImageGenerators) -> LossOutput:
        terms = adversary.discriminator_loss(module, *rounds.pop(tuple(generators.keys)), generators)
        terms = {name: value.sum() for name, value in terms.items()}
        return LossOutput(sum(terms.values()), len(batch.images), terms)

    return Phase("discriminator", adversary.network, adversary.optimizer, phase_loss, adversary.start_kimg)


def step_start(keys: Sequence[int], batch_size: int) -> int:
    """Images that had been seen when the step began that takes the images at these positions of the stream."""
    return keys[0] // batch_size * batch_size


def weighed(terms: dict[str, torch.Tensor], count: int, with_shares: bool, totals: dict[str, torch.Tensor] | None
            ) -> LossOutput:
    """The sum of terms, with each of them, and its share of the sum of their sizes, as parts for the log.

    ValueError for no terms.
    """
    if not terms:
        raise ValueError("training.loss: every term that this first stage has is of weight 0; wanted one above, as "
                         "training.loss.l1_weight=1")
    parts = dict(terms)
    if with_shares:
        sizes = {name: value.detach().abs() for name, value in terms.items()}
        total = sum(sizes.values()).clamp_min(1e-30)
        parts.update({f"share/{name}": count * size / total for name, size in sizes.items()})
    return LossOutput(sum(terms.values()), count, parts, totals=totals)
