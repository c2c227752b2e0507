"""The EDM sampler: Heun's method with optional churn (Karras et al. 2022, Algorithms 1 and 2)."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import inf, sqrt

import torch

from edm3d.networks.conditioning import Condition
from edm3d.samplers.denoiser import Denoiser
from edm3d.samplers.grids import make_grid

RandnLike = Callable[[torch.Tensor], torch.Tensor]
Callback = Callable[[int, torch.Tensor, torch.Tensor], None]


@torch.no_grad()
def edm_sampler(net: Denoiser, latents: torch.Tensor, *, condition: Condition | None = None,
                randn_like: RandnLike = torch.randn_like, num_steps: int = 18, sigma_min: float = 0.002,
                sigma_max: float = 80, rho: float = 7, S_churn: float = 0, S_min: float = 0, S_max: float = inf,
                S_noise: float = 1, sigmas: torch.Tensor | Sequence[float] | None = None,
                callback: Callback | None = None, grid: str = "polynomial") -> torch.Tensor:
    """Draw x [N,C,*S] in float64 from unit normal latents [N,C,*S].

    S_churn 0 solves the ODE, more adds noise at every level between S_min and S_max (SDE). `sigmas` replaces the grid
    of grid, sigma_min, sigma_max, rho and num_steps. randn_like is called once per step, also when no noise is added,
    so that a seed's stream does not depend on the churn. callback(step, x, denoised) sees every step.
    """
    check_churn(S_churn, S_min, S_max, S_noise)
    t_steps = make_grid(net, sigmas=sigmas, grid=grid, num_steps=num_steps, sigma_min=sigma_min, sigma_max=sigma_max,
                        rho=rho)
    steps = len(t_steps) - 1
    x = latents.to(torch.float64) * t_steps[0]
    for i, (t, t_next) in enumerate(pairwise(t_steps)):
        t_hat = churned_level(net, t, steps, S_churn, S_min, S_max)
        x_hat = x + (t_hat ** 2 - t ** 2).clamp(min=0).sqrt() * S_noise * randn_like(x)
        denoised = denoise(net, x_hat, t_hat, condition)
        slope = (x_hat - denoised) / t_hat
        x = x_hat + (t_next - t_hat) * slope
        if i < steps - 1:  # second-order correction, except into 0
            slope_next = (x - denoise(net, x, t_next, condition)) / t_next
            x = x_hat + (t_next - t_hat) * (slope + slope_next) / 2
        if callback is not None:
            callback(i, x, denoised)
    return x


def denoise(net: Denoiser, x: torch.Tensor, sigma: torch.Tensor, condition: Condition | None) -> torch.Tensor:
    """D(x; sigma) in float64, whatever the network computes in."""
    return net(x, sigma, condition).to(torch.float64)


def churned_level(net: Denoiser, sigma: torch.Tensor, steps: int, S_churn: float, S_min: float, S_max: float
                  ) -> torch.Tensor:
    """The level that noise is added up to, one the network knows; sigma itself outside S_min..S_max (Algorithm 2)."""
    if S_churn == 0 or not S_min <= sigma <= S_max:
        return sigma
    gamma = min(S_churn / steps, sqrt(2) - 1)
    return net.round_sigma(sigma + gamma * sigma).to("cpu", torch.float64)


def check_churn(S_churn: float, S_min: float, S_max: float, S_noise: float) -> None:
    """ValueError for churn that cannot be."""
    for key, got in (("S_churn", S_churn), ("S_noise", S_noise)):
        if not got >= 0:
            raise ValueError(f"{key}={got}: wanted 0 or more")
    if not S_min <= S_max:
        raise ValueError(f"S_min={S_min}, S_max={S_max}: wanted S_min <= S_max, the levels between which churn acts")
