"""What the snapshot of a PET network says of doses: how pairs of them are simulated, and in what scale it sees them."""

from collections.abc import Mapping
from math import isfinite
from typing import Any, NamedTuple

from edm3d.utils.names import one_line
from edm3d.utils.plain import from_plain, shown

HIGH, PAIR = DRAWN = ("high", "pair")
LOW_DOSE, HIGH_DOSE = "low dose", "high dose"


class DoseRecord(NamedTuple):
    """How a network is told of a low dose, and draws a high one.

    simulation and scale: the nodes that physics.dose.DoseSimulation and physics.activity_scale.ActivityScale are built
    of. unit: of activities. drawn: high, the image of the high dose, told that of the low one; pair, both. typical: the
    mean scale of training pairs, in that unit, by which a pair is drawn that has no scan. clipped: the share of high
    doses' pixels in training that lie beyond what networks see as 1.
    """

    simulation: dict[str, Any]
    scale: dict[str, Any]
    unit: str
    drawn: str
    typical: float
    clipped: float

    @classmethod
    def from_plain(cls, found: Mapping[str, Any], source: object) -> "DoseRecord":
        """From plain data of a file; ValueError naming it (source) for anything else. The nodes are not built here."""
        known = from_plain(cls, found, source, "dose")
        if known.drawn not in DRAWN:
            raise ValueError(f"{source}: dose.drawn is {shown(known.drawn)}, this program reads {', '.join(DRAWN)}")
        if not (isfinite(known.typical) and known.typical > 0 and 0 <= known.clipped <= 1):
            raise ValueError(f"{source}: dose.typical is {known.typical}, dose.clipped {known.clipped}; wanted more "
                             "than 0, and a share")
        return known._replace(unit=one_line(known.unit))
