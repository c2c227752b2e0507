"""A case of `prepare` in memory: its image, and its label map and map on the grid of the image, or what is wrong."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from edm3d.formats import geometry
from edm3d.formats.nifti import Volume, is_same_grid, read_volume
from edm3d.formats.pairing import CaseFiles
from edm3d.formats.prepare_options import CLASSES, PrepareOptions, picked
from edm3d.utils.checks import listed

MOST_CLASSES = 256
SAME_VOLUME = 0.1  # by what share the volume of a label map may change on another grid without being said
_MOST = float(np.finfo(np.float32).max)


class LabelMove(NamedTuple):
    """What became of a label map on the way onto the grid of its image."""

    turned: bool = False  # axes swapped or flipped, no voxel changed
    resampled: bool = False
    lost: int = 0  # its voxels of classes but the background that lie outside of the image, or whose class vanished
    total: int = 0  # its voxels of classes but the background
    vanished: tuple[int, ...] = ()  # classes of which nothing arrived
    volumes: tuple[float, float] = (0.0, 0.0)  # of classes but the background in mm^3, before and after

    @property
    def share(self) -> float:
        """How much was lost."""
        return self.lost / self.total if self.total else 0.0

    @property
    def is_faithful(self) -> bool:
        """Whether nothing was lost, and the volume is about what it was."""
        before, after = self.volumes
        return not self.lost and abs(after - before) <= SAME_VOLUME * before


class Loaded(NamedTuple):
    """A case as its files have it."""

    image: np.ndarray  # [C,X,Y,Z] float32
    maps: dict[str, np.ndarray]  # 'label' and 'map', those that there are, [1,X,Y,Z] uint8
    affine: np.ndarray
    has_geometry: bool
    moves: dict[str, LabelMove]  # likewise
    dtype: str  # of the image as stored


def load(case: CaseFiles, dims: int, options: PrepareOptions) -> Loaded:
    """Read a case; ValueError naming the file that cannot be used."""
    volumes = [read_volume(path, dims) for path in case.images]
    first = volumes[0]
    known = first.affine if first.affine is not None else _stated_affine(options)
    if first.affine is not None and options.pixel_spacing:
        raise ValueError(f"{case.images[0]}: has an affine, which says its voxel size; leave --pixel-spacing out")
    affine = np.eye(4) if known is None else known
    for path, volume in zip(case.images[1:], volumes[1:]):
        other = affine if volume.affine is None and first.affine is None else volume.affine
        other = np.eye(4) if other is None else other
        if not is_same_grid((first.data.shape[1:], affine), (volume.data.shape[1:], other)):
            raise ValueError(f"{path}: lies on another grid than {case.images[0].name}; channels must share one")
    given = _keep(np.concatenate([volume.data for volume in volumes]), case, options)
    for c, channel in enumerate(given):
        _check_channel(case.images[(picked(options) or range(c + 1))[c] if len(case.images) > 1 else 0], channel)
    image = given.astype(np.float32, copy=False)
    moved = {role: _load_map(path, role, Volume(image, known), dims, options) for role, path in case.maps.items()}
    return Loaded(image, {role: array for role, (array, _) in moved.items()}, affine, known is not None,
                  {role: move for role, (_, move) in moved.items()}, str(first.data.dtype))


def _stated_affine(options: PrepareOptions) -> np.ndarray | None:
    """That of files that say none, where an option says their voxel size; None where none does.

    Pictures: rows go down (to P) and columns to the right of a viewer (to L). Samples of an index: along the axes.
    """
    if options.indexed and options.spacing:
        return np.diag([*options.spacing, 1.0, 1.0][:3] + [1.0])
    if not options.pixel_spacing:
        return None
    down, across = options.pixel_spacing
    return np.array([[0, -across, 0, 0], [-down, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]], np.float64)


def _keep(image: np.ndarray, case: CaseFiles, options: PrepareOptions) -> np.ndarray:
    """The channels that were asked for; ValueError when the files have others than were named."""
    count, indices = len(image), picked(options)
    if options.channels and len(options.channels) != count:
        raise ValueError(
            f"{case.images[0]}: {count} channels, {len(options.channels)} have names: {listed(options.channels)}; "
            "correct the file, or name its channels with --channels"
        )
    if indices and max(indices) >= count:
        raise ValueError(f"{case.images[0]}: {count} channels, --channel {max(indices)} is not among them")
    return image[indices] if indices else image


def _check_channel(path: Path, channel: np.ndarray) -> None:
    """ValueError for values that single precision does not hold, and for a channel of one value."""
    lowest, highest = float(channel.min()), float(channel.max())
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        bad = np.count_nonzero(~np.isfinite(channel))  # none in types wider than double precision
        raise ValueError(f"{path}: {bad} values are NaN or infinite" if bad else
                         f"{path}: values lie beyond what double precision holds")
    if max(-lowest, highest) > _MOST:
        raise ValueError(f"{path}: {np.count_nonzero(np.abs(channel) > _MOST)} values lie beyond {_MOST:.3g}, the "
                         f"most that single precision holds: they go from {lowest:g} to {highest:g}")
    if np.float32(lowest) == np.float32(highest):
        raise ValueError(f"{path}: constant, every voxel is {lowest:g}")


# ---- label maps and maps ----


def _load_map(path: Path, role: str, image: Volume, dims: int, options: PrepareOptions
              ) -> tuple[np.ndarray, LabelMove]:
    """A label map or map [1,X,Y,Z] on the grid of its image, and what it took to bring it there."""
    found = read_volume(path, dims, role)
    data = _checked_label(path, found.data, options.names_of(role), CLASSES[role])
    return _onto(path, Volume(data, found.affine), image, options.max_label_loss)


def _checked_label(path: Path, data: np.ndarray, classes: tuple[str, ...], option: str) -> np.ndarray:
    """A label map [1,X,Y,Z] as uint8; ValueError where it is none, or has other values than the classes.

    option: by which these are named.
    """
    if data.shape[0] != 1:
        raise ValueError(f"{path}: {data.shape[0]} channels; a label map has one, with a number for each class")
    if not np.isfinite(data).all() or (data != np.rint(data)).any():
        raise ValueError(f"{path}: label values are not whole numbers")
    highest = len(classes) - 1 if classes else MOST_CLASSES - 1
    if data.min() < 0 or data.max() > highest:
        values = np.unique(data)
        outside = values[(values < 0) | (values > highest)]
        can_name = outside.min() >= 0 and outside.max() < MOST_CLASSES
        advice = (f"name all classes with {option}, or correct the file" if can_name else
                  f"a label map has {MOST_CLASSES} classes at most, and none below 0: renumber those of all files "
                  "alike, from 0, the background")
        values = listed(f"{float(value):g}" for value in outside)
        raise ValueError(f"{path}: label values {values} are outside 0..{highest}; {advice}")
    return data.astype(np.uint8)


def _onto(path: Path, label: Volume, image: Volume, most_lost: float) -> tuple[np.ndarray, LabelMove]:
    """The label map [1,X,Y,Z] on the grid of its image, and what it took to bring it there."""
    shape, affine = image.data.shape[1:], np.eye(4) if image.affine is None else image.affine
    if is_same_grid((shape, affine), (label.data.shape[1:], affine if label.affine is None else label.affine)):
        return label.data, LabelMove()
    if label.affine is None or image.affine is None:
        raise ValueError(
            f"{path}: is on another grid than its image ({label.data.shape[1:]}, the image {shape}), and the "
            f"{'label map' if label.affine is None else 'image'} has no affine by which it could be resampled"
        )
    turned = geometry.turned_onto(label.data, label.affine, shape, affine)
    if turned is not None:
        return turned, LabelMove(turned=True)
    moved = geometry.resample(label.data, label.affine, shape, affine, order=0, outside=0)
    move = _moved(label, Volume(moved, affine), geometry.counts_outside(label.data, label.affine, shape, affine))
    both = ("label map", label.data.shape[1:], label.affine), ("image", shape, affine)
    grids = "; ".join(f"{what} {'x'.join(map(str, grid))} voxels, affine {matrix.round(4).tolist()}"
                      for what, grid, matrix in both)
    if move.lost and not moved.any():
        raise ValueError(f"{path}: lies outside its image; are both in the same space? ({grids})")
    if move.share > most_lost:
        raise ValueError(
            f"{path}: {lost_line(move)} on the grid of its image; more than --max-label-loss "
            f"{most_lost:g} ({grids}); correct the files, leave the case out, or allow it with --max-label-loss")
    return moved, move


def _moved(label: Volume, moved: Volume, outside: np.ndarray) -> LabelMove:
    """What a label map lost by resampling; outside: its voxels of each value [256] that lie outside of the image."""
    before, after = (np.bincount(volume.data.ravel(), minlength=MOST_CLASSES) for volume in (label, moved))
    gone = (before > 0) & (after == 0)
    lost = np.where(gone, before, outside)
    volumes = (float(counts[1:].sum() * abs(np.linalg.det(volume.affine[:3, :3])))
               for counts, volume in ((before, label), (after, moved)))
    return LabelMove(resampled=True, lost=int(lost[1:].sum()), total=int(before[1:].sum()),
                     vanished=tuple(k for k in range(1, MOST_CLASSES) if gone[k]), volumes=tuple(volumes))


def lost_line(move: LabelMove) -> str:
    """How much of a label map was lost, in words."""
    which = f", all of class {listed(move.vanished)}" if move.vanished else ""
    before, after = move.volumes
    return (f"{move.lost} of {move.total} labelled voxels ({100 * move.share:.3g} %{which}) were lost, "
            f"{before:.4g} mm3 became {after:.4g}")
