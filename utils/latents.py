"""latents.h5: posterior means and standard deviations of a cohort, with the first stage that made them.

Layout, per split: mean and std [N,C,*s] float32 (contiguous), min and max [N] (mean -/+ 3 std over the item), ids,
groups, affines, and classes and attributes where there are any. Root: posterior, channel_mean, channel_std (of draws
from the training split), data (what is known of the volumes) and /first_stage (its config as JSON, its weights, its
hash).
"""

from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from utils import h5

POSTERIORS = ("gaussian",)
PARTS = ("affines", "classes", "attributes")


class EncodedSplit(NamedTuple):
    """The latents of one split: mean and std [N,C,*s] float32, and what the volumes have besides images and labels."""

    mean: np.ndarray
    std: np.ndarray
    ids: list[str]
    groups: list[str]
    affines: np.ndarray
    classes: np.ndarray | None = None
    attributes: np.ndarray | None = None


class FirstStageRecord(NamedTuple):
    """A first stage as files carry it: its network's config, its weights, and their hash."""

    network: dict
    weights: dict[str, np.ndarray]
    hash: str


def channel_figures(split: EncodedSplit) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of mean + std * eps over a split (eps unit normal)."""
    axes = (0, *range(2, split.mean.ndim))
    mean = split.mean.mean(axes, dtype=np.float64)
    variance = split.mean.var(axes, dtype=np.float64) + np.square(split.std, dtype=np.float64).mean(axes)
    return mean.tolist(), np.sqrt(variance).tolist()


def write_latents(path: Path, splits: dict[str, EncodedSplit], first_stage: FirstStageRecord, data: dict,
                  provenance: dict) -> None:
    """Write a latents file; the channel figures are those of split `train` (of the first split where there is none)."""
    channel_mean, channel_std = channel_figures(splits.get("train") or next(iter(splits.values())))
    needed = sum(s.mean.nbytes + s.std.nbytes for s in splits.values())
    needed += sum(w.nbytes for w in first_stage.weights.values())
    with h5.atomic_h5(path, needed_bytes=needed + 2 ** 20) as file:
        h5.set_format(file, "latents", provenance)
        for name, value in (("posterior", "gaussian"), ("channel_mean", channel_mean), ("channel_std", channel_std),
                            ("data", data)):
            h5.put_json(file, name, value)
        stage = file.create_group("first_stage")
        h5.put_json(stage, "network", first_stage.network)
        h5.put_text(stage, "hash", first_stage.hash)
        for name, weight in first_stage.weights.items():
            h5.write_array(stage, name, weight, contiguous=True)
        for name, split in splits.items():
            group = file.create_group(name)
            axes = tuple(range(1, split.mean.ndim))
            h5.write_array(group, "mean", split.mean, contiguous=True)
            h5.write_array(group, "std", split.std, contiguous=True)
            h5.write_array(group, "min", (split.mean - 3 * split.std).min(axes))
            h5.write_array(group, "max", (split.mean + 3 * split.std).max(axes))
            h5.write_strings(group, "ids", split.ids)
            h5.write_strings(group, "groups", split.groups)
            for part in PARTS:
                if getattr(split, part) is not None:
                    h5.write_array(group, part, getattr(split, part))


class LatentsFile:
    """A latents file for reading; the arrays of a split are read into memory when asked for."""

    def __init__(self, path: Path):
        self.path = Path(path)
        with h5.open_h5(path, "latents") as file, h5.damage_named(path):
            self.channel_mean: list[float] = h5.get_json(file, "channel_mean")
            self.channel_std: list[float] = h5.get_json(file, "channel_std")
            self.posterior: str = h5.get_json(file, "posterior")
            self.data: dict = h5.get_json(file, "data")
            self.content_hash = h5.get_text(file, "content_hash")
            self.first_stage_hash = h5.get_text(_group(file, "first_stage"), "hash")
            self.splits = [name for name in file if name != "first_stage"]
            for split in self.splits:
                _check_split(_group(file, split), len(self.channel_mean))
        if self.posterior not in POSTERIORS:
            raise ValueError(f"{path}: posterior={self.posterior!r}, this program reads {', '.join(POSTERIORS)}")

    def read(self, split: str) -> EncodedSplit:
        """All latents of a split; ValueError when there is none of that name or it is damaged."""
        if split not in self.splits:
            raise ValueError(f"{self.path}: no split {split!r}, it has {', '.join(self.splits)}")
        with h5.open_h5(self.path, "latents") as file:
            group = file[split]
            return EncodedSplit(h5.read(group["mean"]), h5.read(group["std"]), h5.read_strings(group["ids"]),
                                h5.read_strings(group["groups"]),
                                **{part: h5.read(group[part]) for part in PARTS if part in group})

    def first_stage(self) -> FirstStageRecord:
        """The autoencoder that made the latents."""
        with h5.open_h5(self.path, "latents") as file:
            stage = file["first_stage"]
            weights = {name: h5.read(h5.need(stage, name)) for name in stage}
            return FirstStageRecord(h5.get_json(stage, "network"), weights, self.first_stage_hash)


def _group(file: h5py.File, name: str) -> h5py.Group:
    if not isinstance(file.get(name), h5py.Group):
        raise ValueError(f"{file.filename}: /{name} is missing")
    return file[name]


def _check_split(group: h5py.Group, channels: int) -> None:
    """Raise ValueError unless the data sets of a split are there, of the right types and shapes."""
    N, *row = h5.need(group, "mean").shape
    if len(row) < 2 or row[0] != channels:
        raise ValueError(f"{group.file.filename}: {group.name}/mean is {(N, *row)}, wanted [N,{channels},*s]")
    attributes = group["attributes"].shape[1:] if "attributes" in group else ()
    h5.check_columns(group, N, {
        "mean": ("float32", tuple(row)), "std": ("float32", tuple(row)), "ids": ("strings", ()),
        "groups": ("strings", ()), "affines": ("float64", (4, 4)), "classes": ("int64", ()),
        "attributes": ("float32", attributes),
    }, needed=("std", "ids", "groups", "affines"))
