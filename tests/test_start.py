"""The start from a regression mean: every sampler begins at it, and Gaussians of a condition image in closed form."""

from functools import partial
from math import inf, sqrt

import numpy as np
import pytest
import torch

from edm3d.formats.facts import Facts
from edm3d.formats.intensity import Intensity
from edm3d.inference.conditions import Conditions
from edm3d.inference.drawing import Drawer, draw, sample_meta
from edm3d.inference.generation import check_options, describe_drawing
from edm3d.inference.snapshot import Snapshot
from edm3d.inference.starts import LateStart, start_of, started
from edm3d.networks.conditioning import Condition, Part
from edm3d.networks.precond import DDPMPrecond, VEPrecond, iDDPMPrecond
from edm3d.samplers import Guided, ImageGenerators, ablation_sampler, ddim_sampler, edm_sampler, multistep_sampler
from edm3d.samplers.start import First, first_level, latents_around, mean_level, regression_mean
from edm3d.utils.schema import Sampling
from tests.denoisers import F64

GAIN, OFFSET, SD = 0.6, 0.2, 0.5  # x = GAIN y + OFFSET + SD eps for a condition image y
IMAGES = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 1, 3)
TAKES = {"images": Part(1, 0.1)}


class Translation:
    """The perfect denoiser of x given y; of N(0, 1) without y."""

    noise_table, sigma_min, sigma_max, takes = None, 0, inf, TAKES

    def __init__(self):
        self.sigmas, self.xs = [], []

    def __call__(self, x, sigma, condition=None, augment_labels=None):
        self.sigmas.append(float(sigma))
        self.xs.append(x)
        there = condition.images.flatten(1).any(1).reshape(-1, 1, 1)
        mean, variance = there * (GAIN * condition.images.to(F64) + OFFSET), torch.where(there, SD ** 2, 1).to(F64)
        return mean + (x - mean) * variance / (variance + sigma ** 2)

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)


def centre(seeds: list[int]) -> np.ndarray:
    """E[x | y] of seeds, which go through the two images in turn."""
    return GAIN * IMAGES[[seed % 2 for seed in seeds]].astype(float) + OFFSET


def conditions(**asked) -> Conditions:
    return Conditions(TAKES, {"images": list(IMAGES)} if not asked else asked["images"], (3,))


def starts(sampler, net, told, start: str = "mean", sigma: float | None = None, shape=(1, 3)) -> LateStart:
    """How a sampler starts."""
    return start_of(Sampling(outdir="", start=start, start_sigma=sigma), sampler, net, told, shape)


def drawer(net, sampler, *, start: bool = True) -> Drawer:
    """What draws latents [1,3] by a sampler from the mean."""
    level = starts(sampler, net, conditions()) if start else None
    return Drawer(lambda seeds: net, conditions(), True, None, sampler, (1, 3), Intensity(0, 1, True, ""),
                  torch.device("cpu"), "fp32", start=level)


SAMPLERS = {
    "edm": partial(edm_sampler, sigma_max=2), "edm exponential": partial(edm_sampler, sigma_max=2, grid="exponential"),
    "own levels": partial(edm_sampler, sigmas=[2, 1, 0.1, 0]), "churn": partial(edm_sampler, sigma_max=2, S_churn=4),
    "ddim": partial(ddim_sampler, sigma_max=2, num_steps=8), "multistep": partial(multistep_sampler, sigma_max=2),
    "ddpm": partial(ddim_sampler, sigma_max=2, num_steps=8, eta=1),
    **{f"ablation {schedule} {scaling} {discretization}": partial(
        ablation_sampler, sigma_min=0.01, sigma_max=2, schedule=schedule, scaling=scaling,
        discretization=discretization) for schedule, scaling, discretization in (
            ("vp", "vp", "vp"), ("ve", "none", "ve"), ("linear", "none", "edm"), ("ve", "vp", "edm"))},
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_begins_at_the_mean_with_noise_of_its_first_level(name):
    net, sampler = Translation(), SAMPLERS[name]
    assert first_level(sampler, net) == pytest.approx(2, rel=1e-9)
    mean, noise = torch.full((2, 1, 3), 0.3, dtype=F64), torch.randn(2, 1, 3)
    first = First(net)
    sampler(first, latents_around(mean, noise, 2), randn_like=torch.zeros_like)  # no churn's noise
    torch.testing.assert_close(first.asked[0], mean + 2 * noise.to(F64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["edm", "multistep", "ablation ve vp edm"])
@pytest.mark.parametrize("level", [2, 8])
def test_samples_are_those_of_the_closed_form(name, level):
    """x = m + (level n + mean - m) SD / sqrt(SD^2 + level^2), mean being D(80 n; 80)."""
    steps = {"num_steps": 150, "sigma_max": level, "sigma_min": 0.002}
    sampler, seeds = partial(SAMPLERS[name].func, **{**SAMPLERS[name].keywords, **steps}), [4, 5, 7]
    x = draw(drawer(Translation(), sampler), seeds)["latents"]
    noise, m = ImageGenerators(seeds, purpose="sample").randn((1, 3)).numpy().astype(float), centre(seeds)
    mean = m + (80 * noise - m) * SD ** 2 / (SD ** 2 + 80 ** 2)
    wanted = m + (level * noise + mean - m) * SD / sqrt(SD ** 2 + level ** 2)
    np.testing.assert_allclose(x, wanted, atol=1e-3)
    assert np.abs(mean - m).max() < 0.01  # the mean is the regression's


@pytest.mark.parametrize(("level", "width"), [(0.5, sqrt(0.5)), (2, 0.970), (10, 0.9988)])
def test_the_spread_falls_short_as_said_and_is_exact_from_high_levels(level, width):
    sampler, seeds = partial(multistep_sampler, sigma_max=level, num_steps=40), list(range(20))
    off = draw(drawer(Translation(), sampler), seeds)["latents"] - centre(seeds)
    noise = ImageGenerators(seeds, purpose="sample").randn((1, 3)).numpy()
    np.testing.assert_allclose(off / noise / SD, width, rtol=0.02)


def test_the_mean_is_that_of_the_condition_at_a_level_that_the_network_knows():
    net, noise = Translation(), torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(0))
    mean = regression_mean(net, noise, Condition(images=torch.from_numpy(IMAGES)))
    np.testing.assert_allclose(mean, centre([0, 1]), atol=0.01)
    assert net.sigmas == [80] and mean.dtype == F64
    torch.testing.assert_close(net.xs[0], 80 * noise.to(F64))
    assert mean_level(VEPrecond(torch.nn.Identity(), sigma_max=50)) == 50
    table = iDDPMPrecond(torch.nn.Identity())
    assert mean_level(table) in table.noise_table.tolist() and mean_level(table) == pytest.approx(80, rel=0.05)


def test_the_mean_is_guided_as_the_sampler_is():
    """D = m w + ..., so that the guided samples of a network lie around the mean of the guided one."""
    guided = Guided(Translation(), 2)
    mean = regression_mean(guided, torch.zeros(2, 1, 3), Condition(images=torch.from_numpy(IMAGES)))
    np.testing.assert_allclose(mean, 2 * centre([0, 1]), atol=0.01)


def test_noise_alone_is_the_start_by_default():
    sampler, net = partial(edm_sampler, num_steps=4), Translation()
    draw(drawer(net, sampler, start=False), [0, 1])
    noise = ImageGenerators([0, 1], purpose="sample").randn((1, 3))
    assert net.sigmas[0] == 80 and torch.equal(net.xs[0], 80 * noise.to(F64))


# ---- what is asked for ----


def test_the_start_is_part_of_what_samples_record_and_said():
    snapshot = Snapshot("diffusion", {}, Facts("v.h5", ""), (1, 3))
    noise, mean = (Sampling(outdir="", start=start, sampler={"_target_": "samplers.edm_sampler"})
                   for start in ("noise", "mean"))
    assert sample_meta(snapshot, snapshot, mean, {}).sampling["start"] == "mean"
    assert "start" not in sample_meta(snapshot, snapshot, noise, {}).sampling
    said = [next(describe_drawing(torch.nn.Identity(), snapshot, options, None)) for options in (noise, mean)]
    assert said[1] == f"{said[0]}, from the regression mean"
    with pytest.raises(ValueError, match="sampling.start='middle': wanted one of noise, mean, condition"):
        check_options(Sampling(outdir="", start="middle"))


def own(net, latents, *, condition=None, randn_like=None):
    """A sampler that starts elsewhere."""
    return net(latents * 2 + 1, 2.0, condition)


def test_starts_that_make_no_sense_are_refused():
    net, sampler = Translation(), partial(edm_sampler, sigma_max=2)
    for takes, asked, words in (
            ({"class_labels": Part(2)}, {}, r"start=mean: the network takes no condition image \(image_dim=0\)"),
            (TAKES, {}, "sampling.start=mean: no condition image is asked for"),
            (TAKES, {"images": [np.zeros((1, 3))]}, "sampling.start=mean: no condition image is asked for")):
        with pytest.raises(ValueError, match=words):
            starts(sampler, net, Conditions(takes, asked, (3,)))
    for sampler, words in (
            (edm_sampler, "starts at noise level 80, in which a mean is lost; wanted less than 80, as by sampling."),
            (ablation_sampler, "starts at noise level 80"), (partial(edm_sampler, sigma_max=200), "noise level 200"),
            (own, "the sampler does not start at its latents times a noise level; choose another")):
        with pytest.raises(ValueError, match=words):
            starts(sampler, net, conditions())
    table = DDPMPrecond(torch.nn.Identity())
    with pytest.raises(ValueError, match="starts at the network's highest level whatever sigma_max, choose "):
        starts(partial(ddim_sampler, sigma_max=2), table, conditions())
    start = starts(partial(ddim_sampler, sigma_max=2, grid="polynomial"), table, conditions())
    assert start.level == pytest.approx(2, rel=0.02)


# ---- the start from the condition image ----


@pytest.mark.parametrize("name", ["edm", "multistep", "ddim"])
def test_a_sampler_starts_around_the_condition_image_without_a_call_for_the_mean(name):
    net, seeds = Translation(), [4, 5, 7]
    sampler = partial(SAMPLERS[name].func, **{**SAMPLERS[name].keywords, "sigma_max": 1.5, "num_steps": 4})
    start = starts(sampler, net, conditions(), "condition", 1.5)
    draw(drawer(net, sampler, start=False)._replace(start=start), seeds)
    noise = ImageGenerators(seeds, purpose="sample").randn((1, 3)).to(F64)
    low = torch.from_numpy(IMAGES[[0, 1, 1]]).to(F64)
    torch.testing.assert_close(net.xs[0], low + 1.5 * noise)
    assert net.sigmas[0] == pytest.approx(1.5) and max(net.sigmas) == net.sigmas[0]  # and none at the level of means


def test_a_start_from_the_condition_image_keeps_a_share_of_its_error():
    """x = m + (y - m + level n) SD / sqrt(SD^2 + level^2)."""
    level, seeds, net = 2, [4, 5, 7], Translation()
    sampler = partial(edm_sampler, sigma_max=level, sigma_min=0.002, num_steps=150)
    x = draw(drawer(net, sampler, start=False)._replace(start=LateStart("condition", level)), seeds)["latents"]
    noise, m = ImageGenerators(seeds, purpose="sample").randn((1, 3)).numpy().astype(float), centre(seeds)
    y = IMAGES[[0, 1, 1]].astype(float)
    np.testing.assert_allclose(x, m + (y - m + level * noise) * SD / sqrt(SD ** 2 + level ** 2), atol=1e-3)


def test_the_level_is_that_of_the_sampler_and_part_of_what_samples_record():
    options = started(Sampling(outdir="", start_sigma=2, sampler={"_target_": "samplers.edm_sampler", "sigma_max": 80}))
    assert options.start == "condition" and options.sampler["sigma_max"] == 2
    snapshot = Snapshot("diffusion", {}, Facts("v.h5", ""), (1, 3))
    found = sample_meta(snapshot, snapshot, options, {}).sampling
    assert (found["start"], found["start_sigma"], found["sampler"]["sigma_max"]) == ("condition", 2, 2)
    assert next(describe_drawing(torch.nn.Identity(), snapshot, options, None)).endswith(", from the condition image")
    around_mean = started(Sampling(outdir="", start="mean", start_sigma=2,
                                   sampler={"_target_": "samplers.edm_sampler"}))
    assert around_mean.start == "mean" and around_mean.sampler["sigma_max"] == 2
    plain = Sampling(outdir="", sampler={"_target_": "samplers.edm_sampler"})
    assert started(plain) is plain


@pytest.mark.parametrize(("sampler", "level", "words"), [
    ({"_target_": "samplers.edm_sampler"}, 0, "sampling.start_sigma=0: wanted a noise level above 0"),
    ({"_target_": "samplers.edm_sampler"}, inf, "sampling.start_sigma=inf: wanted a noise level above 0"),
    ({"_target_": "samplers.edm_sampler", "sigmas": [2, 1, 0]}, 2, "sampling.sampler.sigmas says all levels"),
    ({"_target_": "tests.test_start.own"}, 2, "tests.test_start.own has no sigma_max; choose another sampler"),
    ({}, 2, "sampling.sampler._target_: no value"),
])
def test_levels_that_no_sampler_can_start_at_are_refused(sampler, level, words):
    with pytest.raises(ValueError, match=words):
        started(Sampling(outdir="", start_sigma=level, sampler=sampler))


def test_levels_and_images_that_no_network_can_start_at_are_refused():
    net, sampler = Translation(), partial(edm_sampler, sigma_max=2)
    with pytest.raises(ValueError, match="start=condition: the network takes no condition image .image_dim=0.;"):
        starts(sampler, net, Conditions({"class_labels": Part(2)}, {}, (3,)), "condition", 2)
    with pytest.raises(ValueError, match="sampling.start=condition: no condition image is asked for"):
        starts(sampler, net, Conditions(TAKES, {}, (3,)), "condition", 2)
    with pytest.raises(ValueError, match=r"condition images are \[1, 3\], the network draws \[2, 3\]; wanted the same"):
        starts(sampler, net, conditions(), "condition", 2, shape=(2, 3))
    with pytest.raises(ValueError, match="start_sigma=3: the sampler starts at noise level 2 instead"):
        starts(sampler, net, conditions(), "condition", 3)
    with pytest.raises(ValueError, match="start_sigma=2000: the network knows noise levels 0.002 to 50"):
        starts(sampler, VEPrecond(torch.nn.Identity(), sigma_min=0.002, sigma_max=50), conditions(), "condition", 2000)
