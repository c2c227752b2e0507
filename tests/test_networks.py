"""Networks against formulas, and each other in 2D and 3D; reference numbers are in test_edm_networks.py."""

from inspect import signature
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn.attention import SDPBackend, sdpa_kernel

from edm3d.formats.facts import Facts, LatentScaling
from edm3d.formats.intensity import Intensity
from edm3d.inference.first_stage import FirstStage
from edm3d.networks.autoencoder import AutoencoderKL, Posterior
from edm3d.networks.conditioning import Condition, Part
from edm3d.networks.latent_codec import unwhiten, whiten
from edm3d.networks.layers import (
    Conv3d,
    attention,
    check_divides,
    check_filter,
    conv,
    down,
    group_norm,
    linear,
    per_axis,
    per_level,
    timestep_embedding,
    up,
)
from edm3d.networks.precond import DDPMPrecond, EDMPrecond, VEPrecond, VPPrecond, iDDPMPrecond
from edm3d.networks.schedules import ddpm_table
from edm3d.networks.unet import ADMUNet, SongUNet
from edm3d.networks.vq import AutoencoderVQ

TINY = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1}
SMALL = {**TINY, "attention_levels": [1], "channels_per_head": 8}
SMOOTH = (1, 3, 3, 1)
NCSNPP = {"embedding": "fourier", "channel_mult_noise": 2, "encoder": "residual", "resample_filter": SMOOTH}


def randomise(net: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Put random numbers everywhere, so that no zero weight hides a wrong path."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.3)
    return net.eval()


def with_depth(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights of a 2D network for its 3D twin: kernels get a first axis of length 1."""
    return {k: v.unsqueeze(2) if v.ndim == 4 else v for k, v in net.state_dict().items()}


class Given:
    """Noise that is what it is given."""

    def __init__(self, eps: torch.Tensor):
        self.eps = eps

    def randn(self, shape):
        assert self.eps.shape[1:] == shape
        return self.eps


# ---- preconditioning ----


class Stub(torch.nn.Module):
    """A raw network that is a formula: F = 0.7 x + c_noise - 0.2 (+ the first class label)."""

    def __init__(self, dtype: torch.dtype = torch.float64):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.7, dtype=dtype))
        self.seen_dtype = None

    def forward(self, x, noise_labels, condition=None, augment_labels=None):
        self.seen_dtype = x.dtype
        label = 0 if condition is None else condition.class_labels[:, 0].reshape(-1, *[1] * (x.ndim - 1))
        return self.weight * x + noise_labels.reshape(-1, *[1] * (x.ndim - 1)) - 0.2 + label


@pytest.mark.parametrize("size", [(5,), (4, 3), (2, 3, 4)])
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edm_precond_is_table_1(size, sigma_data):
    x = torch.randn(3, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.002, 0.7, 80.0], dtype=torch.float64)
    labels = torch.tensor([[1.0], [0.0], [2.0]], dtype=torch.float64)
    D_x = EDMPrecond(Stub(), sigma_data)(x, sigma, Condition(class_labels=labels))
    for i, s in enumerate(sigma.tolist()):
        total = s ** 2 + sigma_data ** 2
        F_x = 0.7 * x[i].numpy() / np.sqrt(total) + np.log(s) / 4 - 0.2 + labels[i, 0].item()
        wanted = sigma_data ** 2 / total * x[i].numpy() + s * sigma_data / np.sqrt(total) * F_x
        np.testing.assert_allclose(D_x[i].detach().numpy(), wanted, rtol=1e-12, atol=1e-13)


def test_edm_precond_keeps_the_dtype_of_x_and_runs_the_network_in_its_own():
    net = EDMPrecond(Stub(torch.float32))
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    assert net(x, 3.0).dtype == torch.float64 and net.model.seen_dtype == torch.float32
    assert torch.equal(net(x, 3.0), net(x, torch.tensor([3.0, 3.0])))
    assert float(net.round_sigma(torch.tensor(0.123, dtype=torch.float64))) == 0.123


@pytest.mark.parametrize(("precond", "c_in", "c_out", "c_noise"), [
    (VPPrecond, lambda s: 1 / np.sqrt(s ** 2 + 1), lambda s: -s,
     lambda s: 999 * (np.sqrt(0.1 ** 2 + 2 * 19.9 * np.log(1 + s ** 2)) - 0.1) / 19.9),
    (VEPrecond, lambda s: 1, lambda s: s, lambda s: np.log(s / 2))])
def test_vp_and_ve_precond_are_table_1(precond, c_in, c_out, c_noise):
    net, x = precond(Stub()), torch.randn(2, 1, 4, 3, dtype=torch.float64)
    D_x = net(x, torch.tensor([0.05, 90.0], dtype=torch.float64)).detach().numpy()
    for i, s in enumerate((0.05, 90.0)):
        F_x = 0.7 * c_in(s) * x[i].numpy() + c_noise(s) - 0.2
        np.testing.assert_allclose(D_x[i], x[i].numpy() + c_out(s) * F_x, rtol=1e-12)
    assert net.noise_table is None and net.round_sigma(0.3) == torch.tensor(0.3)


def test_the_range_of_vp_ends_at_its_first_and_last_time():
    net = VPPrecond(Stub(), beta_d=2.0, beta_min=1.0, epsilon_t=0.5)
    assert net.sigma_min == pytest.approx(np.sqrt(np.exp(0.75) - 1), rel=1e-6)
    assert net.sigma_max == pytest.approx(np.sqrt(np.exp(2) - 1), rel=1e-6)


class Told(torch.nn.Module):
    """A raw network that gives what it is told to, and remembers what it saw."""

    def __init__(self, output: torch.Tensor):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.output = output

    def forward(self, x, noise_labels, condition=None, augment_labels=None):
        self.x, self.noise_labels = x, noise_labels
        return self.output + self.weight


def test_iddpm_precond_counts_from_the_least_noise_and_leaves_the_variance_channels():
    F_x, x = torch.randn(3, 4, 5), torch.randn(3, 2, 5)
    net = iDDPMPrecond(Told(F_x), M=100)
    sigma = net.u[[99, 40, 0]] * torch.tensor([0.99, 1.001, 1.01])
    D_x = net(x, sigma)
    assert net.model.noise_labels.tolist() == [0, 59, 99]
    torch.testing.assert_close(net.model.x, x / (1 + sigma ** 2).sqrt().reshape(3, 1, 1))
    torch.testing.assert_close(D_x, x - sigma.reshape(3, 1, 1) * F_x[:, :2])
    assert net.u[100] == 0 and net.round_sigma(sigma.double()).tolist() == net.u[[99, 40, 0]].tolist()
    assert "u" in net.state_dict()
    plain = iDDPMPrecond(Told(F_x[:, :2]), M=100)  # a network without variance channels
    torch.testing.assert_close(plain(x, sigma), D_x)


@pytest.mark.parametrize("objective", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ddpm_precond_finds_the_image_from_a_perfect_prediction(objective, schedule):
    x0, eps = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)
    table = ddpm_table(schedule, 100, 1e-3, 0.2)
    sigma = table[[3, 70, 99]] * 1.001
    alpha = (1 / (1 + sigma ** 2).sqrt()).reshape(3, 1, 1, 1)
    s = (1 - alpha ** 2).sqrt()
    told = {"epsilon": eps, "x0": x0, "v": alpha * eps - s * x0}[objective]
    net = DDPMPrecond(Told(told), schedule, 100, 1e-3, 0.2, objective).double()
    D_x = net(x0 + sigma.reshape(3, 1, 1, 1) * eps, sigma)
    torch.testing.assert_close(D_x, x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(net.model.x, alpha * x0 + s * eps)  # the state of the DDPM
    assert net.model.noise_labels.tolist() == [3, 70, 99]
    assert torch.equal(net.noise_table, table.flip(0)) and (net.sigma_min, net.sigma_max) == (table[0], table[-1])
    torch.testing.assert_close(net.round_sigma(sigma), table[[3, 70, 99]])


def test_noise_labels_keep_float32_where_the_network_has_less():
    net = VPPrecond(Stub(torch.bfloat16))
    net.model.register_forward_pre_hook(lambda model, inputs: seen.append(inputs[1]))
    seen = []
    net(torch.zeros(1, 1, 2), 150.0)
    assert seen[0].dtype == torch.float32 and net.model.seen_dtype == torch.bfloat16


@pytest.mark.parametrize(("net", "sigma", "message"), [
    (EDMPrecond(Stub()), [1.0, 0.0], "EDMPrecond: got sigma 0 to 1, wanted noise levels finite and above 0"),
    (EDMPrecond(Stub()), float("nan"), "got sigma nan"),
    (EDMPrecond(Stub()), float("inf"), "got sigma inf"),
    (EDMPrecond(Stub(), sigma_min=0.1), 0.09, "got sigma 0.09, wanted noise levels finite and above 0.1"),
    (VEPrecond(Stub()), 150.0, "VEPrecond: got sigma 150, wanted noise levels between 0.02 and 100"),
    (VEPrecond(Stub()), 0.019, "got sigma 0.019"),
    (VEPrecond(Stub()), [1.0, 2.0, 3.0], "3 noise levels for 2 images"),
])
def test_noise_levels_that_the_network_does_not_know_are_refused(net, sigma, message):
    for training in (True, False):
        with pytest.raises(ValueError, match=message):
            net.train(training)(torch.zeros(2, 1, 2), torch.tensor(sigma))


def test_churn_may_leave_a_range_but_not_a_table():
    x = torch.zeros(1, 2, 2)
    VEPrecond(Stub()).eval()(x, 148.0)  # 100 sqrt(2) 1.05
    table = iDDPMPrecond(Stub(), M=10).eval()
    table(x, table.sigma_max * 1.04)
    with pytest.raises(ValueError, match="iDDPMPrecond: got sigma"):
        table(x, table.sigma_max * 1.06)


@pytest.mark.parametrize("precond", [EDMPrecond, DDPMPrecond, iDDPMPrecond])
@pytest.mark.parametrize("shape", [(2, 1, 4), (2, 2, 1), (1, 2, 4)])
def test_output_of_another_shape_is_refused_and_not_broadcast(precond, shape):
    wanted = rf"{precond.__name__}: the model gives \[{', '.join(map(str, shape))}\] for images \[2, 2, 4\]"
    for net in (precond(Told(torch.zeros(shape))), precond(Told(torch.zeros(shape))).eval()):
        with pytest.raises(ValueError, match=f"{wanted}, wanted the same; out_channels of the model should be 2"):
            net(torch.zeros(2, 2, 4), 1.0)


@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch_is_refused(training):
    with pytest.raises(ValueError, match="EDMPrecond: got no images, wanted a batch of one or more"):
        EDMPrecond(Stub()).train(training)(torch.zeros(0, 1, 2), torch.zeros(0))


def test_noise_levels_may_be_off_by_rounding_and_are_not_looked_at_elsewhere():
    net, x = VEPrecond(Stub()).eval(), torch.zeros(2, 1, 2)
    assert torch.equal(net(x, torch.tensor([0.0195, 104.0])), net.train()(x, torch.tensor([0.0195, 104.0])))
    assert net.to("meta")(x.to("meta"), torch.tensor([1000.0], device="meta")).shape == x.shape


class Labelled(Stub):
    """A stub that says it takes labels."""

    takes, augment_dim = {"class_labels": Part(4)}, 9


def test_precond_parameters_that_make_no_sense_are_refused():
    net = EDMPrecond(Labelled(), label_dropout=0.1)
    assert (net.takes, net.augment_dim) == ({"class_labels": Part(4, dropout=0.1)}, 9)
    assert (EDMPrecond(Stub()).takes, EDMPrecond(Stub()).augment_dim) == ({}, 0)
    for build, message in [
        (lambda: VEPrecond(Labelled(), label_dropout=1.5), "label_dropout=1.5: wanted a probability"),
        (lambda: VEPrecond(Labelled(), label_dropout=1), "label_dropout=1: wanted a probability"),
        (lambda: VPPrecond(Stub(), beta_min=-1), "beta_min=-1: wanted more than 0"),
        (lambda: VPPrecond(Stub(), beta_d=0), "beta_d=0: wanted more than 0"),
        (lambda: VPPrecond(Stub(), epsilon_t=1), "epsilon_t=1: wanted less than 1"),
        (lambda: VPPrecond(Stub(), M=1), "M=1"),
        (lambda: iDDPMPrecond(Stub(), C_2=-1), "C_2=-1: wanted a number of 0"),
        (lambda: VPPrecond(Stub(), label_dropout=0.1), "label_dropout=0.1.*label_dim of the model is 0"),
        (lambda: VEPrecond(Stub(), sigma_min=2, sigma_max=1), "sigma_min=2, sigma_max=1"),
        (lambda: EDMPrecond(Stub(), sigma_data=0), "sigma_data=0"),
        (lambda: iDDPMPrecond(Stub(), M=1), "M=1"),
        (lambda: iDDPMPrecond(Stub(), M=2.5), "M=2.5: wanted a whole number of 2 or more"),
        (lambda: VPPrecond(Stub(), M=2.5), "M=2.5: wanted a whole number"),
        (lambda: DDPMPrecond(Stub(), num_steps=2.5), "num_steps=2.5: wanted a whole number"),
        (lambda: DDPMPrecond(Stub(), objective="eps"), "objective='eps': wanted one of epsilon, x0, v"),
        (lambda: DDPMPrecond(Stub(), schedule="quadratic"), "schedule='quadratic'"),
    ]:
        with pytest.raises(ValueError, match=message):
            build()


# ---- layers ----


def test_filter_of_four_weights_by_hand():
    ramp = torch.arange(8.0).reshape(1, 1, 8)
    assert down(ramp, (2,), SMOOTH).flatten().tolist() == [5 / 8, 2.5, 4.5, (5 + 3 * 6 + 3 * 7) / 8]
    impulse = torch.tensor([[[0.0, 1, 0]]])
    assert up(impulse, (2,), SMOOTH).flatten().tolist() == [0, 0.25, 0.75, 0.75, 0.25, 0]
    assert up(torch.ones(1, 1, 3), (2,), SMOOTH).flatten().tolist() == [0.75, 1, 1, 1, 1, 0.75]
    assert down(ramp, (4,)).flatten().tolist() == [1.5, 5.5]
    assert up(impulse, (3,)).flatten().tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("filter", [(1, 1), (1, 2), SMOOTH, (1, 2, 4, 3), (1, 5, 9, 9, 5, 1), tuple(range(1, 9))])
@pytest.mark.parametrize("stride", [(2,), (2, 2), (1, 2), (2, 1, 2), (1, 1, 1)])
def test_filters_are_separable_convolutions_and_up_is_the_transpose_of_down(filter, stride):
    dims, m = len(stride), len(filter) // 2 - 1
    x = torch.randn(2, 3, *(8, 6, 4)[:dims], dtype=torch.float64)
    kernel = torch.ones([1] * dims, dtype=torch.float64)
    for axis, s in enumerate(stride):
        weights = torch.tensor(filter if s == 2 else [1], dtype=torch.float64)
        kernel = kernel * (weights / weights.sum()).reshape([-1 if a == axis else 1 for a in range(dims)])
    convolve = getattr(torch.nn.functional, f"conv{dims}d")
    padding = tuple(m if s == 2 else 0 for s in stride)
    wanted = convolve(x, kernel.expand(3, 1, *kernel.shape), stride=stride, padding=padding, groups=3)
    got = down(x, stride, filter)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    y = torch.randn_like(got)
    torch.testing.assert_close((up(y, stride, filter) * x).sum(), (y * got).sum() * np.prod(stride))


@pytest.mark.parametrize(("filter", "strides", "message"), [
    ([1, 2, 1], [(2,)], r"resample_filter=\[1, 2, 1\]: wanted an even number"), ([], [], "resample_filter"),
    ([1, -1], [], "not sum to 0"), ([float("nan"), 1], [], "finite weights"), ([1, float("inf")], [], "finite weights"),
    ([1, 3, 3, 1], [(1, 2), (2, 3)], r"only \[1,1\] works at strides=3"),
])
def test_filters_that_cannot_work_are_refused(filter, strides, message):
    with pytest.raises(ValueError, match=message):
        check_filter(filter, strides)


def test_start_of_weights_has_the_variance_asked_for():
    torch.manual_seed(0)
    layer = conv(2, 64, 16, 3, init=2)  # fan-in 576
    assert layer.weight.var().item() == pytest.approx(4 / 576, rel=0.05) and layer.bias.abs().max() > 0
    layer = linear(400, 100, init=2, glorot=True)  # mean of the fans 250
    assert layer.weight.var().item() == pytest.approx(4 / 250, rel=0.05) and not layer.bias.any()
    assert not conv(1, 3, 4, init=0).weight.any()


UNIFORM = {"adm": lambda fan_in, fan_out: 1 / (3 * fan_in), "song": lambda fan_in, fan_out: 2 / (fan_in + fan_out)}


@pytest.mark.parametrize("family", ["adm", "song"])
def test_start_of_the_unets_has_the_variances_of_their_papers(family):
    """ADM: PyTorch's own start, 1 / (3 fan_in). Song: 1 over the mean of the fans, biases 0. Blocks add nothing."""
    torch.manual_seed(0)
    arguments = {"model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1, "attention_levels": [1],
                 "label_dim": 40, "augment_dim": 3}
    net = (ADMUNet if family == "adm" else SongUNet)(2, 2, 2, **arguments)
    variance, widths, E = UNIFORM[family], (64, 128), 256
    wanted = {  # fan-in and fan-out, by hand
        "map_layer0": variance(64, E), "map_layer1": variance(E, E), "enc.level0_conv": variance(2 * 9, 64 * 9),
        "enc.level1_block0.conv0": variance(64 * 9, 128 * 9), "enc.level1_block0.skip": variance(64, 128),
        "dec.level0_block0.conv0": variance(192 * 9, 64 * 9),
        "enc.level1_block0.affine": variance(E, widths[1] * (2 if family == "adm" else 1)),
        "enc.level1_block0.qkv": 1 / (3 * 128) if family == "adm" else 0.1 / 128,  # Song: scale 0.1, three layers
        "map_label": 1 if family == "adm" else variance(40, 64),
    }
    for name, value in wanted.items():
        layer = net.get_submodule(name)
        assert layer.weight.var().item() == pytest.approx(value, rel=0.08), name
        assert layer.bias is None or bool(layer.bias.any()) == (family == "adm"), name
    zero = [name for name, module in net.named_modules() if name.endswith(("conv1", "proj", "out_conv", "aux_conv",
                                                                          "map_augment"))]
    assert len(zero) == 10 + 2 + len(attending(net))  # blocks, way out and augmentation, attention
    assert not any(p.any() for name in zero for p in net.get_submodule(name).parameters())


def test_start_of_class_vectors_is_unit_normal_for_any_number_of_classes():
    torch.manual_seed(0)
    for classes in (1, 2, 1000):
        weight = ADMUNet(1, 1, 1, label_dim=classes, **{**TINY, "channel_mult_emb": 128}).map_label.weight
        assert weight.shape == (1024, classes) and weight.var().item() == pytest.approx(1, rel=0.15)
        assert weight.abs().max() > 3  # not uniform


def test_start_of_fourier_frequencies_is_normal_with_deviation_16():
    torch.manual_seed(0)
    freqs = SongUNet(1, 1, 1, **TINY, **{**NCSNPP, "channel_mult_noise": 256}).map_noise.freqs  # 1024 of them
    assert freqs.std().item() == pytest.approx(16, rel=4 / np.sqrt(2 * len(freqs))) and freqs.abs().max() > 32


@pytest.mark.parametrize("net", [ADMUNet(2, 2, 1, **SMALL), SongUNet(2, 2, 1, **TINY), SongUNet(
    2, 2, 1, **TINY, **NCSNPP, decoder="skip")])
def test_an_untrained_denoiser_only_scales_its_input(net):
    x, sigma = torch.randn(2, 2, 4), torch.tensor([0.1, 3.0])
    c_skip = 0.25 / (sigma ** 2 + 0.25)
    assert torch.equal(EDMPrecond(net)(x, sigma), c_skip.reshape(2, 1, 1) * x)


def test_timestep_embedding_is_cosines_then_sines_of_falling_frequencies():
    got = timestep_embedding(torch.tensor([0.0, 2.0], dtype=torch.float64), 4)
    wanted = [[1, 1, 0, 0], [np.cos(2), np.cos(0.02), np.sin(2), np.sin(0.02)]]  # frequencies 1 and 10000^-1/2
    np.testing.assert_allclose(got.numpy(), wanted, atol=1e-12)
    got = timestep_embedding(torch.tensor([2.0], dtype=torch.float64), 4, endpoint=True)
    np.testing.assert_allclose(got.numpy(), [[np.cos(2), np.cos(2e-4), np.sin(2), np.sin(2e-4)]], atol=1e-12)


def test_song_unet_embeds_sines_first_and_labels_by_the_root_of_their_number():
    net = randomise(SongUNet(1, 1, 2, label_dim=9, **{**TINY, "model_channels": 4})).double()
    net.map_layer0.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    seen, noise, label = [], torch.tensor([2.0], dtype=torch.float64), torch.eye(9, dtype=torch.float64)[3:4]
    waves = torch.tensor([np.sin(2), np.sin(2e-4), np.cos(2), np.cos(2e-4)])
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    net(x, noise), net(x, noise, Condition(class_labels=label))
    torch.testing.assert_close(seen[0][0], waves + net.map_label.bias)  # no label is the zero label
    torch.testing.assert_close(seen[1][0], waves + net.map_label.bias + 3 * net.map_label.weight[:, 3])


def test_fourier_embedding_is_kept_with_the_weights_and_not_trained():
    net = SongUNet(1, 1, 2, **TINY, embedding="fourier", channel_mult_noise=2)
    assert net.state_dict()["map_noise.freqs"].shape == (8,)
    assert not any("freqs" in name for name, _ in net.named_parameters())
    net.map_noise.freqs.copy_(torch.arange(8.0))
    wanted = 2 * np.pi * 0.3 * np.arange(8)
    got = net.map_noise(torch.tensor([0.3], dtype=torch.float64))
    np.testing.assert_allclose(got[0].numpy(), np.concatenate([np.cos(wanted), np.sin(wanted)]), atol=1e-12)


# ---- the ways of NCSN++ ----


def silence(block: torch.nn.Module) -> None:
    """Make a resampling block of Song's style give 0."""
    for layer in (block.conv1, block.skip):
        torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)


def test_skip_encoder_adds_the_filtered_image_at_every_level():
    net = randomise(SongUNet(1, 1, 1, **{**TINY, "channel_mult": [1, 1, 1]}, encoder="skip", resample_filter=SMOOTH))
    silence(net.enc["level1_down"]), silence(net.enc["level2_down"])
    ramp = torch.arange(16.0).reshape(1, 1, 16)
    features = net.encode(ramp, torch.randn(1, 32))  # conv, block; down, block; down, block
    half = [5 / 8] + [2 * i + 0.5 for i in range(1, 7)] + [(13 + 3 * 14 + 3 * 15) / 8]
    quarter = [sum(w * v for w, v in zip(SMOOTH, [0, *half, 0][2 * i:2 * i + 4])) / 8 for i in range(4)]
    for level, wanted in ((1, half), (2, quarter)):
        layer = net.enc[f"level{level}_aux_skip"]
        wanted = layer.weight[:, 0] * torch.tensor(wanted) + layer.bias[:, None]
        torch.testing.assert_close(features[2 * level][0], wanted)


def test_skip_decoder_filters_the_image_up_and_adds_every_level():
    net = randomise(SongUNet(1, 2, 2, **{**TINY, "channel_mult": [1, 1, 1]}, decoder="skip", resample_filter=SMOOTH))
    for level, bias in ((0, 100.0), (1, 10.0), (2, 1.0)):
        torch.nn.init.zeros_(net.dec[f"level{level}_aux_conv"].weight)
        torch.nn.init.constant_(net.dec[f"level{level}_aux_conv"].bias, bias)
    out = net(torch.randn(1, 1, 8, 8), torch.zeros(1))
    once = np.array([0.75, 1, 1, 1, 1, 1, 1, 0.75])                           # a constant filtered up, zero outside
    twice = np.array([9, 13, 15, 16, 16, 15, 13, 9]) / 16                     # 0.75 1 1 0.75 filtered up
    wanted = 100 + 10 * np.outer(once, once) + np.outer(twice, twice)
    np.testing.assert_allclose(out.detach().numpy(), np.broadcast_to(wanted, (1, 2, 8, 8)), rtol=1e-6)


# ---- the same code in 2D and 3D ----


def test_unet_in_3d_with_depth_1_is_the_2d_unet():
    flat = randomise(ADMUNet(3, 2, spatial_dims=2, label_dim=5, **SMALL))
    deep = ADMUNet(3, 2, spatial_dims=3, label_dim=5, kernel_size=[[1, 3, 3]] * 2, strides=[[1, 2, 2]], **SMALL).eval()
    deep.load_state_dict(with_depth(flat))
    x, sigma, labels = torch.randn(2, 3, 8, 6), torch.tensor([0.3, -1.0]), torch.eye(5)[:2]
    wanted = flat(x, sigma, Condition(class_labels=labels))
    assert wanted.shape == (2, 2, 8, 6) and wanted.std() > 0.1
    got = deep(x[:, :, None], sigma, Condition(class_labels=labels))[:, :, 0]
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("encoder", ["standard", "residual", "skip"])
@pytest.mark.parametrize("decoder", ["standard", "skip"])
@pytest.mark.parametrize("filter", [(1, 1), SMOOTH])
def test_song_unet_in_3d_with_depth_1_is_the_2d_one(encoder, decoder, filter):
    arguments = {**TINY, "channel_mult": [1, 2, 1], "encoder": encoder, "decoder": decoder, "resample_filter": filter,
                 "label_dim": 5, "augment_dim": 2}
    flat = randomise(SongUNet(3, 2, spatial_dims=2, **arguments))
    deep = SongUNet(3, 2, kernel_size=[[1, 3, 3]] * 3, strides=[[1, 2, 2]] * 2, **arguments).eval()
    deep.load_state_dict(with_depth(flat))
    x, sigma, labels, augment = torch.randn(2, 3, 8, 12), torch.tensor([0.3, -1.0]), torch.eye(5)[:2], torch.eye(2)
    wanted = flat(x, sigma, Condition(class_labels=labels), augment)
    assert wanted.shape == (2, 2, 8, 12) and wanted.std() > 0.1
    got = deep(x[:, :, None], sigma, Condition(class_labels=labels), augment)[:, :, 0]
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_autoencoder_in_3d_with_depth_1_is_the_2d_autoencoder():
    arguments = {"in_channels": 1, "num_classes": 3, "latent_channels": 2, "channels": (4, 8), "num_blocks": 1,
                 "bottleneck_attention": True}
    flat = randomise(AutoencoderKL(spatial_dims=2, **arguments))
    deep = AutoencoderKL(spatial_dims=3, kernel_size=[[1, 3, 3]] * 2, strides=[[1, 2, 2]], **arguments).eval()
    deep.load_state_dict(with_depth(flat))
    image, label = torch.randn(2, 1, 8, 6), torch.randint(0, 3, (2, 8, 6))
    eps = torch.randn(2, 2, 4, 3)
    wanted, got = flat(image, label, Given(eps)), deep(image[:, :, None], label[:, None], Given(eps[:, :, None]))
    assert wanted.image.shape == (2, 1, 8, 6) and wanted.logits.shape == (2, 3, 8, 6)
    for a, b in ((got.image, wanted.image), (got.logits, wanted.logits), (got.posterior.mean, wanted.posterior.mean),
                 (got.posterior.logvar, wanted.posterior.logvar)):
        torch.testing.assert_close(a[:, :, 0], b, rtol=1e-4, atol=1e-4)


def test_strides_per_axis_keep_13_slices():
    unet = ADMUNet(1, 1, strides=[[1, 2, 2]], **SMALL)
    assert unet.factor == (1, 2, 2)
    assert unet(torch.zeros(1, 1, 13, 4, 6), torch.ones(1)).shape == (1, 1, 13, 4, 6)
    autoencoder = AutoencoderKL(1, channels=(4, 4, 4), strides=[[1, 2, 2], [1, 2, 2]], num_blocks=1)
    assert autoencoder.factor == (1, 4, 4) and autoencoder.latent_shape((13, 8, 12)) == (4, 13, 2, 3)
    out = autoencoder(torch.zeros(1, 1, 13, 8, 12))
    assert out.posterior.mean.shape == (1, 4, 13, 2, 3) and out.image.shape == (1, 1, 13, 8, 12)
    assert out.logits is None


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_all_networks_run_in_any_number_of_dimensions(dims):
    size = (4, 8, 6)[:dims]
    for net in (ADMUNet(2, 3, spatial_dims=dims, **SMALL), SongUNet(2, 3, spatial_dims=dims, **TINY),
                SongUNet(2, 3, spatial_dims=dims, **TINY, **NCSNPP)):
        assert net(torch.zeros(2, 2, *size), torch.ones(2)).shape == (2, 3, *size)
    net = AutoencoderKL(2, spatial_dims=dims, channels=(4, 4), num_blocks=1)
    assert net(torch.zeros(2, 2, *size)).image.shape == (2, 2, *size)


def test_dropout_acts_in_training_only():
    net = randomise(ADMUNet(1, 1, spatial_dims=2, dropout=0.5, **SMALL))
    x, noise = torch.randn(1, 1, 4, 4), torch.zeros(1)
    assert torch.equal(net(x, noise), net(x, noise))
    net.train()
    assert not torch.equal(net(x, noise), net(x, noise))


def test_a_sample_does_not_see_the_others_of_its_batch():
    net = randomise(ADMUNet(1, 1, spatial_dims=2, **SMALL)).double()
    x, noise = torch.randn(3, 1, 4, 4).double(), torch.tensor([0.1, 0.5, -2.0]).double()
    torch.testing.assert_close(net(x, noise)[1:2], net(x[1:2], noise[1:2]), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_one_compiled_graph_after_another_number_of_dimensions():
    for dims in (2, 3, 1):
        net = EDMPrecond(randomise(ADMUNet(1, 1, spatial_dims=dims, **SMALL))).eval()
        for images in (1, 3):
            x, sigma = torch.randn(images, 1, *[4] * dims), torch.full([images], 0.5)
            torch.testing.assert_close(torch.compile(net, backend="eager", fullgraph=True)(x, sigma), net(x, sigma))


@pytest.mark.slow
@pytest.mark.parametrize("net", [ADMUNet(1, 1, **SMALL), SongUNet(1, 1, **TINY, **NCSNPP, decoder="skip"),
                                 SongUNet(1, 1, **TINY, encoder="skip")])
def test_networks_compile_into_one_graph(net):
    net, x, sigma = EDMPrecond(randomise(net)).eval(), torch.randn(1, 1, 4, 4, 4), torch.tensor([0.5])
    torch.testing.assert_close(torch.compile(net, backend="eager", fullgraph=True)(x, sigma), net(x, sigma))


def test_song_unet_runs_in_bf16_and_without_memory():
    arguments = {**TINY, **NCSNPP, "decoder": "skip"}
    net, x, noise = randomise(SongUNet(1, 1, **arguments)), torch.randn(1, 1, 4, 4, 4), torch.tensor([0.5])
    wanted = net(x, noise)
    with torch.autocast("cpu", torch.bfloat16):
        got = net(x, noise)
    assert 0 < (got - wanted).norm() < 0.1 * wanted.norm()
    assert net.bfloat16()(x.bfloat16(), noise).dtype == torch.bfloat16
    with torch.device("meta"):
        assert SongUNet(1, 1, **arguments)(torch.empty(1, 1, 4, 4, 4), torch.empty(1)).shape == x.shape


def test_weights_live_in_leaf_layers_and_keep_their_order():
    net = ADMUNet(1, 1, label_dim=2, augment_dim=3, **SMALL)
    first = list(dict.fromkeys(name.split(".")[0] for name, _ in net.named_parameters()))
    assert first == ["map_layer0", "map_layer1", "map_label", "map_augment", "enc", "dec", "out_norm", "out_conv"]
    song = SongUNet(1, 1, label_dim=2, augment_dim=3, encoder="skip", decoder="skip", embedding="fourier", **TINY)
    leaves = (torch.nn.Conv3d, torch.nn.Linear, torch.nn.GroupNorm)
    for module in [*net.modules(), *song.modules()]:
        assert isinstance(module, leaves) or not list(module.parameters(recurse=False))


def attending(net: torch.nn.Module) -> list[str]:
    """Blocks with attention."""
    return [name for half in (net.enc, net.dec) for name, block in half.items() if getattr(block, "heads", 0)]


def test_attention_takes_the_flash_kernel_and_is_the_softmax_of_products():
    qkv = torch.randn(2, 2 * 4 * 3, 3, 5, dtype=torch.float64)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # refuses layouts that would cost memory quadratic in the tokens
        got = attention(qkv, heads=2)
    for head in range(2):
        q, k, v = (qkv.reshape(2, 2, 4, 3, 15)[:, head, :, part] for part in range(3))
        weights = (torch.einsum("ncq,nck->nqk", q, k) / 2).softmax(-1)
        wanted = torch.einsum("nqk,nck->ncq", weights, v).reshape(2, 4, 3, 5)
        torch.testing.assert_close(got[:, 4 * head:4 * head + 4], wanted, rtol=1e-12, atol=1e-12)


def test_attention_by_level_by_resolution_or_by_default():
    arguments = {"model_channels": 64, "channel_mult": [1, 1, 1], "num_blocks": 1}
    with torch.device("meta"):
        by_level = attending(SongUNet(1, 1, **arguments, attention_levels=[1]))
        assert by_level == ["level1_block0", "level2_in0", "level1_block1"]  # the decoder's last block of a level only
        assert attending(SongUNet(1, 1, **arguments)) == by_level
        by_size = {"attention_resolutions": [8, 64], "image_size": [4, 8, 16], "strides": [[1, 2, 2], 2]}
        assert attending(SongUNet(1, 1, **arguments, **by_size)) == by_level
        first = {"attention_resolutions": [16], "image_size": 16}
        assert attending(SongUNet(1, 1, **arguments, **first)) == ["level0_block0", "level2_in0", "level0_block1"]
        adm = attending(ADMUNet(1, 1, **arguments, attention_resolutions=[8], image_size=16))
        assert adm == ["level1_block0", "level2_in0", "level1_block0", "level1_block1"]
        everywhere = attending(ADMUNet(1, 1, **arguments))
        assert everywhere == ["level1_block0", "level2_block0", "level2_in0", *(f"level{i}_block{j}" for i in (2, 1)
                                                                                for j in (0, 1))]
        assert ADMUNet(1, 1, **arguments, channels_per_head=16).dec["level2_in0"].heads == 4
        assert ADMUNet(1, 1, **arguments, channels_per_head=None).dec["level2_in0"].heads == 1
        assert attending(ADMUNet(1, 1, **arguments, channels_per_head=65)) == []  # by default, not by request


def test_only_levels_that_attend_and_the_lowest_must_divide_into_heads():
    arguments = {"model_channels": 14, "num_blocks": 1, "channels_per_head": 4}  # 3, 7 and 10 heads of 14, 28 and 42
    with torch.device("meta"):
        net = ADMUNet(1, 1, channel_mult=[1, 3, 2], attention_levels=[], **arguments)
        assert net.dec["level2_in0"].heads == 7
        for refused, channels in (({"channel_mult": [1, 3, 2], "attention_levels": [1]}, 42),
                                  ({"channel_mult": [2, 1], "attention_levels": []}, 14)):
            with pytest.raises(ValueError, match=f"channels_per_head=4: {channels} channels do not divide"):
                ADMUNet(1, 1, **refused, **arguments)


# ---- refusals ----


@pytest.mark.parametrize(("size", "nearest"), [((13, 16, 16), "(12, 16, 16) and (16, 16, 16)"),
                                               ((2, 4, 4), "nearest that does: (4, 4, 4)")])
def test_sizes_that_do_not_divide_are_refused_with_the_nearest(size, nearest):
    unet = ADMUNet(1, 1, **{**SMALL, "channel_mult": [1, 1, 1]})
    autoencoder = AutoencoderKL(1, channels=(4, 4, 4), num_blocks=1)
    for call in (lambda: unet(torch.zeros(1, 1, *size), torch.ones(1)), lambda: autoencoder.latent_shape(size),
                 lambda: autoencoder.encode(torch.zeros(1, 1, *size))):
        with pytest.raises(ValueError, match="must divide") as error:
            call()
        assert str(error.value).endswith(nearest) and str(size) in str(error.value)
        assert error.value.size == size and set(error.value.larger) <= {4, 16}


def test_wrong_number_of_axes_is_refused():
    with pytest.raises(ValueError, match="2 spatial axes, spatial_dims is 3"):
        check_divides((8, 8), (2, 2, 2), "net")


def test_unet_refuses_what_it_was_not_built_for():
    net, noise = ADMUNet(2, 2, spatial_dims=2, label_dim=3, **SMALL), torch.ones(1)
    x = torch.zeros(1, 2, 4, 4)
    for inputs, message in [
        ((torch.zeros(1, 1, 4, 4), noise), "1 channels, in_channels is 2"),
        ((x, noise, Condition(class_labels=torch.ones(1, 4))), "4 class labels, label_dim is 3"),
        ((x, noise, Condition(attributes=torch.ones(1, 4))), "'attributes'"),
        ((x, noise, Condition(), torch.ones(1, 9)), "augment labels, augment_dim is 0 .*choose augment=none"),
        ((x, noise, Condition(class_labels=torch.ones(3))), r"class labels of shape \(3,\), wanted \(1, 3\)"),
        ((torch.zeros(1, 2, 4), noise), "1 spatial axes, spatial_dims is 2"),
        ((torch.zeros(2), noise), "0 spatial axes, spatial_dims is 2"),
        ((x, noise, torch.eye(3)[:1]), r"got a Tensor as condition, wanted a Condition, as in Condition\(class_labels"),
        ((x.expand(4, -1, -1, -1), noise, Condition(class_labels=torch.ones(2, 3))),
         r"shape \(2, 3\), wanted \(4, 3\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            net(*inputs)


@pytest.mark.parametrize("width", [0, 4])
def test_class_labels_are_refused_by_a_network_without_classes(width):
    net = ADMUNet(2, 2, spatial_dims=2, **SMALL)
    with pytest.raises(ValueError, match="ADMUNet: got class labels, label_dim is 0 and it takes none"):
        net(torch.zeros(1, 2, 4, 4), torch.ones(1), Condition(class_labels=torch.zeros(1, width)))


def test_autoencoder_refuses_wrong_channels_and_missing_or_unasked_labels():
    plain = AutoencoderKL(1, spatial_dims=2, channels=(4, 4))
    labelled = AutoencoderKL(1, num_classes=2, spatial_dims=2, channels=(4, 4))
    image, label = torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4)
    with pytest.raises(ValueError, match="3 image channels, in_channels is 1"):
        plain.encode(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="num_classes is 0, the data has labels"):
        plain.encode(image, label)
    with pytest.raises(ValueError, match="num_classes is 2, the data has no labels"):
        labelled.encode(image)


def test_architectures_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="attention_levels"):
        ADMUNet(1, 1, **{**SMALL, "attention_levels": [2]})
    with pytest.raises(ValueError, match="kernel_size"):
        ADMUNet(1, 1, kernel_size=2, **SMALL)
    with pytest.raises(ValueError, match="strides"):
        ADMUNet(1, 1, strides=[2, 2], **SMALL)
    with pytest.raises(ValueError, match="strides"):
        per_level([[1, 2]], 1, 3, "strides")
    with pytest.raises(ValueError, match="kernel_size"):
        per_axis(0, 2, "kernel_size")
    assert per_level([1, [1, 2]], 2, 2, "strides") == [(1, 1), (1, 2)]
    for arguments, message in [
        ({"attention_resolutions": [4], "image_size": 8, "attention_levels": [1]}, "no attention_levels, got .*1"),
        ({"attention_resolutions": [4]}, "wanted image_size with it"),
        ({"attention_resolutions": [5], "image_size": 8}, "largest axes of the levels are 8, 4"),
        ({"attention_levels": [0, 1], "channels_per_head": 16}, r"attention_levels=\[0, 1\]: level 0 has 8 channels, "
                                                                "fewer than channels_per_head=16.*channels_per_head=8"),
        ({"attention_resolutions": [4], "image_size": 4, "channels_per_head": 9},
         r"attention_resolutions=\[4\]: level 0 has 8 channels"),
        ({"num_blocks": 0}, "num_blocks=0: wanted a whole number of 1"),
        ({"num_blocks": 1.5}, "num_blocks=1.5: wanted a whole number"),
        ({"num_blocks": "2"}, "num_blocks='2': wanted a whole number of 1 or more"),
        ({"num_blocks": True}, "num_blocks=True: wanted a whole number"),
        ({"out_channels": 0}, "out_channels=0: wanted"),
        ({"spatial_dims": 4}, "spatial_dims=4: wanted one of 1, 2, 3"), ({"spatial_dims": 0}, "spatial_dims=0"),
        ({"channel_mult": [1, 1.5]}, r"channel_mult=\[1, 1.5\]: wanted one or more whole numbers"),
        ({"label_dim": -1}, "label_dim=-1"),
        ({"augment_dim": -1}, "augment_dim=-1: wanted a whole number of 0"), ({"in_channels": 0}, "in_channels=0"),
        ({"model_channels": 0}, "model_channels=0"), ({"channel_mult": []}, r"channel_mult=\[\]: wanted one or more"),
        ({"channel_mult": [1, 0]}, r"channel_mult=\[1, 0\].*of 1 or"), ({"channel_mult_emb": 0}, "channel_mult_emb=0"),
        ({"dropout": 1.5}, r"dropout=1.5: wanted a probability, 0\.\.1"), ({"dropout": -0.1}, "dropout=-0.1"),
        ({"model_channels": 2}, "model_channels.*got 2"),
        ({"embedding": "cosine"}, "embedding='cosine'"), ({"encoder": "skipped"}, "encoder='skipped'"),
        ({"decoder": "residual"}, "decoder='residual': wanted one of standard, skip"),
        ({"channels_per_head": 0}, "channels_per_head=0"), ({"resample_filter": [1, 2, 1]}, "resample_filter"),
    ]:
        with pytest.raises(ValueError, match=message):
            SongUNet(**{"in_channels": 1, "out_channels": 1, **TINY, **arguments})
        if arguments.keys() <= signature(ADMUNet).parameters.keys():
            with pytest.raises(ValueError, match=message):
                ADMUNet(**{"in_channels": 1, "out_channels": 1, **TINY, **arguments})


def test_group_norm_takes_at_most_32_groups_of_at_least_4_channels_that_divide():
    assert [group_norm(c).num_groups for c in (2, 16, 18, 128, 192, 144)] == [1, 4, 3, 32, 32, 24]


# ---- posterior, whitening ----


def test_posterior_kl_is_the_closed_form():
    mean, logvar = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(3, 2, 4, dtype=torch.float64)
    posterior = Posterior(mean, logvar)
    wanted = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0)).sum((1, 2))
    torch.testing.assert_close(posterior.kl(), wanted)
    assert Posterior(torch.tensor([[3.0]]), torch.tensor([[0.0]])).kl().tolist() == [4.5]
    assert Posterior(torch.zeros(1, 1), torch.tensor([[np.log(4.0)]])).std.item() == pytest.approx(2)


def test_forward_draws_mean_plus_std_times_eps():
    net = randomise(AutoencoderKL(1, spatial_dims=2, channels=(4, 4), num_blocks=1))
    image, eps = torch.randn(2, 1, 4, 4), torch.randn(2, 4, 2, 2)
    posterior = net.encode(image)
    torch.testing.assert_close(net(image, noise=Given(eps)).image, net.decode(posterior.mean + posterior.std * eps)[0])
    torch.testing.assert_close(net(image).image, net.decode(posterior.mean)[0])


@pytest.mark.parametrize("size", [(50,), (10, 9), (6, 5, 4)])
def test_whiten_gives_std_sigma_data_and_unwhiten_takes_it_back(size):
    z = torch.randn(40, 3, *size, dtype=torch.float64) * torch.tensor([0.1, 2, 30.0]).reshape(3, *[1] * len(size)) + 5
    axes = [0, *range(2, z.ndim)]
    mean, std = z.mean(axes), z.std(axes, correction=0)
    x = whiten(z, mean, 0.5 / std)
    torch.testing.assert_close(x.mean(axes), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(x.std(axes, correction=0), torch.full((3,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(unwhiten(x, mean, 0.5 / std), z)


def test_first_stage_decodes_what_it_encodes():
    autoencoder = randomise(AutoencoderKL(1, num_classes=3, spatial_dims=2, channels=(4, 4), num_blocks=1,
                                          latent_channels=2))
    codec = FirstStage(autoencoder, Facts("", "", intensity=Intensity(-1.0, 1.0, False, "")),
                       LatentScaling([1.0, -2.0], [2.0, 4.0], sigma_data=0.5))
    image, label = torch.randn(2, 1, 4, 4), torch.randint(0, 3, (2, 4, 4))
    mean = autoencoder.encode(image, label).mean
    x = codec.encode(image, label)
    torch.testing.assert_close(x[:, 0], (mean[:, 0] - 1) / 4)  # 0.5 / 2
    torch.testing.assert_close(x[:, 1], (mean[:, 1] + 2) / 8)
    decoded, labels = codec.decode(x)
    wanted, logits = autoencoder.decode(mean)
    torch.testing.assert_close(decoded, wanted)
    assert labels.dtype == torch.uint8 and torch.equal(labels.long(), logits.argmax(1))
    soft, shares = codec.decode_soft(x.requires_grad_())
    torch.testing.assert_close(soft, wanted)
    torch.testing.assert_close(shares, logits.softmax(1))
    (soft.sum() + shares[:, 0].sum()).backward()
    assert x.grad.abs().min() > 0


def test_soft_decoding_hands_gradients_through_a_codebook_as_if_there_were_none():
    net = randomise(AutoencoderVQ(1, spatial_dims=2, channels=(4, 4), num_blocks=1, latent_channels=2,
                                  codebook_size=8))
    codec, z = FirstStage(net, Facts("", "")), torch.randn(2, 2, 4, 4, requires_grad=True)
    codes = net.quantise(z)[0].detach().requires_grad_()
    codec.decode_soft(z)[0].sum().backward()
    net.split(net.decoder(codes), codes)[0].sum().div(2).backward()  # stored units, half of the networks'
    torch.testing.assert_close(z.grad, codes.grad)
    assert z.grad.abs().min() > 0


def test_a_single_volume_is_convolved_as_one_of_several():
    """On a CPU by another way than PyTorch would, but not in other precisions."""
    layer = conv(3, 5, 7, (3, 1, 3))
    x = torch.randn(2, 5, 6, 7, 8)
    wanted = torch.nn.functional.conv3d(x.double(), layer.weight.double(), layer.bias.double(), padding=(1, 0, 1))
    with torch.no_grad():
        both, alone = layer(x), layer(x[:1])
        with patch("torch.mkldnn_convolution", side_effect=torch.mkldnn_convolution) as single:
            layer(x[:1])
        assert single.call_count == torch.backends.mkldnn.is_available()
        torch.testing.assert_close(both, wanted.float(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(alone, both[:1], rtol=1e-5, atol=1e-5)
        assert layer.double()(x[:1].double()).dtype == torch.float64
        with torch.autocast("cpu", torch.bfloat16):
            assert layer.float()(x[:1]).dtype == torch.bfloat16
    assert layer(x[:1]).requires_grad


def test_a_single_volume_is_padded_as_the_layer_says():
    x = torch.randn(1, 2, 4, 4, 4)
    for more in ({"padding_mode": "circular", "padding": 1}, {"padding": "same"}):
        ours = Conv3d(2, 3, 3, **more)
        theirs = torch.nn.Conv3d(2, 3, 3, **more)
        theirs.load_state_dict(ours.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x))
