import math

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.utils.flop_counter import FlopCounterMode

from edm3d.networks import layers
from edm3d.networks.autoencoder import AutoencoderKL
from edm3d.networks.layers import CONVOLVE, RepeatConv, box_sums, conv, up
from edm3d.networks.unet import ADMUNet

CASES = {
    "line": (1, (70,), (3,), (2,)),
    "line, by 3 with 5 weights": (1, (64,), (5,), (3,)),
    "plane, one axis": (2, (9, 8), (3, 3), (1, 2)),
    "plane, wide and narrow": (2, (10, 7), (1, 5), (2, 3)),
    "volume": (3, (4, 5, 4), (3, 3, 3), (2, 2, 2)),
    "volume, two axes": (3, (3, 6, 5), (1, 3, 3), (1, 2, 2)),
}


def layer_and_input(dims: int, size: tuple, kernel: tuple, repeat: tuple):
    """A layer in float64, x and the gradient of what it gives."""
    torch.manual_seed(0)
    layer = conv(dims, 3, 2, kernel, repeat=repeat).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    return layer, x, torch.randn(2, 2, *(s * r for s, r in zip(size, repeat, strict=True)), dtype=torch.float64)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_gives_what_a_convolution_of_the_repeated_image_gives_with_gradients(case):
    layer, x, g = layer_and_input(*case)
    assert isinstance(layer, RepeatConv)
    found, wanted = [], []
    for outs, call in ((found, layer), (wanted, lambda x: CONVOLVE[case[0]](
            up(x, layer.repeat), layer.weight, layer.bias, padding=layer.padding))):
        x_ = x.clone().requires_grad_()
        y = call(x_)
        outs += [y, *torch.autograd.grad(y, (x_, layer.weight, layer.bias), g)]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_weights_of_equal_neighbours_are_added_up():
    weight = torch.tensor([[[1.0, 10.0, 100.0]]])
    assert box_sums(weight, (2,)).flatten().tolist() == [100, 110, 11, 1]
    assert box_sums(weight, (1,)).flatten().tolist() == [100, 10, 1]
    assert box_sums(weight, (3,)).flatten().tolist() == [100, 110, 111, 11, 1]


def test_known_answer_by_hand():
    layer, x = conv(1, 1, 1, 3, repeat=(2,)), torch.arange(64.0)[None, None]
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[1.0, 10.0, 100.0]]]))
        layer.bias.fill_(0.5)
        y = layer(x)[0, 0]
    # 0 0 1 1 2 2 .. 63 63 with zeros beside: of 0 0 1, then 0 1 1, then 1 1 2, .. and 63 63 0
    assert y[:4].tolist() == [0.5, 100.5, 110.5, 211.5] and y[-1].item() == 63 * 11 + 0.5


def test_it_takes_fewer_products_and_on_few_positions_goes_the_plain_way():
    layer = conv(3, 3, 2, repeat=(2, 2, 2))
    for size, products in ((4, 64), (2, 27 * 8)):
        with FlopCounterMode(display=False) as counter:
            layer(torch.zeros(2, 3, size, size, size))
        counted = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
        assert counted == 2 * products * 3 * 2 * 2 * size**3  # a product and a sum, channels in and out, images
    assert math.prod((4, 4, 4)) == layers.FEW


def test_gradients_of_each_image_by_itself():
    layer, x, g = layer_and_input(*CASES["volume"])
    weights = dict(layer.named_parameters())

    def loss(weights: dict, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return (functional_call(layer, weights, (x[None],))[0] * g).sum()

    each = vmap(grad(loss), in_dims=(None, 0, 0))(weights, x, g)
    for i in range(len(x)):
        wanted = torch.autograd.grad((layer(x[i:i + 1]) * g[i:i + 1]).sum(), list(weights.values()))
        for name, one in zip(weights, wanted, strict=True):
            torch.testing.assert_close(each[name][i], one, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", ["compact", "ldm", "monai"])
def test_autoencoders_are_the_same_functions_either_way(layout, monkeypatch):
    torch.manual_seed(0)
    net = AutoencoderKL(1, spatial_dims=3, channels=[4, 6, 8], num_blocks=1, num_blocks_decoder=2, layout=layout,
                        kernel_size=[[1, 3, 3], 3, 3], strides=[[1, 2, 2], 2]).double()
    perturb(net)
    z = torch.randn(2, 4, 4, 4, 4, dtype=torch.float64)
    same_either_way(lambda: net.decoder(z), monkeypatch)


def test_unets_are_the_same_functions_either_way(monkeypatch):
    torch.manual_seed(0)
    net = ADMUNet(1, 1, 3, model_channels=8, channel_mult=[1, 2], num_blocks=1, attention_levels=[], dropout=0).double()
    perturb(net)
    x, t = torch.randn(2, 1, 8, 8, 8, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    same_either_way(lambda: net(x, t), monkeypatch)


def perturb(net: torch.nn.Module) -> None:
    """Weights that are 0 at the start would hide what comes before them."""
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn_like(p)


def same_either_way(call, monkeypatch) -> None:
    """With sums of weights and without, which a broken version would tell apart."""
    found = call()
    monkeypatch.setattr(layers, "FEW", 10**9)
    wanted = call()
    assert not torch.equal(found, wanted)  # another way was gone
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
