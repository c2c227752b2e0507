"""How far an output of a UNet sees along an axis: its layers walked backwards, from an output to what it needs."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

Span = tuple[int, int]  # first and last position


class Walk(NamedTuple):
    """A UNet along one axis, without attention or norms over space.

    reach: positions to each side that a convolution of a level sees; strides: from each level to the next; margin: how
    far the resampling filter sees beyond the positions that a stride puts together.
    """

    reach: Sequence[int]
    strides: Sequence[int]
    margin: int
    num_blocks: int
    decoder: str = "standard"

    def receptive_field(self, cell: int) -> int:
        """Voxels to the side to which an output depends on most, where so many voxels are a position of level 0.

        Where an output lies in the cells of the lowest level decides on how far it sees, so that all places are tried.
        """
        widest = 0
        for place in range(prod(self.strides)):
            first, last = self.seen((place, place))
            widest = max(widest, (place - first) * cell, (last - place) * cell)
        return widest + cell - 1

    def seen(self, out: Span) -> Span:
        """Positions of the input that those of the output are made of, as if there were no borders."""
        x, skips = self.before_decoder(out)
        return self.before_encoder(x, skips)

    def before_decoder(self, out: Span) -> tuple[Span, list[Span]]:
        """What the decoder needs of its input, and of the encoder's features in their order."""
        x, image, skips, last = out, out, [], len(self.strides)
        for level, reach in enumerate(self.reach):
            if level == 0 or self.decoder == "skip":
                x = hull(x, widen(image, reach))
            for _ in range(self.num_blocks + 1):
                x = widen(x, 2 * reach)
                skips.append(x)
            x = widen(x, 4 * reach if level == last else 2 * reach)  # two blocks of the bottleneck, or one that goes up
            if level < last:
                x, image = self.before_up(x, level), self.before_up(image, level)
        return x, skips

    def before_encoder(self, x: Span, skips: list[Span]) -> Span:
        """What the encoder needs of its input for features of which these are needed.

        Images that go beside the features (SongUNet's `encoder`) pass through no more than the features do.
        """
        for level in reversed(range(len(self.reach))):
            for _ in range(self.num_blocks):
                x = widen(hull(x, skips.pop()), 2 * self.reach[level])
            x = hull(x, skips.pop())
            if level:
                x = self.before_down(widen(x, 2 * self.reach[level]), level - 1)
        return widen(x, self.reach[0])

    def before_up(self, span: Span, level: int) -> Span:
        """Positions of the level below that up-sampled ones of a level are made of."""
        stride, (first, last) = self.strides[level], span
        margin = self.margin if stride > 1 else 0
        return -((margin + stride - 1 - first) // stride), (last + margin) // stride

    def before_down(self, span: Span, level: int) -> Span:
        """Positions of a level that down-sampled ones of the level below are made of."""
        stride, (first, last) = self.strides[level], span
        margin = self.margin if stride > 1 else 0
        return first * stride - margin, last * stride + stride - 1 + margin


def widen(span: Span, by: int) -> Span:
    """A span with so many more positions on either side."""
    return span[0] - by, span[1] + by


def hull(a: Span, b: Span) -> Span:
    """The span from the first of all positions to the last."""
    return min(a[0], b[0]), max(a[1], b[1])
