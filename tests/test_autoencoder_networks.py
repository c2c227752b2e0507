"""The trunk of the autoencoders against MONAI's AutoencoderKL, by counts and by hand."""

import pytest
import torch
from torch import nn

from edm3d.networks.autoencoder import AttentionBlock, AutoencoderKL, BareNorm, DownsampleConv, Upsample
from edm3d.networks.gamma import AutoencoderGamma
from edm3d.networks.layers import CONVS
from edm3d.networks.posteriors import posterior_class
from edm3d.networks.vq import AutoencoderVQ

SMALL = {"channels": (8, 16), "num_blocks": 1, "num_blocks_decoder": 1}
LEAVES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.GroupNorm)
KINDS = [AutoencoderKL, AutoencoderVQ, AutoencoderGamma]


# ---- against MONAI ----


def monai_net(dims: int, **changes: object) -> nn.Module:
    """MONAI's network without attention but for the changes, in float64, with random numbers everywhere."""
    from monai.networks.nets import AutoencoderKL as Peer

    torch.manual_seed(0)
    return Peer(**{"spatial_dims": dims, "channels": (32, 64, 64), "num_res_blocks": 2, "latent_channels": 3,
                   "attention_levels": (False,) * 3, "with_encoder_nonlocal_attn": False,
                   "with_decoder_nonlocal_attn": False, **changes}).double().eval()


def parts(net: nn.Module) -> list[nn.Module]:
    """Convolutions, norms and attentions in the order of declaration."""
    if isinstance(net, (*LEAVES, AttentionBlock)) or type(net).__name__ == "SpatialAttentionBlock":
        return [net]
    return [part for child in net.children() for part in parts(child)]


def copy_attention(block: AttentionBlock, peer: nn.Module) -> None:
    """MONAI's separate queries, keys and values into one layer, in which they take turns."""
    block.norm.load_state_dict(peer.norm.state_dict())
    layers = peer.attn.to_q, peer.attn.to_k, peer.attn.to_v
    block.qkv.weight.copy_(torch.stack([layer.weight for layer in layers], 1).reshape(block.qkv.weight.shape))
    block.qkv.bias.copy_(torch.stack([layer.bias for layer in layers], 1).flatten())
    block.proj.weight.copy_(peer.attn.out_proj.weight.reshape(block.proj.weight.shape))
    block.proj.bias.copy_(peer.attn.out_proj.bias)


@torch.no_grad()
def copy_weights(net: AutoencoderKL, peer: nn.Module) -> None:
    """MONAI's weights by order."""
    *encoder, moments = parts(net.encoder)
    post, *decoder = parts(net.decoder)
    theirs = [*parts(peer.encoder), *parts(peer.decoder), *parts(peer.post_quant_conv)]
    for ours, other in zip([*encoder, *decoder, post], theirs, strict=True):
        if isinstance(ours, AttentionBlock):
            copy_attention(ours, other)
        else:
            ours.load_state_dict(other.state_dict())
    both = peer.quant_conv_mu.conv, peer.quant_conv_log_sigma.conv
    moments.weight.copy_(torch.cat([layer.weight for layer in both]))
    moments.bias.copy_(torch.cat([layer.bias for layer in both]))


ATTENTION = ({"attention_levels": (False, False, True), "with_encoder_nonlocal_attn": True,
              "with_decoder_nonlocal_attn": True}, {"attention_levels": [2], "bottleneck_attention": True})


@pytest.mark.parametrize(("dims", "size"), [(2, (12, 20)), (3, (8, 4, 12))])
@pytest.mark.parametrize(("theirs", "ours"), [({}, {}), ATTENTION])
def test_layout_monai_with_monais_weights_is_monais_autoencoder(dims, size, theirs, ours):
    peer = monai_net(dims, **theirs)
    net = AutoencoderKL(1, latent_channels=3, spatial_dims=dims, channels=(32, 64, 64), layout="monai", **ours).double()
    copy_weights(net, peer)
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in peer.parameters())
    compare(net, peer, torch.randn(2, 1, *size, dtype=torch.float64))


@torch.no_grad()
def compare(net: AutoencoderKL, peer: nn.Module, x: torch.Tensor) -> None:
    """Encoding and decoding agree to 1e-9."""
    posterior, (mean, std) = net.encode(x), peer.encode(x)
    image, _ = net.decode(mean)
    wanted = peer.decode(mean)
    assert mean.std() > 0.05 and wanted.std() > 0.05
    for got, expected in ((posterior.mean, mean), (posterior.std, std), (image, wanted)):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_layout_ldm_is_that_with_activations_and_both_moments_before_the_last_convolutions():
    monai, ldm = (AutoencoderKL(1, spatial_dims=2, layout=layout, **SMALL, bottleneck_attention=True)
                  for layout in ("monai", "ldm"))
    for half in ("encoder", "decoder"):
        layers = list(getattr(monai, half))
        place = next(i for i, layer in enumerate(layers) if isinstance(layer, BareNorm))
        assert all(isinstance(layer, tuple(CONVS.values())) for layer in layers[place + 1:])
        layers[place:place + 1] = [layers[place].norm, nn.SiLU()]
        if half == "encoder":
            layers[-2:] = [nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 8, 1)]
        setattr(monai, half, nn.Sequential(*layers))
    ldm.load_state_dict(monai.state_dict())
    x = torch.randn(1, 1, 8, 12)
    assert torch.equal(ldm(x).image, monai(x).image) and torch.equal(ldm(x).posterior.std, monai(x).posterior.std)


# ---- counts ----


@pytest.mark.parametrize(("arguments", "millions"), [
    ({"num_classes": 3, "channels": (32, 64, 128, 128), "num_blocks_decoder": 3, "bottleneck_attention": True,
      "layout": "ldm", "label_input": "class_id"}, 15.42),
    ({"latent_channels": 8, "channels": (64, 128, 256), "layout": "monai"}, 21.00)])
def test_parameter_counts_of_the_published_first_stages(arguments, millions):
    with torch.device("meta"):
        net = AutoencoderKL(1, **arguments)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_the_compact_layout_keeps_the_names_of_weights_in_older_snapshots():
    net = AutoencoderKL(1, channels=(4, 8), num_blocks=1, num_blocks_decoder=1, bottleneck_attention=True)
    leaves = {key.rpartition(".")[0] for key in net.state_dict()}
    block = [f"{part}{i}" for part in ("norm", "conv") for i in (0, 1)]
    attention = ["norm", "qkv", "proj"]
    names = {"encoder": ["0", *(f"1.{b}" for b in block), "2", *(f"3.{b}" for b in block),
                         *(f"4.{a}" for a in attention), "5", "7"],
             "decoder": ["0", *(f"1.{a}" for a in attention), *(f"2.{b}" for b in block), "3.conv",
                         *(f"4.{b}" for b in block), "5", "7"]}
    assert leaves == {f"{half}.{name}" for half, layers in names.items() for name in layers}


# ---- layers by hand ----


def test_downsampling_pads_the_far_side_and_keeps_an_axis_of_stride_1():
    down = DownsampleConv(2, 1, (3, 3), (1, 2))
    assert down.pad == (0, 1)
    with torch.no_grad():
        down.conv.weight.fill_(1)
        down.conv.bias.zero_()
    x = torch.arange(8.0).reshape(1, 1, 2, 4)  # rows 0 1 2 3 and 4 5 6 7; columns 0 to 2, then 2 to 3 and a zero
    assert down(x).tolist() == [[[[18, 18], [18, 18]]]]  # 0+1+2+4+5+6 and 2+3+6+7
    assert DownsampleConv(1, 1, (5,), (2,))(torch.zeros(1, 1, 8)).shape == (1, 1, 4)
    assert DownsampleConv(1, 1, (1,), (2,))(torch.zeros(1, 1, 8)).shape == (1, 1, 4)
    assert DownsampleConv(1, 1, (3,), (4,))(torch.zeros(1, 1, 8)).shape == (1, 1, 2)


def test_upsampling_may_repeat_before_it_convolves():
    x = torch.tensor([[[1.0, 2.0]]])
    for repeat, wanted in (((), [3, 3]), ((2,), [2, 4, 5, 4])):
        layer = Upsample(1, 1, 1, (3,), repeat)
        with torch.no_grad():
            layer.conv.weight.fill_(1)
            layer.conv.bias.zero_()
        assert layer(x).flatten().tolist() == wanted  # sums of neighbours of 1 2, or of 1 1 2 2


def test_label_maps_go_in_one_hot_or_by_number():
    image, label = torch.full((1, 2, 2), 0.5), torch.tensor([[0, 2]])
    wanted = {"onehot": [[1, 0], [0, 0], [0, 1]], "class_id": [[0, 2]]}
    for how, channels in wanted.items():
        net = AutoencoderKL(2, 3, spatial_dims=1, **SMALL, label_input=how)
        assert net.joined(image, label)[0].tolist() == [[0.5, 0.5], [0.5, 0.5], *channels]
        assert net(image, label).logits.shape == (1, 3, 2)


def test_attention_stands_behind_each_block_of_its_levels():
    net = AutoencoderKL(1, channels=(8, 8, 8), num_blocks=2, num_blocks_decoder=3, attention_levels=[0, 2])
    counts = [sum(isinstance(layer, AttentionBlock) for layer in half) for half in (net.encoder, net.decoder)]
    assert counts == [4, 6]
    order = [type(layer).__name__ for layer in net.encoder[:6]]
    assert order == ["Conv3d", "ResBlock", "AttentionBlock", "ResBlock", "AttentionBlock", "Conv3d"]


# ---- what all kinds keep to ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["compact", "ldm", "monai"])
def test_every_kind_and_layout_keeps_13_slices_and_decodes_as_the_parts_say(kind, layout):
    torch.manual_seed(0)
    net = kind(2, 3, **SMALL, strides=[[1, 2, 2]], kernel_size=[[1, 3, 3], 3], layout=layout,
               bottleneck_attention=True).eval()
    net.sector_threshold = 0  # of the gamma autoencoder: no mean, however small, is background
    image, label = torch.rand(2, 2, 13, 4, 6) - 0.5, torch.randint(0, 3, (2, 13, 4, 6))
    assert net.factor == (1, 2, 2) and net.latent_shape((13, 4, 6)) == (net.latent_channels, 13, 2, 3)
    with torch.no_grad():
        out = net(image, label)
        decoded, logits = net.decode(out.z)
        assert torch.equal(net.split(net.decoder(net.prepare(out.z)), out.z)[0], decoded)
        assert torch.equal(net.read(net.encoder(net.joined(image, label)), image).mean, out.posterior.mean)
    assert out.image.shape == image.shape and out.logits.shape == (2, 3, 13, 4, 6)
    assert out.posterior.mean.shape == out.posterior.std.shape == out.z.shape == (2, net.latent_channels, 13, 2, 3)
    assert torch.equal(decoded, out.image) and torch.equal(logits, out.logits)
    assert torch.equal(net.encode(image, label).mean, out.posterior.mean)
    assert (out.codes is None) == (kind is not AutoencoderVQ)
    with pytest.raises(ValueError, match=rf"{kind.__name__}: size \(13, 5, 6\) must divide by \(1, 2, 2\); nearest"):
        net.encode(image[..., :1, :].expand(-1, -1, -1, 5, -1))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_in_3d_with_depth_1_is_its_2d_twin(kind):
    flat = kind(1, spatial_dims=2, **SMALL, layout="ldm").eval()
    deep = kind(1, spatial_dims=3, **SMALL, layout="ldm", strides=[[1, 2, 2]], kernel_size=[[1, 3, 3]] * 2).eval()
    deep.load_state_dict({key: value.unsqueeze(2) if value.ndim == 4 else value
                          for key, value in flat.state_dict().items()})
    image = torch.rand(2, 1, 8, 4)
    with torch.no_grad():
        wanted, got = flat(image), deep(image[:, :, None])
    torch.testing.assert_close(got.image[:, :, 0], wanted.image)
    torch.testing.assert_close(got.z[:, :, 0], wanted.z)


@pytest.mark.parametrize("kind", KINDS)
def test_latents_are_float32_under_autocast(kind):
    net = kind(1, spatial_dims=2, **SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(torch.rand(1, 1, 4, 4))
    assert {t.dtype for t in (out.image, out.z, out.posterior.mean, out.posterior.std, out.posterior.kl())} == {
        torch.float32}


def test_wrong_arguments_are_refused_by_name():
    for arguments, message in [
        ({"layout": "vae"}, "layout='vae': wanted one of compact, ldm, monai"),
        ({"label_input": "id"}, "label_input='id': wanted one of onehot, class_id"),
        ({"attention_levels": [2]}, r"attention_levels=\[2\]: wanted levels from 0 to 1"),
        ({"num_blocks": 0}, "num_blocks=0: wanted a whole number of 1"), ({"channels": []}, r"channels=\[\]"),
        ({"latent_channels": 0}, "latent_channels=0"),
        ({"strides": [2, 2]}, r"strides=\[2, 2\]: wanted one number or 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            AutoencoderKL(1, **{**SMALL, **arguments})


# ---- posteriors ----


class Given:
    """Noise that is what it is given."""

    def __init__(self, eps: torch.Tensor):
        self.eps = eps

    def randn(self, shape):
        assert self.eps.shape[1:] == shape
        return self.eps


def test_posteriors_come_back_from_the_moments_that_a_file_holds():
    mean, std = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 3.0]])
    gaussian, point = (posterior_class(kind).from_moments(mean, std) for kind in ("gaussian", "point"))
    torch.testing.assert_close(gaussian.std, std)
    torch.testing.assert_close(gaussian.sample(Given(torch.tensor([[2.0, -1.0]]))), torch.tensor([[2.0, -5.0]]))
    assert torch.equal(gaussian.sample(None), mean) and torch.equal(point.sample(None), mean)
    assert point.std.tolist() == [[0, 0]] and point.kl().tolist() == [0]
    assert torch.equal(gaussian.from_moments(mean, torch.zeros(1, 2)).sample(Given(std)), mean)
    with pytest.raises(ValueError, match="posterior='beta': wanted one of gaussian, point, gamma"):
        posterior_class("beta")
    assert [kind.posterior for kind in KINDS] == ["gaussian", "point", "gamma"]
