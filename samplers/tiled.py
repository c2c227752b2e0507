"""A network that is evaluated tile by tile, with halos as wide as it sees, so that the result is that of the whole."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch

from edm3d.networks.conditioning import Condition
from edm3d.networks.layers import check_divides, per_axis
from edm3d.networks.parts import PARTS
from edm3d.samplers.denoiser import Denoiser, Wrapper


class Cut(NamedTuple):
    """Along one axis: what a network is shown, and what of that is kept, counted in voxels of the whole."""

    shown: slice
    kept: slice

    @property
    def inner(self) -> slice:
        """What is kept, counted in what is shown."""
        return slice(self.kept.start - self.shown.start, self.kept.stop - self.shown.start)

    def scaled(self, factor: int) -> slice:
        """What is shown, in a grid of so many voxels per voxel."""
        return slice(self.shown.start * factor, self.shown.stop * factor)


class OnGrid(NamedTuple):
    """A part of a condition [N,..,*S] that lies on the grid, factor times that of x.

    there [N]: whether there is an image at all. Networks see it by values other than 0 anywhere in the image
    (networks/grids.py), so that a part of it without any must not look like none.
    """

    rows: torch.Tensor
    factor: tuple[int, ...]
    there: torch.Tensor | None

    def part(self, pieces: Sequence[Cut]) -> torch.Tensor:
        """What of it a tile is told. Of an image that is there, but is 0 in the tile, one voxel becomes the least
        number above 0, which is nothing else to the network.
        """
        part = self.rows[(..., *(piece.scaled(f) for piece, f in zip(pieces, self.factor, strict=True)))]
        if self.there is None:
            return part
        part, corner = part.clone(), (slice(None), *[0] * (part.ndim - 1))
        lost = self.there & ~(part != 0).flatten(1).any(1)
        part[corner] = torch.where(lost, torch.finfo(part.dtype).tiny, part[corner])
        return part


class Tiled(Wrapper):
    """D of a network in tiles of a size [*S] each, which agree with the whole but for rounding.

    A tile is a part that is kept and, where the volume goes on, a halo of the network's receptive field; it ends where
    the volume ends, so that both see the same zeros there. Maps and images of a condition are cut alike. All tiles of a
    volume are equally large, along axes on which it fits as long as itself; what fits in one tile is one call.

    It wraps the network itself (a preconditioner); guidance and other wrappers go around it. ValueError for a network
    whose receptive field is all it is given, and in a call for a tile that leaves nothing within its halos.
    """

    def __init__(self, net: Denoiser, tile: Sequence[int]):
        super().__init__(net)
        field, factor = getattr(net, "receptive_field", None), getattr(net, "factor", None)
        if field is None or factor is None:
            raise ValueError("tiles: the network sees all of a volume at once, by attention or by norms over space, or "
                             "does not say how far; wanted one trained with norm=voxel, "
                             "attention_levels=[] and bottleneck_attention=false")
        self.factor = tuple(factor)
        self.asked = per_axis(tile, len(self.factor), "tile")
        self.tile = tuple(t // f * f for t, f in zip(self.asked, self.factor, strict=True))
        self.halo = tuple(-(-reach // f) * f for reach, f in zip(field, self.factor, strict=True))
        self.grid_factor = tuple(getattr(net, "grid_factor", None) or (1,) * len(self.factor))

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: Condition | None = None,
                 augment_labels: torch.Tensor | None = None, estimate: torch.Tensor | None = None) -> torch.Tensor:
        size, told = x.shape[2:], () if estimate is None else (estimate,)
        tiles = list(self.pieces(size))
        if len(tiles) == 1:
            return self.net(x, sigma, condition, augment_labels, *told)
        on_grid, out = self.on_grid(condition, size), None
        for pieces in tiles:
            shown = tuple(piece.shown for piece in pieces)
            cropped = condition if condition is None else condition.replace(
                **{name: grid.part(pieces) for name, grid in on_grid.items()})
            part = self.net(x[(..., *shown)], sigma, cropped, augment_labels, *(each[(..., *shown)] for each in told))
            out = part.new_empty(*part.shape[:2], *size) if out is None else out
            out[(..., *(piece.kept for piece in pieces))] = part[(..., *(piece.inner for piece in pieces))]
        return out

    def pieces(self, size: Sequence[int]) -> Iterator[tuple[Cut, ...]]:
        """The tiles of a volume [*S], one piece for each axis; ValueError where it cannot be cut."""
        check_divides(size, self.factor, "tiles")
        small = [axis for axis, s in enumerate(size) if s > self.tile[axis] < self.least[axis]]
        if small:
            least = [min(s, n) for s, n in zip(size, self.least, strict=True)]
            raise ValueError(f"tile={list(self.asked)}: the network sees {list(self.halo)} voxels to each side (as "
                             f"multiples of {list(self.factor)}, by which its sizes divide), so that it is to be "
                             f"{least} or larger for a volume of {list(size)}")
        return product(*map(cuts, size, self.tile, self.halo))

    @property
    def least(self) -> tuple[int, ...]:
        """The smallest tile of a volume of any size."""
        return tuple(2 * h + f for h, f in zip(self.halo, self.factor, strict=True))

    def on_grid(self, condition: Condition | None, size: Sequence[int]) -> dict[str, OnGrid]:
        """What of a condition is cut, of a volume [*S]: maps and images, these on the grid of x too."""
        found = {}
        for name, rows in (condition or {}).items():
            if PARTS[name].grid:
                full = tuple(s * f for s, f in zip(size, self.grid_factor, strict=True))
                if tuple(rows.shape[-len(size):]) not in (full, tuple(size)):
                    raise ValueError(f"tiles: got condition.{name} of {list(rows.shape[-len(size):])} for a volume of "
                                     f"{list(size)}, wanted {list(full)}")
                found[name] = OnGrid(rows, tuple(n // s for n, s in zip(rows.shape[-len(size):], size, strict=True)),
                                     (rows != 0).flatten(1).any(1) if name == "images" else None)
        return found


def cuts(size: int, tile: int, halo: int) -> list[Cut]:
    """An axis in tiles that overlap by two halos, the last by more; all of it where it fits in one."""
    if size <= tile:
        return [Cut(slice(0, size), slice(0, size))]
    count = -(-(size - 2 * halo) // (tile - 2 * halo))
    starts = [min(i * (tile - 2 * halo), size - tile) for i in range(count)]
    ends = [0, *(start + halo for start in starts[1:]), size]
    return [Cut(slice(start, start + tile), slice(*ends[i:i + 2])) for i, start in enumerate(starts)]
