"""Checks of arguments, as ValueErrors that name key, got and wanted; and names in a line."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral


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


def check_count(least: int, values: Mapping[str, int | Sequence[int]]) -> None:
    """ValueError naming the first value, or list, that has anything but whole numbers from `least` up, or nothing."""
    for key, value in values.items():
        several = isinstance(value, Sequence) and not isinstance(value, str)
        numbers = value if several else [value]
        if not numbers or not all(is_whole(number) and number >= least for number in numbers):
            what = "one or more whole numbers, each" if several else "a whole number"
            raise ValueError(f"{key}={value!r}: wanted {what} of {least} or more")


def is_whole(value: object) -> bool:
    """Whether an argument is a whole number, which True is not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names in alphabetical order, the first few."""
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
