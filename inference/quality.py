"""The quality check at generation: what is usual in training, and how far a sample lies outside of it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any, NamedTuple

import numpy as np

from edm3d.formats.facts import Facts
from edm3d.formats.nifti import spacing_of
from edm3d.formats.sample_meta import MOST_ATTEMPTS
from edm3d.formats.volumes import VolumesFile
from edm3d.inference.conditions import Conditions
from edm3d.inference.first_stage import FirstStage
from edm3d.inference.snapshot import Snapshot
from edm3d.reporting.cases import Case, Layout
from edm3d.utils import distributed
from edm3d.utils.checks import listed, listed_apart
from edm3d.utils.log import progress
from edm3d.utils.schema import Quality

KEY = "sampling.quality"
TRAIN = "train"
LEAST = 2  # volumes that have a range
Spans = dict[str, list[float]]


class Ranges(NamedTuple):
    """What is usual of numbers by name, spans [lo, hi], of volumes of a layout, and how many draws a seed may have.

    record: what samples files say of it.
    """

    spans: Spans
    layout: Layout
    attempts: int
    record: dict[str, Any]

    def out(self, arrays: Mapping[str, np.ndarray], row: int) -> float:
        """How far a sample lies outside of the ranges, in widths of a range, by the number that is furthest out; 0
        inside of all. inf for what is not finite.
        """
        layout = self.layout
        if "affines" in arrays:  # voxel sizes were asked for
            layout = replace(layout, spacing=tuple(spacing_of(arrays["affines"][row])[:len(layout.spacing)]))
        label = arrays["labels"][row] if layout.label_classes else None
        found = numbers_of(Case("", arrays["images"][row], label), layout)
        return max(outside(found[name], *span) for name, span in self.spans.items())


def outside(value: float, lo: float, hi: float) -> float:
    """How far a value lies outside of [lo, hi], in its widths (of a range of no width: in its unit)."""
    if not np.isfinite(value):
        return inf
    return max(lo - value, value - hi, 0.0) / ((hi - lo) or 1.0)


def numbers_of(case: Case, layout: Layout) -> dict[str, float]:
    """Mean and std of the intensities of each channel, and the volume of each class, as reports have them."""
    from edm3d.reporting.sections.intensities import Intensities  # here, since charts come with it
    from edm3d.reporting.sections.structures import Structures
    parts = [Intensities(), *([Structures()] if len(layout.label_classes) > 1 else [])]
    return {name: value for part in parts for name, value in part.measure(case, layout).items()}


def check_quality(options: Quality) -> None:
    """ValueError for options of a quality check that none could follow."""
    if options.attempts is None:
        if options.reference is not None:
            raise ValueError(f"{KEY}.reference={options.reference}: nothing is drawn again without {KEY}.attempts; "
                             f"wanted as well {KEY}.attempts=4")
        return
    if not 1 <= options.attempts <= MOST_ATTEMPTS:
        raise ValueError(f"{KEY}.attempts={options.attempts}: wanted 1 to {MOST_ATTEMPTS}, or null for no check")
    if not 0 <= options.quantile < 0.5:
        raise ValueError(f"{KEY}.quantile={options.quantile}: wanted 0 or more and less than 0.5")
    if not 0 <= options.margin < inf:
        raise ValueError(f"{KEY}.margin={options.margin}: wanted 0 or more")
    if options.reference is not None:
        open_reference(options.reference)


def make_ranges(options: Quality, snapshot: Snapshot, stage: FirstStage | None, conditions: Conditions
                ) -> Ranges | None:
    """The ranges that samples are held against, None where none are asked for; stage: what decodes them, if any does.

    All ranks call this together. ValueError where samples have no numbers that ranges could be of, or nothing is known.
    """
    if options.attempts is None:
        return None
    if conditions.scans is not None:
        raise ValueError(f"{KEY}: images of scans are in the scale of each scan, and have no usual range; wanted "
                         f"{KEY}.attempts=null")
    if conditions.sweep is not None:
        raise ValueError(f"{KEY}: sampling.sweep draws all values of a seed from one noise, so none is drawn again by "
                         "itself; ask for one of the two")
    if conditions.pairs is not None:
        raise ValueError(f"{KEY}: sampling.pairs draws all classes of a seed from one noise, so none is drawn again by "
                         "itself; ask for one of the two")
    if snapshot.first_stage is not None and stage is None:
        raise ValueError(f"{KEY}: sampling.decode=false leaves latents, which have no intensities and volumes; wanted "
                         "sampling.decode=true")
    layout = layout_of(snapshot, stage)
    if options.reference is None:
        spans, said = known_spans(snapshot.facts, layout, options.margin), {}
        if not spans:
            raise ValueError(f"{KEY}: {snapshot.path} knows no range that a sample could leave (its intensities are "
                             "clipped, and none of its attributes is the volume of a class that it draws); wanted "
                             f"{KEY}.reference=FILE.h5 of volumes like those that it was trained on")
    else:
        size = stage.size_of(snapshot.shape[1:]) if stage else snapshot.shape[1:]
        named = bool(snapshot.facts.channels)
        spans, said = distributed.from_rank_0(lambda: measured_spans(options, layout, size, named))
    record = {"attempts": options.attempts, "quantile": options.quantile, "margin": options.margin, "ranges": spans,
              **said}
    return Ranges(spans, layout, options.attempts, record)


def layout_of(snapshot: Snapshot, stage: FirstStage | None) -> Layout:
    """What the images that are drawn have in common; classes only where label maps are drawn."""
    facts, coding = snapshot.facts, snapshot.label_coding
    labelled = stage.net.num_classes if stage else coding is not None
    count = (len(stage.facts.channels) or 1) if stage else snapshot.shape[0] - (coding.channels if coding else 0)
    channels = facts.channels or tuple(map(str, range(count)))
    i = facts.intensity
    return Layout(channels, facts.label_classes if labelled else (), tuple(map(float, facts.spacing)), i.lo, i.hi,
                  i.unit)


def widened(lo: float, hi: float, margin: float) -> list[float]:
    """A range with a share of its width more on each side."""
    return [lo - margin * (hi - lo), hi + margin * (hi - lo)]


def known_spans(facts: Facts, layout: Layout, margin: float) -> Spans:
    """What a snapshot knows: the range of an attribute that is the volume of a class, and, where the intensities are
    not clipped anyway, that of the intensities for their mean.
    """
    from edm3d.reporting.sections.structures import Structures
    prefixes = [f"{channel}_" for channel in layout.channels] if len(layout.channels) > 1 else [""]
    spans = {} if facts.intensity.clip else {f"{prefix}intensity_mean": widened(layout.lo, layout.hi, margin)
                                             for prefix in prefixes}
    units, known = Structures().units(layout), facts.attribute_statistics
    for a, name in enumerate(facts.attribute_names or () if known else ()):
        unit = (facts.attribute_units or ("",) * (a + 1))[a]
        if units.get(name, "") == unit != "" and a not in known.never():
            spans[name] = widened(known.lo[a], known.hi[a], margin)
    return spans


# ---- of a file ----


def open_reference(path: str) -> VolumesFile:
    """The volumes whose training split says what is usual; ValueError for a file that has none."""
    try:
        file = VolumesFile(path)
    except ValueError as e:
        raise ValueError(f"{KEY}.reference={path}: {e}") from e
    if TRAIN not in file.splits or file.length(TRAIN) < LEAST:
        raise ValueError(f"{KEY}.reference={path}: wanted a split {TRAIN!r} of {LEAST} volumes or more; it has "
                         + listed(f"{split} ({file.length(split)})" for split in file.splits))
    return file


def check_reference(file: VolumesFile, layout: Layout, size: Sequence[int], named: bool = True) -> list[int]:
    """Numbers of the channels of a file that samples of a layout have, by their order where these have no names.

    ValueError where it is of other volumes.
    """
    meta, said = file.meta, f"{KEY}.reference={file.path}"
    if meta.spatial_dims != len(size):
        raise ValueError(f"{said}: its volumes are in {meta.spatial_dims}D, samples in {len(size)}D")
    names = layout.channels if named or len(meta.channels) != len(layout.channels) else meta.channels
    if not set(names) <= set(meta.channels):
        raise ValueError(f"{said}: its channels are {listed(meta.channels)}, samples have {listed(layout.channels)}")
    if layout.label_classes and layout.label_classes != meta.label_classes:
        had, drawn = listed_apart(meta.label_classes, layout.label_classes)
        raise ValueError(f"{said}: its label classes are {had or 'none'}, samples have {drawn}")
    if (had := (meta.intensity.lo, meta.intensity.hi)) != (layout.lo, layout.hi):
        raise ValueError(f"{said}: its intensities are of the range {had}, those of samples {(layout.lo, layout.hi)}")
    return [meta.channels.index(name) for name in names]


def measured_spans(options: Quality, layout: Layout, size: Sequence[int], named: bool = True
                   ) -> tuple[Spans, dict[str, str]]:
    """Quantiles, widened, of all numbers over the training split of the reference, cut and padded to a size [*S] as
    networks saw it; and which file that was.
    """
    from edm3d.reporting.reference import file_volumes
    file = open_reference(options.reference)
    channels = check_reference(file, layout, size, named)
    cases = file_volumes(file, TRAIN, channels, f"{KEY}.reference").fitted(size, layout.lo)
    rows = [numbers_of(case, replace(layout, spacing=tuple(spacing_of(affine)[:len(size)]))) for case, affine in zip(
        progress(cases, total=len(cases), desc="quality", unit="volume"), file.affines(TRAIN), strict=True)]
    tails = (options.quantile, 1 - options.quantile)
    spans = {name: widened(*map(float, np.quantile([row[name] for row in rows], tails)), options.margin)
             for name in rows[0]}
    return spans, {"source": str(options.reference), "hash": file.content_hash}
