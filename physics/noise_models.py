"""Laws of noise of measurements, and their variance: what operators have as `noise_model`."""

from typing import Protocol

import torch

from edm3d.utils.checks import check_finite


class RandomNumbers(Protocol):
    """What laws of noise ask of a source of random numbers, as samplers.noise.Noise is."""

    def randn_like(self, x: torch.Tensor) -> torch.Tensor: ...
    def poisson(self, rate: torch.Tensor) -> torch.Tensor: ...


class NoiseModel(Protocol):
    """A noisy y of y, and the variance of a measurement whose mean is y."""

    def __call__(self, y: torch.Tensor, noise: RandomNumbers | None = None) -> torch.Tensor: ...
    def variance(self, y: torch.Tensor) -> torch.Tensor: ...


class GaussianNoise:
    """y + sigma n, n unit normal."""

    def __init__(self, sigma: float = 0.05):
        check_finite("sigma", sigma, least=0)
        self.sigma = sigma

    def __call__(self, y: torch.Tensor, noise: RandomNumbers | None = None) -> torch.Tensor:
        """noise: where random numbers come from; torch's global generator where None."""
        return y + self.sigma * (torch.randn_like(y) if noise is None else noise.randn_like(y))

    def variance(self, y: torch.Tensor) -> torch.Tensor:
        """sigma^2 everywhere, of the shape of y."""
        return torch.full_like(y, self.sigma**2)


class PoissonNoise:
    """gain Poisson(y / gain): counts where gain is 1; a y below 0 counts as 0."""

    def __init__(self, gain: float = 1.0):
        check_finite("gain", gain, above=0)
        self.gain = gain

    def __call__(self, y: torch.Tensor, noise: RandomNumbers | None = None) -> torch.Tensor:
        """noise: where random numbers come from; torch's global generator where None."""
        rate = y.clamp(min=0) / self.gain
        return self.gain * (torch.poisson(rate) if noise is None else noise.poisson(rate))

    def variance(self, y: torch.Tensor) -> torch.Tensor:
        """gain y, and 0 where y is below 0."""
        return self.gain * y.clamp(min=0)


def variance_of(noise_model: object, y: torch.Tensor) -> torch.Tensor:
    """Variance of a measurement of mean y, by any noise model that says it.

    Those with a method `variance` say it themselves. Of others, as deepinv's, it is the sum of sigma^2 and gain y, of
    which they have one attribute or both, numbers or tensors of one value per image. ValueError for models with none.
    """
    if callable(getattr(noise_model, "variance", None)):
        return noise_model.variance(y)
    terms = [_value(noise_model.sigma, y) ** 2] if hasattr(noise_model, "sigma") else []
    terms += [_value(noise_model.gain, y) * y.clamp(min=0)] if hasattr(noise_model, "gain") else []
    if not terms:
        raise ValueError(f"noise model {type(noise_model).__name__}: has no variance(y), sigma or gain; wanted one of "
                         "them, as physics.noise_models.GaussianNoise(sigma) has")
    return sum(terms).expand_as(y)


def _value(value: float | torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A number, or one per image, against a batch y."""
    value = torch.as_tensor(value, dtype=y.dtype, device=y.device)
    return value.reshape(-1, *[1] * (y.ndim - 1)) if value.ndim == 1 else value
