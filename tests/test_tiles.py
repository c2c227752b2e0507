"""Autoencoders in parts: slabs agree with the whole, tiles agree where nothing reaches across them."""

import pytest
import torch
from torch import nn

from edm3d.networks.autoencoder import AutoencoderKL
from edm3d.networks.tiles import Convolved, InTiles, Repeated, Tiles, activated, by_parts, written


def randomised(net: nn.Module) -> nn.Module:
    """The network with all weights drawn, those that start at zero too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return net.eval()


NETS = {
    "compact": dict(spatial_dims=3, channels=(4, 8, 8), num_classes=3, num_blocks=1),
    "compact, attention": dict(spatial_dims=3, channels=(4, 8), bottleneck_attention=True, attention_levels=(1,)),
    "ldm": dict(spatial_dims=3, channels=(32, 64), layout="ldm", num_blocks=1, num_blocks_decoder=2, num_classes=2,
                bottleneck_attention=True, label_input="class_id"),
    "per axis": dict(spatial_dims=3, channels=(4, 8, 8), strides=[[1, 2, 2], [2, 1, 2]],
                     kernel_size=[[1, 3, 3], 3, [5, 3, 3]]),
    "ldm, per axis": dict(spatial_dims=3, channels=(32, 32, 64), layout="ldm", strides=[[2, 1, 2], [3, 2, 1]],
                          num_blocks=1, num_blocks_decoder=1),
    "2D": dict(spatial_dims=2, channels=(4, 8, 8), num_classes=2, bottleneck_attention=True),
    "1D": dict(spatial_dims=1, channels=(4, 8)),
}


@pytest.mark.parametrize("name", NETS)
def test_slabs_agree_with_the_whole(name):
    settings = NETS[name]
    net = randomised(AutoencoderKL(2, **settings))
    size = [24, 12, 8][:net.spatial_dims]
    image = torch.randn(2, 2, *size)
    label = torch.randint(0, net.num_classes, (2, *size)) if net.num_classes else None
    with torch.no_grad():
        posterior = net.encode(image, label)
        whole = net.decode(posterior.mean)
        view = by_parts(net, Tiles(net.factor, mode="exact"))  # the thinnest slabs that there are
        in_slabs = view.encode(image, label)
        parts = view.decode(posterior.mean)
    for ours, wanted in ((in_slabs.mean, posterior.mean), (in_slabs.std, posterior.std), *zip(parts, whole)):
        if wanted is not None:
            torch.testing.assert_close(ours, wanted, atol=2e-5 * float(wanted.abs().max()), rtol=0)


def test_the_network_itself_stays_whole():
    net = randomised(AutoencoderKL(1, spatial_dims=2, channels=(4, 8)))
    encoder, decoder, keys = net.encoder, net.decoder, list(net.state_dict())
    view = by_parts(net, Tiles((4, 4)))
    assert net.encoder is encoder and net.decoder is decoder and list(net.state_dict()) == keys
    assert view.decoder.inner is decoder and view.latent_shape((8, 8)) == net.latent_shape((8, 8))


def test_norm_of_slabs_is_that_of_the_whole():
    norm, x = nn.GroupNorm(2, 6), torch.randn(3, 6, 7, 5) * 3 + 40
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    for rows, wanted in ((Repeated(x, (1, 1)), x),
                         (Repeated(x, (2, 3)), x.repeat_interleave(2, 2).repeat_interleave(3, 3))):
        parts = [activated(norm, rows, voxels=10).take(i, i + 1) for i in range(rows.size[0])]
        torch.testing.assert_close(torch.cat(parts, 2), nn.functional.silu(norm(wanted)), atol=1e-4, rtol=0)


def test_a_convolution_may_write_over_what_it_reads():
    conv, x = nn.Conv2d(3, 3, 5, padding=2), torch.randn(1, 3, 23, 6)
    with torch.no_grad():
        wanted = conv(x) + 1
        out = written(Convolved(Repeated(x, (1, 1)), conv), 1, x, lambda first, last: torch.ones(last - first, 1),
                      least=2)
    assert out is x
    torch.testing.assert_close(x, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.9])
def test_tiles_of_a_pointwise_network_are_the_whole(overlap):
    net = randomised(AutoencoderKL(1, spatial_dims=2, channels=(4,), kernel_size=1, num_classes=2))
    for half in (net.encoder, net.decoder):
        for i, layer in enumerate(half):
            if not isinstance(layer, nn.Conv2d):
                half[i] = nn.Identity()  # norms see their tile
    image, label = torch.randn(2, 1, 12, 10), torch.randint(0, 2, (2, 12, 10))
    view = by_parts(net, Tiles((4, 6), overlap))
    with torch.no_grad():
        wanted, got = net.encode(image, label).mean, view.encode(image, label).mean
        torch.testing.assert_close(got, wanted)
        for ours, whole in zip(view.decode(wanted), net.decode(wanted)):
            torch.testing.assert_close(ours, whole)


def test_every_tile_has_the_size_asked_for_and_lies_on_the_grid_of_the_latents():
    seen = []

    class Shrink(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x[..., ::3, ::2].clone()

    x = torch.arange(36 * 20).float().reshape(1, 1, 36, 20)
    out = InTiles(Shrink(), (12, 8), (9, 6))(x)
    torch.testing.assert_close(out, x[..., ::3, ::2])  # each voxel of a tile falls on its own place
    assert {tuple(part.shape[2:]) for part in seen} == {(12, 8)} and len(seen) == 4 * 3
    assert all(float(part[0, 0, 0, 0]) // 20 % 3 == 0 and float(part[0, 0, 0, 0]) % 2 == 0 for part in seen)


def test_tiles_differ_from_the_whole_by_their_norms():
    net = randomised(AutoencoderKL(1, spatial_dims=2, channels=(4, 8)))
    z = torch.randn(1, 4, 16, 16).cumsum(2)
    with torch.no_grad():
        whole, tiled = net.decode(z)[0], by_parts(net, Tiles((8, 8))).decode(z)[0]
        same = by_parts(net, Tiles((32, 64))).decode(z)[0]  # one tile holds all
    assert torch.equal(same, whole) and (tiled - whole).abs().max() > 1e-3


@pytest.mark.parametrize(("arguments", "words"), [
    (dict(size=(8,)), ["tile=[8]", "multiples of [4, 2]"]),
    (dict(size=(6, 8)), ["tile=[6, 8]", "multiples of [4, 2]", "such as [8, 8]"]),
    (dict(size=(0, 8)), ["tile=[0, 8]", "such as [4, 8]"]),
    (dict(size=(8, 8), overlap=1), ["tile overlap=1"]),
    (dict(size=(8, 8), mode="whole"), ["tile mode='whole'", "blend, exact"]),
])
def test_tiles_that_cannot_be_are_refused(arguments, words):
    net = AutoencoderKL(1, spatial_dims=2, channels=(4, 4, 4), strides=[2, [2, 1]])
    with pytest.raises(ValueError) as error:
        by_parts(net, Tiles(**arguments))
    assert all(word in str(error.value) for word in words)
