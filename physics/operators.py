"""Linear operators of measurements: what is lost of an image, with the exact adjoint and the law of the noise.

The contract is deepinv's, so that its operators serve as well: `A(x)`, `A_adjoint(y)` and `noise_model`.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch.nn.functional import avg_pool2d, avg_pool3d

from edm3d.physics.noise_models import GaussianNoise, NoiseModel
from edm3d.utils.checks import check_count, check_finite, is_whole

_REACH = 4  # standard deviations to which a Gaussian is counted


class Operator(Protocol):
    """A measurement y = A(x) with noise, of images x [N,C,*S]."""

    noise_model: NoiseModel

    def A(self, x: torch.Tensor) -> torch.Tensor: ...
    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor: ...


def check_operator(operator: object) -> None:
    """ValueError naming what an object lacks to be an operator."""
    missing = [f"{name}({of})" for name, of in (("A", "x"), ("A_adjoint", "y"))
               if not callable(getattr(operator, name, None))]
    missing += [] if callable(getattr(operator, "noise_model", None)) else ["noise_model"]
    if missing:
        raise ValueError(f"operator {type(operator).__name__}: has no {', '.join(missing)}; wanted an object with "
                         "A(x), A_adjoint(y) and noise_model, as physics.operators.Downsample or those of deepinv")


class Downsample:
    """Means over blocks of `factor` voxels along each axis, or as many per axis.

    sigma: of Gaussian noise, where no other noise_model is given.
    """

    def __init__(self, factor: int | list[int], spatial_dims: int = 2, sigma: float = 0.05,
                 noise_model: NoiseModel | None = None):
        self.factor = per_axis("factor", factor, spatial_dims)
        check_count(1, {"factor": self.factor})
        self.noise_model = noise_model or GaussianNoise(sigma)

    def A(self, x: torch.Tensor) -> torch.Tensor:
        """[N,C,*S] -> [N,C,*(S / factor)]; ValueError for a size that the factor does not divide."""
        check_batch(x, len(self.factor), "Downsample")
        if any(size % factor for size, factor in zip(x.shape[2:], self.factor, strict=True)):
            raise ValueError(f"Downsample: factor {self.factor} does not divide images of {list(x.shape[2:])} voxels")
        return (avg_pool2d if len(self.factor) == 2 else avg_pool3d)(x, self.factor)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """Every value over its block, divided by the voxels of one."""
        check_batch(y, len(self.factor), "Downsample")
        for axis, factor in enumerate(self.factor, 2):
            y = y.repeat_interleave(factor, axis)
        return y / math.prod(self.factor)


class Inpaint:
    """Some voxels are seen, the others are 0.

    Exactly one says which: mask [*S], or what broadcasts to [N,C,*S], not 0 where seen; box, [first, end) per axis of
    the voxels that are lost; keep, the share that is seen, drawn from the seed for images of any size.
    """

    def __init__(self, mask: torch.Tensor | list | None = None, box: list[list[int]] | None = None,
                 keep: float | None = None, seed: int = 0, sigma: float = 0.05, noise_model: NoiseModel | None = None):
        if sum(given is not None for given in (mask, box, keep)) != 1:
            raise ValueError(f"Inpaint: mask {'given' if mask is not None else None}, box={box}, keep={keep}: wanted "
                             "exactly one of the three")
        if keep is not None and not 0 < keep <= 1:
            raise ValueError(f"Inpaint: keep={keep}: wanted a share above 0 and up to 1")
        if box is not None and not all(_is_span(span) for span in box):
            raise ValueError(f"Inpaint: box={box}: wanted [first, end] per axis, whole numbers with 0 <= first < end")
        self.seen = None if mask is None else torch.as_tensor(mask) != 0
        self.box, self.keep, self.seed = box, keep, seed
        self.noise_model = noise_model or GaussianNoise(sigma)
        self._kept: dict[tuple, torch.Tensor] = {}  # masks by shape, dtype and device

    def A(self, x: torch.Tensor) -> torch.Tensor:
        """x where it is seen."""
        key = tuple(x.shape), x.dtype, x.device
        if key not in self._kept:
            self._kept[key] = self.mask_of(x).to(x)
        return x * self._kept[key]

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """The same: the operator is its own adjoint."""
        return self.A(y)

    def mask_of(self, x: torch.Tensor) -> torch.Tensor:
        """Which voxels of a batch [N,C,*S] are seen, boolean, of a shape that broadcasts to it; ValueError if none."""
        shape = tuple(x.shape[2:])
        if self.keep is not None:
            return torch.rand(shape, generator=torch.Generator().manual_seed(self.seed)) < self.keep
        if self.box is not None:
            if len(self.box) != len(shape) or any(end > size for (_, end), size in zip(self.box, shape, strict=True)):
                raise ValueError(f"Inpaint: box={self.box} does not lie in images of {list(shape)} voxels")
            seen = torch.ones(shape, dtype=torch.bool)
            seen[tuple(slice(first, end) for first, end in self.box)] = False
            return seen
        try:
            fits = torch.broadcast_shapes(self.seen.shape, x.shape) == x.shape
        except RuntimeError:
            fits = False
        if not fits or self.seen.shape[-len(shape):] != shape:
            raise ValueError(f"Inpaint: a mask {list(self.seen.shape)} for images of {list(shape)} voxels")
        return self.seen


def _is_span(span: object) -> bool:
    return (isinstance(span, Sequence) and len(span) == 2 and all(map(is_whole, span)) and 0 <= span[0] < span[1])


class GaussianBlur:
    """Convolution with a Gaussian of `std` voxels along each axis, or as many per axis; beyond the border all is 0.

    sigma: of Gaussian noise, where no other noise_model is given.
    """

    def __init__(self, std: float | list[float], spatial_dims: int = 2, sigma: float = 0.05,
                 noise_model: NoiseModel | None = None):
        self.std = per_axis("std", std, spatial_dims)
        for value in self.std:
            check_finite("std", value, least=0)
        self.noise_model = noise_model or GaussianNoise(sigma)
        self._kept: dict[tuple, torch.Tensor] = {}  # matrices by size, standard deviation, dtype and device

    def A(self, x: torch.Tensor) -> torch.Tensor:
        """[N,C,*S] -> [N,C,*S]."""
        check_batch(x, len(self.std), "GaussianBlur")
        for std, size in zip(self.std, x.shape[2:], strict=True):
            check_blur("GaussianBlur: std", std, size, f"along this axis of images of {list(x.shape[2:])} voxels")
        for axis, std in enumerate(self.std, 2):
            if std > 0:
                key = x.shape[axis], std, x.dtype, x.device
                if key not in self._kept:
                    self._kept[key] = blur_matrix(x.shape[axis], std).to(x)
                x = (x.movedim(axis, -1) @ self._kept[key]).movedim(-1, axis)
        return x

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """The same: the operator is its own adjoint, as the Gaussian is even and the border 0."""
        return self.A(y)


def blur_matrix(size: int, std: float) -> torch.Tensor:
    """Convolution with a Gaussian (of sum 1, cut at 4 std) along an axis with zeros beyond it, [size,size] float64.

    ValueError for an std beyond the size.
    """
    check_blur("std", std, size, "the size of what is blurred")
    radius = max(1, math.ceil(_REACH * std))
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / std) ** 2)
    distance = (torch.arange(size)[:, None] - torch.arange(size)[None]).clamp(-radius - 1, radius + 1)
    return torch.nn.functional.pad(weights / weights.sum(), (1, 1))[distance + radius + 1]


def check_blur(name: str, std: float, size: int, what: str) -> None:
    """ValueError for a standard deviation beyond the size (`what`), where nothing is left but a constant."""
    if std > size:
        raise ValueError(f"{name}={std!r}: wanted at most {size}, {what}")


def per_axis(key: str, value: float | Sequence[float], spatial_dims: int) -> list:
    """One number for every axis, or a list of one each, as a list; ValueError for another length."""
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims={spatial_dims!r}: wanted 2 or 3")
    values = [value] * spatial_dims if isinstance(value, int | float) else list(value)
    if len(values) != spatial_dims:
        raise ValueError(f"{key}={values}: wanted one number, or {spatial_dims}, one per axis")
    return values


def check_batch(x: torch.Tensor, spatial_dims: int, what: str) -> None:
    """ValueError unless x is a batch [N,C,*S] of this many spatial dimensions."""
    if x.ndim != spatial_dims + 2:
        raise ValueError(f"{what}: images of shape {list(x.shape)}, wanted [N,C,*S] of {spatial_dims} spatial "
                         "dimensions; change spatial_dims")
