"""Attention of stacks of slices: within them and across them, on its own and in the UNets."""

from math import sqrt

import pytest
import torch

from edm3d.networks import slice_attention
from edm3d.networks.conditioning import Condition
from edm3d.networks.layers import attention
from edm3d.networks.slice_attention import DepthAttention, across_slices, depth_embedding, within_slices
from edm3d.networks.unet import ADMUNet, SongUNet
from edm3d.samplers.tiled import Tiled
from edm3d.utils.sharding import blocks, checkpoint_blocks
from tests.test_networks import randomise

STACK = {"spatial_dims": 3, "model_channels": 8, "channel_mult": [1, 2], "channel_mult_emb": 1, "num_blocks": 1,
         "attention_levels": [1], "channels_per_head": 8, "strides": [[1, 2, 2]], "kernel_size": [[1, 3, 3]] * 2,
         "dropout": 0}
FAMILIES = [ADMUNet, SongUNet]
DEPTH = 5


def stack(family: type, choice: str, **keys: object) -> torch.nn.Module:
    """A small network whose convolutions stay within slices, with random weights everywhere, in float64."""
    return randomise(family(1, 1, **{**STACK, "attention": choice, **keys})).double()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reach(net: torch.nn.Module) -> torch.Tensor:
    """[D,D], whether slice i of what a network gives depends on slice j of x."""
    x = draw(1, 1, DEPTH, 4, 4).requires_grad_()
    out = net(x, torch.ones(1, dtype=torch.float64))
    rows = [torch.autograd.grad(out[:, :, i].sum(), x, retain_graph=True)[0] for i in range(DEPTH)]
    return torch.stack([row[0, 0].abs().amax((1, 2)) > 0 for row in rows])


# ---- the mathematics ----


def by_hand(qkv: torch.Tensor, heads: int) -> torch.Tensor:
    """softmax(q k / sqrt(c)) v of qkv [heads*c*3,L], one image."""
    channels, length = qkv.shape
    q, k, v = qkv.reshape(heads, channels // (3 * heads), 3, length).unbind(2)
    weights = torch.softmax(torch.einsum("hcq,hck->hqk", q, k) / sqrt(q.shape[1]), dim=-1)
    return torch.einsum("hqk,hck->hcq", weights, v).reshape(channels // 3, length)


@pytest.mark.parametrize("size", [(3, 2), (1, 1), (4,)])
@pytest.mark.parametrize("heads", [1, 2])
def test_slices_attend_within_themselves_and_positions_across_them(size, heads):
    qkv = draw(2, 12, 5, *size)
    within, across = within_slices(qkv, heads), across_slices(qkv, heads)
    assert within.shape == across.shape == (2, 4, 5, *size)
    for n in range(2):
        for i in range(5):
            wanted = by_hand(qkv[n, :, i].flatten(1), heads)
            torch.testing.assert_close(within[n, :, i].flatten(1), wanted)
        for i in range(qkv[0, 0, 0].numel()):
            torch.testing.assert_close(across[n].flatten(2)[..., i], by_hand(qkv[n].flatten(2)[..., i], heads))


def test_more_sequences_than_cuda_takes_are_attended_to_in_parts(monkeypatch):
    qkv = draw(2, 12, 5, 3, 2)
    whole = within_slices(qkv, 2), across_slices(qkv, 2)
    monkeypatch.setattr(slice_attention, "MOST_SEQUENCES", 4)
    calls = []
    monkeypatch.setattr(slice_attention, "attention", lambda part, heads: calls.append(len(part)) or attention(part, 2))
    torch.testing.assert_close((within_slices(qkv, 2), across_slices(qkv, 2)), whole)
    assert calls == [4, 4, 2, 4, 4, 4]


@pytest.mark.parametrize("channels", [4, 5])
def test_slices_are_numbered_by_sines_and_cosines(channels):
    found = depth_embedding(3, channels, torch.zeros((), dtype=torch.float64))
    phases = torch.arange(3.0)[:, None] * (torch.tensor([1, 1e-2]) if channels == 4 else
                                           torch.tensor([1, 1e-4 ** (1 / 3), 1e-4 ** (2 / 3)]))
    wanted = torch.cat([phases.cos(), phases.sin()], dim=1)[:, :channels].T
    torch.testing.assert_close(found, wanted.double(), rtol=0, atol=1e-6)


# ---- in the UNets ----


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("choice", ["volume", "slices"])
def test_without_depth_the_order_of_slices_does_not_count(family, choice):
    net, x, order = stack(family, choice), draw(2, 1, DEPTH, 4, 4), torch.tensor([3, 0, 4, 1, 2])
    labels = torch.ones(2, dtype=torch.float64)
    torch.testing.assert_close(net(x[:, :, order], labels), net(x, labels)[:, :, order], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_depth_attention_knows_the_order_of_slices_by_their_numbers_alone(family, monkeypatch):
    net, x, order = stack(family, "slices_depth"), draw(2, 1, DEPTH, 4, 4), torch.tensor([3, 0, 4, 1, 2])
    labels = torch.ones(2, dtype=torch.float64)
    out, moved = net(x, labels)[:, :, order], net(x[:, :, order], labels)
    assert (moved - out).abs().max() > 1e-3 * out.abs().max()
    monkeypatch.setattr(slice_attention, "depth_embedding",
                        lambda depth, channels, like: like.new_zeros(channels, depth))
    out, moved = net(x, labels)[:, :, order], net(x[:, :, order], labels)
    torch.testing.assert_close(moved, out, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_slices_see_each_other_by_depth_attention_alone(family):
    assert (reach(stack(family, "slices", norm="voxel")) == torch.eye(DEPTH, dtype=torch.bool)).all()
    assert reach(stack(family, "slices_depth", norm="voxel")).all()
    assert reach(stack(family, "volume", norm="voxel")).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_only_depth_attention_has_weights_of_its_own(family):
    volume, slices, depth = (set(family(1, 1, **STACK, attention=each).state_dict())
                             for each in ("volume", "slices", "slices_depth"))
    assert volume == slices == set(family(1, 1, **STACK).state_dict())
    attending = {name.rsplit(".", 2)[0] for name in volume if ".qkv." in name}
    layers = ("norm.weight", "norm.bias", "qkv.weight", "qkv.bias", "proj.weight", "proj.bias")
    assert depth - volume == {f"{block}.depth.{layer}" for block in attending for layer in layers}


def test_depth_attention_starts_as_nothing():
    layer, x = DepthAttention(3, 8, 2), torch.randn(2, 8, 13, 3, 4)
    torch.testing.assert_close(layer(x), x, rtol=0, atol=0)


@pytest.mark.parametrize(("dims", "size", "strides"), [(3, (13, 4, 6), [[1, 2, 2]]), (2, (13, 4), [[1, 2]])])
@pytest.mark.parametrize("choice", ["slices", "slices_depth"])
def test_stacks_of_odd_depth_are_told_all_conditions_in_2d_and_3d(dims, size, strides, choice):
    net = randomise(ADMUNet(1, 1, **{**STACK, "spatial_dims": dims, "strides": strides, "kernel_size": 3},
                            attention=choice, attribute_dim=3, attribute_mode="tokens", semantic_dim=2, image_dim=1,
                            label_dim=2)).double()
    told = Condition(attributes=draw(2, 3), semantic=torch.ones(2, *size, dtype=torch.int16), images=draw(2, 1, *size),
                     class_labels=torch.eye(2, dtype=torch.float64))
    x, labels = draw(2, 1, *size), torch.ones(2, dtype=torch.float64)
    out = net(x, labels, told)
    assert out.shape == x.shape
    for i in range(2):  # each image by itself
        torch.testing.assert_close(net(x[i:i + 1], labels[:1], Condition(**{k: v[i:i + 1] for k, v in told.items()})),
                                   out[i:i + 1])


@pytest.mark.parametrize("choice", ["slices", "slices_depth"])
def test_networks_whose_slices_attend_see_all_there_is_and_are_refused_in_tiles(choice):
    net = stack(ADMUNet, choice, norm="voxel")
    assert net.receptive_field is None
    with pytest.raises(ValueError, match="tiles: the network sees all of a volume at once, by attention"):
        Tiled(net, [DEPTH, 2, 2])


def test_attention_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"attention='depth'.*volume.*slices.*slices_depth"):
        ADMUNet(1, 1, **STACK, attention="depth")
    with pytest.raises(ValueError, match="attention=slices: images of one axis have no slices, spatial_dims is 1"):
        ADMUNet(1, 1, 1, attention="slices")


def test_depth_attention_is_recomputed_and_sharded_with_its_block():
    net, x = stack(ADMUNet, "slices_depth"), draw(2, 1, DEPTH, 4, 4)
    assert not any(isinstance(part, DepthAttention) for part in blocks(net))

    def gradients() -> list[torch.Tensor]:
        return torch.autograd.grad(net(x, torch.ones(2, dtype=torch.float64)).square().sum(), list(net.parameters()))

    plain = gradients()
    checkpoint_blocks(net)
    torch.testing.assert_close(gradients(), plain)


def test_depth_attention_compiles_into_one_graph():
    net, x = stack(ADMUNet, "slices_depth").float(), torch.randn(2, 1, DEPTH, 4, 4)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, torch.ones(2)), net(x, torch.ones(2)))
