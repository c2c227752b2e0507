"""Drawn high doses of PET scans held against phantoms and high-dose images, beside what the low dose gives without."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from edm3d.formats.facts import rows_of
from edm3d.inference.pet_rivals import Again, Choice, best_width, simulation_of
from edm3d.inference.pet_scans import DrawnScans, ScanImages
from edm3d.inference.scans import keep_projector
from edm3d.metrics.calibration import crps, rank_histogram, ranks
from edm3d.metrics.image import psnr, ssim
from edm3d.metrics.pet import (
    ActivityLevels,
    even_levels,
    exact_levels,
    nmae,
    noise,
    post_filter,
    recovered,
    relative_l2,
    rmse,
    uniform_regions,
)
from edm3d.reporting import enhancement, sections
from edm3d.reporting.cases import Layout
from edm3d.reporting.enhancement import (
    DRAW,
    EARLY,
    ERRORS,
    FILTERED,
    HIGH,
    LOW,
    MEAN,
    METHODS,
    Curve,
    EnhancementContext,
    ScanScores,
)
from edm3d.reporting.report import check_report, opening, write_report
from edm3d.reporting.section import Walked
from edm3d.utils import locks
from edm3d.utils.files import check_folder, plain_hash
from edm3d.utils.log import note, progress
from edm3d.utils.names import one_line

FEWEST_DRAWS = 8  # of which intervals say something
EXACT = 16  # activities of phantoms up to which each is a level by itself
BINS = 120  # of the standard deviation, over eight decades below the largest activity
WINDOW = 7  # of SSIM


class EnhancementOptions(NamedTuple):
    """How to evaluate. seed: of resampling and of ties. run_root: below which projectors are kept."""

    seed: int = 0
    trust: bool = False
    overwrite: bool = False
    run_root: Path = Path("results")


class Rivals(NamedTuple):
    """What is made of low doses without a network, at its best; again None: no MLEM that stops early."""

    width: Choice
    again: Again | None
    iteration: Choice | None


def evaluate_enhancement(samples: Sequence[Path], dest: Path, options: EnhancementOptions) -> dict:
    """Write the report of samples of scans; what report.json holds."""
    check_folder(dest, f"--dest {dest}")
    with locks.output(dest, is_folder=True):
        scans = DrawnScans(samples)
        hashes = [file.content_hash for file in scans.files]
        check_report(dest, {"samples": {"hash": plain_hash(sorted(hashes))}}, options.overwrite)
        against = scans.references[0]
        again, reason = find_again(scans, options.trust, options.run_root)
        width, (again, iteration, reason) = best_width(scans, array_of(against)), stopped(again, reason)
        rivals = Rivals(width, again, iteration)
        methods = [name for name in METHODS if (name != EARLY or again) and (name != HIGH or HIGH in scans.references)]
        context = EnhancementContext(
            layout=layout_of(scans), provenance={}, missing={EARLY: reason} if reason else {}, names=scans.names,
            groups=[str(scan.slice) for scan in scans.all], methods=methods, draws=scans.draws, against=against,
            references=scans.references, levels=levels_of(scans), curves=curves_of(rivals, scans), seed=options.seed,
            images=lambda index: pictures_of(scans.read(index), rivals, scans, index),
            uncalibrated=uncalibrated(scans), notes=notes_on(scans, rivals, reason))
        found = measure(scans, rivals, context)
        parts = sections.ENHANCEMENT
        about = {**opening(" + ".join(str(path) for path in samples), parts), "samples": about_samples(scans, options),
                 "notes": [*context.notes]}
        walked = Walked(context, dict.fromkeys(methods, scans.names), [found] * len(parts))
        result = write_report(dest, parts, enhancement.frame_of(methods), walked, about)
        click.echo(f"{enhancement.text(parts, result)}\nReport    {dest / 'report.html'}")
        return result


# ---- what is compared ----


def array_of(reference: str) -> str:
    """The array of a samples file that holds what images are held against."""
    return {"phantom": "phantom", "high": "high_images"}[reference]


def find_again(scans: DrawnScans, trust: bool, run_root: Path) -> tuple[Again | None, str]:
    """The low doses to be simulated again, by a projector that is kept below run_root; or None and the reason why not.
    """
    try:
        again = Again(scans, simulation_of(scans, trust))
    except ValueError as error:
        return None, str(error)
    if why := keep_projector(again.simulation, run_root):
        note(f"Note      {why}")
    return again, ""


def stopped(again: Again | None, reason: str) -> tuple[Again | None, Choice | None, str]:
    """The same with the iteration that is best, or None and the reason why there is none."""
    if again is None:
        return None, None, reason
    try:
        return again, again.best_iteration(), ""
    except ValueError as error:
        return None, None, str(error)


def levels_of(scans: DrawnScans) -> ActivityLevels:
    """Levels of the phantoms' activity: each of few activities, or ranges of the same width; none without phantoms."""
    if "phantom" not in scans.references:
        return exact_levels(np.empty(0))
    known: set[float] = set()
    largest = 0.0
    for index in range(len(scans)):
        phantom = scans.image(index, "phantom")
        largest = max(largest, float(phantom.max()))
        if len(known) <= EXACT:
            known |= {*np.unique(phantom[phantom > 0]).tolist()}
    return exact_levels(np.array(sorted(known))) if len(known) <= EXACT else even_levels(largest)


def curves_of(rivals: Rivals, scans: DrawnScans) -> dict[str, Curve]:
    """What the rivals were tried at."""
    width, iteration = rivals.width, rivals.iteration
    curves = {FILTERED: Curve("std", "mm" if scans.in_mm else "pixels", width.values, width.errors, width.best)}
    if iteration is not None:
        curves[EARLY] = Curve("iteration", "", iteration.values, iteration.errors, iteration.best)
    return curves


def uncalibrated(scans: DrawnScans) -> str:
    """Why draws are not held against the high dose, "" where they are."""
    if "high" not in scans.references:
        return "the samples hold no high-dose images"
    if scans.draws < FEWEST_DRAWS:
        return (f"{scans.draws} draw{'s' * (scans.draws > 1)} of each scan, wanted {FEWEST_DRAWS} or more "
                "(sampling.samples_per_condition=32)")
    return ""


def notes_on(scans: DrawnScans, rivals: Rivals, reason: str) -> list[str]:
    """What is to be known before the numbers are believed."""
    notes = []
    if "phantom" not in scans.references:
        notes.append("Note: the samples hold no phantoms: all is held against the high-dose images, whose noise counts "
                     "as error, and there are no levels of activity and no uniform regions")
    if reason:
        notes.append(f"Note: no row of MLEM that stops early: {reason}")
    for choice, what in ((rivals.width, "width of the post-filter"), (rivals.iteration, "iteration of MLEM")):
        if choice is not None and choice.place == len(choice.values) - 1:
            notes.append(f"Note: the best {what} is the last that was tried, {choice.best:g}")
    if len({scan.slice for scan in scans.all}) == 1:
        notes.append("Note: scans of one slice: nothing is known of others, and there are no intervals")
    return notes


def layout_of(scans: DrawnScans) -> Layout:
    """What pictures must know."""
    intensity = scans.facts.intensity
    return Layout(("activity",), (), scans.spacing, intensity.lo, intensity.hi, one_line(intensity.unit),
                  rows_of(scans.files[0].affine))


def about_samples(scans: DrawnScans, options: EnhancementOptions) -> dict:
    """Where the scans come from."""
    files, facts = scans.files, scans.facts
    hashes = [file.content_hash for file in files]
    return {"paths": [str(file.path) for file in files], "hashes": hashes, "hash": plain_hash(sorted(hashes)),
            "scans": len(scans), "slices": len({scan.slice for scan in scans.all}), "draws": scans.draws,
            "snapshot": scans.meta.snapshot, "snapshot_hash": scans.meta.snapshot_hash, "data": facts.source,
            "unit": one_line(facts.intensity.unit), "seed": options.seed}


# ---- measuring ----


def images_of(found: ScanImages, rivals: Rivals, scans: DrawnScans, index: int) -> dict[str, np.ndarray]:
    """The images [*S] of a scan by method."""
    images = {LOW: found.low, FILTERED: post_filter(found.low, rivals.width.best, scans.spacing)}
    if rivals.again is not None:
        images[EARLY] = rivals.again.image(index, int(rivals.iteration.best))
    if found.high is not None:
        images[HIGH] = found.high
    return {**images, DRAW: found.draws[0], MEAN: found.draws.mean(0)}


def pictures_of(found: ScanImages, rivals: Rivals, scans: DrawnScans, index: int) -> dict[str, np.ndarray]:
    """The same, with phantom and standard deviation of the draws where there are some."""
    images = images_of(found, rivals, scans, index)
    if found.phantom is not None:
        images["phantom"] = found.phantom
    return images | ({"std": found.draws.std(0, ddof=1)} if scans.draws > 1 else {})


def measure(scans: DrawnScans, rivals: Rivals, context: EnhancementContext) -> ScanScores:
    """All that is measured, one scan in memory at a time."""
    N, M, L, K = len(scans), len(context.methods), len(context.levels), scans.draws
    regions = () if context.uncalibrated else ("inside", "outside") if "phantom" in scans.references else ("all",)
    found = ScanScores(
        {name: np.full((N, M, len(ERRORS)), np.nan) for name in scans.references}, np.full((N, M), np.nan),
        *np.zeros((3, N, L)), np.zeros((N, M, L)), {name: np.zeros((N, K + 1)) for name in regions},
        {name: np.full(N, np.nan) for name in regions}, np.zeros((BINS, 3)))
    rng = np.random.default_rng(context.seed)
    top = float(max(abs(context.layout.hi), 1e-12))
    for index in progress(range(N), desc="measure", unit="scan"):
        scan = scans.read(index)
        images = images_of(scan, rivals, scans, index)
        for place, method in enumerate(context.methods):
            measure_image(found, index, place, images[method], method, scan)
        if scan.phantom is not None:
            measure_levels(found, index, images, scan.phantom, context)
        if not context.uncalibrated:
            measure_draws(found, index, scan, rng, top)
    return found


def measure_image(found: ScanScores, index: int, place: int, image: np.ndarray, method: str, scan: ScanImages
                  ) -> None:
    """Errors of an image against all that it is held against, but against itself."""
    for name, errors in found.errors.items():
        if name != method:
            errors[index, place] = errors_of(image, scan.reference(name))


def errors_of(image: np.ndarray, truth: np.ndarray) -> list[float]:
    """In the order of ERRORS; PSNR and SSIM by the largest activity of the truth, SSIM of stacks slice by slice."""
    top = float(truth.max())
    if top <= 0:
        return [np.nan] * len(ERRORS)
    slices = zip(image.reshape(-1, *image.shape[-2:]), truth.reshape(-1, *truth.shape[-2:]), strict=True)
    alike = np.mean([ssim(a, b, top, WINDOW) for a, b in slices]) if min(image.shape[-2:]) >= WINDOW else np.nan
    return [relative_l2(image, truth), rmse(image, truth), psnr(image, truth, top), alike, nmae(image, truth)]


def measure_levels(found: ScanScores, index: int, images: dict[str, np.ndarray], phantom: np.ndarray,
                   context: EnhancementContext) -> None:
    """Noise in uniform regions, and what is recovered of every level."""
    regions = uniform_regions(phantom)
    found.uniform[index] = recovered(regions > 0, phantom, context.levels).image
    for place, method in enumerate(context.methods):
        found.noise[index, place] = noise(images[method], regions)
        sums = recovered(images[method], phantom, context.levels)
        found.count[index], found.truth[index], found.image[index, place] = sums


def measure_draws(found: ScanScores, index: int, scan: ScanImages, rng: np.random.Generator, top: float) -> None:
    """How the draws are spread about the high dose; of the spread inside of the head, where that is known."""
    rank, score = ranks(scan.draws, scan.high, rng), crps(scan.draws, scan.high)
    inside = np.ones(scan.high.shape, bool) if scan.phantom is None else scan.phantom > 0
    masks = {"all": inside, "inside": inside, "outside": ~inside}
    for name, histogram in found.histograms.items():
        histogram[index] = rank_histogram(rank[masks[name]], len(scan.draws))
        found.crps[name][index] = score[masks[name]].mean() if masks[name].any() else np.nan
    variance = scan.draws.var(0, ddof=1)[inside]
    error = (scan.draws.mean(0) - scan.high)[inside] ** 2
    decades = np.log10(np.maximum(np.sqrt(variance) / top, 1e-30))
    place = np.clip(((decades + 7) * BINS / 8).astype(int), 0, BINS - 1)
    for column, weights in enumerate((None, variance, error)):
        found.spread[:, column] += np.bincount(place, weights, BINS)
