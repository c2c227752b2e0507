"""Noise schedules of the field as noise levels sigma: what networks were trained on and samplers step through.

A DDPM state sqrt(a) x0 + sqrt(1-a) eps is, divided by sqrt(a), x0 + sigma eps with sigma = sqrt((1-a)/a), a being the
cumulative product of 1-beta.
"""

from math import pi

import torch

from edm3d.utils.checks import check_choice, check_count, check_least, check_positive

SCHEDULES = ("linear", "scaled_linear", "cosine", "sigmoid")


def vp_sigma(t: torch.Tensor, beta_d: float = 19.9, beta_min: float = 0.1) -> torch.Tensor:
    """Noise level of the variance-preserving SDE at time t (Karras et al. 2022, Table 1), in the dtype of t.

    exp - 1 and not expm1, as published networks were trained: in float32 the level at t = 1e-5 is 2.4 % low.
    """
    return ((beta_d * t ** 2 / 2 + beta_min * t).exp() - 1).sqrt()


def vp_time(sigma: torch.Tensor, beta_d: float = 19.9, beta_min: float = 0.1) -> torch.Tensor:
    """Inverse of `vp_sigma`."""
    return ((beta_min ** 2 + 2 * beta_d * (1 + sigma ** 2).log()).sqrt() - beta_min) / beta_d


def check_vp(beta_d: float, beta_min: float, epsilon_t: float) -> None:
    """ValueError for an SDE that makes no noise levels, and for a first time that is none between 0 and 1."""
    check_positive({"beta_d": beta_d, "beta_min": beta_min, "epsilon_t": epsilon_t})
    if not epsilon_t < 1:
        raise ValueError(f"epsilon_t={epsilon_t}: wanted less than 1")


def iddpm_table(M: int = 1000, C_1: float = 0.001, C_2: float = 0.008, dtype: torch.dtype = torch.float64
                ) -> torch.Tensor:
    """Noise levels u [M+1] of improved DDPM, falling to u_M = 0 (Karras et al. 2022, Table 1 and C.3.2).

    The cosine is taken in float32, as in the published implementation: in float64 the smallest level moves by 5e-4.
    """
    check_count(2, {"M": M})
    check_positive({"C_1": C_1})
    check_least(0, {"C_2": C_2})
    alpha_bar = (0.5 * pi * torch.arange(M + 1) / M / (C_2 + 1)).sin() ** 2
    alpha_bar = alpha_bar.to(torch.float32)
    u = torch.zeros(M + 1, dtype=dtype)
    for j in range(M, 0, -1):
        u[j - 1] = ((u[j] ** 2 + 1) / (alpha_bar[j - 1] / alpha_bar[j]).clamp(min=C_1) - 1).sqrt()
    return u


def ddpm_table(schedule: str = "linear", num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02,
               cosine_s: float = 0.008) -> torch.Tensor:
    """Noise levels [num_steps] of DDPM's steps t = 0..num_steps-1, rising, in float64.

    linear and scaled_linear (linear in sqrt(beta), latent diffusion) take beta_start and beta_end (Ho et al. 2020);
    cosine takes cosine_s (Nichol and Dhariwal 2021), sigmoid goes from -3 to 3 (Jabri et al. 2022).
    """
    check_choice("schedule", schedule, SCHEDULES)
    check_count(2, {"num_steps": num_steps})
    check_least(0, {"cosine_s": cosine_s})
    if schedule in ("linear", "scaled_linear") and not 0 < beta_start <= beta_end < 1:
        raise ValueError(f"beta_start={beta_start}, beta_end={beta_end}: wanted 0 < beta_start <= beta_end < 1")
    t = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    if schedule == "linear":
        betas = torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64)
    elif schedule == "scaled_linear":
        betas = torch.linspace(beta_start ** 0.5, beta_end ** 0.5, num_steps, dtype=torch.float64) ** 2
    else:
        if schedule == "cosine":
            alpha_bar = ((t + cosine_s) / (1 + cosine_s) * pi / 2).cos() ** 2
        else:
            alpha_bar = 1 - (6 * t - 3).sigmoid()
            alpha_bar = alpha_bar - alpha_bar[-1]  # 0 at the end; its start, not 1, falls out of the ratios below
        betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    alpha_bar = (1 - betas).cumprod(0)
    return ((1 - alpha_bar) / alpha_bar).sqrt()
