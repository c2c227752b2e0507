"""Guidance: a denoiser pushed away from a worse one, which samplers take like any other."""

from collections.abc import Sequence
from math import inf, isfinite

import torch

from networks.conditioning import Condition
from samplers.edm import Denoiser


class Guided:
    """D = D_guide + strength (D_net - D_guide): strength 1 is the network alone, 0 the guide alone.

    guide None: the network itself without its class label (classifier-free guidance, Ho and Salimans 2022). A guide: a
    worse network with the same condition (autoguidance, Karras et al. 2024). interval (lo, hi): guidance acts where
    lo < sigma <= hi (Kynkäänniemi et al. 2024), elsewhere the network is alone and the guide not called.
    """

    def __init__(self, net: Denoiser, strength: float, interval: Sequence[float] | None = None,
                 guide: Denoiser | None = None):
        if not (isfinite(strength) and strength >= 0):
            raise ValueError(f"guidance strength={strength}: wanted a finite number, 0 or more")
        self.net, self.strength, self.guide = net, strength, guide
        self.low, self.high = check_interval(interval)
        if guide is None:
            check_label_was_dropped(net)
        else:
            check_same_inputs(net, guide)
        ranged = [net] if guide is None else [net, guide]
        self.sigma_min = max(float(each.sigma_min) for each in ranged)
        self.sigma_max = min(float(each.sigma_max) for each in ranged)
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"guidance network knows noise levels {guide.sigma_min} to {guide.sigma_max}: wanted some "
                             f"of the network's, {net.sigma_min} to {net.sigma_max}")
        self.label_dim, self.round_sigma, table = net.label_dim, net.round_sigma, net.noise_table
        self.noise_table = table if table is None else table[(self.sigma_min <= table) & (table <= self.sigma_max)]

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: Condition | None = None,
                 augment_labels: torch.Tensor | None = None) -> torch.Tensor:
        """D [N,C,*S] of x [N,C,*S] at sigma [N] or a number, in the dtype of the network's."""
        if self.guide is None:
            guide, guide_condition = self.net, without_label(condition)
        else:
            guide, guide_condition = self.guide, condition
        denoised = self.net(x, sigma, condition, augment_labels)
        levels = torch.as_tensor(sigma)
        guided = (self.low < levels) & (levels <= self.high)
        if not guided.any():
            return denoised
        from_guide = guide(x, sigma, guide_condition, augment_labels).to(denoised.dtype)
        guided = guided.to(x.device).reshape(-1, *[1] * (x.ndim - 1))
        return torch.where(guided, torch.lerp(from_guide, denoised, self.strength), denoised)


def without_label(condition: Condition | None) -> Condition:
    """The condition with its class label left out; ValueError when there is none to leave out."""
    if condition is None or condition.class_labels is None:
        raise ValueError("guidance without a guide drops the class label, and condition.class_labels is None; wanted "
                         "class labels [N,K], or another network as guide")
    everywhere = torch.ones(len(condition.class_labels), dtype=torch.bool, device=condition.class_labels.device)
    return condition.drop("class_labels", everywhere)


def check_interval(interval: Sequence[float] | None) -> tuple[float, float]:
    """The ends of the interval, those of all noise levels for None; ValueError unless 0 <= lo < hi."""
    if interval is None:
        return 0, inf
    if len(interval) != 2 or not 0 <= interval[0] < interval[1]:
        raise ValueError(f"guidance interval={list(interval)}: wanted two noise levels, 0 <= lo < hi")
    return tuple(interval)


def check_label_was_dropped(net: Denoiser) -> None:
    """ValueError unless the network takes a class label and was trained to do without it."""
    if net.label_dim == 0:
        raise ValueError("guidance: the network takes no class label (label_dim=0) that could be left out; wanted "
                         "another network as guide (sampling.guidance.network)")
    if net.label_dropout == 0:
        raise ValueError("guidance: the network was never trained with the label dropped (label_dropout=0); train with "
                         "training.network.label_dropout=0.1, or take another network as guide "
                         "(sampling.guidance.network)")


def check_same_inputs(net: Denoiser, guide: Denoiser) -> None:
    """ValueError unless both networks take as many classes and, as far as they say so, images of the same channels."""
    channels, wanted_channels = (getattr(getattr(each, "model", None), "in_channels", None) for each in (guide, net))
    for key, got, wanted in (("in_channels", channels, wanted_channels), ("label_dim", guide.label_dim, net.label_dim)):
        if None not in (got, wanted) and got != wanted:
            raise ValueError(f"guidance network has {key}={got}: wanted the network's, {wanted}")
