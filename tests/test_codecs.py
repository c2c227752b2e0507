"""Exact codecs, by hand and back, and networks that see by them; norms of single voxels."""

from functools import partial
from itertools import product

import numpy as np
import pytest
import torch

from edm3d.networks.codecs import to_cells, to_voxels
from edm3d.networks.layers import VoxelNorm, voxel_norm
from edm3d.networks.precond import EDMPrecond, iDDPMPrecond
from edm3d.networks.unet import ADMUNet, SongUNet
from edm3d.utils.precision import autocast
from edm3d.utils.sharding import checkpoint_blocks
from tests.test_conditioned_networks import EVERY, GRIDS, network, told
from tests.test_networks import TINY, randomise

SIZES = {1: (6,), 2: (4, 6), 3: (2, 4, 6)}
BOTH = pytest.mark.parametrize("codec", ["fold", "haar"])
EXACT = {torch.float64: 1e-15, torch.float32: 5e-7, torch.bfloat16: 0.04}


# ---- the codecs ----


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("dtype", EXACT)
def test_what_is_folded_comes_back(dims, dtype):
    x = torch.randn(2, 3, *SIZES[dims], generator=torch.Generator().manual_seed(dims)).to(dtype)
    cells = to_cells("fold", x)
    assert cells.shape == (2, 3 * 2 ** dims, *(s // 2 for s in SIZES[dims]))
    assert torch.equal(to_voxels("fold", cells), x) and to_cells("none", x) is x is to_voxels("none", x)
    bands = to_cells("haar", x)
    assert bands.dtype == dtype
    assert (to_voxels("haar", bands) - x).abs().max() <= EXACT[dtype] * x.abs().max()
    assert (to_cells("haar", to_voxels("haar", x[:, :1].repeat(1, 2 ** dims, *[1] * dims)))
            - x[:, :1]).abs().max() <= EXACT[dtype] * x.abs().max()


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_channels_are_in_the_order_that_is_said(dims):
    x = torch.randn(1, 2, *SIZES[dims], dtype=torch.float64)
    cells, bands = to_cells("fold", x), to_cells("haar", x)
    for channel, bits in product(range(2), product((0, 1), repeat=dims)):
        number = channel * 2 ** dims + int("".join(map(str, bits)), 2)
        assert torch.equal(cells[:, number], x[(slice(None), channel, *(slice(b, None, 2) for b in bits))])
        wanted = 0
        for place in product((0, 1), repeat=dims):
            voxels = x[(slice(None), channel, *(slice(b, None, 2) for b in place))]
            wanted = wanted + (-1) ** int(np.dot(bits, place)) * voxels / 2 ** (dims / 2)
        torch.testing.assert_close(bands[:, number], wanted)


@BOTH
def test_white_noise_stays_white_and_keeps_its_variance(codec):
    linear = torch.func.jacrev(partial(to_cells, codec))(torch.zeros(1, 2, 2, 4, dtype=torch.float64)).reshape(16, 16)
    torch.testing.assert_close(linear @ linear.T, torch.eye(16, dtype=torch.float64))


def test_autocast_does_not_lower_the_precision_of_bands():
    x = torch.randn(1, 1, 8, 8, 8)
    with autocast("bf16", torch.device("cpu")):
        assert (to_voxels("haar", to_cells("haar", x)) - x).abs().max() < 1e-6


# ---- networks that see by a codec ----


def twins(codec: str, dims: int, family: type = ADMUNet, **keys: object) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A network with a codec, and one of the same weights that is given what the codec makes of x."""
    cells = 2 ** dims
    small = {**TINY, "attention_levels": [1], "channels_per_head": 8, "spatial_dims": dims, "dropout": 0, **keys}
    ours, plain = family(2, 1, codec=codec, **small), family(2 * cells, cells, **small)
    plain.load_state_dict(randomise(ours).state_dict())
    return ours, plain.eval()


@BOTH
@pytest.mark.parametrize(("family", "keys"), [
    (ADMUNet, {}), (SongUNet, {"encoder": "residual", "resample_filter": (1, 3, 3, 1)}),
    (SongUNet, {"encoder": "skip", "decoder": "skip", "self_condition": True})])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_network_with_a_codec_is_one_between_its_ends(codec, family, keys, dims):
    ours, plain = twins(codec, dims, family, **keys)
    x, noise = torch.randn(2, 2, *[4 * n for n in (1, 2, 1)[:dims]]), torch.rand(2)
    estimate = (torch.randn_like(x),) if keys.get("self_condition") else ()
    out = ours(x, noise, None, None, *estimate)
    wanted = plain(to_cells(codec, x), noise, None, None, *(to_cells(codec, each) for each in estimate))
    torch.testing.assert_close(out, to_voxels(codec, wanted))
    assert out.shape == (2, 1, *x.shape[2:]) and ours.in_channels == 2 and ours.factor == (4,) * dims


@BOTH
def test_outputs_beside_the_image_are_unfolded_too(codec):
    net = ADMUNet(1, 2, 2, codec=codec, **TINY, attention_levels=[], channels_per_head=None)
    assert net(torch.randn(1, 1, 8, 8), torch.ones(1)).shape == (1, 2, 8, 8)
    assert iDDPMPrecond(net)(torch.randn(1, 1, 8, 8), 1.0).shape == (1, 1, 8, 8)


def test_sizes_that_do_not_fold_are_refused_with_the_nearest_that_do():
    net = ADMUNet(1, 1, 2, codec="haar", **TINY, strides=[[2, 1]], attention_levels=[])
    assert net.factor == EDMPrecond(net).factor == (4, 2)
    with pytest.raises(ValueError, match=r"size \(6, 5\) must divide by \(4, 2\); nearest that do: \(4, 4\) and \(8"):
        net(torch.zeros(1, 1, 6, 5), torch.ones(1))
    with pytest.raises(ValueError, match="codec='wavelet': wanted one of none, fold, haar"):
        ADMUNet(1, 1, 2, codec="wavelet", **TINY)


def test_attention_goes_by_the_resolutions_of_the_folded_levels():
    net = ADMUNet(1, 1, 2, codec="fold", model_channels=8, channel_mult=[1, 2, 2], num_blocks=1, channels_per_head=8,
                  attention_resolutions=[8], image_size=[32, 16])
    assert [net.enc[f"level{level}_block0"].heads for level in range(3)] == [0, 2, 0]
    with pytest.raises(ValueError, match="largest axes of the levels are 16, 8, 4"):
        ADMUNet(1, 1, 2, codec="fold", model_channels=8, channel_mult=[1, 2, 2], attention_resolutions=[32],
                image_size=[32, 16])


@EVERY
@BOTH
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_conditions_come_onto_the_folded_grid(family, keys, codec, dims):
    """A network of x is told what one of its cells is told, whose cells have twice as many voxels."""
    size, factor, strides = GRIDS[dims]
    ours = network(family, dims, codec=codec, **keys)
    plain = network(family, dims, **keys, grid_factor=[2 * f for f in factor])
    first = plain.enc["level0_conv"].in_channels - (2 if plain.self_condition else 1)
    assert ours.enc["level0_conv"].in_channels - 2 ** dims * (2 if ours.self_condition else 1) == first
    assert ours.grid_factor == EDMPrecond(ours).grid_factor == factor
    x, sigma, condition = told(dims)
    x = torch.randn(3, 1, *(2 * s for s in size))
    twice = {"semantic": condition.semantic, "images": condition.images}
    for axis in range(dims):
        twice["semantic"] = twice["semantic"].repeat_interleave(2, axis + 1)
        twice["images"] = twice["images"].repeat_interleave(2, axis + 2)
    condition = condition.replace(**twice)
    given = {}
    for name, net, image in (("ours", ours, x), ("plain", plain, x[(..., *[slice(None, None, 2)] * dims)])):
        net.enc["level0_conv"].register_forward_pre_hook(lambda _, args, name=name: given.update({name: args[0]}))
        maps = net.map_features(condition.semantic, torch.float32)
        given[name, "maps"] = [level.shape for level in maps]
        net(image, sigma, condition)
    assert given["ours", "maps"] == given["plain", "maps"]
    count = plain.enc["level0_conv"].in_channels - first
    torch.testing.assert_close(given["ours"][:, -first:], given["plain"][:, count:])


@BOTH
def test_means_of_images_on_the_grid_of_x_are_taken_over_its_cells(codec):
    net = network(image_grid="mean", codec=codec)
    x, sigma, condition = told()
    x, condition = x.repeat(1, 1, 2, 2), condition.replace(
        semantic=condition.semantic.repeat(1, 2, 2), images=condition.images.repeat(1, 1, 2, 2))
    small = condition.images.unflatten(-1, (-1, 2)).mean(-1)
    torch.testing.assert_close(net(x, sigma, condition.replace(images=small)), net(x, sigma, condition))


def test_whether_there_is_an_image_is_seen_in_its_own_precision():
    net, (x, sigma, condition) = network().half(), told()
    seen = []
    net.enc["level0_conv"].register_forward_pre_hook(lambda _, args: seen.append(args[0][:, -1]))
    least = torch.zeros_like(condition.images)
    least[0, 0, 0, 0] = torch.finfo(torch.float32).tiny
    net(x.half(), sigma, condition.replace(images=least))
    assert seen[0].flatten(1).amax(1).tolist() == [1, 0, 0]


def test_weights_have_the_names_of_before_whatever_the_codec_and_norm():
    plain = ADMUNet(1, 1, 2, **TINY, attention_levels=[1], channels_per_head=8).state_dict()
    other = ADMUNet(1, 1, 2, **TINY, attention_levels=[1], channels_per_head=8, codec="haar", norm="voxel").state_dict()
    assert plain.keys() == other.keys()
    differ = {name for name in plain if plain[name].shape != other[name].shape}
    assert differ == {"enc.level0_conv.weight", "out_conv.weight", "out_conv.bias"}


@BOTH
@pytest.mark.parametrize("norm", ["group", "voxel"])
def test_precision_layout_and_checkpointing_serve_codecs_and_norms(codec, norm):
    net, _ = twins(codec, 3, norm=norm)
    x, noise = torch.randn(2, 2, 4, 8, 4), torch.rand(2)
    out = net(x, noise)
    for change in (lambda: net.to(memory_format=torch.channels_last_3d), lambda: checkpoint_blocks(net)):
        change()
        again = net(x, noise)
        torch.testing.assert_close(again, out, rtol=1e-4, atol=1e-4)
    again.sum().backward()
    with autocast("bf16", torch.device("cpu")):
        assert (net(x, noise) - out).abs().mean() < 0.1 * out.abs().mean()
    flat, _ = twins(codec, 2, norm=norm)  # PyTorch pools no 3D bfloat16 on CPUs
    x = torch.randn(2, 2, 4, 8)
    out, half = flat(x, noise), flat.bfloat16()(x.bfloat16(), noise)
    assert half.dtype == torch.bfloat16 and (half - out).abs().mean() < 0.2 * out.abs().mean()


@pytest.mark.slow
@BOTH
def test_networks_with_codecs_compile_into_one_graph(codec):
    net, _ = twins(codec, 2, norm="voxel")
    torch.compiler.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    x, noise = torch.randn(2, 2, 8, 8), torch.rand(2)
    torch.testing.assert_close(compiled(x, noise), net(x, noise))
    torch.compiler.reset()


# ---- norms ----


@pytest.mark.parametrize("size", [(5,), (2, 3), (2, 3, 2)])
def test_a_voxel_norm_is_the_group_norm_of_each_voxel(size):
    norm = randomise(VoxelNorm(2, 8, eps=1e-3)).double()
    x = torch.randn(3, 8, *size, dtype=torch.float64, requires_grad=True)
    alone = x.flatten(2).transpose(1, 2).reshape(-1, 8)
    wanted = torch.nn.functional.group_norm(alone, 2, norm.weight, norm.bias, 1e-3)
    wanted = wanted.reshape(3, -1, 8).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(norm(x), wanted)
    g = torch.randn_like(x)
    for ours, theirs in zip(*(torch.autograd.grad(out, (x, norm.weight, norm.bias), g) for out in (norm(x), wanted))):
        torch.testing.assert_close(ours, theirs)
    assert norm.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_groups_of_a_voxel_are_wide():
    assert [voxel_norm(c).num_groups for c in (8, 32, 48, 64, 96, 160, 4096)] == [1, 1, 1, 2, 3, 5, 32]


def test_every_norm_of_a_network_is_of_its_kind():
    for family, keys in ((ADMUNet, {}), (SongUNet, {"decoder": "skip", "attribute_mode": "tokens"})):
        net = network(family, norm="voxel", **keys)
        norms = [m for m in net.modules() if isinstance(m, torch.nn.GroupNorm)]
        assert len(norms) > 10 and all(type(m) is VoxelNorm for m in norms)
        assert not any(type(m) is VoxelNorm for m in network(family, **keys).modules())
    with pytest.raises(ValueError, match="norm='layer': wanted one of group, voxel"):
        ADMUNet(1, 1, 2, norm="layer", **TINY)


def test_the_bottleneck_attends_unless_it_is_told_not_to():
    for family in (ADMUNet, SongUNet):
        heads = [[block.heads for block in [*net.enc.values(), *net.dec.values()] if hasattr(block, "heads")]
                 for net in (family(1, 1, 2, **TINY, attention_levels=[], channels_per_head=8, **keys)
                             for keys in ({}, {"bottleneck_attention": False}))]
        assert sum(heads[0]) == 2 and sum(heads[1]) == 0
    ADMUNet(1, 1, 2, model_channels=12, channel_mult=[1, 3], num_blocks=1, attention_levels=[], channels_per_head=7,
            bottleneck_attention=False)
    with pytest.raises(ValueError, match="36 channels do not divide into 5 heads"):
        ADMUNet(1, 1, 2, model_channels=12, channel_mult=[1, 3], num_blocks=1, attention_levels=[], channels_per_head=7)
