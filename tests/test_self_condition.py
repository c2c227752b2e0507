"""Self-conditioning: what the network is shown in training and in sampling, and roads that train and draw by it."""

from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch

import generate
import train
from edm3d.formats.samples import SamplesFile
from edm3d.inference.batch import Batch
from edm3d.networks.conditioning import Condition
from edm3d.networks.precond import EDMPrecond
from edm3d.networks.unet import ADMUNet, SongUNet
from edm3d.samplers import ImageGenerators, ShownItsEstimate, edm_sampler, multistep_sampler
from edm3d.training.batch_transforms import Identity
from edm3d.training.loss import EDMLoss
from edm3d.training.tasks.diffusion import diffusion_task
from tests.commands import refused, succeed

SMALL = {"spatial_dims": 2, "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "attention_levels": []}
KINDS = [(ADMUNet, {}), (SongUNet, {}), (SongUNet, {"encoder": "residual"}), (SongUNet, {"encoder": "skip"})]


def drawn(kind: type, **more) -> torch.nn.Module:
    """A small network whose weights, the zeros of its start too, are drawn."""
    net = kind(1, 1, **SMALL, dropout=0, **more)
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(0, 0.3)
    return net.eval()


@pytest.mark.parametrize(("kind", "more"), KINDS)
def test_no_estimate_is_an_estimate_of_zeros(kind, more):
    net, x, level = drawn(kind, self_condition=True, **more), torch.randn(2, 1, 8, 8), torch.rand(2)
    nothing, zeros, other = net(x, level), net(x, level, None, None, torch.zeros_like(x)), net(x, level, estimate=x)
    torch.testing.assert_close(nothing, zeros)
    assert (other - nothing).abs().max() > 1e-3
    plain = drawn(kind, **more)
    with pytest.raises(ValueError, match="self_condition is false"):
        plain(x, level, estimate=x)


def test_the_estimate_takes_a_second_set_of_input_weights_and_leaves_the_others():
    plain, told = (kind_net.state_dict() for kind_net in (drawn(ADMUNet), drawn(ADMUNet, self_condition=True)))
    assert plain.keys() == told.keys()
    other = [k for k in plain if plain[k].shape != told[k].shape]
    assert other == ["enc.level0_conv.weight"] and told[other[0]].shape[1] == 2 * plain[other[0]].shape[1]


class Recorder(torch.nn.Module):
    """D = weight * x, which keeps the estimates that it is given."""

    self_condition, sigma_min, sigma_max, noise_table = True, 0.0, float("inf"), None

    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.tensor(0.5)), []

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)

    def forward(self, x, sigma, condition=None, augment_labels=None, estimate=None):
        self.seen.append((x, estimate, torch.is_grad_enabled()))
        return self.weight * x


def losses(net: Recorder, keys: list[int]) -> torch.Tensor:
    """Losses of images that are their keys in every pixel."""
    images = torch.tensor(keys, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    task = diffusion_task(net, EDMLoss(), torch.optim.SGD(net.parameters()), Identity(), {})
    return task.phases[0].loss(net, Batch(images, None, Condition()), ImageGenerators(keys, seed=3)).levels.values


def test_in_training_a_share_of_the_images_sees_the_first_estimate():
    net, keys = Recorder(), list(range(1, 401))
    losses(net, keys)
    (x, nothing, with_grad), (same, estimate, _) = net.seen
    assert nothing is None and not with_grad and torch.equal(x, same) and not estimate.requires_grad
    shown = (estimate != 0).flatten(1).any(1)
    torch.testing.assert_close(estimate[shown], 0.5 * x[shown])
    assert abs(shown.float().mean() - 0.5) < 0.1  # four standard deviations
    few = Recorder()
    losses(few, keys[5:9])  # whatever the batch
    assert torch.equal(few.seen[1][1], estimate[5:9])


@pytest.mark.parametrize(("sampler", "calls"), [(edm_sampler, 7), (multistep_sampler, 4)])
def test_in_sampling_every_call_sees_what_the_last_one_gave(sampler, calls):
    net = Recorder()
    sampler(ShownItsEstimate(net), torch.randn(2, 1, 2, 2), num_steps=4)
    assert len(net.seen) == calls and net.seen[0][1] is None
    for (x, _, _), (_, estimate, _) in zip(net.seen, net.seen[1:]):
        torch.testing.assert_close(estimate, 0.5 * x)


TINY = ["-cn=voxels_edm", "dataset=arrays", "training.dataset.path=a.npy", "training.network.model.model_channels=8",
        "training.network.model.channel_mult=[1,2]", "training.network.model.num_blocks=1",
        "training.network.model.attention_levels=[]", "training.network.model.self_condition=true",
        "training.options.batch_size=4", "training.options.total_kimg=0.008", "training.options.kimg_per_tick=0.008",
        "training.options.num_threads=1", "training.options.device=cpu", "training.options.precision=fp32",
        "training.validation.preview_ticks=1", "training.validation.preview_items=1", "sampling.num_threads=1",
        "sampling.device=cpu", "sampling.seeds=0-1", "sampling.sampler.num_steps=4", "sampling.montage=0"]


@pytest.mark.parametrize("road", [
    [], ["precond=ddpm", "loss=ddpm", "sampler=ddim", "training.network.objective=v", "training.network.num_steps=50"]])
def test_networks_train_and_draw_by_their_estimates(tmp_path, road):
    with chdir(tmp_path):
        np.save("a.npy", np.random.default_rng(0).random((20, 1, 8, 8), np.float32))
        succeed(train.main, *TINY, *road)
        succeed(generate.main, *TINY, *road, "sampling.outdir=two", "sampling.nifti=false")
        succeed(generate.main, *TINY, *road, "sampling.outdir=one", "sampling.nifti=false", "sampling.batch_size=1")
        two, one = (np.stack(SamplesFile(f"{name}/samples.h5").array("images")) for name in ("two", "one"))
        np.testing.assert_allclose(one, two, atol=1e-4)  # no image sees another's estimate
        said = refused(tmp_path, generate.main, *TINY, *road, "sampling.outdir=no", "sampling.guidance.strength=2")
        assert "self_condition" in said
        assert list(Path("results").rglob("preview-*.png"))


def test_a_denoiser_passes_the_estimate_on():
    net = EDMPrecond(drawn(ADMUNet, self_condition=True))
    x = torch.randn(2, 1, 8, 8)
    assert net.self_condition and not EDMPrecond(drawn(ADMUNet)).self_condition
    assert (net(x, 1.0, estimate=x) - net(x, 1.0)).abs().max() > 1e-3
