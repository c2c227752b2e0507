"""By how much a loss is scaled up before its gradients are taken in half precision, so that small ones do not vanish.

After Micikevicius et al. 2018, with the numbers of torch.amp.GradScaler. That class skips a step of each optimiser by
itself, on each rank; here it is decided for all phases and ranks at once, and the scale follows that.
"""

from collections.abc import Sequence

import torch
from torch import nn

GROWTH, BACKOFF, INTERVAL = 2.0, 0.5, 2000
MOST = 2.0 ** 127  # the largest power of two in float32


def next_scale(scale: torch.Tensor, steps: torch.Tensor, bad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale, and good steps with it, after a step: halved by a bad one, doubled after INTERVAL good ones in a row.

    All are [] and stay on their device: the next step has its scale before the host knows of this one.
    """
    grown = ~bad & (steps + 1 >= INTERVAL)
    good = torch.where(grown, (scale * GROWTH).clamp(max=MOST), scale)
    return torch.where(bad, scale * BACKOFF, good), torch.where(bad | grown, 0, steps + 1)


def unscale(parameters: Sequence[nn.Parameter], scale: torch.Tensor) -> None:
    """Divide gradients by a scale []; those that are not finite stay so."""
    torch._foreach_mul_([p.grad for p in parameters], 1 / scale)
