"""Claim: at 35 denoiser calls our best solver is ten times as exact as the best peer, at 17 about as the peer at 35.

Run from the top of the checkout: python -m benchmarks.solver_error [--network SNAPSHOT ...]
What it found stands in benchmarks/solver_error.md.
One JSON line per problem: mixtures of Gaussians, whose perfect denoiser is known, then trained networks. The peers are
Heun's method on EDM's grid and the EDM schedulers of diffusers (pip install diffusers), each with its own defaults.

The error of a solver is the median over the images of |x - x*| / |x*|; x* is the end that all solvers approach as
their steps shrink: the ODE solved from sigma 80 to 0.002, where the denoised image is taken.
"""

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial
from math import inf
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.common import json_line
from edm3d.inference.conditions import Conditions
from edm3d.inference.snapshot import Snapshot
from edm3d.networks.conditioning import Condition
from edm3d.samplers import ImageGenerators, edm_sampler, multistep_sampler

CALLS = (9, 17, 35, 65, 129)
FEW, MANY = 17, 35  # the claim's
CONVERGED_CALLS = 513
SIGMA_MIN, SIGMA_MAX, SIGMA_DATA = 0.002, 80, 0.5
NETWORK_IMAGES = 8
ORDER_3 = "EDMDPMSolverMultistepScheduler, solver_order 3"
F64 = torch.float64

Solver = Callable[["Problem", int], torch.Tensor]  # x after so many calls


class Mixture:
    """The perfect denoiser of a mixture of Gaussians with diagonal covariances.

    means and stds [K,D], weights [K]; float64, every noise level.
    """

    sigma_min, sigma_max, noise_table = 0, inf, None

    def __init__(self, means: torch.Tensor, stds: torch.Tensor, weights: torch.Tensor):
        self.means, self.variances, self.log_weights = means, stds ** 2, weights.log()

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: None = None) -> torch.Tensor:
        total = self.variances + sigma ** 2
        offset = x[:, None] - self.means
        log_share = self.log_weights - (offset ** 2 / total + total.log()).sum(2) / 2
        ends = self.means + self.variances / total * offset
        return (log_share.softmax(1)[..., None] * ends).sum(1)

    def round_sigma(self, sigma: torch.Tensor) -> torch.Tensor:
        """Nearest noise level it knows: any."""
        return sigma


class Problem(NamedTuple):
    """A denoiser and where to start it: unit normal latents [N,C,*S] (mixtures: [N,D])."""

    name: str
    net: Callable[..., torch.Tensor]
    latents: torch.Tensor
    condition: Condition | None = None


def mixtures() -> list[Problem]:
    """Eight alike in 64 dimensions; the same, broad and far apart; and five of unlike shapes and weights in 16."""
    generator = torch.Generator().manual_seed(0)
    randn = partial(torch.randn, generator=generator, dtype=F64)
    even = torch.full((8,), 1 / 8, dtype=F64)
    uneven_stds = 0.25 * (0.7 * randn(5, 16)).exp()
    problems = [("8 Gaussians, 64 dimensions, means 0.5, std 0.2", 0.5 * randn(8, 64), torch.tensor(0.2), even),
                ("8 Gaussians, 64 dimensions, means 1, std 0.5", randn(8, 64), torch.tensor(0.5), even),
                ("5 Gaussians, 16 dimensions, uneven", 0.6 * randn(5, 16), uneven_stds, randn(5).softmax(0))]
    return [Problem(name, Mixture(means, stds.to(F64).expand_as(means), weights), randn(64, means.shape[1]))
            for name, means, stds, weights in problems]


def trained(path: Path) -> Problem:
    """A network out of a snapshot, at the first seeds, the classes in turn; ValueError when its noise is discrete."""
    snapshot = Snapshot.read(path, "diffusion")
    net = snapshot.build()
    if net.noise_table is not None or net.sigma_min > SIGMA_MIN or net.sigma_max < SIGMA_MAX:
        raise ValueError(f"--network {path}: wanted a network that knows every noise level from {SIGMA_MIN} to "
                         f"{SIGMA_MAX}, as the peers ask")
    latents = ImageGenerators(range(NETWORK_IMAGES), purpose="sample").randn(snapshot.shape)
    told = Conditions(net.takes, {}, snapshot.shape[1:])
    return Problem(f"trained network {path.parent.name}/{path.name}", net, latents, told(range(NETWORK_IMAGES)))


def multistep(order: int, grid: str, problem: Problem, calls: int) -> torch.Tensor:
    """Ours: one call per step."""
    return multistep_sampler(problem.net, problem.latents, condition=problem.condition, order=order, num_steps=calls,
                             sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, grid=grid)


def heun(problem: Problem, calls: int) -> torch.Tensor:
    """The EDM paper's: two calls per step, one for the last."""
    return edm_sampler(problem.net, problem.latents, condition=problem.condition, num_steps=(calls + 1) // 2,
                       sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX)


@torch.no_grad()
def diffusers_run(make_scheduler: Callable, problem: Problem, calls: int) -> torch.Tensor:
    """A scheduler of diffusers; it is given the raw network F, of D = c_skip x + c_out F, and undoes that itself."""
    scheduler = make_scheduler()
    scheduler.set_timesteps(calls)
    x = problem.latents.to(F64) * scheduler.sigmas[0]
    for sigma, t in zip(scheduler.sigmas.tolist(), scheduler.timesteps):
        scheduler.scale_model_input(x, t)
        denoised = problem.net(x, torch.tensor(sigma, dtype=F64), problem.condition)
        c_skip = SIGMA_DATA ** 2 / (sigma ** 2 + SIGMA_DATA ** 2)
        c_out = sigma * SIGMA_DATA / (sigma ** 2 + SIGMA_DATA ** 2) ** 0.5
        x = scheduler.step((denoised - c_skip * x) / c_out, t, x).prev_sample
    return x


def our_solvers() -> dict[str, Solver]:
    """Multistep of every order, on the exponential grid, the focused one and EDM's."""
    return {f"multistep {order}, {grid}": partial(multistep, order, grid)
            for grid in ("exponential", "focused", "polynomial") for order in (2, 3, 4)}


def peer_solvers() -> dict[str, Solver]:
    """Heun's method on EDM's grid, and the EDM schedulers of diffusers: order 2 is the multistep one's own choice."""
    from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler  # not needed by the rest of this file
    levels = {"sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX, "sigma_data": SIGMA_DATA}
    schedulers = {"EDMEulerScheduler": partial(EDMEulerScheduler, **levels),
                  "EDMDPMSolverMultistepScheduler": partial(EDMDPMSolverMultistepScheduler, **levels),
                  ORDER_3: partial(EDMDPMSolverMultistepScheduler, solver_order=3, **levels)}
    return {"Heun": heun, **{name: partial(diffusers_run, make) for name, make in schedulers.items()}}


def median_error(x: torch.Tensor, end: torch.Tensor) -> float:
    """Median over the images of the distance to the end, relative to the end's own norm."""
    x, end = x.to(F64).flatten(1), end.flatten(1)
    return float(((x - end).norm(dim=1) / end.norm(dim=1)).median())


def errors(problem: Problem, solvers: dict[str, Solver], end: torch.Tensor) -> dict[str, dict[int, float]]:
    """Error of every solver after every number of calls, to three digits."""
    return {name: {calls: float(f"{median_error(solve(problem, calls), end):.2e}") for calls in CALLS}
            for name, solve in solvers.items()}


def measure(problem: Problem) -> str:
    """The JSON line of one problem.

    ratio_few: our best at 17 calls over the best peer at 35, 1 or less wanted; ratio_many: the best peer over our
    best, both at 35, 10 or more wanted. Once against the peers as they come, once with solver_order 3 among them.
    """
    end = multistep(4, "exponential", problem, CONVERGED_CALLS)
    own_error = median_error(multistep(3, "exponential", problem, CONVERGED_CALLS), end)
    ours, peers = errors(problem, our_solvers(), end), errors(problem, peer_solvers(), end)
    few, many = (min(error[calls] for error in ours.values()) for calls in (FEW, MANY))
    any_peer = min(error[MANY] for error in peers.values())
    peer = min(error[MANY] for name, error in peers.items() if name != ORDER_3)
    return json_line(f"solver error, {problem.name}", ours=ours, peers=peers, end_known_to=float(f"{own_error:.1e}"),
                     ratio_few=round(few / peer, 2), ratio_many=round(peer / many, 1),
                     ratio_few_any_peer=round(few / any_peer, 2), ratio_many_any_peer=round(any_peer / many, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", type=Path, nargs="*", default=[], help="diffusion snapshots")
    options = parser.parse_args()
    if importlib.util.find_spec("diffusers") is None:
        parser.error("diffusers is not installed, so there is no peer to compare with: pip install diffusers")
    torch.set_num_threads(1)
    for problem in [*mixtures(), *map(trained, options.network)]:
        print(measure(problem), flush=True)


if __name__ == "__main__":
    main()
