"""Buffers that a forward pass moves, as running statistics and codebooks do: one step for all ranks, or none."""

from collections.abc import Iterator, Sequence

import torch

from edm3d.utils import distributed


class Buffers:
    """The buffers of modules, and what they held before a step."""

    def __init__(self, modules: Sequence[torch.nn.Module]):
        self.modules, self.before = modules, list[torch.Tensor]()

    def now(self) -> Iterator[torch.Tensor]:
        """All of them, in a fixed order."""
        return (buffer.detach() for module in self.modules for buffer in module.buffers())

    def remember(self) -> None:
        """Keep what they hold. All are copied: a change through `.data`, usual in codebooks, leaves no other trace."""
        self.before = [buffer.clone() for buffer in self.now()]

    def moved(self) -> list[bool]:
        """Which of them hold something else than was remembered."""
        apart = [(new != old).any() for new, old in zip(self.now(), self.before, strict=True)]
        return torch.stack(apart).tolist() if apart else []

    def put_back(self, bad: torch.Tensor) -> None:
        """Make them what was remembered where a flag [] bool on their device is set."""
        for new, old in zip(self.now(), self.before, strict=True):
            new.copy_(torch.where(bad, old, new))

    def average(self, moved: Sequence[float]) -> None:
        """Give all ranks the mean of those that some rank has moved; whole numbers are left as they are.

        moved: of each, [] on one rank. Every rank has seen other images. In float64, the mean of equal float32 numbers
        is that number.
        """
        if not any(moved):
            return
        parts = [b for b, has_moved in zip(self.now(), moved, strict=True) if has_moved and b.is_floating_point()]
        if not parts:
            return
        flat = distributed.all_reduce_sum(torch.cat([b.double().reshape(-1) for b in parts]))
        means = (flat / distributed.world_size()).split([b.numel() for b in parts])
        for buffer, mean in zip(parts, means, strict=True):
            buffer.copy_(mean.view_as(buffer))
