"""Convolutions of a single volume on a CPU by oneDNN, forwards and backwards.

PyTorch takes oneDNN for several volumes and for large ones. A small one alone it unfolds, at 27 times its memory and
many times the time.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx


def is_single(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether x [N,C,*S] is one volume in float32 on a CPU that a kernel wider than a voxel goes over.

    Not under autocast, a compiler, forward-mode gradients or the transforms of torch.func, which have to see what
    PyTorch knows.
    """
    return x.ndim == 5 and len(x) == 1 and type(x) is torch.Tensor and x.is_cpu \
        and x.dtype == weight.dtype == torch.float32 and prod(weight.shape[2:]) > 1 \
        and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled \
        and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling() \
        and not torch._C._are_functorch_transforms_active() \
        and forward_ad.unpack_dual(x).tangent is None and forward_ad.unpack_dual(weight).tangent is None


class SingleVolume(torch.autograd.Function):
    """x [1,C,*S] convolved; arguments as torch.conv3d has them. Gradients of gradients are PyTorch's own."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
                stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        ctx.how = list(stride), list(padding), list(dilation), False, [0] * len(stride), groups
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, dilation, groups)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if not torch.is_grad_enabled():  # a copy in oneDNN's own type, of which PyTorch takes what it has for that
            x = x.to_mkldnn()
        grads = torch.ops.aten.convolution_backward(grad, x, weight, ctx.bias_sizes, *ctx.how,
                                                    list(ctx.needs_input_grad[:3]))
        return *grads, None, None, None, None
