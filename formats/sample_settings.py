"""The settings of samples that reading them again asks for."""

from typing import NamedTuple


class AskedRows(NamedTuple):
    """The file that samples were asked for by, row by row, and the ids of its rows, which seeds go through in turn."""

    source: str
    hash: str
    ids: list[str]


class SweptAttribute(NamedTuple):
    """The attribute that goes through values for every seed; number n is of seed n // len(values).

    column: its number among the attributes.
    """

    name: str
    unit: str
    values: list[float]
    column: int


class Settings(NamedTuple):
    """Of the settings of samples those that reading them again asks for, with what those are of files without them."""

    precision: str = "fp32"
    first_stage: str | None = None
    tile: tuple[int, ...] | None = None
    tile_overlap: float = 0.25
    tile_mode: str = "blend"
    conditions: AskedRows | None = None
    sweep: SweptAttribute | None = None
