"""What image values mean, and how networks and pictures see them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

FLOAT_MAX = float(np.finfo(np.float32).max)
PERCENTILES = re.compile(r"percentile ([0-9]+(?:\.[0-9]+)?(?:e-[0-9]+)?)-([0-9]+(?:\.[0-9]+)?(?:e-[0-9]+)?)")
_ArrayOrTensor = TypeVar("_ArrayOrTensor")


@dataclass(frozen=True)
class Intensity:
    """What image values mean: stored ones span [lo, hi], networks see [-1, 1]; `clip` = none lie outside."""

    lo: float
    hi: float
    clip: bool
    unit: str

    def __post_init__(self) -> None:
        if not -FLOAT_MAX <= self.lo < self.hi <= FLOAT_MAX:
            raise ValueError(f"intensity range [{self.lo}, {self.hi}]: lo must be less than hi, both finite in float32")

    def is_left_by(self, lo: float, hi: float) -> bool:
        """Whether images that span [lo, hi] break what the contract promises, by more than rounding."""
        slack = 1e-4 * (self.hi - self.lo)
        return self.clip and bool(lo < self.lo - slack or hi > self.hi + slack)

    def to_network(self, images: _ArrayOrTensor) -> _ArrayOrTensor:
        """Map [lo, hi] to [-1, 1]."""
        return (images - self.lo) * (2 / (self.hi - self.lo)) - 1

    def from_network(self, images: _ArrayOrTensor) -> _ArrayOrTensor:
        """Map [-1, 1] back to [lo, hi], clipped if the contract says so."""
        images = (images + 1) * ((self.hi - self.lo) / 2) + self.lo
        return images.clip(self.lo, self.hi) if self.clip else images

    def to_bytes(self, images: np.ndarray) -> np.ndarray:
        """Map [lo, hi] to whole numbers 0 to 255, clipped, as uint8."""
        return np.rint(np.clip((images - self.lo) * (255 / (self.hi - self.lo)), 0, 255)).astype(np.uint8)

    @classmethod
    def of_percentiles(cls, percentiles: Sequence[float], clip: bool) -> "Intensity":
        """That of images whose own percentiles were scaled to 0 and 1, each by itself."""
        return cls(0.0, 1.0, clip, f"percentile {percentiles[0]:g}-{percentiles[1]:g}")

    @property
    def percentiles(self) -> tuple[float, float] | None:
        """The percentiles of each image that became lo and hi, None where all are on one scale."""
        found = PERCENTILES.fullmatch(self.unit)
        if found is None:
            return None
        lo, hi = map(float, found.groups())
        return (lo, hi) if lo < hi <= 100 else None
