"""What there is to decode: the latents of a samples or latents file, ours or DIFF-3's, and their first stage."""

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch

from edm3d.formats import diff3, h5
from edm3d.formats.facts import Facts, LatentScaling
from edm3d.formats.latents import FirstStageRecord, LatentsFile
from edm3d.formats.samples import SamplesFile
from edm3d.inference.snapshot import CarriedStage, Snapshot
from edm3d.utils.files import arrays_hash, blocks_hash
from edm3d.utils.runs import find_file

STORED = {"image": "images", "label": "labels", "map": "maps", "cond": "cond_images"}  # arrays of samples, by kind
CARRIED = {kind: STORED[kind] for kind in ("map", "cond")}  # what files of samples and latents have beside latents
GENERATED = "generated"  # split of volumes that were drawn


class LatentRow(NamedTuple):
    """Where latents lie, and what becomes of them.

    key: what the noise of a refiner follows from, the seed of what was drawn, else the id. carried: what lies beside
    them at full size (see CARRIED); semantic: the map [*S] that their volume has, or None; attributes [A] likewise.
    """

    split: str
    id: str
    group: str
    affine: np.ndarray
    box: np.ndarray | None
    class_index: int | None
    latents: Callable[[], np.ndarray]
    carried: Mapping[str, Callable[[], np.ndarray]] = MappingProxyType({})
    semantic: Callable[[], np.ndarray | None] = lambda: None
    attributes: np.ndarray | None = None
    key: Hashable = ""


class LatentSource(NamedTuple):
    """Latents to decode: their file, what is known of their volumes, the hash of the latents, and their first stage.

    stage: as far as it is known, network and hash may be None; None in older samples files. snapshot: path of the one
    that drew them, where one did.
    """

    path: Path
    rows: list[LatentRow]
    facts: Facts
    content_hash: str
    stage: CarriedStage | None
    snapshot: str | None = None


def open_source(path: Path) -> LatentSource:
    """The latents of a file, whatever its kind."""
    is_h5 = path.suffix != ".npz"
    if is_h5 and diff3.is_samples(path):
        found = diff3.read_samples(path)
        rows = [generated_row(f"sample{i:06d}", np.eye(4), None, lambda i=i: found.latents[i])._replace(key=i)
                for i in range(len(found.latents))]
        return LatentSource(path, rows, Facts("", ""), arrays_hash({"latents": found.latents}),
                            plain_stage(found.latents.shape[1]))
    if is_h5 and (diff3.is_latents(path) or h5.read_format(path) == "latents"):
        return encoded(diff3.open_latents(path))
    samples = SamplesFile(path)
    if "latents" not in samples.names:
        raise ValueError(f"{path}: holds no latents; its network draws voxels")
    rows = [drawn_row(samples, i, name) for i, name in enumerate(samples.meta.file_names(samples.seeds))]
    stage, seeds = samples.meta.stage, samples.seeds
    found = blocks_hash([("latents", np.dtype("float32"), samples.shape("latents"), (r.latents() for r in rows)),
                         ("seeds", seeds.dtype, seeds.shape, [seeds])])
    return LatentSource(path, rows, samples.meta.facts, found,
                        stage and CarriedStage(stage.scaling, hash=stage.hash), samples.meta.snapshot)


def plain_stage(channels: int, record: FirstStageRecord | None = None) -> CarriedStage:
    """A first stage whose latents are as it gives them."""
    return CarriedStage.from_record(record, LatentScaling([0.0] * channels, [1.0] * channels, sigma_data=1.0))


def generated_row(name: str, affine: np.ndarray, class_index: int | None, latents: Callable[[], np.ndarray],
                  carried: Mapping[str, Callable[[], np.ndarray]] = MappingProxyType({}),
                  semantic: Callable[[], np.ndarray | None] = lambda: None) -> LatentRow:
    """A row of drawn latents."""
    index = None if class_index is None or class_index < 0 else int(class_index)
    return LatentRow(GENERATED, name, name, affine, None, index, latents, carried, semantic)


def drawn_row(samples: SamplesFile, i: int, name: str) -> LatentRow:
    """A row of a samples file."""
    carried = {kind: partial(samples.row, array, i) for kind, array in CARRIED.items() if array in samples.names}
    row = generated_row(name, samples.affine_of(i), samples.row("classes", i), partial(samples.row, "latents", i),
                        carried, partial(samples.row, "maps", i))
    key = samples.meta.key_of(int(samples.seeds[i]), int(samples.row("attempts", i) or 0))
    return row._replace(attributes=samples.row("attributes", i), key=key)


def encoded(file: LatentsFile | diff3.Diff3File) -> LatentSource:
    """The posterior means of a latents file."""
    rows = []
    for split in sorted(file.splits):  # pieces that are half done have these numbers
        part = file.read(split)
        classes, attributes = part.tables.get("classes"), part.tables.get("attributes")
        for i, name in enumerate(part.ids):
            index = None if classes is None or classes[i] < 0 else int(classes[i])
            box = None if part.boxes is None else part.boxes[i]
            rows.append(LatentRow(split, name, part.groups[i], part.affines[i], box, index,
                                  lambda part=part, i=i: part.mean[i],
                                  {kind: partial(part.grids[array].__getitem__, i)
                                   for kind, array in CARRIED.items() if array in part.grids},
                                  lambda maps=part.semantic, i=i: None if maps is None else maps[i],
                                  None if attributes is None else attributes[i], name))
    return LatentSource(file.path, rows, file.facts, file.content_hash,
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


def affine_of(row: LatentRow, facts: Facts) -> np.ndarray:
    """Voxel index -> mm [4,4]: the row's own, or that of the first stage's volumes where the file knows none."""
    return np.asarray(facts.affine) if np.array_equal(row.affine, np.eye(4)) else row.affine
