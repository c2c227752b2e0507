"""Posterior samplers: Gaussian priors, whose posteriors are known, and what any denoiser and operator must keep to."""

from math import inf

import pytest
import torch

from edm3d.networks.precond import EDMPrecond
from edm3d.networks.unet import ADMUNet
from edm3d.physics.noise_models import GaussianNoise, PoissonNoise
from edm3d.physics.operators import Downsample, GaussianBlur, Inpaint
from edm3d.samplers import ddim_sampler, edm_sampler, multistep_sampler
from edm3d.samplers.posterior import DPS, MMPS, Affine, Smooth
from tests.denoisers import F64

SIDE = 4
GRID = {"sigma_min": 0.005, "sigma_max": 100}


class Gaussian:
    """The perfect denoiser of N(mean, C) on images [1,4,4]: neighbours are alike, as exp(-distance / 2)."""

    sigma_min, sigma_max, noise_table = 0, inf, None

    def __init__(self):
        places = torch.cartesian_prod(*[torch.arange(SIDE, dtype=F64)] * 2)
        self.cov = 0.25 * torch.exp(-torch.cdist(places, places) / 2)
        self.mean = torch.linspace(-0.5, 0.5, SIDE ** 2, dtype=F64)
        self.calls = 0

    def __call__(self, x, sigma, condition=None, augment_labels=None):
        self.calls += 1
        gain = self.cov @ torch.linalg.inv(self.cov + float(sigma) ** 2 * torch.eye(len(self.cov), dtype=F64))
        return (self.mean + (x.flatten(1) - self.mean) @ gain.T).reshape(x.shape)

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)


class Matrix:
    """An operator from a matrix [M,16]."""

    def __init__(self, matrix, noise_model):
        self.matrix, self.noise_model = matrix, noise_model

    def A(self, x):
        return x.flatten(1) @ self.matrix.T.to(x)

    def A_adjoint(self, y):
        return (y @ self.matrix.to(y)).reshape(len(y), 1, SIDE, SIDE)


def matrix_of(operator) -> torch.Tensor:
    basis = torch.eye(SIDE ** 2, dtype=F64).reshape(-1, 1, SIDE, SIDE)
    return operator.A(basis).flatten(1).T


def closed_form(prior: Gaussian, operator, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of the image given one measurement y."""
    a = matrix_of(operator)
    noise = torch.diag(operator.noise_model.variance(y).flatten())
    gain = prior.cov @ a.T @ torch.linalg.inv(a @ prior.cov @ a.T + noise)
    return prior.mean + gain @ (y.flatten() - a @ prior.mean), prior.cov - gain @ a @ prior.cov


def measured(operator, images: int = 1) -> torch.Tensor:
    x = 0.5 * torch.randn(images, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(7)).to(F64)
    return operator.A(x) + 0.1


def noise(images: int, size=(SIDE, SIDE)) -> torch.Tensor:
    return torch.randn(images, 1, *size, generator=torch.Generator().manual_seed(1)).to(F64)


OPERATORS = [Downsample(2, sigma=0.1), Inpaint(keep=0.4, sigma=0.1), GaussianBlur(1, sigma=0.1)]


# ---- Gaussian priors ----


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda each: type(each).__name__)
def test_mmps_says_the_posterior_mean_of_a_gaussian_prior(operator):
    prior, y = Gaussian(), measured(operator)
    net, x, sigma = MMPS(prior, operator, y, iterations=16), noise(1) * 2, 0.7
    given = Gaussian()  # x = image + sigma noise is a measurement as well
    precision = torch.linalg.inv(prior.cov) + torch.eye(16, dtype=F64) / sigma ** 2
    given.cov = torch.linalg.inv(precision)
    given.mean = prior(x, sigma).flatten()
    torch.testing.assert_close(net(x, sigma).flatten(), closed_form(given, operator, y)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampler", [multistep_sampler, edm_sampler])
def test_mmps_draws_the_posterior_of_a_gaussian_prior(sampler):
    operator, images = OPERATORS[0], 4000
    y = measured(operator)
    x = sampler(MMPS(Gaussian(), operator, y.expand(images, -1, -1, -1), iterations=4), noise(images), num_steps=40,
                **GRID).flatten(1)
    mean, cov = closed_form(Gaussian(), operator, y)
    assert ((x.mean(0) - mean).abs() < 4 * (cov.diag() / images).sqrt() + 0.003).all()
    torch.testing.assert_close(x.T.cov(), cov, rtol=0, atol=4 * 0.25 * (2 / images) ** 0.5)


def test_dps_draws_another_mean_and_spread():
    operator, images = OPERATORS[0], 500
    y = measured(operator)
    mean, cov = closed_form(Gaussian(), operator, y)
    x = multistep_sampler(DPS(Gaussian(), operator, y.expand(images, -1, -1, -1), step=0.3), noise(images),
                          num_steps=40, **GRID).flatten(1)
    prior_off = (Gaussian().mean - mean).norm()
    assert 0.02 < (x.mean(0) - mean).norm() / prior_off < 0.8  # nearer than the prior, and not there
    assert not torch.allclose(x.T.cov().diag(), cov.diag(), rtol=0.1, atol=0)


def test_values_with_less_noise_count_more():
    class Uneven:
        def variance(self, y):
            return torch.tensor([0.01, 1.0], dtype=y.dtype).expand_as(y)

    operator = Matrix(torch.ones(2, 16, dtype=F64) / 16, Uneven())
    y = torch.tensor([[1.0, -1.0]], dtype=F64)
    mean, _ = closed_form(Gaussian(), operator, y)
    x = multistep_sampler(MMPS(Gaussian(), operator, y, iterations=2), noise(1) * 0, num_steps=30, **GRID)
    torch.testing.assert_close(x.flatten(), mean, rtol=0, atol=0.01)
    dps = DPS(Gaussian(), operator, y)
    torch.testing.assert_close(dps.weight, torch.tensor([[50.5, 0.505]], dtype=F64))


# ---- counts of calls ----


def test_a_call_costs_one_evaluation_and_as_many_gradients_as_are_asked_for(monkeypatch):
    prior, y, gradients = Gaussian(), measured(OPERATORS[2]), []
    plain = torch.autograd.grad

    def counted(*arguments, **named):
        gradients.append(1)
        return plain(*arguments, **named)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    for net, wanted in ((DPS(prior, OPERATORS[2], y), 1), (MMPS(prior, OPERATORS[2], y, iterations=0), 0),
                        (MMPS(prior, OPERATORS[2], y, iterations=1), 1),
                        (MMPS(prior, OPERATORS[2], y, iterations=3), 3)):
        prior.calls, gradients[:] = 0, []
        net(noise(1), 1.0)
        assert (prior.calls, len(gradients)) == (1, wanted), net


# ---- every image by itself ----


def small_net(dims: int = 2) -> EDMPrecond:
    torch.manual_seed(0)
    net = EDMPrecond(ADMUNet(in_channels=1, out_channels=1, spatial_dims=dims, model_channels=16, channel_mult=[1],
                             num_blocks=1, attention_levels=[], channels_per_head=16)).eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter += 0.05 * torch.randn(parameter.shape)
    return net


METHODS = [lambda *a, **k: DPS(*a, step=0.5, **k), lambda *a, **k: MMPS(*a, iterations=3, **k),
           lambda *a, **k: MMPS(*a, iterations=0, **k)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dims", [2, 3])
def test_an_image_does_not_depend_on_its_neighbours(method, dims):
    net, operator, size = small_net(dims), Downsample(2, dims), (8,) * dims
    x, y = noise(3, size), torch.randn(3, 1, *[4] * dims, generator=torch.Generator().manual_seed(2))
    together = ddim_sampler(method(net, operator, y), x, num_steps=3)
    assert together.dtype == F64 and together.isfinite().all()
    assert torch.equal(together, ddim_sampler(method(net, operator, y), x, num_steps=3))
    for i in range(3):
        alone = ddim_sampler(method(net, operator, y[i:i + 1]), x[i:i + 1], num_steps=3)
        torch.testing.assert_close(together[i:i + 1], alone, rtol=1e-4, atol=1e-5)
    other = ddim_sampler(method(net, operator, y + torch.tensor([0, 0, 1.0]).reshape(-1, 1, *[1] * dims)), x,
                         num_steps=3)
    assert torch.equal(other[:2], together[:2]) and not torch.equal(other[2], together[2])


def test_operators_work_in_full_precision_within_autocast():
    operator, seen = Downsample(2), []
    plain = operator.A
    operator.A = lambda x: seen.append((x.dtype, torch.is_autocast_enabled("cpu"))) or plain(x)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        x = MMPS(small_net(), operator, torch.zeros(1, 1, 4, 4))(noise(1, (8, 8)), 1.0)
    assert set(seen) == {(torch.float32, False)} and x.dtype == F64 and not x.requires_grad


# ---- images of the operator that are not what is drawn ----


def test_units_of_the_operator_are_those_of_the_data():
    operator, y = Downsample(2, sigma=0.1), measured(Downsample(2))
    scaled = Downsample(2, sigma=0.5)
    for method in (MMPS, DPS):
        ours = method(Gaussian(), operator, y)(noise(1), 0.5)
        for image in (Affine(5, 3), Smooth(lambda x: 5 * x + 3, 5)):
            torch.testing.assert_close(method(Gaussian(), scaled, 5 * y + 3, image)(noise(1), 0.5), ours)


def test_derivatives_of_a_decoder_are_each_others_transpose():
    torch.manual_seed(3)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.SiLU(), torch.nn.Upsample(scale_factor=2),
                              torch.nn.Conv2d(4, 1, 3, padding=1)).double().requires_grad_(False)
    x = noise(2)
    local = Smooth(net).at(x)
    v, u = torch.randn_like(x), torch.randn_like(local.value)
    torch.testing.assert_close((local.push(v) * u).sum(), (v * local.pull(u)).sum())
    step = 1e-6
    torch.testing.assert_close(local.push(v), (net(x + step * v) - net(x - step * v)) / (2 * step), rtol=1e-5,
                               atol=1e-7)


# ---- what is refused, and what is bounded ----


def test_counts_of_0_have_a_variance():
    y = torch.tensor([[0.0, 0.0], [0.0, 4.0]])
    operator = Matrix(torch.ones(2, 16) / 16, PoissonNoise(1))
    assert MMPS(Gaussian(), operator, y).variance.tolist() == [[1, 1], [1, 4]]
    x = MMPS(Gaussian(), operator, y)(noise(2), 1.0)
    assert x.isfinite().all()


@pytest.mark.parametrize("make, said", [
    (lambda net, o, y: DPS(net, o, y, step=0), "step"),
    (lambda net, o, y: MMPS(net, o, y, iterations=-1), "iterations"),
    (lambda net, o, y: MMPS(net, o, y, spread=0), "spread"),
])
def test_arguments_that_cannot_be_are_named(make, said):
    with pytest.raises(ValueError, match=said):
        make(Gaussian(), OPERATORS[0], measured(OPERATORS[0]))


def test_as_many_measurements_as_images_are_wanted():
    with pytest.raises(ValueError, match="got 3 images and 2 measurements"):
        MMPS(Gaussian(), OPERATORS[0], measured(OPERATORS[0], 2))(noise(3), 1.0)


def test_noise_free_measurements_are_met():
    operator = Inpaint(keep=0.4, noise_model=GaussianNoise(0))
    y = measured(operator)
    x = multistep_sampler(MMPS(Gaussian(), operator, y, iterations=8), noise(1), num_steps=40, **GRID)
    seen = operator.mask_of(x)
    torch.testing.assert_close(x[..., seen], y[..., seen], rtol=0, atol=0.02)
