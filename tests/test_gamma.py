"""The gamma autoencoder: divergences, draws and the sector, against torch.distributions and by hand."""

import pytest
import torch
from scipy.stats import gamma, kstest
from torch.distributions import Gamma, kl_divergence

from edm3d.networks.gamma import AutoencoderGamma
from edm3d.networks.posteriors import PRIOR_ALPHA, PRIOR_BETA, GammaPosterior, posterior_class
from edm3d.samplers.noise import GlobalNoise, ImageGenerators

TINY = {"latent_channels": 2, "spatial_dims": 2, "channels": (4, 4), "num_blocks": 1, "num_blocks_decoder": 1}
ALL = torch.tensor(True)


def random_posterior(direction: str = "posterior", inside: torch.Tensor = ALL) -> GammaPosterior:
    """Shapes and rates from 0.2 to 20 [3,2,4], in float64."""
    torch.manual_seed(0)
    alpha, beta = (0.2 * 100 ** torch.rand(3, 2, 4, dtype=torch.float64) for _ in range(2))
    return GammaPosterior(alpha, beta, inside, kl_direction=direction)


# ---- the posterior ----


@pytest.mark.parametrize("direction", ["posterior", "prior"])
def test_kl_is_that_of_torch_in_both_directions_and_counts_inside_alone(direction):
    inside = torch.tensor([[[True, False, True, False]]])
    p, masked = random_posterior(direction), random_posterior(direction, inside)
    own = Gamma(p.alpha, p.beta)
    prior = Gamma(*(torch.tensor(v, dtype=torch.float64) for v in (PRIOR_ALPHA, PRIOR_BETA)))
    wanted = kl_divergence(own, prior) if direction == "posterior" else kl_divergence(prior, own)
    torch.testing.assert_close(p.kl(), wanted.sum((1, 2)))
    torch.testing.assert_close(masked.kl(), wanted[:, :, [0, 2]].sum((1, 2)))


@pytest.mark.parametrize("direction", ["posterior", "prior"])
def test_kl_is_zero_at_the_prior_only(direction):
    alpha, beta = torch.full((1, 1, 3), 2.0).double(), torch.full((1, 1, 3), 7.0).double()
    assert GammaPosterior(alpha, beta, ALL, 2.0, 7.0, direction).kl().item() == pytest.approx(0, abs=1e-12)
    assert GammaPosterior(alpha, beta, ALL, 2.0, 7.5, direction).kl().item() > 1e-3


def test_moments_are_those_of_the_distribution_and_lead_back_to_it():
    p = random_posterior(inside=torch.tensor([[[True, True, True, False]]]))
    own = Gamma(p.alpha, p.beta)
    torch.testing.assert_close(p.mean[..., :3], own.mean[..., :3])
    torch.testing.assert_close(p.std[..., :3], own.stddev[..., :3])
    assert not p.mean[..., 3].any() and not p.std[..., 3].any()
    back = posterior_class("gamma").from_moments(p.mean, p.std)
    torch.testing.assert_close(back.alpha[..., :3], p.alpha[..., :3])
    torch.testing.assert_close(back.beta[..., :3], p.beta[..., :3])
    assert torch.equal(back.inside, p.inside.expand(3, 2, 4))
    draw = back.sample(ImageGenerators(range(3)))
    assert (draw[..., :3] > 0).all() and not draw[..., 3].any()
    torch.testing.assert_close(back.kl(), p.kl())


@pytest.mark.parametrize("noise", [ImageGenerators([7, 8]), GlobalNoise(torch.zeros(2, 1))])
def test_draws_are_gamma_distributed(noise):
    torch.manual_seed(0)
    alpha, beta = torch.full((2, 1, 4000), 2.5), torch.full((2, 1, 4000), 4.0)
    draw = GammaPosterior(alpha, beta, ALL).sample(noise)
    for row in draw:
        assert kstest(row.flatten().numpy(), gamma(2.5, scale=1 / 4).cdf).pvalue > 1e-3
    assert not torch.equal(draw[0], draw[1])


def test_an_images_draw_is_its_own_whatever_the_batch():
    p = random_posterior()
    whole = p.sample(ImageGenerators([5, 6, 7], seed=1))
    one = GammaPosterior(p.alpha[1:2], p.beta[1:2], ALL).sample(ImageGenerators([6], seed=1))
    assert torch.equal(whole[1:2], one)
    assert torch.equal(p.sample(None), p.mean)


def test_gradients_of_draws_are_those_of_the_inverse_distribution_function():
    alpha = torch.tensor([[0.7, 2.0, 9.0]], dtype=torch.float64, requires_grad=True)
    beta = torch.full((1, 3), 4.0, dtype=torch.float64, requires_grad=True)
    z = GammaPosterior(alpha, beta, ALL).sample(ImageGenerators([3]))
    z.sum().backward()
    a, x, h = alpha.detach().numpy(), (z * beta).detach().numpy(), 1e-5
    q = gamma.cdf(x, a)  # at this fixed quantile, how does x move with alpha
    wanted = (gamma.ppf(q, a + h) - gamma.ppf(q, a - h)) / (2 * h) / 4
    torch.testing.assert_close(alpha.grad, torch.from_numpy(wanted), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(beta.grad, (-z / beta).detach())


# ---- the network ----


def sector_image() -> torch.Tensor:
    """Two images [2,1,6,4], background but for one voxel of the first and two of the second."""
    image = torch.full((2, 1, 6, 4), -1.0)
    image[0, 0, 2, 3], image[1, 0, 0, 0], image[1, 0, 5, 1] = 0.5, -0.99, 1
    return image


CELLS = [[[False, False], [False, True], [False, False]], [[True, False], [False, False], [True, False]]]


def test_the_sector_is_the_cells_with_anything_in_them():
    net = AutoencoderGamma(1, **TINY)
    assert net.sector(sector_image())[:, 0].tolist() == CELLS
    assert AutoencoderGamma(2, **TINY).sector(sector_image().repeat(1, 2, 1, 1).index_fill(
        1, torch.tensor(0), -1))[:, 0].tolist() == CELLS


def test_latents_and_images_are_background_outside_the_sector():
    torch.manual_seed(0)
    net, cells = AutoencoderGamma(1, 3, **TINY), torch.tensor(CELLS)[:, None]
    image = sector_image()
    out = net(image, torch.zeros(2, 6, 4, dtype=torch.int64), ImageGenerators([0, 1]))
    assert (out.z > 0)[:, :1].equal(cells) and (out.z > 0)[:, 1:].equal(cells)
    assert torch.equal(out.posterior.std > 0, cells.expand(-1, 2, -1, -1))
    voxels = cells.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(out.image != -1, voxels)
    assert out.posterior.kl().shape == (2,) and out.logits.shape == (2, 3, 6, 4)
    decoded, logits = net.decode(out.posterior.mean.clamp_min(0.1) * cells)
    assert torch.equal(decoded != -1, voxels) and (logits != -1).all()


def test_a_reconstruction_has_the_images_own_sector_whatever_its_latents():
    net = AutoencoderGamma(1, **TINY, sector_threshold=1e3)
    image = sector_image()
    assert torch.equal((net(image).image != -1)[:, 0, ::2, ::2], torch.tensor(CELLS))


def test_decoding_takes_latents_below_the_threshold_for_background():
    net = AutoencoderGamma(1, **TINY, sector_threshold=0.1)
    z = torch.full((1, 2, 2, 2), 0.3)
    z[0, :, 0, 0], z[0, 0, 0, 1], z[0, :, 1, 1] = 0.09, 0.0, -0.2
    image, _ = net.decode(z)
    assert (image[0, 0, ::2, ::2] != -1).tolist() == [[False, True], [True, False]]
    exact = z.clone()
    exact[0, :, 0, 0], exact[0, :, 1, 1] = 0, 0
    assert torch.equal(net.prepare(z), exact) and torch.equal(net.decode(exact)[0], image)


def test_the_tail_of_the_prior_below_the_threshold_is_as_documented():
    assert gamma(PRIOR_ALPHA, scale=1 / PRIOR_BETA).cdf(0.02) == pytest.approx(1.6e-4, rel=0.02)


def test_without_a_mask_all_cells_count():
    net = AutoencoderGamma(1, **TINY, mask=False)
    out = net(sector_image(), noise=ImageGenerators([0, 1]))
    assert (out.z > 0).all() and (out.posterior.std > 0).all() and (out.image != -1).all()
    tiny = torch.full((1, 2, 2, 2), 1e-4)
    assert torch.equal(net.prepare(tiny), tiny) and (net.decode(tiny)[0] != -1).all()


def test_shapes_and_rates_are_softplus_times_the_prior():
    net, image = AutoencoderGamma(1, **TINY, prior_alpha=2.0, prior_beta=5.0), torch.zeros(1, 1, 2, 2)
    h = torch.tensor([0.3, -0.2, 1.0, -50.0]).reshape(1, 4, 1, 1)
    p = net.read(h, image)
    wanted = [torch.log1p(torch.exp(torch.tensor(10.0 * v))).item() / 10 for v in (0.3, -0.2, 1.0)]
    torch.testing.assert_close(p.alpha.flatten(), torch.tensor([2 * wanted[0], 2 * wanted[1]]))
    torch.testing.assert_close(p.beta.flatten(), torch.tensor([5 * wanted[2], 5e-7]))
    with torch.no_grad():
        net.encoder[-1].weight.zero_()
    assert net.encode(image).kl().item() == pytest.approx(0, abs=1e-6)  # starts at the prior


def test_all_weights_learn_from_image_and_kl():
    net = AutoencoderGamma(1, **TINY)
    out = net(torch.rand(2, 1, 4, 4), noise=ImageGenerators([0, 1]))
    (out.image.square().sum() + out.posterior.kl().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert net.encoder[-1].weight.grad.abs().max() > 0


def test_wrong_arguments_are_refused_by_name():
    for arguments, message in [({"prior_alpha": 0}, "prior_alpha=0"), ({"prior_beta": -1}, "prior_beta=-1"),
                               ({"kl_direction": "reverse"}, "kl_direction='reverse': wanted one of posterior, prior"),
                               ({"sector_threshold": -1}, "sector_threshold=-1")]:
        with pytest.raises(ValueError, match=message):
            AutoencoderGamma(1, **{**TINY, **arguments})
