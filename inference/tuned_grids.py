"""Noise levels tuned on a snapshot for a sampler of few steps: found, stored in a copy of it, and taken from it."""

import inspect
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from edm3d.formats.seeds import requested_seeds
from edm3d.formats.tuned_grid import TunedGrid
from edm3d.inference.asking_scans import asker_for
from edm3d.inference.drawing import Drawer, make_drawer, solve
from edm3d.inference.model import Model
from edm3d.inference.refiner import check_draws_alone
from edm3d.inference.snapshot import Snapshot, read_content
from edm3d.inference.solvers import LEAST_REFERENCE, STOCHASTIC
from edm3d.inference.tuned_levels import settings_of
from edm3d.samplers.denoiser import Wrapper
from edm3d.samplers.grids import make_grid
from edm3d.samplers.tuning import relative_error, tune
from edm3d.utils import checkpoint, locks
from edm3d.utils.config import find_target
from edm3d.utils.files import check_dest, check_replaced
from edm3d.utils.runs import find_file

NAMED = ("polynomial", "exponential", "focused")  # grids that a search may start from


class TuneOptions(NamedTuple):
    """Of which sampler, in how many steps; on which seeds, and on which the result is measured again."""

    sampler: str = "ipndm"
    steps: Sequence[int] = (8,)
    seeds: str = "0-7"
    held_out: str = "8-23"
    batch_size: int = 8
    rounds: int = 20
    overwrite: bool = False


def tune_snapshot(name: str, dest: Path, options: TuneOptions, *, run_root: str = "results", **how: Any
                  ) -> Iterator[TunedGrid]:
    """Write DEST, a copy of a snapshot with levels for each number of steps beside those that it has; give each.

    how: options of Model. ValueError where levels cannot be tuned, or DEST holds anything else.
    """
    path = find_file(name, "network-snapshot", Path(run_root), "SNAPSHOT")
    check_dest(dest, ".pt", {"SNAPSHOT": path})
    with locks.output(dest):
        check_replaced(dest, options.overwrite, Snapshot.read)
        snapshot = Snapshot.read(path)
        made: list[TunedGrid] = []
        for each in tuned_grids(Model(snapshot, run_root=run_root, **how), options):
            made.append(each)
            yield each
        kept = [old for old in snapshot.grids if all(place(old) != place(new) for new in made)]
        content, _ = read_content(path)
        checkpoint.save(dest, "snapshot", {**content, "grids": [grid._asdict() for grid in (*kept, *made)]})


def place(grid: TunedGrid) -> tuple:
    """What levels are for."""
    return grid.sampler, grid.settings, grid.num_steps


def tuned_grids(model: Model, options: TuneOptions) -> Iterator[TunedGrid]:
    """Levels for each number of steps of a sampler."""
    model.check_draws()
    check_draws_alone(model.snapshot)
    seeds, held_out = requested_seeds(options.seeds), requested_seeds(options.held_out)
    if both := sorted(set(seeds) & set(held_out)):
        raise ValueError(f"--held-out {options.held_out}: seed {both[0]} is one of --seeds {options.seeds}; what "
                         "levels were tuned on says nothing of others")
    if Wrapper(model.net).noise_table is not None:
        raise ValueError(f"{model.snapshot.path}: the network knows the noise levels of its table alone, so there is "
                         "nothing to tune; choose a grid by its name")
    exact = drawer_of(model, "multistep", LEAST_REFERENCE)
    ends = [ends_of(exact, some, options.batch_size) for some in (seeds, held_out)]
    for steps in options.steps:
        yield tuned(drawer_of(model, options.sampler, steps), named_sampler(model, options.sampler, steps), steps, ends,
                    (seeds, held_out), options)


def named_sampler(model: Model, sampler: str, steps: int) -> tuple[str, dict[str, Any]]:
    """Name and settings of a shipped sampler; ValueError for one that has no levels to tune."""
    node = sampler_node(model, sampler, steps)
    if any(node.get(key) for key in STOCHASTIC):
        raise ValueError(f"--sampler {sampler}: adds noise, and ends elsewhere every time; wanted one of an ODE")
    if "sigmas" not in inspect.signature(find_target(node["_target_"], "sampling.sampler")).parameters:
        raise ValueError(f"--sampler {sampler}: takes no levels of one's own (sigmas); wanted another")
    return settings_of(node)


def sampler_node(model: Model, sampler: str, steps: int) -> dict[str, Any]:
    """A shipped sampler with all its arguments."""
    return model.options(sampler, {"num_steps": steps}, start="noise").sampler


def drawer_of(model: Model, sampler: str, steps: int) -> Drawer:
    """What draws by a sampler, not decoded."""
    options = model.options(sampler, {"num_steps": steps}, decode=False, start="noise")
    return make_drawer(model.net, model.snapshot, options, model.device,
                       asker_for(model.net, model.snapshot, options)(options))


def ends_of(drawer: Drawer, seeds: Sequence[int], batch_size: int) -> torch.Tensor:
    """What a sampler ends at for seeds, in the units that the network draws in, [N,C,*s] on the CPU."""
    return torch.cat([solve(drawer, seeds[i:i + batch_size]).x.cpu() for i in range(0, len(seeds), batch_size)])


def tuned(drawer: Drawer, sampler: tuple[str, dict[str, Any]], steps: int, exact: Sequence[torch.Tensor],
          seeds: Sequence[Sequence[int]], options: TuneOptions) -> TunedGrid:
    """Levels of a sampler in a number of steps; exact: ends of the seeds and the held-out seeds."""
    def run(sigmas: torch.Tensor, some: Sequence[int]) -> torch.Tensor:
        return ends_of(drawer._replace(sampler=partial(drawer.sampler, sigmas=sigmas)), some, options.batch_size)

    net = drawer.denoiser(())
    starts = [make_grid(net, grid=name, num_steps=steps) for name in NAMED]
    found = tune(partial(run, some=seeds[0]), exact[0], starts, options.rounds)
    named = min(relative_error(run(start, seeds[1]), exact[1]) for start in starts)
    return TunedGrid(*sampler, steps, found.sigmas.tolist(), list(seeds[0]), list(seeds[1]), found.start_error,
                     found.error, named, relative_error(run(found.sigmas, seeds[1]), exact[1]))
