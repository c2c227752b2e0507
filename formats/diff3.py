"""Files of DIFF-3, read as they are: latent.h5 (posterior mean and std of a cohort) and _samplesV.h5 (drawn latents).

latent.h5: SUBSET/mean, std [N,C,*s] float32, min and max [N] of mean -/+ 3 std. _samplesV.h5: samples [N,C,*s] in
[0, 1], of which min + samples * (max - min) are latents, min and max [1], model_id [1]. Neither holds the first stage,
nor hashes, names or geometry.
"""

from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from edm3d.formats import h5
from edm3d.formats.facts import Facts, LatentFacts
from edm3d.formats.latents import EncodedSplit, LatentsFile, Moments, Statistics, check_latents
from edm3d.formats.volumes import in_order
from edm3d.utils.checks import check_memory, listed
from edm3d.utils.files import plain_hash

COLUMNS = ("mean", "std", "min", "max")


class Diff3Samples(NamedTuple):
    """Latents [N,C,*s] float32 as the first stage gives them, and the number of the model that drew them."""

    latents: np.ndarray
    model_id: int


def is_latents(path: str | Path) -> bool:
    """Whether a file is a latent.h5 of DIFF-3; ValueError when it is no H5 file."""
    h5.check_is_h5(Path(path), "latents")
    with h5.open_h5(path) as file:
        return h5.format_of(file) == "none" and any(
            isinstance(group, h5py.Group) and {"mean", "std"} <= set(group) for group in file.values())


def is_samples(path: str | Path) -> bool:
    """Whether a file is a _samplesV.h5 of DIFF-3; ValueError when it is no H5 file."""
    with h5.open_h5(path) as file:
        return h5.format_of(file) == "none" and isinstance(file.get("samples"), h5py.Dataset)


def open_latents(path: str | Path) -> "LatentsFile | Diff3File":
    """A latents file of ours or of DIFF-3."""
    return Diff3File(path) if is_latents(path) else LatentsFile(path)


def read_samples(path: str | Path) -> Diff3Samples:
    """The latents of a _samplesV.h5; ValueError when they are not those of one run."""
    with h5.open_h5(path) as file, h5.damage_named(path):
        samples = np.asarray(_numbers(file, "samples")[()], np.float32)
        found = {name: np.ravel(_numbers(file, name)[()]) for name in ("min", "max", "model_id") if name != "model_id"
                 or name in file}
    for name, values in found.items():
        if len(values) != 1:
            raise ValueError(f"{path}: {name} has {len(values)} values, wanted 1: a second run was appended to the "
                             "first, and its samples cannot be told from those; draw them again into a new file")
    lo, hi = float(found["min"][0]), float(found["max"][0])
    with np.errstate(all="ignore"):
        latents = samples * np.float32(hi - lo) + np.float32(lo)
    if not 3 <= samples.ndim <= 5 or 0 in samples.shape or not np.isfinite(latents).all() or not lo < hi:
        raise ValueError(f"{path}: samples {samples.shape} with min {lo:g} and max {hi:g}, wanted finite ones [N,C,*s] "
                         "and min less than max")
    number = found.get("model_id", np.array([-1]))[0]
    if not np.isfinite(number):
        raise ValueError(f"{path}: model_id is {number}, wanted a whole number")
    return Diff3Samples(latents, int(number))


class Diff3File:
    """A latent.h5 of DIFF-3, as LatentsFile has it; its statistics are of `train`, or the first subset by name."""

    first_stage_hash, round_trip = None, None

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with h5.open_h5(path) as file, h5.damage_named(path):
            self.splits = in_order(name for name in file if isinstance(file[name], h5py.Group))
            if not self.splits:
                raise ValueError(f"{path}: holds no subset such as train, with mean and std")
            hashes = {}
            for name in self.splits:
                _check_subset(file[name])
                hashes[name] = [h5.dataset_hash(file[name][column]) for column in COLUMNS if column in file[name]]
            statistics = _statistics(file["train" if "train" in file else min(self.splits)])
        self.content_hash = plain_hash(hashes)
        known = LatentFacts(str(path), self.content_hash, *statistics, scaling="minmax", posterior="gaussian")
        self.facts = Facts(str(path), self.content_hash, latents=known)

    def read(self, split: str) -> EncodedSplit:
        """All latents of a subset; ValueError when there is none of that name."""
        if split not in self.splits:
            raise ValueError(f"{self.path}: no split {split!r}, it has {listed(self.splits)}")
        with h5.open_h5(self.path) as file, h5.damage_named(self.path):
            mean, std = (np.asarray(_numbers(file[split], name)[()], np.float32) for name in ("mean", "std"))
        names = [f"{split}-{i:06d}" for i in range(len(mean))]
        check_latents(mean, std, names, f"{self.path}: /{split}")
        return EncodedSplit(mean, std, names, names, np.tile(np.eye(4), (len(mean), 1, 1)))

    def first_stage(self) -> None:
        """None: the file does not hold it."""
        return


def _numbers(group: h5py.Group, name: str) -> h5py.Dataset:
    """A data set of numbers that there is memory for; ValueError for another."""
    dataset = h5.need(group, name)
    if dataset.dtype.kind not in "fiu":
        raise ValueError(f"{group.file.filename}: {dataset.name} is {dataset.dtype}, wanted numbers")
    check_memory(dataset.name, dataset.nbytes)
    return dataset


def _check_subset(group: h5py.Group) -> None:
    """ValueError unless mean and std are alike in shape, and min and max, where they are, have a value for each row."""
    path, shape = group.file.filename, _numbers(group, "mean").shape
    if not 3 <= len(shape) <= 5 or 0 in shape or _numbers(group, "std").shape != shape:
        raise ValueError(f"{path}: {group.name}/mean is {shape}, std {_numbers(group, 'std').shape}; wanted items "
                         "[N,C,*s] both")
    for name in ("min", "max"):
        if name in group and _numbers(group, name).shape != shape[:1]:
            raise ValueError(f"{path}: {group.name}/{name} has {group[name].size} values for {shape[0]} items: a "
                             "second export was appended in part; export the latents again into a new file")


def _statistics(group: h5py.Group) -> Statistics:
    """Statistics of a subset; ValueError for what is not finite, and for rows that are those of an export twice."""
    moments, rows = Moments(), [sha256(row.tobytes()).digest() for row in group["mean"]]
    period = rows.index(rows[0], 1) if rows[0] in rows[1:] else 0
    if period and len(rows) % period == 0 and rows[period:] == rows[:-period]:
        raise ValueError(f"{group.file.filename}: rows of {group.name[1:]} from {period} on are those before them once "
                         "more: a second export was appended; export the latents again into a new file")
    for i in range(len(rows)):
        with np.errstate(over="ignore"):
            mean, std = np.asarray(group["mean"][i], np.float32), np.asarray(group["std"][i], np.float32)
        if not (np.isfinite(mean).all() and np.isfinite(std).all()) or std.min() < 0:
            raise ValueError(f"{group.file.filename}: item {i} of {group.name[1:]} is not finite, or its std negative; "
                             "export the latents again")
        moments.add(mean, std)
    return moments.statistics()
