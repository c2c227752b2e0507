"""What there is to segment: the images of a volumes or samples file, or of a folder of NIfTI, npy, npz or PNG files."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edm3d.formats import h5
from edm3d.formats.facts import Facts, volume_facts
from edm3d.formats.folders import walk
from edm3d.formats.intensity import Intensity
from edm3d.formats.pairing import CaseFiles, find_cases
from edm3d.formats.patterns import is_of_label_maps
from edm3d.formats.prepare_load import load
from edm3d.formats.prepare_options import PrepareOptions
from edm3d.formats.samples import SamplesFile
from edm3d.formats.volumes import VolumesFile
from edm3d.inference.predictor import Predictor
from edm3d.inference.snapshot import Snapshot
from edm3d.utils.checks import listed
from edm3d.utils.files import file_hash, plain_hash

FOLDER, VOLUMES, SAMPLES = "folder", "volumes", "samples"


class Scan(NamedTuple):
    """An image [C,*S] float32 as networks see it, its affine [4,4] (None: its file has none), and what share of its
    values leaves the range of training, and of this range its values fill.
    """

    image: np.ndarray
    affine: np.ndarray | None
    outside: float = 0.0
    filled: float = 1.0


class Row(NamedTuple):
    """An image to segment. of: hash of what it alone is made of, '' where a hash of the source stands for all.

    where: affine [4,4] and size [*S] as far as they are known without reading it.
    """

    id: str
    split: str
    read: Callable[[], Scan]
    where: tuple[np.ndarray | None, tuple[int, ...]] | None = None
    of: Callable[[], str] = str


class SegmentSource(NamedTuple):
    """The images to segment, of one kind (folder, volumes, samples), and the file that they stand in, if it is one.

    content_hash: of the file, '' for a folder, whose images have each their own. unit: of the images' values.
    """

    kind: str
    path: Path
    rows: list[Row]
    content_hash: str
    notes: list[str]
    file: VolumesFile | SamplesFile | None = None
    splits: tuple[str, ...] = ()


def open_source(path: Path, predictor: Predictor, split: str | None, image_pattern: str | None) -> SegmentSource:
    """The images of a file or a folder, whatever its kind, as a network takes them; ValueError for what it does not."""
    if path.is_dir():
        if split is not None:
            raise ValueError(f"--split {split}: a folder has no splits that are segmented apart; leave it out")
        return of_folder(path, predictor.snapshot, image_pattern)
    if image_pattern is not None:
        raise ValueError(f"--image-pattern {image_pattern}: for a folder of images; {path} is a file; leave it out")
    form = SAMPLES if path.suffix == ".npz" else h5.read_format(path)
    if form not in (VOLUMES, SAMPLES):
        raise ValueError(f"--source {path}: format is '{form}'; wanted volumes, samples, or a folder of images")
    if form == VOLUMES:
        return of_volumes(VolumesFile(path), predictor, split)
    if split is not None:
        raise ValueError(f"--split {split}: samples have no splits; leave it out")
    return of_samples(SamplesFile(path), predictor)


def of_volumes(file: VolumesFile, predictor: Predictor, split: str | None) -> SegmentSource:
    """The volumes of a split, or of all."""
    splits = (split,) if split is not None else tuple(file.splits)
    file.ids(splits[0])  # ValueError where there is none of that name
    notes = predictor.check(volume_facts(file, splits[0]), file.path)
    shown, intensity = file.meta.numbers("target"), file.meta.intensity

    def read(name: str, index: int) -> Scan:
        item = file.read(name, index)
        return Scan(seen(item.image[shown], intensity), item.affine)

    rows = [Row(id_, name, partial(read, name, i), (affine, file.spatial_shape(name)))
            for name in splits for i, (id_, affine) in enumerate(zip(file.ids(name), file.affines(name)))]
    return SegmentSource(VOLUMES, file.path, rows, file.content_hash, notes, file, splits)


def of_samples(file: SamplesFile, predictor: Predictor) -> SegmentSource:
    """All samples; ValueError for latents that nothing decoded."""
    if "images" not in file.names:
        raise ValueError(f"--source {file.path}: holds latents and no images; decode them first, by dataset_tool.py "
                         "decode")
    facts = file.meta.facts
    notes = predictor.check(facts, file.path)
    if "labels" in file.names:
        notes.append(f"Note: {file.path} holds label maps; in their place those of the network are written")
    size = file.shape("images")[2:]

    def read(index: int) -> Scan:
        return Scan(seen(file.row("images", index), facts.intensity), file.affine_of(index))

    rows = [Row(name, SAMPLES, partial(read, i), (file.affine_of(i), size))
            for i, name in enumerate(file.meta.file_names(file.seeds))]
    return SegmentSource(SAMPLES, file.path, rows, file_hash(file.path), notes, file)


def seen(image: np.ndarray, intensity: Intensity) -> np.ndarray:
    """An image in stored units as networks see it."""
    return intensity.to_network(image).astype(np.float32, copy=False)


# ---- a folder ----


def of_folder(path: Path, snapshot: Snapshot, image_pattern: str | None) -> SegmentSource:
    """Every image below a folder, paired and read as `prepare` does."""
    found = walk(path)
    if image_pattern is None and (names := sorted(
            {name for file in found.files for name in file.relative_to(path).parts[:-1] if is_of_label_maps(name)})):
        raise ValueError(f"--source {path}: by their names its folders {listed(names)} hold label maps; wanted a "
                         "folder of images alone, or --image-pattern, which says what images are called")
    pairing = find_cases(path, image_pattern=image_pattern, channels=snapshot.facts.channels)
    rows = [Row(case.id, FOLDER, partial(read_case, case, snapshot), of=partial(content_of, case))
            for case in pairing.cases]
    return SegmentSource(FOLDER, path, rows, "", [*pairing.notes, scaling_line(snapshot)])


def content_of(case: CaseFiles) -> str:
    """Hash of the files of an image."""
    return plain_hash([file_hash(file) for file in case.images])


def scaling_line(snapshot: Snapshot) -> str:
    """How values of files become what a network sees."""
    had = snapshot.facts.intensity
    clipped = ", clipped" if had.clip else ""
    if had.percentiles:
        lo, hi = had.percentiles
        return f"Intensities percentiles {lo:g} to {hi:g} of each image as -1 to 1{clipped}, as in training"
    return f"Intensities {had.lo:g} to {had.hi:g} {had.unit} as -1 to 1{clipped}, as in training"


def read_case(case: CaseFiles, snapshot: Snapshot) -> Scan:
    """An image of a folder; ValueError naming the file that cannot be used."""
    channels, dims = len(snapshot.facts.channels) or snapshot.shape[0], len(snapshot.shape) - 1
    try:
        loaded = load(case._replace(label=None, map=None), dims, PrepareOptions())
    except ValueError as error:
        said, is_of_other, _ = str(error).partition("; give --spatial-dims")
        raise ValueError(f"{said}; {snapshot.path} was trained on images of {dims} dimensions" if is_of_other else said
                         ) from error
    if len(loaded.image) != channels:
        raise ValueError(f"{case.images[0]}: {len(loaded.image)} channels, {snapshot.path} was trained on {channels}: "
                         f"{listed(snapshot.facts.channels)}")
    image = loaded.image[..., 0] if dims == 2 else loaded.image
    return scaled(case.images[0], image, loaded.affine if loaded.has_geometry else None, snapshot.facts)


def scaled(path: Path, image: np.ndarray, affine: np.ndarray | None, facts: Facts) -> Scan:
    """An image [C,*S] as networks see it, by the intensity contract of training."""
    had, axes = facts.intensity, tuple(range(1, image.ndim))
    lo, hi = np.float64(had.lo), np.float64(had.hi)
    if had.percentiles:
        lo, hi = (np.float32(p).reshape(-1, *[1] * len(axes)) for p in np.percentile(image, had.percentiles, axis=axes))
        if (lo >= hi).any():
            raise ValueError(f"{path}: its percentiles {had.percentiles[0]:g} and {had.percentiles[1]:g}, by which the "
                             "network was trained to see images, coincide")
    share = (image - lo) / (hi - lo)
    outside = 0.0 if had.percentiles else float(np.mean((share < -1e-4) | (share > 1 + 1e-4)))
    filled = 1.0 if had.percentiles else float(share.max() - share.min())
    image = (share.clip(0, 1) if had.clip else share) * 2 - 1
    if not np.isfinite(image := image.astype(np.float32)).all():
        raise ValueError(f"{path}: its values are too far from {facts.intensity} for single precision")
    return Scan(image, affine, outside, filled)
