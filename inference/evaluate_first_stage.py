"""A trained first stage on held-out volumes: encode, decode, measure, and write the report."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
import torch

from edm3d.formats.facts import rows_of, volume_facts
from edm3d.formats.nifti import spacing_of
from edm3d.formats.volumes import VolumesFile
from edm3d.inference.conditions import stacked
from edm3d.inference.decoded import best_device
from edm3d.inference.first_stage import FirstStage
from edm3d.inference.padding import padding_of
from edm3d.inference.refiner import Refiner, open_refiner
from edm3d.inference.snapshot import Snapshot, check_contract
from edm3d.networks.conditioning import Condition
from edm3d.networks.layers import SizeError
from edm3d.networks.parts import PARTS
from edm3d.networks.tiles import Tiles
from edm3d.reporting import first_stage, sections
from edm3d.reporting.cases import Case, DecodedCase, Layout
from edm3d.reporting.first_stage import RoundTrip
from edm3d.reporting.reference import Cases, file_volumes, held_out_split
from edm3d.reporting.report import check_report, opening, write_report
from edm3d.reporting.section import walk
from edm3d.utils import locks
from edm3d.utils.files import check_folder
from edm3d.utils.log import progress
from edm3d.utils.runs import find_file, passed_over


class FirstStageOptions(NamedTuple):
    """How to measure. split: 'auto' is the held-out one; num: volumes of it; tiles: None for whole; min_psnr in dB.

    refiner: a name, run folder or snapshot of what refines the images that come back; padding: see inference.padding;
    gif: whether to animate.
    """

    split: str = "auto"
    num: int = 64
    tiles: Tiles | None = None
    min_psnr: float | None = 20
    trust: bool = False
    run_root: Path = Path("results")
    overwrite: bool = False
    refiner: str | None = None
    padding: bool | None = None
    gif: bool = False


def evaluate_first_stage(autoencoder: str, real: Path, dest: Path, options: FirstStageOptions) -> dict:
    """Write the report of an autoencoder (a name, run folder or snapshot) on a volumes file; what report.json holds."""
    check_folder(dest, f"--dest {dest}")
    with locks.output(dest, is_folder=True):
        return measure(autoencoder, real, dest, options)


def measure(autoencoder: str, real: Path, dest: Path, options: FirstStageOptions) -> dict:
    """Decode what was encoded, and write the report."""
    path = find_file(autoencoder, "network-snapshot", options.run_root, "--autoencoder")
    for line in passed_over(path, autoencoder, options.run_root):
        click.echo(line)
    snapshot = Snapshot.read(path, "autoencoder")
    file = VolumesFile(real)
    refiner = options.refiner and open_refiner(options.refiner, options.run_root, best_device(), tiles=options.tiles,
                                               trust=options.trust, key="--refiner")
    check_report(dest, {"real": {"content_hash": file.content_hash}, "autoencoder": {"hash": snapshot.network_hash},
                        "refiner": {"hash": refiner and refiner.snapshot.hash}}, options.overwrite)
    split = held_out_split(file) if options.split == "auto" else options.split
    held = file_volumes(file, split, list(range(len(file.meta.channels))))
    if snapshot.fits_to:
        held = held.fitted(snapshot.fits_to, file.meta.intensity.lo)
    facts = volume_facts(file, file.splits[0] if split == "all" else split)
    check_contract(facts, snapshot.facts, real, path)
    stage, layout = FirstStage(snapshot.build(options.trust), snapshot.facts).to(best_device()), layout_of(file, split)
    stage.check_maps(facts, real)
    if refiner:
        told = {name for name, kind in PARTS.items() if kind.names and getattr(facts, kind.names)}
        refiner.check(stage, snapshot.network_hash, facts, told, real, "--refiner")
        refiner.check_size(held.case(0).image.shape[1:], "--refiner")

    padding = padding_of(file, held.case(0).image.shape[1:], options.padding)
    held = held.within(padding and padding.kept)
    decoded = partial(coded, stage.in_parts(options.tiles), path, held, bool(layout.label_classes), refiner)
    context = RoundTrip(layout=layout, provenance=file.provenance, net=stage.net, decoded=decoded,
                        min_psnr=options.min_psnr, padding=padding, animate=options.gif)
    items = decoded(progress(range(min(options.num, len(held))), desc="first stage", unit="volume"))
    walked = walk(sections.FIRST_STAGE, context, {"decoded": items})
    first = walked.context.first["decoded"][0]
    about = {
        **opening(f"{autoencoder}{f', refined by {options.refiner},' if refiner else ''} on {real}",
                  sections.FIRST_STAGE),
        "real": {"path": str(real), "content_hash": file.content_hash, "split": split,
                 "num": len(walked.ids["decoded"])},
        "autoencoder": {"path": str(path), "hash": snapshot.network_hash,
                        "network": snapshot.target, "posterior": stage.net.posterior,
                        "latent_shape": list(first.mean.shape), "tile": options.tiles and list(options.tiles.size),
                        "reduction": first.real.image.size / first.mean.size},
        **({"refiner": {"path": str(refiner.snapshot.path), **refiner.record}} if refiner else {}),
    }
    result = write_report(dest, sections.FIRST_STAGE, first_stage.FRAME, walked, about)
    click.echo(f"{first_stage.text(sections.FIRST_STAGE, result)}\nReport      {dest / 'report.html'}")
    return result


def layout_of(file: VolumesFile, split: str) -> Layout:
    """What the volumes of a file share; voxel size and affine are those of the split's first."""
    meta, affine = file.meta, file.affines(file.splits[0] if split == "all" else split)[0]
    spacing = spacing_of(affine)[:meta.spatial_dims]
    return Layout(tuple(meta.channels), tuple(meta.label_classes), tuple(float(s) for s in spacing),
                  meta.intensity.lo, meta.intensity.hi, meta.intensity.unit, rows_of(affine))


def coded(stage: FirstStage, path: Path, held: Cases, labelled: bool, refiner: Refiner | None, indices: Sequence[int]
          ) -> Iterator[DecodedCase]:
    """Volumes by number, each with what comes back of it, in stored units; the noise of a refiner is by the number."""
    for index in indices:
        case = held.case(index)
        arrays = case.image, case.label if labelled else None, case.semantic
        image, label, semantic = (None if array is None else torch.from_numpy(array)[None].to(stage.device)
                                  for array in arrays)
        try:
            out = stage.round_trip(image, label, semantic)
        except SizeError as e:
            raise ValueError(f"{case.id}: {e}; prepare the volumes anew with --size "
                             f"{' '.join(map(str, e.larger))}") from e
        if not out.finite:
            raise ValueError(f"{case.id}: what the first stage {path} gives back is not finite; it has diverged, "
                             "train it again with a lower training.optimizer.lr")
        back_image = out.image if refiner is None else refiner(
            out.image, out.label, [index], told_of(case, refiner).to(stage.device))
        back = Case(case.id, back_image[0].cpu().numpy(), out.label[0].cpu().numpy() if labelled else None)
        mean, std = (part[0].float().cpu().numpy() for part in (out.posterior.mean, out.posterior.std))
        yield DecodedCase(case, back, mean, std, None if out.codes is None else out.codes.indices.cpu().numpy())


def told_of(case: Case, refiner: Refiner) -> Condition:
    """What a refiner is told of a volume besides what comes back of it."""
    names = refiner.facts.class_names
    known = {"class_labels": names.index(case.class_name) if case.class_name in names else None,
             "attributes": case.attributes, "semantic": case.semantic}
    return stacked({name: [value] for name, value in known.items() if name in refiner.takes}, refiner.takes,
                   case.image.shape[1:])
