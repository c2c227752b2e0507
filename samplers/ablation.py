"""The sampler of the EDM paper's ablation: any noise schedule sigma(t), scaling s(t), time steps and solver.

Karras et al. 2022, Table 1 and Algorithms 1 to 3. The state is x = s(t) (x0 + sigma(t) n).
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import inf, log
from typing import NamedTuple

import torch

from edm3d.networks.conditioning import Condition
from edm3d.networks.schedules import iddpm_table, vp_sigma, vp_time
from edm3d.samplers.denoiser import Denoiser
from edm3d.samplers.edm import Callback, RandnLike, check_churn, churned_level, denoise
from edm3d.samplers.grids import edm_grid, narrow_range, table_grid
from edm3d.utils.checks import check_choice, check_count

SOLVERS = ("euler", "heun")
DISCRETIZATIONS = ("vp", "ve", "iddpm", "edm")
SCHEDULES = ("vp", "ve", "linear")
SCALINGS = ("vp", "none")


class Schedule(NamedTuple):
    """Noise level sigma(t), its derivative and its inverse, all float64."""

    sigma: Callable[[torch.Tensor], torch.Tensor]
    sigma_prime: Callable[[torch.Tensor], torch.Tensor]
    time: Callable[[torch.Tensor], torch.Tensor]


class Scaling(NamedTuple):
    """Scale of the state s(t) and its derivative."""

    s: Callable[[torch.Tensor], torch.Tensor]
    s_prime: Callable[[torch.Tensor], torch.Tensor]


VE = Schedule(torch.sqrt, lambda t: 0.5 / t.sqrt(), torch.square)
LINEAR = Schedule(lambda t: t, torch.ones_like, lambda sigma: sigma)  # EDM's: time is the noise level
NO_SCALING = Scaling(torch.ones_like, torch.zeros_like)


def vp_schedule(beta_d: float, beta_min: float) -> Schedule:
    """Variance-preserving: sigma = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)."""
    def sigma(t: torch.Tensor) -> torch.Tensor:
        return vp_sigma(t, beta_d, beta_min)

    return Schedule(sigma, lambda t: (beta_min + beta_d * t) * (sigma(t) + 1 / sigma(t)) / 2,
                    lambda level: vp_time(level, beta_d, beta_min))


def vp_scaling(schedule: Schedule) -> Scaling:
    """s = 1 / sqrt(1 + sigma^2): the state of unit-variance data keeps unit variance."""
    def s(t: torch.Tensor) -> torch.Tensor:
        return 1 / (1 + schedule.sigma(t) ** 2).sqrt()

    return Scaling(s, lambda t: -schedule.sigma(t) * schedule.sigma_prime(t) * s(t) ** 3)


@dataclass(frozen=True)
class ProbabilityFlow:
    """The ODE of a denoiser under a noise schedule and a scaling (Karras et al. 2022, Eq. 4)."""

    net: Denoiser
    condition: Condition | None
    schedule: Schedule
    scaling: Scaling

    def slope(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """dx/dt and the denoised image D at time t (Algorithm 1, line 4)."""
        sigma, sigma_prime = self.schedule.sigma(t), self.schedule.sigma_prime(t)
        s, s_prime = self.scaling.s(t), self.scaling.s_prime(t)
        denoised = denoise(self.net, x / s, sigma, self.condition)
        return (sigma_prime / sigma + s_prime / s) * x - sigma_prime * s / sigma * denoised, denoised

    def add_noise(self, x: torch.Tensor, t: torch.Tensor, sigma_hat: torch.Tensor, noise: torch.Tensor
                  ) -> tuple[torch.Tensor, torch.Tensor]:
        """The state raised from time t to noise level sigma_hat, and its new time (Algorithm 2, lines 5 and 6)."""
        t_hat = self.schedule.time(sigma_hat)
        # sigma_hat and not sigma(t_hat): the root of a difference in the last digits would be noise where none is due
        added = (sigma_hat ** 2 - self.schedule.sigma(t) ** 2).clamp(min=0).sqrt()
        return self.scaling.s(t_hat) * (x / self.scaling.s(t) + added * noise), t_hat

    def euler_step(self, x: torch.Tensor, t: torch.Tensor, t_next: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """First order: x at t_next, and D at t."""
        slope, denoised = self.slope(x, t)
        return x + (t_next - t) * slope, denoised

    def heun_step(self, x: torch.Tensor, t: torch.Tensor, t_next: torch.Tensor, alpha: float
                  ) -> tuple[torch.Tensor, torch.Tensor]:
        """Second order, the second slope taken a fraction alpha of the way (Algorithm 3): x at t_next, and D at t."""
        h = t_next - t
        slope, denoised = self.slope(x, t)
        slope_prime, _ = self.slope(x + alpha * h * slope, t + alpha * h)
        return x + h * ((1 - 1 / (2 * alpha)) * slope + 1 / (2 * alpha) * slope_prime), denoised


@torch.no_grad()
def ablation_sampler(net: Denoiser, latents: torch.Tensor, *, condition: Condition | None = None,
                     randn_like: RandnLike = torch.randn_like, num_steps: int = 18, solver: str = "heun",
                     discretization: str = "edm", schedule: str = "linear", scaling: str = "none",
                     sigma_min: float | None = None, sigma_max: float | None = None, rho: float = 7, alpha: float = 1,
                     epsilon_s: float = 1e-3, C_1: float = 0.001, C_2: float = 0.008, M: int = 1000,
                     S_churn: float = 0, S_min: float = 0, S_max: float = inf, S_noise: float = 1,
                     callback: Callback | None = None) -> torch.Tensor:
    """Draw x [N,C,*S] in float64 from unit normal latents [N,C,*S] by any mixture of the paper's samplers.

    Every keyword has the paper's meaning (Table 1); rho serves discretization edm, epsilon_s vp, M, C_1 and C_2 iddpm,
    alpha solver heun: 1 = Heun, 1/2 = midpoint. sigma_min and sigma_max None: the discretization's own. randn_like is
    called once per step; callback(step, x, denoised) sees the state x = s(t) (x0 + sigma(t) n).
    """
    check_choice("solver", solver, SOLVERS)
    check_choice("discretization", discretization, DISCRETIZATIONS)
    check_choice("schedule", schedule, SCHEDULES)
    check_choice("scaling", scaling, SCALINGS)
    check_count(2, {"num_steps": num_steps})
    check_churn(S_churn, S_min, S_max, S_noise)
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha={alpha}: wanted more than 0 and at most 1")
    sigma_min, sigma_max = sampling_range(net, discretization, sigma_min, sigma_max, epsilon_s)
    levels = noise_levels(discretization, num_steps, sigma_min, sigma_max, rho=rho, epsilon_s=epsilon_s, M=M, C_1=C_1,
                          C_2=C_2)
    sigma_of = noise_schedule(schedule, sigma_min, sigma_max, epsilon_s)
    flow = ProbabilityFlow(net, condition, sigma_of, vp_scaling(sigma_of) if scaling == "vp" else NO_SCALING)
    t_steps = sigma_of.time(net.round_sigma(levels).to("cpu", torch.float64))
    t_steps = torch.cat([t_steps, t_steps.new_zeros(1)])
    x = latents.to(torch.float64) * (sigma_of.sigma(t_steps[0]) * flow.scaling.s(t_steps[0]))
    for i, (t, t_next) in enumerate(pairwise(t_steps)):
        sigma_hat = churned_level(net, sigma_of.sigma(t), num_steps, S_churn, S_min, S_max)
        x_hat, t_hat = flow.add_noise(x, t, sigma_hat, S_noise * randn_like(x))
        if solver == "euler" or i == num_steps - 1:  # no slope at 0
            x, denoised = flow.euler_step(x_hat, t_hat, t_next)
        else:
            x, denoised = flow.heun_step(x_hat, t_hat, t_next, alpha)
        if callback is not None:
            callback(i, x, denoised)
    return x


def sampling_range(net: Denoiser, discretization: str, sigma_min: float | None, sigma_max: float | None,
                   epsilon_s: float) -> tuple[float, float]:
    """sigma_min and sigma_max, by default those of the discretization (Table 1), within the network's range."""
    if not 0 < epsilon_s < 1:
        raise ValueError(f"epsilon_s={epsilon_s}: wanted more than 0 and less than 1")
    ends = torch.tensor([epsilon_s, 1], dtype=torch.float64)
    defaults = {"vp": vp_sigma(ends).tolist(), "ve": (0.02, 100), "iddpm": (0.002, 81), "edm": (0.002, 80)}
    low, high = defaults[discretization]
    return narrow_range(net, low if sigma_min is None else sigma_min, high if sigma_max is None else sigma_max)


def fit_vp(sigma_min: float, sigma_max: float, epsilon_s: float) -> tuple[float, float]:
    """beta_d and beta_min of the VP schedule with sigma(epsilon_s) = sigma_min and sigma(1) = sigma_max."""
    low, high = log(1 + sigma_min ** 2) / epsilon_s, log(1 + sigma_max ** 2)
    beta_d = 2 * (high - low) / (1 - epsilon_s)
    beta_min = high - beta_d / 2
    if beta_d + beta_min <= 0 or beta_d == 0:
        raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}, epsilon_s={epsilon_s}: no VP schedule rises "
                         "from sigma_min at time epsilon_s to sigma_max at 1; wanted a smaller sigma_min or another "
                         "epsilon_s")
    return beta_d, beta_min


def noise_levels(discretization: str, num_steps: int, sigma_min: float, sigma_max: float, *, rho: float,
                 epsilon_s: float, M: int, C_1: float, C_2: float) -> torch.Tensor:
    """float64 [num_steps], falling: the noise levels that Table 1's time steps stand for, without the final 0."""
    ramp = torch.arange(num_steps, dtype=torch.float64) / (num_steps - 1)
    if discretization == "vp":
        return vp_sigma(1 + ramp * (epsilon_s - 1), *fit_vp(sigma_min, sigma_max, epsilon_s))
    if discretization == "ve":
        return (sigma_max ** 2 * (sigma_min ** 2 / sigma_max ** 2) ** ramp).sqrt()
    if discretization == "iddpm":
        u = iddpm_table(M, C_1, C_2)
        return table_grid(num_steps, u[(u >= sigma_min) & (u <= sigma_max)])[:-1]
    return edm_grid(num_steps, sigma_min, sigma_max, rho)[:-1]


def noise_schedule(schedule: str, sigma_min: float, sigma_max: float, epsilon_s: float) -> Schedule:
    """sigma(t) by name; the VP one is fitted to the range."""
    if schedule == "vp":
        return vp_schedule(*fit_vp(sigma_min, sigma_max, epsilon_s))
    return VE if schedule == "ve" else LINEAR
