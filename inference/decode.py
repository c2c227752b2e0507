"""Decode latents that were made earlier or elsewhere, into a volumes file or a folder of NIfTI.

Split over ranks, restartable: finished volumes lie as parts beside the file to be, or as NIfTI in the folder.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from edm3d.formats import diff3, h5
from edm3d.formats.facts import Facts, LatentScaling
from edm3d.formats.latents import FirstStageRecord, LatentsFile
from edm3d.formats.nifti import is_whole, read_volume, spacing_of, write_nifti
from edm3d.formats.samples import SamplesFile
from edm3d.formats.volumes import Intensity, Item, VolumesFile, VolumesMeta, VolumesWriter, full_box
from edm3d.inference.first_stage import FirstStage, tile_note, tiled
from edm3d.inference.parts import Arrays, Parts, Pieces, check_alike, make_missing, missing_of, ranks_at_work
from edm3d.inference.snapshot import CarriedStage, Snapshot
from edm3d.networks.tiles import Tiles
from edm3d.utils import distributed
from edm3d.utils.files import arrays_hash, blocks_hash, check_folder, check_free_disk, write_text
from edm3d.utils.log import RunLog, progress
from edm3d.utils.precision import resolve_precision
from edm3d.utils.runs import find_file, passed_over

GENERATED = "generated"  # split of volumes that were drawn
RECORD = "decode.json"
UNLIKE = ("latents_hash", "first_stage", "settings")  # what volumes depend on


class DecodeOptions(NamedTuple):
    """How to decode; tiles: None for whole volumes.

    compare: say by how much tiles differ from the whole, whose memory that takes. uint8: write whole numbers 0 to 255,
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


class LatentRow(NamedTuple):
    """Where latents lie, and what becomes of them."""

    split: str
    id: str
    group: str
    affine: np.ndarray
    box: np.ndarray | None
    class_index: int | None
    latents: Callable[[], np.ndarray]


class LatentSource(NamedTuple):
    """Latents to decode: what is known of their volumes, the hash of the latents, and their first stage.

    stage: as far as it is known, network and hash may be None; None in older samples files. snapshot: path of the one
    that drew them, where one did.
    """

    rows: list[LatentRow]
    facts: Facts
    content_hash: str
    stage: CarriedStage | None
    snapshot: str | None = None


class DecodeJob(NamedTuple):
    """What turns latents into volumes on grids [*S]. whole: what to hold the first of them against, decoded in tiles.

    facts: of the volumes as they are written.
    """

    source: LatentSource
    stage: FirstStage
    whole: FirstStage | None
    facts: Facts
    shape: tuple[int, ...]
    options: DecodeOptions


def decode(latents: Path, dest: Path, options: DecodeOptions, *, autoencoder: str | None = None,
           network: str | None = None, run_root: Path = Path("results")) -> None:
    """Decode all rows of a samples or latents file, ours or DIFF-3's; ValueError for those of another first stage.

    Every rank calls this; each decodes its share.
    """
    if dest.resolve() == latents.resolve():
        raise ValueError(f"--dest {dest} is --latents; the volumes need a file of their own")
    if dest.suffix not in (".h5", "") or (dest.is_dir() if dest.suffix else dest.is_file()):
        raise ValueError(f"--dest {dest}: wanted a volumes file (.h5), or a folder for NIfTI")
    check_folder(dest.parent, f"--dest {dest}")
    with ranks_at_work("auto", options.num_threads) as (device, log):
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
        provenance = {"kind": "decode", "latents": str(latents), "latents_hash": source.content_hash,
                      "first_stage": carried.hash, "settings": settings(options)}
        decode_to(dest, job, provenance, log)


def decode_to(dest: Path, job: DecodeJob, provenance: dict, log: RunLog) -> None:
    """A volumes file, made of parts that lie beside it until all are there, or a folder of NIfTI."""
    rows, to_file = job.source.rows, bool(dest.suffix)
    there = distributed.from_rank_0(lambda: is_there(dest, provenance, job.options.overwrite))
    pieces = Parts(Path(f"{dest}.parts"), [provenance[name] for name in UNLIKE]) if to_file else NiftiFolder(dest, job)
    if not there:
        distributed.from_rank_0(lambda: check_space(dest, job) if to_file else pieces.begin(provenance))
    missing = [] if there and to_file else missing_of(pieces, range(len(rows)))
    if there and not missing:
        log(f"{dest}: all {len(rows)} there already")
        return
    decode_missing(job, pieces, missing, log)
    if distributed.rank() == 0:
        if to_file:
            write_volumes(dest, pieces, job, provenance)
        log(f"{dest}: {len(rows)} volumes"
            + (f" ({len(rows) - len(missing)} there already)" if len(missing) < len(rows) else ""))
        write_montage(Path(f"{dest}.png") if to_file else dest / "volumes.png", pieces, job, log)
        if to_file:
            pieces.remove()


def check_space(dest: Path, job: DecodeJob) -> None:
    """ValueError when the disk has no room for parts and file; what will be compressed is not foreseen."""
    facts, uint8 = job.facts, job.options.uint8
    volume = prod(job.shape) * (len(facts.channels) * (1 if uint8 else 4) + bool(facts.label_classes))
    check_free_disk(dest.parent, len(job.source.rows) * volume * (1 if uint8 else 2))


def settings(options: DecodeOptions) -> dict:
    """What volumes depend on besides latents and first stage."""
    return {"precision": options.precision, **(options.tiles.plain() if options.tiles else {}),
            **({"uint8": True} if options.uint8 else {})}


# ---- what to decode ----


def open_source(path: Path) -> LatentSource:
    """The latents of a file, whatever its kind."""
    is_h5 = path.suffix != ".npz"
    if is_h5 and diff3.is_samples(path):
        found = diff3.read_samples(path)
        rows = [generated_row(f"sample{i:06d}", np.eye(4), None, lambda i=i: found.latents[i])
                for i in range(len(found.latents))]
        return LatentSource(rows, Facts("", ""), arrays_hash({"latents": found.latents}),
                            plain_stage(found.latents.shape[1]))
    if is_h5 and (diff3.is_latents(path) or h5.read_format(path) == "latents"):
        return encoded(diff3.open_latents(path))
    samples = SamplesFile(path)
    if "latents" not in samples.names:
        raise ValueError(f"{path}: holds no latents; its network draws voxels")
    rows = [generated_row(f"seed{seed:06d}", samples.affine, samples.row("classes", i),
                          partial(samples.row, "latents", i)) for i, seed in enumerate(samples.seeds)]
    stage, seeds = samples.meta.stage, samples.seeds
    found = blocks_hash([("latents", np.dtype("float32"), samples.shape("latents"), (r.latents() for r in rows)),
                         ("seeds", seeds.dtype, seeds.shape, [seeds])])
    return LatentSource(rows, samples.meta.facts, found,
                        stage and CarriedStage(stage.scaling, hash=stage.hash), samples.meta.snapshot)


def plain_stage(channels: int, record: FirstStageRecord | None = None) -> CarriedStage:
    """A first stage whose latents are as it gives them."""
    return CarriedStage.from_record(record, LatentScaling([0.0] * channels, [1.0] * channels, sigma_data=1.0))


def generated_row(name: str, affine: np.ndarray, class_index: int | None, latents: Callable[[], np.ndarray]
                  ) -> LatentRow:
    """A row of drawn latents."""
    return LatentRow(GENERATED, name, name, affine, None, None if class_index is None else int(class_index), latents)


def encoded(file: LatentsFile | diff3.Diff3File) -> LatentSource:
    """The posterior means of a latents file."""
    rows = []
    for split in sorted(file.splits):  # pieces that are half done have these numbers
        part = file.read(split)
        classes = part.tables.get("classes")
        for i, name in enumerate(part.ids):
            index = None if classes is None or classes[i] < 0 else int(classes[i])
            box = None if part.boxes is None else part.boxes[i]
            rows.append(LatentRow(split, name, part.groups[i], part.affines[i], box, index,
                                  lambda part=part, i=i: part.mean[i]))
    return LatentSource(rows, file.facts, file.content_hash,
                        plain_stage(len(file.facts.latents.channel_mean), file.first_stage()))


# ---- by what ----


def find_stage(source: LatentSource, path: Path, autoencoder: str | None, network: str | None, run_root: Path
               ) -> tuple[CarriedStage, Facts, Path]:
    """The whole first stage, what is known of its volumes, and where it came from.

    ValueError when it is not there, or not the one that the latents belong to.
    """
    stage, facts, chosen = source.stage, source.facts, path
    if stage is None or network is not None or (stage.network is None and autoencoder is None):
        chosen = find_drawing(source, path, network, run_root)
        stage = Snapshot.read(chosen).first_stage
        if stage is None:
            raise ValueError(f"{chosen}: draws voxels, and carries no first stage; name it by --autoencoder")
        check_hash(source.stage and source.stage.hash, path, stage.hash, str(chosen))
    if autoencoder is not None:
        chosen = find_file(autoencoder, "network-snapshot", run_root, "--autoencoder")
        named, wanted = Snapshot.read(chosen, "autoencoder"), stage.hash
        stage, facts = stage.with_network(named), facts if facts.channels else facts.with_volumes_of(named.facts)
        check_hash(wanted, path, stage.hash, f"--autoencoder {autoencoder}: {chosen}")
    return stage, facts, chosen


def find_drawing(source: LatentSource, path: Path, network: str | None, run_root: Path) -> Path:
    """The diffusion snapshot that drew the latents."""
    if source.snapshot is None:
        raise ValueError(f"{path}: the first stage of these latents is not in the file; name it by --autoencoder")
    if network is None and not Path(source.snapshot).exists():
        raise ValueError(f"{path}: {source.snapshot}, which drew these latents, is not there; name their first stage "
                         "by --autoencoder, or the snapshot by --network")
    return find_file(network or source.snapshot, "network-snapshot", run_root, "--network")


def check_hash(wanted: str | None, path: Path, found: str | None, what: str) -> None:
    """ValueError when the latents are known to be of another first stage, by its hash."""
    if wanted is not None and found != wanted:
        raise ValueError(f"{what} has first stage {found or 'none':.12}, the latents in {path} are of {wanted:.12}; "
                         "name that one by --autoencoder or --network")


def build_net(stage: CarriedStage, source: LatentSource, where: str, trust: bool) -> torch.nn.Module:
    """The network of the first stage; ValueError when latents of this shape are not its own."""
    net, shape = stage.build(where, trust), source.rows[0].latents().shape
    if len(shape) != net.spatial_dims + 1 or shape[0] != net.latent_channels:
        raise ValueError(f"{where}: decodes latents of {net.latent_channels} channels and {net.spatial_dims} axes, "
                         f"these are {list(shape)}; name their own first stage by --autoencoder")
    return net


# ---- the work ----


def make_job(source: LatentSource, stage: FirstStage, options: DecodeOptions) -> DecodeJob:
    """All that decoding takes, checked before anything is decoded."""
    shape = tuple(n * f for n, f in zip(source.rows[0].latents().shape[1:], stage.net.factor, strict=True))
    return DecodeJob(source, *tiled(stage, options.tiles, options.compare),
               in_bytes(stage.facts) if options.uint8 else stage.facts, shape, options)


def decode_missing(job: DecodeJob, pieces: Pieces, missing: Sequence[int], log: RunLog) -> None:
    """Decode this rank's share: an image [C,*S] and, where there are label classes, a label map [*S] of each row."""
    rows = job.source.rows

    def made(numbers: list[int], latents: np.ndarray) -> list[dict[str, np.ndarray]]:
        z = torch.from_numpy(latents).to(job.stage.device)
        if not z.isfinite().all():
            raise ValueError(f"latents of {rows[numbers[0]].id} to {rows[numbers[-1]].id} are not finite: they cannot "
                             "be decoded")
        image, label = job.stage.decode(z)
        if job.whole is not None and numbers[0] == missing[0]:
            log(tile_note(job.whole, z[:1], image[:1], None if label is None else label[:1]))
        image = image.cpu().numpy()
        if job.options.uint8:
            image = job.stage.facts.intensity.to_bytes(image)
        arrays = {"image": image} if label is None else {"image": image, "label": label.cpu().numpy()}
        return [{name: array[i] for name, array in arrays.items()} for i in range(len(numbers))]

    make_missing(pieces, missing, job.options.batch_size, made, desc="decode", unit="volume",
                 read=lambda numbers: np.stack([rows[n].latents() for n in numbers]))


# ---- what comes out ----


def in_bytes(facts: Facts) -> Facts:
    """What is known of the volumes when their intensity range is 0 to 255 in whole numbers, uint8."""
    had = facts.intensity
    is_bytes = (had.lo, had.hi) == (0, 255)
    unit = had.unit if is_bytes else f"255ths of {had.lo:g} to {had.hi:g} {had.unit}"
    return replace(facts, intensity=Intensity(0.0, 255.0, True, unit))


def write_montage(path: Path, pieces: "Parts | NiftiFolder", job: DecodeJob, log: RunLog) -> None:
    """A PNG of the first volumes with their ids, where one is asked for."""
    rows = job.source.rows[:job.options.montage]
    if not rows:
        return
    from edm3d.reporting.montages import montage, save_png
    found = [pieces.read(number) for number in range(len(rows))]
    affine = affine_of(rows[0], job.facts)
    spacing = spacing_of(affine)[:len(job.shape)]
    save_png(montage([("Decoded", [(each["image"], each.get("label")) for each in found])], spacing,
                     label_classes=job.facts.label_classes, channels=job.facts.channels,
                     captions=[row.id for row in rows], affine=affine), path)
    log(f"Montage     {path}")


def is_there(dest: Path, provenance: dict, overwrite: bool) -> bool:
    """Whether dest is what it is to be (a folder: as far as it is filled); ValueError when it holds something else.

    False for what may be overwritten.
    """
    record = dest / RECORD
    if overwrite:
        return False
    if dest.is_dir() and not record.is_file() and any(dest.iterdir()):
        raise ValueError(f"--dest {dest}: the folder is not empty, and nothing says that decode filled it; choose "
                         "another, or --overwrite what has the same names")
    if not (dest if dest.suffix else record).is_file():
        return False
    try:
        if dest.suffix:
            h5.check_holds(dest, "volumes")
        found = dict(VolumesFile(dest).provenance if dest.suffix else json.loads(record.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as e:
        raise ValueError(f"--dest {dest}: {e}; choose another, or --overwrite it") from e
    check_alike(f"{dest}: holds volumes of", found, {name: provenance[name] for name in ("kind", *UNLIKE)},
                "choose another --dest, or --overwrite it")
    return True


def write_volumes(dest: Path, parts: Parts, job: DecodeJob, provenance: dict) -> None:
    """A volumes file of all parts, read one by one."""
    facts, classes = job.facts, job.facts.class_names
    meta = VolumesMeta(len(job.shape), facts.channels, ("target",) * len(facts.channels), facts.label_classes, (), (),
                       classes, facts.intensity)
    with VolumesWriter(dest, meta, provenance, image_dtype="uint8" if job.options.uint8 else "float32") as writer:
        for number, row in enumerate(progress(job.source.rows, desc="write", unit="volume")):
            part, box = parts.read(number), full_box(job.shape) if row.box is None else row.box
            writer.add(row.split, Item(part["image"].astype(np.float32), part.get("label"), None,
                                       row.class_index if classes else None, row.id, row.group, affine_of(row, facts),
                                       box))


class NiftiFolder:
    """Decoded volumes as NIfTI in DEST/images and DEST/labels, as `prepare` reads it, and a record of what they are."""

    def __init__(self, dest: Path, job: DecodeJob):
        self.dest, self.job = dest, job
        self.kinds = ("image", "label") if job.facts.label_classes else ("image",)

    def path(self, number: int, kind: str) -> Path:
        """The image or label map of a row."""
        return self.dest / f"{kind}s" / f"{self.job.source.rows[number].id}.nii.gz"

    def begin(self, provenance: dict) -> None:
        """Write the record; what had the names of these volumes goes first, for it would be taken for them."""
        for path in [self.path(n, kind) for n in range(len(self.job.source.rows)) for kind in self.kinds]:
            path.unlink(missing_ok=True)
        write_text(self.dest / RECORD, json.dumps(provenance, indent=2) + "\n")

    def is_whole(self, number: int) -> bool:
        """Whether image and label map of a row are there and whole."""
        return all(is_whole(self.path(number, kind)) for kind in self.kinds)

    def write(self, number: int, arrays: Arrays) -> None:
        """Write image and label map of a row."""
        affine = affine_of(self.job.source.rows[number], self.job.facts)
        for kind, array in arrays.items():
            write_nifti(self.path(number, kind), array, affine, spatial_dims=len(self.job.shape),
                        unit=self.job.facts.intensity.unit if kind == "image" else "")

    def read(self, number: int) -> dict[str, np.ndarray]:
        """Image [C,*S] and label map [*S] of a row."""
        shapes = {"image": (-1, *self.job.shape), "label": self.job.shape}
        return {kind: read_volume(self.path(number, kind)).data.reshape(shapes[kind]) for kind in self.kinds}


def affine_of(row: LatentRow, facts: Facts) -> np.ndarray:
    """Voxel index -> mm [4,4]: the row's own, or that of the first stage's volumes where the file knows none."""
    return np.asarray(facts.affine) if np.array_equal(row.affine, np.eye(4)) else row.affine
