"""Checks of arguments, as ValueErrors that name key, got and wanted; and names in a line."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral


def check_choice(key: str, value: object, choices: Iterable[object]) -> None:
    """ValueError unless an argument is one of its choices."""
    choices = list(choices)
    if value not in choices:
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


def check_count(least: int, values: Mapping[str, int | Sequence[int]]) -> None:
    """ValueError naming the first value, or list, that has anything but whole numbers from `least` up, or nothing."""
    for key, value in values.items():
        numbers = value if isinstance(value, Sequence) else [value]
        if not numbers or not all(isinstance(number, Integral) and number >= least for number in numbers):
            what = "one or more whole numbers, each" if isinstance(value, Sequence) else "a whole number"
            raise ValueError(f"{key}={value}: wanted {what} of {least} or more")


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names in alphabetical order, the first few."""
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
