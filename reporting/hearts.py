"""What hearts are called in files: the classes of label maps, the numbers of their volumes, the phases of volumes."""

from collections.abc import Sequence

from edm3d.formats import phases
from edm3d.formats.phases import plain_word
from edm3d.reporting.cases import Case, Layout

LEFT = ("cavity", "lv", "lvcavity", "leftventricle", "leftventriclecavity")
RIGHT = ("rv", "rvcavity", "rightventricle")
VENTRICLES = (*LEFT, *RIGHT)
MYOCARDIUM = ("myocardium", "myo", "lvmyocardium", "lvmyo")
ED, ES = range(2)
# The echo anatomy has clinical names; any other class is called by its own.
VOLUME_NAMES = {"cavity": "lv_volume", "atrium": "la_volume"}


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


def class_called(layout: Layout, names: Sequence[str]) -> int | None:
    """The value of the first class of label maps that is called so."""
    return next((value for value, name in enumerate(layout.label_classes) if plain_word(name) in names), None)


def has_phases(layout: Layout) -> bool:
    """Whether volumes are of ED or ES, by their classes or by an attribute ESED."""
    named = {phases.phase_of(name) for name in layout.class_names}
    return {ED, ES} <= named or phase_column(layout) is not None


def phase_column(layout: Layout) -> int | None:
    """The number of the attribute that says the phase."""
    wanted = plain_word(phases.ATTRIBUTE)
    return next((i for i, (name, _) in enumerate(layout.attributes) if plain_word(name) == wanted), None)


def phase_of(case: Case, layout: Layout) -> int | None:
    """The phase of a volume, 0 ED, 1 ES: by the name of its class, else by the attribute ESED (1 ED, 0 ES)."""
    named = phases.phase_of(case.class_name)
    column = phase_column(layout)
    if named is not None or column is None or case.attributes is None or case.attributes[column] not in (0, 1):
        return named
    return ED if case.attributes[column] else ES


def asked_numbers(layout: Layout) -> dict[str, tuple[str, int]]:
    """What attributes of both phases of a heart are called, with the number that measures each and the phase at which:
    LVEDV the volume of the left ventricle at ED, MYOESTHICK the wall's thickness at ES, and so on.
    """
    found = {"myoedthick": ("wall_thickness", ED), "myoesthick": ("wall_thickness", ES)}
    for name, number in ventricles(layout).items():
        side = "lv" if plain_word(name) in LEFT else "rv"
        found |= {f"{side}edv": (number, ED), f"{side}esv": (number, ES)}
    return found
