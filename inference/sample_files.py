"""A file for each drawn image and label map: NIfTI, and PNG in 2D."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from edm3d.formats.manifest import Manifest
from edm3d.formats.png import COLOURS, write_png
from edm3d.formats.samples import NIFTI, SampleMeta, SamplesFile, write_as_nifti
from edm3d.inference.folders import told_of_changes
from edm3d.inference.parts import check_alike
from edm3d.inference.snapshot import Snapshot
from edm3d.utils.commands import command
from edm3d.utils.files import arrays_hash, plain_hash
from edm3d.utils.log import progress
from edm3d.utils.names import file_names

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


def records(outdir: Path, meta: SampleMeta) -> dict[str, Manifest]:
    """The records of what lies beside the samples of an outdir, by the name of its folder."""
    made_of = {"kind": "generate", "snapshot_hash": meta.snapshot_hash, "sampling": meta.sampling}
    return {name: Manifest(outdir, f"{name}.json", made_of, ("snapshot_hash", "sampling"))
            for name in ("nifti", PNG)}


def check_records(outdir: Path, meta: SampleMeta, overwrite: bool) -> None:
    """ValueError for a record that is damaged, which to overwrite goes, or of another network; before any drawing."""
    for record in records(outdir, meta).values():
        try:
            had = record.found()
        except ValueError as e:
            if overwrite:
                record.path.unlink()
                continue
            raise ValueError(f"{e}; delete it, and what lies beside it is written anew") from e
        if had and not overwrite:  # beside a samples file of another format, or one that is gone
            check_alike(f"{record.path} is of samples that were drawn with", had, record.made_of,
                        "choose another sampling.outdir, or draw anew by sampling.overwrite=true")


def clear_others(outdir: Path, meta: SampleMeta) -> list[str]:
    """Delete what was written beside samples of another network or other settings, which are gone; notes."""
    return [note for record in records(outdir, meta).values() if record.path.is_file() for note in record.begin()]


def write_niftis(outdir: Path, samples: SamplesFile) -> list[str]:
    """NIfTI of every seed, as nifti/seedNNNNNN_image.nii.gz and nifti/seedNNNNNN_label.nii.gz; notes."""
    def write(name: str, row: np.ndarray, paths: Sequence[Path], index: int) -> None:
        write_as_nifti(paths[0], name, row, samples.meta.facts, samples.affine_of(index))

    return write_all(outdir, "nifti", samples, {name: [end] for name, end in NIFTI.items()}, write)


def write_pngs(outdir: Path, samples: SamplesFile) -> list[str]:
    """PNG of every seed: png/seedNNNNNN.png, lo to hi as 0 to 255, and png/seedNNNNNN_label.png, the classes' numbers.

    Several channels are seedNNNNNN_CHANNEL.png each, but for red, green and blue. Notes.
    """
    facts, count = samples.meta.facts, samples.shape("images")[1]
    in_colour = facts.channels == COLOURS
    names = file_names([str(name) for name in facts.channels or range(count)])
    images = [".png"] if in_colour or count == 1 else [f"_{name}.png" for name in names]

    def write(name: str, row: np.ndarray, paths: Sequence[Path], index: int) -> None:
        planes = [row] if name == "labels" else \
            facts.intensity.to_bytes(np.moveaxis(row, 0, -1)[None] if in_colour else row)
        for path, plane in zip(paths, planes, strict=True):
            write_png(path, plane)

    return write_all(outdir, PNG, samples, {"images": images, "labels": ["_label.png"]}, write)


def write_all(outdir: Path, folder: str, samples: SamplesFile, endings: Mapping[str, Sequence[str]],
              write: Callable[[str, np.ndarray, Sequence[Path], int], None]) -> list[str]:
    """Files seedNNNNNN and an ending of every row, but for those that are there as they were made of just this row.

    write: an array's name, a row of it, the paths to write it to, and the row's number. Notes.
    """
    record, facts = records(outdir, samples.meta)[folder], plain_hash(samples.meta.facts.plain())
    notes = record.begin()
    record.load()
    for i, seed in enumerate(progress(samples.seeds, desc=folder, unit="sample")):
        for name in (name for name in endings if name in samples.names):
            row, files = samples.row(name, i), [f"{folder}/seed{seed:06d}{ending}" for ending in endings[name]]
            own = {"affines": samples.affine_of(i)} if "affines" in samples.names else {}
            of = plain_hash([arrays_hash({name: row, **own}), facts])
            if all([record.is_finished(file, of) for file in files]):
                continue
            with ExitStack() as stack:
                write(name, row, [stack.enter_context(record.writing(file, str(seed), of)) for file in files], i)
    record.settle()
    return [*notes, *told_of_changes(record.changed)]
