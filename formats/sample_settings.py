"""The settings of samples: by which they are known again, and those that reading them again asks for."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


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


class PairedClasses(NamedTuple):
    """The classes of which every seed makes a sample each, from one noise; number n is of seed n // len(classes).

    numbers: of the classes; column: number of the attribute that says the class too, None where none does; values: of
    this attribute, by class.
    """

    classes: list[str]
    numbers: list[int]
    column: int | None = None
    values: list[float] | None = None


class Labelling(NamedTuple):
    """The segmenter that gave samples their label maps: its snapshot and the hash of that.

    source: sha256 of the samples file that it was run on; settings: by which it was.
    """

    network: str
    hash: str
    source: str
    settings: dict[str, Any]


class QualityCheck(NamedTuple):
    """By what samples were drawn again: ranges [lo, hi] of numbers by name, and how many draws a seed had at most.

    source and hash: of the volumes that the ranges are of, widened as quantile and margin say; None: of what the
    snapshot knows.
    """

    attempts: int
    quantile: float
    margin: float
    ranges: dict[str, list[float]]
    source: str | None = None
    hash: str | None = None


class Settings(NamedTuple):
    """Of the settings of samples those that reading them again asks for, with what those are of files without them."""

    precision: str = "fp32"
    first_stage: str | None = None
    tile: tuple[int, ...] | None = None
    tile_overlap: float = 0.25
    tile_mode: str = "blend"
    conditions: AskedRows | None = None
    sweep: SweptAttribute | None = None
    samples_per_condition: int = 1
    pairs: PairedClasses | None = None
    labels: Labelling | None = None
    quality: QualityCheck | None = None
    noise: str = "generators"


def noise_key(seed: int, draw: int, attempt: int = 0) -> int | str:
    """What the noise of an attempt at a draw of a seed follows from; that of the first is the seed's own, however many
    there are.
    """
    key = f"{seed}.draw{draw}" if draw else seed
    return f"{key}.attempt{attempt}" if attempt else key


def compared(sampling: Mapping[str, Any], class_names: Sequence[str] = ()) -> dict[str, Any]:
    """The settings by which samples are known again, however they were typed.

    Where the file lay that asked, that was measured, or that says what is usual, is left out, which its hash stands
    for, and so it is of a segmenter; classes by number are the names of these.
    """
    found = dict(sampling)
    for key, place in (("conditions", "source"), ("labels", "network"), ("posterior", "source"), ("quality", "source")):
        if isinstance(known := found.get(key), Mapping):
            found[key] = {name: value for name, value in known.items() if name != place}
    if isinstance(classes := found.get("classes"), list):
        numbers = {str(number): name for number, name in enumerate(class_names) if str(number) not in class_names}
        found["classes"] = [numbers.get(name, name) if isinstance(name, str) else name for name in classes]
    return found
