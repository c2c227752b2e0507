"""Decode latents that were made earlier or elsewhere, into a volumes file or a folder of NIfTI.

Split over ranks, restartable: finished volumes lie as parts beside the file to be, or as NIfTI in the folder.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from edm3d.formats.facts import Facts
from edm3d.formats.intensity import Intensity
from edm3d.formats.nifti import spacing_of
from edm3d.formats.volumes import Item, VolumesFile, VolumesMeta, VolumesWriter, full_box, is_volumes
from edm3d.inference.conditions import stacked
from edm3d.inference.first_stage import FirstStage, check_decoding, tile_note, tiled
from edm3d.inference.latent_source import (
    CARRIED,
    LatentSource,
    affine_of,
    build_net,
    find_stage,
    open_source,
)
from edm3d.inference.nifti_folder import MONTAGE, NiftiFolder
from edm3d.inference.parts import (
    Arrays,
    Parts,
    Pieces,
    check_alike,
    check_shapes,
    check_types,
    made_before,
    make_missing,
    missing_of,
    ranks_at_work,
)
from edm3d.inference.refiner import Refiner, open_refiner
from edm3d.networks.tiles import Tiles
from edm3d.reporting.slices import Asked
from edm3d.utils import distributed, locks
from edm3d.utils.files import check_dest, check_dest_folder, check_free_disk, remove_temporary
from edm3d.utils.log import RunLog, progress
from edm3d.utils.precision import resolve_precision
from edm3d.utils.runs import passed_over

UNLIKE = ("latents_hash", "first_stage", "settings")  # what volumes depend on
KNOWN = {"class_labels": lambda row: row.class_index, "attributes": lambda row: row.attributes,
         "semantic": lambda row: row.semantic()}  # of rows, by part of a condition, None for nothing


class DecodeOptions(NamedTuple):
    """How to decode; tiles: None for whole volumes.

    compare: say by how much tiles differ from the whole, whose memory that takes. refiner: a name, run folder or
    snapshot of what refines the images. uint8: write whole numbers 0 to 255,
    which span the intensity range. montage: volumes in the picture beside them, 0 for none.
    """

    batch_size: int = 1
    precision: str = "fp32"
    tiles: Tiles | None = None
    compare: bool = True
    uint8: bool = False
    montage: int = 6
    overwrite: bool = False
    trust: bool = False
    num_threads: int = 0
    refiner: str | None = None


class DecodeJob(NamedTuple):
    """What turns latents into volumes on grids [*S]. whole: what to hold the first of them against, decoded in tiles.

    facts: of the volumes as they are written. carried: what each gets that lies beside its latents (see CARRIED).
    refiner: None for images as the first stage gives them.
    """

    source: LatentSource
    stage: FirstStage
    whole: FirstStage | None
    facts: Facts
    shape: tuple[int, ...]
    options: DecodeOptions
    carried: tuple[str, ...] = ()
    refiner: Refiner | None = None


def decode(latents: Path, dest: Path, options: DecodeOptions, *, autoencoder: str | None = None,
           network: str | None = None, run_root: Path = Path("results")) -> None:
    """Decode all rows of a samples or latents file, ours or DIFF-3's; ValueError for those of another first stage.

    Every rank calls this; each decodes its share.
    """
    check_place(dest, {"--latents": latents, "--autoencoder": autoencoder, "--network": network})
    with (ranks_at_work("auto", options.num_threads) as (device, log), locks.output(dest, is_folder=not dest.suffix)):
        source = open_source(latents)
        carried, facts, chosen = find_stage(source, latents, autoencoder, network, run_root)
        log(f"First stage {chosen}")
        for line in passed_over(chosen, autoencoder or network or str(latents), run_root):
            log(line)
        if autoencoder is not None and source.stage is not None and source.stage.hash is None:
            log(f"Note: {latents} does not say which first stage its latents are of; that it is this one cannot be "
                "checked")
        net = build_net(carried, source, str(chosen), options.trust)
        stage = FirstStage(net, facts, carried.scaling, resolve_precision(options.precision, device)).to(device)
        job = make_job(source, stage, options)
        refiner = options.refiner and refiner_of(job, carried.hash, run_root)
        job = job._replace(refiner=refiner)
        provenance = {"kind": "decode", "latents": str(latents), "latents_hash": source.content_hash,
                      "first_stage": carried.hash, "settings": settings(options, refiner)}
        (decode_to_file if dest.suffix else decode_to_folder)(dest, job, provenance, log)


def check_place(dest: Path, inputs: dict[str, Path | str | None]) -> None:
    """ValueError where dest can be neither a volumes file nor a folder, or would take an input's place."""
    if dest.suffix not in (".h5", "") or (not dest.suffix and dest.is_file()):
        raise ValueError(f"--dest {dest}: wanted a volumes file (.h5), or a folder for NIfTI")
    if dest.suffix:
        check_dest(dest, ".h5", inputs)
    else:
        check_dest_folder(dest, inputs)


def decode_to_file(dest: Path, job: DecodeJob, provenance: dict, log: RunLog) -> None:
    """A volumes file, made of parts that lie beside it until all are there; it is what is written last."""
    numbers = range(len(job.source.rows))
    parts = Parts(Path(f"{dest}.parts"), [provenance[name] for name in UNLIKE], partial(check_part, job))
    path = Path(f"{dest}.png")
    distributed.from_rank_0(lambda: (parts.tidy(), remove_temporary(path.parent, path.name)))
    if distributed.from_rank_0(lambda: is_there(dest, provenance, job.options.overwrite)):
        log(f"{dest}: all {len(numbers)} there already")
        distributed.from_rank_0(parts.remove)
        return
    distributed.from_rank_0(lambda: check_space(dest, job))
    missing = missing_of(parts, numbers)
    decode_missing(job, parts, missing, log)
    if distributed.rank() == 0:
        if rows := job.source.rows[:job.options.montage]:
            write_montage(path, parts, job)
        write_volumes(dest, parts, job, provenance)
        parts.remove()
        log(made_line(dest, len(numbers), len(missing)))
        if rows:
            log(f"Montage     {path}")


def decode_to_folder(dest: Path, job: DecodeJob, provenance: dict, log: RunLog) -> None:
    """NIfTI of every row, and a record of what is finished."""
    rows = job.source.rows
    folder = NiftiFolder(dest, rows, job.facts, job.shape, provenance, UNLIKE, job.carried)
    for line in folder.begin(job.options.overwrite):
        log(line)
    missing = missing_of(folder, range(len(rows)))
    lacks_montage = bool(job.options.montage) and not distributed.from_rank_0(folder.has_montage)
    for line in folder.changed():
        log(line)
    if not missing and not lacks_montage:
        log(f"{dest}: all {len(rows)} there already")
        return
    distributed.from_rank_0(lambda: check_space(dest, job))
    decode_missing(job, folder, missing, log)
    if distributed.rank() == 0:
        log(made_line(dest, len(rows), len(missing)))
        if job.options.montage:
            with folder.writing_montage() as temporary:
                write_montage(temporary, folder, job)
            log(f"Montage     {dest / MONTAGE}")
        folder.manifest.settle()


def made_line(dest: Path, count: int, made: int) -> str:
    """How many volumes there are, and how many there were."""
    return f"{dest}: {count} volumes" + (f" ({count - made} there already)" if made < count else "")


def check_space(dest: Path, job: DecodeJob) -> None:
    """ValueError when the disk has no room for parts and file; what will be compressed is not foreseen."""
    facts, uint8 = job.facts, job.options.uint8
    channels = len(facts.channels) + len(facts.condition_channels or ()) * ("cond" in job.carried)
    volume = prod(job.shape) * (channels * (1 if uint8 else 4) + bool(facts.label_classes) + ("map" in job.carried))
    check_free_disk(dest.parent, len(job.source.rows) * volume * (1 if uint8 else 2))


def settings(options: DecodeOptions, refiner: Refiner | None) -> dict:
    """What volumes depend on besides latents and first stage."""
    return {"precision": options.precision, **(options.tiles.plain() if options.tiles else {}),
            **({"uint8": True} if options.uint8 else {}), **({"refiner": refiner.record} if refiner else {})}


# ---- the work ----


def make_job(source: LatentSource, stage: FirstStage, options: DecodeOptions) -> DecodeJob:
    """All that decoding takes, checked before anything is decoded."""
    latent_size = source.rows[0].latents().shape[1:]
    shape = stage.size_of(latent_size)
    check_decoding(stage, latent_size, options.batch_size, "--latents")
    return DecodeJob(source, *tiled(stage, options.tiles, options.compare),
               in_bytes(stage.facts) if options.uint8 else stage.facts, shape, options,
               carried_by(source, stage.facts, shape))


def refiner_of(job: DecodeJob, hash_: str | None, run_root: Path) -> Refiner:
    """The refiner that is asked for; ValueError for one of another first stage than that of a hash."""
    options, stage, source = job.options, job.stage, job.source
    refiner = open_refiner(options.refiner, run_root, stage.device, precision=stage.precision, tiles=options.tiles,
                           trust=options.trust, key="--refiner")
    told = {name for name, of in KNOWN.items()
            if name in refiner.takes and any(of(row) is not None for row in source.rows)}
    refiner.check(stage, hash_, stage.facts, told, source.path, "--refiner")
    refiner.check_size(job.shape, "--refiner")
    return refiner


def carried_by(source: LatentSource, facts: Facts, shape: tuple[int, ...]) -> tuple[str, ...]:
    """What lies beside all latents and is of volumes of a shape [*S]; ValueError where it is of others."""
    known = {"map": facts.semantic_classes, "cond": facts.condition_channels}
    found = tuple(kind for kind in CARRIED if known[kind] and all(kind in row.carried for row in source.rows))
    for kind in found:
        if (had := source.rows[0].carried[kind]().shape[kind == "cond":]) != shape:
            raise ValueError(f"{source.path}: {CARRIED[kind]} are {list(had)}, and its latents become volumes of "
                             f"{list(shape)}; wanted one grid")
    return found


def decode_missing(job: DecodeJob, pieces: Pieces, missing: Sequence[int], log: RunLog) -> None:
    """Decode this rank's share: an image [C,*S] and, where there are label classes, a label map [*S] of each row.

    What lies beside its latents goes with it.
    """
    rows = job.source.rows

    def told(numbers: list[int]) -> str:
        return f"{job.source.path}: latents of {rows[numbers[0]].id} to {rows[numbers[-1]].id}"

    def made(numbers: list[int], latents: np.ndarray) -> list[dict[str, np.ndarray]]:
        z = torch.from_numpy(latents).to(job.stage.device)
        if not z.isfinite().all():
            raise ValueError(f"{told(numbers)} are not finite: they cannot be decoded")
        maps = [rows[n].semantic() for n in numbers] if job.stage.masked else [None]
        semantic = None if maps[0] is None else torch.from_numpy(np.stack(maps)).to(job.stage.device)
        image, label = job.stage.decode(z, semantic)
        if not image.isfinite().all():
            raise ValueError(f"{told(numbers)} become values that are not finite: they are damaged, or of another "
                             "first stage")
        if job.whole is not None and numbers[0] == missing[0]:
            log(tile_note(job.whole, z[:1], image[:1], *(None if t is None else t[:1] for t in (label, semantic))))
        if job.refiner is not None:
            these = [rows[n] for n in numbers]
            known = {name: [of(row) for row in these] for name, of in KNOWN.items() if name in job.refiner.takes}
            image = job.refiner(image, label, [row.key for row in these],
                                stacked(known, job.refiner.takes, job.shape).to(job.stage.device))
        image = image.cpu().numpy()
        if job.options.uint8:
            image = job.stage.facts.intensity.to_bytes(image)
        arrays = {"image": image} if label is None else {"image": image, "label": label.cpu().numpy()}
        return [{name: array[i] for name, array in arrays.items()} | carried(n) for i, n in enumerate(numbers)]

    def carried(number: int) -> dict[str, np.ndarray]:
        found = {kind: rows[number].carried[kind]() for kind in job.carried}
        return {kind: job.stage.facts.intensity.to_bytes(array) if kind == "cond" and job.options.uint8 else array
                for kind, array in found.items()}

    make_missing(pieces, missing, job.options.batch_size, made, desc="decode", unit="volume",
                 read=lambda numbers: np.stack([rows[n].latents() for n in numbers]))


# ---- what comes out ----


def check_part(job: DecodeJob, _: int, arrays: Arrays) -> None:
    """ValueError for arrays that decode_missing cannot have made."""
    shapes = {"map": job.shape, "cond": (len(job.facts.condition_channels or ()), *job.shape)}
    check_shapes(arrays, {"image": (len(job.facts.channels) or None, *job.shape),
                          **({"label": job.shape} if job.facts.label_classes else {}),
                          **{kind: shapes[kind] for kind in job.carried}})
    count = len(job.facts.label_classes)
    check_types(arrays, {"image": "uint8" if job.options.uint8 else "float32", **({"label": "uint8"} if count else {})})
    if count and (highest := arrays["label"].max()) >= count:
        raise ValueError(f"label is up to {highest}, wanted values below {count}")


def in_bytes(facts: Facts) -> Facts:
    """What is known of the volumes when their intensity range is 0 to 255 in whole numbers, uint8."""
    had = facts.intensity
    is_bytes = (had.lo, had.hi) == (0, 255)
    unit = had.unit if is_bytes else f"255ths of {had.lo:g} to {had.hi:g} {had.unit}"
    return replace(facts, intensity=Intensity(0.0, 255.0, True, unit))


def write_montage(path: Path, pieces: Parts | NiftiFolder, job: DecodeJob) -> None:
    """A PNG of the first volumes with their ids."""
    from edm3d.reporting.montages import montage, save_png
    rows = job.source.rows[:job.options.montage]
    found = [pieces.read(number) for number in range(len(rows))]
    affine = affine_of(rows[0], job.facts)
    spacing = spacing_of(affine)[:len(job.shape)]
    asked = Asked.of(job.facts, {CARRIED[kind]: [each[kind] for each in found] for kind in job.carried})
    save_png(montage([("Decoded", [(each["image"], each.get("label")) for each in found])], spacing,
                     label_classes=job.facts.label_classes, channels=job.facts.channels, asked=asked,
                     captions=[row.id for row in rows], affine=affine), path)


def is_there(dest: Path, provenance: dict, overwrite: bool) -> bool:
    """Whether a file holds these volumes; ValueError when it holds something else and may not be overwritten."""
    old = made_before(dest, overwrite, VolumesFile, is_volumes)
    if old is None:
        return False
    check_alike(f"{dest}: holds volumes of", old.provenance, {name: provenance[name] for name in ("kind", *UNLIKE)},
                "choose another --dest, or --overwrite it")
    return True


def write_volumes(dest: Path, parts: Parts, job: DecodeJob, provenance: dict) -> None:
    """A volumes file of all parts, read one by one."""
    facts, classes = job.facts, job.facts.class_names
    conditions = facts.condition_channels if "cond" in job.carried else ()
    roles = ("target",) * len(facts.channels) + ("condition",) * len(conditions)
    meta = VolumesMeta(len(job.shape), facts.channels + conditions, roles, facts.label_classes, (), (), classes,
                       facts.intensity, map_classes=facts.semantic_classes if "map" in job.carried else ())
    with VolumesWriter(dest, meta, provenance, image_dtype="uint8" if job.options.uint8 else "float32") as writer:
        for number, row in enumerate(progress(job.source.rows, desc="write", unit="volume")):
            part, box = parts.read(number), full_box(job.shape) if row.box is None else row.box
            image = np.concatenate([part["image"], part["cond"]]) if conditions else part["image"]
            writer.add(row.split, Item(image.astype(np.float32), part.get("label"), None,
                                       row.class_index if classes else None, row.id, row.group, affine_of(row, facts),
                                       box, part.get("map")))
