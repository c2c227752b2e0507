"""Hold generated volumes, or what a first stage gives back, against real ones: python evaluate.py --help"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # heavy imports wait until there is something to do
    from collections.abc import Iterator, Sequence

    import numpy as np
    from matplotlib.figure import Figure

    from formats.samples import SamplesFile
    from formats.volumes import VolumesFile
    from inference.first_stage import FirstStage
    from reporting.features import Case, Layout
    from reporting.reference import Reference

BATCH = 8
PICTURES = 8  # volumes of each set in the pictures
MS_SSIM_VOLUMES = 64
FIRST_STAGE_VOLUMES = 64
STAGE_OPTIONS = ("num", "tile", "tile_overlap", "tile_mode", "min_psnr", "run_root")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--real", required=True, type=click.Path(path_type=Path), help="Real volumes (volumes.h5).")
@click.option("--generated", type=click.Path(path_type=Path), help="Samples (.h5 or .npz).")
@click.option("--autoencoder", help="Instead of samples: a first stage (name, run folder or snapshot), to see what "
                                    "volumes lose in it.")
@click.option("--dest", required=True, type=click.Path(path_type=Path), help="Folder of the report.")
@click.option("--split", default="auto", show_default=True,
              help="Real volumes to compare with: a split of the file or 'all'. auto: fresh phantoms of another seed "
                   "if the file holds phantoms, else its test split, or all of it when that has fewer than 32 volumes; "
                   "for a first stage its test split, or val without one.")
@click.option("--ignore-spacing", is_flag=True,
              help="Measure all volumes in voxels of the samples' size, where those of real ones differ (prepare "
                   "--fit).")
@click.option("--num-noise", default=64, show_default=True, type=click.IntRange(min=0),
              help="Volumes decoded from pure noise, the yardstick; 0 leaves it out.")
@click.option("--snapshot", type=click.Path(path_type=Path), help="Instead of the snapshot the samples name.")
@click.option("--seed", default=0, show_default=True, help="Of the noise, the pairs and the resampling.")
@click.option("--trust", is_flag=True, help="Let the snapshot build classes that are not on the list of known ones.")
@click.option("--num", default=64, show_default=True, type=click.IntRange(min=1), help="Volumes that a first stage "
                                                                                       "is measured on.")
@click.option("--tile", help="Take them through a first stage in tiles of so many voxels per axis (64,64,48).  "
                             "[default: whole]")
@click.option("--tile-overlap", default=0.25, show_default=True, type=float, help="Of neighbouring tiles, a share.")
@click.option("--tile-mode", default="blend", show_default=True, help="blend, or exact (as the whole; in slabs).")
@click.option("--min-psnr", default=20.0, show_default=True, help="dB that a first stage must reach to pass.")
@click.option("--run-root", default="results", show_default=True, type=click.Path(path_type=Path),
              help="Where runs are looked for by name.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def main(debug: bool, generated: Path | None, autoencoder: str | None, **options: object) -> None:
    """Report how generated volumes compare with real ones, or what volumes lose in a first stage.

    Writes report.html (one file, opens anywhere), report.json, cases.csv and figures/*.png into --dest.
    """
    from utils.log import run_main
    if (generated is None) == (autoencoder is None):
        raise click.UsageError("wanted one of --generated and --autoencoder")
    for_stage = {key: options.pop(key) for key in STAGE_OPTIONS}
    if autoencoder is None:
        run_main(lambda: evaluate(generated=generated, **options), debug)
    else:
        shared = {key: options[key] for key in ("real", "dest", "split", "trust")}
        run_main(lambda: evaluate_first_stage(autoencoder, **shared, **for_stage), debug)


def evaluate_first_stage(autoencoder: str, real: Path, dest: Path, **options: object) -> dict:
    """Write the report of a first stage on the held-out volumes of a file; returns what report.json holds."""
    from inference.evaluate_first_stage import Options, report_first_stage
    tile = options.pop("tile", None)
    result = report_first_stage(autoencoder, real, dest, Options(tile=tile and voxels(tile), **options),
                                {"title": f"{autoencoder} on {real}", **made_by()})
    print_first_stage(result, dest)
    return result


def voxels(text: str) -> list[int]:
    """Sizes as in 64,64,48; ValueError for anything else."""
    try:
        return [int(word) for word in text.replace(",", " ").replace("x", " ").split()]
    except ValueError as error:
        raise ValueError(f"--tile {text}: wanted voxels per axis, as in 64,64,48") from error


def print_first_stage(result: dict, dest: Path) -> None:
    """The figures of a first stage, whether they will do, and where the report is."""
    from reporting.first_stage import verdict_line
    from reporting.tables import number
    click.echo(f"First stage {result['autoencoder']['path']} on {result['real']['num']} volumes of split "
               f"{result['real']['split']!r}")
    for name, row in result["channels"].items():
        click.echo(f"{name}: PSNR {row['psnr_db']:.2f} dB (worst {row['psnr_min']:.2f}), SSIM {number(row['ssim'])}, "
                   f"spectrum {row['spectrum_db']:.2f} dB, sharpness {number(row['sharpness'])}")
    if result["ceiling"]["available"]:
        click.echo(f"Ceiling without speckle {result['ceiling']['psnr_db']:.2f} dB, gap "
                   f"{result['ceiling']['gap_db']:.2f} dB")
    if result["dice"]:
        click.echo("Dice " + ", ".join(f"{name} {number(value)}" for name, value in result["dice"].items()))
    if result["codes"]["available"]:
        codes = result["codes"]
        click.echo(f"Codes {codes['used']:.1%} of {codes['size']} used, perplexity {codes['perplexity']:.1f}")
    click.echo(f"Verdict     {verdict_line(result['verdict'])}\nReport      {dest / 'report.html'}")


def evaluate(real: Path, generated: Path, dest: Path, split: str = "auto", num_noise: int = 64,
             snapshot: Path | None = None, seed: int = 0, trust: bool = False, ignore_spacing: bool = False) -> dict:
    """Write the report of a samples file against a volumes file; returns what report.json holds."""
    from formats.samples import SamplesFile
    from formats.volumes import VolumesFile
    from reporting import features, montages, reference, report, tables
    from reporting.first_stage import missing
    from utils.log import progress

    samples, file = SamplesFile(generated), VolumesFile(real)
    layout = shared_layout(samples, file, ignore_spacing)
    channels = [file.meta.channels.index(name) for name in layout.channels]
    size = samples.images(0).shape[1:]
    against = reference.choose_reference(file, split, channels).fitted(size, layout.lo)
    remark = "; in voxels of the samples' size, whatever their own" if ignore_spacing else ""
    first_stage, reason = find_first_stage(samples, snapshot, trust)
    noise_reason = reason or ("--num-noise is 0" if num_noise == 0 else "")

    def measured(cases: Iterator[Case], name: str, total: int) -> features.Measured:
        return features.measure(progress(cases, total=total, desc=name, unit="volume"), layout)

    sets = {"real": measured(iter(against), "real", len(against)),
            "generated": measured((sample_case(samples, i, layout) for i in range(len(samples))), "generated",
                                  len(samples)),
            "noise": None}
    if not noise_reason:
        sets["noise"] = measured(noise_cases(first_stage, num_noise, seed, layout), "noise", num_noise)
    comparison = tables.compare(sets["real"], sets["generated"], sets["noise"], layout, seed)
    figures: dict[str, bytes] = {}
    comparison["ms_ssim"] = variety(against, samples, layout, seed, figures)
    result = {
        **origin(samples, file, against, layout, snapshot, remark),
        "noise": missing(noise_reason) if noise_reason else {"available": True, "num": num_noise, "seed": seed},
        **comparison,
        "first_stage": missing(reason) if reason else
        first_stage_report(first_stage, file, size, layout, channels, figures),
    }
    figures |= report.figure_pngs(report.comparison_figures(result, sets, layout))
    figures["samples"] = montages.png_bytes(pictures(against, samples, layout))
    rows = tables.cases_csv({name: values for name, values in sets.items() if values}, samples.seeds.tolist())
    report.write_report(dest, result, figures, rows)
    print_summary(result, dest, tables.text_table(comparison))
    return result


# ---- what is compared ----


def shared_layout(samples: SamplesFile, file: VolumesFile, ignore_spacing: bool) -> Layout:
    """What samples and real volumes have in common; ValueError naming where they differ."""
    import numpy as np

    from formats.nifti import spacing_of
    from reporting.features import Layout
    facts, meta = samples.meta.facts, file.meta
    if "images" not in samples.arrays:
        raise ValueError(f"{samples.path}: holds latents but no images; generate with sampling.decode=true")
    channels, classes = facts.channels, facts.label_classes
    if unknown := [name for name in channels if name not in meta.channels]:
        raise ValueError(f"{samples.path}: channels {unknown} are not in {file.path}, which has {list(meta.channels)}; "
                         "give --real the file that the networks were trained on, or one like it")
    found = {"label classes": (classes, meta.label_classes),
             "intensity range": ((facts.intensity.lo, facts.intensity.hi),
                                 (meta.intensity.lo, meta.intensity.hi)),
             "number of axes": (samples.images(0).ndim - 1, file.meta.spatial_dims)}
    for what, (got, wanted) in found.items():
        if got != wanted:
            raise ValueError(f"{samples.path}: {what} {got} differs from {wanted} of {file.path} (--real)")
    spacing = spacing_of(samples.affine)[: meta.spatial_dims]
    real_spacing = spacing if ignore_spacing else shared_spacing(file)
    if not np.allclose(spacing, real_spacing, rtol=1e-3):
        raise ValueError(f"{samples.path}: voxels of {spacing} mm differ from {real_spacing} mm of "
                         f"{file.path} (--real)")
    labelled = classes if "labels" in samples.arrays else ()
    return Layout(channels, labelled, tuple(float(s) for s in spacing), meta.intensity.lo, meta.intensity.hi,
                  meta.intensity.unit)


def shared_spacing(file: VolumesFile) -> np.ndarray:
    """Voxel size per axis in mm; ValueError naming the real volumes whose own differs from that of the first."""
    import numpy as np

    from formats.nifti import spacing_of
    found = [(name, spacing_of(affine)[: file.meta.spatial_dims])
             for split in file.splits for name, affine in zip(file.ids(split), file.affines(split))]
    wanted = found[0][1]
    if others := [f"{name} {size}" for name, size in found if not np.allclose(size, wanted, rtol=1e-3)]:
        raise ValueError(f"{file.path}: voxels of {found[0][0]} are {wanted} mm, those of {len(others)} others are "
                         f"not: {', '.join(others[:20])}; prepare it anew with --spacing, or --ignore-spacing")
    return wanted


def sample_case(samples: SamplesFile, index: int, layout: Layout) -> Case:
    """A generated volume."""
    from reporting.features import Case
    label = samples.labels(index) if layout.label_classes else None
    return Case(f"seed-{samples.seeds[index]:06d}", samples.images(index), label)


def noise_cases(first_stage: FirstStage, count: int, seed: int, layout: Layout) -> Iterator[Case]:
    """The yardstick: volumes decoded from normal latents with the standard deviation of true ones."""
    import torch

    from reporting.features import Case
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, BATCH):
        shape = first_stage.net.latent_shape(first_stage.facts.spatial_shape)
        noise = torch.randn(min(BATCH, count - start), *shape, generator=generator)
        images, labels = first_stage.decode(first_stage.noise(noise))
        for i, image in enumerate(images.numpy()):
            yield Case(f"noise-{start + i:06d}", image, labels[i].numpy() if layout.label_classes else None)


def find_first_stage(samples: SamplesFile, override: Path | None, trust: bool) -> tuple[FirstStage | None, str]:
    """The first stage that decoded the samples, or None and the reason why there is none."""
    from inference.snapshot import Snapshot
    from utils.runs import find_file
    path = Path(samples.meta.snapshot)
    if override is not None:
        path = find_file(str(override), "network-snapshot", Path("results"), "--snapshot")
    if override is None and not path.is_file():
        return None, f"the snapshot that the samples name, {path}, is not there; point --snapshot to it"
    found = Snapshot.read(path)
    if found.hash != samples.meta.snapshot_hash:
        return None, f"{path} is not the snapshot that drew the samples: its hash differs from the one they record"
    if found.first_stage is None:
        return None, "the network draws voxels, it has no first stage"
    return found.open_first_stage(trust), ""


# ---- parts of the report ----


def variety(against: Reference, samples: SamplesFile, layout: Layout, seed: int, figures: dict[str, bytes]) -> dict:
    """MS-SSIM of pairs, per channel; adds its charts to the figures."""
    import numpy as np

    from reporting import charts, tables
    from reporting.montages import png_bytes
    real = np.stack([against.case(i).image for i in range(min(MS_SSIM_VOLUMES, len(against)))])
    generated = np.stack([samples.images(i) for i in range(min(MS_SSIM_VOLUMES, len(samples)))])
    rows = {}
    for i, channel in enumerate(layout.channels):
        scaled = [np.clip((a[:, i:i + 1] - layout.lo) / (layout.hi - layout.lo), 0, 1) for a in (real, generated)]
        rows[channel], values = tables.ms_ssim_row(*scaled, seed)
        if values:
            figures[f"ms_ssim_{channel}"] = png_bytes(charts.pairs_chart(values))
    return rows


def first_stage_report(first_stage: FirstStage, file: VolumesFile, size: Sequence[int], layout: Layout,
                       channels: list[int], figures: dict[str, bytes]) -> dict:
    """How held-out volumes, fitted to a size [*S], survive encoding and decoding; adds a picture to the figures."""
    import numpy as np

    from metrics import image, overlap
    from reporting import montages, reference
    from reporting.first_stage import dice_figures, speckle_ceiling
    split = reference.held_out_split(file)
    held_out = reference.file_volumes(file, split, channels).fitted(size, layout.lo)
    cases = [held_out.case(i) for i in range(min(FIRST_STAGE_VOLUMES, len(held_out)))]
    decoded = reconstruct(first_stage, cases, layout)
    data_range, names = layout.hi - layout.lo, layout.label_classes
    psnr = float(np.mean([image.psnr(d.image, c.image, data_range) for d, c in zip(decoded, cases)]))
    dice = np.array([overlap.dice(d.label, c.label, len(names)) for d, c in zip(decoded, cases)]) if names else None
    scores = dice_figures(dice, names)
    blocks = [("Held out", cases), ("Decoded from its latents", decoded)]
    figures["first_stage"] = montages.png_bytes(montages.montage(
        [(name, [(c.image, c.label) for c in block[:PICTURES]]) for name, block in blocks], layout.spacing,
        label_classes=names))
    return {
        "available": True, "split": split, "num": len(cases), "psnr_db": psnr,
        "ceiling": speckle_ceiling(file.provenance, cases, data_range, psnr), **scores,
    }


def reconstruct(first_stage: FirstStage, cases: list[Case], layout: Layout) -> list[Case]:
    """decode(encode(x)) of every case."""
    import numpy as np
    import torch

    from reporting.features import Case
    from utils.log import progress
    decoded = []
    for start in progress(range(0, len(cases), BATCH), desc="first stage", unit="batch"):
        batch = cases[start:start + BATCH]
        label = torch.from_numpy(np.stack([c.label for c in batch])) if layout.label_classes else None
        images, labels = first_stage.decode(first_stage.encode(torch.from_numpy(np.stack([c.image for c in batch])),
                                                               label))
        decoded += [Case(c.id, images[i].numpy(), labels[i].numpy() if layout.label_classes else None)
                    for i, c in enumerate(batch)]
    return decoded


def pictures(against: Reference, samples: SamplesFile, layout: Layout) -> Figure:
    """The first real volumes above the first generated ones."""
    from reporting.montages import montage
    real = [against.case(i) for i in range(min(PICTURES, len(against)))]
    generated = [sample_case(samples, i, layout) for i in range(min(PICTURES, len(samples)))]
    blocks = [(name, [(c.image, c.label) for c in cases]) for name, cases in (("Real", real), ("Generated", generated))]
    return montage(blocks, layout.spacing, label_classes=layout.label_classes)


def origin(samples: SamplesFile, file: VolumesFile, against: Reference, layout: Layout, snapshot: Path | None,
           remark: str) -> dict:
    """What was compared, with what, when."""
    import hashlib

    from reporting.first_stage import missing
    from reporting.report import DEFINITIONS
    with open(samples.path, "rb") as f:
        sha256 = hashlib.file_digest(f, "sha256").hexdigest()
    labels = {"available": True}
    if file.meta.label_classes and not layout.label_classes:
        labels = missing("the samples hold no label maps: only images are compared")
    return {
        "title": str(samples.path), **made_by(),
        "definitions": DEFINITIONS,
        "real": {"path": str(file.path), "content_hash": file.content_hash, "reference": against.description + remark,
                 "num": len(against)},
        "generated": {"path": str(samples.path), "sha256": sha256, "num": len(samples),
                      "seeds": ranges(samples.seeds), "snapshot": str(snapshot or samples.meta.snapshot),
                      "snapshot_hash": samples.meta.snapshot_hash, "sampling": samples.meta.sampling, "labels": labels},
    }


def made_by() -> dict:
    """When, by which command and by which versions a report is made."""
    import platform
    import shlex
    from datetime import datetime
    from importlib.metadata import version
    return {"date": datetime.now().astimezone().isoformat(timespec="seconds"), "command": shlex.join(sys.argv),
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("torch", "numpy", "scipy", "monai")}}


def ranges(seeds: np.ndarray) -> str:
    """Increasing numbers as a list of ranges: 0-3,7."""
    import numpy as np
    runs = np.split(seeds, np.flatnonzero(np.diff(seeds) != 1) + 1)
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def print_summary(result: dict, dest: Path, table: str) -> None:
    """The compact table, what is not available, the first stage's figures, and where the report is."""
    from reporting.tables import number
    click.echo(f"Real      {result['real']['reference']}\n\n{table}\n")
    part = result["first_stage"]
    for name in ("noise", "first_stage"):
        if not result[name]["available"]:
            click.echo(f"{name.replace('_', ' ').capitalize()}: not available: {result[name]['reason']}")
    if part["available"]:
        dice = ", ".join(f"{name} {number(value)}" for name, value in part["dice"].items())
        ceiling = part["ceiling"]
        gap = (f", ceiling without speckle {ceiling['psnr_db']:.2f} dB, gap {ceiling['gap_db']:.2f} dB"
               if ceiling["available"] else f", ceiling not available: {ceiling['reason']}")
        click.echo(f"First stage on {part['num']} volumes of split {part['split']!r}: "
                   + (f"Dice {dice}; " if dice else "") + f"PSNR {part['psnr_db']:.2f} dB{gap}")
    click.echo(f"Report    {dest / 'report.html'}")


if __name__ == "__main__":
    main()
