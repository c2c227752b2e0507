"""What generated and real volumes have in common, and what is said of the samples."""

from collections.abc import Mapping
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from edm3d.formats.asked_words import drawn_again
from edm3d.formats.facts import rows_of
from edm3d.formats.nifti import spacing_of
from edm3d.formats.patients import groups_by_name
from edm3d.formats.samples import SamplesFile
from edm3d.formats.volumes import VolumesFile
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.section import missing
from edm3d.utils.checks import listed, listed_apart
from edm3d.utils.files import file_hash
from edm3d.utils.names import one_line

IGNORED = "--ignore-spacing"
NO_PATIENTS: Mapping[str, str] = {}


def shared_layout(samples: SamplesFile, file: VolumesFile, ignore_spacing: bool) -> Layout:
    """What samples and real volumes have in common; ValueError naming where they differ."""
    facts, meta = samples.meta.facts, file.meta
    if "images" not in samples.names:
        raise ValueError(f"{samples.path}: holds latents but no images; generate with sampling.decode=true")
    channels, classes = facts.channels, facts.label_classes
    if unknown := [name for name in channels if name not in meta.channels]:
        raise ValueError(f"{samples.path}: channels {listed(unknown)} are not in {file.path}, which has "
                         f"{listed(meta.channels)}; give --real the file that the networks were trained on, or one "
                         "like it")
    found = {"label classes": (classes, meta.label_classes),
             "intensity range": ((facts.intensity.lo, facts.intensity.hi), (meta.intensity.lo, meta.intensity.hi)),
             "number of axes": (samples.row("images", 0).ndim - 1, file.meta.spatial_dims)}
    for what, (got, wanted) in found.items():
        if got != wanted:
            got, wanted = listed_apart(got, wanted) if what == "label classes" else (got, wanted)
            raise ValueError(f"{samples.path}: {what} {got} differs from {wanted} of {file.path} (--real)")
    dims, spacing = meta.spatial_dims, spacing_of(samples.affine)[: meta.spatial_dims]
    real_spacing = spacing
    if not ignore_spacing:
        spacing = shared_spacing(samples.path, affines_of(samples), dims, f"{IGNORED} measures them all the same")
        real_spacing = shared_spacing(file.path, affines_of(file), dims,
                                      f"prepare it anew with --spacing, or {IGNORED}")
    if not np.allclose(spacing, real_spacing, rtol=1e-3):
        raise ValueError(f"{samples.path}: voxels of {spacing.round(4)} mm differ from {real_spacing.round(4)} mm of "
                         f"{file.path} (--real); prepare that with --spacing, or {IGNORED}")
    labelled = classes if "labels" in samples.names else ()
    return Layout(channels, labelled, tuple(float(s) for s in spacing), meta.intensity.lo, meta.intensity.hi,
                  meta.intensity.unit, rows_of(samples.affine),
                  facts.class_names if set(facts.class_names) <= set(meta.class_names) else (), attributes_of(samples))


def attributes_of(samples: SamplesFile) -> tuple[tuple[str, str], ...]:
    """Name and unit of each attribute that samples may have been asked for by."""
    names, units = samples.meta.facts.attribute_names or (), samples.meta.facts.attribute_units or ()
    return tuple(zip(names, units or [""] * len(names), strict=True)) if "attributes" in samples.names else ()


def shared_spacing(path: Path, affines: Mapping[str, np.ndarray], dims: int, advice: str) -> np.ndarray:
    """Voxel size per axis in mm of volumes by name; ValueError naming those whose own differs from that of the first.
    """
    found = {name: spacing_of(affine)[:dims] for name, affine in affines.items()}
    first, wanted = next(iter(found.items()))
    if others := [f"{name} {size.round(4)}" for name, size in found.items()
                  if not np.allclose(size, wanted, rtol=1e-3)]:
        raise ValueError(f"{path}: voxels of {one_line(first)} are {wanted.round(4)} mm, those of {len(others)} others "
                         f"are not: {listed(others)}; {advice}")
    return wanted


def affines_of(file: SamplesFile | VolumesFile) -> dict[str, np.ndarray]:
    """Voxel index -> mm [4,4] of each sample or volume, by what messages call it."""
    if isinstance(file, SamplesFile):
        return {f"seed {seed}": file.affine_of(i) for i, seed in enumerate(file.seeds)}
    return {name: affine for split in file.splits for name, affine in zip(file.ids(split), file.affines(split))}


def sample_case(samples: SamplesFile, index: int, layout: Layout, patients: Mapping[str, str] = NO_PATIENTS) -> Case:
    """A generated volume; patients: of volumes by their ids, by which samples may have been asked for."""
    label = samples.row("labels", index) if layout.label_classes else None
    return Case(f"seed-{samples.seeds[index]:06d}", samples.row("images", index), label,
                samples.meta.class_name(samples.row("classes", index)) or
                samples.meta.paired_class(int(samples.seeds[index])), samples.row("maps", index),
                samples.row("attributes", index) if layout.attributes else None, samples.affine_of(index),
                patient_of(samples, index, patients))


def patient_of(samples: SamplesFile, index: int, patients: Mapping[str, str]) -> str:
    """Which generated volumes are of one patient: those asked for by rows of a file that are, in one turn through it
    (by the patients of volumes of their ids, else by these), else those of the same noise.
    """
    meta, seed = samples.meta, int(samples.seeds[index])
    if not meta.ids:
        return f"noise {meta.key_of(seed)}"
    patient = patients.get(meta.id_of(seed)) or patients_of(tuple(meta.ids))[meta.row_of(seed)]
    return f"{patient}, turn {meta.noise_of(seed) // len(meta.ids)}"


@lru_cache(maxsize=4)
def patients_of(ids: tuple[str, ...]) -> list[str]:
    """The patient of each row of a file, by its id."""
    known = groups_by_name(ids).of
    return [known[id_] for id_ in ids]


def describe_samples(samples: SamplesFile, snapshot: Path | None, labels_known: bool) -> dict:
    """What was generated, by what; labels_known: whether the real volumes have label maps."""
    without = "the samples hold no label maps: only images are compared" if labels_known else \
        "neither the samples nor the real volumes have label maps: only images are compared"
    return {"path": str(samples.path), "sha256": file_hash(samples.path), "num": len(samples),
            "seeds": ranges(samples.seeds), "snapshot": str(snapshot or samples.meta.snapshot),
            "snapshot_hash": samples.meta.snapshot_hash, "sampling": tame(samples.meta.sampling),
            "quality": describe_quality(samples),
            "trained_on": {"source": samples.meta.facts.source, "content_hash": samples.meta.facts.content_hash},
            "privacy": {"available": True, **samples.meta.privacy.plain()} if samples.meta.privacy else
            missing("the network was not trained privately"),
            "labels": missing(without) if "labels" not in samples.names else
            {"available": True, **(samples.meta.labelling._asdict() if samples.meta.labelling else {})}}


def tame(value: Any) -> Any:
    """Plain data out of a file as report.json can hold it: numbers that do not exist are text."""
    if isinstance(value, Mapping):
        return {str(name): tame(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [tame(each) for each in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def describe_quality(samples: SamplesFile) -> dict:
    """How many samples were drawn again, and which are still out of the ranges that they were held against."""
    quality = samples.meta.quality
    if quality is None:
        return missing("the samples were drawn without sampling.quality: all are kept as they came")
    attempts, flagged = samples.array("attempts"), samples.array("flagged") > 0
    counts = np.bincount(attempts, minlength=quality.attempts)
    return {"available": True, "attempts": quality.attempts, "num_of_attempt": counts.tolist(),
            "flagged": int(flagged.sum()), "flagged_seeds": ranges(samples.seeds[flagged]) if flagged.any() else "",
            "ranges": quality.ranges, "said": drawn_again(samples)[0]}


def ranges(seeds: np.ndarray) -> str:
    """Increasing numbers as a list of ranges: 0-3,7."""
    runs = np.split(seeds, np.flatnonzero(np.diff(seeds) != 1) + 1)
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
