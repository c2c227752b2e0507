"""Which number format the networks compute in."""

from contextlib import AbstractContextManager, nullcontext

import torch

from edm3d.utils.checks import check_choice

PRECISIONS = ("fp32", "bf16", "fp16", "auto")
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: str, device: torch.device) -> str:
    """fp32, bf16 or fp16; auto is bf16 where the processor has matrix units for it."""
    check_choice("precision", precision, PRECISIONS)
    if precision != "auto":
        return precision
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_amx_tile_supported()
    return "bf16" if fast else "fp32"


def set_cuda_arithmetic(tf32: bool = False, cudnn_benchmark: bool = False) -> None:
    """How CUDA devices multiply float32, and whether cuDNN tries its kernels out on every new shape.

    float32 is float32 unless told otherwise, also where cuDNN would take TF32 (10 bits of mantissa) by itself.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = cudnn_benchmark


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """A context in which matrix products run in the given (resolved) precision; weights stay float32."""
    return torch.autocast(device.type, HALVES[precision]) if precision in HALVES else nullcontext()
