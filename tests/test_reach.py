"""How far networks see: what receptive_field says, against where gradients come from."""

import pytest
import torch

from edm3d.networks.conditioning import Condition
from edm3d.networks.precond import EDMPrecond
from edm3d.networks.unet import ADMUNet, SongUNet
from tests.test_networks import randomise

LOCAL = {"model_channels": 4, "channel_mult_emb": 1, "num_blocks": 1, "attention_levels": [],
         "bottleneck_attention": False, "norm": "voxel", "dropout": 0}
SMOOTH = (1, 3, 3, 1)
NETWORKS = [
    (1, ADMUNet, {"channel_mult": [1]}),
    (1, ADMUNet, {"channel_mult": [1, 1], "strides": 3, "kernel_size": [1, 3]}),
    (1, ADMUNet, {"channel_mult": [1, 1, 2], "num_blocks": 2, "codec": "fold"}),
    (1, SongUNet, {"channel_mult": [1, 1], "resample_filter": SMOOTH, "kernel_size": [3, 1]}),
    (1, SongUNet, {"channel_mult": [1, 1, 1], "encoder": "residual", "resample_filter": SMOOTH, "codec": "haar"}),
    (1, SongUNet, {"channel_mult": [1, 1], "encoder": "residual", "resample_filter": [1, 2, 3, 3, 2, 1],
                   "kernel_size": [1, 5]}),
    (1, SongUNet, {"channel_mult": [1, 1, 1], "encoder": "skip", "decoder": "skip", "kernel_size": 1,
                   "resample_filter": SMOOTH}),
    (1, SongUNet, {"channel_mult": [1, 1], "decoder": "skip", "kernel_size": [1, 1]}),
    (1, SongUNet, {"channel_mult": [1, 1, 1], "encoder": "skip", "kernel_size": [1, 1, 3], "strides": [2, 1]}),
    (2, ADMUNet, {"channel_mult": [1, 1], "strides": [[1, 2]], "kernel_size": [[1, 3], [3, 1]], "codec": "haar"}),
    (2, SongUNet, {"channel_mult": [1, 1], "strides": [[2, 1]], "encoder": "residual", "decoder": "skip",
                   "resample_filter": SMOOTH, "kernel_size": [[3, 1], [1, 3]]}),
    (3, ADMUNet, {"channel_mult": [1, 1], "strides": [[1, 2, 2]], "kernel_size": [[1, 1, 3], [1, 3, 1]]}),
    (3, SongUNet, {"channel_mult": [1, 1], "kernel_size": 1, "codec": "haar", "encoder": "skip"}),
]


def local(dims: int, family: type = ADMUNet, **keys: object) -> torch.nn.Module:
    """A small network without attention, norms of single voxels, and random weights everywhere, in float64."""
    return randomise(family(1, 1, dims, **{**LOCAL, **keys})).double()


def reached(net: torch.nn.Module, told: dict[str, torch.Tensor] | None = None, name: str = "") -> list[tuple[int, int]]:
    """Per axis, how far before and behind an output voxel the gradients of any come from, in x or a condition image.

    All places that an output may have in the cells of the lowest level are tried, in the middle of an image with room.
    """
    room = [(2 * r // f + 3) * f for r, f in zip(net.receptive_field, net.factor)]
    x = torch.randn(1, 1, *room, dtype=torch.float64, requires_grad=True)
    images = torch.randn(1, 1, *room, dtype=torch.float64, requires_grad=True)
    told = Condition(images=images) if net.takes else None
    out, found = net(x, torch.ones(1, dtype=torch.float64), told), []
    for axis, (size, factor) in enumerate(zip(room, net.factor)):
        middle, sides = [(r // f + 1) * f for r, f in zip(net.receptive_field, net.factor)], []
        assert size - middle[axis] >= net.receptive_field[axis] + factor
        for place in range(factor):
            voxel = list(middle)
            voxel[axis] += place
            seen = torch.autograd.grad(out[(0, 0, *voxel)], images if name else x, retain_graph=True)[0][0, 0]
            where = seen.abs().amax([a for a in range(len(room)) if a != axis]) if len(room) > 1 else seen.abs()
            hit = where.nonzero().flatten().tolist()
            sides.append((voxel[axis] - hit[0], hit[-1] - voxel[axis]))
        found.append((max(s[0] for s in sides), max(s[1] for s in sides)))
    return found


@pytest.mark.parametrize(("dims", "family", "keys"), NETWORKS)
def test_outputs_see_as_far_as_is_said_and_no_further(dims, family, keys):
    net = local(dims, family, **keys)
    assert tuple(max(sides) for sides in reached(net)) == net.receptive_field == EDMPrecond(net).receptive_field


def test_the_field_of_one_level_is_the_sum_of_its_convolutions():
    net = local(1, channel_mult=[1], kernel_size=5)  # stem, block, two of the bottleneck, two of the decoder, out
    assert net.receptive_field == (2 * (1 + 2 + 2 * 2 + 2 * 2 + 1),)
    assert local(1, channel_mult=[1], kernel_size=5, codec="fold").receptive_field == (2 * 24 + 1,)


@pytest.mark.parametrize("codec", ["none", "fold", "haar"])
@pytest.mark.parametrize("grid", ["fold", "mean"])
def test_condition_images_are_seen_no_further_than_x(codec, grid):
    net = local(2, channel_mult=[1, 1], strides=[[1, 2]], image_dim=1, image_grid=grid, codec=codec)
    for sides, field in zip(reached(net, name="images"), net.receptive_field, strict=True):
        assert max(sides) <= field and field - max(sides) <= 1


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize(("codec", "grid"), [("none", "nearest"), ("haar", "fold"), ("fold", "nearest")])
def test_maps_are_seen_no_further_than_x(everywhere, codec, grid):
    net = local(1, SongUNet, channel_mult=[1, 1, 1], kernel_size=[1, 3, 1], strides=[2, 3], semantic_dim=2,
                semantic_hidden=4, semantic_everywhere=everywhere, semantic_grid=grid, codec=codec, grid_factor=2)
    field, = net.receptive_field
    size = (2 * field // net.factor[0] + 3) * net.factor[0]
    x, noise = torch.randn(1, 1, size, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    maps = torch.randint(2, (1, 2 * size), dtype=torch.int16)
    others = maps.repeat(2 * size, 1)
    others.diagonal().mul_(-1).add_(1)  # row k is another map at voxel k alone
    with torch.no_grad():
        changed = net(x.repeat(2 * size, 1, 1), noise.repeat(2 * size), Condition(semantic=others)) - net(
            x, noise, Condition(semantic=maps))
    voxels, _, places = (changed.abs() > 1e-12).nonzero().T
    widest = int((places - voxels // 2).abs().max())
    assert field - 3 * net.factor[0] <= widest <= field


@pytest.mark.parametrize("keys", [{"norm": "group"}, {"bottleneck_attention": True}, {"attention_levels": [0]}])
def test_networks_that_see_everything_say_no_field(keys):
    net = ADMUNet(1, 1, 2, **{**LOCAL, "channel_mult": [1, 1], "channels_per_head": 4, **keys})
    assert net.receptive_field is None is EDMPrecond(net).receptive_field
    narrow = ADMUNet(1, 1, 2, **{**LOCAL, "channel_mult": [1, 1], "bottleneck_attention": True})
    assert narrow.receptive_field is not None  # narrower than a head: nothing attends
