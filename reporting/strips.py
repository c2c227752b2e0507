"""Pictures of volumes for the page: montages of a few columns each, so that a narrow screen shows them legibly."""

from collections.abc import Iterator, Sequence
from math import ceil

from matplotlib.figure import Figure

from edm3d.formats.png import COLOURS
from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.montages import Picture, montage, window_of

COLUMNS = 4  # of a montage at most
Block = tuple[str, Sequence[Picture]]


def strips(name: str, blocks: Sequence[Block], layout: Layout, *, window: tuple[float, float] | None = None,
           captions: Sequence[str] = (), aligned: bool = False) -> dict[str, Figure]:
    """Montages NAME_1, NAME_2, ... of so many columns each, all in one window (see montage for the rest)."""
    count = max(len(pictures) for _, pictures in blocks)
    if not count:
        return {}
    size = ceil(count / ceil(count / COLUMNS))
    window = window or window_of(next(pictures for _, pictures in blocks if len(pictures)))
    return {f"{name}_{start // size + 1}": montage(
        [(title, pictures[start:start + size]) for title, pictures in blocks], layout.spacing, window=window,
        label_classes=layout.label_classes, channels=COLOURS if layout.channels == COLOURS else (),
        captions=captions[start:start + size], aligned=aligned, affine=layout.affine)
        for start in range(0, count, size)}


def channel_strips(name: str, sets: Sequence[tuple[str, Sequence[Case]]], layout: Layout) -> dict[str, Figure]:
    """Strips of sets of volumes by their titles: channel after channel, as NAME_CHANNEL_1, ..., each in its window."""
    return {key: figure for channel, place in by_channel(layout) for key, figure in strips(
        named(name, channel), [(titled(title, channel), [(case.image[place], case.label) for case in cases])
                               for title, cases in sets], layout).items()}


def by_channel(layout: Layout) -> Iterator[tuple[str, int | slice]]:
    """What is shown one after another: name of a channel, and its place in images.

    A single channel is not named; red, green and blue are one picture.
    """
    if len(layout.channels) == 1 or layout.channels == COLOURS:
        yield "", slice(None)
    else:
        yield from zip(layout.channels, range(len(layout.channels)))


def named(name: str, channel: str) -> str:
    """Of a figure of a channel."""
    return f"{name}_{channel}" if channel else name


def titled(title: str, channel: str) -> str:
    """Above a block of a channel."""
    return f"{title}, {channel}" if channel else title
