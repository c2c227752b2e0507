"""Pictures of volumes: three orthogonal planes, grey image with its label map, real above generated; and of signals."""

import io
import warnings
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy import ndimage

from edm3d.formats.geometry import blur_sigmas
from edm3d.formats.png import COLOURS
from edm3d.reporting.words import shown_lines, shown_word
from edm3d.utils.files import atomic_path

BACKGROUND = "#0d1117"
TEXT = "#e6edf3"
# Class 1 first; apart in lightness and hue, so that people who do not see red from green can tell them too.
LABEL_COLOURS = ("#ff5d73", "#ffc857", "#4cc9f0", "#7ae582", "#c77dff", "#ff9f1c", "#a0c4ff", "#f1f1f1")
FILL, OUTLINE = 0.12, 0.95
WHITE = 99.8  # percentile of the intensities that is shown as white
TILE = 168  # pixels of the longer side of a volume
GAP = 6
LINE, LETTER, FEWEST_LETTERS = 16, 6, 16  # pixels of a line of a caption, and of a letter in it
MARGIN, HEADING, LEGEND_LINE = 18, 40, 22  # pixels
DPI = 100
# Up or left first: S and A point up, the patient's right (and anterior) is on the left of the picture.
_VERTICAL, _UP, _LEFT = ("S", "I", "A", "P", "R", "L"), ("S", "A", "R"), ("R", "A", "S")

# Planes by where their normal points, and in short, for rows that are low.
_ANATOMICAL = {code: name for codes, name in (("SI", ("axial", "ax")), ("AP", ("coronal", "cor")),
                                              ("RL", ("sagittal", "sag"))) for code in codes}
Picture = tuple[np.ndarray, np.ndarray | None]
Block = tuple[str, Sequence[Picture]]


class Plane(NamedTuple):
    """A slice: values grey [h, w] or colours [h, w, 3], label [h, w] or None, size in pixels."""

    values: np.ndarray
    label: np.ndarray | None
    pixels: tuple[int, int]


def montage(blocks: Sequence[Block], spacing: Sequence[float], *,
            windows: Sequence | np.ndarray | None = None, label_classes: Sequence[str] = (),
            channels: Sequence[str] = (), captions: Sequence[str] = (), aligned: bool = False,
            affine: Sequence[Sequence[float]] | None = None) -> Figure:
    """Titled blocks of volumes one above the other, a column per volume; empty blocks are left out.

    Rows are the three planes (2D: one) with the label overlay; they hang as those of planes_figure where an affine says
    how, and their names (see plane_names) stand on the left; in a block with labels the first plane without it comes
    first. A volume is a pair of image [C, *S] or [*S] and label [*S] or None; channels are shown one after another, all
    blocks of each, or together where `channels` names them red, green and blue; ValueError for blocks of unlike numbers
    of them. spacing in mm per axis; windows: the intensities shown as black and white, of all or of each channel (see
    windows_of, by default), which all blocks share; label_classes (background first) name the legend, which has the
    classes that are seen; captions stand under the last block's columns; aligned: every block is cut where the first
    block's volume of its column is. Signals, which have a single axis, become `curves`.
    """
    if len(spacing) == 1:
        return curves([(title, [image for image, _ in pictures]) for title, pictures in blocks], captions)
    split = _by_channel(blocks, len(spacing), channels)
    windows = windows_of(blocks, len(spacing), channels) if windows is None else windows
    centres = [_centre(values.shape[:len(spacing)], label) for values, label in split[0][0][1]] if aligned else None
    columns = [(title, _columns(pictures, spacing, centres, _known(affine)), window)
               for parts, window in zip(split, np.broadcast_to(windows, (len(split), 2)).tolist(), strict=True)
               for title, pictures in parts]
    legend = _legend(label_classes, [planes for _, block, _ in columns for planes in block])
    sheets = [(title, [[_tile(plane, window) for plane in planes] for planes in block])
              for title, block, window in columns]
    return _blocks_figure(sheets, legend, captions, plane_names(len(spacing), affine))


def curves(blocks: Sequence[tuple[str, Sequence[np.ndarray]]], captions: Sequence[str] = ()) -> Figure:
    """Titled rows of signals [C,S] or [S], a column per signal and a line per channel, all on one scale.

    Captions stand under the last row; empty rows are left out.
    """
    shown = [(title, signals) for title, signals in blocks if len(signals)]
    columns = max(len(signals) for _, signals in shown)
    figure = Figure(figsize=((columns * (TILE + GAP) + 60) / DPI, len(shown) * (TILE + 40) / DPI), dpi=DPI,
                    facecolor=BACKGROUND, layout="constrained")
    grid = figure.subplots(len(shown), columns, sharex=True, sharey=True, squeeze=False)
    for (title, signals), row in zip(shown, grid, strict=True):
        row[0].set_title(shown_word(title, columns * TILE // 2 // LETTER), color=TEXT, fontsize=14, fontweight="bold",
                         loc="left")
        for axis, signal in zip(row, signals):
            for values, colour in zip(np.atleast_2d(signal), cycle((TEXT, *LABEL_COLOURS))):
                axis.plot(values, color=colour, linewidth=1)
        for axis in row[len(signals):]:
            axis.set_visible(False)
    for axis in grid.flat:
        axis.set_facecolor(BACKGROUND)
        axis.tick_params(colors=TEXT, labelsize=8)
    for axis, caption in zip(grid[-1], captions):
        axis.set_xlabel(shown_lines(caption, TILE // LETTER), color=TEXT, fontsize=9)
    return figure


def planes_figure(image: np.ndarray, label: np.ndarray | None, spacing: Sequence[float], *,
                  affine: np.ndarray | None = None, window: tuple[float, float] | None = None,
                  label_classes: Sequence[str] = ()) -> Figure:
    """Three orthogonal slices of one volume side by side (2D: one), image [C, *S] or [*S], named; with a label the
    same below with its overlay, and a legend of the label_classes (background first) that are seen.

    With an affine (RAS+, mm) the planes hang as radiologists hang them (superior or anterior up, the patient's right on
    the left); without, the lower of a plane's two axes runs downwards, as that of a 2D image with the identity does,
    which pictures have.
    """
    values = _with_channels(image, len(spacing))[0]
    affine = _known(affine) if len(spacing) == 2 else affine
    window = window or window_of([(values, label)])
    columns = [_plain_first([plane]) for plane in _planes(values, label, spacing, affine)]
    names = [name for name, _ in plane_names(len(spacing), affine)]
    return _blocks_figure([("", [[_tile(plane, window) for plane in column] for column in columns])],
                          _legend(label_classes, columns), names)


def plane_names(ndim: int, affine: Sequence[Sequence[float]] | None) -> list[tuple[str, str]]:
    """Names of the planes normal to the last axis, the one before and the first, each with its short form.

    Those of anatomy where an affine says where the axes point. The identity is what arrays without geometry have: their
    planes are named by the axes that they show, counted from 0. 2D has a single plane, which needs no name.
    """
    if ndim != 3:
        return []
    if _known(affine) is None:
        return [(f"axes {pair}", pair) for pair in ("0, 1", "0, 2", "1, 2")]
    return [_ANATOMICAL[code] for code in reversed(nibabel.aff2axcodes(np.asarray(affine)))]


def _known(affine: Sequence[Sequence[float]] | None) -> np.ndarray | None:
    """An affine that says where the axes point, None for none and for the identity, which arrays without geometry have.
    """
    return None if affine is None or np.array_equal(affine, np.eye(4)) else np.asarray(affine)


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(png_bytes(figure))


def png_bytes(figure: Figure) -> bytes:
    """PNG bytes of a figure: the same bytes for the same figure."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # letters that the font lacks are boxes in the picture, not news for the terminal
        warnings.filterwarnings("ignore", r"Glyph \d+")
        figure.savefig(buffer, format="png", dpi=figure.dpi, facecolor=figure.get_facecolor(),
                       metadata={"Software": None})
    return buffer.getvalue()


# ---- slices ----


def windows_of(blocks: Sequence[Block], ndim: int, channels: Sequence[str] = ()) -> np.ndarray:
    """For each channel [C, 2], colours being one: minimum and WHITE percentile of the first block that is not empty."""
    return np.array([window_of(parts[0][1]) for parts in _by_channel(blocks, ndim, channels)])


def _by_channel(blocks: Sequence[Block], ndim: int, channels: Sequence[str]) -> list[list[Block]]:
    """The blocks that hold something, of every channel: grey [*S], named where there are several, or colours [*S, 3].
    """
    filled = [(title, [(_with_channels(image, ndim), label) for image, label in pictures])
              for title, pictures in blocks if len(pictures)]
    counts = {(title, len(image)): len(image) for title, pictures in filled for image, _ in pictures}
    if len({*counts.values()}) > 1:
        said = ", ".join(f"{title} {count}" for title, count in counts)
        raise ValueError(f"pictures of unlike numbers of channels: {said}; wanted the same of all")
    count = next(iter(counts.values()))
    if count == len(COLOURS) and tuple(channels) == COLOURS:
        return [[(title, [(np.moveaxis(image, 0, -1), label) for image, label in pictures])
                 for title, pictures in filled]]
    names = channels if len(channels) == count else [f"channel {c + 1}" for c in range(count)]
    return [[(", ".join(filter(None, (title, name if count > 1 else ""))),
              [(image[c], label) for image, label in pictures]) for title, pictures in filled]
            for c, name in enumerate(names)]


def _with_channels(image: np.ndarray, ndim: int) -> np.ndarray:
    """An image [C, *S] or [*S] as [C, *S]."""
    if image.ndim not in (ndim, ndim + 1):
        raise ValueError(f"image of shape {image.shape}: wanted [C, *S] or [*S] with {ndim} axes, one per spacing")
    return image if image.ndim > ndim else image[None]


def window_of(pictures: Sequence[Picture]) -> tuple[float, float]:
    """The intensities that are shown as black and white: minimum and WHITE percentile of all values."""
    values = np.concatenate([np.ravel(image) for image, _ in pictures])
    return float(values.min()), float(np.percentile(values, WHITE))


def _planes(volume: np.ndarray, label: np.ndarray | None, spacing: Sequence[float], affine: np.ndarray | None,
            centre: Sequence[int] | None = None) -> list[Plane]:
    """Slices of [*S] or [*S, 3] through `centre`, or the middle of what is labelled, or of all: normal to the last axis
    first.
    """
    ndim, shape = len(spacing), volume.shape[:len(spacing)]
    if label is not None and label.shape != shape:
        raise ValueError(f"label of shape {label.shape}: wanted that of the image, {shape}")
    extent = max(size * step for size, step in zip(shape, spacing))
    pixels = [max(1, round(TILE * size * step / extent)) for size, step in zip(shape, spacing)]
    centre = centre or _centre(shape, label)
    planes = []
    for normal in reversed(range(ndim)) if ndim == 3 else [None]:
        index = tuple(centre[i] if i == normal else slice(None) for i in range(ndim))
        down, across = (i for i in range(ndim) if i != normal)
        plane = Plane(volume[index], None if label is None else label[index], (pixels[down], pixels[across]))
        planes.append(plane if affine is None else _hung(plane, down, across, affine))
    return planes


def _centre(shape: tuple[int, ...], label: np.ndarray | None) -> list[int]:
    if label is None or not label.any():
        return [size // 2 for size in shape]
    return [round(float(axis.mean())) for axis in np.nonzero(label)]


def _hung(plane: Plane, down: int, across: int, affine: np.ndarray) -> Plane:
    """Turn a plane so that patients hang as in a viewer."""
    codes = nibabel.aff2axcodes(affine)
    turn = _VERTICAL.index(codes[across]) // 2 < _VERTICAL.index(codes[down]) // 2
    down_code, across_code = (codes[across], codes[down]) if turn else (codes[down], codes[across])

    def hang(values: np.ndarray) -> np.ndarray:
        values = values.swapaxes(0, 1) if turn else values
        values = values[::-1] if down_code in _UP else values
        return values if across_code not in _LEFT else values[:, ::-1]

    values, label, (height, width) = plane
    return Plane(hang(values), None if label is None else hang(label), (width, height) if turn else (height, width))


def _tile(plane: Plane, window: tuple[float, float]) -> np.ndarray:
    """RGB tile [h, w, 3] in [0, 1] of one slice: interpolated grey or colours, tinted classes, their outlines."""
    values, label, pixels = plane
    lo, hi = window
    channels = np.moveaxis(values, -1, 0) if values.ndim == 3 else [values]
    scaled = [np.clip((_resize(channel, pixels) - lo) / max(hi - lo, 1e-12), 0, 1) for channel in channels]
    rgb = np.repeat(np.stack(scaled, axis=-1), 3 // len(scaled), axis=-1)
    if label is None:
        return rgb
    classes = _resize_label(label, pixels)
    edge = ndimage.grey_dilation(classes, size=3) != classes
    for value in np.unique(classes[classes > 0]):
        colour = np.array(to_rgb(_colour(value)))
        inside = classes == value
        rim = inside & (edge | (ndimage.grey_erosion(classes, size=3) != classes))
        for where, alpha in ((inside & ~rim, FILL), (rim, OUTLINE)):
            rgb[where] = (1 - alpha) * rgb[where] + alpha * colour
    return rgb


def _colour(value: int) -> str:
    """Of a class by its number, 1 first."""
    return LABEL_COLOURS[(value - 1) % len(LABEL_COLOURS)]


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


# ---- sheets ----


def _columns(pictures: Sequence[Picture], spacing: Sequence[float], centres: Sequence[list[int]] | None,
             affine: np.ndarray | None) -> list[list[Plane]]:
    """The planes of every volume; where any of them has a label, the first plane without it comes first."""
    columns = [_planes(values, label, spacing, affine, centres[i] if centres else None)
               for i, (values, label) in enumerate(pictures)]
    if all(label is None for _, label in pictures):
        return columns
    return [_plain_first(planes) for planes in columns]


def _plain_first(planes: list[Plane]) -> list[Plane]:
    """Planes after the first of them without its overlay, if it has one."""
    return planes if planes[0].label is None else [planes[0]._replace(label=None), *planes]


def _legend(label_classes: Sequence[str], columns: Sequence[Sequence[Plane]]) -> dict[int, str]:
    """Number and name of the classes, the background aside, that are seen in columns of planes."""
    seen = {int(value) for planes in columns for plane in planes if plane.label is not None
            for value in np.unique(plane.label)}
    return {value: shown_word(name) for value, name in enumerate(label_classes) if value and value in seen}


def _sheet(columns: list[list[np.ndarray]]) -> np.ndarray:
    """Put columns of tiles on a dark sheet, each tile centred in its cell."""
    heights = [max(column[i].shape[0] for column in columns) for i in range(len(columns[0]))]
    widths = [max(tile.shape[1] for tile in column) for column in columns]
    shape = (sum(heights) + GAP * (len(heights) - 1), sum(widths) + GAP * (len(widths) - 1), 3)
    sheet = np.broadcast_to(np.array(to_rgb(BACKGROUND)), shape).copy()
    left = 0
    for column, width in zip(columns, widths):
        top = 0
        for tile, height in zip(column, heights):
            y, x = top + (height - tile.shape[0]) // 2, left + (width - tile.shape[1]) // 2
            sheet[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
            top += height + GAP
        left += width + GAP
    return sheet


def _blocks_figure(blocks: list[tuple[str, list[list[np.ndarray]]]], legend: Mapping[int, str],
                   captions: Sequence[str], names: Sequence[tuple[str, str]] = ()) -> Figure:
    """Titled sheets one above the other, captions under the last, a legend of classes (number: name) at the foot.

    names: of the last rows of every sheet, long and short; rows before them show the first of these. One figure pixel
    per sheet pixel.
    """
    sheets = [(title, _sheet(columns)) for title, columns in blocks]
    width = 2 * MARGIN + max([*(sheet.shape[1] for _, sheet in sheets), *map(_legend_width, legend.values())])
    height = sum(sheet.shape[0] + (HEADING if title else MARGIN) for title, sheet in sheets)
    captions = [shown_lines(caption, max(FEWEST_LETTERS, max(tile.shape[1] for tile in column) // LETTER))
                for caption, column in zip(captions, blocks[-1][1])]
    lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    places = _legend_places(legend, width)
    height += LINE * lines + (LEGEND_LINE * (1 + max(places.values())[0]) + 27 if legend else MARGIN)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=BACKGROUND)
    top = 0
    for (title, sheet), (_, columns) in zip(sheets, blocks, strict=True):
        top += HEADING if title else MARGIN
        if title:
            figure.text(MARGIN / width, 1 - (top - 12) / height, shown_word(title), color=TEXT, fontsize=14,
                        fontweight="bold", va="bottom")
        figure.figimage(sheet, xo=MARGIN, yo=height - top - len(sheet), origin="upper")
        if names:
            _draw_names(figure, columns, names, top)
        top += len(sheet)
    left = MARGIN
    for caption, column in zip(captions, blocks[-1][1]):
        cell = max(tile.shape[1] for tile in column)
        figure.text((left + cell / 2) / width, 1 - (top + GAP) / height, caption, color=TEXT, fontsize=9, ha="center",
                    va="top")
        left += cell + GAP
    _draw_legend(figure, legend, places)
    return figure


def _draw_names(figure: Figure, columns: list[list[np.ndarray]], names: Sequence[tuple[str, str]], top: int) -> None:
    """Names of the rows of a sheet, upwards on its left; top: pixels of the figure above it."""
    width, height = figure.get_size_inches() * DPI
    for row, (name, short) in enumerate([*names[:1] * (len(columns[0]) - len(names)), *names]):
        rows = max(column[row].shape[0] for column in columns)
        figure.text(MARGIN / 2 / width, 1 - (top + rows / 2) / height, name if rows > 7 * len(name) else short,
                    color=TEXT, fontsize=8, rotation="vertical", ha="center", va="center")
        top += rows + GAP


def _legend_width(name: str) -> int:
    """Pixels of a class in the legend."""
    return 18 + 9 * len(name)


def _legend_places(legend: Mapping[int, str], width: int) -> dict[int, tuple[int, int]]:
    """Line and x of every class in a legend, in as many lines as it needs."""
    places, line, x = {}, 0, MARGIN
    for value, name in legend.items():
        if x > MARGIN and x + _legend_width(name) > width - MARGIN:
            line, x = line + 1, MARGIN
        places[value] = line, x
        x += _legend_width(name) + 24
    return places


def _draw_legend(figure: Figure, legend: Mapping[int, str], places: Mapping[int, tuple[int, int]]) -> None:
    """Class names at the foot, each behind a dot of its colour."""
    width, height = figure.get_size_inches() * DPI
    last = max((line for line, _ in places.values()), default=0)
    for value, name in legend.items():
        line, x = places[value]
        y = 20 + LEGEND_LINE * (last - line)
        figure.text(x / width, y / height, "●", color=_colour(value), fontsize=12, va="center")
        figure.text((x + 18) / width, y / height, name, color=TEXT, fontsize=11, va="center")
