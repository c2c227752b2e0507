"""Pictures by noise level: rows of one slice of a volume, a column for each level."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from edm3d.reporting.cases import Layout
from edm3d.reporting.montages import blocks_figure, by_channel, classes_seen, curves, windows_of
from edm3d.reporting.slices import Block, centre_of, known_affine, planes_of, tile_of


def noise_levels(blocks: Sequence[Block], layout: Layout, captions: Sequence[str]) -> Figure:
    """Titled rows of volumes, a column for each caption, all cut at one place of the last axis, that of the middle of
    the last volume's label map, and in the window of the last volume of the first row; signals are lines.
    """
    dims, last = len(layout.spacing), blocks[-1][1][-1:]
    if dims == 1:
        return curves([(title, [image for image, _ in pictures]) for title, pictures in blocks], captions)
    windows = windows_of([("", blocks[0][1][-1:])], dims, layout.channels)
    affine, centre = known_affine(layout.affine), centre_of(last[0][0].shape[-dims:], last[0][1])
    sheets, planes = [], []
    for parts, window in zip(by_channel(blocks, dims, layout.channels), windows.tolist(), strict=True):
        for title, pictures in parts:
            columns = [planes_of(*picture, layout.spacing, affine, centre)[:1] for picture in pictures]
            sheets.append((title, [[tile_of(plane, window) for plane in column] for column in columns]))
            planes += columns
    return blocks_figure(sheets, classes_seen(layout.label_classes, planes), captions)
