"""What voxels say of their neighbours, taken off and given back: autoregression of order 1 along each axis in turn."""

from collections.abc import Sequence

import torch


def decorrelated(x: torch.Tensor, correlation: Sequence[Sequence[float]]) -> torch.Tensor:
    """x [N,C,*S] less what the voxel before says of each, by correlations [C,axes] with it; variance stays as it is.

    White where x is what `correlated` makes of white noise. Along an axis, with correlation r: y[0] = x[0] and
    y[i] = (x[i] - r x[i-1]) / sqrt(1 - r^2).
    """
    for axis, r in factors(x, correlation):
        size = x.shape[axis]
        now, before = x.narrow(axis, 1, size - 1), x.narrow(axis, 0, size - 1)
        x = torch.cat([x.narrow(axis, 0, 1), (now - r * before) / (1 - r * r).sqrt()], dim=axis)
    return x


def correlated(x: torch.Tensor, correlation: Sequence[Sequence[float]]) -> torch.Tensor:
    """The inverse of `decorrelated`: x [N,C,*S] of which each voxel resembles the one before."""
    for axis, r in factors(x, correlation):
        first, *rest = x.split(1, dim=axis)
        rows = [first]
        for row in rest:
            rows.append(r * rows[-1] + (1 - r * r).sqrt() * row)
        x = torch.cat(rows, dim=axis)
    return x


def factors(x: torch.Tensor, correlation: Sequence[Sequence[float]]) -> list[tuple[int, torch.Tensor]]:
    """Axes of x [N,C,*S] along which anything correlates, each with its correlations [C,1,..]."""
    along = enumerate(zip(*correlation, strict=True), 2)
    return [(axis, x.new_tensor(r).reshape(-1, *[1] * (x.ndim - 2))) for axis, r in along if any(r)]
