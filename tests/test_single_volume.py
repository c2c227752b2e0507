"""Convolutions of a single volume by oneDNN, against float64 and against PyTorch's own way."""

from unittest.mock import patch

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap

from edm3d.networks.layers import Conv3d

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")

LAYERS = {"plain": {}, "anisotropic": {"kernel_size": (1, 3, 3), "padding": (0, 1, 1)},
          "strided": {"stride": (2, 1, 2)}, "grouped": {"groups": 4}, "depthwise": {"groups": 8},
          "dilated": {"dilation": 2}, "no bias": {"bias": False},
          "even": {"kernel_size": 2, "stride": 2, "padding": 0}, "pointwise": {"kernel_size": 1, "padding": 0}}


def layer(**more: object) -> Conv3d:
    """A layer of 8 channels; of width 3 where nothing else is asked for."""
    torch.manual_seed(0)
    return Conv3d(8, 8, **{"kernel_size": 3, "padding": 1, **more})


def gradients(conv: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The result, and the gradients to x and to all parameters of a loss that weighs each voxel on its own."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = conv(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return [y, *torch.autograd.grad((y * weights).sum(), [x, *conv.parameters()])]


def assert_close(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    """The same within 1e-5 of the length of each."""
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert (a.double() - b.double()).norm() <= 1e-5 * b.double().norm()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_float64_and_the_same_every_time(name, memory_format):
    x, conv = torch.randn(1, 8, 7, 8, 10), layer(**LAYERS[name])
    x = x.contiguous(memory_format=memory_format)
    conv.weight.data = conv.weight.data.contiguous(memory_format=memory_format)
    once, again = gradients(conv, x), gradients(conv, x)
    assert type(once[0].grad_fn).__name__ == ("ConvolutionBackward0" if name == "pointwise" else "SingleVolumeBackward")
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert_close(once, gradients(conv.double(), x.double()))


def test_only_gradients_that_are_wanted_are_made():
    conv, x = layer(), torch.randn(1, 8, 6, 6, 6)
    conv.requires_grad_(False)
    x.requires_grad_()
    conv(x).sum().backward()
    assert x.grad is not None and conv.weight.grad is None and conv.bias.grad is None
    assert not conv(x.detach()).requires_grad


def test_gradients_of_gradients_are_those_of_float64():
    def twice(conv, x):
        x = x.clone().requires_grad_()
        first, = torch.autograd.grad(conv(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [x, *conv.parameters()])

    conv, x = layer(groups=2), torch.randn(1, 8, 5, 6, 7)
    assert_close(twice(conv, x), twice(conv.double(), x.double()))


def test_transforms_see_what_pytorch_knows():
    """Gradients per example, as of DP-SGD, and tangents."""
    conv, x = layer(), torch.randn(3, 8, 4, 5, 6)
    parameters = {name: p.detach() for name, p in conv.named_parameters()}

    def loss(parameters, example):
        return functional_call(conv, parameters, (example[None],)).square().sum()

    per_example = vmap(grad(loss), (None, 0))(parameters, x)
    for i, example in enumerate(x):
        one_by_one = torch.autograd.grad(conv(example[None]).square().sum(), list(conv.parameters()))
        assert_close([g[i] for g in per_example.values()], list(one_by_one))
    without_bias = conv(x[:1]) - conv.bias.reshape(-1, 1, 1, 1)
    assert_close([jvp(conv, (x[:1],), (x[:1],))[1]], [without_bias])
    with forward_ad.dual_level():
        dual = conv(forward_ad.make_dual(x[:1], x[:1]))
        assert_close([forward_ad.unpack_dual(dual).tangent], [without_bias])


def test_other_precisions_and_a_switched_off_onednn_go_as_ever():
    conv, x = layer(), torch.randn(1, 8, 4, 5, 6)
    with patch("torch.mkldnn_convolution", side_effect=AssertionError):
        with torch.backends.mkldnn.flags(enabled=False):
            gradients(conv, x)
        with torch.autocast("cpu", torch.bfloat16):
            assert conv(x).dtype == torch.bfloat16
        gradients(conv.double(), x.double())
        gradients(conv.bfloat16(), x.bfloat16())
        conv.float()(torch.cat([x, x]))
        with pytest.raises(AssertionError):
            conv(x)
