"""The ablation sampler against the paper's reference runs and against Gaussian data, whose answers are known."""

import json
from itertools import product
from math import log2, sqrt

import numpy as np
import pytest
import torch

from edm3d.networks.conditioning import Condition
from edm3d.networks.schedules import iddpm_table
from edm3d.samplers import ablation_sampler, edm_sampler
from edm3d.samplers.ablation import (
    LINEAR,
    NO_SCALING,
    VE,
    fit_vp,
    noise_levels,
    noise_schedule,
    sampling_range,
    vp_scaling,
    vp_schedule,
)
from tests.denoisers import F64, Denoiser, assert_reference_run, gaussian, random_draws
from tests.reference import FULL, stored

ALL_OF_THE_PAPER = {"_".join(("abl", *names)) for names in product(
    ("euler", "heun"), ("vp", "ve", "iddpm", "edm"), ("vp", "ve", "linear"), ("vp", "none"))}
TABLE_1 = {"rho": 7, "epsilon_s": 1e-3, "M": 1000, "C_1": 0.001, "C_2": 0.008}


def reference_names(vectors) -> list[str]:
    """Names of the reference runs of the ablation sampler."""
    return sorted({key.split("/")[1] for key in vectors if key.startswith("sampler/abl")})


VECTORS = stored("edm_samplers")


@pytest.fixture(scope="module")
def all_vectors(shared) -> dict[str, np.ndarray]:
    """All reference runs, of which tests/data holds a part."""
    with np.load(shared / FULL) as archive:
        return {k: archive[k] for k in archive.files if k.startswith(("sampler", "denoiser/"))}


# ---- reference numbers ----


def assert_reference_times(vectors: dict[str, np.ndarray], name: str) -> None:
    """Range, VP constants, noise levels and times of a reference run."""
    config = json.loads(str(vectors[f"sampler/{name}/config"]))
    kwargs, net = config["kwargs"], Denoiser(None, **config["net"])
    sigma_min, sigma_max = sampling_range(net, kwargs["discretization"], kwargs.get("sigma_min"),
                                          kwargs.get("sigma_max"), 1e-3)
    vp = fit_vp(sigma_min, sigma_max, 1e-3)  # beta_d, beta_min
    levels = noise_levels(kwargs["discretization"], kwargs["num_steps"], sigma_min, sigma_max, **TABLE_1)
    t_steps = noise_schedule(kwargs["schedule"], sigma_min, sigma_max, 1e-3).time(levels)
    for key, got in (("scalars", [sigma_min, sigma_max, *vp]), ("sigma_steps", levels),
                     ("t_steps", [*t_steps, 0])):
        np.testing.assert_allclose(got, vectors[f"sampler/{name}/{key}"], rtol=1e-10, err_msg=f"{name} {key}")


@pytest.mark.parametrize("name", reference_names(VECTORS))
def test_sampler_gives_the_reference_numbers(name):
    assert_reference_times(VECTORS, name)
    assert_reference_run(VECTORS, name, ablation_sampler)


def test_own_reference_runs_have_every_choice_of_the_paper():
    named = [name.split("_")[1:] for name in reference_names(VECTORS) if name in ALL_OF_THE_PAPER]
    choices = [set(column) for column in zip(*named, strict=True)]
    assert choices == [{"euler", "heun"}, {"vp", "ve", "iddpm", "edm"}, {"vp", "ve", "linear"}, {"vp", "none"}]


def test_all_combinations_of_the_paper_give_the_reference_numbers(all_vectors):
    names = reference_names(all_vectors)
    assert set(names) >= ALL_OF_THE_PAPER and len(names) == 59
    for name in names:
        assert_reference_times(all_vectors, name)
        assert_reference_run(all_vectors, name, ablation_sampler)


# ---- pieces ----


def test_schedules_and_scalings_have_their_derivatives_and_inverses():
    t = torch.tensor([1e-3, 0.1, 0.5, 1.0], dtype=F64, requires_grad=True)
    for schedule in (vp_schedule(19.9, 0.1), VE, LINEAR):
        sigma = schedule.sigma(t)
        torch.testing.assert_close(schedule.time(sigma), t, rtol=1e-10, atol=0)
        torch.testing.assert_close(schedule.sigma_prime(t), torch.autograd.grad(sigma.sum(), t)[0])
        scaling = vp_scaling(schedule)
        torch.testing.assert_close(scaling.s(t), 1 / (1 + sigma ** 2).sqrt())
        torch.testing.assert_close(scaling.s_prime(t), torch.autograd.grad(scaling.s(t).sum(), t)[0])
    assert NO_SCALING.s(t).tolist() == [1] * 4 and NO_SCALING.s_prime(t).tolist() == [0] * 4


def test_vp_schedule_goes_through_the_range_asked_for():
    vp = vp_schedule(*fit_vp(0.01, 40, 1e-3))
    assert vp.sigma(torch.tensor([1e-3, 1], dtype=F64)).tolist() == pytest.approx([0.01, 40], rel=1e-10)


def test_iddpm_levels_are_picked_from_its_table():
    levels = noise_levels("iddpm", 12, 0.02, 40, **TABLE_1)
    u = iddpm_table()
    inside = u[(u >= 0.02) & (u <= 40)]
    assert levels[0] == inside[0] and levels[-1] == inside[-1] and bool(torch.isin(levels, u).all())
    every = noise_levels("iddpm", len(inside), 0.02, 40, **TABLE_1)
    assert torch.equal(every, inside)


@pytest.mark.parametrize(("discretization", "ends"), [
    ("ve", (0.013, 9)), ("ve", (0.009, 100)), ("edm", (0.05, 10)), ("edm", (0.02, 100))])
def test_ends_of_the_levels_are_those_of_table_1_to_the_last_digit(discretization, ends):
    """They decide whether a level lies between S_min and S_max, where these are the ends of the range."""
    low, high = ends
    wanted = {"ve": [high, sqrt(high ** 2 * (low ** 2 / high ** 2))],
              "edm": [(high ** (1 / 7)) ** 7, (high ** (1 / 7) + (low ** (1 / 7) - high ** (1 / 7))) ** 7]}
    levels = noise_levels(discretization, 5, low, high, **TABLE_1)
    assert levels[[0, -1]].tolist() == wanted[discretization] != [high, low]


def test_default_range_is_the_discretizations_within_the_networks():
    net = Denoiser(None, sigma_min=0.01, sigma_max=90)
    assert sampling_range(net, "ve", None, None, 1e-3) == (0.02, 90)
    assert sampling_range(net, "edm", None, None, 1e-3) == (0.01, 80)
    assert sampling_range(net, "edm", 0.5, 3, 1e-3) == (0.5, 3)
    ends = [sqrt(np.expm1(19.9 / 2 * t ** 2 + 0.1 * t)) for t in (0.01, 1)]
    assert sampling_range(Denoiser(None), "vp", None, None, 0.01) == pytest.approx(ends)


# ---- Gaussian data ----


def test_heun_in_sigma_is_the_edm_sampler():
    latents, settings = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(3)), {"S_churn": 5, "S_max": 30}
    ours = ablation_sampler(gaussian(0.5), latents, randn_like=random_draws(1), **settings)
    torch.testing.assert_close(ours, edm_sampler(gaussian(0.5), latents, randn_like=random_draws(1), **settings),
                               rtol=1e-12, atol=0)


@pytest.mark.parametrize(("size", "order", "settings"), [
    ((3,), 1, {"solver": "euler"}),
    ((2, 3), 1, {"solver": "euler"}),
    ((2, 1, 3), 1, {"solver": "euler"}),
    ((2, 1, 3), 1, {"solver": "euler", "discretization": "vp", "schedule": "vp", "scaling": "vp"}),
    ((3,), 2, {"solver": "heun", "discretization": "vp", "schedule": "vp", "scaling": "vp"}),
    ((2, 3), 2, {"solver": "heun", "discretization": "ve", "schedule": "ve", "scaling": "none", "alpha": 0.75}),
])
def test_error_falls_with_the_order_of_the_solver(size, order, settings):
    latents = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(1)).to(F64)

    def error(steps: int) -> float:
        net, ends = gaussian(0.5), []  # the states before the last Euler step into 0, whose error is of another kind
        ablation_sampler(net, latents, num_steps=steps, callback=lambda i, x, _: ends.append(x), **settings)
        sigma_max, sigma_min = net.sigmas[0], net.sigmas[-1]
        scale = 1 / sqrt(1 + sigma_min ** 2) if settings.get("scaling") == "vp" else 1
        wanted = scale * latents * sigma_max * sqrt((0.5 ** 2 + sigma_min ** 2) / (0.5 ** 2 + sigma_max ** 2))
        return float(((ends[-2] - wanted) / wanted).abs().max())

    errors = [error(steps) for steps in (128, 512, 1024)]
    slopes = [log2(errors[0] / errors[1]) / 2, log2(errors[1] / errors[2])]
    assert all(order - 0.02 < slope < order + 0.06 for slope in slopes), (errors, slopes)


@pytest.mark.parametrize("settings", [
    {"discretization": "vp", "schedule": "vp", "scaling": "vp"},
    {"discretization": "ve", "schedule": "ve", "scaling": "none", "alpha": 0.75},
    {"discretization": "edm", "schedule": "linear", "scaling": "vp", "solver": "euler", "num_steps": 400},
])
def test_churn_keeps_mean_and_variance_of_the_data(settings):
    mean, sd, n = 0.3, 0.5, 20000
    latents = torch.randn(n, 1, 1, generator=torch.Generator().manual_seed(0))
    settings = {"num_steps": 100, "S_churn": 40} | settings
    x = ablation_sampler(gaussian(sd, mean), latents, randn_like=random_draws(1), **settings)
    plain = ablation_sampler(gaussian(sd, mean), latents, **settings | {"S_churn": 0})
    assert abs(float(x.var()) - sd ** 2) < 4 * sd ** 2 * sqrt(2 / n)
    assert abs(float(x.mean()) - mean) < 4 * sd / sqrt(n)
    assert abs(float(np.corrcoef(x.flatten(), plain.flatten())[0, 1])) < 0.5  # really other numbers


@pytest.mark.parametrize("steps", [7, 20, 33, 64])
def test_without_churn_no_noise_slips_in_by_rounding(steps):
    def run(noise) -> torch.Tensor:
        return ablation_sampler(gaussian(0.5), torch.ones(1, 1, 1), schedule="vp", scaling="vp", num_steps=steps,
                                randn_like=noise)

    assert torch.equal(run(torch.ones_like), run(torch.zeros_like))


@pytest.mark.parametrize("settings", [{}, {"solver": "euler"}, {"S_churn": 40}])
def test_noise_is_drawn_once_a_step_and_the_condition_reaches_every_call(settings):
    calls, net, condition = [], gaussian(0.5), Condition(class_labels=torch.ones(2, 2))

    def randn_like(x: torch.Tensor) -> torch.Tensor:
        calls.append(x.shape)
        return torch.randn_like(x)

    x = ablation_sampler(net, torch.randn(2, 1, 3), num_steps=7, randn_like=randn_like, condition=condition, **settings)
    assert x.dtype == F64 and calls == [(2, 1, 3)] * 7
    assert len(net.conditions) == (7 if "solver" in settings else 13) and all(c is condition for c in net.conditions)


# ---- refusals ----


@pytest.mark.parametrize(("settings", "message"), [
    ({"solver": "rk4"}, "solver='rk4': wanted one of euler, heun"),
    ({"discretization": "cosine"}, "discretization='cosine': wanted one of vp, ve, iddpm, edm"),
    ({"schedule": "none"}, "schedule='none': wanted one of vp, ve, linear"),
    ({"scaling": "ve"}, "scaling='ve': wanted one of vp, none"),
    ({"num_steps": 1, "discretization": "vp"}, "num_steps=1: wanted a whole number of 2 or more"),
    ({"num_steps": 2.5, "discretization": "ve"}, "num_steps=2.5: wanted a whole number of 2 or more"),
    ({"sigma_max": float("inf"), "discretization": "ve"}, "sigma_max=inf: wanted 0 < sigma_min < sigma_max, finite"),
    ({"num_steps": 1000, "discretization": "iddpm"}, "num_steps=1000: wanted no more than"),
    ({"alpha": 0}, "alpha=0"),
    ({"alpha": 1.5}, "alpha=1.5"),
    ({"epsilon_s": 0}, "epsilon_s=0"),
    ({"sigma_min": 5, "sigma_max": 2}, "sigma_min=5, sigma_max=2"),
    ({"S_churn": -1}, "S_churn=-1"),
    ({"S_min": 2, "S_max": 1}, "S_min=2, S_max=1: wanted S_min <= S_max"),
    ({"schedule": "vp", "sigma_min": 1, "sigma_max": 2}, "sigma_min=1, sigma_max=2, epsilon_s=0.001: no VP schedule"),
])
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ablation_sampler(gaussian(0.5), torch.ones(1, 1, 1), **settings)
