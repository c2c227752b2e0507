"""What samplers cost a network and how far they end from the exact solution, from the same noise."""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from edm3d.inference.asking_scans import asker_for
from edm3d.inference.drawing import draw_all, make_drawer
from edm3d.inference.model import Model
from edm3d.inference.refiner import check_draws_alone
from edm3d.samplers.denoiser import Denoiser, Wrapper

LEAST_REFERENCE = 72  # steps of order 4
STOCHASTIC = ("S_churn", "eta")


class Tried(NamedTuple):
    """A sampler at a number of steps: calls of the network and seconds per volume (decoding aside).

    error: root mean square distance to the exact solution, relative to that solution's; None of a stochastic sampler,
    which ends elsewhere, and where the steps are refused (why says so).
    """

    sampler: str
    steps: int
    calls: float | None = None
    seconds: float | None = None
    error: float | None = None
    why: str = ""


class Counted(Wrapper):
    """A denoiser that counts its calls."""

    calls = 0

    def __call__(self, *arguments, **named) -> torch.Tensor:
        self.calls += 1
        return self.net(*arguments, **named)


def try_solvers(model: Model, samplers: Sequence[str], steps: Sequence[int], seeds: Sequence[int]) -> Iterator[Tried]:
    """Draw the seeds, without decoding, by each sampler at each number of steps; ValueError for unknown samplers."""
    model.check_draws()
    check_draws_alone(model.snapshot)
    wanted = {name: model.options(name, {}) for name in samplers}  # refuses misspelt names before anything is drawn
    reference, _, _ = drawn(model, "multistep", max(4 * max(steps), LEAST_REFERENCE), seeds)
    scale = float(np.sqrt(np.mean(np.square(reference, dtype=np.float64))))
    for name, options in wanted.items():
        stochastic = any(options.sampler.get(key) for key in STOCHASTIC)
        for number in steps:
            try:
                x, calls, seconds = drawn(model, name, number, seeds)
            except ValueError as e:
                yield Tried(name, number, why=str(e))
                continue
            off = float(np.sqrt(np.mean(np.square(x.astype(np.float64) - reference)))) / scale
            yield Tried(name, number, calls / len(seeds), seconds / len(seeds), None if stochastic else off)


def drawn(model: Model, sampler: str, steps: int, seeds: Sequence[int]) -> tuple[np.ndarray, int, float]:
    """Latents or voxels [N,C,*S] of seeds, calls of the network for all of them, one seed at a time, and seconds."""
    options = model.options(sampler, {"num_steps": steps}, decode=False, start="noise")
    counted: list[Counted] = []

    def count(net: Denoiser) -> Denoiser:
        counted.append(Counted(net))
        return counted[-1]

    conditions = asker_for(model.net, model.snapshot, options)(options)
    drawer = make_drawer(model.net, model.snapshot, options, model.device, conditions, count)
    counted.clear()  # make_drawer tries the sampler
    start = time.perf_counter()
    arrays = draw_all(drawer, list(seeds), 1)
    seconds = time.perf_counter() - start
    return arrays["latents" if "latents" in arrays else "images"], sum(each.calls for each in counted), seconds


def table(rows: Sequence[Tried]) -> Iterator[str]:
    """The rows as lines of a terminal."""
    yield f"{'sampler':<12}{'steps':>6}{'calls':>7}{'s/volume':>10}  off the exact solution (rms, relative)"
    for row in rows:
        if row.why:
            yield f"{row.sampler:<12}{row.steps:>6}  {row.why}"
            continue
        off = "stochastic: ends elsewhere" if row.error is None else f"{row.error:.2g}"
        yield f"{row.sampler:<12}{row.steps:>6}{row.calls:>7g}{row.seconds:>10.3g}  {off}"
