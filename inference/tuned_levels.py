"""grid=tuned: the noise levels that a snapshot has for a sampler and a number of steps."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edm3d.formats.tuned_grid import names_of
from edm3d.inference.snapshot import Snapshot
from edm3d.utils.commands import command
from edm3d.utils.config import GIVEN, all_arguments, find_target
from edm3d.utils.schema import Sampling

KEY = "sampling.sampler"
TUNED = "tuned"
LEVELS = ("num_steps", "grid", "sigmas", "sigma_min", "sigma_max", "rho")  # arguments that say levels, or how many


def settings_of(node: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name of a sampler, and its arguments that are not its defaults, those of levels aside."""
    target = find_target(node["_target_"], KEY)
    parameters = inspect.signature(target).parameters
    return target.__name__, {name: value for name, value in all_arguments(node).items()
                             if name not in (*LEVELS, *GIVEN[KEY]) and value != parameters[name].default}


def with_tuned_levels(options: Sampling, snapshot: Snapshot) -> Sampling:
    """Options whose sampler has the levels of the snapshot as its sigmas, where its grid is tuned.

    ValueError where the snapshot has none for it.
    """
    node = options.sampler
    if node.get("grid") != TUNED or node.get("sigmas") is not None:
        return options
    sampler, settings = settings_of(node)
    steps = all_arguments(node).get("num_steps")
    for grid in snapshot.grids:
        if (grid.sampler, grid.settings, grid.num_steps) == (sampler, settings, steps):
            return replace(options, sampler={**node, "sigmas": list(grid.sigmas)})
    said = " ".join([sampler, f"num_steps={steps}", *(f"{key}={value}" for key, value in settings.items())])
    tune = command("data", "tune-grid", str(snapshot.path), "--steps", str(steps), "--dest", "TUNED.pt")
    raise ValueError(f"{KEY}.grid=tuned: {snapshot.path} has no levels for {said} (it has them for: "
                     f"{names_of(snapshot.grids)}); {tune} makes a copy that has some, --sampler says of which sampler")
