"""Noise levels of a sampler of few calls, chosen by how near it ends to the exact solution of the same noise.

The sum over the images of how far they end off is brought down by the method of Levenberg and Marquardt over the
logarithms of the distances between log levels; derivatives are differences of two runs. Lengths, not squares, are
added, so that the few images that end in another mode do not decide. Among the ways to such levels, as in "Align Your
Steps" (Sabour et al. 2024) and "Optimized Time Steps" (Xue et al. 2024), it is the one that looks at the end alone, so
that errors of steps that cancel count as they do in drawing.
"""

from collections.abc import Callable, Sequence
from math import inf, isfinite, log
from typing import NamedTuple

import torch

Run = Callable[[torch.Tensor], torch.Tensor]  # levels falling to 0 -> ends [N,...]

DELTA = 0.03  # by which a logarithm is moved to see what the end makes of it: far above float32's rounding
LEAST_ROOM = 0.01  # between the first level and sigma_max, and likewise below, as a share of the range: where it starts
LARGEST = 0.7  # that a logarithm is moved by in one round
LEAST_GAIN = 0.003  # of the sum in a round: below that it is over
DAMPING, LEAST_DAMPING, MOST_DAMPING, ENOUGH = 1e-2, 1e-6, 1e3, 5
TINY = 1e-9
ROUNDING = 1e-6  # of the ends: nearer than that, there is nothing to find
SCOUTED = 4


class Tuned(NamedTuple):
    """Levels that were found, float64 falling to 0; the error of the best start and theirs; runs that it took."""

    sigmas: torch.Tensor
    start_error: float
    error: float
    runs: int


def relative_error(ends: torch.Tensor, exact: torch.Tensor) -> float:
    """Mean over the images of the distance between ends and the exact ones [N,...], relative to their mean size."""
    ends, exact = (each.to("cpu", torch.float64).flatten(1) for each in (ends, exact))
    return float((ends - exact).norm(dim=1).mean() / exact.norm(dim=1).mean())


def tune(run: Run, exact: torch.Tensor, starts: Sequence[torch.Tensor], rounds: int = 20) -> Tuned:
    """Levels by which `run` ends near to exact [N,...], in the range of the first start.

    Some rounds are made from each start, the others go on from the best of them. A round takes two runs more than there
    are levels, or some more than that.
    """
    search = Search(run, exact.to("cpu", torch.float64).flatten(1), log(starts[0][-2]), log(starts[0][0]))
    begun = [search.at(logarithms(start, search.low, search.high)) for start in starts]
    scouts = [search.down_from(each, SCOUTED) for each in begun]
    best = search.down_from(min(scouts, key=lambda each: each.cost), rounds)
    size = float(search.exact.norm(dim=1).sum())
    return Tuned(best.sigmas, min(each.cost for each in begun) / size, best.cost / size, search.runs)


class AtLevels(NamedTuple):
    """Levels as what is searched over, see `logarithms`, and what they end off [N,...]; cost: sum of its lengths."""

    place: torch.Tensor
    sigmas: torch.Tensor
    off: torch.Tensor
    cost: float


class Search:
    """Runs at places, within a range of logs."""

    def __init__(self, run: Run, exact: torch.Tensor, low: float, high: float):
        self.run, self.exact, self.low, self.high = run, exact, low, high
        self.runs, self.rounding = 0, ROUNDING * float(exact.norm(dim=1).sum())

    def at(self, place: torch.Tensor) -> AtLevels:
        """A run at a place."""
        sigmas = levels_of(place, self.low, self.high)
        off = self.run(sigmas).to("cpu", torch.float64).flatten(1) - self.exact
        self.runs += 1
        cost = float(off.norm(dim=1).sum())
        return AtLevels(place, sigmas, off, cost if isfinite(cost) else inf)

    def down_from(self, here: AtLevels, rounds: int) -> AtLevels:
        """The place of least cost on the way down from one."""
        damping = DAMPING
        for _ in range(rounds):
            if not self.rounding < here.cost < inf:
                break
            # squares weighed by 1 / length fall as the lengths do (iteratively reweighted least squares)
            weights = here.off.norm(dim=1, keepdim=True).clamp(min=TINY * here.cost).rsqrt()
            slopes = torch.stack([(weights * self.slope(here, k)).flatten() for k in range(len(here.place))])
            square, down = slopes @ slopes.T, slopes @ (weights * here.off).flatten()
            while damping < MOST_DAMPING:
                damped = square + damping * torch.diag(square.diagonal() + TINY * square.trace())
                step = torch.linalg.lstsq(damped, -down[:, None]).solution[:, 0]
                there = self.at(here.place + step.clamp(-LARGEST, LARGEST))
                if there.cost < here.cost:
                    break
                damping *= ENOUGH
            else:
                break
            gain, here = 1 - there.cost / here.cost, there
            damping = max(damping / ENOUGH, LEAST_DAMPING)
            if gain < LEAST_GAIN:
                break
        return here

    def slope(self, here: AtLevels, k: int) -> torch.Tensor:
        """What the ends do as coordinate k of a place rises."""
        moved = here.place.clone()
        moved[k] += DELTA
        return (self.at(moved).off - here.off) / DELTA


def logarithms(sigmas: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """What is searched over, of levels falling to 0: logs of the distances between high, their logs and low."""
    logs = sigmas[:-1].to("cpu", torch.float64).log()
    ends = logs.new_tensor([high]), logs, logs.new_tensor([low])
    return (-torch.cat(ends).diff()).clamp(min=LEAST_ROOM * (high - low)).log()


def levels_of(place: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Levels of distances in these proportions that fill the range, and 0."""
    shares = place.softmax(0).cumsum(0)[:-1]
    return torch.cat([(high + (low - high) * shares).exp(), shares.new_zeros(1)])
