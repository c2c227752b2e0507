"""Conditions of items out of files, and of seeds that are to be drawn."""

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from edm3d.formats.facts import Facts
from edm3d.networks.conditioning import Condition, Part
from edm3d.networks.parts import PARTS
from edm3d.utils.checks import listed


class StoredConditions:
    """The conditions of the items of a split: table(name) is a data set of it [N,...] or None.

    Every part that the facts have names for is there, and missing for all items where the split does not hold it.
    told: names of the parts that are wanted, None for all.
    """

    def __init__(self, table: Callable[[str], np.ndarray | None], facts: Facts):
        self.columns: dict[str, tuple[np.ndarray | None, int]] = {}
        self.on_grid: dict[str, int] = {}
        self.told: Container[str] | None = None
        for name, kind in PARTS.items():
            names = getattr(facts, kind.names) if kind.names else None
            if kind.grid and kind.names:
                self.on_grid |= {name: len(names)} if names else {}
                continue
            rows = table(kind.stored)
            if names is None and np.ndim(rows) == 1:
                rows = rows[:, None]
            width = len(names) if names is not None else 0 if rows is None else rows.shape[1]
            if width:
                self.columns[name] = rows, width

    def __call__(self, index: int, size: Sequence[int] = (),
                 on_grid: Callable[[str], np.ndarray | None] = lambda name: None) -> Condition:
        """Of an item whose volume is of a size [*S]; on_grid(name) is what it has of a part that lies on its grid."""
        found = {name: PARTS[name].row(None if rows is None else rows[index], width)
                 for name, (rows, width) in self.columns.items() if self.is_told(name)}
        found |= {name: PARTS[name].row(on_grid(name), width, size) for name, width in self.on_grid.items()
                  if self.is_told(name)}
        return Condition(found)

    def is_told(self, name: str) -> bool:
        """Whether a part is wanted."""
        return self.told is None or name in self.told


class Conditions(NamedTuple):
    """What a network is told of seeds: for each part that it takes the values that they go through in turn.

    size [*S]: of the volumes. A part of which nothing is asked is drawn as its kind says.
    """

    takes: dict[str, Part]
    asked: Mapping[str, Sequence[Any]]
    size: tuple[int, ...]

    def __call__(self, seeds: Sequence[int]) -> Condition:
        """The condition of a batch of seeds, on the CPU."""
        rows = {}
        for name, part in self.takes.items():
            values = self.asked.get(name) or PARTS[name].unasked(part.width, self.size)
            rows[name] = np.stack([PARTS[name].row(values[seed % len(values)], part.width, self.size)
                                   for seed in seeds])
        return Condition({name: torch.from_numpy(array) for name, array in rows.items()})

    def tells(self, name: str) -> bool:
        """Whether any seed may be told something of a part, and not its null alone."""
        if name not in self.takes:
            return False
        kind, width, values = PARTS[name], self.takes[name].width, self.asked.get(name, ())
        null = kind.row(None, width, self.size)
        return any(not np.array_equal(kind.row(value, width, self.size), null, equal_nan=True)
                   for value in (values if len(values) else kind.unasked(width, self.size)))

    def stored(self, condition: Condition) -> dict[str, np.ndarray]:
        """What samples files hold of a batch's condition, by name of the array, with a value for each image.

        Maps and images only where some were asked for.
        """
        return {kind.stored: np.stack([kind.value(row) for row in condition[name].numpy()])
                for name, kind in PARTS.items() if name in condition and (name in self.asked or not kind.grid)}


def drawn_conditions(takes: dict[str, Part], classes: list[str] | None, names: Sequence[str], size: Sequence[int]
                     ) -> Conditions:
    """What is told of seeds: the classes asked for by name, all by default; ValueError for what is not known."""
    if classes and "class_labels" not in takes:
        raise ValueError(f"sampling.classes={classes}: the network was trained without classes; train one "
                         f"with training.network.model.label_dim={len(names) or 'K'}")
    unknown = [name for name in classes or () if name not in names]
    if unknown:
        raise ValueError(f"sampling.classes: {unknown[0]!r} is not one of {listed(names)}")
    return Conditions(takes, {"class_labels": [names.index(name) for name in classes or names]}, tuple(size))
