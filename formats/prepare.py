"""From folders of NIfTI, npy, npz or PNG files to one volumes file: read, check, orient, resample, fit, scale, split.

Two passes: the first reads and judges every file, so that all bad ones are named at once and all that the file's
metadata needs is known; the second computes and writes.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import psutil

from edm3d.formats import geometry
from edm3d.formats.cohort import CohortTable, Record, parse_fractions, read_table
from edm3d.formats.intensity import Intensity
from edm3d.formats.nifti import read_volume, spacing_of
from edm3d.formats.padding import held_slices, padding_lines
from edm3d.formats.pairing import CaseFiles
from edm3d.formats.prepare_facts import (
    PLURALS,
    CaseFacts,
    check_scale,
    check_together,
    check_within,
    clip_lines,
    depth_lines,
    label_lines,
    raise_all,
    type_lines,
    vanished_lines,
    voxels_beyond,
)
from edm3d.formats.prepare_load import Loaded, load
from edm3d.formats.prepare_options import (
    CLASSES,
    PrepareOptions,
    channel_names,
    channel_roles,
    check_options,
    join,
    picked,
    scaled,
)
from edm3d.formats.prepare_sources import find_classes, find_records, find_sources, find_splits
from edm3d.formats.volumes import Item, VolumesMeta, VolumesWriter, in_order, is_made_by, is_volumes, provenance_of
from edm3d.utils.checks import listed
from edm3d.utils.files import amount, check_replaced, file_hash, first_line, plain_hash
from edm3d.utils.log import progress

_Result = TypeVar("_Result")


class Prepared(NamedTuple):
    """What came of it."""

    counts: dict[str, int]  # volumes per split
    table: CohortTable | None  # as understood
    notes: list[str]  # what was done that a user may want to know
    written: bool = True  # False where the same file was there already


def prepare(
    images: Path | None,
    labels: Path | None,
    dest: Path,
    options: PrepareOptions,
    *,
    maps: Path | None = None,
    table: Path | None = None,
    decathlon: Path | None = None,
    index: Path | None = None,
    overwrite: bool = False,
) -> Prepared:
    """Write the volumes file, of the files in `images`, `labels` and `maps`, of a Decathlon task or of index files.

    A file that was made just so stays as it is. ValueError names every file that cannot be used, and what to change.
    """
    if overwrite or provenance_of(dest).get("kind") != "prepare":
        check_replaced(dest, overwrite, is_volumes)
    fractions = parse_fractions(options.split)
    cohort = read_table(table) if table else None
    cases, options, cohort, notes = find_sources(images, labels, maps, decathlon, index, options, cohort, table)
    records, said = find_records(cases, cohort, table or index, options)
    records, class_names, of_classes = find_classes(records, cases, cohort, images, options)
    notes += said + of_classes
    grid = len(options.grid or ())
    dims = options.spatial_dims or (grid if grid in (2, 3) else _guess_dims(cases))
    check_options(options, dims)
    picked(options)
    for role, folder in (("label", "--labels"), ("map", "--maps")):
        if options.names_of(role) and not any(role in case.maps for case in cases):
            raise ValueError(f"{CLASSES[role]} {' '.join(options.names_of(role))}: there are no {PLURALS[role]}; give "
                             f"{folder}")
    split_of = find_splits(records, fractions, options.seed)

    facts = _each(cases, lambda case: _judge(case, options, dims), "check")
    check_together(cases, facts, options)
    notes += [*_notes(cases, facts, options), *clip_lines(_of_training(cases, facts, split_of), options)]
    meta = _meta(cases, facts, options, dims, _attributes(cohort, options, dims), class_names, split_of)
    voxels = int(np.prod((*options.grid, 1)[:3] if options.grid else facts[0].shape))
    needed = len(cases) * voxels * (4 * len(meta.channels) + bool(meta.label_classes) + bool(meta.map_classes))
    sources = {"images": decathlon or index or images, "labels": labels, "table": table} | (
        {"maps": maps} if maps else {})
    provenance = _provenance(sources, options, facts)
    provenance["rows_sha256"] = plain_hash([[name, r.group, r.class_name, split_of[name], r.attributes.tolist()]
                                            for name, r in records.items()])
    counts = {split: sum(s == split for s in split_of.values()) for split in in_order(set(split_of.values()))}
    if not overwrite and is_made_by(dest, provenance):
        return Prepared(counts, cohort, notes, written=False)
    check_replaced(dest, overwrite, is_volumes)
    vanished: dict[str, dict[str, list[int]]] = {role: {} for role in CLASSES}
    boxes = []
    with VolumesWriter(dest, meta, provenance, needed_bytes=needed) as writer:
        for case, fact in zip(progress(cases, desc="write", unit="volume"), facts):
            item, missed = _make(case, fact, options, meta, records[case.id])
            writer.add(split_of[case.id], item, fact.scale if options.percentiles else None)
            boxes.append(item.box)
            for role, classes in missed.items():
                vanished[role][case.id] = classes
    lost = [line for role in CLASSES for line in vanished_lines(vanished[role], len(cases), role)]
    padded = padding_lines(np.stack(boxes), item.image.shape[1]) if options.find_padding else []
    return Prepared(counts, cohort, [*notes, *lost, *padded])


def _notes(cases: list[CaseFiles], facts: list[CaseFacts], options: PrepareOptions) -> list[str]:
    notes = [line for role in CLASSES for line in label_lines(cases, facts, role)]
    notes += depth_lines(cases, facts, options) + type_lines(cases, facts, options)
    if options.value_range:
        lo, hi = options.value_range
        if outside := sum(fact.span.min() < lo or fact.span.max() > hi for fact in facts):
            what = "were clipped" if options.clip else "stay so"
            notes.append(f"{outside} of {len(facts)} images have values outside --range {join((lo, hi))}, which {what}")
    return notes


def _each(cases: list[CaseFiles], work: Callable[[CaseFiles], _Result], what: str) -> list[_Result]:
    """Do the work for every case, and then raise one error with everything that went wrong."""
    results, problems = [], []
    for case in progress(cases, desc=what, unit="volume"):
        try:
            results.append(work(case))
        except ValueError as error:
            problems.append(str(error))
        except MemoryError as error:
            problems.append(f"{case.images[0]}: does not fit into the memory ({first_line(error)})")
    raise_all(problems, len(cases))
    return results


# ---- what is asked ----


def _guess_dims(cases: list[CaseFiles]) -> int:
    for case in cases:
        try:
            return 2 if read_volume(case.images[0]).data.shape[3] == 1 else 3
        except ValueError:
            continue  # the first pass will name it
    return 3


# ---- first pass ----


def _judge(case: CaseFiles, options: PrepareOptions, dims: int) -> CaseFacts:
    loaded = load(case, dims, options)
    if not loaded.has_geometry and (options.spacing or options.orientation):
        also = "; give --pixel-spacing" if dims == 2 and not options.orientation else ""
        raise ValueError(f"{case.images[0]}: has no affine, which --spacing and --orientation need{also}")
    if not loaded.has_geometry and options.spacing_attributes:
        also = "; give --pixel-spacing" if dims == 2 else ""
        raise ValueError(f"{case.images[0]}: says no voxel size, which --spacing-attributes writes{also}")
    shape, affine = _target_grid(case, loaded, options, dims)
    span = np.stack([loaded.image.min((1, 2, 3)), loaded.image.max((1, 2, 3))], axis=1)
    scale = span
    check_within(case.images[0], span, options)
    if options.percentiles:
        scale = np.percentile(loaded.image, options.percentiles, axis=(1, 2, 3)).T.astype(np.float32)
        if (scale[:, 0] >= scale[:, 1]).any():
            raise ValueError(
                f"{case.images[0]}: percentiles {join(options.percentiles)} coincide; widen --percentiles"
            )
        check_scale(case.images[0], span, scale)
    codes = geometry.axis_codes(loaded.affine) if loaded.has_geometry else ""
    maps = {role: frozenset((*_classes(array), *loaded.moves[role].vanished)) for role, array in loaded.maps.items()}
    digest = b"".join(bytes.fromhex(file_hash(path)) for path in (*case.images, *case.maps.values()))
    return CaseFacts(shape, spacing_of(affine)[:dims], codes, span, scale, maps, loaded.moves, digest,
                     loaded.image.size, voxels_beyond(loaded.image, scale, options), loaded.dtype)


def _classes(label: np.ndarray) -> list[int]:
    """The values of a label map, rising."""
    return np.flatnonzero(np.bincount(label.ravel())).tolist()


def _target_grid(case: CaseFiles, loaded: Loaded, options: PrepareOptions, dims: int
                 ) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine after orientation and spacing, or after shrinking to fit."""
    shape, affine = loaded.image.shape[1:], loaded.affine
    if options.orientation:
        turned, affine = geometry.reorient(np.empty((1, *shape), bool), affine, options.orientation)
        shape = turned.shape[1:]
        if dims == 2 and shape[2] != 1:
            raise ValueError(f"{case.images[0]}: --orientation {options.orientation} would turn its slice out of plane")
    if options.spacing:
        spacing = (*options.spacing, spacing_of(affine)[2])[:3]
        return _spaced(case, shape, affine, np.array(spacing), len(loaded.image))
    if options.fit:
        factor = min(1.0, *(new / old for new, old in zip(options.fit, shape)))
        shrunk = spacing_of(affine)
        shrunk[:dims] /= factor
        return geometry.spaced_grid(shape, affine, shrunk)
    return shape, affine


def _spaced(case: CaseFiles, shape: tuple[int, ...], affine: np.ndarray, spacing: np.ndarray, channels: int
            ) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of the grid with another spacing; ValueError where no memory holds a volume on it."""
    try:
        grid = geometry.spaced_grid(shape, affine, spacing)
    except ValueError as error:
        raise ValueError(f"{case.images[0]}: --spacing: {error}; is the voxel size of the file right?") from error
    needed, free = 4 * channels * prod(grid[0]), psutil.virtual_memory().available
    if needed > free:
        old, new = ("x".join(map(str, size)) for size in (shape, grid[0]))
        raise ValueError(f"{case.images[0]}: --spacing {join(spacing)} makes {new} voxels of its {old}, "
                         f"{amount(needed)}, and {amount(free)} of memory are free; is the voxel size of the file "
                         "right?")
    return grid


def _meta(
    cases: list[CaseFiles],
    facts: list[CaseFacts],
    options: PrepareOptions,
    dims: int,
    attributes: Sequence[tuple[str, str]],
    class_names: tuple[str, ...],
    split_of: dict[str, str],
) -> VolumesMeta:
    """attributes: name and unit of each."""
    names = channel_names(options, len(facts[0].span))
    if options.percentiles:
        intensity = Intensity.of_percentiles(options.percentiles, options.clip)
    elif options.value_range:
        intensity = Intensity(float(options.value_range[0]), float(options.value_range[1]), options.clip, "a.u.")
    else:
        training = [fact.span for fact in _of_training(cases, facts, split_of)]
        intensity = Intensity(float(np.min(training)), float(np.max(training)), False, "a.u.")
    return VolumesMeta(
        spatial_dims=dims,
        channels=names,
        channel_roles=channel_roles(options, names),
        label_classes=_map_classes(facts, options, "label"),
        attribute_names=tuple(name for name, _ in attributes),
        attribute_units=tuple(unit for _, unit in attributes),
        class_names=class_names,
        intensity=intensity,
        map_classes=_map_classes(facts, options, "map"),
    )


def _map_classes(facts: list[CaseFacts], options: PrepareOptions, role: str) -> tuple[str, ...]:
    """Names of the values of label maps or maps, () where there are none."""
    values = frozenset().union(*(fact.maps.get(role, ()) for fact in facts))
    if not values or options.names_of(role):
        return options.names_of(role) if values else ()
    if len(values) < max(values) + 1:
        raise ValueError(f"{role} values {join(sorted(values))} have gaps; name every class from 0 to {max(values)} by "
                         f"{CLASSES[role]}, or renumber the {PLURALS[role]}")
    return tuple(f"class_{k}" for k in range(max(values) + 1))


def _attributes(cohort: CohortTable | None, options: PrepareOptions, dims: int) -> list[tuple[str, str]]:
    """Name and unit of each attribute, those of the table first; ValueError for two of one name."""
    found = list(zip(cohort.attribute_names, cohort.attribute_units)) if cohort else []
    own = [(f"{what}_{axis}", "mm") for what in ("spacing", "extent") for axis in range(dims)]
    if not options.spacing_attributes:
        return found
    if double := sorted({name for name, _ in found} & {name for name, _ in own}):
        raise ValueError(f"--spacing-attributes: the table has columns {listed(double)} too; rename them there")
    return found + own


def _of_training(cases: list[CaseFiles], facts: list[CaseFacts], split_of: dict[str, str]) -> list[CaseFacts]:
    """The facts of the training volumes, of all where there are none."""
    return [fact for case, fact in zip(cases, facts) if split_of[case.id] == "train"] or facts


def _provenance(
    sources: Mapping[str, Path | None], options: PrepareOptions, facts: list[CaseFacts]
) -> dict[str, Any]:
    """What a file is made of; sources: folders and table, whose names alone are told."""
    names = {what: path.name if path else None for what, path in sources.items()}
    digest = hashlib.sha256(b"".join(f.digest for f in facts)).hexdigest()
    return {"kind": "prepare", **names, "options": options.given(), "sources_sha256": digest}


# ---- second pass ----


def _make(case: CaseFiles, fact: CaseFacts, options: PrepareOptions, meta: VolumesMeta, record: Record
          ) -> tuple[Item, dict[str, list[int]]]:
    """The item as it is written, and the classes that its label map and map lost on a grid of other voxels."""
    named = replace(options, classes=meta.label_classes, map_classes=meta.map_classes)
    loaded = load(case, meta.spatial_dims, named)
    shape, target = _target_grid(case, loaded, options, meta.spatial_dims)
    arrays = {"image": loaded.image, **loaded.maps}
    for name, array in arrays.items():
        affine = loaded.affine
        if options.orientation:
            array, affine = geometry.reorient(array, affine, options.orientation)
        order, blurred = (3, options.antialias) if name == "image" else (0, False)
        arrays[name] = geometry.resample(array, affine, shape, target, order=order, antialias=blurred)
    missed = {role: sorted(lost) for role in loaded.maps if (lost := fact.maps[role] - set(_classes(arrays[role])))}
    arrays["image"], fill = scaled(arrays["image"], fact.span[:, 0], fact.scale, options)
    size = (*options.grid, 1)[:3] if options.grid else shape
    image, affine, box = geometry.fit_centre(arrays["image"], target, size, fill)
    if options.find_padding:
        first, last = held_slices(image, meta.intensity.hi - meta.intensity.lo)
        box[:, 0] = max(box[0, 0], first), min(box[1, 0], last)
    maps = {role: geometry.fit_centre(arrays[role], target, size, np.zeros(1))[0][0] for role in loaded.maps}
    if meta.spatial_dims == 2:
        image, maps = image[..., 0], {role: array[..., 0] for role, array in maps.items()}
    attributes = record.attributes
    if options.spacing_attributes:
        spacing = spacing_of(affine)[:meta.spatial_dims]
        extent = spacing * (box[1] - box[0])[:meta.spatial_dims]
        attributes = np.concatenate([attributes, spacing, extent]).astype(np.float32)
    item = Item(
        image=image,
        label=maps.get("label"),
        attributes=attributes if meta.attribute_names else None,
        class_index=meta.class_names.index(record.class_name) if record.class_name else None,
        id=case.id,
        group=record.group,
        affine=affine,
        box=box,
        map=maps.get("map"),
    )
    return item, missed
