"""Label maps of images by a trained segmenter: into a file like that of the images, or NIfTI in a folder.

Split over ranks, restartable: finished label maps lie as parts beside the file to be, or as NIfTI in the folder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edm3d.formats import h5
from edm3d.formats.nifti import spacing_of
from edm3d.formats.prepare_facts import raise_all
from edm3d.formats.sample_settings import Labelling
from edm3d.formats.samples import SamplesFile, write_rows
from edm3d.formats.volumes import DTYPES, VolumesFile, VolumesWriter, is_volumes
from edm3d.inference.label_folder import MONTAGE, LabelFolder
from edm3d.inference.parts import (
    Arrays,
    Parts,
    check_alike,
    check_shapes,
    check_types,
    made_before,
    make_missing,
    missing_of,
    ranks_at_work,
)
from edm3d.inference.predictor import Predictor, open_predictor
from edm3d.inference.segment_grid import Difference, Placed, Trained, difference
from edm3d.inference.segment_said import said_of
from edm3d.inference.segment_sources import FOLDER, SAMPLES, VOLUMES, Row, Scan, SegmentSource, open_source
from edm3d.utils import distributed, locks
from edm3d.utils.checks import listed
from edm3d.utils.files import check_dest, check_dest_folder, check_free_disk, remove_temporary, resolved
from edm3d.utils.log import RunLog, progress
from edm3d.utils.names import one_line
from edm3d.utils.precision import resolve_precision
from edm3d.utils.runs import passed_over

UNLIKE = ("source_hash", "network_hash", "settings")  # what label maps depend on


class SegmentOptions(NamedTuple):
    """How to segment.

    split: of a volumes file, None for all; image_pattern: what the images of a folder are called, as in `prepare`;
    resample: see images at the voxel size of training; montage: images in the picture beside, 0 for none.
    """

    split: str | None = None
    image_pattern: str | None = None
    resample: bool = False
    montage: int = 6
    batch_size: int = 1
    precision: str = "fp32"
    overwrite: bool = False
    trust: bool = False
    num_threads: int = 0


class SegmentJob(NamedTuple):
    """What turns images into label maps."""

    predictor: Predictor
    source: SegmentSource
    trained: Trained
    options: SegmentOptions


def segment(network: str, source: Path, dest: Path, options: SegmentOptions, run_root: Path = Path("results")) -> None:
    """Write the label maps of all images of a volumes file, samples file or folder. Every rank calls this."""
    check_place(dest, source, network)
    with (ranks_at_work("auto", options.num_threads) as (device, log), locks.output(dest, is_folder=not dest.suffix)):
        predictor = open_predictor(network, run_root, device, precision=resolve_precision(options.precision, device),
                                   trust=options.trust)
        snapshot = predictor.snapshot
        if not predictor.of_voxels:
            raise ValueError(f"--network {network}: {snapshot.path} tells the class of an image "
                             f"({predictor.predicts}); wanted a network trained with training.task=segmentation")
        log(f"Network     {snapshot.path}")
        found = open_source(source, predictor, options.split, options.image_pattern)
        for line in [*passed_over(snapshot.path, network, run_root), *found.notes]:
            log(line)
        job = SegmentJob(predictor, found, Trained.of(snapshot.facts.affine), options)
        provenance = {"kind": "segment", "source": str(source), "source_hash": found.content_hash,
                      "network": str(snapshot.path), "network_hash": snapshot.hash, "settings": settings(options)}
        (segment_to_file if dest.suffix else segment_to_folder)(dest, job, provenance, log)


def check_place(dest: Path, source: Path, network: str) -> None:
    """ValueError where dest can be neither a file like the source nor a folder, or would take an input's place."""
    inputs = {"--source": source, "--network": network}
    if not source.exists():
        raise ValueError(f"--source {source}: no such file or folder")
    if dest.suffix not in (".h5", "") or (not dest.suffix and dest.is_file()):
        raise ValueError(f"--dest {dest}: wanted a file like the source (.h5), or a folder for NIfTI")
    if dest.suffix and source.is_dir():
        raise ValueError(f"--dest {dest}: of a folder of images the label maps become a folder of NIfTI; of both "
                         "`prepare` makes one file")
    if dest.suffix:
        check_dest(dest, ".h5", inputs)
        return
    check_dest_folder(dest, inputs)
    if source.is_dir() and resolved(source) in resolved(dest).parents:
        raise ValueError(f"--dest {dest}: lies in --source {source}, whose images are read; wanted a folder beside it")


def settings(options: SegmentOptions) -> dict[str, Any]:
    """What label maps depend on besides images and network."""
    return {"precision": options.precision, **({"split": options.split} if options.split else {}),
            **({"resample": True} if options.resample else {})}


# ---- the work ----


def segment_missing(job: SegmentJob, pieces: Parts | LabelFolder, missing: Sequence[int]) -> None:
    """Segment this rank's share: a label map [*S] uint8 of each image, on its own grid."""
    rows = job.source.rows

    def read(numbers: list[int]) -> list[tuple[Scan, Placed]]:
        scans = [rows[n].read() for n in numbers]
        return [(scan, placed(job, rows[n], scan)) for n, scan in zip(numbers, scans, strict=True)]

    def made(numbers: list[int], found: list[tuple[Scan, Placed]]) -> list[Arrays]:
        labels = job.predictor.each([each.image for _, each in found], [rows[n].id for n in numbers])
        return [{"label": each.back(label), "affine": np.eye(4) if scan.affine is None else scan.affine}
                for (scan, each), label in zip(found, labels, strict=True)]

    make_missing(pieces, missing, job.options.batch_size, made, read=read, desc="segment", unit="image")


def placed(job: SegmentJob, row: Row, scan: Scan) -> Placed:
    """An image on the axes of training; ValueError naming one that no memory holds at its voxel size."""
    try:
        return Placed(scan.image, scan.affine, job.trained, job.options.resample)
    except ValueError as error:
        raise ValueError(f"{job.source.path}: {one_line(row.id)}: --resample: {error}") from error


def look_at(job: SegmentJob, missing: Sequence[int], log: RunLog) -> None:
    """Say, before anything is segmented, in what images are unlike those of training.

    Those of a folder are read for it; ValueError naming all that cannot be used.
    """
    found: list[tuple[int, Difference, float, float]] = []
    problems = []
    mine = missing[distributed.rank()::distributed.world_size()]
    desc = "check" if job.source.kind == FOLDER else None
    for number in progress(mine, desc=desc, unit="image", is_main=distributed.rank() == 0) if desc else mine:
        row = job.source.rows[number]
        try:
            scan = row.read() if row.where is None else None
        except ValueError as error:
            problems.append(str(error))
            continue
        affine, size = row.where or (scan.affine, scan.image.shape[1:])
        found.append((number, difference(size, affine, job.trained),
                      *((scan.outside, scan.filled) if scan else (0.0, 1.0))))
    problems = list(chain(*distributed.gather_objects(problems)))
    if len(problems) == 1:
        raise ValueError(problems[0])
    raise_all(problems, len(missing))
    named = [(job.source.rows[number].id, *rest) for number, *rest in sorted(
        chain(*distributed.gather_objects(found)), key=lambda each: each[0])]
    for line in said_of(named, job.trained, job.predictor.facts.intensity, job.options.resample):
        log(line)


# ---- a file ----


def segment_to_file(dest: Path, job: SegmentJob, provenance: dict, log: RunLog) -> None:
    """A file like the source, made of parts that lie beside it until all are there; it is what is written last."""
    source, numbers = job.source, range(len(job.source.rows))
    parts = Parts(Path(f"{dest}.parts"), [provenance[name] for name in UNLIKE], partial(check_part, job))
    picture = Path(f"{dest}.png")
    distributed.from_rank_0(lambda: (parts.tidy(), remove_temporary(picture.parent, picture.name)))
    there, write = {VOLUMES: (has_volumes, write_volumes), SAMPLES: (has_samples, write_samples)}[source.kind]
    if distributed.from_rank_0(lambda: there(dest, provenance, job.options.overwrite)):
        log(f"{dest}: all {len(numbers)} there already")
        distributed.from_rank_0(parts.remove)
        return
    space = sum(prod(row.where[1]) for row in source.rows)
    distributed.from_rank_0(lambda: check_free_disk(dest.parent, space + source.path.stat().st_size))
    missing = missing_of(parts, numbers)
    look_at(job, missing, log)
    segment_missing(job, parts, missing)
    if distributed.rank() == 0:
        if job.options.montage:
            write_montage(picture, parts, job)
        write(dest, parts, job, provenance)
        parts.remove()
        log(made_line(dest, len(numbers), len(missing)))
        if source.kind == VOLUMES and (lost := others_columns(source)):
            log(f"Note: columns of others are left out: {listed(lost)}")
        if job.options.montage:
            log(f"Montage     {picture}")


def check_part(job: SegmentJob, number: int, arrays: Arrays) -> None:
    """ValueError for arrays that segment_missing cannot have made."""
    check_shapes(arrays, {"label": job.source.rows[number].where[1], "affine": (4, 4)})
    check_types(arrays, {"label": "uint8", "affine": "float64"})
    if (highest := arrays["label"].max()) >= (count := len(job.predictor.predicts.names)):
        raise ValueError(f"label is up to {highest}, wanted values below {count}")


def has_volumes(dest: Path, provenance: dict, overwrite: bool) -> bool:
    """Whether a volumes file holds these label maps; ValueError for another that may not be overwritten."""
    old = made_before(dest, overwrite, VolumesFile, is_volumes)
    if old is None:
        return False
    check_alike(f"{dest}: holds volumes of", old.provenance, {name: provenance[name] for name in ("kind", *UNLIKE)},
                "choose another --dest, or --overwrite it")
    return True


def write_volumes(dest: Path, parts: Parts, job: SegmentJob, provenance: dict) -> None:
    """The volumes file, its label maps those of the parts."""
    file, splits = job.source.file, job.source.splits
    meta = replace(file.meta, label_classes=job.predictor.predicts.names)
    dtype, number = str(file.grid(splits[0], "images", 0).dtype), 0
    with (VolumesWriter(dest, meta, provenance, image_dtype=dtype) as writer,
          progress(total=len(job.source.rows), desc="write", unit="volume") as bar):
        for split in splits:
            ranges = file.table(split, "intensity_ranges")
            for index in range(file.length(split)):
                item = file.read(split, index)._replace(label=parts.read(number, "label")["label"])
                writer.add(split, item, None if ranges is None else ranges[index])
                number += 1
                bar.update(1)


def others_columns(source: SegmentSource) -> list[str]:
    """Names of columns of a volumes file that we do not write."""
    return sorted({name for split in source.splits for name in source.file.tables(split)} - DTYPES.keys())


def labelling(provenance: Mapping[str, Any]) -> Labelling:
    """What samples say of the segmenter that gave them their label maps."""
    return Labelling(provenance["network"], provenance["network_hash"], provenance["source_hash"],
                     provenance["settings"])


def is_samples(path: Path) -> None:
    """ValueError for a file that is no samples file."""
    h5.check_holds(path, "samples")


def has_samples(dest: Path, provenance: dict, overwrite: bool) -> bool:
    """Whether a samples file holds these label maps; ValueError for another that may not be overwritten."""
    old = made_before(dest, overwrite, SamplesFile, is_samples)
    if old is None:
        return False
    had = old.meta.labelling._asdict() if old.meta.labelling else {}
    wanted = labelling(provenance)._asdict()
    check_alike(f"{dest}: holds label maps of", had, {name: wanted[name] for name in ("hash", "source", "settings")},
                "choose another --dest, or --overwrite it")
    return True


def write_samples(dest: Path, parts: Parts, job: SegmentJob, provenance: dict) -> None:
    """The samples file, its label maps those of the parts; it says which segmenter they are of."""
    file, had = job.source.file, job.source.file.meta
    asked = had.facts.semantic_classes if "maps" in file.names else None  # of maps, which keep their own names
    facts = replace(had.facts, label_classes=job.predictor.predicts.names, map_classes=asked or had.facts.map_classes)
    meta = had._replace(facts=facts, sampling=had.sampling | {"labels": labelling(provenance)._asdict()})

    def row(name: str, index: int) -> np.ndarray:
        return parts.read(index, "label")["label"] if name == "labels" else file.row(name, index)

    names = dict.fromkeys([*file.names, "labels"])
    write_rows(dest, list(map(int, file.seeds)), list(names), row, file.affine, meta)


# ---- a folder ----


def segment_to_folder(dest: Path, job: SegmentJob, provenance: dict, log: RunLog) -> None:
    """NIfTI of every label map, and a record of what is finished."""
    rows, options = job.source.rows, job.options
    if job.source.kind != FOLDER and len(rows[0].where[1]) == 1:
        raise ValueError(f"--dest {dest}: NIfTI holds images and volumes, those of {job.source.path} are signals (1D)")
    folder = LabelFolder(dest, rows, provenance, UNLIKE, job.predictor.predicts)
    folder.check(options.overwrite)
    missing = missing_of(folder, range(len(rows)))
    look_at(job, missing, log)
    for line in folder.begin():
        log(line)
    lacks_montage = bool(options.montage) and bool(missing or not distributed.from_rank_0(folder.has_montage))
    for line in folder.changed():
        log(line)
    if not missing and not lacks_montage:
        log(f"{dest}: all {len(rows)} there already")
        return
    segment_missing(job, folder, missing)
    if distributed.rank() == 0:
        log(made_line(dest, len(rows), len(missing)))
        if lacks_montage:
            with folder.writing_montage() as temporary:
                write_montage(temporary, folder, job)
            log(f"Montage     {dest / MONTAGE}")
        folder.manifest.settle()


def made_line(dest: Path, count: int, made: int) -> str:
    """How many label maps there are, and how many there were."""
    return f"{dest}: {count} label maps" + (f" ({count - made} there already)" if made < count else "")


# ---- the picture ----


def write_montage(path: Path, pieces: Parts | LabelFolder, job: SegmentJob) -> None:
    """A PNG of the first images, as the network sees them, with the label maps: those that lie as the first one does.
    """
    from edm3d.reporting.montages import montage, save_png

    shown, first, classes = [], None, job.predictor.predicts.names
    for number, row in enumerate(job.source.rows[:job.options.montage]):
        scan = row.read()
        affine = np.eye(4) if scan.affine is None else scan.affine
        first = affine if first is None else first
        label, size = pieces.read(number)["label"], scan.image.shape[1:]
        if label.size != prod(size) or label.max() >= len(classes):
            label = np.zeros(size, np.uint8)  # somebody has corrected it, to what no picture shows
        if np.allclose(affine[:3, :3], first[:3, :3], rtol=1e-3):
            shown.append((row.id, (scan.image, label.reshape(size))))
    save_png(montage([("Segmented", [pair for _, pair in shown])], spacing_of(first)[:shown[0][1][0].ndim - 1],
                     label_classes=classes, channels=job.predictor.facts.channels,
                     captions=[name for name, _ in shown], affine=first), path)
