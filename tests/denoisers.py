"""Denoisers whose answers are known, and the reference runs of samplers on one of them."""

import json
from collections.abc import Callable
from functools import partial
from math import inf

import numpy as np
import torch

F64 = torch.float64


class Denoiser:
    """A denoiser from a formula, with the attributes that samplers ask of a network; keeps what it was asked.

    `table`: the levels it knows, None = all; 0 may be among them, as a level that churn may round to.
    """

    def __init__(self, formula, sigma_min: float = 0, sigma_max: float = inf, table: list[float] | None = None):
        self.formula, self.sigma_min, self.sigma_max = formula, sigma_min, sigma_max
        self.table = None if table is None else torch.as_tensor(table, dtype=F64)
        self.sigmas: list[float] = []
        self.conditions: list = []

    def __call__(self, x, sigma, condition=None):
        self.sigmas.append(float(sigma))
        self.conditions.append(condition)
        return self.formula(x, sigma)

    @property
    def noise_table(self) -> torch.Tensor | None:
        return None if self.table is None else self.table[self.table > 0].sort(descending=True).values

    def round_sigma(self, sigma):
        sigma = torch.as_tensor(sigma)
        if self.table is None:
            return sigma
        return self.table[(sigma.reshape(-1, 1) - self.table).abs().argmin(1)].reshape(sigma.shape)


def gaussian(sd: float, mean: float = 0) -> Denoiser:
    """The perfect denoiser of data N(mean, sd^2)."""
    return Denoiser(lambda x, sigma: mean + (x - mean) * sd ** 2 / (sd ** 2 + sigma ** 2))


def random_draws(seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """A randn_like with a stream of its own."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator)


def mixture(vectors: dict[str, np.ndarray], x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Posterior mean of the reference's mixture of isotropic Gaussians, in float64."""
    means, stds, weights = (torch.from_numpy(vectors[f"denoiser/{k}"]) for k in ("means", "stds", "weights"))
    x, total = x.to(F64), stds ** 2 + torch.as_tensor(sigma, dtype=F64).reshape(-1, 1) ** 2
    square = (x[:, None] - means[None]).square().flatten(2).sum(2)
    share = (weights.log() - square / (2 * total) - means[0].numel() / 2 * total.log()).softmax(1)
    gain = (stds ** 2 / total)[..., None, None, None]
    return (share[..., None, None, None] * (means + gain * (x[:, None] - means))).sum(1)


def assert_reference_run(vectors: dict[str, np.ndarray], name: str, sampler: Callable[..., torch.Tensor]) -> None:
    """The sampler under the settings of a reference run visits its noise levels, its states and its end."""
    wanted = {k: vectors[f"sampler/{name}/{k}"] for k in ("config", "net_sigma", "x_cur", "x")}
    config = json.loads(str(wanted["config"]))
    net = Denoiser(partial(mixture, vectors), **config["net"])
    draws, ends = iter(torch.from_numpy(vectors["sampler_noise"])), []
    x = sampler(net, torch.from_numpy(vectors["sampler_latents"]), randn_like=lambda _: next(draws),
                callback=lambda i, x, D_x: ends.append(x), **config["kwargs"])
    np.testing.assert_allclose(net.sigmas, wanted["net_sigma"], rtol=1e-12, err_msg=name)
    assert torch.equal(ends[-1], x), name
    assert_same_images(torch.stack(ends), np.concatenate([wanted["x_cur"][1:], wanted["x"][None]]), name)


def assert_same_images(got: torch.Tensor, wanted: np.ndarray, name: str) -> None:
    """[..., 1, 4, 4], each image within 1e-10 of its own maximum."""
    assert got.shape == wanted.shape, name
    error = np.abs(got.numpy() - wanted).max((-3, -2, -1)) / np.abs(wanted).max((-3, -2, -1))
    assert error.max() <= 1e-10, (name, error.max())
