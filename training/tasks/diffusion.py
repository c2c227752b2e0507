"""The diffusion task: one network, one optimiser, one denoising loss."""

from collections.abc import Callable

import torch

from inference.batch import Batch
from inference.snapshot import Snapshot
from networks.conditioning import Condition
from networks.precond import SLACK, DDPMPrecond, EDMPrecond, VEPrecond, VPPrecond, iDDPMPrecond
from samplers.noise import ImageGenerators
from training.loss import DenoisingLoss, EDMLoss, VELoss, VPLoss
from training.phases import LossOutput, Phase, Task

SHOWN = 0.5  # share of the images in training that a network with self_condition sees its estimate of
# preconditioners: their name in configs/precond and of their loss in configs/loss, and what that loss is
PAIRS = {EDMPrecond: ("edm", EDMLoss), VPPrecond: ("vp", VPLoss), VEPrecond: ("ve", VELoss),
         iDDPMPrecond: ("iddpm", DenoisingLoss), DDPMPrecond: ("ddpm", DenoisingLoss)}


def diffusion_task(net: torch.nn.Module, loss: Callable, optimizer: torch.optim.Optimizer, batch_transform: Callable,
                   snapshot: Snapshot, augment: Callable | None = None) -> Task:
    """Train net(x, sigma, condition[, augment_labels]) by `loss` on what `batch_transform` makes of the batches.

    In training, and not when held-out data is measured, `augment` changes batches and tells the network how, and
    class labels are dropped with probability net.label_dropout.
    """
    takes_classes, label_dropout = bool(getattr(net, "label_dim", 0)), getattr(net, "label_dropout", 0)

    def phase_loss(module: torch.nn.Module, batch: Batch, generators: ImageGenerators) -> LossOutput:
        augment_labels = None
        if augment is not None and module.training:
            batch, augment_labels = augment(batch, generators)
        x, condition = batch_transform(batch, generators)
        if not takes_classes:
            condition = condition._replace(class_labels=None)
        elif label_dropout and module.training:
            condition = drop_labels(condition, label_dropout, generators)
        seen = ToldItsEstimate(module, generators) if getattr(net, "self_condition", False) else module
        out = loss(seen, x, condition, generators, augment_labels)
        per_image = out.loss.flatten(1).mean(1)
        squares = {"data_square": x.square().flatten(1).mean(1).sum()}
        return LossOutput(per_image.sum(), len(x), squares, per_image, out.sigma)

    return Task([Phase("diffusion", net, optimizer, phase_loss)], net, snapshot,
                clean=lambda batch, generators: batch_transform(batch, generators)[0])


class ToldItsEstimate:
    """A network that first makes an estimate without gradients, and sees it then for a share of the images.

    The share SHOWN, decided by each image's own generator; the others see zeros (Chen, Zhang and Hinton 2023).
    """

    def __init__(self, module: torch.nn.Module, generators: ImageGenerators):
        self.module, self.generators = module, generators
        self.sigma_min, self.sigma_max = module.sigma_min, module.sigma_max

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, condition: Condition | None = None,
                 augment_labels: torch.Tensor | None = None) -> torch.Tensor:
        with torch.no_grad():
            estimate = self.module(x, sigma, condition, augment_labels)
        shown = (self.generators.for_purpose("self_condition").rand(()) < SHOWN).to(x.device)
        return self.module(x, sigma, condition, augment_labels, estimate * shown.reshape(-1, *[1] * (x.ndim - 1)))


def drop_labels(condition: Condition, probability: float, generators: ImageGenerators) -> Condition:
    """Hide the class of each image with a probability, decided by the image's own generator."""
    if condition.class_labels is None:
        raise ValueError(f"training.network.label_dropout={probability}, but the data has no classes to drop; "
                         "set it and the network's label_dim to 0, or choose data with classes")
    dropped = generators.for_purpose("label_dropout").rand(()) < probability
    return condition.drop("class_labels", dropped.to(condition.class_labels.device))


def usual_choice(precond: type) -> str:
    """How a preconditioner and the loss that goes with it are chosen."""
    name = PAIRS[precond][0] if precond in PAIRS else None
    return f"precond={name} loss={name}" if name else "as in precond=vp loss=vp"


def unusual_pair(precond: type, loss: type) -> str:
    """A line about a loss of ours that usually goes with another preconditioner, '' where there is nothing to say."""
    known = {usual for _, usual in PAIRS.values()}
    if precond not in PAIRS or loss not in known or loss is PAIRS[precond][1]:
        return ""
    return (f"Note: {loss.__name__} is not the loss that usually goes with {precond.__name__}, which is "
            f"{PAIRS[precond][1].__name__} ({usual_choice(precond)})")


def check_pair(net: torch.nn.Module, loss: Callable) -> None:
    """ValueError when a loss was made for another network: other noise levels, another target or scale of the data."""
    check_noise_range(net, loss)
    for key in ("objective", "sigma_data"):
        ours, theirs = getattr(loss, key, None), getattr(net, key, None)
        if None not in (ours, theirs) and ours != theirs:
            raise ValueError(f"training.loss.{key}={ours}, training.network.{key}={theirs}: wanted the same; leave "
                             f"the loss's away or choose a pair that goes together, {usual_choice(type(net))}")


def check_noise_range(net: torch.nn.Module, loss: Callable) -> None:
    """ValueError when a loss draws noise levels that its network was not made for; without ranges nothing is known."""
    if not (hasattr(net, "sigma_min") and hasattr(net, "sigma_max") and hasattr(loss, "level_range")):
        return
    low, high = loss.level_range()
    sigma_min, sigma_max = float(net.sigma_min), float(net.sigma_max)
    if low < sigma_min / SLACK or high > sigma_max * SLACK:
        raise ValueError(f"training.loss draws noise levels {low:.4g} .. {high:.4g}, training.network knows "
                         f"{sigma_min:.4g} .. {sigma_max:.4g}; choose the loss that goes with the preconditioning, "
                         f"{usual_choice(type(net))}")
