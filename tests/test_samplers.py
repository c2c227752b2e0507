"""Samplers against Gaussian data, whose answers are known in closed form, and against reference numbers."""

import json
from itertools import pairwise
from math import log2, sqrt

import numpy as np
import pytest
import torch

from edm3d.networks.conditioning import Condition
from edm3d.samplers import ImageGenerators, edm_grid, edm_sampler, make_grid
from edm3d.samplers.noise import mix_seed
from tests.denoisers import (
    F64,
    Denoiser,
    assert_reference_run,
    gaussian,
    mixture,
    random_draws,
)
from tests.reference import stored


@pytest.fixture(scope="module")
def vectors() -> dict[str, np.ndarray]:
    """Reference numbers, one array per key."""
    return stored("edm_samplers")


# ---- Gaussian data ----


@pytest.mark.parametrize("size", [(6,), (3, 4), (2, 3, 4)])
def test_ode_ends_where_the_closed_form_says(size):
    latents = torch.randn(2, 2, *size)
    x = edm_sampler(gaussian(0.5), latents, num_steps=512)
    wanted = latents.to(F64) * 80 * 0.5 / sqrt(0.5 ** 2 + 80 ** 2)
    assert x.dtype == F64 and x.shape == latents.shape
    torch.testing.assert_close(x, wanted, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("size", "doublings", "smallest"), [((3,), 8, 1e-7), ((2, 3), 4, 3e-5), ((2, 1, 3), 4, 3e-5)])
def test_error_of_heuns_method_falls_with_the_square_of_the_steps(size, doublings, smallest):
    latents = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(1)).to(F64)
    wanted = latents * 80 * sqrt((0.5 ** 2 + 0.002 ** 2) / (0.5 ** 2 + 80 ** 2))

    def error(steps: int) -> float:
        ends = []  # the states before the last Euler step into 0, whose error is of another kind
        edm_sampler(gaussian(0.5), latents, num_steps=steps, callback=lambda i, x, _: ends.append(x))
        return float(((ends[-2] - wanted) / wanted).abs().max())

    errors = [error(48 * 2 ** n) for n in range(0, doublings + 1, 2)]
    assert errors[0] > 5e-3 and errors[-1] < smallest, errors
    slopes = [log2(a / b) / 2 for a, b in pairwise(errors)]
    assert all(1.995 <= slope <= 2.2 for slope in slopes), slopes


def test_churn_keeps_mean_and_variance_of_the_data():
    mean, sd, n = 0.3, 0.5, 20000
    latents = torch.randn(n, 1, 1, generator=torch.Generator().manual_seed(0))
    x = edm_sampler(gaussian(sd, mean), latents, num_steps=100, S_churn=40, randn_like=random_draws(1))
    deterministic = edm_sampler(gaussian(sd, mean), latents, num_steps=100)
    assert abs(float(x.var()) - sd ** 2) < 4 * sd ** 2 * sqrt(2 / n)
    assert abs(float(x.mean()) - mean) < 4 * sd / sqrt(n)
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


def test_mixture_denoiser_of_these_tests_is_the_reference_one(vectors):
    x, sigma = (torch.from_numpy(vectors[f"denoiser/check_{k}"]) for k in ("x", "sigma"))
    np.testing.assert_allclose(mixture(vectors, x, sigma).numpy(), vectors["denoiser/check_D"], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("name", ["edm_det", "edm_stoch", "edm_clip", "edm_table"])
def test_sampler_gives_the_reference_numbers(vectors, name):
    assert_reference_run(vectors, name, edm_sampler)


@pytest.mark.parametrize("name", ["edm_det", "edm_clip", "edm_table"])
def test_grid_is_the_reference_one(vectors, name):
    config = json.loads(str(vectors[f"sampler/{name}/config"]))
    net = Denoiser(None, **config["net"])
    np.testing.assert_allclose(make_grid(net).numpy(), vectors[f"sampler/{name}/t_steps"], rtol=1e-14)


# ---- grids ----


def test_grid_is_equation_5():
    grid = edm_grid(3, 1, 27, 3)  # cube roots 3, 2, 1
    assert grid.dtype == F64
    np.testing.assert_allclose(grid.numpy(), [27, 8, 1, 0], rtol=1e-14)


@pytest.mark.parametrize("sigma_max", [10, 100])  # 10^(1/7) to the 7th is above 10 by a last digit, of 100 below 100
@pytest.mark.parametrize("sigma_min", [0.02, 0.05])  # above, below
def test_churn_at_the_ends_of_the_grid_goes_by_equation_5_as_it_rounds(sigma_min, sigma_max):
    steps, top, bottom = 4, sigma_max ** (1 / 7), sigma_min ** (1 / 7)
    net = gaussian(0.5)
    edm_sampler(net, torch.ones(1, 1, 1), num_steps=steps, sigma_min=sigma_min, sigma_max=sigma_max, S_churn=1,
                S_min=sigma_min, S_max=sigma_max)
    raised = [net.sigmas[0] > 1.1 * sigma_max, net.sigmas[-1] > 1.1 * sigma_min]
    assert raised == [top ** 7 <= sigma_max, (top + (bottom - top)) ** 7 >= sigma_min]


@pytest.mark.parametrize(("arguments", "message"), [
    ((1, 0.002, 80, 7), "num_steps=1"),
    ((2.5, 0.002, 80, 7), "num_steps=2.5: wanted a whole number"),
    ((18, 0.002, float("inf"), 7), "sigma_max=inf: wanted 0 < sigma_min < sigma_max, finite"),
    ((18, 0, 80, 7), "sigma_min=0"),
    ((18, 80, 0.002, 7), "sigma_min=80"),
    ((18, -1, 80, 7), "sigma_min=-1"),
])
def test_impossible_grids_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        edm_grid(*arguments)


def test_focused_grid_is_even_in_its_own_measure_and_closest_around_the_data():
    grid = make_grid(Denoiser(None), grid="focused", num_steps=9, sigma_min=0.5 / 40, sigma_max=0.5 * 40)[:-1]
    logs = (grid / 0.5).log()
    steps = (logs + (logs / 2).tanh()).diff()
    np.testing.assert_allclose(steps, steps.mean().expand(8), rtol=1e-12)
    assert grid[4].item() == pytest.approx(0.5, rel=1e-12)  # the measure is odd: the middle is the focus
    distances = -logs.diff()
    assert 1.25 < distances[0] / distances[3] < 1.5 and distances.argmin() in (3, 4)


def test_exponential_grid_is_geometric():
    grid = make_grid(Denoiser(None), grid="exponential", num_steps=4, sigma_min=0.1, sigma_max=100)
    np.testing.assert_allclose(grid.numpy(), [100, 10, 1, 0.1, 0], rtol=1e-14)


def test_cosine_grid_is_even_in_the_angle():
    low, high = 2 - sqrt(3), 2 + sqrt(3)  # tan of 15 and 75 degrees
    grid = make_grid(Denoiser(None), grid="cosine", num_steps=3, sigma_min=low, sigma_max=high)
    np.testing.assert_allclose(grid.numpy(), [high, 1, low, 0], rtol=1e-14)


@pytest.mark.parametrize(("num_steps", "wanted"), [
    (5, [9, 7, 4, 2, 1, 0]), (4, [9, 7, 2, 1, 0]), (3, [9, 4, 1, 0]), (2, [9, 1, 0])])
def test_table_grid_picks_levels_evenly_from_end_to_end(num_steps, wanted):
    net = Denoiser(None, sigma_min=1, sigma_max=9, table=[1, 2, 4, 7, 9])
    grid = make_grid(net, grid="table", num_steps=num_steps, sigma_min=3, sigma_max=5)  # the table has its own range
    assert grid.tolist() == wanted and grid.dtype == F64


@pytest.mark.parametrize(("sigma_min", "sigma_max"), [(0.03, 7), (0.01, 152.16697)])
@pytest.mark.parametrize("grid", ["polynomial", "exponential", "focused", "cosine"])
def test_named_grids_fall_over_the_part_of_the_range_that_the_network_knows(grid, sigma_min, sigma_max):
    net = Denoiser(None, sigma_min=sigma_min, sigma_max=sigma_max)
    levels = make_grid(net, grid=grid, num_steps=50, sigma_max=1000)
    assert levels[[0, -2, -1]].tolist() == pytest.approx([sigma_max, sigma_min, 0], rel=1e-13)
    assert levels.shape == (51,) and bool((levels.diff() < 0).all())
    narrower = make_grid(net, grid=grid, num_steps=50, sigma_min=0.1, sigma_max=3)
    assert narrower[[0, -2, -1]].tolist() == pytest.approx([3, 0.1, 0], rel=1e-14)


def test_sampler_walks_the_named_grid():
    net = gaussian(0.5)
    edm_sampler(net, torch.ones(1, 1, 1), grid="exponential", num_steps=3, sigma_min=1, sigma_max=100)
    assert net.sigmas == pytest.approx([100, 10, 10, 1, 1])


def test_users_grid_is_rounded_to_what_the_network_knows():
    net = Denoiser(None, sigma_min=1, sigma_max=9, table=[1, 2, 4, 7, 9])
    assert make_grid(net, sigmas=[8.5, 4.2, 1, 0]).tolist() == [9, 4, 1, 0]
    with pytest.raises(ValueError, match="two levels become one"):
        make_grid(net, sigmas=[8.5, 4.2, 3.9, 0])


def test_computed_grid_may_stay_at_a_level_of_a_coarse_table():
    net = Denoiser(gaussian(0.5).formula, sigma_min=1, sigma_max=9, table=[1, 2, 4, 7, 9])
    grid = make_grid(net, num_steps=8)
    assert len(grid) == 9 and bool((grid.diff() <= 0).all()) and bool((grid.diff() == 0).any())
    assert bool(edm_sampler(net, torch.ones(1, 1, 1), num_steps=8).isfinite().all())


@pytest.mark.parametrize("sigmas", [[1.0, 2.0, 0.0], [2.0, 1.0], [0.0], [[2.0, 0.0]], [2.0, 2.0, 0.0],
                                    [2.0, float("nan"), 0.0], [float("inf"), 1.0, 0.0], []])
def test_user_grids_that_do_not_fall_to_0_are_refused(sigmas):
    with pytest.raises(ValueError, match=r"sigmas=.* wanted a decreasing list of noise levels that ends in 0"):
        edm_sampler(gaussian(0.5), torch.ones(1, 1, 1), sigmas=torch.tensor(sigmas))


@pytest.mark.parametrize("sigmas", [[81.0, 1.0, 0.0], [80.0, 0.001, 0.0]])
def test_user_grids_beyond_the_network_are_refused(sigmas):
    net = Denoiser(None, sigma_min=0.01, sigma_max=80.3)
    with pytest.raises(ValueError, match=rf"go from {sigmas[0]} to {sigmas[1]} .* 0.01 to 80.3"):
        make_grid(net, sigmas=sigmas)
    assert make_grid(net, sigmas=torch.tensor([80.3, 0.01, 0])).tolist() == pytest.approx([80.3, 0.01, 0])  # float32


@pytest.mark.parametrize(("arguments", "message"), [
    ({"grid": "karras"}, "grid='karras': wanted one of polynomial, exponential, focused, cosine, table"),
    ({"grid": "table"}, "grid='table': .* has no table"),
    ({"num_steps": 1}, "num_steps=1: wanted a whole number of 2 or more"),
    ({"num_steps": 1, "grid": "cosine"}, "num_steps=1: wanted a whole number of 2 or more"),
    ({"num_steps": 4.0, "grid": "focused"}, "num_steps=4.0: wanted a whole number of 2 or more"),
    ({"sigma_max": float("inf")}, "sigma_max=inf: wanted 0 < sigma_min < sigma_max, finite"),
    ({"rho": 0}, "rho=0"),
    ({"sigma_min": 90}, "sigma_min=90, sigma_max=80"),
    ({"sigma_min": 0, "grid": "exponential"}, "sigma_min=0"),
    ({"S_churn": -1}, "S_churn=-1"),
    ({"S_churn": float("nan")}, "S_churn=nan: wanted 0 or more"),
    ({"S_churn": 5, "S_min": float("nan")}, "S_min=nan"),
    ({"S_noise": -0.1}, "S_noise=-0.1: wanted 0 or more"),
    ({"S_churn": 5, "S_min": 2, "S_max": 1}, "S_min=2, S_max=1: wanted S_min <= S_max"),
])
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        edm_sampler(gaussian(0.5), torch.ones(1, 1, 1), **arguments)


@pytest.mark.parametrize("num_steps", [1, 6])
def test_table_shorter_or_longer_than_asked_is_refused(num_steps):
    net = Denoiser(None, sigma_min=1, sigma_max=9, table=[1, 2, 4, 7, 9])
    with pytest.raises(ValueError, match=f"num_steps={num_steps}"):
        make_grid(net, grid="table", num_steps=num_steps)


def test_range_of_the_network_that_excludes_the_grid_is_refused():
    net = Denoiser(gaussian(0.5).formula, sigma_min=100, sigma_max=200)
    with pytest.raises(ValueError, match=r"sigma_min=0.002, sigma_max=80: .* 100 to 200"):
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
