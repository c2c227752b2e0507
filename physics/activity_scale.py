"""One scale of activity per scan, told by its low dose alone, so that networks see doses in one unit."""

import math

import torch
from torch.nn.functional import avg_pool2d

from edm3d.utils.checks import check_choice, check_finite, listed

FARTHEST = 1e6  # of a factor, and its inverse the least, so that scales are numbers of float32
KINDS = ("peak", "total", "quantile", "max")


class ActivityScale:
    """s [N], in units of activity, of low-dose images [N,1,*S]; networks see 2 x / s - 1 of both doses.

    kind: what is multiplied by `factor`. peak: the highest mean over 3 x 3 pixels of a slice. total: the mean of the
    image, which MLEM keeps to the noise of all counts, but which knows nothing of how much of the image is empty.
    quantile: that of the values above 0. max: the highest value, which is the noise of one pixel; for data scaled
    image by image, where it is asked for low and high dose apart and units are lost (low 1.25 times high in the mean).
    ValueError for images without activity.
    """

    def __init__(self, kind: str = "peak", factor: float = 1.2, quantile: float = 0.99):
        check_choice("kind", kind, KINDS)
        check_finite("factor", factor, least=1 / FARTHEST)
        if factor > FARTHEST:
            raise ValueError(f"factor={factor!r}: wanted {FARTHEST:g} or less")
        check_finite("quantile", quantile, above=0)
        if quantile > 1:
            raise ValueError(f"quantile={quantile!r}: wanted a share of at most 1")
        self.kind, self.factor, self.quantile = kind, factor, quantile

    def __call__(self, low: torch.Tensor) -> torch.Tensor:
        """The scale of every image."""
        rows = low.flatten(1)
        wrong = ~(rows.isfinite().all(1) & (rows.amax(1) > 0) & (rows.amin(1) >= 0))
        if bool(wrong.any()):
            raise ValueError(f"images {listed(wrong.nonzero().ravel().tolist())} of the batch have no scale: wanted "
                             "finite activities of 0 or more, not all 0")
        if self.kind == "peak":
            return self.factor * avg_pool2d(low.flatten(1, -3), 3, stride=1, padding=1).amax((1, 2, 3))
        if self.kind == "total":
            return self.factor * rows.mean(1)
        if self.kind == "max":
            return self.factor * rows.amax(1)
        return self.factor * torch.stack([_quantile(row[row > 0], self.quantile) for row in rows])

    @staticmethod
    def to_network(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Activity [N,C,*S] -> 2 x / s - 1."""
        return 2 * x / _per_image(scale, x) - 1

    @staticmethod
    def from_network(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """2 x / s - 1 -> activity."""
        return (x + 1) / 2 * _per_image(scale, x)


def _quantile(values: torch.Tensor, share: float) -> torch.Tensor:
    """That of values [n], linear between neighbours as torch.quantile, which takes no more than 2^24 of them."""
    last = len(values) - 1
    rank = min(float(values.new_tensor(share) * last), last)
    below, above = (values.kthvalue(place + 1).values for place in (math.floor(rank), math.ceil(rank)))
    return torch.lerp(below, above, rank - math.floor(rank))


def _per_image(scale: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return scale.to(x).reshape(-1, *[1] * (x.ndim - 1))
