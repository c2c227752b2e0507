"""Noise grids: the decreasing noise levels a sampler visits, last 0."""

from collections.abc import Callable, Sequence
from math import inf
from typing import Protocol

import torch

from edm3d.utils.checks import check_count

GRIDS = ("polynomial", "exponential", "focused", "cosine", "table")
FOCUS = 0.5  # standard deviation of what EDM networks see, around which D bends most
FLOAT32_SLACK = 1e-6  # a user's levels may have been rounded to float32


class NoiseRange(Protocol):
    """What a grid asks of a network: its range, its own levels (None = any) and the nearest level it knows."""

    sigma_min: float
    sigma_max: float
    noise_table: torch.Tensor | None
    round_sigma: Callable[[torch.Tensor], torch.Tensor]


def edm_grid(num_steps: int, sigma_min: float, sigma_max: float, rho: float) -> torch.Tensor:
    """float64 [num_steps+1]: polynomial grid of Karras et al. 2022, Eq. 5, and a final 0.

    Its ends may be off sigma_max and sigma_min by a last digit, which decides whether churn bounded there acts on them.
    """
    ramp = _ramp(num_steps, sigma_min, sigma_max)
    if not 0 < rho < inf:
        raise ValueError(f"rho={rho}: wanted a positive number")
    sigmas = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return _end_in_zero(sigmas)


def exponential_grid(num_steps: int, sigma_min: float, sigma_max: float) -> torch.Tensor:
    """float64 [num_steps+1]: geometric from sigma_max to sigma_min, and a final 0."""
    ramp = _ramp(num_steps, sigma_min, sigma_max)
    return _end_in_zero(sigma_max * (sigma_min / sigma_max) ** ramp)


def focused_grid(num_steps: int, sigma_min: float, sigma_max: float) -> torch.Tensor:
    """float64 [num_steps+1]: evenly spaced in l + tanh(l/2), l = log(sigma/0.5), and a final 0.

    An exponential grid that lies up to half again as close around the standard deviation of the data.
    """
    ramp = _ramp(num_steps, sigma_min, sigma_max)
    low, high = (torch.tensor([sigma_min, sigma_max], dtype=torch.float64) / FOCUS).log()
    places = torch.lerp(high + (high / 2).tanh(), low + (low / 2).tanh(), ramp)
    logs = places.clone()
    for _ in range(40):  # the slope is 1 to 1.5, so that each round leaves a fifth of the error
        logs -= (logs + (logs / 2).tanh() - places) / 1.25
    return _end_in_zero(FOCUS * logs.exp())


def cosine_grid(num_steps: int, sigma_min: float, sigma_max: float) -> torch.Tensor:
    """float64 [num_steps+1]: sigma = tan of an evenly spaced angle from atan(sigma_max) to atan(sigma_min), then 0.

    A state of angle a is cos(a) x0 + sin(a) eps: the cosine schedule (Nichol and Dhariwal 2021) without its offset.
    """
    ramp = _ramp(num_steps, sigma_min, sigma_max)
    low, high = torch.tensor([sigma_min, sigma_max], dtype=torch.float64).atan()
    return _end_in_zero((high + ramp * (low - high)).tan())


def table_grid(num_steps: int, noise_table: torch.Tensor) -> torch.Tensor:
    """float64 [num_steps+1]: evenly spaced entries of noise_table [M] (falling), both ends included, and a final 0."""
    check_count(2, {"num_steps": num_steps})
    last = len(noise_table) - 1
    if num_steps - 1 > last:
        raise ValueError(f"num_steps={num_steps}: wanted no more than the {last + 1} noise levels of the table")
    picks = (last / (num_steps - 1) * torch.arange(num_steps, dtype=torch.float64)).round().long()
    return _end_in_zero(noise_table.to("cpu", torch.float64)[picks])


def named_grid(grid: str | None, net: NoiseRange, num_steps: int, sigma_min: float, sigma_max: float, rho: float
               ) -> torch.Tensor:
    """float64 [num_steps+1], falling to 0: the grid called `grid`; None: table where there is one, else polynomial.

    polynomial takes rho; table takes its levels from the network, whatever sigma_min, sigma_max and rho.
    """
    table = getattr(net, "noise_table", None)  # a denoiser without the attribute has none
    if grid is None:
        grid = "polynomial" if table is None else "table"
    if grid == "polynomial":
        return edm_grid(num_steps, sigma_min, sigma_max, rho)
    if grid == "exponential":
        return exponential_grid(num_steps, sigma_min, sigma_max)
    if grid == "focused":
        return focused_grid(num_steps, sigma_min, sigma_max)
    if grid == "cosine":
        return cosine_grid(num_steps, sigma_min, sigma_max)
    if grid == "table":
        if table is None:
            raise ValueError("grid='table': the network was trained on a range of noise levels and has no table; "
                             f"wanted one of {', '.join(GRIDS[:-1])}")
        return table_grid(num_steps, table)
    stored = "no levels are tuned here (dataset_tool.py tune-grid keeps some in a snapshot); " * (grid == "tuned")
    raise ValueError(f"grid={grid!r}: {stored}wanted one of {', '.join(GRIDS)}")


def user_grid(sigmas: torch.Tensor | Sequence[float], net: NoiseRange) -> torch.Tensor:
    """A user's own grid in float64, rounded to levels the network knows.

    ValueError unless it falls to 0, lies (but for the 0) within the network's range and still falls when rounded.
    """
    sigmas = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu")
    if sigmas.ndim != 1 or len(sigmas) < 2 or not _falls(sigmas) or sigmas[-1] != 0:
        raise ValueError(f"sigmas={sigmas.tolist()}: wanted a decreasing list of noise levels that ends in 0")
    if sigmas[0] > net.sigma_max * (1 + FLOAT32_SLACK) or sigmas[-2] < net.sigma_min * (1 - FLOAT32_SLACK):
        raise ValueError(f"sigmas go from {float(sigmas[0])} to {float(sigmas[-2])} (and 0): wanted levels within the "
                         f"network's range, {net.sigma_min} to {net.sigma_max}")
    rounded = _round(sigmas, net)
    if not _falls(rounded):
        raise ValueError(f"sigmas={sigmas.tolist()}: two levels become one when rounded to those the network was "
                         f"trained on, {rounded.tolist()}; leave some out")
    return rounded


def make_grid(net: NoiseRange, *, sigmas: torch.Tensor | Sequence[float] | None = None,
              grid: str | None = "polynomial", num_steps: int = 18, sigma_min: float = 0.002, sigma_max: float = 80,
              rho: float = 7) -> torch.Tensor:
    """The levels a sampler visits, float64 [steps+1] on the CPU, falling to 0: `sigmas` if given, else the named grid.

    Beside sigmas the other arguments have no effect. A named grid is narrowed to the network's range and rounded to
    levels it knows, after which a level may come twice; a user's own is refused instead.
    """
    if sigmas is not None:
        return user_grid(sigmas, net)
    sigma_min, sigma_max = narrow_range(net, sigma_min, sigma_max)
    return _round(named_grid(grid, net, num_steps, sigma_min, sigma_max, rho), net)


def narrow_range(net: NoiseRange, sigma_min: float, sigma_max: float) -> tuple[float, float]:
    """The part of sigma_min..sigma_max within the network's range; ValueError where there is none."""
    low, high = max(sigma_min, float(net.sigma_min)), min(sigma_max, float(net.sigma_max))
    if not 0 < low < high < inf:
        raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}: wanted 0 < sigma_min < sigma_max, finite, "
                         f"with a part in the network's range, {net.sigma_min} to {net.sigma_max}")
    return low, high


def _ramp(num_steps: int, sigma_min: float, sigma_max: float) -> torch.Tensor:
    check_count(2, {"num_steps": num_steps})
    if not 0 < sigma_min < sigma_max < inf:
        raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}: wanted 0 < sigma_min < sigma_max, finite")
    return torch.arange(num_steps, dtype=torch.float64) / (num_steps - 1)


def _end_in_zero(sigmas: torch.Tensor) -> torch.Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def _falls(sigmas: torch.Tensor) -> bool:
    return bool(sigmas.isfinite().all() and (sigmas.diff() < 0).all())


def _round(sigmas: torch.Tensor, net: NoiseRange) -> torch.Tensor:
    """The levels but the last, which stays 0, as the network knows them."""
    return _end_in_zero(net.round_sigma(sigmas[:-1]).to("cpu", torch.float64))
