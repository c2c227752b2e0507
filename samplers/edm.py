"""The EDM sampler: Heun's method with optional churn (Karras et al. 2022, Algorithms 1 and 2)."""

from collections.abc import Callable
from itertools import pairwise
from math import inf, sqrt

import torch

from networks.conditioning import Condition
from samplers.grids import edm_grid, user_grid

Denoiser = Callable[..., torch.Tensor]
Callback = Callable[[int, torch.Tensor, torch.Tensor], None]


@torch.no_grad()
def edm_sampler(net: Denoiser, latents: torch.Tensor, *, condition: Condition | None = None,
                randn_like: Callable[[torch.Tensor], torch.Tensor] = torch.randn_like, num_steps: int = 18,
                sigma_min: float = 0.002, sigma_max: float = 80, rho: float = 7, S_churn: float = 0, S_min: float = 0,
                S_max: float = inf, S_noise: float = 1, sigmas: torch.Tensor | None = None,
                callback: Callback | None = None) -> torch.Tensor:
    """Draw x [N,C,*S] in float64 from unit normal latents [N,C,*S].

    S_churn 0 solves the ODE, more adds noise at every level between S_min and S_max (SDE). `sigmas` replaces the grid
    of sigma_min, sigma_max, rho and num_steps. randn_like is called once per step, also when no noise is added, so
    that a seed's stream does not depend on the churn. callback(step, x, denoised) sees every step.
    """
    sigma_min, sigma_max = max(sigma_min, net.sigma_min), min(sigma_max, net.sigma_max)
    grid = edm_grid(num_steps, sigma_min, sigma_max, rho) if sigmas is None else sigmas
    grid = user_grid(grid, net.round_sigma).to(latents.device)
    steps = len(grid) - 1

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return net(x, sigma, condition).to(torch.float64)

    x = latents.to(torch.float64) * grid[0]
    for i, (t, t_next) in enumerate(pairwise(grid)):
        gamma = min(S_churn / steps, sqrt(2) - 1) if S_min <= t <= S_max else 0
        t_hat = torch.as_tensor(net.round_sigma(t + gamma * t), dtype=torch.float64)
        x_hat = x + (t_hat ** 2 - t ** 2).clamp(min=0).sqrt() * S_noise * randn_like(x)
        denoised = denoise(x_hat, t_hat)
        slope = (x_hat - denoised) / t_hat
        x = x_hat + (t_next - t_hat) * slope
        if i < steps - 1:  # second-order correction, except into 0
            slope_next = (x - denoise(x, t_next)) / t_next
            x = x_hat + (t_next - t_hat) * (slope + slope_next) / 2
        if callback is not None:
            callback(i, x, denoised)
    return x
