"""Pictures of volumes: three orthogonal planes, grey image with its label map, real above generated; and of signals."""

import io
import warnings
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edm3d.formats.png import COLOURS
from edm3d.reporting.overlays import LABEL_COLOURS, colour_of
from edm3d.reporting.slices import (
    FILL,
    NOTHING_ASKED,
    OUTLINE,
    TILE,
    Asked,
    Block,
    Picture,
    Plane,
    centre_of,
    known_affine,
    plane_names,
    planes_of,
    tile_of,
)
from edm3d.reporting.words import shown_lines, shown_word
from edm3d.utils.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BACKGROUND = "#0d1117"
RGB = [int(BACKGROUND[i:i + 2], 16) / 255 for i in (1, 3, 5)]
TEXT = "#e6edf3"
WHITE = 99.8  # percentile of the intensities that is shown as white
GAP = 6
LINE, LETTER, FEWEST_LETTERS = 16, 7, 12  # pixels of a line of a caption, and of a letter in it
MARGIN, HEADING, LEGEND_LINE, BOLD = 18, 40, 22, 12  # pixels; the last of a letter in a title
DPI = 100
SOLID, LINES = {"fill": 1.0, "outline": 1.0}, {"fill": 0.0, "outline": OUTLINE}  # how classes are drawn


class Sheet(NamedTuple):
    """Columns of planes below a title, what is black and white in them, and how visible their classes are."""

    title: str
    columns: list[list[Plane]]
    window: tuple[float, float]
    fill: float = FILL
    outline: float = OUTLINE

    def tiles(self) -> list[list[np.ndarray]]:
        """The pictures of its planes."""
        return [[tile_of(plane, self.window, self.fill, self.outline) for plane in planes] for planes in self.columns]


def montage(blocks: Sequence[Block], spacing: Sequence[float], *,
            windows: Sequence | np.ndarray | None = None, label_classes: Sequence[str] = (),
            channels: Sequence[str] = (), captions: Sequence[str] = (), aligned: bool = False,
            affine: Sequence[Sequence[float]] | None = None, asked: Asked = NOTHING_ASKED,
            plain_once: bool = False) -> "Figure":
    """Titled blocks of volumes one above the other, a column per volume; empty blocks are left out.

    Rows are the three planes (2D: one) with the label overlay; they hang as those of planes_figure where an affine says
    how, and their names (see plane_names) stand on the left; in a block with labels the first plane without it comes
    first (plain_once: in the first block alone). A volume is a pair of image [C, *S] or [*S] and label [*S] or None;
    channels are shown one after another, all blocks of each, or together where `channels` names them red, green and
    blue; ValueError for blocks of unlike numbers of them. spacing in mm per axis; windows: the intensities shown as
    black and white, of all or of each channel (see windows_of, by default), which all blocks share; label_classes
    (background first) name the legend, which has the classes that are seen; captions stand under the last block's
    columns; aligned: every block is cut where the first block's volume of its column is. asked stands above the last
    block, which is cut at the same places and is shown with the outlines of maps too. Signals, which have a single
    axis, become `curves`, without maps.
    """
    if len(spacing) == 1:
        drawn = [(title, [image for image, _ in pictures]) for title, pictures in blocks]
        return curves([*drawn[:-1], ("Condition", asked.images), *drawn[-1:]], captions)
    asked, classes = asked.in_legend_of(label_classes)
    split = by_channel(blocks, len(spacing), channels)
    windows = windows_of(blocks, len(spacing), channels) if windows is None else windows
    known, sheets = known_affine(affine), []
    leading = split[0][0 if aligned and not asked.maps else -1][1]
    centres = [centre_of(values.shape[:len(spacing)], asked.maps[i] if asked.maps else label)
               for i, (values, label) in enumerate(leading)] if aligned or any(asked) else ()
    for parts, window in zip(split, np.broadcast_to(windows, (len(split), 2)).tolist(), strict=True):
        plain = [i == 0 or not plain_once for i in range(len(parts))]
        sheets += [Sheet(title, _columns(pictures, spacing, centres if aligned else (), known, first), window)
                   for first, (title, pictures) in zip(plain, parts[:-1])]
        if parts is split[0]:
            sheets += _asked_sheets(asked, spacing, centres, known)
        sheets += _drawn_sheets(*parts[-1], asked.maps, window, spacing, centres, known, plain[-1])
    legend = classes_seen(classes, [planes for sheet in sheets for planes in sheet.columns])
    return blocks_figure([(sheet.title, sheet.tiles()) for sheet in sheets], legend, captions,
                          plane_names(len(spacing), affine))


def new_figure(width: int, height: int, **settings: str) -> "Figure":
    """An empty dark figure of so many pixels."""
    from matplotlib.figure import Figure  # half a second of start-up, for those alone who draw

    return Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=BACKGROUND, **settings)


def curves(blocks: Sequence[tuple[str, Sequence[np.ndarray]]], captions: Sequence[str] = ()) -> "Figure":
    """Titled rows of signals [C,S] or [S], a column per signal and a line per channel, all on one scale.

    Captions stand under the last row; empty rows are left out.
    """
    shown = [(title, signals) for title, signals in blocks if len(signals)]
    columns = max(len(signals) for _, signals in shown)
    figure = new_figure(columns * (TILE + GAP) + 60, len(shown) * (TILE + 40), layout="constrained")
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
                  label_classes: Sequence[str] = (), asked: Asked = NOTHING_ASKED) -> "Figure":
    """Three orthogonal slices of one volume side by side (2D: one), image [C, *S] or [*S], named; with a label the
    same below with its overlay, and a legend of the label_classes (background first) that are seen. Below that, the
    same with the outlines of a map that is asked for, and each channel of a condition image.

    With an affine (RAS+, mm) the planes hang as radiologists hang them (superior or anterior up, the patient's right on
    the left); without, the lower of a plane's two axes runs downwards, as that of a 2D image with the identity does,
    which pictures have.
    """
    values = _with_channels(image, len(spacing))[0]
    affine = known_affine(affine) if len(spacing) == 2 else affine
    asked, classes = asked.in_legend_of(label_classes)
    map_ = asked.maps[0] if asked.maps else None
    centre = centre_of(values.shape, label if map_ is None else map_)
    window = window or window_of([(values, label)])
    rows = [(values, None, window, {})] + ([] if label is None else [(values, label, window, {})]) + \
        ([] if map_ is None else [(values, map_, window, LINES)]) + \
        [(channel, None, window_of([(channel, None)]), {}) for image in asked.images[:1] for channel in image]
    planes = [planes_of(shown, over, spacing, affine, centre) for shown, over, _, _ in rows]
    columns = [[tile_of(plane, window, **style) for plane, (*_, window, style) in zip(column, rows, strict=True)]
               for column in zip(*planes, strict=True)]
    names = [name for name, _ in plane_names(len(spacing), affine)]
    return blocks_figure([("", columns)], classes_seen(classes, planes), names)


def save_png(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(png_bytes(figure))


def png_bytes(figure: "Figure") -> bytes:
    """PNG bytes of a figure: the same bytes for the same figure."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # letters that the font lacks are boxes in the picture, not news for the terminal
        warnings.filterwarnings("ignore", r"Glyph \d+")
        figure.savefig(buffer, format="png", dpi=figure.dpi, facecolor=figure.get_facecolor(),
                       metadata={"Software": None})
    return buffer.getvalue()


# ---- what is shown ----


def windows_of(blocks: Sequence[Block], ndim: int, channels: Sequence[str] = ()) -> np.ndarray:
    """For each channel [C, 2], colours being one: minimum and WHITE percentile of the first block that is not empty."""
    return np.array([window_of(parts[0][1]) for parts in by_channel(blocks, ndim, channels)])


def by_channel(blocks: Sequence[Block], ndim: int, channels: Sequence[str]) -> list[list[Block]]:
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


# ---- sheets ----


def _asked_sheets(asked: Asked, spacing: Sequence[float], centres: Sequence[list[int]], affine: np.ndarray | None
                  ) -> list[Sheet]:
    """What was asked for: condition images channel by channel, each in a window of its own, and maps in solid colours.
    """
    block = ("Condition", [(image, None) for image in asked.images])
    parts = by_channel([block], len(spacing), asked.channels) if asked.images else []
    sheets = [Sheet(title, _columns(pictures, spacing, centres, affine), window_of(pictures))
              for ((title, pictures),) in parts]
    pictures = [(np.zeros(map_.shape, np.float32), map_) for map_ in asked.maps]
    if pictures:
        sheets.append(Sheet("Map asked for", _columns(pictures, spacing, centres, affine, False), (0, 1), **SOLID))
    return sheets


def _drawn_sheets(title: str, pictures: Sequence[Picture], maps: Sequence[np.ndarray], window: tuple[float, float],
                  spacing: Sequence[float], centres: Sequence[list[int]], affine: np.ndarray | None,
                  plain_first: bool) -> list[Sheet]:
    """The last block, and the same with the outlines of the maps that were asked for."""
    is_labelled = any(label is not None for _, label in pictures)
    sheets = [] if maps and not is_labelled else \
        [Sheet(title, _columns(pictures, spacing, centres, affine, plain_first), window)]
    if maps:
        within = [(image, map_) for (image, _), map_ in zip(pictures, maps, strict=True)]
        sheets.append(Sheet(f"{title}, outlines asked for", _columns(within, spacing, centres, affine, not is_labelled),
                            window, **LINES))
    return sheets


def _columns(pictures: Sequence[Picture], spacing: Sequence[float], centres: Sequence[list[int]],
             affine: np.ndarray | None, plain_first: bool = True) -> list[list[Plane]]:
    """The planes of every volume; where any of them has a label, the first plane without it comes first.

    centres: where columns are cut, as far as it is said.
    """
    columns = [planes_of(values, label, spacing, affine, centres[i] if i < len(centres) else None)
               for i, (values, label) in enumerate(pictures)]
    if not plain_first or all(label is None for _, label in pictures):
        return columns
    return [_plain_first(planes) for planes in columns]


def _plain_first(planes: list[Plane]) -> list[Plane]:
    """Planes after the first of them without its overlay, if it has one."""
    return planes if planes[0].label is None else [planes[0]._replace(label=None), *planes]


def classes_seen(label_classes: Sequence[str], columns: Sequence[Sequence[Plane]]) -> dict[int, str]:
    """Number and name of the classes, the background aside, that are seen in columns of planes."""
    seen = {int(value) for planes in columns for plane in planes if plane.label is not None
            for value in np.unique(plane.label)}
    return {value: shown_word(name) for value, name in enumerate(label_classes) if value and value in seen}


def _sheet(columns: list[list[np.ndarray]]) -> np.ndarray:
    """Put columns of tiles on a dark sheet, each tile centred in its cell."""
    heights = [max(column[i].shape[0] for column in columns) for i in range(len(columns[0]))]
    widths = [max(tile.shape[1] for tile in column) for column in columns]
    shape = (sum(heights) + GAP * (len(heights) - 1), sum(widths) + GAP * (len(widths) - 1), 3)
    sheet = np.broadcast_to(RGB, shape).copy()
    left = 0
    for column, width in zip(columns, widths):
        top = 0
        for tile, height in zip(column, heights):
            y, x = top + (height - tile.shape[0]) // 2, left + (width - tile.shape[1]) // 2
            sheet[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
            top += height + GAP
        left += width + GAP
    return sheet


def blocks_figure(blocks: list[tuple[str, list[list[np.ndarray]]]], legend: Mapping[int, str],
                   captions: Sequence[str], names: Sequence[tuple[str, str]] = ()) -> "Figure":
    """Titled sheets one above the other, captions under the last, a legend of classes (number: name) at the foot.

    names: of the last rows of every sheet, long and short; rows before them show the first of these. One figure pixel
    per sheet pixel.
    """
    sheets = [(title, _sheet(columns)) for title, columns in blocks]
    width = 2 * MARGIN + max([*(sheet.shape[1] for _, sheet in sheets), *map(_legend_width, legend.values()),
                              *(BOLD * len(shown_word(title)) for title, _ in sheets)])
    height = sum(sheet.shape[0] + (HEADING if title else MARGIN) for title, sheet in sheets)
    captions = [shown_lines(caption, max(FEWEST_LETTERS, max(tile.shape[1] for tile in column) // LETTER))
                for caption, column in zip(captions, blocks[-1][1])]
    lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    places = _legend_places(legend, width)
    height += LINE * lines + (LEGEND_LINE * (1 + max(places.values())[0]) + 27 if legend else MARGIN)
    figure = new_figure(width, height)
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


def _draw_names(figure: "Figure", columns: list[list[np.ndarray]], names: Sequence[tuple[str, str]], top: int) -> None:
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


def _draw_legend(figure: "Figure", legend: Mapping[int, str], places: Mapping[int, tuple[int, int]]) -> None:
    """Class names at the foot, each behind a dot of its colour."""
    width, height = figure.get_size_inches() * DPI
    last = max((line for line, _ in places.values()), default=0)
    for value, name in legend.items():
        line, x = places[value]
        y = 20 + LEGEND_LINE * (last - line)
        figure.text(x / width, y / height, "●", color=colour_of(value), fontsize=12, va="center")
        figure.text((x + 18) / width, y / height, name, color=TEXT, fontsize=11, va="center")
