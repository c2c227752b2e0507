"""Images of the greatest Poisson likelihood by expectation maximisation.

MLEM: Shepp & Vardi 1982; OSEM, by sets of angles in turn: Hudson & Larkin 1994, here with pixels bounded away from 0,
as in Ahn & Fessler 2003.
"""

import math
from collections.abc import Callable

import torch

from edm3d.physics.projector import Projector, batch_of, columns_of
from edm3d.physics.threads import one_thread
from edm3d.utils.checks import check_count

Callback = Callable[[int, torch.Tensor], None]
_SEEN = 1e-6  # sensitivity of a pixel, relative to the highest, below which it counts as seen by no line
_CACHED = 32  # slices of 64 x 64 pixels and their lines
_FLOOR = 1e-14  # expected counts of a line, relative to the most that any has, below which it is not divided by them
_LEAST = 1e-6  # of what OSEM begins with: no pixel falls below, as no other set of angles could bring it back from 0


def mlem(projector: Projector, counts: torch.Tensor, iterations: int, background: torch.Tensor | None = None,
         start: torch.Tensor | None = None, callback: Callback | None = None) -> torch.Tensor:
    """Images of counts [N,C,angles,shifts] or [N,C,D,angles,shifts], in counts, after `iterations` of MLEM.

    background: expected counts that come from elsewhere (what broadcasts to counts). start: images to begin with, >= 0;
    where None an even one. callback(iteration from 1, images) after each. Nothing becomes NaN: pixels that no line sees
    and slices without counts are 0. Without background, sum(sensitivity * image) of every slice is its counts from the
    first iteration on. ValueError for counts below 0 or not finite, of another geometry, and iterations below 1.
    """
    return osem(projector, counts, iterations, 1, background, start, callback)


@one_thread()
@torch.no_grad()
def osem(projector: Projector, counts: torch.Tensor, iterations: int, subsets: int = 1,
         background: torch.Tensor | None = None, start: torch.Tensor | None = None,
         callback: Callback | None = None) -> torch.Tensor:
    """The same, in every iteration one update for each of `subsets` sets of angles in turn: faster, not convergent.

    With several, a set without any count of a slice leaves that slice as it is, and no pixel falls below 1e-6 of what
    it began with, so that a slice with counts never becomes empty.
    """
    check_count(1, {"iterations": iterations})
    projector.check_sinograms(counts)
    check_counts(counts)
    background, start = _expanded(background, counts), _checked(start, projector, counts)
    together = _together(counts, callback)
    images = []
    for first in range(0, len(counts), together):
        some = slice(first, first + together)
        given = [None if x is None else x[some] for x in (background, start)]
        images.append(_run(projector.of_images(some, counts), counts[some], iterations, subsets, *given, callback))
    return torch.cat(images)


def _together(counts: torch.Tensor, callback: Callback | None) -> int:
    """Images of a batch that are updated at once: on a CPU as many as stay in its cache, where nobody watches all."""
    if callback or counts.device.type != "cpu":
        return len(counts)
    return max(1, _CACHED // math.prod(counts.shape[1:-2]))


def _run(projector: Projector, counts: torch.Tensor, iterations: int, subsets: int,
         background: torch.Tensor | None, start: torch.Tensor | None, callback: Callback | None) -> torch.Tensor:
    """All updates of some images."""
    leading, image_shape = counts.shape[:-2], (*counts.shape[:-2], *projector.geometry.image_shape)
    x = _begin(projector, counts, start)
    least = x * _LEAST if subsets > 1 else None
    steps = [_Step(part, counts[..., angles, :], None if background is None else background[..., angles, :], least)
             for angles, part in projector.subsets(subsets)]
    for iteration in range(1, iterations + 1):
        for step in steps:
            x = step(x, leading)
        if callback:
            callback(iteration, batch_of(x, image_shape))
    return batch_of(x, image_shape)


class _Step:
    """One update by the lines of some angles; least: of every pixel where these are not all there are, else None."""

    def __init__(self, projector: Projector, counts: torch.Tensor, background: torch.Tensor | None,
                 least: torch.Tensor | None):
        self.projector, self.counts = projector, columns_of(counts)
        self.background = None if background is None else columns_of(background)
        self.floor = (self.counts.amax(0) * _FLOOR).clamp(min=torch.finfo(counts.dtype).tiny)
        self.least = least
        seen, sensitivity = _seen(projector, counts)
        if least is not None:
            seen = seen & (self.counts.amax(0) > 0)
        self.weights = torch.where(seen, 1 / sensitivity, 0.0)
        self.unseen = None if bool(seen.all()) else (~seen).to(counts)

    def __call__(self, x: torch.Tensor, leading: tuple[int, ...]) -> torch.Tensor:
        """x / sensitivity * A^T(counts / (A x + background)); what these lines do not see stays."""
        expected = self.projector.project(x, leading)
        if self.background is not None:
            expected += self.background
        ratio = torch.div(self.counts, torch.maximum(expected, self.floor))
        factor = self.projector.back_project(ratio, leading).mul_(self.weights)
        x = x * (factor if self.unseen is None else factor.add_(self.unseen))
        return x if self.least is None else torch.maximum(x, self.least)


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


def _checked(start: torch.Tensor | None, projector: Projector, counts: torch.Tensor) -> torch.Tensor | None:
    """Images to begin with, of the type of counts; ValueError for another shape and values below 0."""
    if start is None:
        return None
    shape = (*counts.shape[:-2], *projector.geometry.image_shape)
    if tuple(start.shape) != shape or not bool((start >= 0).all() and start.isfinite().all()):
        raise ValueError(f"start: images {list(start.shape)}, wanted {list(shape)} of finite numbers of 0 or more")
    return start.to(counts)


def _seen(projector: Projector, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which pixels lines see, beyond rounding, and the sensitivity of all, as columns."""
    sensitivity = columns_of(projector.sensitivity(counts))
    return sensitivity > _SEEN * sensitivity.amax(0), sensitivity


def _begin(projector: Projector, counts: torch.Tensor, start: torch.Tensor | None) -> torch.Tensor:
    """Columns of the images to begin with, 0 where no line sees a pixel and without counts.

    Where not given even, about as high as counts: by the highest of the counts and no sum of them, which would hang on
    the size of the batch in the last digit.
    """
    seen, sensitivity = _seen(projector, counts)
    if start is None:
        return seen * torch.where(seen, columns_of(counts).amax(0) / sensitivity.amax(0), 0.0)
    return columns_of(start) * (seen & (columns_of(counts).amax(0) > 0))


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
