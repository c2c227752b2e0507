"""Guidance: a denoiser pushed away from a worse one, which samplers take like any other."""

from collections.abc import Mapping, Sequence
from math import inf, isfinite, isnan
from typing import NamedTuple

import torch

from edm3d.networks.conditioning import NOTHING, Condition, Part, takes_of
from edm3d.networks.parts import PARTS
from edm3d.samplers.calls import Calls
from edm3d.samplers.denoiser import Denoiser, Wrapper


class Strength(NamedTuple):
    """How far guidance goes where low < sigma <= high; elsewhere it is 1, which is the network alone."""

    strength: float
    low: float = 0
    high: float = inf

    @classmethod
    def checked(cls, strength: float, interval: Sequence[float] | None = None) -> "Strength":
        """Of a strength and the ends of its interval, those of all noise levels for None.

        ValueError for a strength below 0, and unless 0 <= lo < hi.
        """
        if not (isfinite(strength) and strength >= 0):
            raise ValueError(f"guidance strength={strength}: wanted a finite number, 0 or more")
        if interval is None:
            return cls(strength)
        if len(interval) != 2 or not 0 <= interval[0] < interval[1]:
            raise ValueError(f"guidance interval={list(interval)}: wanted two noise levels, 0 <= lo < hi")
        return cls(strength, *interval)

    def at(self, levels: torch.Tensor) -> torch.Tensor:
        """The strength at noise levels [L], float64 on their device."""
        acts = (self.low < levels) & (levels <= self.high)
        return torch.ones_like(levels, dtype=torch.float64).masked_fill(acts, self.strength)


class NeverLeftOut(ValueError):
    """A part that is to be left out, by its name, and that the network was never trained without; "": it has none."""

    def __init__(self, part: str, text: str):
        super().__init__(text)
        self.part = part


class Chain(NamedTuple):
    """Conditions that tell ever more, from the first without any guided part to the last, the whole.

    strengths: one fewer; strength i is that of what condition i + 1 tells beyond condition i.
    """

    conditions: list[Condition]
    strengths: list[Strength]


class Guided(Wrapper):
    """D = D(none) + sum_i w_i [D(parts 1..i) - D(parts 1..i-1)], the parts in the order of networks.parts.PARTS.

    The parts are those that the network was trained to do without and that something is told of; others stay in all
    calls. All strengths 1 are the network alone, all 0 the network without these parts, and one w for all is D(none) +
    w [D - D(none)]: classifier-free guidance (Ho and Salimans 2022). parts: strengths of single parts by name, in place
    of strength and interval. Of the calls, those are made whose coefficients 1 - w_1, w_1 - w_2, ... w_m are not 0 for
    all images, so that parts of equal strength share one; calls says whether they are made at once.

    guide: a worse network, told the same, D = D_guide + strength [D - D_guide] (autoguidance, Karras et al. 2024).
    interval (lo, hi): the strength holds where lo < sigma <= hi (Kynkäänniemi et al. 2024), elsewhere it is 1.
    """

    def __init__(self, net: Denoiser, strength: float = 1, interval: Sequence[float] | None = None,
                 guide: Denoiser | None = None, parts: Mapping[str, Strength] | None = None,
                 calls: Calls | None = None):
        super().__init__(net)
        self.guide, self.calls = guide, Calls() if calls is None else calls
        common = Strength.checked(strength, interval)
        if guide is None:
            self.strengths = strengths_of(net, common, parts or {})
        else:
            if parts:
                raise ValueError(f"guidance of parts ({', '.join(parts)}) and another network as guide: wanted one of "
                                 "both; the guide is told the same parts, so that one strength holds for all")
            check_same_inputs(net, guide)
            self.strengths = {"": common}
        self.last: tuple[Condition | None, Chain] | None = None
        self.narrow([net] if guide is None else [net, guide])

    def narrow(self, ranged: Sequence[Denoiser]) -> None:
        """Take the noise levels that all networks know; ValueError where there are none."""
        self.sigma_min = max(float(each.sigma_min) for each in ranged)
        self.sigma_max = min(float(each.sigma_max) for each in ranged)
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"guidance network knows noise levels {self.guide.sigma_min} to {self.guide.sigma_max}: "
                             f"wanted some of the network's, {self.net.sigma_min} to {self.net.sigma_max}")
        if (table := self.noise_table) is not None:
            self.noise_table = table[(self.sigma_min <= table) & (table <= self.sigma_max)]

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: Condition | None = None,
                 augment_labels: torch.Tensor | None = None) -> torch.Tensor:
        conditions, strengths = self.chain(condition)
        shares = coefficients(strengths, torch.as_tensor(sigma).reshape(-1))
        used = (shares != 0).any(1).nonzero().flatten().tolist()
        if self.guide is None:
            denoised = self.calls(self.net, x, sigma, [conditions[i] for i in used], augment_labels)
        else:
            denoised = [(self.guide, self.net)[i](x, sigma, conditions[i], augment_labels) for i in used]
        return mixture(denoised, shares[used])

    def chain(self, condition: Condition | None) -> Chain:
        """The conditions to call with; ValueError when a part that is to be left out is not there.

        Those of the last condition are kept: a sampler has the same at all steps.
        """
        if self.last is None or self.last[0] is not condition:
            self.last = condition, self.chain_of(condition)
        return self.last[1]

    def chain_of(self, condition: Condition | None) -> Chain:
        """The same, made anew."""
        if self.guide is not None:
            return Chain([condition, condition], list(self.strengths.values()))
        condition = NOTHING if condition is None else condition
        for name in self.strengths:
            if name not in condition:
                raise ValueError(f"guidance without a guide drops the {PARTS[name].one}, and condition.{name} is None; "
                                 f"wanted {PARTS[name].one}s for every image, or another network as guide")
        told = [name for name in self.strengths if not is_null(condition, name, self.takes[name])]
        conditions = [condition]
        for name in reversed(told):
            conditions.insert(0, conditions[0].null(name, self.takes[name].width))
        return Chain(conditions, [self.strengths[name] for name in told])


def is_null(condition: Condition, name: str, part: Part) -> bool:
    """Whether a condition says nothing of a part for any of its images."""
    value, null = condition[name], PARTS[name].null(part.width)
    return bool((value.isnan() if isnan(null) else value == null).all())


def coefficients(strengths: Sequence[Strength], levels: torch.Tensor) -> torch.Tensor:
    """What every call of a chain counts at noise levels [L], float64 [1 + strengths, L] on their device; its sum is 1.

    1 - w_1, w_1 - w_2, ..., w_m: exactly 0 where two strengths are the same.
    """
    weights = [torch.ones_like(levels, dtype=torch.float64), *(each.at(levels) for each in strengths)]
    return torch.stack([w - after for w, after in zip(weights, [*weights[1:], torch.zeros_like(weights[0])])])


def mixture(denoised: Sequence[torch.Tensor], shares: torch.Tensor) -> torch.Tensor:
    """Sum of images [N,C,*S] by their shares [calls,L], one for all images or L = N; exactly an image of share 1."""
    if len(denoised) == 1:
        return denoised[0]
    images = [each.to(denoised[-1].dtype) for each in denoised]
    if shares.shape[1] == 1:
        weights = shares.flatten().tolist()
    else:
        weights = shares.to(images[0]).reshape(*shares.shape, *[1] * (images[0].ndim - 1))
    if len(images) == 2:
        return torch.lerp(*images, weights[1])
    return sum(weight * image for weight, image in zip(weights, images, strict=True))


def strengths_of(net: Denoiser, common: Strength, parts: Mapping[str, Strength]) -> dict[str, Strength]:
    """The strength of every part that a network was trained to do without, in the order of PARTS.

    ValueError when there is none, and for a part that it does not take, or cannot do without.
    """
    takes = takes_of(net)
    for name, asked in parts.items():
        check_dropped(name, takes, asked.strength)
    if not takes:
        raise NeverLeftOut("", "guidance: the network takes no class label (label_dim=0) that could be left out; "
                           "wanted another network as guide")
    dropped = [name for name in PARTS if name in takes and takes[name].dropout]
    if not dropped:
        check_dropped(next(iter(takes)), takes, common.strength)
    return {name: parts.get(name, common) for name in dropped}


def check_dropped(name: str, takes: Mapping[str, Part], strength: float) -> None:
    """ValueError unless a network takes a part, and was trained to do without it where the strength is not 1.

    NeverLeftOut for the latter.
    """
    kind = PARTS[name]
    if name not in takes:
        raise ValueError(f"guidance of {name}: the network takes no {kind.one} ({kind.width_key}=0); wanted some of "
                         f"{', '.join(takes) or 'no part'}, or a network trained with {kind.many}")
    if strength != 1 and not takes[name].dropout:
        raise NeverLeftOut(name, f"guidance: the network was never trained with the {kind.one.split()[-1]} dropped "
                           f"({kind.dropout_key}=0); wanted one that was, or another network as guide")


def check_same_inputs(net: Denoiser, guide: Denoiser) -> None:
    """ValueError unless both networks take conditions alike and, as far as they say so, images of the same channels."""
    ours, theirs = ({"in_channels": getattr(getattr(each, "model", None), "in_channels", None),
                     **{kind.width_key: getattr(takes_of(each).get(name), "width", 0) for name, kind in PARTS.items()}}
                    for each in (net, guide))
    for key, wanted in ours.items():
        if None not in (theirs[key], wanted) and theirs[key] != wanted:
            raise ValueError(f"guidance network has {key}={theirs[key]}: wanted the network's, {wanted}")
