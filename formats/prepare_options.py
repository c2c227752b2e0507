"""What `prepare` is asked to make of the files: which channels and values, and the refusal of what cannot be asked."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from edm3d.formats.nifti import VOXEL_MM
from edm3d.utils.checks import listed

LATER = ("image_pattern", "label_pattern", "map_pattern", "map_classes", "condition_channels", "class_names",
         "spacing_attributes", "pixel_spacing", "attributes", "find_padding", "indexed",
         "within")  # options that came when there were files of prepare already
CLASSES = {"label": "--classes", "map": "--map-classes"}  # options that name the values, by what a file is read as


@dataclass(frozen=True)
class PrepareOptions:
    """What to make of the files; None = leave as it is."""

    size: tuple[int, ...] | None = None  # voxels per axis: pad or crop centrally
    spacing: tuple[float, ...] | None = None  # mm per axis: resample
    orientation: str | None = None  # such as 'RAS'
    percentiles: tuple[float, ...] | None = None  # per channel of each volume, scaled to 0..1
    split: tuple[float, ...] = (0.8, 0.1, 0.1)
    seed: int = 0  # of the split
    spatial_dims: int | None = None  # None = 2 if size has two numbers, else as the first image says
    classes: tuple[str, ...] = ()  # names of the label values; () = as many as there are
    channels: tuple[str, ...] = ()  # names of the image channels; () = as many as there are
    channel: tuple[str, ...] = ()  # names or numbers of those to keep; () = all
    fit: tuple[int, ...] | None = None  # voxels per axis: shrink all axes by one factor until it fits in, then pad
    value_range: tuple[float, ...] | None = None  # lowest and highest value there can be; None = those there are
    clip: bool = True  # to the percentiles or value_range
    antialias: bool = True  # blur images where voxels become larger
    max_label_loss: float = 0.01  # share of the labelled voxels that may be lost on the way onto the image's grid
    images_only: bool = False  # leave label maps aside
    image_pattern: str | None = None  # of the images' names, such as '{id}_t1'; None = the id, or with _0000
    label_pattern: str | None = None  # of the label maps' names; None = the id
    map_pattern: str | None = None  # of the maps' names; None = the id
    map_classes: tuple[str, ...] = ()  # names of the values of maps; () = as many as there are
    condition_channels: tuple[str, ...] = ()  # names or numbers of channels with the role 'condition'
    class_names: tuple[str, ...] = ()  # of the class numbers of a dataset.json; () = class_0, ...
    spacing_attributes: bool = False  # voxel size and field of view as attributes
    pixel_spacing: tuple[float, ...] | None = None  # mm per row and column of 2D files that do not say it
    attributes: tuple[str, ...] = ()  # names of the numbers in samples of an index, with units; () = the usual ones
    find_padding: bool = False  # flat slices at the ends of the first axis are padding
    indexed: bool = False  # samples of index files, whose voxel size is `spacing` where they do not say it
    within: bool = False  # refuse images with values beyond value_range

    def given(self) -> dict[str, Any]:
        """By name, without those that came later and stand at their defaults: files of before know none of them."""
        return {f.name: getattr(self, f.name) for f in fields(self)
                if f.name not in LATER or getattr(self, f.name) != f.default}

    def names_of(self, role: str) -> tuple[str, ...]:
        """Names of the values of label maps or maps, () where they are not named; role: label or map."""
        return {"label": self.classes, "map": self.map_classes}[role]

    @property
    def grid(self) -> tuple[int, ...] | None:
        """Voxels per axis of all volumes, None = as they come."""
        return self.size or self.fit


def check_options(options: PrepareOptions, dims: int) -> None:
    """ValueError naming the first option that cannot be followed in `dims` dimensions."""
    if dims not in (2, 3):
        raise ValueError(f"--spatial-dims {dims}: volumes have 2 or 3")
    for name, values in (("--size", options.size), ("--fit", options.fit), ("--spacing", options.spacing),
                         ("--pixel-spacing", options.pixel_spacing)):
        if values is not None and len(values) != dims:
            count = "one number" if len(values) == 1 else f"{len(values)} numbers"
            raise ValueError(f"{name} {join(values)}: {count}, but {_axes(options, dims)}; wanted one number for each "
                             "axis")
        if values is not None and not all(0 < value < float("inf") for value in values):
            raise ValueError(f"{name} {join(values)}: wanted {dims} numbers above 0")
    if options.fit and (options.size or options.spacing):
        raise ValueError(f"--fit {join(options.fit)} sets size and spacing; leave --size and --spacing out")
    if not options.antialias and not (options.spacing or options.fit):
        raise ValueError("--no-antialias: nothing is resampled without --spacing or --fit; leave it out")
    if not 0 <= options.max_label_loss <= 1:
        raise ValueError(f"--max-label-loss {options.max_label_loss:g}: wanted a share between 0 and 1")
    least, most = VOXEL_MM
    if options.pixel_spacing and not least <= min(options.pixel_spacing) <= max(options.pixel_spacing) <= most:
        raise ValueError(f"--pixel-spacing {join(options.pixel_spacing)}: wanted {least:g} to {most:g} mm")
    if options.pixel_spacing and (dims == 3 or options.orientation):
        why = "3D volumes say their voxel size themselves" if dims == 3 else "it says no directions for --orientation"
        raise ValueError(f"--pixel-spacing {join(options.pixel_spacing)}: {why}; leave it out")
    if options.find_padding and dims != 3:
        raise ValueError("--find-padding: 2D images have no slices; leave it out")
    _check_scaling(options)
    if options.orientation is not None:
        axes = {frozenset("RL"), frozenset("AP"), frozenset("SI")}
        if len(options.orientation) != 3 or {a for a in axes if a & set(options.orientation)} != axes:
            raise ValueError(f"--orientation {options.orientation}: wanted one of R/L, A/P and S/I each, such as RAS")


def _axes(options: PrepareOptions, dims: int) -> str:
    """How many axes there are, by the option that says so or else by the volumes."""
    if options.spatial_dims:
        return f"--spatial-dims is {dims}"
    if options.grid and len(options.grid) == dims:
        return f"{'--size' if options.size else '--fit'} has {dims}"
    return f"the volumes have {'two' if dims == 2 else 'three'} axes"


def _check_scaling(options: PrepareOptions) -> None:
    p, r = options.percentiles, options.value_range
    if p is not None and not (len(p) == 2 and 0 <= p[0] < p[1] <= 100):
        raise ValueError(f"--percentiles {join(p)}: wanted two rising numbers between 0 and 100")
    if r is not None and not (len(r) == 2 and -float("inf") < r[0] < r[1] < float("inf")):
        raise ValueError(f"--range {join(r)}: wanted the lowest and the highest value, as in 0 255")
    if p is not None and r is not None:
        raise ValueError(f"--percentiles {join(p)} and --range {join(r)} both scale the values; leave one out")
    if p is None and r is None and not options.clip:
        raise ValueError("--no-clip: there is nothing to clip without --percentiles or --range; leave it out")


def picked(options: PrepareOptions) -> list[int] | None:
    """Indices of the channels to keep, None = all; ValueError for one that `channels` does not name."""
    if not options.channel:
        return None
    names = options.channels
    known = f"there are {listed(names)}" if names else "name all channels of the files with --channels"
    indices = []
    for word in options.channel:
        if word in names:
            indices.append(names.index(word))
        elif word.isdecimal() and (not names or int(word) < len(names)):
            indices.append(int(word))
        else:
            raise ValueError(f"--channel {word}: no such channel; {known}, or a number from 0 on")
    if len(set(indices)) < len(indices):
        raise ValueError(f"--channel {' '.join(options.channel)}: names a channel twice")
    return indices


def channel_names(options: PrepareOptions, count: int) -> tuple[str, ...]:
    """Names of the `count` channels that were kept."""
    indices = picked(options) or range(count)
    if options.channels:
        return tuple(options.channels[i] for i in indices)
    return ("image",) if count == 1 else tuple(f"channel_{i}" for i in indices)


def channel_roles(options: PrepareOptions, names: Sequence[str]) -> tuple[str, ...]:
    """The role of each channel that was kept, by its name; ValueError for conditions that are none of them, or all."""
    numbers = dict(zip(map(str, picked(options) or range(len(names))), names))
    given = " ".join(options.condition_channels)
    conditions = []
    for word in options.condition_channels:
        if (name := word if word in names else numbers.get(word)) is None:
            raise ValueError(f"--condition-channels {word}: no such channel; there are {listed(names)}, or by number "
                             f"{listed(numbers)}")
        conditions.append(name)
    if len(set(conditions)) < len(conditions):
        raise ValueError(f"--condition-channels {given}: names a channel twice")
    if len(conditions) == len(names):
        raise ValueError(f"--condition-channels {given}: these are all channels; one or more must stay to be drawn")
    return tuple("condition" if name in conditions else "target" for name in names)


def clipping(options: PrepareOptions) -> tuple[float, ...] | None:
    """The percentiles or values that are clipped to, None where nothing is."""
    return (options.percentiles or options.value_range) if options.clip else None


def join(values: Iterable[float]) -> str:
    """Numbers as they stand on a command line."""
    return " ".join(f"{v:g}" for v in values)


def scaled(
    image: np.ndarray, lowest: np.ndarray, scale: np.ndarray, options: PrepareOptions
) -> tuple[np.ndarray, np.ndarray]:
    """An image [C,X,Y,Z] as it is stored, and the values [C] that padding takes.

    lowest: the least value of each channel [C]; scale: what become 0 and 1, [C,2].
    """
    if options.percentiles:
        lo, hi = scale.T
        column = (-1, 1, 1, 1)
        image, fill = (image - lo.reshape(column)) / (hi - lo).reshape(column), (lowest - lo) / (hi - lo)
        return (image.clip(0, 1), fill.clip(0, 1)) if options.clip else (image, fill)
    if options.value_range:
        lo, hi = options.value_range
        return image.clip(lo, hi) if options.clip else image, np.full(len(lowest), lo)
    return image, lowest
