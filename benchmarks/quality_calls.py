"""Claim: 8 calls of the network draw as well as Heun's method does in 35.

Run from the top of the checkout: python -m benchmarks.quality_calls --network SNAPSHOT --latents LATENTS.h5
Without a network it takes mixtures of Gaussians, whose perfect denoiser is known, and says errors alone.

One JSON line for each. `error` is the mean distance from the exact solution of the same noise (order 4 in 72 calls; of
mixtures in 1025), relative to its mean size; `frechet` the Frechet distance to as many latents drawn from the
posteriors of real items, in their first principal components, found on others: the mean over sets of seeds. Levels are
tuned (samplers/tuning.py) on seeds that are not drawn here.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.common import json_line
from benchmarks.solver_error import Problem, mixtures
from edm3d.formats.facts import LatentScaling
from edm3d.inference.batch import collate
from edm3d.inference.conditions import Conditions
from edm3d.inference.snapshot import Snapshot
from edm3d.inference.tuned_grids import NAMED
from edm3d.metrics.frechet import frechet_distance
from edm3d.networks.conditioning import Condition
from edm3d.samplers import ImageGenerators, edm_sampler, make_grid, multistep_sampler
from edm3d.samplers.tuning import relative_error, tune
from edm3d.training.batch_transforms import DrawLatents
from edm3d.training.datasets.latents import LatentsDataset

YARDSTICK, YARDSTICK_CALLS = "heun", 35
EXACT_CALLS, EXACT_OF_MIXTURES = 72, 1025
COMPONENTS = 32  # of the latents that the Frechet distance is taken of
TUNE_FROM = 10_000  # seed


class Method(NamedTuple):
    """A sampler with the grid that it comes with; steps it has for calls of the network."""

    sampler: Callable[..., torch.Tensor]
    grid: str
    steps: Callable[[int], int] = int


METHODS = {
    "heun": Method(edm_sampler, "polynomial", lambda calls: (calls + 1) // 2),
    **{f"multistep {order}": Method(partial(multistep_sampler, order=order), "exponential") for order in (2, 3, 4)},
    **{f"ipndm {order}": Method(partial(multistep_sampler, order=order, coefficients="fixed"), "focused")
       for order in (3, 4)},
}


def run(problem: Problem, method: Method, sigmas: torch.Tensor, batch: int = 64) -> torch.Tensor:
    """Ends [N,...] by a method on levels."""
    return torch.cat([method.sampler(problem.net, x, condition=rows(problem, i * batch, len(x)), sigmas=sigmas).float()
                      for i, x in enumerate(problem.latents.split(batch))])


def rows(problem: Problem, start: int, count: int) -> Condition | None:
    """What some images of a problem are told."""
    if problem.condition is None:
        return None
    return Condition({name: table[start:start + count] for name, table in problem.condition.items()})


def exact(problem: Problem, calls: int) -> torch.Tensor:
    """Ends that all solvers approach."""
    return run(problem, METHODS["multistep 4"], make_grid(problem.net, grid="exponential", num_steps=calls))


def default_levels(problem: Problem, method: Method, calls: int) -> torch.Tensor:
    """Those that a method comes with."""
    return make_grid(problem.net, grid=method.grid, num_steps=method.steps(calls))


def tuned_levels(problem: Problem, method: Method, calls: int, ends: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Levels tuned on a problem, and the runs that it took."""
    starts = [make_grid(problem.net, grid=grid, num_steps=method.steps(calls)) for grid in NAMED]
    found = tune(partial(run, problem, method), ends, starts)
    return found.sigmas, found.runs


def trained(snapshot: Snapshot, seeds: Sequence[int]) -> Problem:
    """A network at seeds, told nothing or the classes in turn."""
    net = snapshot.build()
    told = Conditions(net.takes, {}, snapshot.shape[1:])
    return Problem(f"{snapshot.path.name}", net, ImageGenerators(list(seeds), purpose="sample").randn(snapshot.shape),
                   told(list(seeds)))


# ---- real latents ----


class RealDraws:
    """Draws from the posteriors of the items of a latents.h5, as networks see them."""

    def __init__(self, path: Path, scaling: LatentScaling):
        self.data = LatentsDataset(str(path))
        self.transform = DrawLatents(scaling.channel_mean, scaling.channel_std, scaling.limits, scaling.scaling,
                                     sigma_data=scaling.sigma_data)

    def of(self, items: Sequence[int], seeds: Sequence[int], purpose: str = "quality_calls") -> torch.Tensor:
        """Latents [N,C,*s] of some items, each by noise of its own seed."""
        return self.transform(collate([self.data[i] for i in items]), ImageGenerators(list(seeds), purpose=purpose))[0]

    def in_turn(self, count: int, seed: int) -> torch.Tensor:
        """So many of all items in turn."""
        seeds = range(seed, seed + count)
        return self.of([i % len(self.data) for i in seeds], seeds)


def flat(latents: torch.Tensor) -> np.ndarray:
    """Latents as rows [N,d]."""
    return latents.flatten(1).numpy()


class Components:
    """The first principal components of latents [N,d], and Frechet distances in them."""

    def __init__(self, latents: np.ndarray, number: int = COMPONENTS):
        self.mean = latents.mean(0)
        self.axes = np.linalg.svd(latents - self.mean, full_matrices=False)[2][:number].T

    def distance(self, a: np.ndarray, b: np.ndarray) -> float:
        """Of two sets of latents."""
        return frechet_distance(*((each - self.mean) @ self.axes for each in (a, b)))


# ---- lines ----


def errors_of_mixture(problem: Problem, calls: Sequence[int], methods: Sequence[str], tuning: int) -> str:
    """The JSON line of a mixture: levels are tuned on the first latents, errors are of the others."""
    ends = exact(problem, EXACT_OF_MIXTURES)
    some, others = (problem._replace(latents=x) for x in (problem.latents[:tuning], problem.latents[tuning:]))
    found: dict[str, dict[int, float]] = {}
    for name in methods:
        method = METHODS[name]
        for number in calls:
            levels = {name: default_levels(problem, method, number),
                      f"{name}, tuned": tuned_levels(some, method, number, ends[:tuning])[0]}
            for key, sigmas in levels.items():
                error = relative_error(run(others, method, sigmas), ends[tuning:])
                found.setdefault(key, {})[number] = float(f"{error:.2e}")
    return json_line(f"error after few calls, {problem.name}", error=found)


def quality(snapshot: Snapshot, path: Path, options: argparse.Namespace) -> str:
    """The JSON line of a network: errors, Frechet distances and seconds that tuning took, by method and calls."""
    n, sets, draws = options.samples, options.sets, RealDraws(path, snapshot.first_stage.scaling)
    components = Components(flat(draws.in_turn(4 * n, seed=10 * n)))
    real = [flat(draws.in_turn(n, seed=i * n)) for i in range(sets + 1)]
    floor = float(np.mean([components.distance(real[i], real[i + 1]) for i in range(sets)]))
    problems = [trained(snapshot, range(i * n, (i + 1) * n)) for i in range(sets)]
    checked = [problem._replace(latents=problem.latents[:options.checked]) for problem in problems]
    ends = [exact(problem, EXACT_CALLS) for problem in checked]
    own = trained(snapshot, range(TUNE_FROM, TUNE_FROM + options.tuning))
    own_ends = exact(own, EXACT_CALLS)

    def measured(method: Method, sigmas: torch.Tensor) -> dict[str, float]:
        drawn = [run(problem, method, sigmas) for problem in problems]
        error = np.mean([relative_error(x[:options.checked], end) for x, end in zip(drawn, ends, strict=True)])
        distance = [components.distance(real[i], flat(x)) for i, x in enumerate(drawn)]
        return {"error": float(f"{error:.2e}"), "frechet": round(float(np.mean(distance)), 4)}

    yardstick = METHODS[YARDSTICK]
    found = {f"{YARDSTICK} {YARDSTICK_CALLS}": measured(yardstick, default_levels(own, yardstick, YARDSTICK_CALLS))}
    seconds = {}
    for name in options.methods:
        for calls in options.calls:
            found[f"{name}, {calls}"] = measured(METHODS[name], default_levels(own, METHODS[name], calls))
            if calls in options.tuned_calls:
                start = time.process_time()
                sigmas, _ = tuned_levels(own, METHODS[name], calls, own_ends)
                seconds[f"{name}, {calls}"] = round(time.process_time() - start, 1)
                found[f"{name}, {calls}, tuned"] = measured(METHODS[name], sigmas)
    limit = found[f"{YARDSTICK} {YARDSTICK_CALLS}"]["frechet"]
    eight = {name: row["frechet"] for name, row in found.items() if ", 8" in name}
    best = min(eight, key=eight.get, default=None)
    return json_line("Frechet distance of latents after 8 calls over that of Heun's after 35", best=best,
                     ratio=best and round(eight[best] / limit, 3), limit=1.0, floor=round(floor, 4), found=found,
                     tuning_cpu_seconds=seconds, samples=n, sets=sets, network=snapshot.path.name,
                     kimg=snapshot.nimg / 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", type=Path, help="a diffusion snapshot on latents")
    parser.add_argument("--latents", type=Path, help="the file that it was trained on")
    parser.add_argument("--calls", type=int, nargs="+", default=[6, 8, 10, 12, 18])
    parser.add_argument("--tuned-calls", type=int, nargs="*", default=[6, 8, 10, 12, 18])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--samples", type=int, default=256, help="in a set")
    parser.add_argument("--sets", type=int, default=2)
    parser.add_argument("--checked", type=int, default=64, help="of them, those whose errors are measured")
    parser.add_argument("--tuning", type=int, default=8, help="images that levels are tuned on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.network is None:
        for problem in mixtures():
            print(errors_of_mixture(problem, options.calls, options.methods, max(options.tuning, 16)), flush=True)
    else:
        print(quality(Snapshot.read(options.network, "diffusion"), options.latents, options))


if __name__ == "__main__":
    main()
