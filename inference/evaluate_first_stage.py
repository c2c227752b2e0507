"""A trained first stage on held-out volumes: encode, decode, measure, and write the report."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from formats.facts import volume_facts
from formats.nifti import spacing_of
from formats.volumes import VolumesFile
from inference.first_stage import FirstStage, tiles_of
from inference.snapshot import Snapshot, check_contract
from reporting import first_stage as report
from reporting.features import Case, Layout
from reporting.montages import png_bytes
from reporting.reference import Reference, file_volumes, held_out_split
from reporting.report import write_files
from utils.log import progress
from utils.runs import find_file

PICTURES, WORST = 6, 3  # volumes shown


class Options(NamedTuple):
    """How to measure. split: 'auto' is the held-out one; num: volumes of it; tile: see networks.tiles; min_psnr in dB.
    """

    split: str = "auto"
    num: int = 64
    tile: Sequence[int] | None = None
    tile_overlap: float = 0.25
    tile_mode: str = "blend"
    min_psnr: float | None = 20
    trust: bool = False
    run_root: Path = Path("results")


class Stage(NamedTuple):
    """A first stage on its device, with the file that its volumes come from; counts [K] of its codes, if it has any."""

    stage: FirstStage
    file: VolumesFile
    counts: np.ndarray | None


def report_first_stage(autoencoder: str, real: Path, dest: Path, options: Options, origin: dict) -> dict:
    """Write the report of an autoencoder (a name, run folder or snapshot) on a volumes file; what report.json holds.

    origin: title, date, command and versions.
    """
    path = find_file(autoencoder, "network-snapshot", options.run_root, "--autoencoder")
    snapshot = Snapshot.read(path, "autoencoder")
    net = snapshot.build(options.trust)
    file = VolumesFile(real)
    split = held_out_split(file) if options.split == "auto" else options.split
    held = file_volumes(file, split, list(range(len(file.meta.channels))))
    check_contract(volume_facts(file, file.splits[0] if split == "all" else split), snapshot.facts, real, path)
    layout = layout_of(file, split)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shown = FirstStage(net, snapshot.facts).to(device).in_parts(
        tiles_of(options.tile, options.tile_overlap, options.tile_mode))
    size = getattr(net, "codebook_size", 0)
    stage = Stage(shown, file, np.zeros(size) if size else None)

    indices = range(min(options.num, len(held)))
    rows, first = [], []
    for item in coded(stage, held, progress(indices, desc="first stage", unit="volume")):
        rows.append(report.measure(item, layout))
        first += [item] if len(first) < PICTURES else []
    codes = code_figures(net, stage.counts)
    worst = sorted(indices, key=lambda i: rows[i].psnr)[:WORST]
    worst_items = list(coded(stage._replace(counts=None), held, worst))
    figures = {**{f"pictures_{name}": figure for name, figure in report.pictures(first, layout).items()},
               **{f"worst_{name}": figure for name, figure in report.pictures(
                   worst_items, layout, [f"{rows[i].id}\n{rows[i].psnr:.2f} dB" for i in worst]).items()}}
    found = report.summary(rows, layout)
    cases = (held.case(i) for i in indices)
    result = {
        **origin, "definitions": report.WORDS,
        "real": {"path": str(real), "content_hash": file.content_hash, "split": split, "num": len(rows)},
        "autoencoder": {"path": str(path), "hash": snapshot.network_hash,
                        "network": snapshot.network["_target_"], "posterior": net.posterior,
                        "latent_shape": list(rows[0].mean.shape), "tile": list(options.tile) if options.tile else None,
                        "reduction": first[0].real.image.size / rows[0].mean.size},
        "verdict": report.verdict(found["psnr_db"], options.min_psnr), **found,
        "ceiling": report.speckle_ceiling(file.provenance, list(cases), layout.hi - layout.lo, found["psnr_db"]),
        "codes": codes, "worst": [{"id": rows[i].id, "psnr_db": rows[i].psnr} for i in worst],
    }
    pngs = {name: png_bytes(figure) for name, figure in (report.spectra(result) | figures).items()}
    write_files(dest, result, report.html_page, pngs, report.cases_csv(rows, layout))
    return result


def layout_of(file: VolumesFile, split: str) -> Layout:
    """What the volumes of a file share; the voxel size is that of the split's first."""
    meta = file.meta
    spacing = spacing_of(file.affines(file.splits[0] if split == "all" else split)[0])[:meta.spatial_dims]
    return Layout(tuple(meta.channels), tuple(meta.label_classes), tuple(float(s) for s in spacing),
                  meta.intensity.lo, meta.intensity.hi, meta.intensity.unit)


def coded(stage: Stage, held: Reference, indices: Sequence[int]) -> Iterator[report.Decoded]:
    """Volumes of a reference, each with what comes back of it, in stored units; uses of codes are added to the counts.
    """
    labelled, device = bool(stage.file.meta.label_classes), stage.stage.device
    for index in indices:
        case = held.case(index)
        label = torch.from_numpy(case.label)[None].to(device) if labelled else None
        out = stage.stage.round_trip(torch.from_numpy(case.image)[None].to(device), label)
        if not out.finite:
            raise ValueError(f"{case.id}: what the first stage gives back is not finite; it has diverged, train it "
                             "again with a lower training.optimizer.lr")
        if stage.counts is not None:
            stage.counts[:] += torch.bincount(out.codes.indices.flatten().cpu(), minlength=len(stage.counts)).numpy()
        back = Case(case.id, out.image[0].cpu().numpy(), out.label[0].cpu().numpy() if labelled else None)
        mean, std = (part[0].float().cpu().numpy() for part in (out.posterior.mean, out.posterior.std))
        yield report.Decoded(case, back, mean, std)


def code_figures(net: torch.nn.Module, counts: np.ndarray | None) -> dict:
    """Used share and perplexity of the codes over all volumes."""
    if counts is None:
        return report.missing("the first stage has no codebook")
    used, perplexity = map(float, net.codebook_usage(torch.from_numpy(counts).float()))
    return {"available": True, "size": net.codebook_size, "used": used, "perplexity": perplexity}
