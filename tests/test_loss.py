"""Losses against reference numbers and sums done by hand."""

import json
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch

from networks.autoencoder import Posterior, Reconstruction
from networks.conditioning import Condition
from samplers.noise import ImageGenerators
from training.loss import AutoencoderLoss, EDMLoss

VECTORS = Path(__file__).parent / "data" / "edm_training.npz"


class GivenNoise:
    """A source of noise whose numbers are known: one tensor per purpose."""

    def __init__(self, purpose: str = "", **numbers: torch.Tensor):
        self.purpose, self.numbers = purpose, numbers

    def for_purpose(self, purpose: str) -> "GivenNoise":
        return GivenNoise(purpose, **self.numbers)

    def randn(self, shape) -> torch.Tensor:
        return self.numbers[self.purpose].reshape(-1, *shape)


def stub_net(x, sigma, condition=None):
    """D = x / (1 + sigma^2) + 0.01 * sum of the class labels, as the reference numbers were made with."""
    column = sigma.reshape(-1, 1, 1, 1)
    return x / (1 + column ** 2) + 0.01 * condition.class_labels.sum(1).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("name", ["edm", "edm2"])
def test_edm_loss_gives_the_reference_numbers(name):
    with np.load(VECTORS) as archive:
        data = {k: archive[f"loss/{name}/{k}"] for k in ("rnd", "images", "noise", "labels", "sigma", "weight", "loss")}
        config = json.loads(str(archive[f"loss/{name}/config"]))
    tensors = {k: torch.from_numpy(v) for k, v in data.items()}
    noise = GivenNoise(sigma=tensors["rnd"], noise=tensors["noise"])
    got = EDMLoss(**config["kwargs"])(stub_net, tensors["images"], Condition(class_labels=tensors["labels"]), noise)
    np.testing.assert_allclose(got.sigma.numpy(), data["sigma"], rtol=2e-5)
    for row, wanted in zip(got.loss.numpy(), data["loss"], strict=True):
        assert np.abs(row - wanted).max() <= 5e-5 * np.abs(wanted).max()


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


def reconstruction(logits: torch.Tensor | None) -> Reconstruction:
    """Two images [2,1,4] that are off by 0.5 and 0, with posteriors of mean 1 and 0."""
    image = torch.tensor([[[0.5, 0.5, 0.5, 0.5]], [[0.0, 0.0, 0.0, 0.0]]])
    return Reconstruction(image, logits, Posterior(torch.tensor([[[1.0, 1.0]], [[0.0, 0.0]]]), torch.zeros(2, 1, 2)))


def test_autoencoder_loss_by_hand():
    logits = torch.zeros(2, 3, 4)
    logits[1, 0] = 100  # sure of class 0
    label = torch.zeros(2, 4, dtype=torch.uint8)
    loss = AutoencoderLoss(l1_weight=2, ce_weight=3, kl_weight=0.5)
    terms = loss(reconstruction(logits), torch.zeros(2, 1, 4), label)
    assert terms["l1"].tolist() == [1, 0]
    assert terms["ce"].tolist() == pytest.approx([3 * log(3), 0])
    assert terms["kl"].tolist() == [0.5, 0]  # 2 latents of 1/2 nat each, weight 0.5
    assert set(AutoencoderLoss()(reconstruction(None), torch.zeros(2, 1, 4), None)) == {"l1", "kl"}
