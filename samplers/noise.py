"""Noise by image: what is drawn for an image depends on its own number, never on its neighbours."""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import torch

from edm3d.samplers import philox

GENERATORS, COUNTERS = SCHEMES = "generators", "counters"


class Noise(Protocol):
    """A source of random numbers for a batch of images: ImageGenerators, or torch's global generator."""

    keys: Sequence[int]

    def for_purpose(self, purpose: str) -> "Noise": ...
    def randn(self, shape: Sequence[int]) -> torch.Tensor: ...
    def rand(self, shape: Sequence[int]) -> torch.Tensor: ...
    def randn_like(self, x: torch.Tensor) -> torch.Tensor: ...
    def gamma(self, alpha: torch.Tensor) -> torch.Tensor: ...
    def poisson(self, rate: torch.Tensor) -> torch.Tensor: ...
    def binomial(self, count: torch.Tensor, prob: float) -> torch.Tensor: ...


def mix_seed(*parts: object) -> int:
    """A 63-bit seed from any printable parts, the same on every machine."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def scheme_on(device: torch.device) -> str:
    """How the noise of what is new is drawn on a device: by counters where torch makes that of all images in a kernel.
    """
    return COUNTERS if device.type == "cuda" and philox.has_kernels(device) else GENERATORS


class ImageGenerators:
    """Random numbers for a batch, row i from the generator of keys[i] (a seed or a position in the data stream).

    `for_purpose(name)` gives independent streams for independent uses, so that a new use never shifts another. signs:
    1 or -1 of each row, by which its normal numbers are multiplied; None: 1. scheme: how uniform and normal numbers are
    drawn, other ones by each: by a generator of torch for each row (None, too), or those of all rows at once by
    counters (samplers/philox.py). Gamma variates and counts, which have no closed form, are of generators in both.
    """

    def __init__(self, keys: Sequence[int], *, seed: int = 0, purpose: str = "", device: torch.device | str = "cpu",
                 signs: Sequence[int] | None = None, scheme: str | None = None):
        self.keys, self.seed, self.purpose, self.device = list(keys), seed, purpose, torch.device(device)
        self.signs = None if signs is None else torch.tensor(signs, device=self.device)
        self.scheme, self.blocks = scheme or GENERATORS, 0  # of counters that are used up

    @cached_property
    def seeds(self) -> list[int]:
        """Of each row's generator."""
        return [mix_seed(self.seed, self.purpose, k) for k in self.keys]

    @cached_property
    def generators(self) -> list[torch.Generator]:
        """One for each row."""
        return [torch.Generator(self.device).manual_seed(seed) for seed in self.seeds]

    def for_purpose(self, purpose: str) -> "ImageGenerators":
        """Fresh generators for the same images and another use."""
        return ImageGenerators(self.keys, seed=self.seed, purpose=purpose, device=self.device, scheme=self.scheme,
                               signs=None if self.signs is None else self.signs.tolist())

    def on_host(self) -> "ImageGenerators":
        """Fresh generators on the CPU, for what the host goes by: it need not wait for a GPU. By any scheme the same.
        """
        return ImageGenerators(self.keys, seed=self.seed, purpose=self.purpose)

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Unit normal [N,*shape]."""
        drawn = self._draw(torch.randn, philox.normal, shape, dtype)
        return drawn if self.signs is None else drawn * self.signs.reshape(-1, *[1] * len(shape))

    def rand(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Uniform in [0,1) [N,*shape]."""
        return self._draw(torch.rand, philox.uniform, shape, dtype)

    def randn_like(self, x: torch.Tensor) -> torch.Tensor:
        """Unit normal of the shape and dtype of x, on its device."""
        return self.randn(x.shape[1:], x.dtype).to(x.device)

    def gamma(self, alpha: torch.Tensor) -> torch.Tensor:
        """Gamma variates of shape alpha [N,*shape] and rate 1, with gradients to alpha (Figurnov et al. 2018)."""
        rows = zip(alpha.to(self.device), self.generators, strict=True)
        return torch.stack([torch._standard_gamma(row, generator=g) for row, g in rows]).to(alpha.device)

    def poisson(self, rate: torch.Tensor) -> torch.Tensor:
        """Poisson counts of the mean `rate` [N,*shape], of its dtype and on its device."""
        rows = zip(rate.to(self.device), self.generators, strict=True)
        return torch.stack([torch.poisson(row, generator=g) for row, g in rows]).to(rate.device)

    def binomial(self, count: torch.Tensor, prob: float) -> torch.Tensor:
        """How many of `count` [N,*shape] are kept, each with the probability `prob`; dtype and device of count."""
        rows = zip(count.to(self.device), self.generators, strict=True)
        return torch.stack([_binomial(row, prob, g) for row, g in rows]).to(count.device)

    def _draw(self, by_generator: Callable[..., torch.Tensor], by_counters: Callable[..., torch.Tensor],
              shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        if self.scheme == COUNTERS:
            first, self.blocks = self.blocks, self.blocks + philox.blocks(shape, dtype)
            return by_counters(self.seeds, first, shape, dtype, self.device)
        return torch.stack([by_generator(tuple(shape), dtype=dtype, device=self.device, generator=g)
                            for g in self.generators])


class GlobalNoise:
    """Random numbers for a batch like `images` from torch's global generator, one stream for all purposes."""

    def __init__(self, images: torch.Tensor):
        self.keys, self.device = range(len(images)), images.device

    def for_purpose(self, purpose: str) -> "GlobalNoise":
        """Itself: what is drawn depends on the order of the calls."""
        return self

    def randn(self, shape: Sequence[int]) -> torch.Tensor:
        """Unit normal [N,*shape]."""
        return torch.randn([len(self.keys), *shape], device=self.device)

    def rand(self, shape: Sequence[int]) -> torch.Tensor:
        """Uniform in [0,1) [N,*shape]."""
        return torch.rand([len(self.keys), *shape], device=self.device)

    def randn_like(self, x: torch.Tensor) -> torch.Tensor:
        """Unit normal of the shape and dtype of x, on its device."""
        return torch.randn_like(x)

    def gamma(self, alpha: torch.Tensor) -> torch.Tensor:
        """Gamma variates of shape alpha [N,*shape] and rate 1, with gradients to alpha (Figurnov et al. 2018)."""
        return torch._standard_gamma(alpha)

    def poisson(self, rate: torch.Tensor) -> torch.Tensor:
        """Poisson counts of the mean `rate` [N,*shape], of its dtype and on its device."""
        return torch.poisson(rate)

    def binomial(self, count: torch.Tensor, prob: float) -> torch.Tensor:
        """How many of `count` [N,*shape] are kept, each with the probability `prob`; dtype and device of count."""
        return _binomial(count, prob)


def _binomial(count: torch.Tensor, prob: float, generator: torch.Generator | None = None) -> torch.Tensor:
    return torch.binomial(count, torch.full_like(count, prob), generator=generator)
