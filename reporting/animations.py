"""GIFs that go through the depth of volumes slice by slice, or through 2D images one by one; of a bounded size."""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from edm3d.reporting.cases import Layout
from edm3d.reporting.html import html_figure, html_missing
from edm3d.reporting.montages import blocks_figure, by_channel, classes_seen, windows_of
from edm3d.reporting.section import Context, missing
from edm3d.reporting.slices import Block, Plane, known_affine, plane_names, planes_of, tile_of
from edm3d.reporting.strips import evenly

SHOWN = {3: 3, 2: 24}  # volumes side by side, and 2D images one after another, at most
FRAMES = 24  # slices at most, evenly from the first to the last
MOST_BYTES = 3_000_000  # of a GIF
DEPTH_MS, SAMPLE_MS = 120, 600  # how long a slice, and a 2D image, is seen
NAME = "animation"  # of the file in a report
NO_SLICES = "signals (1D) have no slices to go through"
ROOM = ((1, 255), (1, 64), (2, 64), (4, 32))  # every how many-th frame, and colours, until a GIF fits
Columns = list[tuple[str, list[list[Plane]]]]  # planes of each volume, below a title


class Scene(NamedTuple):
    """What is seen at a time: of each channel titled blocks, and which slice or image it is."""

    channels: list[Columns]
    said: str


def animation(blocks: Sequence[Block], layout: Layout) -> bytes:
    """A GIF of titled blocks of volumes, the first three side by side, all cut at the same slice of the last axis,
    which is the depth; in 2D of images one after another, as many as all blocks have, 24 at most.

    In the windows, colours and hanging of `montage`; empty blocks are left out. Of more than FRAMES slices some are
    left out; a GIF of more than MOST_BYTES has fewer colours, then fewer slices, and then is smaller. ValueError for
    signals.
    """
    dims = len(layout.spacing)
    if dims == 1:
        raise ValueError(NO_SLICES)
    windows = windows_of(blocks, dims, layout.channels).tolist()
    scenes = list((through_depth if dims == 3 else one_by_one)([block for block in blocks if len(block[1])], layout))
    legend = classes_seen(layout.label_classes, [planes for scene in scenes for parts in scene.channels
                                                 for _, columns in parts for planes in columns])
    return packed([frame_of(scene, windows, legend) for scene in scenes], DEPTH_MS if dims == 3 else SAMPLE_MS)


# ---- in a report ----


def said_of(context: Context) -> dict[str, Any]:
    """The entry `animation` of report.json, where GIFs are wanted: that there is one, or why not."""
    return {} if not context.animate else {"animation": missing(NO_SLICES) if len(context.layout.spacing) == 1 else
                                           {"available": True}}


def in_report(context: Context, blocks: Sequence[Block]) -> dict[str, bytes]:
    """The GIF of a report, where one is wanted and there can be one."""
    is_there = said_of(context).get("animation", {}).get("available") and any(len(pictures) for _, pictures in blocks)
    return {NAME: animation(blocks, context.layout)} if is_there else {}


def html_animation(report: dict, figures: Mapping[str, bytes]) -> str:
    """Its part of the page; nothing where none is wanted."""
    if "animation" not in report:
        return ""
    return html_missing("Animation", report["animation"]) + (
        f'<div class="dark">{html_figure(NAME, figures)}</div>' if NAME in figures else "")


# ---- frames ----


def through_depth(blocks: Sequence[Block], layout: Layout) -> Iterator[Scene]:
    """The slices that are shown, each at the same share of every volume's depth."""
    shown = by_channel([(title, pictures[:SHOWN[3]]) for title, pictures in blocks], 3, layout.channels)
    depth = max(values.shape[2] for parts in shown for _, pictures in parts for values, _ in pictures)
    affine, name = known_affine(layout.affine), plane_names(3, layout.affine)[0][0]
    for place in evenly(depth, FRAMES):
        def cut(values: np.ndarray, label: np.ndarray | None, place: int = place) -> list[Plane]:
            at = round(place * (values.shape[2] - 1) / max(depth - 1, 1))
            return planes_of(values, label, layout.spacing, affine, (0, 0, at))[:1]

        yield Scene([[(title, [cut(*picture) for picture in pictures]) for title, pictures in parts]
                    for parts in shown], f"{name}, slice {place + 1:0{len(str(depth))}} of {depth}")


def one_by_one(blocks: Sequence[Block], layout: Layout) -> Iterator[Scene]:
    """2D images by number, those of all blocks together."""
    count = min(SHOWN[2], *(len(pictures) for _, pictures in blocks))
    for i in range(count):
        split = by_channel([(title, [pictures[i]]) for title, pictures in blocks], 2, layout.channels)
        yield Scene([[(title, [planes_of(*pictures[0], layout.spacing, known_affine(layout.affine))])
                     for title, pictures in parts] for parts in split], f"{i + 1:0{len(str(count))}} of {count}")


def frame_of(scene: Scene, windows: Sequence[tuple[float, float]], legend: dict[int, str]) -> Image.Image:
    """A scene as a picture; its first title says which it is."""
    sheets = [(title, [[tile_of(plane, window) for plane in planes] for planes in columns])
              for parts, window in zip(scene.channels, windows, strict=True) for title, columns in parts]
    sheets[0] = (f"{sheets[0][0]}: {scene.said}", sheets[0][1])
    canvas = FigureCanvasAgg(blocks_figure(sheets, legend, ()))
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def packed(frames: Sequence[Image.Image], milliseconds: int) -> bytes:
    """A GIF of frames that lasts as long however many of them there is room for."""
    for every, colours in ROOM:
        found = gif_bytes(frames[::every], colours, milliseconds * every)
        if len(found) <= MOST_BYTES:
            return found
    return packed([frame.resize((max(1, frame.width // 2), max(1, frame.height // 2)), Image.Resampling.BOX)
                   for frame in frames[::every]], milliseconds * every)


def gif_bytes(frames: Sequence[Image.Image], colours: int, milliseconds: int) -> bytes:
    """A GIF that goes on for ever, in colours that all frames share."""
    whole = Image.fromarray(np.concatenate([np.asarray(frame) for frame in frames[::max(1, len(frames) // 4)]]))
    palette = whole.quantize(colours, dither=Image.Dither.NONE)
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    out = io.BytesIO()
    first.save(out, "GIF", save_all=True, append_images=others, duration=milliseconds, loop=0)
    return out.getvalue()
