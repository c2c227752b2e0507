"""Tensors of what the host knows."""

from collections.abc import Sequence

import torch


def tensor_on(device: torch.device, numbers: Sequence[float], dtype: torch.dtype | None = None) -> torch.Tensor:
    """Numbers [n] on a device; `torch.tensor(numbers, device=device)` would have the host wait for all work there."""
    return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)
