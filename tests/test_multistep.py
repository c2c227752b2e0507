"""Multistep solvers against closed forms: integrals, polynomial denoisers, Gaussian data, a mixture's converged end."""

from functools import cache
from itertools import pairwise
from math import exp, expm1, log, sqrt

import numpy as np
import pytest
import torch

from benchmarks.solver_error import CONVERGED_CALLS, FEW, MANY, median_error, mixtures, multistep
from edm3d.networks.conditioning import Condition
from edm3d.networks.schedules import iddpm_table
from edm3d.samplers import ddim_sampler, make_grid, multistep_sampler
from edm3d.samplers.multistep import step_weights
from tests.denoisers import F64, Denoiser, gaussian

LATENTS = torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(0))
UNEVEN = [80.0, 30.0, 20.0, 6.0, 5.0, 1.3, 0.4, 0.3, 0.02, 0.0]


# ---- weights ----


@pytest.mark.parametrize("h", [1e-12, 1e-6, 0.3, 5, 40])
def test_weights_of_one_node_are_the_integral_of_the_exponential(h):
    assert step_weights([2.0], 2.0, 2.0 + h) == pytest.approx([-expm1(-(2.0 + h - 2.0))], rel=1e-14)


@pytest.mark.parametrize(("a", "b"), [(-4, -3.6), (0.5, 4.0), (-3.0, 20.0), (1.0, 1.2)])
def test_weights_integrate_polynomials_of_uneven_nodes_exactly(a, b):
    nodes = [a, a - 0.7, a - 0.75, a - 2.1]
    weights = step_weights(nodes, a, b)

    def antiderivative(power: int, s: float) -> float:
        """Of e^(s-b) (s-a)^power, by parts."""
        below = power * antiderivative(power - 1, s) if power else 0
        return exp(s - b) * (s - a) ** power - below

    for power in range(4):
        wanted = antiderivative(power, b) - antiderivative(power, a)
        got = sum(w * (node - a) ** power for w, node in zip(weights, nodes, strict=True))
        size = sum(abs(w) * abs(node - a) ** power for w, node in zip(weights, nodes, strict=True))
        assert abs(got - wanted) <= 1e-13 * (size + abs(wanted)), power


def test_small_steps_weigh_like_adams_and_bashforth():
    h = 1e-5
    adams = [55 / 24, -59 / 24, 37 / 24, -9 / 24]
    assert step_weights([0, -h, -2 * h, -3 * h], 0, h) == pytest.approx([h * w for w in adams], rel=3 * h)


# ---- what is exact ----


@pytest.mark.parametrize(("order", "degree"), [(1, 0), (2, 1), (3, 2), (4, 2)])
def test_denoisers_that_are_polynomials_in_log_sigma_are_solved_exactly(order, degree):
    polynomial = np.polynomial.Polynomial([0.3, -0.5, 0.2, 0.1][:degree + 1])
    derivatives = [polynomial.deriv(k) for k in range(degree + 1)]

    def particular(lam: float) -> float:  # p - p' + p'' - ... solves x' = p - x
        return sum((-1) ** k * p(lam) for k, p in enumerate(derivatives))

    net = Denoiser(lambda x, sigma: torch.full_like(x, polynomial(-log(sigma))))
    states = []
    multistep_sampler(net, LATENTS, order=order, sigmas=UNEVEN, callback=lambda i, x, _: states.append(x))
    start, end = -log(UNEVEN[0]), -log(UNEVEN[-2])
    wanted = particular(end) + (LATENTS.to(F64) * UNEVEN[0] - particular(start)) * exp(start - end)
    torch.testing.assert_close(states[-2], wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_fixed_coefficients_integrate_slopes_over_equal_steps_exactly(order):
    """Slopes that are polynomials in sigma of a degree below the order, once there are enough of them."""
    slope = np.polynomial.Polynomial([0.3, -0.5, 0.2, 0.1][:order])
    net = Denoiser(lambda x, sigma: x - sigma * slope(float(sigma)))
    sigmas, states = [10.0, 9, 8, 7, 6, 5, 4, 0], []
    multistep_sampler(net, LATENTS, order=order, coefficients="fixed", sigmas=sigmas,
                      callback=lambda i, x, _: states.append(x))
    for i in range(order - 1, 5):  # state i stands at level i + 1
        wanted = slope.integ()(sigmas[i + 2]) - slope.integ()(sigmas[i + 1])
        torch.testing.assert_close(states[i + 1] - states[i], torch.full_like(states[i], wanted), rtol=1e-11, atol=1e-9)


def test_fixed_coefficients_are_those_of_equal_steps_at_any_distances():
    slopes = {80.0: 1.0, 30.0: -2.0, 20.0: 3.0, 6.0: 0.5, 5.0: 4.0, 1.0: 0.0}
    net = Denoiser(lambda x, sigma: x - sigma * slopes[float(sigma)])
    states = []
    multistep_sampler(net, LATENTS, order=4, coefficients="fixed", sigmas=[*slopes, 0.0],
                      callback=lambda i, x, _: states.append(x))
    moves = [-50 * 1, -10 * (3 * -2 - 1) / 2, -14 * (23 * 3 - 16 * -2 + 5 * 1) / 12,
             -1 * (55 * 0.5 - 59 * 3 + 37 * -2 - 9 * 1) / 24, -4 * (55 * 4 - 59 * 0.5 + 37 * 3 - 9 * -2) / 24]
    wanted = LATENTS.to(F64) * 80 + torch.tensor(moves, dtype=F64).cumsum(0).reshape(-1, 1, 1, 1, 1)
    torch.testing.assert_close(torch.stack(states[:5]), wanted, rtol=1e-12, atol=0)


def test_order_1_is_ddim():
    net = gaussian(0.5, mean=1.5)
    torch.testing.assert_close(multistep_sampler(net, LATENTS, order=1, sigmas=UNEVEN),
                               ddim_sampler(net, LATENTS, sigmas=UNEVEN), rtol=1e-12, atol=0)


# ---- order of the error ----


def slope_at_sigma_min(order: int, sd: float, levels: dict, latents: torch.Tensor) -> float:
    """Order at which the state at sigma_min nears the closed form, fitted over errors 1e-2 to 1e-7."""
    gain = sqrt((sd ** 2 + levels["sigma_min"] ** 2) / (sd ** 2 + levels["sigma_max"] ** 2)) * levels["sigma_max"]
    points = []
    for num_steps in (8, 11, 16, 23, 32, 45, 64, 91, 128):
        states = []
        multistep_sampler(gaussian(sd), latents, order=order, num_steps=num_steps, **levels,
                          callback=lambda i, x, _, states=states: states.append(x))
        error = float((states[-2] / (gain * latents) - 1).abs().max())
        if 1e-7 <= error <= 1e-2:
            points.append((log(num_steps - 1), log(error)))
    assert len(points) >= 4
    return -np.polyfit(*zip(*points, strict=True), 1)[0]


@pytest.mark.parametrize("size", [(5,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize(("order", "least"), [(2, 1.8), (3, 2.7), (4, 3.5)])
def test_error_falls_with_the_order(order, least, size):
    latents = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(1)).to(F64)
    slope = slope_at_sigma_min(order, 0.5, {"sigma_min": 0.002, "sigma_max": 80}, latents)
    assert least <= slope <= order + 1.2, slope


@pytest.mark.parametrize(("order", "least"), [(2, 1.8), (3, 2.7), (4, 3.5)])
def test_first_steps_do_not_hold_the_order_back(order, least):
    """Where sigma_max is the size of the data, an error of the first steps stays."""
    slope = slope_at_sigma_min(order, 1.0, {"sigma_min": 0.01, "sigma_max": 1}, torch.ones(1, 1, 1, dtype=F64))
    assert slope >= least, slope


@pytest.mark.parametrize(("grid", "levels"), [("polynomial", {"rho": 5}), ("cosine", {"sigma_min": 0.1}),
                                              ("exponential", {"sigma_max": 20})])
def test_grid_is_the_one_asked_for(grid, levels):
    net = gaussian(0.5)
    multistep_sampler(net, LATENTS, num_steps=12, grid=grid, **levels)
    assert net.sigmas == make_grid(net, grid=grid, num_steps=12, **levels)[:-1].tolist()


@cache
def mixture_errors(order: int, number: int) -> dict[int, float]:
    """Error of an order on one of the benchmark's mixtures, by number of calls."""
    problem = mixtures()[number]
    end = multistep(3, "exponential", problem, CONVERGED_CALLS)
    return {calls: median_error(multistep(order, "exponential", problem, calls), end) for calls in (FEW, MANY)}


def test_order_4_on_eight_gaussians_reaches_what_the_benchmark_claims():
    """The best peer's error at 35 calls is 7.0e-3 (DPM-Solver++(2M) of diffusers 0.42.1)."""
    errors = mixture_errors(4, 0)
    assert errors[FEW] < 7.0e-3 and errors[MANY] < 7.0e-4 / 2, errors


@pytest.mark.parametrize("number", [0, 1, 2])
def test_fixed_coefficients_end_nearest_after_few_calls(number):
    """iPNDM of order 3 in 8 calls, on the grid that it comes with, against orders 2 to 4 on every grid."""
    problem = mixtures()[number]
    end = multistep(3, "exponential", problem, CONVERGED_CALLS)
    ours = median_error(multistep_sampler(problem.net, problem.latents, order=3, num_steps=8, coefficients="fixed",
                                          grid="focused"), end)
    others = [median_error(multistep(order, grid, problem, 8), end)
              for order in (2, 3, 4) for grid in ("exponential", "focused", "polynomial")]
    assert ours < min(others) / 2, (ours, others)


@pytest.mark.parametrize("number", [1, 2])
def test_higher_orders_are_more_exact_on_the_other_mixtures(number):
    errors = [mixture_errors(order, number)[MANY] for order in (1, 2, 3, 4)]
    assert all(after < before / 2 for before, after in pairwise(errors)), errors


# ---- manners ----


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_every_step_is_one_call_one_draw_and_one_look(order):
    net, draws, seen = gaussian(0.5), [], []

    def randn_like(x: torch.Tensor) -> torch.Tensor:
        draws.append((x.shape, x.dtype))
        return torch.full_like(x, float("nan"))  # must not enter

    x = multistep_sampler(net, LATENTS, order=order, num_steps=7, randn_like=randn_like,
                          callback=lambda *step: seen.append(step))
    assert net.sigmas == pytest.approx(make_grid(net, grid="exponential", num_steps=7)[:-1].tolist(), rel=1e-12)
    assert draws == [(LATENTS.shape, F64)] * 7
    assert [i for i, _, _ in seen] == list(range(7))
    assert x.dtype == F64 and torch.equal(seen[-1][1], x) and torch.equal(seen[-1][2], x)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4])
def test_fewer_steps_than_the_order_work(num_steps):
    sigmas = [80.0, 5.0, 0.5, 0.02][:num_steps] + [0.0]
    x = multistep_sampler(gaussian(0.5), LATENTS, order=4, sigmas=sigmas)
    assert x.isfinite().all()


def test_levels_that_rounding_made_equal_are_visited_once():
    net = Denoiser(gaussian(0.5).formula, sigma_min=0.002, sigma_max=80, table=[80, 10, 1, 0.1, 0.002])
    draws = []
    x = multistep_sampler(net, LATENTS, order=4, num_steps=40,
                          randn_like=lambda x: draws.append(1) or torch.randn_like(x))
    assert net.sigmas == [80, 10, 1, 0.1, 0.002] and len(draws) == 5
    assert x.isfinite().all()


def test_levels_of_a_discrete_network_are_its_own():
    table = iddpm_table()[:-1]
    net = Denoiser(gaussian(0.5).formula, sigma_min=float(table[-1]), sigma_max=float(table[0]), table=table)
    multistep_sampler(net, LATENTS, num_steps=12, grid="table")
    assert len(net.sigmas) == 12 and set(net.sigmas) <= set(table.tolist())


def test_condition_reaches_every_call_of_the_network():
    net, condition = gaussian(0.5), Condition(class_labels=torch.ones(2, 3))
    multistep_sampler(net, LATENTS, num_steps=5, condition=condition)
    assert len(net.conditions) == 5 and all(c is condition for c in net.conditions)


def test_float32_network_is_solved_in_float64():
    net = Denoiser(lambda x, sigma: gaussian(0.5).formula(x, sigma).float())
    x = multistep_sampler(net, LATENTS, num_steps=20)
    assert x.dtype == F64
    torch.testing.assert_close(x, multistep_sampler(gaussian(0.5), LATENTS, num_steps=20), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"order": 5}, "order=5: wanted one of 1, 2, 3, 4"),
    ({"order": 0}, "order=0"), ({"order": 3.0}, "order=3.0: wanted one of 1, 2, 3, 4"),
    ({"order": True}, "order=True: wanted one of"), ({"order": "3"}, "order='3'"),
    ({"num_steps": 1}, "num_steps=1"), ({"num_steps": "18"}, "num_steps='18': wanted a whole number of 2 or more"),
    ({"grid": "linear"}, "grid='linear'"), ({"coefficients": "any"}, "coefficients='any': wanted one of"),
    ({"grid": "tuned"}, "grid='tuned': no levels are tuned here"),
    ({"sigmas": [1.0, 2.0, 0.0]}, "sigmas"),
])
def test_bad_settings_are_refused(arguments, message):
    net = gaussian(0.5)
    with pytest.raises(ValueError, match=message):
        multistep_sampler(net, LATENTS, **arguments)
    assert net.sigmas == []
