"""Decode latents that were made earlier or elsewhere, into a volumes file or a folder of NIfTI."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from formats import diff3, h5
from formats.facts import Facts, LatentScaling
from formats.latents import FirstStageRecord, LatentsFile
from formats.nifti import spacing_of, write_nifti
from formats.samples import SamplesFile
from formats.volumes import Intensity, Item, VolumesFile, VolumesMeta, VolumesWriter, full_box
from inference.first_stage import FirstStage, tile_note, tiles_of
from inference.snapshot import CarriedStage, Snapshot
from networks.tiles import Tiles
from utils import distributed
from utils.files import arrays_hash, write_text
from utils.log import RunLog, progress
from utils.precision import resolve_precision
from utils.runs import find_file

GENERATED = "generated"  # split of volumes that were drawn
RECORD = "decode.json"


class DecodeOptions(NamedTuple):
    """How to decode, see networks.tiles for tile [*S] in voxels (None: whole volumes), tile_overlap and tile_mode.

    compare: say by how much tiles differ from the whole, whose memory that takes. uint8: write whole numbers 0 to 255,
    which span the intensity range. montage: volumes in the picture beside them, 0 for none.
    """

    batch_size: int = 1
    precision: str = "fp32"
    tile: Sequence[int] | None = None
    tile_overlap: float = 0.25
    tile_mode: str = "blend"
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


DecodedRow = tuple[LatentRow, np.ndarray, np.ndarray | None]  # image [C,*S] in stored units, label map [*S]
Picture = tuple[np.ndarray, np.ndarray | None]


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


def decode(latents: Path, dest: Path, options: DecodeOptions, *, autoencoder: str | None = None,
           network: str | None = None, run_root: Path = Path("results")) -> None:
    """Decode all rows of a samples or latents file, ours or DIFF-3's; ValueError for those of another first stage."""
    if dest.resolve() == latents.resolve():
        raise ValueError(f"--dest {dest} is --latents; the volumes need a file of their own")
    if dest.suffix not in (".h5", "") or (dest.is_dir() if dest.suffix else dest.is_file()):
        raise ValueError(f"--dest {dest}: wanted a volumes file (.h5), or a folder for NIfTI")
    device, log = distributed.init("auto"), RunLog()
    if distributed.world_size() > 1:
        raise ValueError(f"decode runs as one process, torchrun started {distributed.world_size()}; call it by python, "
                         "or draw and decode on all ranks by generate.py")
    distributed.set_threads(options.num_threads)
    source = open_source(latents)
    carried, facts, chosen = find_stage(source, latents, autoencoder, network, run_root)
    log(f"First stage {chosen}")
    if autoencoder is not None and source.stage is not None and source.stage.hash is None:
        log(f"Note: {latents} does not say which first stage its latents are of; that it is this one cannot be checked")
    net = build_net(carried, source, str(chosen), options.trust)
    stage = FirstStage(net, facts, carried.scaling, resolve_precision(options.precision, device)).to(device)
    tiles = tiles_of(options.tile, options.tile_overlap, options.tile_mode)
    provenance = {"kind": "decode", "latents": str(latents), "latents_hash": source.content_hash,
                  "first_stage": carried.hash, "settings": settings(options)}
    if is_there(dest, provenance, len(source.rows), options.overwrite):
        log(f"{dest}: all {len(source.rows)} there already")
        return
    blended = tiles and tiles.mode == "blend" and options.compare
    items = decoded(source, stage.in_parts(tiles), options.batch_size,
                    stage.in_parts(Tiles(tiles.size, 0, "exact")) if blended else None, log)
    if options.uint8:
        facts, items = in_bytes(facts, items)
    pictures: list[Picture] = []
    write = write_volumes if dest.suffix else write_folder
    write(dest, seen(items, pictures, options.montage), source, facts, provenance)
    log(f"{dest}: {len(source.rows)} volumes")
    if pictures:
        path = Path(f"{dest}.png") if dest.suffix else dest / "volumes.png"
        write_montage(path, pictures, source.rows, facts)
        log(f"Montage     {path}")


def settings(options: DecodeOptions) -> dict:
    """What volumes depend on besides latents and first stage."""
    tiles = tiles_of(options.tile, options.tile_overlap, options.tile_mode)
    return {"precision": options.precision, **(tiles.plain() if tiles else {}),
            **({"uint8": True} if options.uint8 else {})}


# ---- what to decode ----


def open_source(path: Path) -> LatentSource:
    """The latents of a file, whatever its kind."""
    if path.suffix != ".npz" and diff3.is_samples(path):
        found = diff3.read_samples(path)
        rows = [generated_row(f"sample{i:06d}", np.eye(4), None, z) for i, z in enumerate(found.latents)]
        return LatentSource(rows, Facts("", ""), arrays_hash({"latents": found.latents}),
                            plain_stage(found.latents.shape[1]))
    if path.suffix != ".npz" and diff3.is_latents(path):
        return encoded(diff3.Diff3File(path))
    if path.suffix != ".npz" and is_latents_file(path):
        return encoded(LatentsFile(path))
    samples = SamplesFile(path)
    if "latents" not in samples.arrays:
        raise ValueError(f"{path}: holds no latents; its network draws voxels")
    classes = samples.arrays.get("classes", [None] * len(samples))
    rows = [generated_row(f"seed{seed:06d}", samples.affine, index, samples.latents(i))
            for i, (seed, index) in enumerate(zip(samples.seeds, classes, strict=True))]
    stage = samples.meta.stage
    return LatentSource(rows, samples.meta.facts,
                        arrays_hash({"seeds": samples.seeds, "latents": samples.arrays["latents"]}),
                        stage and CarriedStage(stage.scaling, hash=stage.hash), samples.meta.snapshot)


def plain_stage(channels: int, record: FirstStageRecord | None = None) -> CarriedStage:
    """A first stage whose latents are as it gives them."""
    return CarriedStage.from_record(record, LatentScaling([0.0] * channels, [1.0] * channels, sigma_data=1.0))


def is_latents_file(path: Path) -> bool:
    """Whether a file is a latents.h5 of ours."""
    with h5.open_h5(path) as file:
        return "format" in file.attrs and h5.get_text(file, "format") == "latents"


def generated_row(name: str, affine: np.ndarray, class_index: int | None, latents: np.ndarray) -> LatentRow:
    """A row of drawn latents."""
    index = None if class_index is None else int(class_index)
    return LatentRow(GENERATED, name, name, affine, None, index, lambda: latents)


def encoded(file: LatentsFile | diff3.Diff3File) -> LatentSource:
    """The posterior means of a latents file."""
    rows = []
    for split in file.splits:
        part = file.read(split)
        for i, name in enumerate(part.ids):
            index = None if part.classes is None or part.classes[i] < 0 else int(part.classes[i])
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
    if network is None and not Path(source.snapshot).is_file():
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


def decoded(source: LatentSource, stage: FirstStage, batch_size: int, whole: FirstStage | None, log: RunLog
            ) -> Iterator[DecodedRow]:
    """Every row with its image [C,*S] in stored units and its label map; tells by how much tiles differ."""
    for start in progress(range(0, len(source.rows), batch_size), desc="decode", unit="batch"):
        rows = source.rows[start:start + batch_size]
        z = torch.from_numpy(np.stack([row.latents() for row in rows])).to(stage.device)
        if not z.isfinite().all():
            raise ValueError(f"latents of {rows[0].id} to {rows[-1].id} are not finite: they cannot be decoded")
        images, labels = stage.decode(z)
        if start == 0 and whole is not None:
            log(tile_note(whole, z[:1], images[:1], None if labels is None else labels[:1]))
        images = images.cpu().numpy()
        labels = None if labels is None else labels.cpu().numpy()
        for i, row in enumerate(rows):
            yield row, images[i], None if labels is None else labels[i]


# ---- what comes out ----


def in_bytes(facts: Facts, items: Iterator[DecodedRow]) -> tuple[Facts, Iterator[DecodedRow]]:
    """What is known of volumes, and volumes, whose intensity range is 0 to 255 in whole numbers, uint8."""
    had = facts.intensity
    is_bytes = (had.lo, had.hi) == (0, 255)
    unit = had.unit if is_bytes else f"255ths of {had.lo:g} to {had.hi:g} {had.unit}"
    scaled = ((row, np.rint(np.clip((image - had.lo) * (255 / (had.hi - had.lo)), 0, 255)).astype(np.uint8), label)
              for row, image, label in items)
    return replace(facts, intensity=Intensity(0.0, 255.0, True, unit)), scaled


def seen(items: Iterator[DecodedRow], pictures: list[Picture], count: int) -> Iterator[DecodedRow]:
    """The same items, of which the first `count` are kept as pictures."""
    for item in items:
        if len(pictures) < count:
            pictures.append(item[1:])
        yield item


def write_montage(path: Path, pictures: list[Picture], rows: list[LatentRow], facts: Facts) -> None:
    """A PNG of volumes, with their ids."""
    from reporting.montages import montage, save_png
    spacing = spacing_of(affine_of(rows[0], facts))[:pictures[0][0].ndim - 1]
    save_png(montage([("Decoded", pictures)], spacing, label_classes=facts.label_classes, channels=facts.channels,
                     captions=[row.id for row in rows[:len(pictures)]]), path)


def is_there(dest: Path, provenance: dict, count: int, overwrite: bool) -> bool:
    """Whether all of it is there; ValueError when something else is and may not be overwritten."""
    record = dest / RECORD
    if dest.suffix:
        found = VolumesFile(dest).provenance if dest.is_file() and not overwrite else None
    elif record.is_file() and not overwrite:
        found = json.loads(record.read_text(encoding="utf-8"))
    elif not overwrite and dest.is_dir() and any(dest.iterdir()):
        raise ValueError(f"--dest {dest}: the folder is not empty, and nothing says that decode filled it; choose "
                         "another, or --overwrite what has the same names")
    else:
        found = None
    if found is None:
        return False
    for name in ("kind", "latents_hash", "first_stage", "settings"):
        if found.get(name) != provenance[name]:
            raise ValueError(f"{dest}: holds volumes of another {name} ({json.dumps(found.get(name))[:100]}); choose "
                             "another --dest, or --overwrite it")
    return bool(dest.suffix) or len(list((dest / "images").glob("*.nii.gz"))) == count


def write_volumes(dest: Path, items: Iterator[DecodedRow], source: LatentSource, facts: Facts,
                  provenance: dict) -> None:
    """A volumes file, one row per latent."""
    dims = len(source.rows[0].latents().shape) - 1
    classes = facts.class_names
    meta = VolumesMeta(dims, facts.channels, ("target",) * len(facts.channels), facts.label_classes, (), (), classes,
                       facts.intensity)
    kind = "uint8" if provenance["settings"].get("uint8") else "float32"
    with VolumesWriter(dest, meta, provenance, image_dtype=kind) as writer:
        for row, image, label in items:
            box = full_box(image.shape[1:]) if row.box is None else row.box
            writer.add(row.split, Item(image.astype(np.float32), label, None, row.class_index if classes else None,
                                       row.id, row.group, affine_of(row, facts), box))


def write_folder(dest: Path, items: Iterator[DecodedRow], source: LatentSource, facts: Facts,
                 provenance: dict) -> None:
    """NIfTI in DEST/images and DEST/labels, as `prepare` reads it, and a record of what they are."""
    write_text(dest / RECORD, json.dumps(provenance, indent=2) + "\n")
    dims, unit = len(source.rows[0].latents().shape) - 1, facts.intensity.unit
    for row, image, label in items:
        if label is not None:
            write_nifti(dest / "labels" / f"{row.id}.nii.gz", label, affine_of(row, facts), spatial_dims=dims)
        write_nifti(dest / "images" / f"{row.id}.nii.gz", image, affine_of(row, facts), spatial_dims=dims, unit=unit)


def affine_of(row: LatentRow, facts: Facts) -> np.ndarray:
    """Voxel index -> mm [4,4]: the row's own, or that of the first stage's volumes where the file knows none."""
    return np.asarray(facts.affine) if np.array_equal(row.affine, np.eye(4)) else row.affine
