"""From folders of NIfTI, npy or npz files to one volumes file: read, check, orient, resample, fit, scale, split.

Two passes: the first reads and judges every file, so that all bad ones are named at once and all that the file's
metadata needs is known; the second computes and writes.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import psutil

from edm3d.formats import geometry
from edm3d.formats.cohort import CohortTable, Record, parse_fractions, read_table
from edm3d.formats.nifti import read_volume, spacing_of
from edm3d.formats.pairing import CaseFiles
from edm3d.formats.prepare_facts import (
    CaseFacts,
    check_scale,
    check_together,
    clip_lines,
    label_lines,
    raise_all,
    vanished_lines,
    voxels_beyond,
)
from edm3d.formats.prepare_load import Loaded, load
from edm3d.formats.prepare_options import PrepareOptions, channel_names, check_options, join, picked, scaled
from edm3d.formats.prepare_sources import find_records, find_sources, find_splits
from edm3d.formats.volumes import (
    Intensity,
    Item,
    VolumesMeta,
    VolumesWriter,
    in_order,
    is_made_by,
    is_volumes,
    provenance_of,
)
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
    table: Path | None = None,
    decathlon: Path | None = None,
    overwrite: bool = False,
) -> Prepared:
    """Write the volumes file, of the files in `images` and `labels` or of a Decathlon task.

    A file that was made just so stays as it is. ValueError names every file that cannot be used, and what to change.
    """
    if overwrite or provenance_of(dest).get("kind") != "prepare":
        check_replaced(dest, overwrite, is_volumes)
    fractions = parse_fractions(options.split)
    cohort = read_table(table) if table else None
    cases, options, notes = find_sources(images, labels, decathlon, options, cohort)
    records, said = find_records(cases, cohort, table, options)
    notes += said
    grid = len(options.grid or ())
    dims = options.spatial_dims or (grid if grid in (2, 3) else _guess_dims(cases))
    check_options(options, dims)
    picked(options)
    if options.classes and not any(case.label for case in cases):
        raise ValueError(f"--classes {' '.join(options.classes)}: there are no label maps; give --labels")
    split_of = find_splits(records, fractions, options.seed)

    facts = _each(cases, lambda case: _judge(case, options, dims), "check")
    check_together(cases, facts, options)
    notes += [*_notes(cases, facts, options), *clip_lines(_of_training(cases, facts, split_of), options)]
    meta = _meta(cases, facts, options, dims, cohort, split_of)
    voxels = int(np.prod((*options.grid, 1)[:3] if options.grid else facts[0].shape))
    needed = len(cases) * voxels * (4 * len(meta.channels) + bool(meta.label_classes))
    provenance = _provenance(decathlon or images, labels, table, options, facts)
    provenance["rows_sha256"] = plain_hash([[name, r.group, r.class_name, split_of[name], r.attributes.tolist()]
                                            for name, r in records.items()])
    counts = {split: sum(s == split for s in split_of.values()) for split in in_order(set(split_of.values()))}
    if not overwrite and is_made_by(dest, provenance):
        return Prepared(counts, cohort, notes, written=False)
    check_replaced(dest, overwrite, is_volumes)
    vanished: dict[str, list[int]] = {}
    with VolumesWriter(dest, meta, provenance, needed_bytes=needed) as writer:
        for case, fact in zip(progress(cases, desc="write", unit="volume"), facts):
            item, missed = _make(case, fact, options, meta, records[case.id])
            writer.add(split_of[case.id], item, fact.scale if options.percentiles else None)
            vanished |= {case.id: missed} if missed else {}
    return Prepared(counts, cohort, [*notes, *vanished_lines(vanished, len(cases))])


def _notes(cases: list[CaseFiles], facts: list[CaseFacts], options: PrepareOptions) -> list[str]:
    notes = label_lines(cases, facts)
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
        raise ValueError(f"{case.images[0]}: has no affine, which --spacing and --orientation need")
    shape, affine = _target_grid(case, loaded, options, dims)
    span = np.stack([loaded.image.min((1, 2, 3)), loaded.image.max((1, 2, 3))], axis=1)
    scale = span
    if options.percentiles:
        scale = np.percentile(loaded.image, options.percentiles, axis=(1, 2, 3)).T.astype(np.float32)
        if (scale[:, 0] >= scale[:, 1]).any():
            raise ValueError(
                f"{case.images[0]}: percentiles {join(options.percentiles)} coincide; widen --percentiles"
            )
        check_scale(case.images[0], span, scale)
    codes = geometry.axis_codes(loaded.affine) if loaded.has_geometry else ""
    labels = frozenset() if loaded.label is None else frozenset((*_classes(loaded.label), *loaded.move.vanished))
    files = [*case.images, *([case.label] if case.label else [])]
    digest = b"".join(bytes.fromhex(file_hash(path)) for path in files)
    return CaseFacts(shape, spacing_of(affine)[:dims], codes, span, scale, labels, loaded.move, digest,
                     loaded.image.size, voxels_beyond(loaded.image, scale, options))


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
    cohort: CohortTable | None,
    split_of: dict[str, str],
) -> VolumesMeta:
    count = len(facts[0].span)
    classes = options.classes if any(case.label for case in cases) else ()
    values = frozenset().union(*(f.labels for f in facts))
    if not classes and values and len(values) < max(values) + 1:
        raise ValueError(f"label values {join(sorted(values))} have gaps; name every class from 0 to {max(values)} by "
                         "--classes, or renumber the label maps")
    if options.percentiles:
        unit = f"percentile {options.percentiles[0]:g}-{options.percentiles[1]:g}"
        intensity = Intensity(0.0, 1.0, options.clip, unit)
    elif options.value_range:
        intensity = Intensity(float(options.value_range[0]), float(options.value_range[1]), options.clip, "a.u.")
    else:
        training = [fact.span for fact in _of_training(cases, facts, split_of)]
        intensity = Intensity(float(np.min(training)), float(np.max(training)), False, "a.u.")
    return VolumesMeta(
        spatial_dims=dims,
        channels=channel_names(options, count),
        channel_roles=("target",) * count,
        label_classes=classes or tuple(f"class_{k}" for k in range(max(values, default=-1) + 1)),
        attribute_names=cohort.attribute_names if cohort else (),
        attribute_units=cohort.attribute_units if cohort else (),
        class_names=cohort.class_names if cohort else (),
        intensity=intensity,
    )


def _of_training(cases: list[CaseFiles], facts: list[CaseFacts], split_of: dict[str, str]) -> list[CaseFacts]:
    """The facts of the training volumes, of all where there are none."""
    return [fact for case, fact in zip(cases, facts) if split_of[case.id] == "train"] or facts


def _provenance(
    images: Path, labels: Path | None, table: Path | None, options: PrepareOptions, facts: list[CaseFacts]
) -> dict[str, Any]:
    sources = {"images": images.name, "labels": labels.name if labels else None, "table": table.name if table else None}
    digest = hashlib.sha256(b"".join(f.digest for f in facts)).hexdigest()
    given = {name: value for name, value in asdict(options).items() if value is not None or "pattern" not in name}
    return {"kind": "prepare", **sources, "options": given, "sources_sha256": digest}


# ---- second pass ----


def _make(case: CaseFiles, fact: CaseFacts, options: PrepareOptions, meta: VolumesMeta, record: Record
          ) -> tuple[Item, list[int]]:
    """The item as it is written, and the classes that its label map lost on a grid of other voxels."""
    loaded = load(case, meta.spatial_dims, replace(options, classes=meta.label_classes))
    shape, target = _target_grid(case, loaded, options, meta.spatial_dims)
    arrays = {"image": loaded.image} | ({"label": loaded.label} if loaded.label is not None else {})
    for name, array in arrays.items():
        affine = loaded.affine
        if options.orientation:
            array, affine = geometry.reorient(array, affine, options.orientation)
        order, blurred = (3, options.antialias) if name == "image" else (0, False)
        arrays[name] = geometry.resample(array, affine, shape, target, order=order, antialias=blurred)
    missed = sorted(fact.labels - set(_classes(arrays["label"]))) if "label" in arrays else []
    arrays["image"], fill = scaled(arrays["image"], fact.span[:, 0], fact.scale, options)
    size = (*options.grid, 1)[:3] if options.grid else shape
    image, affine, box = geometry.fit_centre(arrays["image"], target, size, fill)
    label = geometry.fit_centre(arrays["label"], target, size, np.zeros(1))[0][0] if "label" in arrays else None
    if meta.spatial_dims == 2:
        image, label = image[..., 0], None if label is None else label[..., 0]
    item = Item(
        image=image,
        label=label,
        attributes=record.attributes if meta.attribute_names else None,
        class_index=meta.class_names.index(record.class_name) if record.class_name else None,
        id=case.id,
        group=record.group,
        affine=affine,
        box=box,
    )
    return item, missed
