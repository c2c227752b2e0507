"""Slices of volumes as tiles of a picture: three orthogonal planes, hung as in a viewer, with their classes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import nibabel
import numpy as np
from scipy import ndimage

from edm3d.formats.facts import Facts
from edm3d.formats.geometry import blur_sigmas
from edm3d.reporting.overlays import with_classes

FILL, OUTLINE = 0.12, 0.95
TILE = 168  # pixels of the longer side of a volume
# Up or left first: S and A point up, the patient's right (and anterior) is on the left of the picture.
_VERTICAL, _UP, _LEFT = ("S", "I", "A", "P", "R", "L"), ("S", "A", "R"), ("R", "A", "S")
# Planes by where their normal points, and in short, for rows that are low.
_ANATOMICAL = {code: name for codes, name in (("SI", ("axial", "ax")), ("AP", ("coronal", "cor")),
                                              ("RL", ("sagittal", "sag"))) for code in codes}


Picture = tuple[np.ndarray, np.ndarray | None]  # image [C,*S] or [*S] in stored units, label map [*S]
Block = tuple[str, Sequence[Picture]]  # below a title


class Plane(NamedTuple):
    """A slice: values grey [h, w] or colours [h, w, 3], label [h, w] or None, size in pixels."""

    values: np.ndarray
    label: np.ndarray | None
    pixels: tuple[int, int]


class Asked(NamedTuple):
    """What the volumes of the last block were asked for, one by one: maps [*S] and images [C,*S], () for none.

    map_classes: names of the maps' values, background first; channels: of the images.
    """

    maps: Sequence[np.ndarray] = ()
    map_classes: Sequence[str] = ()
    images: Sequence[np.ndarray] = ()
    channels: Sequence[str] = ()

    @classmethod
    def of(cls, facts: Facts, rows: Mapping[str, Sequence[np.ndarray]]) -> "Asked":
        """What volumes of which this is known were asked for; rows: arrays or lists by their names in samples files."""
        return cls(list(rows.get("maps", ())), facts.semantic_classes, list(rows.get("cond_images", ())),
                   facts.condition_channels or ())

    def in_legend_of(self, label_classes: Sequence[str]) -> tuple["Asked", Sequence[str]]:
        """The same with maps whose values are those of label maps for classes of one name, and follow them for others;
        all names.
        """
        if not self.maps or not label_classes or tuple(label_classes) == tuple(self.map_classes):
            return self, label_classes or self.map_classes
        names, values = list(label_classes), [0]
        for name in self.map_classes[1:]:
            if name not in names[1:]:
                names.append(name)
            values.append(names.index(name, 1))
        return self._replace(maps=[np.array(values)[each] for each in self.maps]), names


NOTHING_ASKED = Asked()


def plane_names(ndim: int, affine: Sequence[Sequence[float]] | None) -> list[tuple[str, str]]:
    """Names of the planes normal to the last axis, the one before and the first, each with its short form.

    Those of anatomy where an affine says where the axes point. The identity is what arrays without geometry have: their
    planes are named by the axes that they show, counted from 0. 2D has a single plane, which needs no name.
    """
    if ndim != 3:
        return []
    if known_affine(affine) is None:
        return [(f"axes {pair}", pair) for pair in ("0, 1", "0, 2", "1, 2")]
    return [_ANATOMICAL[code] for code in reversed(nibabel.aff2axcodes(np.asarray(affine)))]


def known_affine(affine: Sequence[Sequence[float]] | None) -> np.ndarray | None:
    """An affine that says where the axes point, None for none and for the identity, which arrays without geometry have.
    """
    return None if affine is None or np.array_equal(affine, np.eye(4)) else np.asarray(affine)


def planes_of(volume: np.ndarray, label: np.ndarray | None, spacing: Sequence[float], affine: np.ndarray | None,
            centre: Sequence[int] | None = None) -> list[Plane]:
    """Slices of [*S] or [*S, 3] through `centre`, or the middle of what is labelled, or of all: normal to the last axis
    first.
    """
    ndim, shape = len(spacing), volume.shape[:len(spacing)]
    if label is not None and label.shape != shape:
        raise ValueError(f"label of shape {label.shape}: wanted that of the image, {shape}")
    extent = max(size * step for size, step in zip(shape, spacing))
    pixels = [max(1, round(TILE * size * step / extent)) for size, step in zip(shape, spacing)]
    centre = centre or centre_of(shape, label)
    planes = []
    for normal in reversed(range(ndim)) if ndim == 3 else [None]:
        index = tuple(centre[i] if i == normal else slice(None) for i in range(ndim))
        down, across = (i for i in range(ndim) if i != normal)
        plane = Plane(volume[index], None if label is None else label[index], (pixels[down], pixels[across]))
        planes.append(plane if affine is None else _hung(plane, normal, affine))
    return planes


def centre_of(shape: tuple[int, ...], label: np.ndarray | None) -> list[int]:
    if label is None or not label.any():
        return [size // 2 for size in shape]
    return [round(float(axis.mean())) for axis in np.nonzero(label)]


class Hanging(NamedTuple):
    """How a plane hangs: the axes that run down and across, and whether they are shown from their ends on."""

    down: int
    across: int
    from_end_down: bool = False
    from_end_across: bool = False


def hanging(normal: int | None, affine: np.ndarray | None) -> Hanging:
    """How the plane normal to an axis of a volume hangs (None: that of a 2D image), as in a viewer where an affine says
    where the axes point; without, the lower axis runs down.
    """
    down, across = (i for i in range(2 if normal is None else 3) if i != normal)
    if affine is None:
        return Hanging(down, across)
    codes = nibabel.aff2axcodes(affine)
    if _VERTICAL.index(codes[across]) // 2 < _VERTICAL.index(codes[down]) // 2:
        down, across = across, down
    return Hanging(down, across, codes[down] in _UP, codes[across] in _LEFT)


def _hung(plane: Plane, normal: int | None, affine: np.ndarray) -> Plane:
    """Turn a plane so that patients hang as in a viewer."""
    down, across, from_end_down, from_end_across = hanging(normal, affine)
    turn = down > across

    def hang(values: np.ndarray) -> np.ndarray:
        values = values.swapaxes(0, 1) if turn else values
        values = values[::-1] if from_end_down else values
        return values if not from_end_across else values[:, ::-1]

    values, label, (height, width) = plane
    return Plane(hang(values), None if label is None else hang(label), (width, height) if turn else (height, width))


def tile_of(plane: Plane, window: tuple[float, float], fill: float = FILL, outline: float = OUTLINE) -> np.ndarray:
    """RGB tile [h, w, 3] in [0, 1] of one slice: interpolated grey or colours, tinted classes, their outlines."""
    values, label, pixels = plane
    lo, hi = window
    channels = np.moveaxis(values, -1, 0) if values.ndim == 3 else [values]
    scaled = [np.clip((_resize(channel, pixels) - lo) / max(hi - lo, 1e-12), 0, 1) for channel in channels]
    rgb = np.repeat(np.stack(scaled, axis=-1), 3 // len(scaled), axis=-1)
    return rgb if label is None else with_classes(rgb, _resize_label(label, pixels), fill, outline)


def _resize(values: np.ndarray, pixels: tuple[int, int]) -> np.ndarray:
    """Interpolate a slice to a number of pixels by cubic splines, blurred first where it shrinks."""
    values = values.astype(np.float32)
    sigmas = blur_sigmas(np.diag([old / new for old, new in zip(values.shape, pixels)]))
    values = ndimage.gaussian_filter(values, sigmas, mode="nearest") if sigmas.any() else values
    grid = [(np.arange(new) + 0.5) * old / new - 0.5 for old, new in zip(values.shape, pixels)]
    coordinates = np.meshgrid(*grid, indexing="ij")
    return ndimage.map_coordinates(values, coordinates, order=3, mode="nearest")


def _resize_label(label: np.ndarray, pixels: tuple[int, int]) -> np.ndarray:
    """Interpolate a label slice: at each pixel the class with the largest interpolated share."""
    values = np.unique(label)
    shares = np.stack([_resize(label == value, pixels) for value in values])
    return values[shares.argmax(axis=0)].astype(np.int64)
