"""Losses against reference numbers and sums done by hand."""

import json
from collections.abc import Mapping
from math import exp, log

import numpy as np
import pytest
import torch

from edm3d.networks.conditioning import Condition
from edm3d.networks.precond import DDPMPrecond, EDMPrecond, VEPrecond, VPPrecond, iDDPMPrecond
from edm3d.samplers.estimate import ShownItsEstimate
from edm3d.samplers.noise import ImageGenerators
from edm3d.training import loss as losses
from edm3d.training.loss import DenoisingLoss, EDMLoss, VELoss, VPLoss
from edm3d.training.noise_laws import IDDPMTable, LogNormal, LogUniform, Table
from tests.reference import FULL, stored


class GivenNoise:
    """A source of noise whose numbers are known: one tensor per purpose."""

    def __init__(self, purpose: str = "", **numbers: torch.Tensor):
        self.purpose, self.numbers, self.keys = purpose, numbers, range(len(numbers["sigma"]))

    def for_purpose(self, purpose: str) -> "GivenNoise":
        return GivenNoise(purpose, **self.numbers)

    def randn(self, shape) -> torch.Tensor:
        return self.numbers[self.purpose].reshape(-1, *shape)

    rand = randn

    def randn_like(self, x) -> torch.Tensor:
        return self.numbers[self.purpose].reshape(x.shape)


# ---- reference numbers ----


def stub_net(x, sigma, condition=None, augment_labels=None):
    """D = x / (1 + sigma^2) + 0.01 sum(class labels) + 0.1 sum(augmentation labels), as the reference was made with."""
    sigma = sigma.reshape(-1, 1, 1, 1)
    D_x = x / (1 + sigma ** 2) + 0.01 * condition.class_labels.sum(1).reshape(-1, 1, 1, 1)
    return D_x if augment_labels is None else D_x + 0.1 * augment_labels.sum(1).reshape(-1, 1, 1, 1)


def check_against_reference(archive: Mapping[str, np.ndarray], name: str) -> None:
    """Noise levels, weights and losses of one case; its augmentation is a flip along the width, then half of it."""
    prefix = f"loss/{name}/"
    wanted = {k.removeprefix(prefix): archive[k] for k in archive if k.startswith(prefix)}
    config = json.loads(str(wanted.pop("config")))
    given = {k: torch.from_numpy(v) for k, v in wanted.items()}
    images = given["images"].flip(3) / 2 if "augment_labels" in given else given["images"]
    loss = getattr(losses, config["class_name"])(**config["kwargs"])
    got = loss(stub_net, images, Condition(class_labels=given["labels"]),
               GivenNoise(sigma=given["rnd"], noise=given["noise"]), given.get("augment_labels"))
    np.testing.assert_allclose(got.sigma.numpy(), wanted["sigma"], rtol=2e-5)
    np.testing.assert_allclose(loss.weight(got.sigma).numpy(), wanted["weight"], rtol=2e-5)
    for row, row_wanted in zip(got.loss.numpy(), wanted["loss"], strict=True):
        assert np.abs(row - row_wanted).max() <= 5e-5 * np.abs(row_wanted).max()


@pytest.mark.parametrize("name", ["edm", "edm2", "edm2_aug", "vp", "vp2_aug", "vp_tail", "ve", "ve2_aug"])
def test_loss_gives_the_reference_numbers(name):
    check_against_reference(stored("edm_training"), name)


def test_losses_give_all_reference_numbers(shared):
    with np.load(shared / FULL) as archive:
        names = sorted({key.split("/")[1] for key in archive.files if key.startswith("loss/")})
        assert len(names) == 13
        for name in names:
            check_against_reference(archive, name)


@pytest.mark.parametrize(("loss", "draw"), [(EDMLoss(), torch.randn), (VPLoss(), torch.rand), (VELoss(), torch.rand)])
def test_loss_without_generators_draws_levels_then_noise_from_the_global_one(loss, draw):
    images, condition = torch.randn(3, 2, 4, 4), Condition(class_labels=torch.ones(3, 4))
    torch.manual_seed(5)
    numbers = {"sigma": draw([3, 1, 1, 1]), "noise": torch.randn_like(images)}
    torch.manual_seed(5)
    got = loss(stub_net, images, condition)
    wanted = loss(stub_net, images, condition, GivenNoise(**numbers))
    assert torch.equal(got.sigma, wanted.sigma) and torch.equal(got.loss, wanted.loss)


# ---- EDM ----


def test_edm_loss_of_one_pixel_by_hand():
    noise = GivenNoise(sigma=torch.tensor([0.0]), noise=torch.tensor([2.0]))
    loss = EDMLoss(P_mean=log(2), P_std=1.2, sigma_data=1.0)
    got = loss(lambda x, sigma, condition: x - 1, torch.tensor([[[0.5]]]), None, noise)
    assert got.sigma.item() == pytest.approx(2)
    assert got.loss.item() == pytest.approx((4 + 1) / 4 * 3 ** 2)  # x = 0.5 + 2 * 2, D - y = 3


@pytest.mark.parametrize("size", [(5,), (4, 3), (2, 3, 4)])
def test_edm_loss_of_an_image_does_not_depend_on_its_batch(size):
    images = torch.randn(3, 2, *size)
    loss = EDMLoss()
    net = lambda x, sigma, condition: x / (1 + sigma.reshape(-1, *[1] * (x.ndim - 1)) ** 2)  # noqa: E731
    together = loss(net, images, None, ImageGenerators([10, 11, 12]))
    alone = loss(net, images[1:2], None, ImageGenerators([11]))
    assert together.loss.shape == images.shape and together.sigma.shape == (3,)
    assert torch.equal(together.loss[1:2], alone.loss) and torch.equal(together.sigma[1:2], alone.sigma)


def test_noise_levels_are_log_normal_and_apart_from_the_noise():
    n = 4000
    loss, images, seen = EDMLoss(P_mean=-1.2, P_std=1.2), torch.zeros(n, 1, 1), []

    def net(x, sigma, condition):
        seen.append(x.flatten() / sigma)
        return x

    levels = loss(net, images, None, ImageGenerators(range(n))).sigma.log()
    assert float(levels.mean()) == pytest.approx(-1.2, abs=4 * 1.2 / n ** 0.5)
    assert float(levels.std()) == pytest.approx(1.2, abs=4 * 1.2 / (2 * n) ** 0.5)
    assert abs(float(np.corrcoef(seen[0], levels)[0, 1])) < 4 / n ** 0.5


def test_network_that_knows_the_data_has_weighted_loss_1_at_every_level():
    """The weight makes the loss of D = c_skip x, which is what an untrained network gives, 1 in expectation."""
    n = 4000
    images = ImageGenerators(range(n), purpose="data").randn((1, 16)) * 0.5
    net = lambda x, sigma, condition: x * 0.25 / (0.25 + sigma.reshape(-1, 1, 1) ** 2)  # noqa: E731
    got = EDMLoss()(net, images, None, ImageGenerators(range(n)))
    per_image = got.loss.flatten(1).mean(1)
    for half in (per_image[got.sigma < 0.3], per_image[got.sigma >= 0.3]):
        assert float(half.mean()) == pytest.approx(1, abs=4 * float(half.std()) / len(half) ** 0.5)


def test_edm_weight_is_1_over_c_out_squared():
    sigma = torch.tensor([0.01, 0.5, 3.0], dtype=torch.float64)
    c_out = sigma * 0.7 / (sigma ** 2 + 0.7 ** 2).sqrt()
    torch.testing.assert_close(EDMLoss(sigma_data=0.7).weight(sigma), c_out ** -2, rtol=1e-12, atol=0)


def test_levels_and_noise_are_the_streams_of_their_names():
    """What runs have always drawn: another stream would change every run that is resumed."""
    images, noise, seen = torch.zeros(2, 1, 3), ImageGenerators([4, 9], seed=1), []

    def net(x, sigma, condition):
        seen.append(x)
        return x

    sigma = EDMLoss(P_mean=-0.5, P_std=1.5)(net, images, None, noise).sigma
    wanted = (noise.for_purpose("sigma").randn((1, 1)) * 1.5 - 0.5).exp()
    assert torch.equal(sigma, wanted.flatten())
    assert torch.equal(seen[0], noise.for_purpose("noise").randn((1, 3)) * wanted)


STRATIFIED = [EDMLoss(strata=16), VPLoss(strata=16), VELoss(strata=16), DenoisingLoss(LogNormal(), strata=16)]


@pytest.mark.parametrize("loss", STRATIFIED)
@pytest.mark.parametrize("noise", [ImageGenerators(range(48, 64)), None])
def test_stratified_loss_covers_its_law_in_every_batch(loss, noise):
    sigma = loss(lambda x, sigma, condition: x, torch.zeros(16, 1, 2), None, noise).sigma
    ends = loss.law.sigma(torch.arange(17) / 16)
    low, high = ends[:-1].minimum(ends[1:]), ends[:-1].maximum(ends[1:])
    assert bool(((low * 0.999 <= sigma) & (sigma <= high * 1.001)).all())


# ---- the DDPM family ----


def raw_net(x):
    """A network that is good for nothing, in the DDPM's own scale of x."""
    return 0.3 * x.tanh() + 0.1


def as_denoiser(objective):
    """D(x; sigma) of raw_net that predicts `objective` from alpha x, alpha = 1 / sqrt(1 + sigma^2)."""
    def net(x, sigma, condition):
        sigma = sigma.reshape(-1, 1, 1)
        alpha, noise_share = 1 / (1 + sigma ** 2).sqrt(), sigma / (1 + sigma ** 2).sqrt()
        F_x = raw_net(alpha * x)
        return {"x0": F_x, "epsilon": x - sigma * F_x, "v": alpha * (alpha * x) - noise_share * F_x}[objective]
    return net


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("objective", ["x0", "epsilon", "v"])
def test_error_of_the_target_is_what_ddpm_training_computes(objective, norm):
    """Against a DDPM that knows no sigma: x_t = sqrt(abar) x0 + sqrt(1 - abar) eps, target, |F - target|^p."""
    generator = torch.Generator().manual_seed(3)
    x0, eps = torch.randn(2, 5, 1, 6, dtype=torch.float64, generator=generator)
    step = torch.tensor([0, 3, 10, 14, 19])
    abar = (1 - torch.linspace(1e-3, 0.4, 20, dtype=torch.float64)).cumprod(0)[step].reshape(-1, 1, 1)
    x_t = abar.sqrt() * x0 + (1 - abar).sqrt() * eps
    target = {"x0": x0, "epsilon": eps, "v": abar.sqrt() * eps - (1 - abar).sqrt() * x0}[objective]
    error = (raw_net(x_t) - target).abs()
    loss = DenoisingLoss(Table("linear", 20, 1e-3, 0.4), objective, norm)
    got = loss(as_denoiser(objective), x0, None, GivenNoise(sigma=(step.double() + 0.5) / 20, noise=eps))
    torch.testing.assert_close(got.loss, error if norm == "l1" else error ** 2, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(got.sigma, ((1 - abar) / abar).sqrt().flatten(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("objective", ["x0", "epsilon", "v"])
def test_error_of_the_target_is_that_of_d_over_the_scale_of_its_preconditioner(objective):
    net, sigma = DDPMPrecond(Raw(), objective=objective), torch.tensor([0.01, 0.7, 30.0], dtype=torch.float64)
    c_out = net.coefficients(sigma)[1]
    for norm, power in (("l1", 1), ("l2", 2)):
        loss = DenoisingLoss(Table(), objective, norm)
        torch.testing.assert_close(loss.weight(sigma), c_out.abs() ** -power, rtol=1e-12, atol=0)


@pytest.mark.parametrize("objective", ["x0", "epsilon", "v"])
def test_a_loss_that_names_no_target_asks_the_network_through_what_is_around_it(objective):
    net, images = DDPMPrecond(Raw(), num_steps=20, objective=objective), torch.rand(3, 1, 4)
    law, noise = Table(num_steps=20), GivenNoise(sigma=torch.tensor([0.1, 0.5, 0.9]), noise=torch.ones(3, 1, 4))
    wanted = DenoisingLoss(law, objective, weight="min_snr")(net, images, None, noise).loss
    asked = DenoisingLoss(law, weight="min_snr")
    assert torch.equal(asked(net, images, None, noise).loss, wanted)
    assert torch.equal(asked(ShownItsEstimate(net), images, None, noise).loss, wanted)


# SNR 1/16, 1 and 16, gamma 4: min(SNR, gamma) is 1/16, 1 and 4
@pytest.mark.parametrize(("objective", "wanted"), [
    ("x0", [1 / 16, 1, 4]), ("epsilon", [1, 1, 1 / 4]), ("v", [1 / 17, 1 / 2, 4 / 17]),
])
def test_min_snr_weights_by_hand(objective, wanted):
    loss = DenoisingLoss(LogUniform(), objective, weight="min_snr", min_snr_gamma=4)
    sigma = torch.tensor([4, 1, 0.25])
    assert loss.target_weight(sigma ** -2, objective).tolist() == pytest.approx(wanted)
    assert loss.weight(sigma).tolist() == pytest.approx([1 / 16, 1, 4])  # on D the three are one (Hang et al., eq. 9)


def test_p2_weights_by_hand():
    loss = DenoisingLoss(LogUniform(), weight="p2", p2_gamma=2, p2_k=3)
    sigma = torch.tensor([1.0, 0.5])
    assert loss.target_weight(sigma ** -2, "epsilon").tolist() == pytest.approx([1 / 16, 1 / 49])
    assert loss.weight(sigma).tolist() == pytest.approx([1 / 16, 4 / 49])  # epsilon: over sigma^2
    plain = DenoisingLoss(LogUniform(), weight="p2", p2_gamma=0)
    assert plain.weight(sigma).tolist() == DenoisingLoss(LogUniform()).weight(sigma).tolist() == [1, 4]


def test_weight_of_v_in_l1_by_hand():
    loss = DenoisingLoss(LogUniform(), "v", "l1")
    assert loss.weight(torch.tensor([0.75])).item() == pytest.approx(1.25 / 0.75)  # c_out = 0.75 / sqrt(1 + 0.75^2)


@pytest.mark.parametrize("loss", [VPLoss(), VELoss()])
def test_vp_and_ve_weigh_by_1_over_sigma_squared(loss):
    assert loss.weight(torch.tensor([0.5, 4.0])).tolist() == [4, 1 / 16]


def test_level_range_is_that_of_the_law():
    assert EDMLoss(P_mean=0, P_std=1).level_range() == pytest.approx((0.0454914, 21.98219), rel=1e-5)  # exp(-+3.090232)
    assert VELoss(sigma_min=0.01, sigma_max=10).level_range() == pytest.approx((0.01 * 10 ** 0.003, 10 ** 0.997))
    ends = [(exp(9.95 * t ** 2 + 0.1 * t) - 1) ** 0.5 for t in (1e-5 + 0.001 * (1 - 1e-5), 1 - 0.001 * (1 - 1e-5))]
    assert VPLoss().level_range() == pytest.approx(ends)  # times a thousandth of the way in from 1e-5 and 1


class Raw(torch.nn.Module):
    """A raw network that gives back what it gets."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x, noise_labels, condition, augment_labels):
        return x


def test_levels_beyond_the_networks_range_are_taken_at_its_ends():
    net = EDMPrecond(Raw(), sigma_min=0.1, sigma_max=2).train()
    levels = torch.tensor([0.001, 0.1, 0.5, 2, 100])
    given = GivenNoise(sigma=(levels.log() + 1.2) / 1.2, noise=torch.zeros(5, 1, 2))
    assert EDMLoss()(net, torch.zeros(5, 1, 2), None, given).sigma.tolist() == pytest.approx([0.1, 0.1, 0.5, 2, 2])
    given.numbers["sigma"] = torch.zeros(5)
    by_any_function = EDMLoss()(lambda x, sigma, condition: x, torch.zeros(5, 1, 2), None, given)
    assert by_any_function.sigma.tolist() == pytest.approx([exp(-1.2)] * 5)


@pytest.mark.parametrize(("loss", "net"), [
    (VPLoss(), VPPrecond), (VELoss(), VEPrecond), (DenoisingLoss(Table()), DDPMPrecond),
    (DenoisingLoss(IDDPMTable()), iDDPMPrecond)])
@pytest.mark.parametrize("u", [0.0, 1 - 2 ** -24])
def test_the_ends_of_a_law_are_levels_of_its_network(loss, net, u):
    net = net(Raw()).train()
    given = GivenNoise(sigma=torch.full((2,), u), noise=torch.zeros(2, 1, 2))
    law = loss.draw_sigma(given.for_purpose("sigma"), torch.zeros(2, 1, 2)).flatten()
    torch.testing.assert_close(loss(net, torch.zeros(2, 1, 2), None, given).sigma, law, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: DenoisingLoss(LogNormal(), objective="eps"), "objective='eps': wanted one of epsilon, x0, v"),
    (lambda: VELoss(sigma_max=float("inf")), "sigma_max=inf: wanted more than sigma_min=0.02, and finite"),
    (lambda: DenoisingLoss(LogNormal(), norm="l3"), "norm='l3': wanted one of l1, l2"),
    (lambda: DenoisingLoss(LogNormal(), weight="snr"), "weight='snr': wanted one of none, min_snr, p2"),
    (lambda: DenoisingLoss(LogNormal(), min_snr_gamma=0), "min_snr_gamma=0: wanted more than 0"),
    (lambda: DenoisingLoss(LogNormal(), p2_k=-1), "p2_k=-1: wanted more than 0"),
    (lambda: DenoisingLoss(LogNormal(), p2_gamma=-1), "p2_gamma=-1: wanted a number of 0 or more"),
    (lambda: EDMLoss(sigma_data=0), "sigma_data=0: wanted more than 0"),
    (lambda: VPLoss(strata=0), "strata=0: wanted 1 or more"),
])
def test_wrong_setting_is_refused_by_name(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value)
