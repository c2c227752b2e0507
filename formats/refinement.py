"""What a refiner's snapshot says of the images that it refines: of which first stage they are, and what it draws."""

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from typing import Any, NamedTuple

from edm3d.formats.facts import Facts
from edm3d.utils.plain import from_plain, shown

RESIDUAL, IMAGE = TARGETS = ("residual", "image")


class Refinement(NamedTuple):
    """What a network draws on top of a first stage, by that one's hash.

    target: residual, image less decoded image, or image; x = (target - shift) * gain, per channel, of images as
    networks see them.
    """

    first_stage: str
    target: str
    shift: list[float]
    gain: list[float]

    @classmethod
    def from_plain(cls, found: Mapping[str, Any], source: object, channels: int) -> "Refinement":
        """From plain data of a file, of images of so many channels; ValueError naming it (source) for anything else."""
        known = from_plain(cls, found, source, "refines")
        if known.target not in TARGETS:
            raise ValueError(f"{source}: refines.target is {shown(known.target)}, this program reads "
                             f"{', '.join(TARGETS)}")
        for name in ("shift", "gain"):
            values = getattr(known, name)
            if len(values) != channels or not all(map(isfinite, values)):
                raise ValueError(f"{source}: refines.{name} is {shown(values)}, wanted a number for each of {channels} "
                                 "channels")
        if min(known.gain) <= 0:
            raise ValueError(f"{source}: refines.gain is {shown(known.gain)}, wanted more than 0")
        return known


def told_facts(facts: Facts, labelled: bool) -> Facts:
    """What is known of data, as a refiner is told of them: condition images are what a first stage gives back.

    labelled: it gives label maps back too, and these are the semantic maps.
    """
    names = tuple(f"{name} decoded" for name in facts.channels)
    return replace(facts, condition_channels=names, map_classes=None if labelled else facts.map_classes)
