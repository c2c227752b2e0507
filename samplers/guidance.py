"""Guidance: a denoiser pushed away from a worse one, which samplers take like any other."""

from collections.abc import Sequence
from math import inf, isfinite

import torch

from edm3d.networks.conditioning import NOTHING, Condition, takes_of
from edm3d.networks.parts import PARTS
from edm3d.samplers.denoiser import Denoiser, Wrapper


class Guided(Wrapper):
    """D = D_guide + strength (D_net - D_guide): strength 1 is the network alone, 0 the guide alone.

    guide None: the network itself without what it was trained to do without, as its class label (classifier-free
    guidance, Ho and Salimans 2022). A guide: a worse network with the same condition (autoguidance, Karras et al.
    2024). interval (lo, hi): guidance acts where lo < sigma <= hi (Kynkäänniemi et al. 2024), elsewhere the network is
    alone and the guide not called.
    """

    def __init__(self, net: Denoiser, strength: float, interval: Sequence[float] | None = None,
                 guide: Denoiser | None = None):
        if not (isfinite(strength) and strength >= 0):
            raise ValueError(f"guidance strength={strength}: wanted a finite number, 0 or more")
        super().__init__(net)
        self.strength, self.guide = strength, guide
        self.low, self.high = check_interval(interval)
        if guide is None:
            self.dropped = parts_to_drop(net)
        else:
            check_same_inputs(net, guide)
        ranged = [net] if guide is None else [net, guide]
        self.sigma_min = max(float(each.sigma_min) for each in ranged)
        self.sigma_max = min(float(each.sigma_max) for each in ranged)
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"guidance network knows noise levels {guide.sigma_min} to {guide.sigma_max}: wanted some "
                             f"of the network's, {net.sigma_min} to {net.sigma_max}")
        if (table := self.noise_table) is not None:
            self.noise_table = table[(self.sigma_min <= table) & (table <= self.sigma_max)]

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: Condition | None = None,
                 augment_labels: torch.Tensor | None = None) -> torch.Tensor:
        if self.guide is None:
            guide, guide_condition = self.net, self.without(condition)
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

    def without(self, condition: Condition | None) -> Condition:
        """The condition with the null of every part that is dropped; ValueError when one is not there."""
        condition = NOTHING if condition is None else condition
        for part in self.dropped:
            if part not in condition:
                raise ValueError(f"guidance without a guide drops the {PARTS[part].one}, and condition.{part} is None; "
                                 f"wanted {PARTS[part].one}s for every image, or another network as guide")
            condition = condition.null(part, self.takes[part].width)
        return condition


def check_interval(interval: Sequence[float] | None) -> tuple[float, float]:
    """The ends of the interval, those of all noise levels for None; ValueError unless 0 <= lo < hi."""
    if interval is None:
        return 0, inf
    if len(interval) != 2 or not 0 <= interval[0] < interval[1]:
        raise ValueError(f"guidance interval={list(interval)}: wanted two noise levels, 0 <= lo < hi")
    return tuple(interval)


def parts_to_drop(net: Denoiser) -> list[str]:
    """The parts of a condition that a network was trained to do without; ValueError when there is none."""
    takes = takes_of(net)
    if not takes:
        raise ValueError("guidance: the network takes no class label (label_dim=0) that could be left out; wanted "
                         "another network as guide (sampling.guidance.network)")
    dropped = [name for name, part in takes.items() if part.dropout]
    if not dropped:
        kind = PARTS[next(iter(takes))]
        raise ValueError(f"guidance: the network was never trained with the {kind.one.split()[-1]} dropped "
                         f"({kind.dropout_key}=0); train with training.network.{kind.dropout_key}=0.1, or take another "
                         "network as guide (sampling.guidance.network)")
    return dropped


def check_same_inputs(net: Denoiser, guide: Denoiser) -> None:
    """ValueError unless both networks take conditions alike and, as far as they say so, images of the same channels."""
    ours, theirs = ({"in_channels": getattr(getattr(each, "model", None), "in_channels", None),
                     **{kind.width_key: getattr(takes_of(each).get(name), "width", 0) for name, kind in PARTS.items()}}
                    for each in (net, guide))
    for key, wanted in ours.items():
        if None not in (theirs[key], wanted) and theirs[key] != wanted:
            raise ValueError(f"guidance network has {key}={theirs[key]}: wanted the network's, {wanted}")
