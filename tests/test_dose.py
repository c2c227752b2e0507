"""Doses obey their law: thinned counts, Poisson both, one event; images in units of activity; scales of them."""

import math

import pytest
import torch

from edm3d.physics.activity_scale import KINDS, ActivityScale
from edm3d.physics.dose import DoseSimulation, support
from edm3d.physics.pet_phantoms import pet_phantom, pet_stack
from edm3d.physics.projector import system_matrix
from edm3d.samplers.noise import GlobalNoise, ImageGenerators


def brains(number, size=24):
    return torch.stack([torch.from_numpy(pet_phantom(i, size=size).activity)[None] for i in range(number)])


ACTIVITY = brains(3)
SIMULATION = DoseSimulation(24, counts=1e5, iterations=8)


def noise(*keys):
    return ImageGenerators(keys or [5, 6, 7], seed=1)


def test_low_counts_are_those_of_the_high_dose_thinned():
    pair = DoseSimulation(24, counts=1e5, dose=0.3, iterations=1).pair(ACTIVITY, noise())
    assert (pair.low_counts <= pair.high_counts).all()
    ratio = pair.low_counts.sum((1, 2, 3)) / pair.high_counts.sum((1, 2, 3))
    assert (ratio - 0.3).abs().max() < 5 * math.sqrt(0.3 * 0.7 / 1e5)
    assert (pair.high_counts.sum((1, 2, 3)) / 1e5 - 1).abs().max() < 5 / math.sqrt(1e5)
    for counts in (pair.high_counts, pair.low_counts):
        assert torch.equal(counts, counts.round())


@pytest.mark.parametrize("dose", [0.25, 0.9])
def test_the_low_dose_alone_is_poisson(dose):
    """Mean, variance and third moment of a line over many events are all the expected counts."""
    simulation = DoseSimulation(8, counts=2000, dose=dose, iterations=1)
    activity = torch.ones(1, 1, 8, 8).expand(4000, 1, 8, 8)
    expected = simulation.expose(activity[:1]).expected[0] * dose
    counts = simulation.pair(activity, GlobalNoise(torch.empty(4000))).low_counts
    deviations = counts - expected
    scale = expected.sum()
    assert (deviations.sum((1, 2, 3)) / scale).mean().abs() < 5 * (1 / scale / 4000) ** 0.5
    assert (deviations.pow(2).mean(0).sum() / scale).item() == pytest.approx(1, abs=0.01)
    assert (deviations.pow(3).mean(0).sum() / scale).item() == pytest.approx(1, abs=0.2)
    shared = (deviations[:, 0, 0, 3] * deviations[:, 0, 0, 4]).mean() / expected[0, 0, 3]
    assert shared.abs() < 0.1


OPTIONS = [{}, {"attenuation": 0.1, "pixel_mm": 8.0}, {"background": 0.4}, {"blur": 1.0},
           {"dose": 1.0}, {"attenuation": 0.05, "background": 0.2, "blur": 0.5, "subsets": 4, "iterations": 4}]


@pytest.mark.parametrize("options", OPTIONS)
def test_low_is_that_of_the_pair_whatever_the_batch(options):
    simulation = DoseSimulation(24, **{"counts": 1e5, "iterations": 8, **options})
    pair = simulation.pair(ACTIVITY, noise())
    assert torch.equal(simulation.low(ACTIVITY, noise()), pair.low)
    alone = simulation.pair(ACTIVITY[1:2], noise(6))
    assert torch.equal(alone.high[0], pair.high[1])
    assert torch.equal(alone.low[0], pair.low[1])
    assert torch.equal(pair.low, pair.high) == (options.get("dose") == 1)
    assert not torch.equal(simulation.pair(ACTIVITY, noise(1, 2, 3)).low, pair.low)


@pytest.mark.parametrize("options", OPTIONS[:4])
def test_images_are_in_units_of_activity(options):
    """Many counts, many iterations: what comes out is what went in, at both doses."""
    activity = torch.zeros(2, 1, 16, 16, dtype=torch.float64)
    activity[:, :, 4:12, 5:13], activity[:, :, 6:9, 7:10] = 2, torch.tensor([5.0, 0.5]).reshape(2, 1, 1, 1)
    simulation = DoseSimulation(16, **{"counts": 1e9, "dose": 0.5, "iterations": 1500, **options})
    pair = simulation.pair(activity, noise(1, 2))
    for image in (pair.high, pair.low):
        error = (image - activity).flatten(1).norm(dim=1) / activity.flatten(1).norm(dim=1)
        assert error.max() < (0.15 if "blur" in options else 0.04)
    assert pair.calibration.dtype == torch.float64


def test_attenuation_is_between_the_outermost_active_pixels():
    activity = torch.zeros(1, 1, 5, 5)
    activity[0, 0, 1:4, 1:4] = 1
    activity[0, 0, 2, 2] = 0
    assert support(activity)[0, 0].tolist() == [[0] * 5, *[[0, 1, 1, 1, 0]] * 3, [0] * 5]
    pair = DoseSimulation(5, attenuation=0.1, pixel_mm=10.0, iterations=1).pair(activity, noise(1))
    assert pair.factors[0, 0, 0].tolist() == pytest.approx([1, *[math.exp(-0.3)] * 3, 1])


def test_background_has_its_share_and_is_even():
    exposure = DoseSimulation(24, counts=1e5, background=0.4).expose(ACTIVITY)
    plain = DoseSimulation(24, counts=1e5).expose(ACTIVITY)
    even = exposure.expected - 0.6 * plain.expected
    assert torch.allclose(even, torch.full_like(even, 0.4e5 / (48 * 24)), atol=0.01)
    assert torch.allclose(exposure.calibration, 0.6 * plain.calibration)


def test_stacks_have_one_calibration_and_empty_slices_are_zero():
    stack = torch.from_numpy(pet_stack(0, size=24, depth=6).activity)[None, None]
    stack[:, :, 0] = 0
    simulation = DoseSimulation(24, counts=1e5, iterations=8, background=0.1)
    pair = simulation.pair(stack, noise(5))
    assert pair.high.shape == stack.shape
    assert pair.high_counts.shape == (1, 1, 6, 48, 24)
    assert (pair.high[:, :, 0] == 0).all()
    assert (pair.high_counts.sum() / 5e5).item() == pytest.approx(1, abs=0.01)
    means = pair.high.mean((-2, -1)) / stack.mean((-2, -1)).clip(1e-9)
    assert means[0, 0, 1:].sub(1).abs().max() < 0.05
    assert torch.equal(simulation.low(stack, noise(5)), pair.low)


def test_reconstruction_can_be_watched_and_stopped():
    pair, seen = SIMULATION.pair(ACTIVITY, noise()), {}
    SIMULATION.reconstruct(pair.low_counts, pair.calibration * 0.25, callback=seen.__setitem__)
    assert list(seen) == list(range(1, 9))
    assert torch.equal(seen[8], pair.low)
    assert torch.equal(seen[3], SIMULATION.reconstruct(pair.low_counts, pair.calibration * 0.25, iterations=3))


def test_matrix_may_be_given():
    given = DoseSimulation(24, counts=1e5, iterations=8)
    given.matrix = system_matrix(SIMULATION.geometry)
    assert torch.equal(given.low(ACTIVITY, noise()), SIMULATION.low(ACTIVITY, noise()))
    given = DoseSimulation(24)
    given.matrix = system_matrix(DoseSimulation(16).geometry)
    with pytest.raises(ValueError, match="another geometry"):
        given.low(ACTIVITY, noise())


@pytest.mark.parametrize(("name", "value"), [
    *[("dose", value) for value in (0, -0.1, 1.01, math.nan, True)],
    *[("counts", value) for value in (0, -1, math.inf)],
    ("iterations", 0), ("subsets", 0), ("subsets", 129), ("attenuation", -1), ("background", 1.0), ("background", -0.1),
    ("blur", -1), ("blur", 65), ("size", 0), ("angles", 0), ("shifts", 0), ("pixel_mm", 0),
])
def test_wrong_options_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}"):
        DoseSimulation(**{name: value})


@pytest.mark.parametrize("options", [{"counts": 1e4, "dose": 0.01, "subsets": 16},
                                     {"counts": 400, "dose": 0.1, "subsets": 32}])
def test_few_counts_in_many_subsets_have_images_with_a_scale(options):
    low = DoseSimulation(24, iterations=2, **options).low(brains(12), ImageGenerators(range(12)))
    assert (ActivityScale()(low) > 0).all() and low.isfinite().all()


def test_more_subsets_than_counts_are_refused():
    with pytest.raises(ValueError, match=r"^subsets=41: counts=400 and dose=0.1 leave 40 counts"):
        DoseSimulation(32, counts=400, dose=0.1, subsets=41)
    DoseSimulation(32, counts=1e-6)  # plain MLEM takes any


@pytest.mark.parametrize(("change", "said"), [
    (lambda a: a[1].zero_(), "images 1 of the batch hold none"),
    (lambda a: a[:2, 0, 3, 3].fill_(-1), "images 0, 1 of the batch have values below 0"),
    (lambda a: a[2, 0, 3, 3].fill_(math.nan), "images 2 of the batch have values that are not finite"),
])
def test_wrong_activity_is_named(change, said):
    activity = ACTIVITY.clone()
    change(activity)
    with pytest.raises(ValueError, match=said):
        SIMULATION.pair(activity, noise())


@pytest.mark.parametrize(("activity", "said"), [
    (ACTIVITY[0], "wanted floating numbers"), (ACTIVITY.int(), "wanted floating numbers"),
    (ACTIVITY[..., 1:], "another geometry"), (ACTIVITY.repeat(1, 2, 1, 1), r"\[3, 2, 24, 24\]"),
])
def test_wrong_shapes_are_named(activity, said):
    with pytest.raises(ValueError, match=said):
        SIMULATION.low(activity, noise())


def test_activity_of_which_nothing_is_counted_is_named():
    with pytest.raises(ValueError, match=r"images 0, 1, 2 of the batch: nothing of .* lower attenuation=1000"):
        DoseSimulation(24, attenuation=1000.0, pixel_mm=100.0).low(ACTIVITY, noise())


def test_scales_by_hand_and_back():
    low = torch.tensor([[[0.0, 1.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 8.0]]])[:, None]
    assert ActivityScale("total", 3.0)(low).tolist() == [6.0, 6.0]
    assert ActivityScale("peak", 9.0)(low).tolist() == [8.0, 8.0]  # zeros beyond the border
    assert ActivityScale("peak", 9.0)(low[:, :, None].expand(2, 1, 3, 2, 2)).tolist() == [8.0, 8.0]
    assert ActivityScale("max", 1.0)(low).tolist() == [4.0, 8.0]
    assert ActivityScale("quantile", 2.0, 0.5)(low).tolist() == [6.0, 16.0]
    scale = ActivityScale("max", 1.0)(low)
    assert ActivityScale.to_network(low, scale).flatten(1).tolist() == [[-1, -0.5, 0.5, 1], [-1, -1, -1, 1]]
    assert torch.equal(ActivityScale.from_network(ActivityScale.to_network(low, scale), scale), low)


@pytest.mark.parametrize("share", [1e-6, 0.3, 0.5, 0.99, 1.0])
def test_quantiles_are_those_of_torch_without_its_limit(share, monkeypatch):
    low = torch.rand(2, 1, 40, 37) - 0.2
    low = low.clamp(min=0)
    wanted = torch.stack([row[row > 0].quantile(share) for row in low])
    monkeypatch.setattr(torch.Tensor, "quantile", None)  # which takes no more than 2^24 values
    assert torch.equal(ActivityScale("quantile", 1.0, share)(low), wanted)


def test_peak_puts_both_doses_into_the_range_of_networks():
    pair = DoseSimulation().pair(brains(12, 64), ImageGenerators(range(12)))
    scale = ActivityScale()(pair.low)
    high = ActivityScale.to_network(pair.high, scale)
    assert 0.35 < high.std() < 0.6
    assert (high > 1).float().mean() < 0.005
    assert (high.amax((1, 2, 3)) > 0).all()


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, -1.0])
def test_images_without_a_scale_are_named(value):
    low = torch.rand(3, 1, 4, 4)
    low[1] = value
    for kind in KINDS:
        with pytest.raises(ValueError, match="images 1 of the batch have no scale"):
            ActivityScale(kind)(low)


@pytest.mark.parametrize(("options", "said"), [
    ({"kind": "mean"}, "kind='mean': wanted one of peak, total, quantile, max"), ({"factor": 0.0}, "factor=0"),
    ({"quantile": 1.5}, "quantile=1.5"), ({"quantile": 0.0}, "quantile=0"),
])
def test_wrong_options_of_scales_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        ActivityScale(**options)
