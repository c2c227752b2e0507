"""Exponential moving average of weights, with its memory counted in images."""

from math import isfinite

import torch

from edm3d.training.trainable import moving


def halflives(value: float | list[float]) -> list[float]:
    """Half-lives in kimg that `ema_halflife_kimg` asks for, the main one first; ValueError for what is none."""
    wanted = value if isinstance(value, list) else [value]
    numbers = [v for v in wanted if isinstance(v, (int, float)) and not isinstance(v, bool) and isfinite(v) and v > 0]
    if not wanted or numbers != wanted or len({f"{v:g}" for v in numbers}) < len(numbers):
        raise ValueError(f"training.options.ema_halflife_kimg={value}: wanted a number above 0, or a list of different "
                         "ones")
    return [float(v) for v in numbers]


def ema_beta(nimg: int, batch_size: int, halflife_kimg: float, rampup_ratio: float | None) -> float:
    """Share of the old average that a step keeps; nimg is the number of images seen before the step.

    The half-life is at most rampup_ratio times the images seen, so that the first average is a plain copy.
    """
    halflife = halflife_kimg * 1000
    if rampup_ratio is not None:
        halflife = min(halflife, nimg * rampup_ratio)
    return 0.5 ** (batch_size / max(halflife, 1e-8))


@torch.no_grad()
def update_ema(ema: torch.nn.Module, net: torch.nn.Module, beta: float) -> None:
    """ema = beta * ema + (1 - beta) * net for parameters that are trained, adapters merged."""
    averaged, trained = dict(ema.named_parameters()), dict(moving(net))
    torch._foreach_lerp_([averaged[name] for name in trained], list(trained.values()), 1 - beta)


@torch.no_grad()
def copy_buffers(ema: torch.nn.Module, net: torch.nn.Module) -> None:
    """Give an average the buffers of its network, which are not averaged."""
    for old, new in zip(ema.buffers(), net.buffers(), strict=True):
        old.copy_(new)
