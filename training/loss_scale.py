"""By how much a loss is scaled up before its gradients are taken in half precision, so that small ones do not vanish.

After Micikevicius et al. 2018, with the numbers of torch.amp.GradScaler. That class skips a step of each optimiser by
itself, on each rank; here the loop decides for all phases and ranks at once, and the scale follows its decision.
"""

from collections.abc import Sequence

import torch
from torch import nn

GROWTH, BACKOFF, INTERVAL = 2.0, 0.5, 2000
MOST = 2.0 ** 127  # the largest power of two in float32


def next_scale(scale: float, steps: int, bad: bool) -> tuple[float, int]:
    """Scale, and good steps with it, after a step: halved by a bad one, doubled after INTERVAL good ones in a row."""
    if bad:
        return scale * BACKOFF, 0
    if steps + 1 < INTERVAL:
        return scale, steps + 1
    return min(scale * GROWTH, MOST), 0


def unscale(parameters: Sequence[nn.Parameter], scale: float) -> None:
    """Divide gradients by a scale; those that are not finite stay so."""
    torch._foreach_mul_([p.grad for p in parameters], 1 / scale)
