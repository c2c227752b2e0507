"""Checks of arguments, as ValueErrors that name key, got and wanted; and names in a line."""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real

import psutil

from edm3d.utils.names import one_line

MOST = 10  # names that a message lists
MOST_GROWTH = 1100  # of a byte that is unpacked: deflate can make 1032 of one


def check_choice(key: str, value: object, choices: Iterable[object]) -> None:
    """ValueError unless an argument is one of its choices, which are text or whole numbers: 3.0 and True are none."""
    choices = list(choices)
    if isinstance(value, (bool, float)) or value not in choices:
        raise ValueError(f"{key}={value!r}: wanted one of {', '.join(map(str, choices))}")


def check_positive(values: Mapping[str, float]) -> None:
    """ValueError naming the first value that is not above 0."""
    for key, value in values.items():
        if not value > 0:
            raise ValueError(f"{key}={value}: wanted more than 0")


def check_least(least: float, values: Mapping[str, float]) -> None:
    """ValueError naming the first value that is below `least`."""
    for key, value in values.items():
        if not value >= least:
            raise ValueError(f"{key}={value}: wanted a number of {least} or more")


def check_finite(key: str, value: float, *, least: float = -math.inf, above: float = -math.inf) -> None:
    """ValueError naming a value that is no finite number, or out of its range."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{key}={value!r}: wanted a finite number")
    if value < least or not value > above:
        wanted = f"{least:g} or more" if value < least else f"more than {above:g}"
        raise ValueError(f"{key}={value!r}: wanted {wanted}")


def check_count(least: int, values: Mapping[str, int | Sequence[int]]) -> None:
    """ValueError naming the first value, or list, that has anything but whole numbers from `least` up, or nothing."""
    for key, value in values.items():
        several = isinstance(value, Sequence) and not isinstance(value, str)
        numbers = value if several else [value]
        if not numbers or not all(is_whole(number) and number >= least for number in numbers):
            what = "one or more whole numbers, each" if several else "a whole number"
            raise ValueError(f"{key}={value!r}: wanted {what} of {least} or more")


def check_memory(what: str, nbytes: int) -> None:
    """ValueError for more bytes than there is memory left."""
    if nbytes > (free := psutil.virtual_memory().available):
        raise ValueError(f"{what} takes {nbytes:,} bytes of memory, and {free:,} are free")


def is_whole(value: object) -> bool:
    """Whether an argument is a whole number, which True is not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def listed(names: Iterable[object], between: str = ", ") -> str:
    """Names for a message, in their order: ten at most, and how many more there are, `a, b, ... and 70 more`.

    What no line of text should hold is escaped, as they may come out of files.
    """
    names = [str(name) for name in names]
    more = [f"... and {len(names) - MOST} more"] if len(names) > MOST else []
    return between.join([*map(one_line, names[:MOST]), *more])


def listed_apart(one: Sequence[str], other: Sequence[str]) -> tuple[str, str]:
    """Two unlike lists of names for a message, long ones from the place on where they differ."""
    same = next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
    start = same if max(len(one), len(other)) > MOST else 0
    first, second = ("..., " * bool(start) + (listed(names[start:]) or "none") for names in (one, other))
    return first, second
