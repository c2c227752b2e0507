"""The diffusion task: one network, one optimiser, one denoising loss."""

from collections.abc import Callable, Mapping

import torch

from inference.batch import Batch
from inference.snapshot import Snapshot
from networks.conditioning import Condition, Part, takes_of
from networks.parts import PARTS
from networks.precond import SLACK
from samplers.denoiser import Wrapper
from samplers.noise import ImageGenerators
from training.loss import USUAL
from training.phases import LossOutput, Phase, Task

SHOWN = 0.5  # share of the images in training that a network with self_condition sees its estimate of


def diffusion_task(net: torch.nn.Module, loss: Callable, optimizer: torch.optim.Optimizer, batch_transform: Callable,
                   snapshot: Snapshot, augment: Callable | None = None) -> Task:
    """Train net(x, sigma, condition[, augment_labels]) by `loss` on what `batch_transform` makes of the batches.

    In training, and not when held-out data is measured, `augment` changes batches and tells the network how, and
    parts of the condition are dropped as often as net.takes says. What it does not take is left aside.
    """
    takes, shows = takes_of(net), Wrapper(net).self_condition

    def phase_loss(module: torch.nn.Module, batch: Batch, generators: ImageGenerators) -> LossOutput:
        augment_labels = None
        if augment is not None and module.training:
            batch, augment_labels = augment(batch, generators)
        x, condition = batch_transform(batch, generators)
        condition = condition.only(takes)
        if module.training:
            condition = drop_parts(condition, takes, generators)
        seen = ToldItsEstimate(module, generators) if shows else module
        out = loss(seen, x, condition, generators, augment_labels)
        per_image = out.loss.flatten(1).mean(1)
        squares = {"data_square": x.square().flatten(1).mean(1).sum()}
        return LossOutput(per_image.sum(), len(x), squares, per_image, out.sigma)

    return Task([Phase("diffusion", net, optimizer, phase_loss)], net, snapshot,
                clean=lambda batch, generators: batch_transform(batch, generators)[0])


class ToldItsEstimate(Wrapper):
    """A network that first makes an estimate without gradients, and sees it then for a share of the images.

    The share SHOWN, decided by each image's own generator; the others see zeros (Chen, Zhang and Hinton 2023).
    """

    self_condition = False  # nobody else needs to tell it

    def __init__(self, net: torch.nn.Module, generators: ImageGenerators):
        super().__init__(net)
        self.generators = generators

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: Condition | None = None,
                 augment_labels: torch.Tensor | None = None) -> torch.Tensor:
        with torch.no_grad():
            estimate = self.net(x, sigma, condition, augment_labels)
        shown = (self.generators.for_purpose("self_condition").rand(()) < SHOWN).to(x.device)
        return self.net(x, sigma, condition, augment_labels, estimate * shown.reshape(-1, *[1] * (x.ndim - 1)))


def drop_parts(condition: Condition, takes: Mapping[str, Part], generators: ImageGenerators) -> Condition:
    """Hide each part of each image as often as a network takes it, decided by the image's own generator."""
    for name, part in takes.items():
        if part.dropout:
            kind = PARTS[name]
            if name not in condition:
                raise ValueError(f"training.network.{kind.dropout_key}={part.dropout}, but the data has no {kind.many} "
                                 f"to drop; set it and the network's {kind.width_key} to 0, or choose data with "
                                 f"{kind.many}")
            dropped = generators.for_purpose(kind.dropout_key).rand(()) < part.dropout
            condition = condition.drop(name, dropped.to(condition[name].device), part.width)
    return condition


def usual_choice(precond: type) -> str:
    """How a preconditioner and the loss that goes with it are chosen."""
    name = getattr(precond, "usual", None)
    return f"precond={name} loss={name}" if name else "as in precond=vp loss=vp"


def unusual_pair(precond: type, loss: type) -> str:
    """A line about a loss of ours that usually goes with another preconditioner, '' where there is nothing to say."""
    usual = USUAL.get(getattr(precond, "usual", None))
    if usual in (None, loss) or loss not in USUAL.values():
        return ""
    return (f"Note: {loss.__name__} is not the loss that usually goes with {precond.__name__}, which is "
            f"{usual.__name__} ({usual_choice(precond)})")


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
