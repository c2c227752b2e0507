"""Images of the greatest Poisson likelihood by expectation maximisation.

MLEM: Shepp & Vardi 1982; OSEM, by sets of angles in turn: Hudson & Larkin 1994.
"""

from collections.abc import Callable

import torch

from edm3d.physics.projector import Projector, batch_of, columns_of
from edm3d.utils.checks import check_count

Callback = Callable[[int, torch.Tensor], None]
_SEEN = 1e-6  # sensitivity of a pixel, relative to the highest, below which it counts as seen by no line
_FLOOR = 1e-12  # expected counts of a line, relative to the mean of the image's lines, below which it is not divided by


def mlem(projector: Projector, counts: torch.Tensor, iterations: int, background: torch.Tensor | None = None,
         start: torch.Tensor | None = None, callback: Callback | None = None) -> torch.Tensor:
    """Images of counts [N,C,angles,shifts] or [N,C,D,angles,shifts], in counts, after `iterations` of MLEM.

    background: expected counts that come from elsewhere (what broadcasts to counts). start: images to begin with, >= 0;
    where None an even one. callback(iteration from 1, images) after each. Nothing becomes NaN: pixels that no line sees
    and slices without counts are 0. Without background, sum(sensitivity * image) of every slice is its counts from the
    first iteration on. ValueError for counts below 0 or not finite, of another geometry, and iterations below 1.
    """
    return osem(projector, counts, iterations, 1, background, start, callback)


@torch.no_grad()
def osem(projector: Projector, counts: torch.Tensor, iterations: int, subsets: int = 1,
         background: torch.Tensor | None = None, start: torch.Tensor | None = None,
         callback: Callback | None = None) -> torch.Tensor:
    """The same, in every iteration one update for each of `subsets` sets of angles in turn: faster, not convergent."""
    check_count(1, {"iterations": iterations})
    projector.check_sinograms(counts)
    check_counts(counts)
    leading, image_shape = counts.shape[:-2], (*counts.shape[:-2], *projector.geometry.image_shape)
    steps, x = _steps(projector, counts, subsets, background), _begin(projector, counts, start)
    for iteration in range(1, iterations + 1):
        for step in steps:
            x = step(x, leading)
        if callback:
            callback(iteration, batch_of(x, image_shape))
    return batch_of(x, image_shape)


class _Step:
    """One update by the lines of some angles."""

    def __init__(self, projector: Projector, counts: torch.Tensor, background: torch.Tensor | None):
        self.projector, self.counts = projector, columns_of(counts)
        self.background = None if background is None else columns_of(background)
        self.floor = (self.counts.mean(0) * _FLOOR).clamp(min=torch.finfo(counts.dtype).tiny)
        seen, sensitivity = _seen(projector, counts)
        self.weights = torch.where(seen, 1 / sensitivity, 0.0)
        self.unseen = None if bool(seen.all()) else (~seen).to(counts)

    def __call__(self, x: torch.Tensor, leading: tuple[int, ...]) -> torch.Tensor:
        """x / sensitivity * A^T(counts / (A x + background)); what these lines do not see stays."""
        expected = self.projector.project(x, leading)
        if self.background is not None:
            expected += self.background
        ratio = torch.div(self.counts, torch.maximum(expected, self.floor))
        factor = self.projector.back_project(ratio, leading).mul_(self.weights)
        return x * (factor if self.unseen is None else factor.add_(self.unseen))


def _steps(projector: Projector, counts: torch.Tensor, subsets: int, background: torch.Tensor | None) -> list[_Step]:
    if background is not None:
        background = torch.as_tensor(background, dtype=counts.dtype, device=counts.device).expand_as(counts)
        check_counts(background, "background")
    parts = projector.subsets(subsets)
    return [_Step(part, counts[..., angles, :], None if background is None else background[..., angles, :])
            for angles, part in parts]


def _seen(projector: Projector, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which pixels lines see, beyond rounding, and the sensitivity of all, as columns."""
    sensitivity = columns_of(projector.sensitivity(counts))
    return sensitivity > _SEEN * sensitivity.amax(0), sensitivity


def _begin(projector: Projector, counts: torch.Tensor, start: torch.Tensor | None) -> torch.Tensor:
    """Columns of the images to begin with, 0 where no line sees a pixel: where not given even, of as many counts."""
    seen, sensitivity = _seen(projector, counts)
    if start is None:
        total = (sensitivity * seen).sum(0)
        return seen * torch.where(total > 0, columns_of(counts).sum(0) / total, 0.0)
    shape = (*counts.shape[:-2], *projector.geometry.image_shape)
    if tuple(start.shape) != shape or not bool((start >= 0).all() and start.isfinite().all()):
        raise ValueError(f"start: images {list(start.shape)}, wanted {list(shape)} of finite numbers of 0 or more")
    return columns_of(start.to(counts)) * seen


def check_counts(counts: torch.Tensor, what: str = "counts") -> None:
    """ValueError naming the first image of a batch whose counts are below 0 or not finite."""
    if not counts.is_floating_point():
        raise ValueError(f"{what}: {counts.dtype}, wanted floating numbers")
    wrong = ~((counts >= 0) & counts.isfinite()).flatten(1).all(1)
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        values = counts[first]
        found = f"{float(values.min()):g}" if bool(values.isfinite().all()) else "a number that is not finite"
        raise ValueError(f"{what}: image {first} of the batch has {found}; wanted finite numbers of 0 or more")
