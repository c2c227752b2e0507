"""Which arrays samples files hold, and that they agree with each other and with what is said of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edm3d.formats.facts import Facts, LatentScaling

Layout = Mapping[str, tuple[np.dtype, tuple[int, ...]]]  # type and shape of each array


class Kind(NamedTuple):
    """An array with a row for each seed: its type, and how many axes it may have with that of the rows."""

    dtype: str
    least: int
    most: int


# of PET: the activity that a scan was simulated of, and the image of the same scan at the high dose; beside them the
# scale by which the network saw the scan, its dose, the number of its slice or stack in its file, and of the draw of it
OF_SCANS = ("phantom", "high_images")
KINDS = {"latents": Kind("float32", 3, 5), "images": Kind("float32", 3, 5), "labels": Kind("uint8", 2, 4),
         "classes": Kind("int64", 1, 1), "attributes": Kind("float32", 2, 2), "maps": Kind("uint8", 2, 4),
         "cond_images": Kind("float32", 3, 5), "affines": Kind("float64", 3, 3), "trajectory": Kind("float32", 4, 6),
         **{name: Kind("float32", 3, 5) for name in OF_SCANS}, "scales": Kind("float32", 1, 1),
         "doses": Kind("float32", 1, 1), "slice_ids": Kind("int64", 1, 1), "draws": Kind("int64", 1, 1),
         "attempts": Kind("int64", 1, 1), "flagged": Kind("uint8", 1, 1)}


def check_layout(path: Path, layout: Layout, facts: Facts, scaling: LatentScaling | None) -> None:
    """ValueError unless seeds and affine are there, and all arrays have a row for each seed and the right types.

    Images must have the channels and axes that the meta data say, where those do, and latents the channels.
    """
    if missing := {"seeds", "affine"} - layout.keys():
        raise ValueError(f"{path}: not a samples file: {', '.join(sorted(missing))} missing")
    (_, seeds), (kind, affine) = layout["seeds"], layout["affine"]
    if layout["seeds"][0] != np.int64 or len(seeds) != 1 or seeds == (0,):
        raise ValueError(f"{path}: seeds are {layout['seeds'][0]} {seeds}, wanted int64 [N], one or more")
    if kind != np.float64 or affine != (4, 4):
        raise ValueError(f"{path}: affine is {kind} {affine}, wanted float64 (4, 4)")
    for name in KINDS.keys() & layout.keys():
        (dtype, shape), (wanted, least, most) = layout[name], KINDS[name]
        if dtype != wanted or shape[:1] != seeds:
            raise ValueError(f"{path}: {name} are {dtype} {shape}, wanted {wanted} with {seeds[0]} rows")
        if not least <= len(shape) <= most or 0 in shape:
            raise ValueError(f"{path}: {name} are {shape}, wanted {least} to {most} axes, none empty")
    grids = {name: layout[name][1][1 if name in ("labels", "maps") else 2:]
             for name in ("images", "labels", "maps", "cond_images", *OF_SCANS) if name in layout}
    if len(set(grids.values())) > 1:
        raise ValueError(f"{path}: " + ", ".join(f"{name} are {layout[name][1]}" for name in grids)
                         + "; wanted one grid")
    _check_told(path, layout, facts)
    _check_images(path, layout, facts, scaling)


def _check_told(path: Path, layout: Layout, facts: Facts) -> None:
    """ValueError unless attributes, condition images and affines have the columns that the meta data say."""
    for name, names in (("attributes", facts.attribute_names), ("cond_images", facts.condition_channels)):
        if name in layout and names is not None and layout[name][1][1] != len(names):
            raise ValueError(f"{path}: {name} are {layout[name][1]}, and data names {len(names)}")
    if "affines" in layout and layout["affines"][1][1:] != (4, 4):
        raise ValueError(f"{path}: affines are {layout['affines'][1]}, wanted (4, 4) for each seed")


def _check_images(path: Path, layout: Layout, facts: Facts, scaling: LatentScaling | None) -> None:
    """ValueError unless images, and latents by their channels, are what the meta data say, where those do."""
    _, shape = layout.get("images", ("", None))
    if shape and ((facts.channels and shape[1] != len(facts.channels))
                  or (facts.spatial_shape and len(shape) != len(facts.spatial_shape) + 2)):
        raise ValueError(f"{path}: images are {shape}, and data says {len(facts.channels)} channels and "
                         f"{len(facts.spatial_shape)} axes")
    drawn = [layout[name][1][1:] for name in ("latents", "images") if name in layout]
    if "trajectory" in layout and drawn and not _is_of_drawn(layout["trajectory"][1][2:], drawn, layout):
        raise ValueError(f"{path}: trajectory is {layout['trajectory'][1]}, wanted steps of {drawn[0]}")
    if scaling and "latents" in layout and layout["latents"][1][1] != len(scaling.channel_mean):
        raise ValueError(f"{path}: latents are {layout['latents'][1]}, and data.first_stage has statistics of "
                         f"{len(scaling.channel_mean)} channels")


def _is_of_drawn(steps: tuple[int, ...], drawn: list[tuple[int, ...]], layout: Layout) -> bool:
    """Whether steps of a trajectory [C,*s] are of what was drawn: latents or images, or images with the channels of
    label maps behind their own.
    """
    (channels, *size), with_labels = drawn[0], "labels" in layout and "latents" not in layout
    return steps in drawn or (with_labels and steps[0] > channels and list(steps[1:]) == size)
