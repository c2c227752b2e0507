"""Low-dose scans that networks of PET are told: the user's own, or simulated of phantoms by the seed of each sample."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from edm3d.formats.asked_scans import ScanFile
from edm3d.formats.intensity import Intensity
from edm3d.formats.projector_cache import Cached, cached_matrix
from edm3d.inference.batch import Sample
from edm3d.physics.activity_scale import ActivityScale
from edm3d.physics.dose import DoseSimulation
from edm3d.physics.projector import ParallelBeam, system_matrix
from edm3d.samplers.noise import ImageGenerators
from edm3d.utils.names import one_line

LARGE = 64  # pixels along a side, from above which a projector takes so long that it is kept
CACHE = "cache"  # folder below that of the runs


def keep_projector(simulation: DoseSimulation, run_root: str | Path) -> str | None:
    """Give a simulation of large images its system matrix, out of the cache below a folder for runs, where it is kept
    for the next time; why it could not be, else None.
    """
    if getattr(simulation, "matrix", 0) is not None or not (found := kept_matrix(simulation.geometry, run_root)):
        return None
    simulation.matrix = found.matrix
    return found.note


def kept_matrix(geometry: ParallelBeam, run_root: str | Path) -> Cached | None:
    """The system matrix of a large geometry, out of the same cache; None of a small one, which is soon made."""
    if geometry.size <= LARGE:
        return None
    return cached_matrix(geometry, partial(system_matrix, geometry), Path(run_root) / CACHE)


class ScanBatch(NamedTuple):
    """Scans of a batch: their scales [N], the low dose as networks see it [N,1,*S], and what samples hold of them."""

    scale: torch.Tensor
    told: torch.Tensor
    arrays: dict[str, np.ndarray]


class Scans:
    """The scan of every seed; names: of slices or stacks, which seeds go through in turn, numbers: theirs in the file.

    intensity: of activities, low dose and drawn images alike. record: the settings that a sample depends on by them,
    hash: that of what they are made of. per_scan: whether seeds of one slice share its scan; else each has its own.
    """

    per_scan = False

    def __init__(self, names: Sequence[str], numbers: Sequence[int], size: Sequence[int], scale: ActivityScale,
                 intensity: Intensity, record: Mapping[str, Any], hash_: str):
        self.names, self.numbers, self.size = list(names), np.asarray(numbers, np.int64), tuple(size)
        self.scale, self.intensity, self.record, self.hash = scale, intensity, record, hash_
        self._last: tuple[tuple[int, ...], ScanBatch] | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of a row of each array that samples hold of a scan."""
        return {"scales": (), "slice_ids": (), "cond_images": (1, *self.size)}

    def __call__(self, seeds: Sequence[int]) -> ScanBatch:
        """The scans of some seeds, the same however they are put together; those of the last call are kept."""
        if self._last is None or self._last[0] != tuple(seeds):
            self._last = tuple(seeds), self._batch(seeds)
        return self._last[1]

    def _batch(self, seeds: Sequence[int]) -> ScanBatch:
        keys = list(dict.fromkeys(seeds))
        low, more = self.made(keys)
        rows = [keys.index(seed) for seed in seeds]
        if len(empty := [seed for seed, image in zip(keys, low, strict=True) if not image.any()]):
            raise ValueError(f"seed {empty[0]} ({self.names[self.row_of(empty[0])]}): nothing of its scan was counted; "
                             "wanted more by sampling.scan.counts or sampling.scan.dose")
        low = low.float()[rows]
        scale = self.scale(low)
        arrays = {"cond_images": low.numpy(), "scales": scale.numpy(),
                  "slice_ids": self.numbers[[self.row_of(seed) for seed in seeds]]}
        return ScanBatch(scale, self.scale.to_network(low, scale), arrays | {k: v[rows] for k, v in more.items()})

    def row_of(self, seed: int) -> int:
        """Number of the slice or stack that a seed is of, among those that `names` names."""
        return seed % len(self.names)

    def made(self, seeds: Sequence[int]) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
        """Low dose [N,1,*S] of seeds in units of activity, and further arrays."""
        raise NotImplementedError


class SimulatedScans(Scans):
    """Scans of activity phantoms, items of a data set whose intensities are known; noise follows from the seed."""

    def __init__(self, items: Sequence[Sample], names: Sequence[str], size: Sequence[int], of_items: Intensity,
                 simulation: DoseSimulation, scale: ActivityScale, intensity: Intensity, record: Mapping[str, Any],
                 hash_: str):
        super().__init__(names, range(len(names)), size, scale, intensity, record, hash_)
        self.items, self.of_items, self.simulation = items, of_items, simulation

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return super().shapes | {"phantom": (1, *self.size), "high_images": (1, *self.size), "doses": ()}

    def made(self, seeds: Sequence[int]) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
        images = np.stack([self.items[self.row_of(seed)].image for seed in seeds]).astype(np.float32)
        activity = self.of_items.from_network(torch.from_numpy(images)).clamp(min=0)
        pair = self.simulation.pair(activity, ImageGenerators(seeds, purpose="scan"))
        return pair.low, {"phantom": activity.numpy(), "high_images": pair.high.float().numpy(),
                          "doses": np.full(len(seeds), self.simulation.dose, np.float32)}


class Grid(NamedTuple):
    """How images of one size lie in those of another about a common centre: slices in each, axis by axis."""

    size: tuple[int, ...]
    source: tuple[slice, ...]
    place: tuple[slice, ...]

    @classmethod
    def centred(cls, found: Sequence[int], wanted: Sequence[int]) -> "Grid":
        """Of images [*found] in [*wanted], padded by 0 and cropped axis by axis."""
        spans = []
        for had, size in zip(found, wanted, strict=True):
            kept, before, behind = min(had, size), max(0, (had - size) // 2), max(0, (size - had) // 2)
            spans.append((slice(before, before + kept), slice(behind, behind + kept)))
        return cls(tuple(wanted), tuple(s for s, _ in spans), tuple(p for _, p in spans))

    def put(self, images: np.ndarray) -> np.ndarray:
        """Images [...,*found] on the other grid [...,*wanted]."""
        made = np.zeros((*images.shape[:images.ndim - len(self.size)], *self.size), images.dtype)
        made[(..., *self.place)] = images[(..., *self.source)]
        return made

    def back(self, images: np.ndarray, found: Sequence[int]) -> np.ndarray:
        """Images [...,*wanted] on the grid that they came from [...,*found], 0 where that was cropped."""
        made = np.zeros((*images.shape[:images.ndim - len(self.size)], *found), images.dtype)
        made[(..., *self.source)] = images[(..., *self.place)]
        return made

    @property
    def offset(self) -> list[int]:
        """Index on the first grid of the first voxel of the other."""
        return [source.start - place.start for source, place in zip(self.source, self.place, strict=True)]


class OwnScans(Scans):
    """Reconstructions of the user's own, by one grid in the network's; empty slices of a volume are left out.

    dose: of them, where it is known.
    """

    per_scan = True

    def __init__(self, file: ScanFile, grid: Grid, scale: ActivityScale, intensity: Intensity,
                 record: Mapping[str, Any], dose: float | None = None):
        images = grid.put(file.images)
        rows = np.flatnonzero(images.any(axis=tuple(range(1, images.ndim))))
        if not len(rows):
            raise ValueError(f"{file.source}: is 0 everywhere within {'x'.join(map(str, grid.size))}, as the network "
                             "sees it")
        super().__init__([file.ids[row] for row in rows], rows, grid.size, scale, intensity, record, file.hash)
        self.file, self.grid, self.images, self.dose = file, grid, images[rows], dose

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return super().shapes | ({} if self.dose is None else {"doses": ()}) | (
            {} if self.file.affine is None else {"affines": (4, 4)})

    @property
    def empty(self) -> list[str]:
        """Names of the slices that are left out."""
        return [one_line(id_) for row, id_ in enumerate(self.file.ids) if row not in self.numbers]

    def made(self, seeds: Sequence[int]) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
        rows = [self.row_of(seed) for seed in seeds]
        more: dict[str, np.ndarray] = {}
        if self.dose is not None:
            more["doses"] = np.full(len(rows), self.dose, np.float32)
        if self.file.affine is not None:
            more["affines"] = np.stack([self.affine_of(int(self.numbers[row])) for row in rows])
        return torch.from_numpy(self.images[rows]), more

    def affine_of(self, number: int) -> np.ndarray:
        """Voxel index -> mm [4,4] of an image as samples have it: a slice [H,W], or a stack [D,H,W]."""
        affine, stacked = np.array(self.file.affine, np.float64), len(self.size) == 3
        slices = number * self.size[0] if self.file.depth is not None else 0  # before a stack that a volume is cut into
        first = [*self.grid.offset[1:], self.grid.offset[0] + slices] if stacked else [*self.grid.offset, number]
        affine[:3, 3] += affine[:3, :3] @ first
        if stacked:
            affine[:, :3] = affine[:, [2, 0, 1]]
        return affine
