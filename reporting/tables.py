"""Cells, and lines of cells, of tables: the same on the terminal and on the page."""

from collections.abc import Sequence

import numpy as np


def number(value: float | None, digits: int = 3) -> str:
    """A number of a table, a dash when there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def finite(value: float) -> float | int | None:
    """A number as report.json holds it: null where there is none."""
    return None if not np.isfinite(value) else int(value) if isinstance(value, np.integer) else float(value)


def p_value(value: float | None) -> str:
    """A p value, a dash when there is no test."""
    return "-" if value is None else "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def percent(share: float | None) -> str:
    """A share as a percentage."""
    return "-" if share is None else f"{100 * share:.1f} %"


def with_ends(row: dict, key: str = "value", digits: int = 3) -> str:
    """A number of a row, by its key, with the interval that stands beside it: KEY_low, or low where it has none."""
    if row.get(key) is None:
        return "-"
    low, high = (row.get(f"{key}_{end}", row.get(end)) for end in ("low", "high"))
    ends = "" if low is None else f" [{number(low, digits)}, {number(high, digits)}]"
    return number(row[key], digits) + ends


def plus_minus(row: dict, key: str) -> str:
    """Mean and standard deviation of one set of a row, with about three digits."""
    mean, std = row[f"{key}_mean"], row[f"{key}_std"]
    if mean is None:
        return "-"
    size = max(abs(mean), std)
    digits = int(np.clip(2 - np.floor(np.log10(size)), 0, 4)) if size else 0
    return f"{mean:.{digits}f} ± {std:.{digits}f}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table as text, the head underlined."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
             for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
