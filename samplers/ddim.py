"""DDIM and ancestral DDPM sampling in the EDM parametrisation, x = x0 + sigma eps."""

from collections.abc import Sequence
from itertools import pairwise

import torch

from edm3d.networks.conditioning import Condition
from edm3d.samplers.denoiser import Denoiser
from edm3d.samplers.edm import Callback, RandnLike, denoise
from edm3d.samplers.grids import make_grid


@torch.no_grad()
def ddim_sampler(net: Denoiser, latents: torch.Tensor, *, condition: Condition | None = None,
                 randn_like: RandnLike = torch.randn_like, num_steps: int = 100, eta: float = 0,
                 grid: str | None = None, sigma_min: float = 0.002, sigma_max: float = 80, rho: float = 7,
                 clip: float | None = None, sigmas: torch.Tensor | Sequence[float] | None = None,
                 callback: Callback | None = None, S_noise: float = 1) -> torch.Tensor:
    """Draw x [N,C,*S] in float64 from unit normal latents [N,C,*S], one network call per step.

    eta 0 is DDIM (Song et al. 2021, Eq. 12), which is Euler's method in sigma; eta 1 is ancestral DDPM with the exact
    posterior variance (Ho et al. 2020, Eq. 7). grid None visits the levels that the network was trained on, where it
    has a table of them, else the polynomial grid; levels that rounding made equal are visited once; beside sigmas, grid
    and num_steps have no effect. clip bounds the denoised image to -clip..clip. S_noise scales what is drawn anew: with
    eta 1 and less than 1, images are nearer to the expected one and have less spread than the data, and 0 ends in an
    estimate of it. randn_like is called once per step, also when eta is 0; callback(step, x, denoised) sees every step.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta}: wanted 0 (DDIM) to 1 (DDPM)")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip={clip}: wanted more than 0, or null for none")
    if not S_noise >= 0:
        raise ValueError(f"S_noise={S_noise}: wanted 0 or more")
    levels = make_grid(net, sigmas=sigmas, grid=grid, num_steps=num_steps, sigma_min=sigma_min, sigma_max=sigma_max,
                       rho=rho).unique_consecutive()
    x = latents.to(torch.float64) * levels[0]
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        denoised = denoise(net, x, sigma, condition)
        if clip is not None:
            denoised = denoised.clamp(-clip, clip)
        fresh = eta ** 2 * (1 - (sigma_next / sigma) ** 2)  # share of the variance at sigma_next that is drawn anew
        eps = (x - denoised) / sigma
        x = denoised + sigma_next * ((1 - fresh).sqrt() * eps + fresh.sqrt() * S_noise * randn_like(x))
        if callback is not None:
            callback(i, x, denoised)
    return x
