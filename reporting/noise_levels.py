"""Pictures by noise level: rows of one slice of a volume, a column for each level."""

from collections.abc import Sequence
from math import ceil

from matplotlib.figure import Figure

from edm3d.reporting.cases import Layout
from edm3d.reporting.montages import blocks_figure, by_channel, classes_seen, curves, windows_of
from edm3d.reporting.slices import Block, centre_of, known_affine, planes_of, tile_of
from edm3d.reporting.strips import COLUMNS


def noise_levels(blocks: Sequence[Block], layout: Layout, captions: Sequence[str]) -> list[Figure]:
    """Titled rows of volumes, a column for each caption, in pictures of a few columns each, one after another.

    All are cut at one place of the last axis, that of the middle of the last volume's label map, and in the window of
    the last volume of the first row; signals are lines.
    """
    size = ceil(len(captions) / ceil(len(captions) / COLUMNS))
    dims, last = len(layout.spacing), blocks[-1][1][-1:]
    parts = [slice(start, start + size) for start in range(0, len(captions), size)]
    if dims == 1:
        return [curves([(title, [image for image, _ in pictures[part]]) for title, pictures in blocks], captions[part])
                for part in parts]
    windows = windows_of([("", blocks[0][1][-1:])], dims, layout.channels).tolist()
    affine, centre = known_affine(layout.affine), centre_of(last[0][0].shape[-dims:], last[0][1])
    rows = [(title, [planes_of(*picture, layout.spacing, affine, centre)[:1] for picture in pictures], window)
            for channel, window in zip(by_channel(blocks, dims, layout.channels), windows, strict=True)
            for title, pictures in channel]
    legend = classes_seen(layout.label_classes, [planes for _, columns, _ in rows for planes in columns])
    return [blocks_figure([(title, [[tile_of(plane, window) for plane in planes] for planes in columns[part]])
                           for title, columns, window in rows], legend, captions[part]) for part in parts]
