"""The autoencoder task: reconstruct images and label maps through a bottleneck, against an adversary if asked."""

from collections.abc import Callable, Iterator, Sequence
from math import inf

import torch

from edm3d.inference.batch import Batch
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.autoencoder import Reconstruction
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.adversarial import Adversary
from edm3d.training.autoencoder_loss import AutoencoderLoss
from edm3d.training.chain import patches_of
from edm3d.training.phases import LossOutput, Phase, Task
from edm3d.training.tasks.base import (
    Data,
    Decoding,
    Lever,
    PlannedData,
    TaskType,
    build_augment,
    build_parts,
    fill_network,
    patch_levers,
    trained_size,
)
from edm3d.training.tasks.codes import CodeWatch, code_totals
from edm3d.training.tasks.previews import build_given_back
from edm3d.training.validation import Held
from edm3d.utils.config import build, fill


class AutoencoderTask(TaskType):
    """Training a first stage."""

    has_adversary, preview = True, staticmethod(build_given_back)

    def assemble(self, training: dict, data: Data, held: Held | None = None, imagined: bool = False) -> Task:
        """The task on whole volumes, or on the patches that the augmentation cuts."""
        augment = build_augment(training, data)
        size = trained_size(augment, data)
        if imagined and training["loss"].get("perceptual_weight"):  # its network lies in a file
            training = {**training, "loss": {**training["loss"], "perceptual_weight": 0}}
        net, loss, optimizer, snapshot = build_parts(training, data, augment, imagined=imagined)
        if getattr(net, "masked", False) and not data.facts.semantic_classes:
            raise ValueError(f"training.network.masked: {data.facts.source} has no maps or label maps to mask its "
                             "images by; wanted such data, or training.network.masked=false")
        try:
            net.latent_shape(data.shape[1:])
        except ValueError as e:
            raise ValueError(f"training.network: {e}") from e
        shape = trained_shape(net, augment, data, size)
        adversary = build_adversary(training["discriminator"], shape)
        if adversary is not None:
            adversary.check(shape)
        if not imagined and isinstance(loss, AutoencoderLoss):
            for size in {shape[1:], *([tuple(data.shape[1:])] if held else [])}:  # patches, and whole volumes
                loss.open(size)
        task = autoencoder_task(net, loss, optimizer, snapshot, None if imagined else augment, adversary,
                                batch_size=training["options"]["batch_size"])
        task.trained_shape = shape
        return task

    def decoding(self, config: dict, data: PlannedData) -> Decoding:
        """One volume by the network itself."""
        return Decoding(lambda: build(fill_network(config["training"], data)), 1, data.shape[1:])

    def levers(self, training: dict, data: PlannedData) -> Iterator[Lever]:
        """Patches, each half of the one before along its longest axis, that the first stage can divide."""
        with torch.device("meta"):
            factor = build(fill_network(training, data)).factor
        yield from patch_levers(training, data, factor)


def autoencoder_task(net: torch.nn.Module, loss: Callable[..., dict[str, torch.Tensor]],
                     optimizer: torch.optim.Optimizer, snapshot: Snapshot, augment: Callable | None = None,
                     adversary: Adversary | None = None, *, batch_size: int) -> Task:
    """Train net(image, label, noise) -> Reconstruction by the terms that `loss` gives, on augmented images if asked.

    batch_size: images per step. Weights that change are those of the step's first image; held-out data is measured
    with the last ones and without the adversary.
    """
    def phase_loss(module: torch.nn.Module, batch: Batch, generators: ImageGenerators) -> LossOutput:
        training = module.training
        if augment is not None and training:
            batch, _ = augment(batch, generators)
        masks = {"semantic": batch.condition.semantic} if getattr(net, "masked", False) else {}
        nimg = step_start(generators.keys, batch_size) if training else inf
        out: Reconstruction = module(batch.images, batch.labels, generators.for_purpose("posterior"), **masks)
        terms, handed = loss(out, batch.images, batch.labels, nimg / 1000, generators), None
        if adversary is not None and training:
            weight = adversary.weight_at(nimg)
            terms["adversarial"] = weight * adversary.reconstruction_loss(out.image, generators) if weight \
                else out.image.new_zeros(len(out.image))
            if adversary.is_on(nimg):
                handed = batch.images, out.image.detach()
        totals = code_totals(net, out.codes, generators, batch_size) if out.codes is not None and training else None
        return weighed(terms, len(batch.images), training)._replace(totals=totals, handed=handed)

    watch = CodeWatch(net) if hasattr(net, "absorb") else None
    phases = [Phase("autoencoder", net, optimizer, phase_loss, absorb=watch.absorb if watch else None)]
    if adversary is not None:
        phases.append(discriminator_phase(adversary))
    return Task(phases, net, snapshot, warn=watch.warn if watch else None)


def discriminator_phase(adversary: Adversary) -> Phase:
    """What the discriminator learns from: the images and reconstructions that the phase before it hands on."""

    def phase_loss(module: torch.nn.Module, batch: Batch, generators: ImageGenerators,
                   handed: tuple[torch.Tensor, torch.Tensor]) -> LossOutput:
        return weighed(adversary.discriminator_loss(module, *handed, generators), len(batch.images), False)

    return Phase("discriminator", adversary.network, adversary.optimizer, phase_loss, adversary.start_kimg)


def step_start(keys: Sequence[int], batch_size: int) -> int:
    """Images that had been seen when the step began that takes the images at these positions of the stream."""
    return keys[0] // batch_size * batch_size


def weighed(terms: dict[str, torch.Tensor], count: int, with_shares: bool) -> LossOutput:
    """The sum of terms [N], with each of them as a part for the log and, if asked, its share of the sum of their sizes.

    ValueError for no terms.
    """
    if not terms:
        raise ValueError("training.loss: every term that this first stage has is of weight 0; wanted one above, as "
                         "training.loss.l1_weight=1")
    shares, terms = {}, {name: value.sum() for name, value in terms.items()}
    if with_shares:
        sizes = {name: value.detach().abs() for name, value in terms.items()}
        total = sum(sizes.values()).clamp_min(1e-30)
        shares = {name: count * size / total for name, size in sizes.items()}
    return LossOutput(sum(terms.values()), count, terms, shares)


def trained_shape(net: torch.nn.Module, augment: Callable | None, data: Data, size: tuple[int, ...]
                  ) -> tuple[int, ...]:
    """Shape [C,*S] of what a first stage sees in training; ValueError for a patch that it cannot divide."""
    if (found := patches_of(augment)) is not None:
        try:
            net.latent_shape(size)
        except ValueError as e:
            raise ValueError(f"{found[0]}.size={list(size)}: {e}") from None  # no size of the data
    return (data.shape[0], *size)


def build_adversary(node: dict, shape: Sequence[int]) -> Adversary | None:
    """The adversary of a first stage that sees images [C,*S], where there is one."""
    if not node:
        return None
    dims = 2 if node.get("per_slice") else len(shape) - 1
    return build(fill(node, in_channels=shape[0], spatial_dims=dims), path="training.discriminator")
