"""Conditions of items out of files, and of seeds that are to be drawn."""

from collections.abc import Callable, Container, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

from edm3d.formats.facts import Facts
from edm3d.formats.sample_layout import KINDS
from edm3d.formats.sample_settings import PairedClasses, SweptAttribute, noise_key
from edm3d.inference.scans import Scans
from edm3d.networks.conditioning import Condition, Part
from edm3d.networks.parts import PARTS
from edm3d.networks.parts.base import PartKind
from edm3d.samplers.noise import COUNTERS, GENERATORS, ImageGenerators


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


def stacked(values: Mapping[str, Sequence[Any]], takes: Mapping[str, Part], size: Sequence[int]) -> Condition:
    """The condition of images of a size [*S] by the stored values of parts that a network takes, None: missing."""
    return Condition({name: torch.from_numpy(np.stack([PARTS[name].row(value, takes[name].width, size)
                                                       for value in rows])) for name, rows in values.items()})


class Geometry(NamedTuple):
    """How voxel sizes and extents that are asked for change the affine [4,4].

    axes: axis -> numbers of the attributes that say how long a voxel is, each with the mm of a voxel where it is 1, the
    first that is not missing counts.
    """

    affine: np.ndarray
    axes: Mapping[int, Sequence[tuple[int, float]]]

    def affines(self, attributes: np.ndarray) -> np.ndarray:
        """[N,4,4] for attributes [N,A]: columns of the lengths asked for, from the same first voxel; NaN: as it is."""
        affines = np.tile(np.asarray(self.affine, np.float64), (len(attributes), 1, 1))
        for axis, ways in self.axes.items():
            column = affines[:, :3, axis]
            sizes = np.linalg.norm(column, axis=1)
            for number, mm in reversed(ways):
                asked = attributes[:, number].astype(np.float64) * mm
                sizes = np.where(np.isnan(asked), sizes, asked)
            affines[:, :3, axis] = column / np.linalg.norm(column, axis=1, keepdims=True) * sizes[:, None]
        return affines


class Conditions(NamedTuple):
    """What a network is told of samples: for each part that it takes the values that seeds go through in turn.

    size [*S]: of the volumes. A part of which nothing is asked is drawn as its kind says. sweep: each seed makes one
    sample per value of it, from the same noise: number seed * n + k is value k of n. pairs: each seed makes one of each
    class likewise. draws: samples of each seed, told the same, from noise of their own: number seed * draws + k is draw
    k. antithetic: draw k + 1 of an even k has minus the noise of draw k. scans: the condition images of seeds. record:
    what samples files say of it among the settings; notes: what there is to tell.
    """

    takes: dict[str, Part]
    asked: Mapping[str, Sequence[Any]]
    size: tuple[int, ...]
    sweep: SweptAttribute | None = None
    geometry: Geometry | None = None
    record: Mapping[str, Any] = MappingProxyType({})
    notes: Sequence[str] = ()
    draws: int = 1
    antithetic: bool = False
    scans: Scans | None = None
    pairs: PairedClasses | None = None

    @property
    def per_seed(self) -> int:
        """Samples that each seed makes."""
        return len(self.sweep.values) if self.sweep else len(self.pairs.classes) if self.pairs else self.draws

    def numbers(self, seeds: Sequence[int]) -> list[int]:
        """Numbers of the samples that seeds make."""
        return [seed * self.per_seed + k for seed in seeds for k in range(self.per_seed)]

    def seeds(self, numbers: Sequence[int]) -> list[int]:
        """The seed of each sample, by which its noise is drawn, and of several draws that of the first."""
        return [number // self.per_seed for number in numbers]

    def keys(self, numbers: Sequence[int], attempt: int = 0) -> list[int | str]:
        """What the noise of each sample follows from, at an attempt at it."""
        return [noise_key(seed, number % self.draws, attempt)
                for seed, number in zip(self.seeds(numbers), numbers, strict=True)]

    def generators(self, numbers: Sequence[int], attempt: int = 0, scheme: str = GENERATORS,
                   device: torch.device | str = "cpu") -> ImageGenerators:
        """The noise of each sample, from which its drawing starts, and which it meets on the way: by generators on the
        CPU, the same on every device; by counters on the device.
        """
        odd = [number % self.draws % 2 if self.antithetic else 0 for number in numbers]
        first = [number - second for number, second in zip(numbers, odd, strict=True)]
        return ImageGenerators(self.keys(first, attempt), purpose="sample", scheme=scheme,
                               device=device if scheme == COUNTERS else "cpu",
                               signs=[1 - 2 * second for second in odd] if any(odd) else None)

    def __call__(self, numbers: Sequence[int]) -> Condition:
        """The condition of a batch of samples, on the CPU."""
        rows, seeds = {}, self.seeds(numbers)
        for name, part in self.takes.items():
            if name == "images" and self.scans is not None:
                rows[name] = self.scans(seeds).told.numpy()
                continue
            values = self.asked[name] if name in self.asked else PARTS[name].unasked(part.width, self.size)
            places = [seed % len(values) for seed in seeds]
            found = {place: PARTS[name].row(values[place], part.width, self.size) for place in dict.fromkeys(places)}
            rows[name] = np.stack([found[place] for place in places])
        if self.sweep:
            rows["attributes"][:, self.sweep.column] = [self.sweep.values[n % self.per_seed] for n in numbers]
        if self.pairs:
            self._pair(rows, numbers)
        return Condition({name: torch.from_numpy(array) for name, array in rows.items()})

    def _pair(self, rows: dict[str, np.ndarray], numbers: Sequence[int]) -> None:
        """Tell each sample of a pair its class, as far as the network is told it, in place of what the rows say."""
        which = [number % self.per_seed for number in numbers]
        if "class_labels" in self.takes:
            width = self.takes["class_labels"].width
            rows["class_labels"] = np.stack([PARTS["class_labels"].row(self.pairs.numbers[k], width, self.size)
                                             for k in which])
        if self.pairs.column is not None:
            rows["attributes"][:, self.pairs.column] = [self.pairs.values[k] for k in which]

    def tells(self, name: str) -> bool:
        """Whether any seed may be told something of a part, and not its null alone."""
        paired = self.pairs and (name == "class_labels" or (name == "attributes" and self.pairs.column is not None))
        if name not in self.takes or (name == "attributes" and self.sweep) or (name == "images" and self.scans) or \
                paired:
            return name in self.takes
        kind, width, values = PARTS[name], self.takes[name].width, self.asked.get(name, ())
        null = kind.row(None, width, self.size)
        return any(not np.array_equal(kind.row(value, width, self.size), null, equal_nan=True)
                   for value in (values if len(values) else kind.unasked(width, self.size)))

    def stored(self, condition: Condition) -> dict[str, np.ndarray]:
        """What samples files hold of a batch's condition, by name of the array, with a value for each image.

        Maps and images only where some were asked for, affines where voxel sizes were.
        """
        arrays = {kind.stored: np.stack([kind.value(row) for row in condition[name].numpy()])
                  for name, kind in self.kept().items()}
        return arrays | ({"affines": self.geometry.affines(arrays["attributes"])} if self.geometry else {})

    def stored_scans(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """What samples files hold of the scans of a batch, and of its draws, with a value for each sample."""
        draws = {"draws": np.array([number % self.draws for number in numbers])} if self.scans or self.draws > 1 else {}
        return draws | (self.scans(self.seeds(numbers)).arrays if self.scans else {})

    def kept(self) -> dict[str, PartKind]:
        """The parts that samples files keep, as far as they have an array for them."""
        return {name: kind for name, kind in PARTS.items() if name in self.takes and kind.stored in KINDS
                and (name in self.asked or not kind.grid)}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of a row of each of these arrays."""
        shapes = {kind.stored: np.shape(kind.value(np.zeros(kind.shape(self.takes[name].width, self.size), kind.dtype)))
                  for name, kind in self.kept().items()}
        shapes |= {"affines": (4, 4)} if self.geometry else {}
        shapes |= {"draws": ()} if self.scans or self.draws > 1 else {}
        return shapes | (self.scans.shapes if self.scans else {})
