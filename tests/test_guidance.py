"""Guidance: the formula by hand, who is called where, and Gaussian data whose guided samples are known."""

from math import inf, nan, sqrt

import pytest
import torch

from edm3d.networks.conditioning import Condition, Part
from edm3d.networks.precond import EDMPrecond, VEPrecond, VPPrecond, iDDPMPrecond
from edm3d.networks.unet import ADMUNet
from edm3d.samplers import Calls, Guided, edm_sampler, multistep_sampler
from tests.denoisers import F64

LABELS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
CONDITION = Condition(class_labels=LABELS)
APART = Calls(together=False)
LATENTS = torch.randn(3, 1, 4, generator=torch.Generator().manual_seed(0)).to(F64)


class Stub:
    """A network from a formula of x, sigma and the class labels; keeps the labels it was called with."""

    noise_table = None

    def __init__(self, formula, label_dim: int = 2, label_dropout: float = 0.1, in_channels: int = 1,
                 sigma_min: float = 0, sigma_max: float = inf):
        self.formula, self.takes = formula, {"class_labels": Part(label_dim, label_dropout)}
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.model = type("Model", (), {"in_channels": in_channels})
        self.calls: list[Condition] = []

    def __call__(self, x, sigma, condition=None, augment_labels=None):
        self.calls.append(condition)
        column = torch.as_tensor(sigma).reshape(-1, *[1] * (x.ndim - 1))
        return self.formula(x, column, condition.class_labels.reshape(-1, 2, *[1] * (x.ndim - 2)))

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)


def sum_of_labels() -> Stub:
    """D = 10 x + label . (1, 2): without a label 10 x."""
    return Stub(lambda x, sigma, labels: 10 * x + labels[:, :1] + 2 * labels[:, 1:])


def gaussian_by_class(mean: float, sd: float, sd_unlabelled: float | None = None) -> Stub:
    """The perfect denoiser of N(mean, sd^2) for class 0, N(-mean, sd^2) for 1, N(0, sd_unlabelled^2) without label."""
    def formula(x, sigma, labels):
        labelled = labels.sum(1, keepdim=True)
        variance = labelled * sd ** 2 + (1 - labelled) * (sd_unlabelled or sd) ** 2
        centre = mean * (labels[:, :1] - labels[:, 1:])
        return centre + (x - centre) * variance / (variance + sigma ** 2)

    return Stub(formula)


# ---- the formula ----


@pytest.mark.parametrize("strength", [0, 0.5, 1, 3])
def test_classifier_free_guidance_moves_from_the_unlabelled_image_through_the_labelled_one(strength):
    net, x = sum_of_labels(), torch.ones(3, 1, 4)
    wanted = 10 + strength * torch.tensor([1.0, 2.0, 2.0])
    got = Guided(net, strength, calls=APART)(x, torch.tensor(1.0), CONDITION)
    torch.testing.assert_close(got, wanted.reshape(3, 1, 1).expand_as(x))
    without, labelled = [[0, 0]] * 3, LABELS.tolist()
    assert [call.class_labels.tolist() for call in net.calls] == {0: [without], 1: [labelled]}.get(
        strength, [without, labelled])


def test_other_parts_of_the_condition_are_kept():
    net = sum_of_labels()
    condition = CONDITION.replace(images=torch.ones(3, 1, 4))
    Guided(net, 2, calls=APART)(torch.ones(3, 1, 4), torch.tensor(1.0), condition)
    assert all(call.images is condition.images for call in net.calls)


def test_every_part_that_was_dropped_in_training_is_left_out_and_no_other():
    told = []

    def network(x, sigma, condition=None, augment_labels=None):
        told.append(condition)
        return x

    network.sigma_min, network.sigma_max = 0, inf
    network.takes = {"class_labels": Part(2, 0.1), "semantic": Part(5, 0.1), "images": Part(1)}
    condition = CONDITION.replace(semantic=torch.ones(3, 4, dtype=torch.int64), images=torch.ones(3, 1, 4))
    guided = Guided(network, 2, calls=APART)
    guided(torch.ones(3, 1, 4), torch.tensor(1.0), condition)
    guide, plain = told
    assert plain is condition and not guide.class_labels.any() and (guide.semantic == 5).all()
    assert guide.images is condition.images
    with pytest.raises(ValueError, match="drops the semantic map, and condition.semantic is None"):
        guided(torch.ones(3, 1, 4), torch.tensor(1.0), CONDITION)


def test_autoguidance_gives_both_networks_the_same_condition():
    net, guide = sum_of_labels(), Stub(lambda x, sigma, labels: 4 * x + labels[:, :1])
    got = Guided(net, 2, guide=guide)(torch.ones(3, 1, 4), torch.tensor(1.0), CONDITION)
    # 4 + 1 and 2 (10 + 1 - 4 - 1); 4 and 2 (10 + 2 - 4)
    torch.testing.assert_close(got[:, 0, 0], torch.tensor([17.0, 20.0, 20.0]))
    assert net.calls == guide.calls == [CONDITION]


def test_augmentation_labels_reach_both_networks():
    seen = []

    def network(x, sigma, condition=None, augment_labels=None):
        seen.append(augment_labels)
        return x

    network.sigma_min, network.sigma_max, network.noise_table = 0, inf, None
    network.round_sigma, network.model = torch.as_tensor, sum_of_labels().model
    labels = torch.zeros(3, 9)
    Guided(network, 2, guide=network)(torch.ones(3, 1, 4), torch.tensor(1.0), None, labels)
    assert len(seen) == 2 and all(each is labels for each in seen)


# ---- the interval ----


@pytest.mark.parametrize(("sigma", "acts"), [(0.5, False), (0.51, True), (2.0, True), (2.01, False)])
def test_guide_is_called_above_the_lower_end_and_up_to_the_upper(sigma, acts):
    net, guide = sum_of_labels(), Stub(lambda x, sigma, labels: 0 * x)
    got = Guided(net, 2, interval=[0.5, 2.0], guide=guide)(torch.ones(1, 1, 4), torch.tensor(sigma, dtype=F64),
                                                          Condition(class_labels=LABELS[:1]))
    torch.testing.assert_close(got, torch.full((1, 1, 4), 22.0 if acts else 11.0))
    assert len(guide.calls) == int(acts)


def test_interval_holds_for_each_image_of_a_batch_with_several_levels():
    got = Guided(sum_of_labels(), 3, interval=(0.5, 2.0))(torch.ones(3, 1, 4), torch.tensor([0.1, 1.0, 5.0]), CONDITION)
    torch.testing.assert_close(got[:, 0, 0], torch.tensor([11.0, 16.0, 12.0]))


def test_sampler_calls_the_guide_within_the_interval_alone():
    net = gaussian_by_class(1.0, 0.5)
    multistep_sampler(Guided(net, 2, interval=(0.3, 3), calls=APART), LATENTS, condition=CONDITION,
                      sigmas=[80, 10, 3, 1, 0.3, 0.01, 0])
    assert len(net.calls) == 6 + 2
    assert sum(bool(call.class_labels.any()) for call in net.calls) == 6


# ---- Gaussian data ----


@pytest.mark.parametrize("strength", [0, 0.7, 1, 2.5])
def test_guided_samples_of_gaussians_of_one_width_lie_at_the_mean_times_the_strength(strength):
    mean, sd = 1.5, 0.5
    x = edm_sampler(Guided(gaussian_by_class(mean, sd), strength), LATENTS, condition=CONDITION, num_steps=300)
    sign = torch.tensor([1, -1, -1], dtype=F64).reshape(3, 1, 1)
    centre = strength * mean * sign
    wanted = centre + (80 * LATENTS - centre) * sd / sqrt(sd ** 2 + 80 ** 2)
    torch.testing.assert_close(x, wanted, rtol=0, atol=2e-4)


@pytest.mark.parametrize("strength", [0.5, 2])
def test_guided_samples_of_gaussians_of_two_widths_have_the_width_of_the_closed_form(strength):
    """dx/dsigma = sigma x [w / (c^2 + sigma^2) + (1 - w) / (u^2 + sigma^2)], whose solution is a product of powers."""
    c, u = 0.4, 0.9
    x = multistep_sampler(Guided(gaussian_by_class(0, c, u), strength), LATENTS, condition=CONDITION, num_steps=200)
    gain = (c / sqrt(c ** 2 + 80 ** 2)) ** strength * (u / sqrt(u ** 2 + 80 ** 2)) ** (1 - strength)
    torch.testing.assert_close(x, 80 * LATENTS * gain, rtol=1e-4, atol=0)


# ---- real networks ----


def network(precond=EDMPrecond, label_dim: int = 2, label_dropout: float = 0.1, in_channels: int = 1):
    """A small network with random weights."""
    torch.manual_seed(0)
    net = precond(ADMUNet(in_channels, in_channels, spatial_dims=1, label_dim=label_dim, model_channels=8,
                          channel_mult=[1], num_blocks=1), label_dropout=label_dropout).eval().requires_grad_(False)
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return net


def test_guided_network_is_the_formula_of_its_two_answers():
    net, x, sigma = network(), LATENTS.float(), torch.tensor([0.1, 1.0, 10.0])
    labelled, unlabelled = net(x, sigma, CONDITION), net(x, sigma, Condition(class_labels=torch.zeros(3, 2)))
    assert (labelled - unlabelled).abs().max() > 1e-3
    torch.testing.assert_close(Guided(net, 4)(x, sigma, CONDITION), unlabelled + 4 * (labelled - unlabelled))


def test_guided_network_has_what_samplers_ask_for():
    guided = Guided(network(), 2, guide=network(VPPrecond))
    vp = network(VPPrecond)
    assert (guided.sigma_min, guided.sigma_max) == (vp.sigma_min, vp.sigma_max)
    assert guided.takes == {"class_labels": Part(2, 0.1)} and guided.noise_table is None
    assert float(guided.round_sigma(0.3)) == pytest.approx(0.3)
    assert edm_sampler(guided, LATENTS, condition=CONDITION, num_steps=4).isfinite().all()


def test_guide_with_a_narrower_range_narrows_the_table_of_levels():
    net, guide = network(iDDPMPrecond), network(VEPrecond)  # 0.0064 to 20291 and 0.02 to 100
    table = Guided(net, 2, guide=guide).noise_table
    assert table.tolist() == [level for level in net.noise_table.tolist() if 0.02 <= level <= 100]
    assert Guided(net, 2).noise_table.tolist() == net.noise_table.tolist()


def test_networks_that_do_not_say_their_channels_are_taken():
    net, guide = sum_of_labels(), sum_of_labels()
    del guide.model
    net.model = object()
    assert Guided(net, 2, guide=guide)(torch.ones(3, 1, 4), torch.tensor(1.0), CONDITION).shape == (3, 1, 4)


# ---- what is refused ----


@pytest.mark.parametrize("strength", [-0.1, inf, nan])
def test_impossible_strengths_are_refused(strength):
    with pytest.raises(ValueError, match="strength="):
        Guided(sum_of_labels(), strength)


@pytest.mark.parametrize("interval", [[1.0], [2.0, 1.0], [1.0, 1.0], [-1.0, 1.0], [nan, 1.0], [0.0, 1.0, 2.0]])
def test_impossible_intervals_are_refused(interval):
    with pytest.raises(ValueError, match="interval="):
        Guided(sum_of_labels(), 2, interval=interval)


def test_network_that_never_went_without_its_label_is_refused():
    with pytest.raises(ValueError, match=r"never trained with the label dropped \(label_dropout=0\); wanted on"):
        Guided(network(label_dropout=0), 2)
    Guided(network(label_dropout=0), 2, guide=network(label_dropout=0))  # autoguidance drops nothing


def test_network_without_classes_is_refused():
    with pytest.raises(ValueError, match="label_dim=0"):
        Guided(network(label_dim=0, label_dropout=0), 2)


@pytest.mark.parametrize("condition", [None, Condition(images=torch.ones(3, 1, 4))])
def test_call_without_a_label_is_refused(condition):
    with pytest.raises(ValueError, match="class_labels is None"):  # also where the guide would not be called
        Guided(sum_of_labels(), 2, interval=(5, 6))(torch.ones(3, 1, 4), torch.tensor(1.0), condition)


@pytest.mark.parametrize(("guide", "message"), [
    ({"in_channels": 2}, "in_channels=2: wanted the network's, 1"),
    ({"label_dim": 3}, "label_dim=3: wanted the network's, 2"),
    ({"sigma_min": 5, "sigma_max": 6}, "noise levels 5 to 6"),
])
def test_guides_of_another_kind_are_refused(guide, message):
    net = Stub(lambda x, sigma, labels: x, sigma_min=0.01, sigma_max=2)
    with pytest.raises(ValueError, match=message):
        Guided(net, 2, guide=Stub(lambda x, sigma, labels: x, **guide))
