"""Numbers out of counters: each is a function of a key and its place, so those of all keys are made at once.

Philox4x32-10 (Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3): ten rounds make four words of 32 bits
of a counter and a key. The numbers are those of torch.func._random, which has a kernel of its own for them on CUDA.
"""

from collections.abc import Sequence
from functools import cache
from math import pi, prod

import torch

from edm3d.utils.tensors import tensor_on

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
STEPS = 0x9E3779B9, 0xBB67AE85  # by which the key changes from round to round
WORD = 0xFFFFFFFF
AT_A_TIME = 2 ** 16  # blocks of four words: what a pass over them needs stays in a cache, and memory small

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def philox(counter: Words, key: tuple[torch.Tensor, torch.Tensor]) -> Words:
    """Four words of a counter (four words) and a key (two): int64 in 0 .. 2^32 - 1, of shapes that go together."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]  # modulo 2^64, of which int64 has every bit
        c0, c1, c2, c3 = ((p1 >> 32) ^ c1 ^ k0) & WORD, p1, ((p0 >> 32) ^ c3 ^ k1) & WORD, p0
        k0, k1 = k0 + STEPS[0], k1 + STEPS[1]  # what is above the low 32 bits, here and in c1 and c3, is masked later
    return c0, c1 & WORD, c2, c3 & WORD


def uniform(seeds: Sequence[int], first: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device
            ) -> torch.Tensor:
    """Uniform in [0,1) [N,*shape], row i of the counters of seeds[i] (of 63 bits) from the block `first` on."""
    return _drawn("_philox_uniform_", _uniform, seeds, first, shape, dtype, device)


def normal(seeds: Sequence[int], first: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device
           ) -> torch.Tensor:
    """Unit normal [N,*shape] by Box and Muller, likewise."""
    return _drawn("_philox_normal_", _normal, seeds, first, shape, dtype, device)


def blocks(shape: Sequence[int], dtype: torch.dtype) -> int:
    """How many blocks of four words numbers [*shape] take: two words each in float64, else one."""
    return -(-prod(shape) // (2 if dtype == torch.float64 else 4))


def _uniform(words: Words, dtype: torch.dtype) -> list[torch.Tensor]:
    """Numbers in [0,1) of blocks: the low bits of each word, or pair of words, as many as dtype holds."""
    if dtype == torch.float64:
        words = words[0] << 32 | words[1], words[2] << 32 | words[3]
    bits = 53 if dtype == torch.float64 else 24
    return [(word & 2 ** bits - 1).to(dtype) * 2.0 ** -bits for word in words]


def _normal(words: Words, dtype: torch.dtype) -> list[torch.Tensor]:
    """Unit normal numbers of blocks, by pairs of uniform ones in (0,1], so that there is no logarithm of 0."""
    u = [word.to(dtype) * 2.0 ** -32 for word in words]
    u = [u[0] + u[1] * 2.0 ** -32, u[2] + u[3] * 2.0 ** -32] if dtype == torch.float64 else u
    least, drawn = 2.0 ** (-65 if dtype == torch.float64 else -33), []
    for a, b in zip(u[::2], u[1::2], strict=True):
        radius, angle = (-2 * (a + least).log()).sqrt(), 2 * pi * (b + least)
        drawn += [radius * angle.cos(), radius * angle.sin()]
    return drawn


@cache
def has_kernels(device: torch.device) -> bool:
    """Whether torch has kernels of its own there that give these numbers: they are no settled part of it."""
    checked = [3, 2 ** 62 + 1], 2 ** 32 - 1, (9,)
    try:
        return all(torch.allclose(_by_kernel(kernel, *checked, dtype, device),
                                  _by_words(of_words, *checked, dtype, device), atol=1e-4)
                   for kernel, of_words in (("_philox_uniform_", _uniform), ("_philox_normal_", _normal))
                   for dtype in (torch.float32, torch.float64))
    except (AttributeError, RuntimeError):
        return False


def _drawn(kernel, of_words, seeds: Sequence[int], first: int, shape: Sequence[int], dtype: torch.dtype,
           device: torch.device) -> torch.Tensor:
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    if device.type == "cuda" and has_kernels(device):
        return _by_kernel(kernel, seeds, first, shape, exact, device).to(dtype)
    return _by_words(of_words, seeds, first, shape, exact, device).to(dtype)


def _by_kernel(kernel: str, seeds: Sequence[int], first: int, shape: Sequence[int], dtype: torch.dtype,
               device: torch.device) -> torch.Tensor:
    keys = tensor_on(device, [[seed, first] for seed in seeds]).view(torch.uint64)
    return getattr(torch, kernel)(torch.empty(len(seeds), *shape, dtype=dtype, device=device),
                                  keys.reshape(len(seeds), *[1] * len(shape), 2))


def _by_words(of_words, seeds: Sequence[int], first: int, shape: Sequence[int], dtype: torch.dtype,
              device: torch.device) -> torch.Tensor:
    keys = tensor_on(device, seeds)[:, None]
    key, count, zero = (keys & WORD, keys >> 32), blocks(shape, dtype), torch.zeros_like(keys)
    parts, step = [], max(1, AT_A_TIME // len(seeds))
    for start in range(first, first + count, step):
        place = torch.arange(start, min(start + step, first + count), device=device)[None]
        words = philox((place & WORD, place >> 32, zero, zero), key)
        parts.append(torch.stack(of_words(words, dtype), dim=-1).flatten(1))
    return torch.cat(parts, dim=1)[:, :prod(shape)].reshape(len(seeds), *shape)
