"""Images of the greatest Poisson likelihood by expectation maximisation.

MLEM: Shepp & Vardi 1982; OSEM, by sets of angles in turn: Hudson & Larkin 1994.
"""

from collections.abc import Callable

import torch

from edm3d.physics.projector import Projector, batch_of, columns_of
from edm3d.physics.threads import one_thread, side_by_side
from edm3d.utils.checks import check_count

Callback = Callable[[int, torch.Tensor], None]
_SEEN = 1e-6  # sensitivity of a pixel, relative to the highest, below which it counts as seen by no line
_FLOOR = 1e-14  # expected counts of a line, relative to the most that any has, below which it is not divided by them


def mlem(projector: Projector, counts: torch.Tensor, iterations: int, background: torch.Tensor | None = None,
         start: torch.Tensor | None = None, callback: Callback | None = None) -> torch.Tensor:
    """Images of counts [N,C,angles,shifts] or [N,C,D,angles,shifts], in counts, after `iterations` of MLEM.

    background: expected counts that come from elsewhere (what broadcasts to counts). start: images to begin with, >= 0;
    where None an even one. callback(iteration from 1, images) after each. Nothing becomes NaN: pixels that no line sees
    and slices without counts are 0. Without background, sum(sensitivity * image) of every slice is its counts from the
    first iteration on. ValueError for counts below 0 or not finite, of another geometry, and iterations below 1.
    """
    return osem(projector, counts, iterations, 1, background, start, callback)


def osem(projector: Projector, counts: torch.Tensor, iterations: int, subsets: int = 1,
         background: torch.Tensor | None = None, start: torch.Tensor | None = None,
         callback: Callback | None = None) -> torch.Tensor:
    """The same, in every iteration one update for each of `subsets` sets of angles in turn: faster, not convergent."""
    check_count(1, {"iterations": iterations})
    projector.check_sinograms(counts)
    check_counts(counts)
    parts, background = projector.subsets(subsets), _expanded(background, counts)
    start = None if start is None else _checked(start, projector, counts)

    for part in (projector, *(part for _, part in parts)):
        part.prepare(counts)

    @torch.no_grad()
    def work(images: slice) -> torch.Tensor:
        those = [(angles, part.of_images(images, counts)) for angles, part in parts]
        given = [None if x is None else x[images] for x in (background, start)]
        return _run(projector.of_images(images, counts), those, counts[images], iterations, *given, callback)

    if callback:
        with one_thread():
            return work(slice(0, len(counts)))
    return side_by_side(work, len(counts), counts.device)


def _run(projector: Projector, parts: list[tuple[slice, Projector]], counts: torch.Tensor, iterations: int,
         background: torch.Tensor | None, start: torch.Tensor | None, callback: Callback | None) -> torch.Tensor:
    """All updates of some images."""
    leading, image_shape = counts.shape[:-2], (*counts.shape[:-2], *projector.geometry.image_shape)
    steps = [_Step(part, counts[..., angles, :], None if background is None else background[..., angles, :])
             for angles, part in parts]
    x = _begin(projector, counts, start)
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
        self.floor = (self.counts.amax(0) * _FLOOR).clamp(min=torch.finfo(counts.dtype).tiny)
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


def _expanded(background: torch.Tensor | None, counts: torch.Tensor) -> torch.Tensor | None:
    """A background of the shape of counts; ValueError where it cannot be, or is below 0."""
    if background is None:
        return None
    try:
        background = background.to(counts).expand_as(counts)
    except RuntimeError as error:
        raise ValueError(f"background: {list(background.shape)} for counts {list(counts.shape)}; wanted what "
                         "broadcasts to them") from error
    check_counts(background, "background")
    return background


def _checked(start: torch.Tensor, projector: Projector, counts: torch.Tensor) -> torch.Tensor:
    """Images to begin with, of the type of counts; ValueError for another shape and values below 0."""
    shape = (*counts.shape[:-2], *projector.geometry.image_shape)
    if tuple(start.shape) != shape or not bool((start >= 0).all() and start.isfinite().all()):
        raise ValueError(f"start: images {list(start.shape)}, wanted {list(shape)} of finite numbers of 0 or more")
    return start.to(counts)


def _seen(projector: Projector, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which pixels lines see, beyond rounding, and the sensitivity of all, as columns."""
    sensitivity = columns_of(projector.sensitivity(counts))
    return sensitivity > _SEEN * sensitivity.amax(0), sensitivity


def _begin(projector: Projector, counts: torch.Tensor, start: torch.Tensor | None) -> torch.Tensor:
    """Columns of the images to begin with, 0 where no line sees a pixel: where not given even, about as high as counts.

    By the highest of the counts and no sum of them, which would hang on the size of the batch in the last digit.
    """
    seen, sensitivity = _seen(projector, counts)
    if start is None:
        return seen * torch.where(seen, columns_of(counts).amax(0) / sensitivity.amax(0), 0.0)
    return columns_of(start) * seen


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
