"""AskedAttributes that are asked for: by name, in the units of the data, some of them missing or swept."""

import re
import unicodedata
from collections.abc import Container, Mapping, Sequence
from math import isfinite, nan
from typing import Any, NamedTuple

import numpy as np

from edm3d.formats.asked import AskedColumn
from edm3d.formats.facts import Facts
from edm3d.formats.sample_settings import SweptAttribute
from edm3d.inference.conditions import Geometry
from edm3d.networks.conditioning import Part
from edm3d.utils.checks import is_whole, listed
from edm3d.utils.config import no_such
from edm3d.utils.names import one_line
from edm3d.utils.plain import shown

KEY = "sampling.attributes"
DROPOUT, GAPS = (f"training.network.model.attribute_{name}=0.1" for name in ("dropout", "gaps"))
NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*)", re.DOTALL | re.ASCII)
SAME_LETTERS = str.maketrans("L\u00b5", "l\u03bc")  # of a litre, and of micro
MM = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "um": 1e-3, "\u03bcm": 1e-3, "": 1.0}
SPACING, EXTENT = "spacing", "extent"
SIZES = {f"{kind}_{name}": (kind, axis) for kind in (SPACING, EXTENT) for axis, names in enumerate(("x0", "y1", "z2"))
         for name in names}
LEAST_MM, MOST_MM = 1e-6, 1e6
ROUNDING = 1e-3  # by which an extent may exceed its voxels
MOST_VALUES = 1000  # of a sweep
FARTHEST = 1e6  # deviations from the mean of the training, of which networks still draw numbers
FLOAT_MAX = float(np.finfo(np.float32).max)


class AskedAttributes(NamedTuple):
    """The attributes that a network takes; the figures are of its training, None where they are not known.

    never: numbers of those that no training item has, of which no value can be asked.
    """

    part: Part
    names: tuple[str, ...]
    units: tuple[str, ...]
    lo: Sequence[float] | None
    hi: Sequence[float] | None
    missing: Sequence[int]
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    never: Sequence[int] = ()

    @classmethod
    def of(cls, part: Part, facts: Facts) -> "AskedAttributes":
        """From what is known of the data of a network."""
        names, known = facts.attribute_names or (), facts.attribute_statistics
        units = facts.attribute_units or ("",) * len(names)
        return cls(part, names, units, known and known.lo, known and known.hi,
                   known.missing if known else [0] * len(names), known and known.mean, known and known.std,
                   known.never() if known else ())

    def number(self, name: str, key: str, unit: str | None = None) -> int:
        """Which one a name means, with its unit in brackets or by itself; ValueError, begun by `key`, for none.

        Units must be those of the data.
        """
        if name not in self.names and (found := re.fullmatch(r"(.*?)\s*\[(.*)\]", name, re.DOTALL)):
            name, unit = found.groups()
        if name not in self.names:
            raise ValueError(f"{key}: " + (no_such("attribute", name, self.names) if self.names else
                                           "the snapshot names no attributes, so that none can be asked for"))
        number = self.names.index(name)
        if unit is not None:
            self.check_unit(number, unit, key)
        return number

    def check_unit(self, number: int, unit: str, key: str) -> None:
        """ValueError unless a unit is that of the data."""
        if same_unit(unit) != same_unit(self.units[number]):
            raise ValueError(f"{key}: is in {one_line(unit) or 'no unit'}, {one_line(self.names[number])} of the data "
                             f"in {one_line(self.units[number]) or 'no unit'}; give it in that")

    def value(self, value: Any, number: int, key: str) -> float:
        """A number out of what was typed or lies in a file, NaN for missing; ValueError, begun by `key`, for another.
        """
        wrong = ValueError(f"{key}: {shown(value)} is no number; wanted one in "
                           f"{one_line(self.units[number]) or 'no unit'}, or null where it is missing")
        if isinstance(value, str):
            value = value.strip()
            if value.casefold() in ("", "nan", "null"):
                return nan
            if not (found := NUMBER.fullmatch(value)):
                raise wrong
            value, unit = float(found[1]), found[2]
            if unit:
                self.check_unit(number, unit, key)
        if value is None:
            return nan
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
            raise wrong
        if value == value and not abs(value) <= FLOAT_MAX:
            raise wrong
        if value == value and number in self.never:
            raise ValueError(f"{key}: no training item has {one_line(self.names[number])}, so that the network knows "
                             f"no value of it; wanted null, as by {KEY}.NAME=null, or training data that have it")
        if self.std is not None and abs(value - self.mean[number]) > FARTHEST * self.std[number]:
            raise ValueError(f"{key}: {value:g} is far from all that the network was trained on, "
                             f"{self.lo[number]:g} to {self.hi[number]:g} {one_line(self.units[number])}".rstrip())
        return float(value)

    def shown(self, number: int, value: float) -> str:
        """A value with its unit."""
        return "missing" if np.isnan(value) else f"{value:g} {one_line(self.units[number])}".rstrip()


def same_unit(unit: str) -> str:
    """A unit so that those compare equal that are the same: mL and ml, both letters for micro, no unit and 1."""
    unit = unicodedata.normalize("NFKC", unit).strip().translate(SAME_LETTERS)
    return "" if unit in ("1", "-") else unit


def attribute_rows(known: AskedAttributes, columns: Sequence[AskedColumn], literal: Mapping[str, Any],
                   ids: Sequence[str], source: str) -> tuple[np.ndarray, dict[str, float | None], list[str]]:
    """Values [R,A] of all rows, float32; of those typed, by name, what was said; and notes.

    A literal stands for all rows, in place of those of a file.
    """
    rows = np.full((max(1, len(ids)), len(known.names)), nan)
    typed: dict[int, float] = {}
    for name, value in literal.items():
        number = known.number(str(name), f"{KEY}.{one_line(str(name))}")
        if number in typed:
            raise ValueError(f"{KEY}.{one_line(str(name))}: {one_line(known.names[number])} is asked for twice")
        typed[number] = known.value(value, number, f"{KEY}.{one_line(str(name))}={shown(value)}")
    of_file = {}
    for column in columns:
        number = known.number(column.name, f"{source}: column {one_line(column.name)!r}", column.unit)
        if number in of_file:
            raise ValueError(f"{source}: columns {one_line(of_file[number])!r} and {one_line(column.name)!r} are one "
                             "attribute; keep one of them")
        of_file[number] = column.name
        if number not in typed:
            rows[:, number] = [known.value(value, number, f"{source}: {one_line(column.name)} of {one_line(id_)}")
                               for id_, value in zip(ids, column.values, strict=True)]
    for number, value in typed.items():
        rows[:, number] = value
    notes = [f"Note      {KEY}.{one_line(known.names[n])} stands for all rows, in place of the values of {source}"
             for n in typed if n in of_file]
    said = {known.names[number]: None if np.isnan(value) else value for number, value in typed.items()}
    return rows.astype(np.float32), said, notes


def sweep_of(known: AskedAttributes, asked: Mapping[str, Any], literal: Mapping[str, Any]) -> SweptAttribute | None:
    """The attribute that goes through values for every seed, None for none; ValueError for what is no range of one."""
    if not asked:
        return None
    name, found = next(iter(asked.items()))
    key = f"sampling.sweep.{one_line(str(name))}"
    if len(asked) > 1:
        raise ValueError(f"sampling.sweep: asks for {listed(asked)}; wanted one attribute at a time")
    number = known.number(str(name), key)
    if not isinstance(found, (list, tuple)) or len(found) != 3:
        raise ValueError(f"{key}={shown(found) if not isinstance(found, (list, tuple)) else list(found)}: wanted "
                         "[lowest, highest, how many]")
    lo, hi = (known.value(value, number, key) for value in found[:2])
    if not (isfinite(lo) and isfinite(hi)) or lo == hi or not is_whole(found[2]) or found[2] < 2:
        raise ValueError(f"{key}={list(found)}: wanted [lowest, highest, how many], two numbers that differ and a "
                         "whole number of 2 or more")
    if found[2] > MOST_VALUES:
        raise ValueError(f"{key}={list(found)}: wanted {MOST_VALUES} values for every seed at most")
    if any(known.number(str(other), f"{KEY}.{one_line(str(other))}") == number for other in literal):
        raise ValueError(f"{key}: {one_line(known.names[number])} is asked for by {KEY}, too; keep one of them")
    values = np.linspace(lo, hi, found[2]).astype(np.float32).astype(float).tolist()
    if len(set(values)) < found[2]:
        raise ValueError(f"{key}={list(found)}: two of these values are the same in float32; wanted fewer, or values "
                         "further apart")
    return SweptAttribute(known.names[number], known.units[number], values, number)


def with_values(rows: np.ndarray, column: int, values: Sequence[float]) -> np.ndarray:
    """Rows [R,A] with each of so many values in a column in turn [R*V,A]."""
    whole = np.repeat(rows, len(values), axis=0)
    whole[:, column] = np.tile(values, len(rows))
    return whole


def check_missing(known: AskedAttributes, rows: np.ndarray, said: str = "") -> None:
    """ValueError for missing values [R,A] that a network never saw missing in training; said: what a message begins by.
    """
    gone = np.isnan(rows)
    never = np.array([not (known.part.gaps or (number < len(known.missing) and known.missing[number]))
                      for number in range(rows.shape[1])])
    if (all_gone := gone.all(axis=1)).any() and not known.part.dropout and never.any():
        raise ValueError(f"{said or KEY}: no attribute has a value, and the network was never trained without any; "
                         f"ask for them by {KEY}.NAME=value"
                         + (f" ({listed(known.names)})" if known.names else "") + f", or train with {DROPOUT}")
    partly = (gone & never)[~all_gone].any(axis=0)
    if partly.any():
        lacking = [one_line(known.names[number]) for number in np.flatnonzero(partly)]
        raise ValueError(f"{said or KEY}: {listed(lacking)}: no value, and the network was never trained without; ask "
                         f"for {'it' if len(lacking) == 1 else 'them'} by {KEY}.NAME=value, or train with {GAPS}")


def range_notes(known: AskedAttributes, rows: np.ndarray) -> list[str]:
    """A warning on each attribute of which values [R,A] are asked that lie outside those of the training."""
    notes = []
    for number, name in enumerate(known.names if known.lo is not None else ()):
        lo, hi = np.float32(known.lo[number]), np.float32(known.hi[number])
        values = rows[:, number][~np.isnan(rows[:, number])]
        if len(values) and (values.min() < lo or values.max() > hi):
            asked, trained = (f"{low:g} to {high:g} {one_line(known.units[number])}".rstrip()
                              for low, high in ((values.min(), values.max()), (lo, hi)))
            notes.append(f"Warning   {one_line(name)}: asked for are {asked}, the network was trained on {trained}")
    return notes


def geometry_of(known: AskedAttributes, rows: np.ndarray, facts: Facts, size: Sequence[int],
                written: Container[str] | None = None) -> Geometry | None:
    """How voxel sizes and extents among the attributes [R,A] change the affine of volumes of a size [*S], None where
    none is asked for.

    An extent is that of the voxels without padding, as `prepare` writes it. written: names of what somebody asks for,
    None for all; other values are those of real volumes, which may have been cropped since. ValueError for sizes that
    no voxel has, one axis named twice, and an extent longer than the voxels that are asked for beside it.
    """
    asked: dict[tuple[str, int], tuple[int, float]] = {}
    for number, name in enumerate(known.names):
        place, mm = SIZES.get(name, ("", len(size))), MM.get(same_unit(known.units[number]))
        if place[1] >= len(size) or mm is None or np.isnan(rows[:, number]).all():
            continue
        if place in asked:
            raise ValueError(f"{KEY}: {known.names[asked[place][0]]} and {name} are both of axis {place[1]}; ask for "
                             "one")
        mm /= size[place[1]] if place[0] == EXTENT else 1
        sizes = rows[:, number][~np.isnan(rows[:, number])] * mm
        if sizes.min() < LEAST_MM or sizes.max() > MOST_MM:
            raise ValueError(f"{KEY}.{name}: voxels of {sizes.min():g} to {sizes.max():g} mm; wanted {LEAST_MM:g} to "
                             f"{MOST_MM:g}")
        asked[place] = number, mm
    axes = {axis: [asked[kind, axis] for kind in (SPACING, EXTENT) if (kind, axis) in asked]
            for axis in sorted({axis for _, axis in asked})}
    for axis, ways in axes.items():
        if len(ways) > 1 and any(written is None or known.names[number] in written for number, _ in ways):
            check_fits(known, rows, *ways, size[axis])
    return Geometry(np.asarray(facts.affine), axes) if axes else None


def check_fits(known: AskedAttributes, rows: np.ndarray, spacing: tuple[int, float], extent: tuple[int, float],
               voxels: int) -> None:
    """ValueError for a row of attributes whose extent is longer than so many voxels of its spacing."""
    lengths, sides = (rows[:, number] * mm for number, mm in (extent, spacing))
    if len(longer := np.flatnonzero(lengths > sides * (1 + ROUNDING))):
        (row, (long, _), (short, _)) = longer[0], extent, spacing
        raise ValueError(f"{KEY}.{known.names[long]}: {known.shown(long, rows[row, long])}, and {voxels} voxels by "
                         f"{known.names[short]} of {known.shown(short, rows[row, short])} are "
                         f"{sides[row] * voxels:g} mm; wanted no more than that, or one of both alone")


def extent_notes(known: AskedAttributes, rows: np.ndarray, geometry: Geometry | None) -> list[str]:
    """A note on each axis whose voxels follow from an extent [R,A] alone."""
    notes = []
    for ways in geometry.axes.values() if geometry else ():
        number, mm = ways[-1]
        alone = ~np.isnan(rows[:, number]) & (np.isnan(rows[:, ways[0][0]]) | (len(ways) == 1))
        if SIZES[known.names[number]][0] == EXTENT and alone.any():
            sides = rows[alone, number] * mm
            notes.append(f"Note      {known.names[number]} without a voxel size: voxels are taken to be of "
                         f"{sides.min():g} to {sides.max():g} mm, which fill it without padding")
    return notes
