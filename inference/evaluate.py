"""Samples held against real volumes: what is compared, measured on the device, and the report of it."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import click
import numpy as np
import torch

from edm3d.formats.facts import rows_of
from edm3d.formats.nifti import spacing_of
from edm3d.formats.samples import SamplesFile
from edm3d.formats.volumes import VolumesFile
from edm3d.inference.first_stage import FirstStage, tiles_of
from edm3d.inference.labelling import Labeller, find_labeller
from edm3d.inference.snapshot import Snapshot
from edm3d.reporting import comparison, sections
from edm3d.reporting.cases import Case, DecodedCase, Layout
from edm3d.reporting.comparison import Comparison
from edm3d.reporting.reference import Cases, choose_reference, file_volumes, held_out_split
from edm3d.reporting.report import check_report, opening, write_report
from edm3d.reporting.section import missing, walk
from edm3d.utils import locks
from edm3d.utils.checks import listed, listed_apart
from edm3d.utils.files import check_folder, file_hash
from edm3d.utils.log import progress
from edm3d.utils.names import one_line
from edm3d.utils.precision import resolve_precision
from edm3d.utils.runs import find_file

DRAWN = 8  # volumes of noise drawn at a time
FIRST_STAGE_VOLUMES = 64
IGNORED = "--ignore-spacing"


def evaluate(real: Path, generated: Path, dest: Path, split: str = "auto", num_noise: int = 64,
             snapshot: Path | None = None, seed: int = 0, trust: bool = False, ignore_spacing: bool = False,
             overwrite: bool = False) -> dict:
    """Write the report of a samples file against a volumes file; returns what report.json holds.

    overwrite: also over a report of others than these.
    """
    check_folder(dest, f"--dest {dest}")
    with locks.output(dest, is_folder=True):
        samples, file = SamplesFile(generated), VolumesFile(real)
        inputs = {"real": {"content_hash": file.content_hash}, "generated": {"sha256": file_hash(samples.path)}}
        check_report(dest, inputs, overwrite)
        return compare(samples, file, dest, split, num_noise, snapshot, seed, trust, ignore_spacing)


def compare(samples: SamplesFile, file: VolumesFile, dest: Path, split: str, num_noise: int, snapshot: Path | None,
            seed: int, trust: bool, ignore_spacing: bool) -> dict:
    """Measure, and write the report."""
    real, generated = file.path, samples.path
    layout = shared_layout(samples, file, ignore_spacing)
    channels = [file.meta.channels.index(name) for name in layout.channels]
    size = samples.row("images", 0).shape[1:]
    against = choose_reference(file, split, channels).fitted(size, layout.lo)
    drawn = Cases(str(generated), len(samples), lambda i: sample_case(samples, i, layout))
    held_out = held_out_split(file)
    sets, lengths = {"real": against, "generated": drawn}, {"real": len(against), "generated": len(drawn)}
    stage, reason = find_first_stage(samples, snapshot, trust, best_device())
    unlabelled = "" if stage is None or bool(layout.label_classes) == bool(stage.net.num_classes) else \
        "the samples hold no label maps, which their first stage encodes with the images" \
        if stage.net.num_classes else "the samples hold label maps of a segmenter, and their first stage gives none"
    labeller, gone = find_labeller(samples, trust, best_device())
    absent = {"decoded": reason or unlabelled, "noise": reason or gone or ("" if num_noise else "--num-noise is 0")}
    if not absent["noise"]:
        sets["noise"], lengths["noise"] = noise_cases(stage, num_noise, seed, layout, labeller), num_noise
    if not absent["decoded"]:
        held = file_volumes(file, held_out, channels).fitted(size, layout.lo)
        lengths["decoded"] = min(FIRST_STAGE_VOLUMES, len(held))
        sets["decoded"] = reconstruct(stage, held, lengths["decoded"], layout)

    context = Comparison(layout=layout, provenance=file.provenance, missing=absent, real=against, generated=drawn,
                         seeds=samples.seeds, asked=tuple(samples.meta.id_of(seed) for seed in samples.seeds)
                         if samples.meta.ids else (), held_out=held_out, seed=seed)
    walked = walk(sections.COMPARISON, context, {name: shown(name, cases, lengths[name])
                                                 for name, cases in sets.items()})
    remark = "; in voxels of the samples' size, whatever their own" if ignore_spacing else ""
    if file.provenance.get("kind") == "segment":
        remark += f"; their label maps are of a segmenter ({one_line(str(file.provenance.get('network')))})"
    about = {**opening(str(generated), sections.COMPARISON),
             "real": {"path": str(real), "content_hash": file.content_hash,
                      "reference": against.description + remark, "num": len(against)},
             "generated": describe_samples(samples, snapshot, bool(file.meta.label_classes)),
             "noise": missing(absent["noise"]) if absent["noise"] else
             {"available": True, "num": num_noise, "seed": seed}}
    result = write_report(dest, sections.COMPARISON, comparison.FRAME, walked, about)
    click.echo(comparison.text(sections.COMPARISON, result))
    if "network" in (labels := result["generated"]["labels"]):
        click.echo(f"Label maps: {comparison.by_segmenter(labels)}")
    click.echo(f"Report    {dest / 'report.html'}")
    return result


def shown(name: str, cases: Iterable, length: int) -> Iterator:
    """The same, with a progress bar that is there from the first to the last of them."""
    yield from progress(cases, total=length, desc=name, unit="volume")


# ---- what is compared ----


def shared_layout(samples: SamplesFile, file: VolumesFile, ignore_spacing: bool) -> Layout:
    """What samples and real volumes have in common; ValueError naming where they differ."""
    facts, meta = samples.meta.facts, file.meta
    if "images" not in samples.names:
        raise ValueError(f"{samples.path}: holds latents but no images; generate with sampling.decode=true")
    channels, classes = facts.channels, facts.label_classes
    if unknown := [name for name in channels if name not in meta.channels]:
        raise ValueError(f"{samples.path}: channels {listed(unknown)} are not in {file.path}, which has "
                         f"{listed(meta.channels)}; give --real the file that the networks were trained on, or one "
                         "like it")
    found = {"label classes": (classes, meta.label_classes),
             "intensity range": ((facts.intensity.lo, facts.intensity.hi), (meta.intensity.lo, meta.intensity.hi)),
             "number of axes": (samples.row("images", 0).ndim - 1, file.meta.spatial_dims)}
    for what, (got, wanted) in found.items():
        if got != wanted:
            got, wanted = listed_apart(got, wanted) if what == "label classes" else (got, wanted)
            raise ValueError(f"{samples.path}: {what} {got} differs from {wanted} of {file.path} (--real)")
    dims, spacing = meta.spatial_dims, spacing_of(samples.affine)[: meta.spatial_dims]
    real_spacing = spacing
    if not ignore_spacing:
        spacing = shared_spacing(samples.path, affines_of(samples), dims, f"{IGNORED} measures them all the same")
        real_spacing = shared_spacing(file.path, affines_of(file), dims,
                                      f"prepare it anew with --spacing, or {IGNORED}")
    if not np.allclose(spacing, real_spacing, rtol=1e-3):
        raise ValueError(f"{samples.path}: voxels of {spacing} mm differ from {real_spacing} mm of "
                         f"{file.path} (--real)")
    labelled = classes if "labels" in samples.names else ()
    return Layout(channels, labelled, tuple(float(s) for s in spacing), meta.intensity.lo, meta.intensity.hi,
                  meta.intensity.unit, rows_of(samples.affine),
                  facts.class_names if set(facts.class_names) <= set(meta.class_names) else ())


def shared_spacing(path: Path, affines: Mapping[str, np.ndarray], dims: int, advice: str) -> np.ndarray:
    """Voxel size per axis in mm of volumes by name; ValueError naming those whose own differs from that of the first.
    """
    found = {name: spacing_of(affine)[:dims] for name, affine in affines.items()}
    first, wanted = next(iter(found.items()))
    if others := [f"{name} {size.round(4)}" for name, size in found.items()
                  if not np.allclose(size, wanted, rtol=1e-3)]:
        raise ValueError(f"{path}: voxels of {one_line(first)} are {wanted.round(4)} mm, those of {len(others)} others "
                         f"are not: {listed(others)}; {advice}")
    return wanted


def affines_of(file: SamplesFile | VolumesFile) -> dict[str, np.ndarray]:
    """Voxel index -> mm [4,4] of each sample or volume, by what messages call it."""
    if isinstance(file, SamplesFile):
        return {f"seed {seed}": file.affine_of(i) for i, seed in enumerate(file.seeds)}
    return {name: affine for split in file.splits for name, affine in zip(file.ids(split), file.affines(split))}


def sample_case(samples: SamplesFile, index: int, layout: Layout) -> Case:
    """A generated volume."""
    label = samples.row("labels", index) if layout.label_classes else None
    return Case(f"seed-{samples.seeds[index]:06d}", samples.row("images", index), label,
                samples.meta.class_name(samples.row("classes", index)))


def describe_samples(samples: SamplesFile, snapshot: Path | None, labels_known: bool) -> dict:
    """What was generated, by what; labels_known: whether the real volumes have label maps."""
    without = labels_known and "labels" not in samples.names
    return {"path": str(samples.path), "sha256": file_hash(samples.path), "num": len(samples),
            "seeds": ranges(samples.seeds), "snapshot": str(snapshot or samples.meta.snapshot),
            "snapshot_hash": samples.meta.snapshot_hash, "sampling": samples.meta.sampling,
            "labels": missing("the samples hold no label maps: only images are compared") if without else
            {"available": True, **(samples.meta.labelling._asdict() if samples.meta.labelling else {})}}


def ranges(seeds: np.ndarray) -> str:
    """Increasing numbers as a list of ranges: 0-3,7."""
    runs = np.split(seeds, np.flatnonzero(np.diff(seeds) != 1) + 1)
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


# ---- the first stage that decoded the samples ----


def best_device() -> torch.device:
    """Where networks run: cuda where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def find_first_stage(samples: SamplesFile, override: Path | None, trust: bool, device: torch.device
                     ) -> tuple[FirstStage | None, str]:
    """The first stage as it decoded the samples, tiles and all, or None and the reason why there is none."""
    path = Path(samples.meta.snapshot)
    if override is not None:
        path = find_file(str(override), "network-snapshot", Path("results"), "--snapshot")
    elif not path.exists():
        return None, f"the snapshot that the samples name, {path}, is not there; point --snapshot to it"
    snapshot = Snapshot.read(path)
    if snapshot.hash != samples.meta.snapshot_hash:
        return None, f"{path} is not the snapshot that drew the samples: its hash differs from the one they record"
    if snapshot.first_stage is None:
        return None, "the network draws voxels, it has no first stage"
    if snapshot.first_stage.network is None:
        return None, f"{path} does not carry the first stage of its latents"
    had, wanted = samples.meta.facts.label_classes, snapshot.facts.label_classes
    if had != wanted and samples.meta.labelling and wanted:
        return None, f"{path} was trained with other label classes than the samples' segmenter: {listed(wanted)}"
    if had != wanted and not samples.meta.labelling:
        raise ValueError(f"{samples.path}: label_classes are {listed(had) or 'none'}, those of {path}, which drew "
                         f"them, are {listed(wanted) or 'none'}")
    stage = snapshot.open_first_stage(trust, resolve_precision(samples.meta.precision, device)).to(device)
    return stage.in_parts(tiles_of(samples.meta.sampling)), ""


def noise_cases(stage: FirstStage, count: int, seed: int, layout: Layout, labeller: Labeller | None = None
                ) -> Iterator[Case]:
    """Decoded noise: volumes decoded from normal latents with the standard deviation of true ones."""
    generator, shape = torch.Generator().manual_seed(seed), stage.net.latent_shape(stage.facts.spatial_shape)
    for start in range(0, count, DRAWN):
        noise = torch.randn(min(DRAWN, count - start), *shape, generator=generator)
        for i, normal in enumerate(noise.to(stage.device).split(1), start):
            yield decoded_case(stage, f"noise-{i:06d}", stage.noise(normal), layout, None, labeller)


def reconstruct(stage: FirstStage, held: Cases, count: int, layout: Layout) -> Iterator[DecodedCase]:
    """decode(encode(x)) of the first volumes."""
    for case in map(held.case, range(count)):
        arrays = case.image, case.label if layout.label_classes else None, case.semantic
        image, label, semantic = (None if array is None else torch.from_numpy(array)[None].to(stage.device)
                                  for array in arrays)
        latents = stage.encode(image, label, semantic)
        yield DecodedCase(case, decoded_case(stage, case.id, latents, layout, semantic))


def decoded_case(stage: FirstStage, name: str, latents: torch.Tensor, layout: Layout,
                 semantic: torch.Tensor | None = None, labeller: Labeller | None = None) -> Case:
    """The volume of latents [1,z,*s]; its label map that of the first stage, or what the labeller gives."""
    image, label = stage.decode(latents, semantic)
    image = image[0].cpu().numpy()
    if not layout.label_classes:
        return Case(name, image, None)
    return Case(name, image, labeller(image) if labeller else label[0].cpu().numpy())
