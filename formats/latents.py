"""latents.h5: posterior means and standard deviations of a cohort, with the first stage that made them.

Layout, per split: mean and std [N,C,*s] float32 (contiguous), min and max [N] (mean -/+ 3 std over the item), ids,
groups, affines, and boxes, classes, attributes and further columns where there are any; of the volumes at full size
labels and maps [N,*S] uint8 and cond_images [N,C,*S] float32 in stored units. Root: posterior, scaling (how
diffusion is to scale them), channel_mean, channel_std (of draws from the training split), limits (its lowest min, its
highest max), round_trip (what held-out items lose, see inference/encode.py), data (what is known of the volumes) and
/first_stage (its config as JSON, its weights, its hash, and its privacy where it was trained privately). Files of
DIFF-3 are read by formats/diff3.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import h5py
import numpy as np

from edm3d.formats import h5
from edm3d.formats.facts import Facts
from edm3d.formats.items import check_ids, check_tables
from edm3d.formats.privacy import PrivacyStatement
from edm3d.formats.volumes import in_order
from edm3d.utils.checks import listed
from edm3d.utils.log import progress
from edm3d.utils.plain import from_plain, shown

STATISTICS = {"channel_mean": list[float], "channel_std": list[float], "posterior": str, "limits": list[float],
              "scaling": str}  # attributes of a file
LATER = ("limits", "scaling")  # those that files from before do not have
GRIDS = {"labels": "uint8", "maps": "uint8", "cond_images": "float32"}  # at full size: read row by row


class EncodedSplit(NamedTuple):
    """The latents of one split: mean and std [N,C,*s] float32, and what the volumes have besides images and labels.

    tables: data sets [N,...] of conditions by name, as the volumes hold them; grids: rows of GRIDS by name.
    """

    mean: np.ndarray
    std: np.ndarray
    ids: list[str]
    groups: list[str]
    affines: np.ndarray
    tables: Mapping[str, np.ndarray] = MappingProxyType({})
    boxes: np.ndarray | None = None
    grids: Mapping[str, Sequence[np.ndarray]] = MappingProxyType({})

    @property
    def shape(self) -> tuple[int, ...]:
        """[N,C,*s]."""
        return self.mean.shape

    @property
    def semantic(self) -> Sequence[np.ndarray] | None:
        """The maps [*S], in files without maps the label maps, None where there are neither."""
        return self.grids.get("maps", self.grids.get("labels"))

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and std [C,*s] of an item."""
        return self.mean[index], self.std[index]


class Rows(Protocol):
    """A split that is to be written: EncodedSplit, or one whose rows come from elsewhere one by one."""

    shape: tuple[int, ...]
    ids: Sequence[str]
    groups: Sequence[str]
    affines: np.ndarray
    boxes: np.ndarray | None
    tables: Mapping[str, np.ndarray]
    grids: Mapping[str, Sequence[np.ndarray]]

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]: ...


class Statistics(NamedTuple):
    """Of draws from latents: mean and std per channel, and the lowest and highest of mean -/+ 3 std of any item."""

    channel_mean: list[float]
    channel_std: list[float]
    limits: list[float]


class Moments:
    """Statistics of a split, taken up item by item."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares, self.lo, self.hi = 0, 0.0, 0.0, np.inf, -np.inf

    def add(self, mean: np.ndarray, std: np.ndarray) -> tuple[float, float]:
        """Take up an item's mean and std [C,*s]; the lowest and highest of its mean -/+ 3 std."""
        axes = tuple(range(1, mean.ndim))
        own = mean.mean(axes, dtype=np.float64)
        spread = mean.var(axes, dtype=np.float64) + np.square(std, dtype=np.float64).mean(axes)
        delta, self.count = own - self.mean, self.count + 1
        self.squares = self.squares + spread + delta ** 2 * ((self.count - 1) / self.count)  # Chan et al. 1983
        self.mean = self.mean + delta / self.count
        lo, hi = float((mean - 3 * std).min()), float((mean + 3 * std).max())
        self.lo, self.hi = min(self.lo, lo), max(self.hi, hi)
        return lo, hi

    def statistics(self) -> Statistics:
        """Those of all items so far."""
        return Statistics(self.mean.tolist(), np.sqrt(self.squares / self.count).tolist(), [self.lo, self.hi])


class FirstStageRecord(NamedTuple):
    """A first stage as files carry it: its network's config, its weights, their hash, and what it says of privacy."""

    network: dict
    weights: dict[str, np.ndarray]
    hash: str
    privacy: PrivacyStatement | None = None


class MeasuredRoundTrip(NamedTuple):
    """What files say of how well a first stage gives volumes back: means over `num` items of a split."""

    psnr_db: float
    num: int
    split: str
    dice: dict[str, float | None] | None = None


def checked_round_trip(found: object, source: object, key: str = "round_trip") -> dict:
    """What a file says of it, as it stands; ValueError naming the file (source) and the key unless it is one.
    """
    known = dict(found) if isinstance(found, Mapping) else found
    if isinstance(known, dict) and known.get("psnr_db") == np.inf:  # volumes that came back as they were
        known["psnr_db"] = 0.0
    from_plain(MeasuredRoundTrip, known, source, key)
    return found


def write_latents(path: Path, splits: Mapping[str, Rows], first_stage: FirstStageRecord, facts: Facts,
                  provenance: dict, *, posterior: str = "gaussian", scaling: str = "standardize",
                  round_trip: dict | None = None) -> None:
    """Write a latents file, row by row; its statistics are those of split `train` (of the first split without one)."""
    needed = sum(2 * 4 * int(np.prod(s.shape)) for s in splits.values())
    needed += sum(s.shape[0] * rows[0].nbytes for s in splits.values() for rows in s.grids.values())
    needed += sum(w.nbytes for w in first_stage.weights.values())
    measured = "train" if "train" in splits else next(iter(splits))
    with h5.atomic_h5(path, needed_bytes=needed + 2 ** 20) as file:
        h5.set_format(file, "latents", provenance)
        stage = file.create_group("first_stage")
        h5.put_json(stage, "network", first_stage.network)
        h5.put_text(stage, "hash", first_stage.hash)
        if first_stage.privacy is not None:
            h5.put_json(stage, "privacy", first_stage.privacy.plain())
        for name, weight in first_stage.weights.items():
            h5.write_array(stage, name, weight, contiguous=True)
        found = {name: _write_split(file.create_group(name), split) for name, split in splits.items()}[measured]
        attributes: dict[str, Any] = {"posterior": posterior, "scaling": scaling, "data": facts.plain(),
                                      **found._asdict()}
        for name, value in attributes.items():
            h5.put_json(file, name, value)
        if round_trip is not None:
            h5.put_json(file, "round_trip", round_trip)


def _write_split(group: h5py.Group, split: Rows) -> Statistics:
    """Write the rows and tables of a split; its statistics."""
    mean, std = (h5.create(group, name, split.shape, np.float32, contiguous=True) for name in ("mean", "std"))
    moments, limits = Moments(), []
    for i in progress(range(split.shape[0]), desc=f"write {group.name[1:]}", unit="item"):
        row = split.row(i)
        if {np.shape(array) for array in row} != {mean.shape[1:]}:
            raise ValueError(f"{group.name[1:]} {split.ids[i]}: latents are {[np.shape(part) for part in row]}, those "
                             f"of the first {mean.shape[1:]}")
        mean[i], std[i] = row
        limits.append(moments.add(*row))
        h5.check_disk(mean)
    for name, column in zip(("min", "max"), np.asarray(limits, np.float32).T, strict=True):
        h5.write_array(group, name, column)
    h5.write_strings(group, "ids", split.ids)
    h5.write_strings(group, "groups", split.groups)
    for name, table in {"affines": split.affines, "boxes": split.boxes, **split.tables}.items():
        if table is not None:
            h5.write_array(group, name, table)
    for name, rows in split.grids.items():
        dataset = h5.create(group, name, (0, *rows[0].shape), GRIDS[name], hash_rows=True,
                            compress=GRIDS[name] == "uint8")
        for i in progress(range(split.shape[0]), desc=f"write {name}", unit="item"):
            h5.append_row(dataset, rows[i])
    return moments.statistics()


class GridRows(h5.LazyFile):
    """The rows of one of GRIDS of a split, read and held against their hashes one by one."""

    def __init__(self, path: Path, split: str, name: str):
        super().__init__(path, "latents")
        self.split, self.name = split, name
        dataset = self._open()[split][name]
        self.hashes, self.length = h5.row_hashes(dataset), len(dataset)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < self.length:
            raise IndexError(f"{self.path}: index {index} outside 0..{self.length - 1} of split {self.split!r}")
        return h5.read_row(self._open()[self.split][self.name], index, self.hashes)


class LatentsFile:
    """A latents file for reading; the arrays of a split are read into memory when asked for, but for GRIDS."""

    def __init__(self, path: Path):
        self.path = Path(path)
        with h5.open_h5(path, "latents") as file, h5.damage_named(path):
            self.provenance: dict = h5.get_json(file, "provenance", dict)
            self.content_hash = h5.get_text(file, "content_hash")
            self.facts = _read_facts(file, str(path), self.content_hash)
            self.round_trip: dict | None = None
            if "round_trip" in file.attrs:
                self.round_trip = checked_round_trip(h5.get_json(file, "round_trip"), path)
            stage = h5.need(file, "first_stage", h5py.Group)
            self.first_stage_hash = h5.get_text(stage, "hash")
            self.first_stage_privacy: PrivacyStatement | None = None
            if "privacy" in stage.attrs:
                said = h5.get_json(stage, "privacy", dict)
                self.first_stage_privacy = PrivacyStatement.from_plain(said, path, "first_stage.privacy")
            self.splits = in_order(name for name in file if name != "first_stage")
            if not self.splits:
                raise ValueError(f"{path}: holds no split")
            for split in self.splits:
                _check_split(h5.need(file, split, h5py.Group), self.facts)
            check_ids([id_ for split in self.splits for id_ in h5.read_strings(file[split]["ids"])], str(path))

    def read(self, split: str) -> EncodedSplit:
        """All latents of a split; ValueError when there is none of that name or it is damaged."""
        if split not in self.splits:
            raise ValueError(f"{self.path}: no split {split!r}, it has {listed(self.splits)}")
        with h5.open_h5(self.path, "latents") as file:
            group = file[split]
            found = {name: h5.read(group[name]) for name in group
                     if name not in ("ids", "groups", "min", "max", *GRIDS)}
            grids = {name: GridRows(self.path, split, name) for name in GRIDS if name in group}
            names = [h5.read_strings(group[name]) for name in ("ids", "groups")]
            where = f"{self.path}: /{split}"
            check_tables(found, names[0], where, classes=self.facts.class_names, spatial_shape=self.facts.spatial_shape)
            mean, std, affines, boxes = (found.pop(name, None) for name in ("mean", "std", "affines", "boxes"))
            check_latents(mean, std, names[0], where)
            return EncodedSplit(mean, std, *names, affines, found, boxes, grids)

    def first_stage(self) -> FirstStageRecord:
        """The autoencoder that made the latents."""
        with h5.open_h5(self.path, "latents") as file:
            stage = file["first_stage"]
            weights = {name: _weight(h5.need(stage, name)) for name in stage}
            return FirstStageRecord(h5.get_json(stage, "network", dict), weights, self.first_stage_hash,
                                    self.first_stage_privacy)


def round_trip_line(found: dict | None) -> str:
    """What `round_trip` of a file says, in a line; the Dice is the mean of all classes but the background."""
    if found is None:
        return "Round trip  not measured: no held-out volume was decoded again"
    dice = [value for value in list(found.get("dice", {}).values())[1:] if value is not None]
    overlap = f", mean Dice {np.mean(dice):.3f} without background," if dice else ""
    measured = f"{found['num']} volumes of split {found['split']!r}"
    return f"Round trip  PSNR {found['psnr_db']:.2f} dB{overlap} over {measured}"


def _read_facts(file: h5py.File, path: str, content_hash: str) -> Facts:
    """What is known of the volumes and of their latents."""
    known = {name: h5.get_json(file, name, hint) for name, hint in STATISTICS.items()
             if name in file.attrs or name not in LATER}
    known.setdefault("scaling", "standardize")  # files from before there was another do not name theirs
    data = h5.get_json(file, "data", dict)
    return Facts.from_plain(data | {"latents": path, "latents_hash": content_hash, "latent_statistics": known}, path)


def _weight(dataset: h5py.Dataset) -> np.ndarray:
    weight = h5.read(dataset)
    if weight.dtype.kind not in "fiub" or not np.isfinite(weight).all():
        raise ValueError(f"{dataset.file.filename}: {dataset.name} is {weight.dtype} with values that are no weights, "
                         "wanted finite numbers")
    return weight


def check_latents(mean: np.ndarray, std: np.ndarray, ids: Sequence[str], where: str) -> None:
    """ValueError naming the first item whose mean or std is not finite, or whose std is negative."""
    for id_, one, other in zip(ids, mean, std, strict=True):
        if not np.isfinite(one).all() or not np.isfinite(other).all() or other.min() < 0:
            raise ValueError(f"{where}: mean or std of {shown(id_)} is not finite, or std negative; encode the volumes "
                             "again")


def _check_split(group: h5py.Group, facts: Facts) -> None:
    """Raise ValueError unless the data sets of a split are there, of the right types and shapes."""
    N, *row = h5.shape_of(group, "mean")
    channels = len(facts.latents.channel_mean)
    if len(row) < 2 or row[0] != channels or 0 in row:
        raise ValueError(f"{group.file.filename}: {group.name}/mean is {(N, *row)}, wanted [N,{channels},*s]")
    names = facts.attribute_names  # None in older files: any number of columns
    attributes = h5.shape_of(group, "attributes")[1:] if "attributes" in group and not names else (len(names or ()),)
    h5.check_columns(group, N, {
        "mean": ("float32", tuple(row)), "std": ("float32", tuple(row)), "ids": ("strings", ()),
        "groups": ("strings", ()), "affines": ("float64", (4, 4)), "boxes": ("int64", (2, 3)), "classes": ("int64", ()),
        "attributes": ("float32", attributes), "min": ("float32", ()), "max": ("float32", ()),
        **{name: (dtype, (len(facts.condition_channels or ()), *facts.spatial_shape)[name != "cond_images":])
           for name, dtype in GRIDS.items()}
    }, needed=("std", "ids", "groups", "affines"))
