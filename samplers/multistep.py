"""Multistep solvers of the probability-flow ODE: one denoiser call per step, order 1 to 4.

Exponential: in lambda = -log sigma the ODE is x' = D - x, solved exactly by x(b) = e^(a-b) x(a) + int_a^b e^(s-b) D(s)
ds. Adams' method puts for D the polynomial in lambda through the last evaluations: order 1 is DDIM (Song et al. 2021),
order 2 the family of DPM-Solver++(2M) (Lu et al. 2022), any order DEIS in lambda (Zhang and Chen 2023).

With fixed coefficients: dx/dsigma = (x - D) / sigma by the coefficients of Adams and Bashforth for equal steps,
whatever the steps are: iPNDM (Zhang and Chen 2023, from the PNDM of Liu et al. 2022). It ends further from the solution
in many steps, and much nearer to it in few.
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
VARIABLE, FIXED = COEFFICIENTS = ("variable", "fixed")
# the newest slope first
EQUAL_STEPS = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
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
                      callback: Callback | None = None, coefficients: str = VARIABLE) -> torch.Tensor:
    """Draw x [N,C,*S] in float64 from unit normal latents [N,C,*S], with exactly one denoiser call per step.

    coefficients: variable, the exponential method for levels at any distances, or fixed, iPNDM. A grid of num_steps
    levels (and 0) takes num_steps calls; levels that rounding made equal are visited once; beside sigmas, grid and
    num_steps have no effect. The last step, into 0, gives the denoised image. randn_like is called once per step and
    what it draws is not used; callback(step, x, denoised) sees every step. ValueError for an order that is not 1, 2, 3
    or 4, and for other coefficients.
    """
    check_choice("order", order, ORDERS)
    check_choice("coefficients", coefficients, COEFFICIENTS)
    levels = make_grid(net, sigmas=sigmas, grid=grid, num_steps=num_steps, sigma_min=sigma_min, sigma_max=sigma_max,
                       rho=rho).unique_consecutive()
    x = latents.to(torch.float64) * levels[0]
    method = Exponential(levels, order, x) if coefficients == VARIABLE else FixedCoefficients(levels, order)
    for i, sigma in enumerate(levels[:-1]):
        randn_like(x)
        denoised = denoise(net, x, sigma, condition)
        x = denoised if i == len(levels) - 2 else method(i, x, denoised)
        if callback is not None:
            callback(i, x, denoised)
    return x


class FixedCoefficients:
    """Steps of dx/dsigma by as many of the last slopes as there are, up to `order`, weighed as for equal steps."""

    def __init__(self, levels: torch.Tensor, order: int):
        self.levels, self.order = levels, order
        self.slopes: list[torch.Tensor] = []  # newest first

    def __call__(self, i: int, x: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
        """The state x at level i moved to the next one."""
        self.slopes = [(x - denoised) / self.levels[i], *self.slopes][:self.order]
        weights = EQUAL_STEPS[len(self.slopes) - 1]
        slope = sum(weight * each for weight, each in zip(weights, self.slopes, strict=True))
        return x + (self.levels[i + 1] - self.levels[i]) * slope


class Exponential:
    """Steps of the exponential method from a start, the state at the first level."""

    def __init__(self, levels: torch.Tensor, order: int, start: torch.Tensor):
        self.lams, self.order, self.start = (-levels[:-1].log()).tolist(), order, start
        self.history: list[Evaluation] = []

    def __call__(self, i: int, x: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
        """The state x at level i moved to the next one."""
        lam = self.lams[i]
        self.history = remember(self.history, Evaluation(lam, denoised), self.order, step=i)
        if 0 < i < self.order:
            x = integrate(self.start, self.lams[0], lam, self.history)
        return integrate(x, lam, self.lams[i + 1], self.history)


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
