"""Noise laws: quantiles by hand, and strata that ranks and rounds do not change."""

from math import cos, exp, pi, sqrt

import numpy as np
import pytest
import torch

from edm3d.networks.precond import DDPMPrecond
from edm3d.samplers.noise import ImageGenerators
from edm3d.training.noise_laws import IDDPMTable, LogNormal, LogUniform, Table, VPUniform

LAWS = [LogNormal(-1.2, 1.2), VPUniform(), LogUniform(0.02, 100), Table("scaled_linear", 1000, 0.0015, 0.0195),
        IDDPMTable(1000)]


@pytest.mark.parametrize(("law", "quantiles"), [
    (LogNormal(0.5, 2), {0.5: exp(0.5), 0.8413447460685429: exp(2.5), 0.15865525393145707: exp(-1.5)}),
    (VPUniform(2, 0.5, 0.2), {0.25: sqrt(exp(0.64 + 0.4) - 1), 0.5: sqrt(exp(0.36 + 0.3) - 1)}),  # t = 0.8, 0.6
    (LogUniform(0.01, 100), {0.25: 0.1, 0.5: 1, 0.75: 10}),
    (Table("linear", 2, 0.5, 0.75), {0.01: 1, 0.49: 1, 0.5: sqrt(7), 0.99: sqrt(7)}),  # abar = 1/2, 1/8
    (Table("scaled_linear", 3, 0.04, 0.36), {0.5: sqrt((1 - 0.8064) / 0.8064)}),  # beta = 0.04, 0.16, 0.36
    (Table("cosine", 2, cosine_s=0), {0.1: 1, 0.9: sqrt(1999)}),  # abar = 1/2, then beta is cut at 0.999
    # abar = (s(3) - s(x)) / (s(3) - s(-3)) at x = -1, 1, 3, logistic function s = 0.2689414, 0.7310586, 0.9525741
    # abar_j = sin^2(j pi / 6) = 1/4, 3/4, 1 at j = 1, 2, 3: u_2^2 + 1 = 4/3, u_1^2 + 1 = 4, at j = 0 cut at 1/C_1 times
    (IDDPMTable(3, C_1=0.1, C_2=0), {0.3: sqrt(1 / 3), 0.5: sqrt(3), 0.7: sqrt(39)}),
    (IDDPMTable(3, C_1=0.5, C_2=0), {0.3: sqrt(1 / 3), 0.5: sqrt(5 / 3), 0.7: sqrt(13 / 3)}),
    (Table("sigmoid", 3), {0.1: sqrt(0.2215155 / 0.6836327), 0.5: sqrt(0.6836327 / 0.2215155)}),
])
def test_quantiles_by_hand(law, quantiles):
    got = law.sigma(torch.tensor(list(quantiles), dtype=torch.float64))
    assert got.tolist() == pytest.approx(list(quantiles.values()), rel=1e-6)
    assert law.sigma(torch.tensor([0.5])).dtype == torch.float32


@pytest.mark.parametrize("law", LAWS)
def test_draws_follow_the_law(law):
    """Quarters of the law, cut at its own quantiles, are met equally often."""
    n = 4000
    sigma = law.draw(ImageGenerators(range(n)), (1, 1))
    assert sigma.shape == (n, 1, 1) and sigma.dtype == torch.float32
    cuts = law.sigma(torch.tensor([0.25, 0.5, 0.75])).sort().values
    share = torch.bincount(torch.bucketize(sigma.flatten(), cuts, right=True), minlength=4) / n
    assert share.tolist() == pytest.approx([0.25] * 4, abs=4 * sqrt(0.25 * 0.75 / n))


def uniform_of(sigma: torch.Tensor) -> np.ndarray:
    """Which u gave the levels of LogUniform(1, e)."""
    return sigma.double().log().flatten().numpy()


E = LogUniform(1, exp(1))


@pytest.mark.parametrize("first", [0, 24, 29])
def test_consecutive_images_take_every_stratum_once(first):
    keys = range(first, first + 12)
    u = uniform_of(E.draw_stratified(ImageGenerators(keys), (1,), 12))
    assert (u * 12).astype(int).tolist() == [key % 12 for key in keys]


@pytest.mark.parametrize(("ranks", "batch_gpu"), [(1, 12), (1, 4), (2, 6), (2, 3), (3, 2)])
def test_strata_of_an_image_do_not_depend_on_ranks_and_rounds(ranks, batch_gpu):
    """A batch of 12 at position 24, dealt to ranks in turn, round by round as the training loop does."""
    whole = E.draw_stratified(ImageGenerators(range(24, 36)), (1,), 12)
    seen = {}
    for rank in range(ranks):
        for round_ in range(12 // ranks // batch_gpu):
            start = 24 + round_ * batch_gpu * ranks + rank
            keys = range(start, start + batch_gpu * ranks, ranks)
            seen.update(zip(keys, E.draw_stratified(ImageGenerators(keys), (1,), 12), strict=True))
    assert torch.equal(torch.stack([seen[key] for key in range(24, 36)]), whole)


def test_strata_leave_the_law_as_it_is():
    """Inside its stratum a level is uniform: mean 1/2, variance 1/12, and no two images alike."""
    n = 4000
    inside = uniform_of(E.draw_stratified(ImageGenerators(range(n)), (1,), 8)) * 8 % 1
    assert inside.mean() == pytest.approx(0.5, abs=4 / sqrt(12 * n))
    assert inside.var() == pytest.approx(1 / 12, abs=4 * sqrt(1 / 180 / n))
    assert len(np.unique(inside.round(7))) > 0.99 * n


class Constant:
    """A source of noise that gives one number only, for images 0 and 4095."""

    keys = (0, 4095)

    def __init__(self, value: float):
        self.value = value

    def rand(self, shape) -> torch.Tensor:
        return torch.full((2, *shape), self.value)


@pytest.mark.parametrize("value", [0.0, 1 - 2 ** -24])
@pytest.mark.parametrize("law", LAWS)
def test_the_ends_of_the_random_numbers_give_levels_of_the_law(law, value):
    """rand() may give 0 itself, and in float32 the last stratum's end is 1."""
    sigma = law.draw_stratified(Constant(value), (), 4096)
    assert bool((sigma > 0).all()) and bool(sigma.isfinite().all()) and sigma.dtype == torch.float32


@pytest.mark.parametrize(("make", "words"), [
    (lambda: LogNormal(P_std=0), "P_std=0: wanted more than 0"),
    (lambda: VPUniform(epsilon_t=0), "epsilon_t=0: wanted more than 0"),
    (lambda: VPUniform(epsilon_t=2), "epsilon_t=2: wanted less than 1"),
    (lambda: VPUniform(beta_min=-1), "beta_min=-1: wanted more than 0"),
    (lambda: LogUniform(sigma_min=0), "sigma_min=0: wanted more than 0"),
    (lambda: LogUniform(sigma_min=2, sigma_max=1), "sigma_max=1: wanted more than sigma_min=2"),
    (lambda: LogUniform(sigma_max=float("inf")), "sigma_max=inf: wanted more than sigma_min=0.02, and finite"),
    (lambda: IDDPMTable(M=2.5), "M=2.5: wanted a whole number of 2 or more"),
    (lambda: Table("cubic"), "schedule='cubic': wanted one of linear"),
    (lambda: Table("cosine", cosine_s=-0.1), "cosine_s=-0.1: wanted a number of 0 or more"),
    (lambda: Table(num_steps=1), "num_steps=1: wanted a whole number of 2 or more"),
])
def test_wrong_setting_is_refused_by_name(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value)


def test_the_network_of_a_cosine_schedule_knows_its_offset_as_the_law_does():
    law, net = Table("cosine", 50, cosine_s=0.1), DDPMPrecond(torch.nn.Identity(), "cosine", 50, cosine_s=0.1)
    assert torch.equal(law.levels.flip(0), net.u)
    assert not torch.allclose(net.u, DDPMPrecond(torch.nn.Identity(), "cosine", 50).u)
    first = 1 - cos((1 / 50 + 0.1) / 1.1 * pi / 2) ** 2 / cos(0.1 / 1.1 * pi / 2) ** 2  # beta of the first step
    assert net.sigma_min == pytest.approx(sqrt(first / (1 - first)))
