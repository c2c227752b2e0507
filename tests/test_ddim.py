"""DDIM and ancestral sampling against the same formulas in DDPM's own variables, and on Gaussian data."""

from functools import partial
from math import prod, sqrt
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from edm3d.networks.conditioning import Condition
from edm3d.networks.schedules import ddpm_table, iddpm_table
from edm3d.samplers import ablation_sampler, ddim_sampler, make_grid
from tests.denoisers import F64, Denoiser, gaussian, mixture, random_draws
from tests.reference import stored

LATENTS = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(5)).to(F64)


@pytest.fixture(scope="module")
def denoised() -> partial:
    """The denoiser of the reference's mixture of Gaussians, as a formula of x and sigma."""
    return partial(mixture, stored("edm_samplers"))


def ddpm_network(formula) -> Denoiser:
    """A network that knows the levels of DDPM's 1000 linear steps."""
    table = ddpm_table("linear")
    return Denoiser(formula, sigma_min=float(table[0]), sigma_max=float(table[-1]), table=table)


def predict_x0(denoised, z: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """x0 from DDPM's state z = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps."""
    return denoised(z / alpha_bar.sqrt(), ((1 - alpha_bar) / alpha_bar).sqrt())


# ---- in DDPM's own variables ----


def ddpm_ancestral(denoised, z: torch.Tensor, randn_like, clip: float | None) -> list[torch.Tensor]:
    """Ho et al. 2020, Algorithm 2 by Eq. 7: states z_999..z_0, the last being x0 itself."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=F64)
    alphas = 1 - betas
    alpha_bar = alphas.cumprod(0)
    states = []
    for t in reversed(range(1000)):
        before = alpha_bar[t - 1] if t > 0 else torch.ones((), dtype=F64)
        x0 = predict_x0(denoised, z, alpha_bar[t])
        x0 = x0 if clip is None else x0.clamp(-clip, clip)
        mean = (before.sqrt() * betas[t] * x0 + alphas[t].sqrt() * (1 - before) * z) / (1 - alpha_bar[t])
        variance = betas[t] * (1 - before) / (1 - alpha_bar[t])
        z = mean + variance.sqrt() * randn_like(z)
        states.append(z / before.sqrt())
    return states


@pytest.mark.parametrize("clip", [None, 0.4])
def test_all_noise_on_the_whole_table_is_ddpm(denoised, clip):
    net, states = ddpm_network(denoised), []
    x = ddim_sampler(net, LATENTS, num_steps=1000, eta=1, grid="table", clip=clip, randn_like=random_draws(2),
                     callback=lambda i, x, D_x: states.append(x))
    alpha_bar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=F64)).prod()
    wanted = ddpm_ancestral(denoised, LATENTS * (1 - alpha_bar).sqrt(), random_draws(2), clip)
    assert torch.equal(states[-1], x) and len(net.sigmas) == 1000
    for got, state in zip(states, wanted, strict=True):
        assert float((got - state).abs().max() / state.abs().max()) < 1e-10


def song_ddim(denoised, z: torch.Tensor, alpha_bar: list[torch.Tensor], eta: float, randn_like) -> torch.Tensor:
    """Song et al. 2021, Eq. 12 and 16, over falling noise, and x0 at the end."""
    for now, after in zip(alpha_bar, [*alpha_bar[1:], torch.ones((), dtype=F64)], strict=True):
        x0 = predict_x0(denoised, z, now)
        eps = (z - now.sqrt() * x0) / (1 - now).sqrt()
        sigma_t = eta * ((1 - after) / (1 - now)).sqrt() * (1 - now / after).sqrt()
        z = after.sqrt() * x0 + (1 - after - sigma_t ** 2).sqrt() * eps + sigma_t * randn_like(z)
    return z


@pytest.mark.parametrize("eta", [0, 0.3, 1])
def test_steps_are_those_of_ddim(denoised, eta):
    x = ddim_sampler(ddpm_network(denoised), LATENTS, num_steps=38, eta=eta, grid="table", randn_like=random_draws(4))
    alpha_bar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=F64)).cumprod(0).flip(0)[::27]  # 999 = 37 * 27
    wanted = song_ddim(denoised, LATENTS * (1 - alpha_bar[0]).sqrt(), list(alpha_bar), eta, random_draws(4))
    torch.testing.assert_close(x, wanted, rtol=1e-10, atol=1e-12)


def test_iddpm_table_serves_as_grid(denoised):
    table = iddpm_table()[:-1]
    net = Denoiser(denoised, sigma_min=float(table[-1]), sigma_max=float(table[0]), table=table)
    x = ddim_sampler(net, LATENTS, num_steps=50, grid="table")
    assert net.sigmas[0] == table[0] and net.sigmas[-1] == table[-1] and set(net.sigmas) <= set(table.tolist())
    assert bool(x.isfinite().all())


def test_a_network_with_a_table_is_walked_through_its_own_levels_unless_told_otherwise():
    net = ddpm_network(gaussian(0.5).formula)
    ddim_sampler(net, LATENTS, num_steps=1000)
    assert net.sigmas == net.noise_table.tolist() and net.sigmas[0] > 80  # each once, the largest first
    few = ddpm_network(gaussian(0.5).formula)
    ddim_sampler(few, LATENTS, num_steps=3)
    assert few.sigmas == [net.sigmas[0], net.sigmas[500], net.sigmas[999]]  # 499.5 is rounded to even
    named = ddpm_network(gaussian(0.5).formula)
    ddim_sampler(named, LATENTS, num_steps=3, grid="polynomial")
    assert named.sigmas[0] == pytest.approx(80, rel=0.01)


def test_a_network_that_knows_every_level_is_walked_by_the_polynomial_grid():
    net = gaussian(0.5)
    levels = make_grid(net, num_steps=6)[:-1].tolist()
    ddim_sampler(net, LATENTS, num_steps=6)
    assert net.sigmas == levels
    bare = SimpleNamespace(sigma_min=0, sigma_max=80, round_sigma=torch.as_tensor)  # says nothing about a table
    assert make_grid(bare, grid=None, num_steps=6)[:-1].tolist() == levels


def test_levels_that_rounding_made_equal_are_visited_once():
    net = Denoiser(gaussian(0.5).formula, sigma_min=1, sigma_max=9, table=[1, 2, 4, 7, 9])
    ddim_sampler(net, LATENTS, num_steps=8, grid="polynomial")
    assert net.sigmas == [9, 7, 4, 2, 1]


# ---- Gaussian data ----


@pytest.mark.parametrize("size", [(3,), (2, 3), (2, 1, 3)])
def test_without_noise_every_step_is_eulers(size):
    latents = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(6))
    x = ddim_sampler(gaussian(0.5), latents, num_steps=20)
    levels = make_grid(Denoiser(None), num_steps=20).tolist()
    gains = [0.25 / (0.25 + s ** 2) for s in levels[:-1]]
    factor = prod(g + (1 - g) * after / s for g, s, after in zip(gains, levels, levels[1:], strict=False))
    torch.testing.assert_close(x, latents.to(F64) * levels[0] * factor, rtol=1e-12, atol=0)
    torch.testing.assert_close(x, ablation_sampler(gaussian(0.5), latents, num_steps=20, solver="euler"), rtol=1e-12,
                               atol=0)


@pytest.mark.parametrize("eta", [0.5, 1])
def test_noise_keeps_mean_and_variance_of_the_data(eta):
    mean, sd, n = 0.3, 0.5, 20000
    latents = torch.randn(n, 1, 1, generator=torch.Generator().manual_seed(0))
    x = ddim_sampler(gaussian(sd, mean), latents, num_steps=600, eta=eta, randn_like=random_draws(1))
    plain = ddim_sampler(gaussian(sd, mean), latents, num_steps=600)
    assert abs(float(x.var()) - sd ** 2) < 4 * sd ** 2 * sqrt(2 / n)
    assert abs(float(x.mean()) - mean) < 4 * sd / sqrt(n)
    assert abs(float(np.corrcoef(x.flatten(), plain.flatten())[0, 1])) < 0.7  # really other numbers


def test_variance_after_a_step_of_ancestral_sampling_is_the_posteriors():
    """From an x at sigma 2, x0 being known to be 0, the state at sigma 1 is N(x/4, 1 - 1/4)."""
    states = []
    ddim_sampler(Denoiser(lambda x, sigma: 0 * x), torch.full((20000, 1, 1), 3.0), sigmas=[2, 1, 0], eta=1,
                 randn_like=random_draws(1), callback=lambda i, x, D_x: states.append(x))
    assert abs(float(states[0].mean()) - 6 / 4) < 4 * sqrt(0.75 / 20000)
    assert abs(float(states[0].var()) - 0.75) < 4 * 0.75 * sqrt(2 / 20000)
    assert states[1].abs().max() == 0


def test_clip_bounds_what_the_callback_and_the_end_show():
    shown = []
    x = ddim_sampler(gaussian(0.5, 0.9), torch.tensor([[[-8.0, 0, 8]]]), num_steps=5, clip=1,
                     callback=lambda i, x, D_x: shown.append(D_x))
    assert max(float(d.abs().max()) for d in shown) == 1 and torch.equal(x, shown[-1])


@pytest.mark.parametrize("eta", [0, 1])
def test_noise_is_drawn_once_a_step_and_the_condition_reaches_every_call(eta):
    calls, net, condition = [], gaussian(0.5), Condition(class_labels=torch.ones(2, 2))

    def randn_like(x: torch.Tensor) -> torch.Tensor:
        calls.append(x.shape)
        return torch.randn_like(x)

    x = ddim_sampler(net, torch.randn(2, 1, 3), num_steps=7, eta=eta, randn_like=randn_like, condition=condition)
    assert x.dtype == F64 and calls == [(2, 1, 3)] * 7
    assert len(net.conditions) == 7 and all(c is condition for c in net.conditions)


def test_steps_of_any_length_stay_finite():
    x = ddim_sampler(gaussian(0.5), LATENTS, sigmas=[80, 1e-8, 1e-20, 0], eta=1)
    assert bool(x.isfinite().all())


# ---- refusals ----


@pytest.mark.parametrize(("settings", "message"), [
    ({"eta": 1.5}, "eta=1.5"),
    ({"eta": -0.1}, "eta=-0.1"),
    ({"clip": 0}, "clip=0"),
    ({"clip": float("nan")}, "clip=nan"),
    ({"num_steps": 1}, "num_steps=1: wanted a whole number of 2 or more"),
    ({"grid": "table"}, "grid='table'"),
    ({"grid": "leading"}, "grid='leading': wanted one of polynomial"),
    ({"sigmas": [1.0, 2.0, 0.0]}, "sigmas"),
])
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ddim_sampler(gaussian(0.5), torch.ones(1, 1, 1), **settings)


def test_less_fresh_noise_draws_nearer_to_the_mean():
    """Of N(0, 0.5^2) by 1000 draws; without any it is no draw, whatever is drawn."""
    latents = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0)).to(F64)
    spread = [float(ddim_sampler(gaussian(0.5), latents, num_steps=60, eta=1, S_noise=noise,
                                 randn_like=random_draws(1)).std()) for noise in (1, 0.5, 0)]
    assert spread[0] == pytest.approx(0.5, rel=0.15) and spread[0] > 1.5 * spread[1] and spread[2] < 0.02
    by_others = [ddim_sampler(gaussian(0.5), latents, num_steps=9, eta=1, S_noise=0, randn_like=random_draws(seed))
                 for seed in (1, 2)]
    assert torch.equal(*by_others)
    with pytest.raises(ValueError, match="S_noise=-1: wanted 0 or more"):
        ddim_sampler(gaussian(0.5), latents, S_noise=-1)
