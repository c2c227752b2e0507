"""What the snapshot of a downstream network says of its output: which classes, of what, in which order."""

from collections.abc import Mapping
from math import isfinite
from typing import Any, NamedTuple, TypeVar

from edm3d.formats.facts import Facts
from edm3d.utils.plain import from_plain, shown

LABELS, MAPS, CLASSES, ATTRIBUTE = KINDS = ("labels", "maps", "classes", "attribute")
OF_VOXELS = (LABELS, MAPS)  # kinds that every voxel has a class of
_ArrayOrTensor = TypeVar("_ArrayOrTensor")


class Prediction(NamedTuple):
    """Of what a network gives the class: labels or maps of every voxel, classes or an attribute of an image.

    names: of the classes, in the order of its output. attribute: its name, with the threshold, in its unit, from which
    on an image is of the second of two classes.
    """

    kind: str
    names: tuple[str, ...]
    attribute: str = ""
    unit: str = ""
    threshold: float | None = None

    @classmethod
    def from_plain(cls, found: Mapping[str, Any], source: object) -> "Prediction":
        """From plain data of a file; ValueError naming it (source) for anything else."""
        known = from_plain(cls, found, source, "predicts")
        if known.kind not in KINDS:
            raise ValueError(f"{source}: predicts.kind is {shown(known.kind)}, this program reads {', '.join(KINDS)}")
        if not 2 <= len(known.names) <= 256 or len(set(known.names)) < len(known.names):
            raise ValueError(f"{source}: predicts.names is {shown(list(known.names))}, wanted 2 to 256 that differ")
        is_attribute = known.kind == ATTRIBUTE
        if is_attribute != (known.threshold is not None) or (is_attribute and not isfinite(known.threshold)):
            raise ValueError(f"{source}: predicts.threshold is {shown(known.threshold)}, wanted a number for an "
                             "attribute, and none for other kinds")
        return known

    @property
    def of_voxels(self) -> bool:
        """Whether every voxel has a class, and not the image."""
        return self.kind in OF_VOXELS

    def plain(self) -> dict[str, Any]:
        """As plain data, for a file."""
        return {**self._asdict(), "names": list(self.names)}

    def __str__(self) -> str:
        """In a line."""
        what = f"{self.attribute} from {self.threshold:g} {self.unit}".strip() if self.kind == ATTRIBUTE else self.kind
        return f"{what}: {', '.join(self.names)}"


def names_of(kind: str, facts: Facts) -> tuple[str, ...]:
    """Names of the classes of a kind but attribute that data have, () for none."""
    return {LABELS: facts.label_classes, MAPS: facts.semantic_classes, CLASSES: facts.class_names}[kind]


def class_by_threshold(values: _ArrayOrTensor, threshold: float) -> _ArrayOrTensor:
    """1 for float32 values of at least a threshold, 0 for lower ones, -1 where they are missing (NaN); int64."""
    return (values >= threshold) * 1 - (values != values) * 1
