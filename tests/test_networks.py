"""Networks against formulas, reference numbers, and each other in 2D and 3D."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from networks.autoencoder import AutoencoderKL, Posterior
from networks.conditioning import Condition
from networks.latent_codec import LatentCodec, unwhiten, whiten
from networks.layers import check_divides, group_norm, per_axis, per_level, timestep_embedding
from networks.precond import EDMPrecond
from networks.unet import ADMUNet, UNetBlock

VECTORS = Path(__file__).parent / "data" / "edm_blocks.npz"
SMALL = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attention_levels": [1], "channels_per_head": 8}


def relative(got: torch.Tensor, wanted: np.ndarray) -> float:
    """Largest difference of a sample over its largest value, the worst of the samples."""
    wanted = torch.from_numpy(wanted).double()
    return float(((got.double() - wanted).flatten(1).abs().amax(1) / wanted.flatten(1).abs().amax(1)).max())


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


# ---- reference numbers ----


@pytest.mark.parametrize("name", ["adm_heads", "adm_down", "adm_up"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_block_gives_the_reference_numbers(name, dtype, tolerance):
    with np.load(VECTORS) as archive:
        data = {k.removeprefix(f"block/{name}/"): v for k, v in archive.items() if k.startswith(f"block/{name}/")}
    config = json.loads(str(data["config"]))
    way = "down" if config.get("down") else "up" if config.get("up") else "same"
    block = UNetBlock(2, config["in_channels"], config["out_channels"], config["emb_channels"], kernel=(3, 3),
                      stride=(2, 2), way=way, heads=int(data["num_heads"]), eps=config["eps"]).to(dtype).eval()
    block.load_state_dict({k.removeprefix("param/"): torch.from_numpy(v) for k, v in data.items()
                           if k.startswith("param/") and not k.endswith("resample_filter")})
    y = block(torch.from_numpy(data["x"]).to(dtype), torch.from_numpy(data["emb"]).to(dtype)).detach()
    assert relative(y, data["y" if dtype == torch.float32 else "y_f64"]) < tolerance


@pytest.mark.parametrize("name", ["adm_edm", "adm_edm_lab_aug"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_whole_network_gives_the_reference_numbers(shared, name, dtype, tolerance):
    with np.load(shared / "parity" / "edm_vectors.npz") as archive:
        data = {k.removeprefix(f"case/{name}/"): archive[k] for k in archive.files if k.startswith(f"case/{name}/")}
    kwargs = json.loads(str(data["config"]))["kwargs"]
    sizes = [kwargs["img_resolution"] >> level for level in range(len(kwargs["channel_mult"]))]
    same = ("model_channels", "channel_mult", "channel_mult_emb", "num_blocks", "label_dim", "augment_dim")
    net = EDMPrecond(ADMUNet(3, 3, spatial_dims=2, **{k: kwargs[k] for k in same if k in kwargs},
                             attention_levels=[sizes.index(r) for r in kwargs["attn_resolutions"]])).to(dtype).eval()
    weights = {}
    for key, value in data.items():
        if key.startswith("param/") and not key.endswith("resample_filter"):
            for level, size in enumerate(sizes):
                key = key.replace(f".{size}x{size}_", f".level{level}_")
            weights[key.removeprefix("param/")] = torch.from_numpy(value)
    net.load_state_dict(weights)
    x, sigma = (torch.from_numpy(data[k]).to(dtype) for k in ("x", "sigma"))
    labels, augment = (torch.from_numpy(data[k]).to(dtype) if k in data else None
                       for k in ("class_labels", "augment_labels"))
    with torch.no_grad():
        c_in = 1 / (0.25 + sigma.reshape(-1, 1, 1, 1) ** 2).sqrt()
        F_x = net.model(c_in * x, sigma.log() / 4, Condition(labels), augment)
        assert relative(F_x, data["F_x" if dtype == torch.float32 else "F_x_f64"]) < tolerance
        D_x = net(x, sigma, Condition(labels), augment)
        assert relative(D_x, data["D_x" if dtype == torch.float32 else "D_x_f64"]) < tolerance
        if labels is not None:
            assert relative(net(x, sigma, None, augment), data["D_x_nolabel"]) < 1e-5
            assert relative(net(x, sigma, Condition(labels)), data["D_x_noaug"]) < 1e-5


def test_timestep_embedding_is_cosines_then_sines_of_falling_frequencies():
    got = timestep_embedding(torch.tensor([0.0, 2.0], dtype=torch.float64), 4)
    wanted = [[1, 1, 0, 0], [np.cos(2), np.cos(0.02), np.sin(2), np.sin(0.02)]]  # frequencies 1 and 10000^-1/2
    np.testing.assert_allclose(got.numpy(), wanted, atol=1e-7)


# ---- the same code in 2D and 3D ----


def test_unet_in_3d_with_depth_1_is_the_2d_unet():
    flat = randomise(ADMUNet(3, 2, spatial_dims=2, label_dim=5, **SMALL))
    deep = ADMUNet(3, 2, spatial_dims=3, label_dim=5, kernel_size=[[1, 3, 3]] * 2, strides=[[1, 2, 2]], **SMALL).eval()
    deep.load_state_dict(with_depth(flat))
    x, sigma, labels = torch.randn(2, 3, 8, 6), torch.tensor([0.3, -1.0]), torch.eye(5)[:2]
    wanted = flat(x, sigma, Condition(labels))
    assert wanted.shape == (2, 2, 8, 6) and wanted.std() > 0.1
    torch.testing.assert_close(deep(x[:, :, None], sigma, Condition(labels))[:, :, 0], wanted, rtol=1e-5, atol=1e-5)


def test_autoencoder_in_3d_with_depth_1_is_the_2d_autoencoder():
    arguments = {"in_channels": 1, "num_classes": 3, "latent_channels": 2, "channels": (4, 8), "num_blocks": 1,
                 "bottleneck_attention": True}
    flat = randomise(AutoencoderKL(spatial_dims=2, **arguments))
    deep = AutoencoderKL(spatial_dims=3, kernel_size=[[1, 3, 3]] * 2, strides=[[1, 2, 2]], **arguments).eval()
    deep.load_state_dict(with_depth(flat))
    image, label = torch.randn(2, 1, 8, 6), torch.randint(0, 3, (2, 8, 6))
    eps = torch.randn(2, 2, 4, 3)
    wanted, got = flat(image, label, eps), deep(image[:, :, None], label[:, None], eps[:, :, None])
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
def test_both_networks_run_in_any_number_of_dimensions(dims):
    size = (4, 8, 6)[:dims]
    assert ADMUNet(2, 3, spatial_dims=dims, **SMALL)(torch.zeros(2, 2, *size), torch.ones(2)).shape == (2, 3, *size)
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


# ---- refusals ----


@pytest.mark.parametrize(("size", "nearest"), [((13, 16, 16), "(12, 16, 16) and (16, 16, 16)"),
                                               ((2, 4, 4), "(4, 4, 4) and (4, 4, 4)")])
def test_sizes_that_do_not_divide_are_refused_with_the_nearest(size, nearest):
    unet = ADMUNet(1, 1, **{**SMALL, "channel_mult": [1, 1, 1]})
    autoencoder = AutoencoderKL(1, channels=(4, 4, 4), num_blocks=1)
    for call in (lambda: unet(torch.zeros(1, 1, *size), torch.ones(1)), lambda: autoencoder.latent_shape(size),
                 lambda: autoencoder.encode(torch.zeros(1, 1, *size))):
        with pytest.raises(ValueError, match="must divide") as error:
            call()
        assert nearest in str(error.value) and str(size) in str(error.value)


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
        ((x, noise, Condition(), torch.ones(1, 9)), "9 augment labels, augment_dim is 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            net(*inputs)


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


def test_group_norm_takes_at_most_32_groups_of_at_least_4_channels_that_divide():
    assert [group_norm(c).num_groups for c in (2, 16, 18, 128, 192, 144)] == [1, 4, 3, 32, 32, 24]


# ---- conditions, posterior, whitening ----


def test_drop_puts_each_parts_null_where_the_mask_says():
    condition = Condition(class_labels=torch.tensor([[0.0, 1.0], [1.0, 0.0]]), attributes=torch.ones(2, 3),
                          semantic=torch.ones(2, 2, 2, dtype=torch.int64), images=torch.ones(2, 1, 2, 2))
    assert condition.parts() == ["class_labels", "attributes", "semantic", "images"]
    mask = torch.tensor([False, True])
    assert condition.drop("class_labels", mask).class_labels.tolist() == [[0, 1], [0, 0]]
    attributes = condition.drop("attributes", mask).attributes
    assert attributes[0].tolist() == [1, 1, 1] and attributes[1].isnan().all()
    semantic = condition.drop("semantic", mask, num_semantic=4).semantic
    assert semantic.dtype == torch.int64 and semantic.flatten(1).tolist() == [[1] * 4, [4] * 4]
    assert condition.drop("images", mask).images.flatten(1).sum(1).tolist() == [4, 0]
    assert condition.class_labels[1].tolist() == [1, 0]
    with pytest.raises(ValueError, match="num_semantic"):
        condition.drop("semantic", mask)
    with pytest.raises(ValueError, match="attributes"):
        Condition().drop("attributes", mask)


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
    torch.testing.assert_close(net(image, eps=eps).image, net.decode(posterior.mean + posterior.std * eps)[0])
    torch.testing.assert_close(net(image).image, net.decode(posterior.mean)[0])


@pytest.mark.parametrize("size", [(50,), (10, 9), (6, 5, 4)])
def test_whiten_gives_std_sigma_data_and_unwhiten_takes_it_back(size):
    z = torch.randn(40, 3, *size, dtype=torch.float64) * torch.tensor([0.1, 2, 30.0]).reshape(3, *[1] * len(size)) + 5
    axes = [0, *range(2, z.ndim)]
    mean, std = z.mean(axes), z.std(axes, correction=0)
    x = whiten(z, mean, std, 0.5)
    torch.testing.assert_close(x.mean(axes), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(x.std(axes, correction=0), torch.full((3,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(unwhiten(x, mean, std, 0.5), z)


def test_codec_decodes_what_it_encodes_with_the_frozen_autoencoder():
    autoencoder = randomise(AutoencoderKL(1, num_classes=3, spatial_dims=2, channels=(4, 4), num_blocks=1,
                                          latent_channels=2))
    codec = LatentCodec(autoencoder, [1.0, -2.0], [2.0, 4.0], sigma_data=0.5)
    image, label = torch.randn(2, 1, 4, 4), torch.randint(0, 3, (2, 4, 4))
    mean = autoencoder.encode(image, label).mean
    x = codec.encode(image, label)
    torch.testing.assert_close(x[:, 0], (mean[:, 0] - 1) / 4)  # 0.5 / 2
    torch.testing.assert_close(x[:, 1], (mean[:, 1] + 2) / 8)
    decoded, labels = codec.decode(x)
    wanted, logits = autoencoder.decode(mean)
    torch.testing.assert_close(decoded, wanted)
    assert labels.dtype == torch.uint8 and torch.equal(labels.long(), logits.argmax(1))
    assert not any(p.requires_grad for p in codec.parameters())
