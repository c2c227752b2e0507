"""Noise grids: the decreasing noise levels a sampler visits, last 0."""

from collections.abc import Callable

import torch


def edm_grid(num_steps: int, sigma_min: float, sigma_max: float, rho: float) -> torch.Tensor:
    """float64 [num_steps+1]: polynomial grid of Karras et al. 2022, Eq. 5, and a final 0."""
    if num_steps < 2:
        raise ValueError(f"num_steps={num_steps}: wanted 2 or more")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}: wanted 0 < sigma_min < sigma_max")
    ramp = torch.arange(num_steps, dtype=torch.float64) / (num_steps - 1)
    sigmas = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def user_grid(sigmas: torch.Tensor, round_sigma: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """A grid given by the user or computed, rounded to what the network knows; ValueError unless it falls to 0."""
    sigmas = torch.as_tensor(sigmas, dtype=torch.float64)
    falls = sigmas.ndim == 1 and len(sigmas) > 1 and bool(sigmas.isfinite().all() and (sigmas.diff() < 0).all())
    if not falls or sigmas[-1] != 0:
        raise ValueError("sigmas: wanted a decreasing list of noise levels that ends in 0")
    return torch.cat([round_sigma(sigmas[:-1]).to(torch.float64), sigmas[-1:]])
