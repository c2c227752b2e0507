"""What a refiner's snapshot says of the images that it refines: of which first stage they are, and what it draws."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from math import isfinite
from typing import Any, NamedTuple

from edm3d.formats.facts import Facts
from edm3d.utils.plain import from_plain, shown

RESIDUAL, IMAGE = TARGETS = ("residual", "image")


class Refinement(NamedTuple):
    """What a network draws on top of a first stage, by that one's hash.

    target: residual, which is image less decoded image, or image; of images as networks see them. values, mean and gain
    say how it is scaled by decoded image and label map (networks.local_scaling.LocalScaling), correlation [C,axes] what
    is then taken off that the voxel before says of each (networks.decorrelation); files of before have none.
    """

    first_stage: str
    target: str
    values: list[list[list[float]]]
    mean: list[list[list[float]]]
    gain: list[list[list[float]]]
    correlation: Sequence[Sequence[float]] = ()

    @classmethod
    def from_plain(cls, found: Mapping[str, Any], source: object, shape: Sequence[int]) -> "Refinement":
        """From plain data of a file, of images [C,*S]; ValueError naming it (source) for anything else."""
        channels, *size = shape
        known = from_plain(cls, found, source, "refines")
        if known.target not in TARGETS:
            raise ValueError(f"{source}: refines.target is {shown(known.target)}, this program reads "
                             f"{', '.join(TARGETS)}")
        lengths = [list(map(len, tables)) for tables in known.values]
        for name in ("values", "mean", "gain"):
            of_classes = getattr(known, name)
            if ([list(map(len, tables)) for tables in of_classes] != lengths or not lengths
                    or any(len(found) != channels or min(found, default=0) < 1 for found in lengths)):
                raise ValueError(f"{source}: refines.{name} is {shown(of_classes)}, wanted a table for each of "
                                 f"{channels} channels, for every class, as long as that of the values")
            if not all(map(isfinite, chain(*chain(*of_classes)))):
                raise ValueError(f"{source}: refines.{name} has values that are not finite")
        if min(chain(*chain(*known.gain))) <= 0:
            raise ValueError(f"{source}: refines.gain is {shown(known.gain)}, wanted more than 0")
        if any(a >= b for table in chain(*known.values) for a, b in pairwise(table)):
            raise ValueError(f"{source}: refines.values is {shown(known.values)}, wanted rising values")
        rows = known.correlation
        if rows and (len(rows) != channels or any(len(row) != len(size) or not all(-1 < r < 1 for r in row)
                                                  for row in rows)):
            raise ValueError(f"{source}: refines.correlation is {shown(rows)}, wanted {len(size)} numbers between -1 "
                             f"and 1 for each of {channels} channels")
        return known


def told_facts(facts: Facts, channels: int, labelled: bool) -> Facts:
    """What is known of data of so many channels, as a refiner is told of them: condition images are what a first stage
    gives back, and what the data themselves have of these is not told.

    labelled: it gives label maps back too, and these are the semantic maps.
    """
    names = tuple(f"{name} decoded" for name in facts.channels or range(channels))
    return replace(facts, condition_channels=names, map_classes=None if labelled else facts.map_classes)
