"""What a snapshot says of noise levels that were tuned on it, for a sampler in a number of steps."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from edm3d.utils.checks import is_whole, listed
from edm3d.utils.names import one_line
from edm3d.utils.plain import from_plain, shown


class TunedGrid(NamedTuple):
    """Levels of a sampler, by its name and those of its arguments that are not its defaults, the grid's own aside.

    sigmas: num_steps of them, falling, and 0. Errors are mean distances of what is drawn from the exact solution,
    relative to its mean size: of the best named grid and of the levels, on the seeds that they were tuned on and on
    held-out ones.
    """

    sampler: str
    settings: dict[str, Any]
    num_steps: int
    sigmas: list[float]
    seeds: list[int]
    held_out: list[int]
    named_error: float
    error: float
    held_out_named_error: float
    held_out_error: float

    def __str__(self) -> str:
        arguments = "".join(f" {key}={value}" for key, value in self.settings.items())
        return one_line(f"{self.sampler} num_steps={self.num_steps}{arguments}")

    @classmethod
    def from_plain(cls, found: Mapping[str, Any], source: object, key: str) -> "TunedGrid":
        """From plain data of a file; ValueError naming it (source) and the key for anything else."""
        known = from_plain(cls, found, source, key)
        if not is_whole(known.num_steps) or known.num_steps < 2 or len(known.sigmas) != known.num_steps + 1:
            raise ValueError(f"{source}: {key}.num_steps is {shown(known.num_steps)}, with {len(known.sigmas)} sigmas; "
                             "wanted 2 or more, and one level more")
        if known.sigmas[-1] != 0 or any(a <= b for a, b in pairwise(known.sigmas)):
            raise ValueError(f"{source}: {key}.sigmas is {shown(known.sigmas)}, wanted levels that fall to 0")
        return known

    def line(self) -> str:
        """It and its errors, for people."""
        return (f"levels tuned for {self}: {self.held_out_error:.2g} off the exact solution (mean, relative) on "
                f"{len(self.held_out)} held-out seeds, the best named grid {self.held_out_named_error:.2g}")


def names_of(grids: tuple[TunedGrid, ...]) -> str:
    """What they are for, in words."""
    return listed(map(str, grids), "; ") if grids else "none"
