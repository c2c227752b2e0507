"""Encode the volumes of a cohort once: posterior mean and std of every item, with the first stage in the same file.

Split over ranks, restartable: finished items lie as parts beside the file to be, until all are there.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from edm3d.formats import h5
from edm3d.formats.facts import rows_of, volume_facts
from edm3d.formats.geometry import fit_centre
from edm3d.formats.items import check_tables
from edm3d.formats.latents import GRIDS, LatentsFile, check_latents, round_trip_line, write_latents
from edm3d.formats.volumes import Item, VolumesFile, VolumesMeta
from edm3d.inference.first_stage import FirstStage
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
from edm3d.inference.snapshot import Snapshot, check_contract
from edm3d.metrics.image import psnr
from edm3d.metrics.overlap import dice
from edm3d.networks.latent_codec import SCALINGS
from edm3d.networks.layers import SizeError
from edm3d.networks.tiles import Tiles
from edm3d.utils import distributed, locks
from edm3d.utils.checks import check_choice
from edm3d.utils.files import check_dest, check_free_disk
from edm3d.utils.precision import resolve_precision
from edm3d.utils.runs import find_file, passed_over

OF_IMAGES = ("affines", "boxes", "intensity_ranges")  # tables of volumes that latents have otherwise, or not


class EncodeOptions(NamedTuple):
    """How to encode.

    tiles: None for whole volumes; size [*S]: crop or pad centrally before, None: to that which the first stage was
    trained on, if any; scaling: how diffusion is to scale the latents; round_trip: how many items to decode again.
    """

    batch_size: int = 8
    precision: str = "fp32"
    tiles: Tiles | None = None
    size: Sequence[int] | None = None
    scaling: str = "standardize"
    round_trip: int = 16
    overwrite: bool = False
    trust: bool = False
    num_threads: int = 0


class Place(NamedTuple):
    """An item: its number over all splits, and where it is."""

    number: int
    split: str
    index: int


class Inputs(NamedTuple):
    """A batch as it was read: images [N,C,*S] as the network takes them, label and semantic maps [N,*S] uint8, items.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    semantic: torch.Tensor | None
    items: list[Item]


class EncodeJob(NamedTuple):
    """What turns items into parts. path: of the first stage; measured: numbers of the items that are decoded again."""

    path: Path
    stage: FirstStage
    volumes: VolumesFile
    size: tuple[int, ...]
    measured: frozenset[int]
    batch_size: int


def encode(autoencoder: str, source: Path, dest: Path, options: EncodeOptions, run_root: Path = Path("results")
           ) -> None:
    """Write the latents of all splits of a volumes file. Every rank calls this; rank 0 writes the file."""
    check_dest(dest, ".h5", {"--source": source, "--autoencoder": autoencoder})
    check_choice("--scaling", options.scaling, SCALINGS)
    with ranks_at_work("auto", options.num_threads) as (device, log), locks.output(dest):
        path = find_file(autoencoder, "network-snapshot", run_root, "--autoencoder")
        log(f"Autoencoder {path}")
        for line in passed_over(path, autoencoder, run_root):
            log(line)
        snapshot = Snapshot.read(path, "autoencoder")
        stage = FirstStage(snapshot.build(options.trust), snapshot.facts,
                           precision=resolve_precision(options.precision, device)).to(device)
        volumes = VolumesFile(source)
        job = make_job(stage, snapshot, volumes, options)
        record = snapshot.record
        provenance = {"kind": "encode", "source": str(source), "source_hash": volumes.content_hash,
                      "first_stage": record.hash, "settings": settings(options, job.size, volumes.meta)}
        places = all_places(volumes)
        parts = Parts(Path(f"{dest}.parts"), [*(provenance[k] for k in UNLIKE), sorted(job.measured)],
                      partial(check_part, job))
        distributed.from_rank_0(parts.tidy)
        if distributed.from_rank_0(lambda: is_there(dest, provenance, options)):
            distributed.from_rank_0(parts.remove)
            log(f"{dest}: all {len(places)} there already")
            log(round_trip_line(LatentsFile(dest).round_trip))
            return
        space = 16 * len(places) * prod(stage.net.latent_shape(job.size))  # parts and file, float32 mean and std each
        distributed.from_rank_0(lambda: check_free_disk(dest.parent, space))
        missing = missing_of(parts, range(len(places)))
        make_missing(parts, missing, job.batch_size,
                     lambda numbers, inputs: encode_batch(job, [places[n] for n in numbers], inputs),
                     read=lambda numbers: read_batch(job, [places[n] for n in numbers]), desc="encode", unit="volume")
        if distributed.rank() == 0:
            splits = {split: PartRows(volumes, split, parts, [p for p in places if p.split == split])
                      for split in volumes.splits}
            facts = replace(volume_facts(volumes, volumes.splits[0]), spatial_shape=job.size,
                            affine=rows_of(splits[volumes.splits[0]].affines[0]))
            found = round_trip(job, places, parts)
            write_latents(dest, splits, record, facts, provenance, posterior=stage.net.posterior,
                          scaling=options.scaling, round_trip=found)
            parts.remove()
            log(f"{dest}: " + ", ".join(f"{split} {volumes.length(split)}" for split in volumes.splits)
                + (f" ({len(places) - len(missing)} there already)" if len(missing) < len(places) else ""))
            log(round_trip_line(found))


UNLIKE = {"source_hash": "volumes", "first_stage": "first stage", "settings": "settings"}


def settings(options: EncodeOptions, size: Sequence[int], meta: VolumesMeta) -> dict:
    """What latents depend on besides volumes and first stage, and what is carried along with them."""
    grids = sorted(grid_shapes(meta, ()))
    return {"size": list(size), "precision": options.precision, **(options.tiles.plain() if options.tiles else {}),
            **({"grids": grids} if grids else {})}


def is_there(dest: Path, provenance: dict, options: EncodeOptions) -> bool:
    """Whether a file holds these latents; ValueError when it holds something else and may not be overwritten."""
    old = made_before(dest, options.overwrite, LatentsFile, is_latents)
    if old is None:
        return False
    had, wanted = ({what: source.get(name) for name, what in UNLIKE.items()} for source in (old.provenance, provenance))
    check_alike(f"{dest}: holds latents of", had | {"scaling": old.facts.latents.scaling},
                wanted | {"scaling": options.scaling}, "choose another --dest, or --overwrite it")
    return True


def is_latents(path: Path) -> None:
    """ValueError for a file that is no latents file."""
    h5.check_holds(path, "latents")


def all_places(volumes: VolumesFile) -> list[Place]:
    """The items of all splits, numbered."""
    places = [(split, i) for split in volumes.splits for i in range(volumes.length(split))]
    return [Place(number, *place) for number, place in enumerate(places)]


def make_job(stage: FirstStage, snapshot: Snapshot, volumes: VolumesFile, options: EncodeOptions) -> EncodeJob:
    """Everything checked before the first item is read."""
    check_contract(volume_facts(volumes, volumes.splits[0]), stage.facts, volumes.path, snapshot.path)
    stage.check_maps(volume_facts(volumes, volumes.splits[0]), volumes.path)
    shapes = {split: volumes.spatial_shape(split) for split in volumes.splits}
    fixed = options.size or snapshot.fits_to
    size = tuple(fixed or shapes[volumes.splits[0]])
    for split, shape in shapes.items():
        if len(size) != len(shape) or (fixed is None and shape != size):
            trained = "" if options.size or not fixed else f", to which {snapshot.path} was trained to fit them"
            raise ValueError(f"{volumes.path}: the volumes of {split} are {list(shape)}, wanted {list(size)}{trained}; "
                             f"choose --size with {len(shape)} numbers")
    try:
        stage.net.latent_shape(size)
    except SizeError as e:
        raise ValueError(f"{volumes.path}: {e}; --size {' '.join(map(str, e.larger))} pads the volumes") from e
    stage = stage.in_parts(options.tiles)
    held = "val" if "val" in volumes.splits else "train" if "train" in volumes.splits else volumes.splits[0]
    measured = [p.number for p in all_places(volumes) if p.split == held][:options.round_trip]
    return EncodeJob(snapshot.path, stage, volumes, size, frozenset(measured), options.batch_size)


# ---- the work ----


def read_batch(job: EncodeJob, batch: Sequence[Place]) -> Inputs:
    """The items of a batch."""
    items = [fitted(job.volumes, place.split, place.index, job.size) for place in batch]
    targets = np.stack([item.image[job.volumes.meta.numbers("target")] for item in items])
    images = job.volumes.meta.intensity.to_network(targets).astype(np.float32)
    labels, semantic = (None if maps[0] is None else torch.from_numpy(np.stack(maps))
                        for maps in ([item.label for item in items], [item.semantic for item in items]))
    return Inputs(torch.from_numpy(images), labels, semantic, items)


def fitted(volumes: VolumesFile, split: str, index: int, size: tuple[int, ...]) -> Item:
    """An item, cropped or padded centrally to a size [*S]; affine and box follow."""
    item = volumes.read(split, index)
    if item.image.shape[1:] == size:
        return item
    low = np.full(len(item.image), volumes.meta.intensity.lo)
    image, affine, inside = fit_centre(item.image, item.affine, size, low)
    label, map_ = (None if each is None else fit_centre(each[None], item.affine, size, np.zeros(1))[0][0]
                   for each in (item.label, item.map))
    moved = np.rint(np.linalg.solve(item.affine, affine)[:3, 3]).astype(np.int64)  # old index of the first new voxel
    box = np.clip(item.box - moved, inside[0], inside[1])
    return item._replace(image=image, label=label, affine=affine, box=box, map=map_)


def encode_batch(job: EncodeJob, batch: Sequence[Place], inputs: Inputs) -> list[dict[str, np.ndarray]]:
    """Mean and std of every item [C,*s], where it lies, and what those to be measured lose, as arrays by name."""
    images, labels, semantic, items = inputs
    images_on, *maps = (None if t is None else t.to(job.stage.device) for t in (images, labels, semantic))
    posterior = job.stage.posterior(images_on, *maps)
    mean, std = (t.float().cpu().numpy() for t in (posterior.mean, posterior.std))
    if not (np.isfinite(mean).all() and np.isfinite(std).all()):
        first, last = batch[0], batch[-1]
        raise ValueError(f"{job.volumes.path}: the latents of {first.split} {first.index} to {last.split} {last.index} "
                         f"are not finite; the autoencoder {job.path} has diverged, train it again with a lower "
                         "learning rate")
    shown = job.volumes.meta.numbers("condition")
    rows = [{"mean": mean[i], "std": std[i], "affine": item.affine, "box": item.box, **on_grid(item, shown)}
            for i, item in enumerate(items)]
    for i, place in enumerate(batch):
        if place.number in job.measured:
            asked = None if semantic is None else semantic[i:i + 1].to(job.stage.device)
            rows[i] |= losses(job, posterior.mean[i:i + 1], images[i], None if labels is None else labels[i], asked)
    return rows


def on_grid(item: Item, shown: Sequence[int]) -> Arrays:
    """What latents files keep of an item at full size; shown: numbers of the condition channels."""
    found = {"labels": item.label, "maps": item.map, "cond_images": item.image[shown] if shown else None}
    return {name: values for name, values in found.items() if values is not None}


def losses(job: EncodeJob, z: torch.Tensor, image: torch.Tensor, label: torch.Tensor | None,
           semantic: torch.Tensor | None) -> dict[str, np.ndarray]:
    """PSNR in dB of the decoded mean z [1,C,*s], clipped like the volumes, and the Dice [K] of its label map."""
    meta, (decoded, map_) = job.volumes.meta, job.stage.decode(z, semantic)
    real = meta.intensity.from_network(image.numpy())
    found = {"psnr": np.array(psnr(decoded[0].cpu().numpy(), real, meta.intensity.hi - meta.intensity.lo))}
    if map_ is not None:
        found["dice"] = dice(map_[0].cpu().numpy(), label.numpy(), len(meta.label_classes))
    return found


# ---- from parts to the file ----


def check_part(job: EncodeJob, number: int, arrays: Arrays) -> None:
    """ValueError for arrays that encode_batch cannot have made."""
    latent, classes = job.stage.net.latent_shape(job.size), job.volumes.meta.label_classes
    measured = {"psnr": (), **({"dice": (len(classes),)} if classes else {})} if number in job.measured else {}
    grids = grid_shapes(job.volumes.meta, job.size)
    check_shapes(arrays, {"mean": latent, "std": latent, "affine": (4, 4), "box": (2, 3), **measured, **grids})
    check_types(arrays, {"mean": "float32", "std": "float32", "affine": "float64", "box": "int64",
                         **{name: GRIDS[name] for name in grids}})
    check_latents(arrays["mean"][None], arrays["std"][None], [str(number)], "parts")
    check_tables({"affines": arrays["affine"][None], "boxes": arrays["box"][None]}, [str(number)], "parts", classes=(),
                 spatial_shape=job.size)


def grid_shapes(meta: VolumesMeta, size: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of what is kept at full size, by name."""
    shown = len(meta.numbers("condition"))
    return {**({"labels": size} if meta.label_classes else {}), **({"maps": size} if meta.map_classes else {}),
            **({"cond_images": (shown, *size)} if shown else {})}


class PartGrids:
    """Rows of one of GRIDS, in parts."""

    def __init__(self, parts: Parts, places: list[Place], name: str):
        self.parts, self.places, self.name = parts, places, name

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.parts.read(self.places[index].number, self.name)[self.name]


class PartRows:
    """A split of the latents file, its rows in parts."""

    def __init__(self, volumes: VolumesFile, split: str, parts: Parts, places: list[Place]):
        self.ids, self.groups = volumes.ids(split), volumes.groups(split)
        self.tables = {name: t for name, t in volumes.tables(split).items() if name not in OF_IMAGES}
        self.parts, self.places = parts, places
        where = [parts.read(place.number, "affine", "box") for place in places]
        self.affines, self.boxes = (np.stack([each[name] for each in where]) for name in ("affine", "box"))
        self.shape = (len(places), *self.row(0)[0].shape)
        self.grids = {name: PartGrids(parts, places, name) for name in grid_shapes(volumes.meta, ())}

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and std [C,*s] of an item."""
        part = self.parts.read(self.places[index].number, "mean", "std")
        return part["mean"], part["std"]


def round_trip(job: EncodeJob, places: Sequence[Place], parts: Parts) -> dict | None:
    """Means over the measured items: psnr_db, dice by class (None where no item has it), their number and split."""
    found = [parts.read(number) for number in sorted(job.measured)]
    if not found:
        return None
    names = job.volumes.meta.label_classes
    table = np.stack([part["dice"] for part in found]) if names else np.zeros((len(found), 0))
    scores = {name: float(np.nanmean(column)) if np.isfinite(column).any() else None
              for name, column in zip(names, table.T, strict=True)}
    return {"psnr_db": float(np.mean([part["psnr"] for part in found])), "dice": scores, "num": len(found),
            "split": places[min(job.measured)].split}
