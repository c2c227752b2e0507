"""What hearts are called in files: the classes of label maps, the numbers of their volumes, the phases of volumes."""

import re
from collections.abc import Sequence

from edm3d.reporting.cases import Case, Layout

PHASES = {"ed": 0, "diastole": 0, "enddiastole": 0, "enddiastolic": 0,
          "es": 1, "systole": 1, "endsystole": 1, "endsystolic": 1}
LEFT = ("cavity", "lv", "lvcavity", "leftventricle", "leftventriclecavity")
RIGHT = ("rv", "rvcavity", "rightventricle")
VENTRICLES = (*LEFT, *RIGHT)
# The echo anatomy has clinical names; any other class is called by its own.
VOLUME_NAMES = {"cavity": "lv_volume", "atrium": "la_volume"}


def plain_word(name: str) -> str:
    """A name without what is no letter or number, in small letters."""
    return re.sub(r"[\W_]", "", name.casefold())


def volume_names(classes: Sequence[str]) -> list[str]:
    """A name for the volume of each class; a clinical one only where no other class would be called so."""
    plain = [f"{name}_volume" for name in classes]
    return [known if (known := VOLUME_NAMES.get(name, own)) not in plain else own
            for name, own in zip(classes, plain, strict=True)]


def ventricles(layout: Layout) -> dict[str, str]:
    """Classes that are called as ventricles are, with the names of the numbers of their volumes."""
    classes = layout.label_classes[1:]
    return {name: number for name, number in zip(classes, volume_names(classes), strict=True)
            if plain_word(name) in VENTRICLES}


def phases_of(layout: Layout) -> set[int | None]:
    """Phases that classes of volumes are called by: 0 ED, 1 ES, None for other classes."""
    return {PHASES.get(plain_word(name)) for name in layout.class_names}


def phase_of(case: Case, layout: Layout) -> int | None:
    """The phase of a volume by the name of its class: 0 ED, 1 ES."""
    return None if case.class_name is None else PHASES.get(plain_word(case.class_name))
