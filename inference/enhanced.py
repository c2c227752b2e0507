"""What a network makes of scans, beside the samples: mean and spread of the draws of each, in the scan's own geometry.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import nibabel
import numpy as np

from edm3d.formats.asked_scans import stem
from edm3d.formats.asked_words import captions
from edm3d.formats.manifest import Manifest
from edm3d.formats.nifti import spacing_of
from edm3d.formats.samples import SamplesFile
from edm3d.inference.scans import OwnScans, Scans
from edm3d.reporting.slices import Picture
from edm3d.utils.checks import listed
from edm3d.utils.files import arrays_hash
from edm3d.utils.names import file_names

NPZ = "enhanced.npz"
SHOWN = {"cond_images": "Low dose", "images": "Drawn", "mean": "Mean of {} draws", "high_images": "High dose",
         "phantom": "Phantom"}
Group = tuple[int, list[int]]  # number of a slice or seed, and rows of the samples that were drawn of its scan


def write_enhanced(outdir: Path, samples: SamplesFile, scans: Scans | None, record: Manifest) -> Iterator[str]:
    """Write mean and standard deviation of the draws of every scan; lines to say.

    Of a NIfTI volume of the user's own that was drawn whole in its geometry and header: SCAN_enhanced.nii.gz and, of
    several draws, SCAN_std.nii.gz. Of others, and of parts, enhanced.npz with `mean`, `std`, `slice_ids`, `draws` and
    `unit`, and `seeds` of simulated scans. Nothing of simulated scans of which there is one draw each, and of a sweep.
    """
    if scans is None or "images" not in samples.names:
        return
    yield from scale_lines(samples)
    if samples.meta.sweep:
        return
    groups = groups_of(samples, scans)
    several = any(len(rows) > 1 for _, rows in groups)
    if not (several or scans.per_scan):
        return
    yield from record.begin()
    record.load()
    writer = Writer(outdir, record)
    what = f"{'mean and standard deviation of the draws' if several else 'one draw'} of {len(groups)} scans"
    lacking = [name for name, number in zip(scans.names, scans.numbers.tolist(), strict=True)
               if number not in dict(groups)] if scans.per_scan else []
    if isinstance(scans, OwnScans) and scans.file.nifti is not None and not lacking:
        name = file_names([stem(scans.file.nifti)], 200)[0]
        maps = {"enhanced": 0, "std": 1} if several else {"enhanced": 0}
        for ending, which in maps.items():
            volume = volume_of(samples, scans, groups, which)
            yield from writer.write(f"{name}_{ending}.nii.gz", {"volume": volume} | geometry_of(scans.file.nifti),
                                    partial(write_like, scans.file.nifti, volume))
    else:
        if lacking:
            yield f"Note      {len(lacking)} slices are not drawn ({listed(lacking[:3])}), so that there is no volume"
        arrays = arrays_of(samples, scans, groups, several)
        yield from writer.write(NPZ, arrays, lambda path: np.savez(path, **arrays))
    record.settle()
    if writer.names:
        yield f"Enhanced  {', '.join(str(outdir / name) for name in writer.names)}: {what}"


class Writer:
    """Writes files of a record that are not there yet; names: of all of them."""

    def __init__(self, outdir: Path, record: Manifest):
        self.outdir, self.record, self.names = outdir, record, []

    def write(self, name: str, arrays: Mapping[str, np.ndarray], write: Callable[[Path], object]) -> Iterator[str]:
        """A file of arrays; a note where another's file lies in its place."""
        if name not in self.record.files and (self.outdir / name).exists():
            yield f"Note      {self.outdir / name} was not written by generate, and is left as it is"
            return
        self.names.append(name)
        if not self.record.is_finished(name, of := arrays_hash(arrays)):
            with self.record.writing(name, of=of) as temporary:
                write(temporary)


# ---- draws of a scan ----


def groups_of(samples: SamplesFile, scans: Scans) -> list[Group]:
    """Rows by scan: those of a slice of the user's own, of a seed of simulated ones; each by itself in a sweep."""
    if samples.meta.sweep:
        return [(number, [row]) for row, number in enumerate(samples.seeds.tolist())]
    slices, found = samples.array("slice_ids").tolist(), {}
    for row, number in enumerate(samples.seeds.tolist()):
        found.setdefault(slices[row] if scans.per_scan else samples.meta.noise_of(number), []).append(row)
    return sorted(found.items())


def moments(samples: SamplesFile, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (of the law that they are draws of, n - 1) of images [1,*S], 0 of a single one."""
    images = np.stack([samples.row("images", row) for row in rows]).astype(np.float64)
    std = images.std(axis=0, ddof=1) if len(rows) > 1 else np.zeros_like(images[0])
    return images.mean(axis=0).astype(np.float32), std.astype(np.float32)


def volume_of(samples: SamplesFile, scans: OwnScans, groups: Sequence[Group], which: int) -> np.ndarray:
    """Means (0) or standard deviations (1) of all slices as the volume [H,W,D] that they came from."""
    file = scans.file
    stack = np.zeros(file.images.shape, np.float32)
    for number, rows in groups:
        stack[number] = scans.grid.back(moments(samples, rows)[which], file.images.shape[2:])
    slices = stack[:, 0] if len(scans.size) == 2 else stack[:, 0].reshape(-1, *stack.shape[3:])
    return np.moveaxis(slices[:file.depth], 0, 2)


def geometry_of(source: Path) -> dict[str, np.ndarray]:
    """What a NIfTI passes on besides its values."""
    image = nibabel.load(source)
    return {"affine": image.affine, "header": np.frombuffer(image.header.binaryblock, np.uint8)}


def write_like(source: Path, volume: np.ndarray, path: Path) -> None:
    """Write a volume with the header of a NIfTI: geometry and units as they are, values float32 as they stand."""
    image = nibabel.load(source)
    header = image.header.copy()
    header.set_data_dtype(np.float32)
    header["cal_min"] = header["cal_max"] = 0
    nibabel.save(type(image)(volume.reshape(image.shape), image.affine, header), path)


def arrays_of(samples: SamplesFile, scans: Scans, groups: Sequence[Group], several: bool) -> dict[str, np.ndarray]:
    """What enhanced.npz holds: a row for each scan, in its own size."""
    pairs = [moments(samples, rows) for _, rows in groups]
    mean, std = (np.stack(part) for part in zip(*pairs, strict=True))
    if isinstance(scans, OwnScans):
        mean, std = (scans.grid.back(part, scans.file.images.shape[2:]) for part in (mean, std))
    firsts, slices = [rows[0] for _, rows in groups], samples.array("slice_ids")
    found = {"mean": mean, "slice_ids": slices[firsts], "draws": np.array([len(rows) for _, rows in groups]),
             "unit": np.array(samples.meta.facts.intensity.unit)}
    found |= {"std": std} if several else {}
    found |= {} if scans.per_scan else {"seeds": np.array([seed for seed, _ in groups])}
    affine = scans.file.affine if isinstance(scans, OwnScans) else None
    return found | ({} if affine is None else {"affine": affine})


def scale_lines(samples: SamplesFile) -> Iterator[str]:
    """The scales of scans, and which share of what was drawn lies beyond them, and below 0; nothing is clipped."""
    scales, unit = samples.array("scales"), samples.meta.facts.intensity.unit
    beyond = below = total = 0
    for row, scale in enumerate(scales):
        image = samples.row("images", row)
        beyond, below, total = beyond + int((image > scale).sum()), below + int((image < 0).sum()), total + image.size
    yield (f"Scale     {scales.min():.4g} to {scales.max():.4g} {unit}, of each low dose alone; {beyond / total:.2%} "
           f"of the voxels drawn lie above it, {below / total:.2%} below 0, and none are clipped")


# ---- the picture ----


def scan_blocks(rows: Mapping[str, Sequence[np.ndarray]], draws: int = 1) -> list[tuple[str, list[Picture]]]:
    """Blocks of a montage, low dose above what was drawn, of arrays of images in units of activity."""
    return [(title.format(draws), [(image, None) for image in rows[name]]) for name, title in SHOWN.items()
            if name in rows]


def write_scan_montage(path: Path, samples: SamplesFile, scans: Scans, most: int) -> None:
    """A PNG of the first scans, so many at most: low dose, a draw, the mean of several, high dose and phantom, all on
    one scale.
    """
    from edm3d.reporting.montages import montage, save_png
    groups = groups_of(samples, scans)[:most]
    firsts = [found[0] for _, found in groups]
    rows = {name: [samples.row(name, row) for row in firsts] for name in SHOWN if name in samples.names}
    counts = {len(found) for _, found in groups}
    if max(counts) > 1:
        rows["mean"] = [moments(samples, found)[0] for _, found in groups]
    blocks, facts, affine = scan_blocks(rows, max(counts)), samples.meta.facts, samples.affine_of(firsts[0])
    told = {name: [samples.row(name, row) for row in firsts] if name in samples.names else None
            for name in ("classes", "attributes")}
    dims = len(samples.shape("images")) - 2
    save_png(montage(blocks, spacing_of(affine)[:dims], windows=window_of_scans(rows), affine=affine,
                     channels=facts.channels, captions=captions(samples.meta, samples.seeds[firsts], **told)), path)


def window_of_scans(rows: Mapping[str, Sequence[np.ndarray]]) -> tuple[float, float]:
    """What is black and white in all pictures: 0, and the highest but for a few voxels of the least noisy of them."""
    name = next(name for name in ("phantom", "high_images", "mean", "images") if name in rows)
    values = np.concatenate([np.ravel(image) for image in rows[name]])
    return 0.0, max(float(np.percentile(values, 99.8)), float(np.finfo(np.float32).tiny))
