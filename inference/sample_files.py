"""Files beside samples: of each its image, maps and condition images as NIfTI, and PNG in 2D; what was asked, as CSV.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edm3d.formats import asked_words
from edm3d.formats.manifest import Manifest
from edm3d.formats.png import COLOURS, write_png
from edm3d.formats.sample_meta import MOST_BYTES, SampleMeta
from edm3d.formats.sample_settings import compared
from edm3d.formats.samples import NIFTI, SamplesFile, write_as_nifti
from edm3d.inference.folders import told_of_changes, told_of_names
from edm3d.inference.parts import check_alike
from edm3d.inference.snapshot import Snapshot
from edm3d.reporting.overlays import in_rgb, with_classes
from edm3d.utils.commands import command
from edm3d.utils.files import arrays_hash, first_line, plain_hash
from edm3d.utils.log import progress
from edm3d.utils.names import file_names

PNG = "png"  # as sampling.format: samples.h5, and PNGs beside it
ASKED = "asked.csv"
TRAJECTORIES = "trajectories"
MOST_WAYS = 4  # samples whose way from noise a report shows
# ends of names that no channel has
KINDS = ("map", "label", "visible", "overlay", "contour", "cond", "high", "phantom")
TINT = 0.2  # opacity of classes in an overlay
Rows = Mapping[str, np.ndarray]  # of a sample, by the name of the array


class Piece(NamedTuple):
    """A kind of file of each sample: how its name ends, of which arrays it is made, and what writes it of their rows.
    """

    ending: str
    of: tuple[str, ...]
    write: Callable[[Path, Rows], None]


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
    made_of = {"kind": "generate", **meta.made_of}
    return {name: Manifest(outdir, f"{name}.json", made_of, ("snapshot_hash", "sampling"))
            for name in ("nifti", PNG, "asked", "enhanced", TRAJECTORIES)}


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
            check_alike(f"{record.path} is of samples that were drawn with",
                        {**had, "sampling": compared(had["sampling"], meta.facts.class_names)}, record.made_of,
                        "choose another sampling.outdir, or draw anew by sampling.overwrite=true")


def clear_others(outdir: Path, meta: SampleMeta) -> list[str]:
    """Delete what was written beside samples of another network or other settings, which are gone; notes."""
    return [note for record in records(outdir, meta).values() if record.path.is_file() for note in record.begin()]


def ways_beside(samples: SamplesFile) -> tuple[dict[str, bytes], str]:
    """Pictures of the way from noise to image that lie beside samples, by name, of the first that have some, and why
    there are none, else ''.
    """
    record, names = records(samples.path.parent, samples.meta)[TRAJECTORIES], samples.meta.file_names(samples.seeds)
    try:
        had = record.found()
    except ValueError as e:
        return {}, first_line(e)
    if had is None:
        return {}, "none lie beside the samples (generate.py sampling.trajectory_montage=3)"
    if {**had, "sampling": compared(had["sampling"], samples.meta.facts.class_names)} != record.made_of:
        return {}, f"{record.path} is of other samples"
    record.load()
    pictures = {name: sorted(file for file, entry in record.files.items() if is_way(file, name)
                             and record.is_finished(file, entry.of)) for name in names[:MOST_WAYS]}
    found = [Path(file) for files in pictures.values() for file in files]
    return {file.stem: (samples.path.parent / file).read_bytes() for file in found}, \
        "" if found else f"{record.path} names none of the first {MOST_WAYS} samples, or they were changed"


def is_way(file: str, name: str) -> bool:
    """Whether a file is a picture of the way of a sample of that name."""
    number = file.removeprefix(f"{TRAJECTORIES}/{name}_").removesuffix(".png")
    return file == f"{TRAJECTORIES}/{name}_{number}.png" and number.isdecimal()


# ---- what was asked for ----


def write_asked(outdir: Path, samples: SamplesFile) -> list[str]:
    """The table of what was asked for, where anything was, as asked.csv; notes."""
    text = asked_words.table(samples)
    if not text:
        return []
    record, of = records(outdir, samples.meta)["asked"], plain_hash(text)
    notes = record.begin()
    record.load()
    if ASKED not in record.files and (outdir / ASKED).exists():
        return [*notes, f"Note: {outdir / ASKED} was not written by generate, and is left as it is"]
    if not record.is_finished(ASKED, of):
        with record.writing(ASKED, of=of) as temporary:
            temporary.write_text(text, encoding="utf-8")
    record.settle()
    return [*notes, *told_of_changes(record.changed), *told_of_names(samples.meta.ids, samples.meta.row_names)]


# ---- a file for each sample ----


def write_niftis(outdir: Path, samples: SamplesFile) -> list[str]:
    """NIfTI of every seed in nifti/: seedNNNNNN_image.nii.gz, and _label, _map and _cond where there are such; notes.

    Names begin with the ids that were asked for, where there are some.
    """
    def write(name: str, path: Path, rows: Rows) -> None:
        write_as_nifti(path, name, rows[name], samples.meta.facts.intensity.unit, rows.get("affines", samples.affine))

    own = ("affines",) if "affines" in samples.names else ()
    return write_all(outdir, "nifti", samples, [Piece(ending, (name, *own), partial(write, name))
                                                for name, ending in NIFTI.items() if name in samples.names])


def write_pngs(outdir: Path, samples: SamplesFile) -> list[str]:
    """PNG of every seed in png/: seedNNNNNN.png, lo to hi as 0 to 255; notes.

    Beside it, where there are such, _map.png and _label.png, the numbers of classes, _cond.png, of simulated scans
    _high.png and _phantom.png, and of the map that was asked for, else of the label map, _visible.png, from 0 to 255,
    and the image (its first channel) with the classes tinted, _overlay.png, and outlined, _contour.png. Several
    channels are seedNNNNNN_CHANNEL.png each, but for red, green and blue. Names begin with the ids that were asked for,
    where there are some.
    """
    images, conditions = channel_endings(samples)
    pieces = channel_pieces(samples, "images", images) + channel_pieces(samples, "cond_images", conditions)
    for name, kind in (("high_images", "high"), ("phantom", "phantom")):
        pieces += channel_pieces(samples, name, [f"_{kind}.png"]) if name in samples.names else []
    pieces += [Piece(f"_{kind}.png", (name,), lambda path, rows, name=name: write_png(path, rows[name]))
               for name, kind in (("maps", "map"), ("labels", "label")) if name in samples.names]
    over = next((name for name in ("maps", "labels") if name in samples.names), None)
    return write_all(outdir, PNG, samples, pieces + (map_pieces(samples, over) if over else []))


def channel_endings(samples: SamplesFile) -> tuple[list[str], list[str]]:
    """How the names of the PNGs of images, and of condition images, end: one for each channel, or for all colours."""
    facts, long = samples.meta.facts, {"most": MOST_BYTES} if samples.meta.ids else {}
    found = {array: [""] if tuple(names or ()) == COLOURS or count == 1 else [str(c) for c in names or range(count)]
             for array, names in (("images", facts.channels), ("cond_images", facts.condition_channels))
             if (count := (samples.shape(array) or (0, 0))[1])}
    images = [f"{name}/" if name.casefold() in KINDS else name for name in found["images"]]  # no name of a file
    conditions = ["_".join(filter(None, ("cond", name))) for name in found.get("cond_images", ())]
    ends = [f"_{name}.png" for name in file_names([*images, *conditions], **long)]
    return (ends[:len(images)] if images != [""] else [".png"]), ends[len(images):]


def channel_pieces(samples: SamplesFile, array: str, endings: Sequence[str]) -> list[Piece]:
    """Pictures of an array of images: a file for each channel, or one of all three colours."""
    def write(number: int, path: Path, rows: Rows) -> None:
        row = rows[array]
        in_colour = len(endings) == 1 < len(row)
        write_png(path, to_bytes(samples, np.moveaxis(row, 0, -1) if in_colour else row[number]))

    return [Piece(ending, (array,), partial(write, i)) for i, ending in enumerate(endings)]


def map_pieces(samples: SamplesFile, name: str) -> list[Piece]:
    """Pictures of maps ("maps", "labels"): made visible, and over the images."""
    facts = samples.meta.facts
    count = len(facts.semantic_classes if name == "maps" else facts.label_classes)

    def visible(path: Path, rows: Rows) -> None:
        highest = max((count or int(rows[name].max()) + 1) - 1, 1)
        write_png(path, np.rint(rows[name] * (255 / highest)).astype(np.uint8))

    def over(fill: float, outline: float, path: Path, rows: Rows) -> None:
        image = rows["images"]
        in_colour = facts.channels == COLOURS
        rgb = in_rgb(to_bytes(samples, np.moveaxis(image, 0, -1) if in_colour else image[0])) / 255
        write_png(path, np.rint(with_classes(rgb, rows[name], fill, outline) * 255).astype(np.uint8))

    return [Piece("_visible.png", (name,), visible),
            Piece("_overlay.png", ("images", name), partial(over, TINT, TINT)),
            Piece("_contour.png", ("images", name), partial(over, 0, 1))]


def to_bytes(samples: SamplesFile, values: np.ndarray) -> np.ndarray:
    """Image values as pictures have them, uint8."""
    return samples.meta.facts.intensity.to_bytes(values)


def write_all(outdir: Path, folder: str, samples: SamplesFile, pieces: Sequence[Piece]) -> list[str]:
    """Files of every row, but for those that are there as they were made of just this row. Notes."""
    record, facts = records(outdir, samples.meta)[folder], plain_hash(samples.meta.facts.plain())
    notes = record.begin()
    record.load()
    needed, stems = sorted({name for piece in pieces for name in piece.of}), samples.meta.file_names(samples.seeds)
    for i, seed in enumerate(progress(samples.seeds, desc=folder, unit="sample")):
        rows = {name: samples.row(name, i) for name in needed}
        hashes = {name: arrays_hash({name: row}) for name, row in rows.items()}
        for piece in pieces:
            file, of = f"{folder}/{stems[i]}{piece.ending}", plain_hash([*(hashes[name] for name in piece.of), facts])
            if not record.is_finished(file, of):
                with record.writing(file, str(seed), of) as temporary:
                    piece.write(temporary, rows)
    record.settle()
    return [*notes, *told_of_changes(record.changed)]
