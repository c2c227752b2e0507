"""What files that are trained on together have in common: held against each other by what is known of each."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from edm3d.formats.facts import BETWEEN, Facts
from edm3d.formats.geometry import axis_codes
from edm3d.formats.intensity import Intensity
from edm3d.networks.parts import PARTS
from edm3d.reporting.slices import known_affine
from edm3d.utils.checks import listed, listed_apart

# what a file has names for, or not: in words that stand behind "has no"
NAMED = {"label_classes": "label maps", "map_classes": "maps", "class_names": "classes",
         "attribute_names": "attributes", "condition_channels": "condition channels"}
OWN, OF_LABELS = "own", "labels"  # semantic maps: of each file what it has, or the label maps of all


class Together(NamedTuple):
    """Facts of all files together, but for what hangs on which items are taken; and what there is to tell.

    parts: of the conditions, those that the items of all files have. semantic: OWN or OF_LABELS, where they have maps.
    """

    facts: Facts
    parts: frozenset[str]
    semantic: str
    notes: list[str]


def together(every: Sequence[Facts], channels: Sequence[int]) -> Together:
    """What the facts of several files, and how many channels their images have, make together.

    ValueError naming which file has which for channels, dimensions, sizes, classes and attributes that differ. What
    some files lack is left aside: `Facts.lacking` names them.
    """
    if len(every) == 1:
        return Together(every[0], frozenset(PARTS), OWN, [])
    check_images(every, channels)
    named = {key: {facts.source: names_of(facts, key) for facts in every} for key in NAMED}
    for key, found in named.items():
        check_same(NAMED[key], {file: names for file, names in found.items() if names},
                   "classes, names and their order must be the same; prepare the files alike")
    lacking = {key: tuple(file for file, names in found.items() if not names) for key, found in named.items()}
    lacking = {key: files for key, files in lacking.items() if 0 < len(files) < len(every)}
    kept = {key: () if key in lacking else getattr(every[0], key) or () for key in NAMED}
    maps = [facts.semantic_classes for facts in every]
    semantic = OWN if len(set(maps)) == 1 else OF_LABELS
    if semantic == OWN and "map_classes" in lacking:  # in some files they are label maps, of the same classes
        kept["map_classes"] = maps[0]
        del lacking["map_classes"]
    facts = replace(every[0], source=BETWEEN.join(facts.source for facts in every), label_classes=kept["label_classes"],
                    map_classes=kept["map_classes"] or None, class_names=kept["class_names"],
                    condition_channels=kept["condition_channels"] or None, attribute_names=kept["attribute_names"],
                    attribute_units=every[0].attribute_units if kept["attribute_names"] else (),
                    attribute_statistics=None, lacking=lacking)
    there = {"class_labels": facts.class_names, "attributes": facts.attribute_names,
             "semantic": facts.semantic_classes, "images": facts.condition_channels}
    return Together(facts, frozenset(name for name, names in there.items() if names), semantic,
                    [*left_aside(named, lacking), *differences(every)])


def names_of(facts: Facts, key: str) -> tuple[str, ...]:
    """The names that a file has for something; those of attributes with their units."""
    names = getattr(facts, key) or ()
    if key == "attribute_names" and facts.attribute_units:
        return tuple(f"{name} [{unit}]" if unit else name for name, unit in zip(names, facts.attribute_units))
    return names


def check_images(every: Sequence[Facts], channels: Sequence[int]) -> None:
    """ValueError unless images have the same axes, channels and size."""
    check_same("numbers of axes", {facts.source: (f"{len(facts.spatial_shape)}",) for facts in every},
               "wanted images of one kind, 2D or 3D")
    check_same("channels", {facts.source: facts.channels or (f"{count} without names",)
                            for facts, count in zip(every, channels)}, "wanted the same, in the same order")
    check_same("sizes", {facts.source: ("x".join(map(str, facts.spatial_shape)),) for facts in every},
               "training.dataset.size=[...] pads or crops all of them to one")


def check_same(what: str, found: Mapping[str, tuple[str, ...]], advice: str) -> None:
    """ValueError naming which file has which unless all have the same; found: names by file."""
    files: dict[tuple[str, ...], list[str]] = {}
    for file, names in found.items():
        files.setdefault(names, []).append(file)
    if len(files) < 2:
        return
    one, other, *more = files
    said = [*listed_apart(one, other), *map(listed, more)]
    lines = [f"{listed(those)}: {names}" for those, names in zip(files.values(), said)]
    raise ValueError(f"path: the files differ in their {what} ({'; '.join(lines)}); {advice}")


# ---- what there is to tell ----


def left_aside(named: Mapping[str, Mapping[str, tuple[str, ...]]], lacking: Mapping[str, Sequence[str]]) -> list[str]:
    """Notes on what some files have and others do not, and is not used so."""
    return [f"Note: {listed(files)} has no {NAMED[key]}, so that those of "
            f"{listed(file for file in named[key] if file not in files)} are left aside"
            for key, files in lacking.items()]


def differences(every: Sequence[Facts]) -> list[str]:
    """Notes on intensities, voxel sizes and axes that differ."""
    notes = []
    if len({facts.intensity for facts in every}) > 1:
        notes.append("Note: intensities differ ("
                     + "; ".join(f"{listed([facts.source])}: {in_words(facts.intensity)}" for facts in every)
                     + "): the images of each file are scaled to [-1, 1] by its own")
    spacings = [facts.spacing for facts in every]
    if any(not np.allclose(spacing, spacings[0], rtol=1e-3, atol=0) for spacing in spacings[1:]):
        notes.append("Note: voxel sizes differ ("
                     + "; ".join(f"{listed([facts.source])}: {'x'.join(f'{mm:.4g}' for mm in facts.spacing)} mm"
                                 for facts in every) + "): images are taken voxel by voxel, as they are")
    codes = {facts.source: axis_codes(affine)[:len(facts.spatial_shape)] for facts in every
             if (affine := known_affine(facts.affine)) is not None}
    if len(set(codes.values())) > 1:
        notes.append("Note: axes differ (" + "; ".join(f"{listed([file])}: {each}" for file, each in codes.items())
                     + "): images are taken as they are stored, and not turned; prepare the files alike")
    return notes


def in_words(intensity: Intensity) -> str:
    """What an intensity contract says."""
    return f"{intensity.lo:g} to {intensity.hi:g}" + listed([f" {intensity.unit}"] if intensity.unit else []) + \
        ("" if intensity.clip else ", values may lie beyond")
