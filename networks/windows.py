"""Networks that see a window of a volume, run over all of it."""

from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch.nn.functional import pad

OVERLAP = 0.5  # of neighbouring windows, a share


def windowed(net: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, window: Sequence[int],
             overlap: float = OVERLAP, fill: float = -1.0) -> torch.Tensor:
    """What a network gives of x [N,C,*S] in windows [*S]: logits [N,K,*S], blended by Gaussians (MONAI's).

    Volumes that are smaller than a window are surrounded by `fill`, that of an empty image, and what is given of it is
    cut away; one that is as large as the window is seen at once.
    """
    size = x.shape[2:]
    missing = [max(0, wanted - got) for wanted, got in zip(window, size, strict=True)]
    if any(missing):
        around = [(n // 2, n - n // 2) for n in missing]
        whole = pad(x, list(chain(*reversed(around))), value=fill)
        inner = [slice(before, before + n) for (before, _), n in zip(around, size)]
        return windowed(net, whole, window, overlap, fill)[(..., *inner)]
    if tuple(size) == tuple(window):
        return net(x)
    from monai.inferers import sliding_window_inference  # here, since importing MONAI takes seconds
    return sliding_window_inference(x, tuple(window), 1, net, overlap=overlap, mode="gaussian")
