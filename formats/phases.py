"""End-diastole and end-systole: what classes of them are called, and the attribute that says which a volume is."""

import re

PHASES = {"ed": 0, "diastole": 0, "enddiastole": 0, "enddiastolic": 0,
          "es": 1, "systole": 1, "endsystole": 1, "endsystolic": 1}
NAMES = ("ED", "ES")  # of classes, by phase
ATTRIBUTE = "ESED"
VALUES = (1.0, 0.0)  # of the attribute, by phase


def plain_word(name: str) -> str:
    """A name without what is no letter or number, in small letters."""
    return re.sub(r"[\W_]", "", name.casefold())


def phase_of(name: str | None) -> int | None:
    """The phase of volumes of a class, 0 at end-diastole, 1 at end-systole; None for other classes, and for none."""
    return None if name is None else PHASES.get(plain_word(name))
