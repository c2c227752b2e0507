"""Samplers against Gaussian data, whose answers are known in closed form, and against reference numbers."""

import json
from functools import partial
from math import inf, log2, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch

from networks.conditioning import Condition
from samplers import ImageGenerators, edm_grid, edm_sampler
from samplers.noise import mix_seed

VECTORS = Path(__file__).parent / "data" / "edm_samplers.npz"
F64 = torch.float64


@pytest.fixture(scope="module")
def vectors() -> dict[str, np.ndarray]:
    """Reference numbers, one array per key."""
    with np.load(VECTORS) as archive:
        return dict(archive)


class Denoiser:
    """A denoiser from a formula, with the attributes that samplers ask of a network; keeps the sigmas it was asked."""

    def __init__(self, formula, sigma_min: float = 0, sigma_max: float = inf, table: list[float] | None = None):
        self.formula, self.sigma_min, self.sigma_max = formula, sigma_min, sigma_max
        self.table = None if table is None else torch.tensor(table, dtype=F64)
        self.sigmas: list[float] = []
        self.conditions: list = []

    def __call__(self, x, sigma, condition=None):
        self.sigmas.append(float(sigma))
        self.conditions.append(condition)
        return self.formula(x, sigma)

    def round_sigma(self, sigma):
        sigma = torch.as_tensor(sigma)
        if self.table is None:
            return sigma
        return self.table[(sigma.reshape(-1, 1) - self.table).abs().argmin(1)].reshape(sigma.shape)


def gaussian(sd: float) -> Denoiser:
    """The perfect denoiser of data N(0, sd^2)."""
    return Denoiser(lambda x, sigma: x * sd ** 2 / (sd ** 2 + sigma ** 2))


# ---- Gaussian data ----


@pytest.mark.parametrize("size", [(6,), (3, 4), (2, 3, 4)])
def test_ode_ends_where_the_closed_form_says(size):
    latents = torch.randn(2, 2, *size)
    x = edm_sampler(gaussian(0.5), latents, num_steps=512)
    wanted = latents.to(F64) * 80 * 0.5 / sqrt(0.5 ** 2 + 80 ** 2)
    assert x.dtype == F64 and x.shape == latents.shape
    torch.testing.assert_close(x, wanted, rtol=1e-4, atol=0)


def test_error_of_heuns_method_falls_with_the_square_of_the_steps():
    def error(steps: int) -> float:
        grid = torch.cat([edm_grid(steps, 0.05, 20, 7)[:-1], torch.zeros(1, dtype=F64)])
        ends = []  # the states before the last Euler step into 0, whose error is of another kind
        edm_sampler(gaussian(0.5), torch.ones(1, 1, 1), sigmas=grid, callback=lambda i, x, _: ends.append(x.item()))
        return abs(ends[-2] / (20 * sqrt((0.5 ** 2 + 0.05 ** 2) / (0.5 ** 2 + 20 ** 2))) - 1)

    slopes = [log2(error(n) / error(2 * n)) for n in (32, 64, 128)]
    assert all(1.9 < slope < 2.1 for slope in slopes), slopes


def test_churn_keeps_the_variance_of_the_data():
    sd, n = 0.5, 20000
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(n, 1, 1, generator=generator)
    noise = lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator)  # noqa: E731
    x = edm_sampler(gaussian(sd), latents, num_steps=100, S_churn=40, randn_like=noise)
    deterministic = edm_sampler(gaussian(sd), latents, num_steps=100)
    standard_error = sd ** 2 * sqrt(2 / n)
    assert abs(float(x.var()) - sd ** 2) < 4 * standard_error
    assert abs(float(x.mean())) < 4 * sd / sqrt(n)
    assert abs(float(np.corrcoef(x.flatten(), deterministic.flatten())[0, 1])) < 0.5  # really other numbers


def test_s_noise_scales_the_added_noise_and_s_min_s_max_bound_it():
    net, latents = gaussian(0.5), torch.ones(1, 1, 2)
    ones = torch.ones_like
    plain = edm_sampler(net, latents, num_steps=8)
    assert torch.equal(edm_sampler(net, latents, num_steps=8, S_churn=5, S_min=100, randn_like=ones), plain)
    assert torch.equal(edm_sampler(net, latents, num_steps=8, S_churn=5, S_max=0.001, randn_like=ones), plain)
    once = Denoiser(net.formula)
    seen = []
    edm_sampler(once, latents, num_steps=2, sigma_min=1, sigma_max=10, S_churn=0.4, S_min=5, S_noise=3,
                randn_like=ones, callback=lambda i, x, D_x: seen.append((x, D_x)))
    t_hat = 10 * 1.2  # gamma = 0.4 / 2
    x_hat = 10 + 3 * sqrt(t_hat ** 2 - 10 ** 2)
    assert once.sigmas == pytest.approx([12, 1, 1])  # level 1 is below S_min
    assert seen[0][1].flatten().tolist() == pytest.approx([x_hat * 0.25 / (0.25 + 144)] * 2)


@pytest.mark.parametrize("churn", [0, 40])
def test_noise_is_drawn_once_a_step_with_and_without_churn(churn):
    calls = []

    def randn_like(x: torch.Tensor) -> torch.Tensor:
        calls.append(x.shape)
        return torch.randn_like(x)

    net = gaussian(0.5)
    edm_sampler(net, torch.randn(2, 1, 3), num_steps=7, S_churn=churn, randn_like=randn_like)
    assert calls == [(2, 1, 3)] * 7
    assert len(net.sigmas) == 2 * 7 - 1


def test_condition_reaches_every_call_of_the_network():
    net, condition = gaussian(0.5), Condition(class_labels=torch.ones(1, 2))
    edm_sampler(net, torch.randn(1, 1, 3), num_steps=3, condition=condition)
    assert len(net.conditions) == 5 and all(c is condition for c in net.conditions)


def test_float32_network_is_solved_in_float64():
    net = Denoiser(lambda x, sigma: (x * 0.25 / (0.25 + sigma ** 2)).float())
    x = edm_sampler(net, torch.ones(1, 1, 1), num_steps=64)
    assert x.dtype == F64
    assert x.item() == pytest.approx(edm_sampler(gaussian(0.5), torch.ones(1, 1, 1), num_steps=64).item(), rel=1e-5)


# ---- reference numbers ----


def mixture(vectors: dict[str, np.ndarray], x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Posterior mean of a mixture of isotropic Gaussians, in float64."""
    means, stds, weights = (torch.from_numpy(vectors[f"denoiser/{k}"]) for k in ("means", "stds", "weights"))
    x, total = x.to(F64), stds ** 2 + torch.as_tensor(sigma, dtype=F64).reshape(-1, 1) ** 2
    square = (x[:, None] - means[None]).square().flatten(2).sum(2)
    share = (weights.log() - square / (2 * total) - means[0].numel() / 2 * total.log()).softmax(1)
    gain = (stds ** 2 / total)[..., None, None, None]
    return (share[..., None, None, None] * (means + gain * (x[:, None] - means))).sum(1)


def test_mixture_denoiser_of_these_tests_is_the_reference_one(vectors):
    x, sigma = (torch.from_numpy(vectors[f"denoiser/check_{k}"]) for k in ("x", "sigma"))
    np.testing.assert_allclose(mixture(vectors, x, sigma).numpy(), vectors["denoiser/check_D"], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("name", ["edm_det", "edm_stoch", "edm_clip", "edm_table"])
def test_sampler_gives_the_reference_numbers(vectors, name):
    config = json.loads(str(vectors[f"sampler/{name}/config"]))
    net = Denoiser(partial(mixture, vectors), **config["net"])
    rows, starts = iter(torch.from_numpy(vectors["sampler_noise"])), []
    latents = torch.from_numpy(vectors["sampler_latents"])
    x = edm_sampler(net, latents, randn_like=lambda _: next(rows), callback=lambda i, x, D_x: starts.append(x),
                    **config["kwargs"])
    wanted = {k: vectors[f"sampler/{name}/{k}"] for k in ("t_steps", "net_sigma", "x_cur", "x")}
    np.testing.assert_allclose(net.sigmas, wanted["net_sigma"], rtol=1e-12)
    starts = torch.stack([latents.to(F64) * wanted["t_steps"][0], *starts[:-1]])
    for got, reference in ((starts.flatten(0, 1), wanted["x_cur"].reshape(-1, 1, 4, 4)), (x, wanted["x"])):
        for row, reference_row in zip(got.numpy(), reference, strict=True):
            assert np.abs(row - reference_row).max() <= 1e-10 * np.abs(reference_row).max()


# ---- grids ----


def test_grid_is_equation_5():
    grid = edm_grid(3, 1, 27, 3)  # cube roots 3, 2, 1
    assert grid.dtype == F64
    np.testing.assert_allclose(grid.numpy(), [27, 8, 1, 0], rtol=1e-14)


@pytest.mark.parametrize(("arguments", "message"), [
    ((1, 0.002, 80, 7), "num_steps=1"),
    ((18, 0, 80, 7), "sigma_min=0"),
    ((18, 80, 0.002, 7), "sigma_min=80"),
    ((18, -1, 80, 7), "sigma_min=-1"),
])
def test_impossible_grids_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        edm_grid(*arguments)


@pytest.mark.parametrize("sigmas", [[1.0, 2.0, 0.0], [2.0, 1.0], [0.0], [[2.0, 0.0]], [2.0, 2.0, 0.0],
                                    [2.0, float("nan"), 0.0], [float("inf"), 1.0, 0.0]])
def test_user_grids_that_do_not_fall_to_0_are_refused(sigmas):
    with pytest.raises(ValueError, match="sigmas"):
        edm_sampler(gaussian(0.5), torch.ones(1, 1, 1), sigmas=torch.tensor(sigmas))


def test_range_of_the_network_that_excludes_the_grid_is_refused():
    net = Denoiser(gaussian(0.5).formula, sigma_min=100, sigma_max=200)
    with pytest.raises(ValueError, match="sigma_min"):
        edm_sampler(net, torch.ones(1, 1, 1))


# ---- one generator per image ----


def test_row_depends_on_its_own_key_alone():
    together = ImageGenerators([7, 3, 12]).randn((2, 5))
    for row, key in enumerate((7, 3, 12)):
        assert torch.equal(together[row], ImageGenerators([key]).randn((2, 5))[0])
    assert not torch.equal(together[0], together[1])


def test_streams_go_on_and_start_anew_with_the_object():
    generators = ImageGenerators([1, 2])
    first, second = generators.randn((3,)), generators.randn((3,))
    assert not torch.equal(first, second)
    assert torch.equal(ImageGenerators([1, 2]).randn((3,)), first)
    assert torch.equal(ImageGenerators([1, 2]).rand((3,)) < 1, torch.ones(2, 3, dtype=torch.bool))


def test_purposes_and_seeds_are_independent_streams():
    generators = ImageGenerators([1], seed=5)
    a = generators.for_purpose("a").randn((1000,))
    generators.randn((17,))
    assert torch.equal(generators.for_purpose("a").randn((1000,)), a)
    others = [generators.for_purpose("b"), ImageGenerators([1], seed=6, purpose="a"), ImageGenerators([2], seed=5,
              purpose="a"), ImageGenerators([1], seed=5)]
    for other in others:
        assert abs(float(np.corrcoef(other.randn((1000,)), a)[0, 1])) < 0.15  # 4.7 standard errors


def test_neighbouring_keys_are_unit_normal_together():
    x = ImageGenerators(range(4000)).randn((4,), F64)
    assert x.dtype == F64
    np.testing.assert_allclose(np.cov(x.T), np.eye(4), atol=4 * sqrt(2 / 4000))
    assert abs(float(x.mean())) < 4 / sqrt(16000)


def test_randn_like_takes_shape_and_dtype():
    x = torch.empty(2, 3, 4, dtype=F64)
    like = ImageGenerators([0, 1]).randn_like(x)
    assert like.shape == x.shape and like.dtype == F64
    assert torch.equal(like, ImageGenerators([0, 1]).randn((3, 4), F64))


def test_sampling_an_image_does_not_depend_on_its_batch():
    def draw(seeds: list[int]) -> torch.Tensor:
        generators = ImageGenerators(seeds, purpose="sample")
        return edm_sampler(gaussian(0.5), generators.randn((1, 3)), randn_like=generators.randn_like, num_steps=6,
                           S_churn=3)

    assert torch.equal(draw([4, 9, 1])[1], draw([9])[0])


def test_mixed_seeds_differ_wherever_a_part_does():
    seeds = {mix_seed(a, b, c) for a in range(5) for b in ("", "x", "y") for c in range(5)}
    assert len(seeds) == 75 and all(0 <= s < 2 ** 63 for s in seeds)
