"""What the benchmarks of training compare, against answers known by hand."""

from argparse import Namespace
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch

from benchmarks import autoencoder_step, quality, scaling
from benchmarks.train_step import flops, nearest, stepper

CPU = torch.device("cpu")


def test_flops_are_those_of_a_product_and_the_nearest_is_below_or_above():
    assert flops(lambda: torch.nn.Conv3d(2, 3, 1), [1, 2, 4, 4, 4]) == 2 * 2 * 3 * 4 ** 3
    assert nearest({56: -0.1, 60: -0.04, 64: 0.09}) == 60


def test_a_step_of_a_tutorial_and_one_at_its_best_move_weights_alike():
    """Adam's first step is its rate against the sign of the gradient: that of w^2 at 1 is above 0."""
    for best in (False, True):
        net = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(net.weight)
        stepper(net, lambda call: call(torch.ones(1, 1)).square().sum(), CPU, best=best)()
        assert net.weight.item() == pytest.approx(1 - 1e-4, abs=1e-7)


def test_the_peers_own_network_has_its_flops_and_the_loss_is_that_of_a_normal():
    tiny = autoencoder_step.SETTINGS["tiny"]
    assert autoencoder_step.matched(tiny, "monai")[tiny.channels[0]] == 0
    assert autoencoder_step.matched(tiny, "compact")[tiny.channels[0]] < 0
    x = torch.rand(2, 1, 4, 4, 4)
    loss = autoencoder_step.loss_of(x)
    assert float(loss(lambda x: (x, torch.zeros(2, 3), torch.ones(2, 3)))) == 0
    off = loss(lambda x: (x + 0.5, 2 * torch.ones(2, 3), torch.ones(2, 3)))
    assert float(off) == pytest.approx(0.5 + autoencoder_step.KL_WEIGHT * 0.5 * 3 * 4, rel=1e-6)


def test_steps_are_timed_where_ranks_divide_the_batch_and_voxels_are_few(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    asked = Namespace(experiment="voxels_edm", device="cpu", sizes=[8, 16], batches=[1, 2, 4], repeats=1, voxels=1024,
                      overrides=["training.network.model.model_channels=16"])
    rows = scaling.rows(asked, tmp_path)
    assert [(row["size"], row["batch"]) for row in rows] == [(8, 1), (8, 2)]
    assert all(row["s_per_image"] > 0 for row in rows)


class PerfectNoise(torch.nn.Module):
    """What a perfect network says of the noise in x, of data N(0, 1/4) in the variance-preserving scale."""

    def forward(self, x, t):
        a = quality.scheduler("DDPMScheduler", 1000, **quality.NOISE).alphas_cumprod[t].reshape(-1, 1, 1, 1, 1)
        return x * (1 - a).sqrt() / (a / 4 + 1 - a)


@pytest.mark.parametrize("clip", quality.CLIPS)
def test_the_peer_draws_what_its_network_has_learnt(clip):
    run, random = SimpleNamespace(net=PerfectNoise()), torch.Generator().manual_seed(0)
    drawn = quality.PeerRun.draw(run, torch.randn(4, 4, 8, 8, 8, generator=random), quality.CLIPS[clip])
    assert float(drawn.std()) == pytest.approx(quality.SIGMA_DATA / 2, rel=0.05)


def test_the_rate_is_that_of_the_first_seed_and_ratios_are_of_means():
    def train(rate, seed):
        return {"cpu_s": 1.0, "drawn": {"a": {"frechet": rate + seed, "ks": 0.2}, "b": {"frechet": 9.0, "ks": 0.1}}}

    ours = quality.searched(train, [2.0, 1.0], [0, 1])
    assert (ours["rate"], ours["sampler"], ours["frechet"], ours["ks"]) == (1.0, "a", 1.5, 0.2)
    assert ours["by_rate"] == {"2": 2.0, "1": 1.0} and ours["drawn"]["a"]["frechet"] == [1.0, 2.0]
    found = {"edm3d": {**ours, "gflop": 1.0, "at": {str(Fraction(1, 6)): {"frechet": 3.0, "ks": 0.4}}},
             quality.PEER: {"frechet": 6.0, "ks": 0.4, "gflop": 1.04}}
    assert quality.ratios(found) == {
        "ratios": {"edm3d": {"frechet": 0.25, "ks": 0.5}}, "ratios_at": {"edm3d": {"1/6": {"frechet": 0.5, "ks": 1.0}}},
        "equal_flops": {"edm3d": True}}
