"""Gradients of units of privacy: summed over the rows of each, clipped, and summed again."""

from collections.abc import Sequence
from typing import Any

import torch


class ClippedSum:
    """The sum over units of their gradients, each clipped as an Opacus DPOptimizer does, in `summed_grad`.

    The gradient of a unit is the sum over its rows of what backward left in `grad_sample`, divided by `repeats`. Rows
    of a unit follow each other, over several calls too. A gradient that is not finite counts as zero.
    """

    def __init__(self, optimizer: Any, repeats: int = 1):
        self.optimizer, self.repeats = optimizer, repeats
        self.parameters = optimizer.params
        self.open_unit: int | None = None
        self.open: list[torch.Tensor] = []

    def add(self, units: Sequence[int]) -> None:
        """Take in the gradients of rows of these units, [rows, ...] in `grad_sample`, which are then let go of."""
        rows = [self.taken(p, len(units)) for p in self.parameters]
        zero_unless_finite(rows)
        if self.repeats > 1:
            rows = [row / self.repeats for row in rows]
        order = list(dict.fromkeys(units))
        if self.open_unit is not None and self.open_unit != order[0]:
            self.close()
        if len(order) == len(units) and self.open_unit is None:
            sums = rows
        else:
            place = torch.tensor([order.index(unit) for unit in units], device=rows[0].device)
            sums = [row.new_zeros(len(order), *row.shape[1:]).index_add_(0, place, row) for row in rows]
            if self.open_unit is not None:
                for total, before in zip(sums, self.open, strict=True):
                    total[0] += before
        self.open_unit, self.open = order[-1], [total[-1].clone() for total in sums]
        self.clip([total[:-1] for total in sums])

    def close(self) -> None:
        """Clip the last unit, of which no more rows come; where no row came at all, the sum is zero."""
        if self.open_unit is not None:
            self.clip([total[None] for total in self.open])
        self.open_unit, self.open = None, []
        for p in self.parameters:
            if p.summed_grad is None:
                p.summed_grad = torch.zeros_like(p)

    def clip(self, units: list[torch.Tensor]) -> None:
        """Have the optimiser clip the gradients [units, ...] of whole units, and add them up."""
        if not len(units[0]):
            return
        zero_unless_finite(units)
        for p, gradients in zip(self.parameters, units, strict=True):
            p.grad_sample = gradients
        self.optimizer.clip_and_accumulate()
        for p in self.parameters:
            p.grad_sample = None

    def taken(self, p: torch.nn.Parameter, rows: int) -> torch.Tensor:
        """The gradients [rows, ...] that backward left at a parameter; zeros where it had no part in the loss."""
        found, p.grad_sample = p.grad_sample, None
        if found is None:
            return torch.zeros(rows, *p.shape, dtype=p.dtype, device=p.device)
        if isinstance(found, list):
            found = sum(found)  # of several passes over the same rows
        if len(found) != rows:
            raise ValueError(f"gradients of {len(found)} images for {rows}: the network or loss sees each image "
                             "another number of times than once, which privacy cannot follow")
        return found.to(p.dtype)


def zero_unless_finite(gradients: Sequence[torch.Tensor]) -> None:
    """Make all gradients [N, ...] of a row zero where one of them is not finite, or too long to be told, in place."""
    fine = torch.stack([torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1).isfinite() for g in gradients]).all(0)
    if not bool(fine.all()):
        for g in gradients:
            g[~fine] = 0
