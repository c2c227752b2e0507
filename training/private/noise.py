"""Normal noise that nobody can draw again."""

import secrets
import ssl

import numpy as np
import torch

DRAWS = 4  # summed for each number: the last bits of one alone show what it was added to (Holohan and Braghin 2021)
SEED_BITS = 64


def secret_normal(like: torch.Tensor, std: float) -> torch.Tensor:
    """Normal numbers of a standard deviation, of the shape, type and device of a tensor.

    On a CPU of random bytes of OpenSSL's generator, which the system seeds: torch's there has a seed of 32 bits, few
    enough to try all. On other devices of torch's, with a new seed of 64 bits.
    """
    if like.device.type == "cpu":
        total = sum(torch.special.ndtri(secret_uniform(like.numel())) for _ in range(DRAWS))
        return (total * (std / DRAWS ** 0.5)).reshape(like.shape).to(like.dtype)
    generator = torch.Generator(like.device).manual_seed(secrets.randbits(SEED_BITS))
    return sum(torch.normal(0.0, std / DRAWS ** 0.5, like.shape, dtype=like.dtype, device=like.device,
                            generator=generator) for _ in range(DRAWS))


def secret_uniform(count: int) -> torch.Tensor:
    """Numbers [count] between 0 and 1, neither included, float64."""
    words = np.frombuffer(ssl.RAND_bytes(8 * count), np.uint64)
    return torch.from_numpy(((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0 ** -52)
