"""Exponential multistep solvers of the probability-flow ODE: one denoiser call per step, order 1 to 4.

In lambda = -log sigma the ODE is x' = D - x, solved exactly by x(b) = e^(a-b) x(a) + int_a^b e^(s-b) D(s) ds. Adams'
method puts for D the polynomial in lambda through the last evaluations: order 1 is DDIM (Song et al. 2021), order 2
the family of DPM-Solver++(2M) (Lu et al. 2022), any order DEIS in lambda (Zhang and Chen 2023).
"""

from collections.abc import Sequence
from math import exp, prod
from typing import NamedTuple

import numpy as np
import torch

from edm3d.networks.conditioning import Condition
from edm3d.samplers.denoiser import Denoiser
from edm3d.samplers.edm import Callback, RandnLike, denoise
from edm3d.samplers.grids import make_grid
from edm3d.utils.checks import check_choice

ORDERS = (1, 2, 3, 4)
POINTS, POINT_WEIGHTS = (torch.from_numpy(array) / 2 for array in np.polynomial.legendre.leggauss(32))  # on -1/2..1/2


class Evaluation(NamedTuple):
    """What the denoiser said at lam = -log sigma: denoised [N,C,*S], float64."""

    lam: float
    denoised: torch.Tensor


@torch.no_grad()
def multistep_sampler(net: Denoiser, latents: torch.Tensor, *, condition: Condition | None = None,
                      randn_like: RandnLike = torch.randn_like, order: int = 3, num_steps: int = 18,
                      sigma_min: float = 0.002, sigma_max: float = 80, rho: float = 7,
                      sigmas: torch.Tensor | Sequence[float] | None = None, grid: str = "exponential",
                      callback: Callback | None = None) -> torch.Tensor:
    """Draw x [N,C,*S] in float64 from unit normal latents [N,C,*S], with exactly one denoiser call per step.

    A grid of num_steps levels (and 0) takes num_steps calls; levels that rounding made equal are visited once; beside
    sigmas, grid and num_steps have no effect. The last step, into 0, gives the denoised image. randn_like is called
    once per step and what it draws is not used; callback(step, x, denoised) sees every step. ValueError for an order
    that is not 1, 2, 3 or 4.
    """
    check_choice("order", order, ORDERS)
    levels = make_grid(net, sigmas=sigmas, grid=grid, num_steps=num_steps, sigma_min=sigma_min, sigma_max=sigma_max,
                       rho=rho).unique_consecutive()
    lams = (-levels[:-1].log()).tolist()
    x = start = latents.to(torch.float64) * levels[0]
    history: list[Evaluation] = []
    for i, lam in enumerate(lams):
        randn_like(x)
        denoised = denoise(net, x, levels[i], condition)
        history = remember(history, Evaluation(lam, denoised), order, step=i)
        if 0 < i < order:
            x = integrate(start, lams[0], lam, history)
        x = denoised if i == len(lams) - 1 else integrate(x, lam, lams[i + 1], history)
        if callback is not None:
            callback(i, x, denoised)
    return x


def remember(history: list[Evaluation], new: Evaluation, order: int, step: int) -> list[Evaluation]:
    """The last `order` evaluations, newest first, that the next step goes by.

    While starting there are fewer. Then the state is integrated anew from the start through all of them, which makes
    it one order better than the state they were taken at. The one of step 1, taken after a step of order 1, would
    hold order 4 back to 3: it is forgotten once those of steps 2 and 3, taken at better states, are there.
    """
    history = [new, *history]
    if order == 4 and step == 3:
        del history[2]
    return history[:order]


def integrate(x: torch.Tensor, a: float, b: float, history: Sequence[Evaluation]) -> torch.Tensor:
    """The state x at lambda a moved to b, D being the polynomial in lambda through the history."""
    weights = step_weights([evaluation.lam for evaluation in history], a, b)
    return exp(a - b) * x + sum(w * evaluation.denoised for w, evaluation in zip(weights, history, strict=True))


def step_weights(nodes: Sequence[float], a: float, b: float) -> list[float]:
    """int_a^b e^(s-b) l_j(s) ds for the Lagrange polynomials l_j of the nodes, which lie at any distances.

    By Gauss's 32 points, right to rounding from the smallest step to one that divides sigma by 1e20: the phi
    functions of the closed form lose digits to cancellation in small steps.
    """
    s = (a + b) / 2 + (b - a) * POINTS
    kernel = (b - a) * POINT_WEIGHTS * (s - b).exp()
    return [float((kernel * prod((s - m) / (n - m) for m in nodes if m != n)).sum()) for n in nodes]
