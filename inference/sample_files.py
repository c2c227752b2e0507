"""A file for each drawn image and label map: NIfTI, and PNG in 2D."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from edm3d.formats.png import COLOURS, write_png
from edm3d.formats.samples import NIFTI, SamplesFile, write_as_nifti
from edm3d.inference.snapshot import Snapshot
from edm3d.utils.commands import command
from edm3d.utils.log import progress

PNG = "png"  # as sampling.format: samples.h5, and PNGs beside it


def check_png(snapshot: Snapshot, decode: bool) -> None:
    """ValueError where a network gives no 2D images that a PNG could hold."""
    dims = len(snapshot.shape) - 1
    if dims != 2:
        instead = ("h5 with sampling.nifti=true, or of a samples file pictures of three planes by "
                   + command("data", "export", "--format", "png")) if dims == 3 else "h5 or npz"
        raise ValueError(f"sampling.format=png: a PNG holds a 2D image, the network draws in {dims}D; wanted {instead}")
    if snapshot.first_stage is not None and not decode:
        raise ValueError("sampling.format=png: sampling.decode=false leaves latents, which are no pictures; wanted "
                         "sampling.decode=true, or sampling.format=h5 or npz")


def write_niftis(folder: Path, samples: SamplesFile, new: set[int]) -> None:
    """NIfTI of every seed, as seedNNNNNN_image.nii.gz and seedNNNNNN_label.nii.gz."""
    for name, i, (path,) in outdated(folder, samples, new, {name: [end] for name, end in NIFTI.items()}, "nifti"):
        write_as_nifti(path, name, samples.row(name, i), samples.meta.facts)


def write_pngs(folder: Path, samples: SamplesFile, new: set[int]) -> None:
    """PNG of every seed: seedNNNNNN.png, lo to hi as 0 to 255, and seedNNNNNN_label.png, the numbers of the classes.

    Several channels are seedNNNNNN_CHANNEL.png each, but for red, green and blue.
    """
    facts, count = samples.meta.facts, samples.shape("images")[1]
    in_colour = facts.channels == COLOURS
    images = [".png"] if in_colour or count == 1 else [f"_{name}.png" for name in facts.channels or range(count)]
    for name, i, paths in outdated(folder, samples, new, {"images": images, "labels": ["_label.png"]}, "png"):
        row = samples.row(name, i)
        planes = [row] if name == "labels" else \
            facts.intensity.to_bytes(np.moveaxis(row, 0, -1)[None] if in_colour else row)
        for path, plane in zip(paths, planes, strict=True):
            write_png(path, plane)


def outdated(folder: Path, samples: SamplesFile, new: set[int], endings: Mapping[str, Sequence[str]], what: str
             ) -> Iterator[tuple[str, int, list[Path]]]:
    """Array, row and files (seedNNNNNN and an ending) of what is new or has a file that is older than the samples."""
    written = samples.path.stat().st_mtime
    for i, seed in enumerate(progress(samples.seeds, desc=what, unit="sample")):
        for name in (name for name in endings if name in samples.names):
            paths = [folder / f"seed{seed:06d}{ending}" for ending in endings[name]]
            if seed in new or not all(path.is_file() and path.stat().st_mtime >= written for path in paths):
                yield name, i, paths
