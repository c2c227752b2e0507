"""One scale of activity per scan, told by its low dose alone, so that networks see doses in one unit."""

import torch

from edm3d.utils.checks import check_choice, check_finite, listed

KINDS = ("total", "quantile", "max")


class ActivityScale:
    """s [N], in units of activity, of low-dose images [N,1,*S]; networks see 2 x / s - 1 of both doses.

    total: factor times the mean of the image, which MLEM keeps to the noise of all counts. quantile: factor times the
    given quantile of the values above 0. max: factor times the highest value, which is noise; as files of
    before have it, each image by its own, and so not one scale for a pair. ValueError for images without activity.
    """

    def __init__(self, kind: str = "total", factor: float = 1.0, quantile: float = 0.99):
        check_choice("kind", kind, KINDS)
        check_finite("factor", factor, above=0)
        check_finite("quantile", quantile, above=0)
        if quantile > 1:
            raise ValueError(f"quantile={quantile!r}: wanted a share of at most 1")
        self.kind, self.factor, self.quantile = kind, factor, quantile

    def __call__(self, low: torch.Tensor) -> torch.Tensor:
        """The scale of every image; of max, of whatever images are to be scaled."""
        rows = low.flatten(1)
        wrong = ~(rows.isfinite().all(1) & (rows.amax(1) > 0) & (rows.amin(1) >= 0))
        if bool(wrong.any()):
            raise ValueError(f"images {listed(wrong.nonzero().ravel().tolist())} of the batch have no scale: wanted "
                             "finite activities of 0 or more, not all 0")
        if self.kind == "total":
            return self.factor * rows.mean(1)
        if self.kind == "max":
            return self.factor * rows.amax(1)
        return self.factor * torch.stack([row[row > 0].quantile(self.quantile) for row in rows])

    @staticmethod
    def to_network(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Activity [N,C,*S] -> 2 x / s - 1."""
        return 2 * x / _per_image(scale, x) - 1

    @staticmethod
    def from_network(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """2 x / s - 1 -> activity."""
        return (x + 1) / 2 * _per_image(scale, x)


def _per_image(scale: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return scale.to(x).reshape(-1, *[1] * (x.ndim - 1))
