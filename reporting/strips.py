"""Pictures of volumes for the page: montages of a few columns each, so that a narrow screen shows them legibly."""

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from edm3d.reporting.cases import Case, Layout
from edm3d.reporting.montages import montage, windows_of
from edm3d.reporting.slices import Block, Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 4  # of a montage at most


def strips(name: str, blocks: Sequence[Block], layout: Layout, *, windows: np.ndarray | None = None,
           captions: Sequence[str] = (), aligned: bool = False, plain_once: bool = False) -> dict[str, "Figure"]:
    """Montages NAME_1, NAME_2, ... of so many columns each, all in the same windows (see montage for the rest)."""
    count = max(len(pictures) for _, pictures in blocks)
    if not count:
        return {}
    size = ceil(count / ceil(count / COLUMNS))
    windows = windows_of(blocks, len(layout.spacing), layout.channels) if windows is None else windows
    return {f"{name}_{start // size + 1}": montage(
        [(title, pictures[start:start + size]) for title, pictures in blocks], layout.spacing, windows=windows,
        label_classes=layout.label_classes, channels=layout.channels, captions=captions[start:start + size],
        aligned=aligned, affine=layout.affine, plain_once=plain_once) for start in range(0, count, size)}


def evenly(count: int, most: int) -> list[int]:
    """Numbers from 0 to count - 1, so many at most, from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def pictures_of(cases: Sequence[Case]) -> list[Picture]:
    """Images and label maps of volumes."""
    return [(case.image, case.label) for case in cases]
