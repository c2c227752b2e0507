"""Pairs: every seed makes a sample of each class from one noise, as a heart at end-diastole and at end-systole."""

from collections.abc import Callable, Mapping
from typing import Any

from edm3d.formats import phases
from edm3d.formats.asked import AskedFile
from edm3d.formats.facts import Facts
from edm3d.formats.sample_settings import PairedClasses
from edm3d.networks.conditioning import Part
from edm3d.utils.checks import listed
from edm3d.utils.schema import Sampling

KEY = "sampling.pairs=true"


def pairs_of(takes: Mapping[str, Part], facts: Facts, options: Sampling, file: AskedFile | None,
             number_of: Callable[[object, str], int]) -> PairedClasses | None:
    """The classes that every seed makes samples of, None where no pairs are asked for.

    Those of `sampling.classes`, else all. An attribute that says the phase (ESED) goes along with them, but where no
    attribute is asked for and the network knows none alone. number_of: of a class by its name, for a message.
    ValueError for a network that is told no class, for fewer than two, and for what else would say the class.
    """
    if not options.pairs:
        return None
    told = "class_labels" in takes
    column = column_of(takes, facts)
    if not (told or (column is not None and facts.class_names)):
        raise ValueError(f"{KEY}: the network is told no class, and no attribute {phases.ATTRIBUTE}; train one with "
                         f"training.network.model.label_dim={len(facts.class_names) or 'K'}")
    check_alone(options)
    count = takes["class_labels"].width if told else len(facts.class_names)
    numbers = [number_of(name, "sampling.classes") for name in options.classes] if options.classes else [*range(count)]
    classes = [facts.class_name(number) for number in numbers]
    if len(numbers) < 2 or len({*numbers}) < len(numbers):
        raise ValueError(f"{KEY}: wanted two classes or more, each once, there are {listed(classes) or 'none'}")
    found = [phases.phase_of(name) for name in classes]
    known = None not in found
    if not told and (not known or len({*found}) < len(found)):
        raise ValueError(f"{KEY}: {phases.ATTRIBUTE} alone tells the network {' and '.join(phases.NAMES)}, and the "
                         f"classes are {listed(classes)}; name two by sampling.classes")
    if column is None or not known or (told and not takes["attributes"].gaps and not options.attributes
                                       and not (file and file.attributes)):
        return PairedClasses(classes, numbers)
    if phases.ATTRIBUTE in options.attributes:
        raise ValueError(f"sampling.attributes.{phases.ATTRIBUTE}: goes with the class by {KEY}; leave it out")
    return PairedClasses(classes, numbers, column, [phases.VALUES[phase] for phase in found])


def column_of(takes: Mapping[str, Part], facts: Facts) -> int | None:
    """Number of the attribute that says the phase, where a network is told attributes and there is one."""
    names = facts.attribute_names or ()
    return names.index(phases.ATTRIBUTE) if "attributes" in takes and phases.ATTRIBUTE in names else None


def check_alone(options: Sampling) -> None:
    """ValueError for options that make several samples of a seed in another way."""
    for key, value in (("sweep", options.sweep), ("samples_per_condition", options.samples_per_condition > 1)):
        if value:
            raise ValueError(f"{KEY}: sampling.{key} makes several samples of a seed, too; ask for one of the two")


def notes_on(pairs: PairedClasses, file: AskedFile | None) -> list[str]:
    """What of a file the pairs stand in place of."""
    found = ["classes"] if file and any(name not in ("", None) for name in file.classes or ()) else []
    if file and pairs.column is not None and any(column.name == phases.ATTRIBUTE for column in file.attributes):
        found.append(f"values of {phases.ATTRIBUTE}")
    return [f"Note      {KEY} stands in place of the {' and the '.join(found)} of {file.source}"] if found else []


def record_of(pairs: PairedClasses | None) -> dict[str, Any]:
    """What samples files say of pairs."""
    return {} if pairs is None else {"pairs": {name: value for name, value in pairs._asdict().items()
                                               if value is not None}}
