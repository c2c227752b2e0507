"""What a first stage says of an image's latents: a Gaussian, a gamma distribution or a point for every element.

All have mean and std [N,z,*s], kl() [N] in nats, sample(noise) and from_moments(mean, std), the way back from a file.
"""

from typing import NamedTuple, Protocol

import torch

from edm3d.utils.checks import check_choice

PRIOR_ALPHA, PRIOR_BETA = 3.75, 10.8  # shape and rate of the gamma prior: mean 0.35, standard deviation 0.18
DIRECTIONS = ("posterior", "prior")


class Draws(Protocol):
    """What posteriors are drawn with, one row per image (samplers.noise.Noise is one)."""

    def randn(self, shape: tuple[int, ...]) -> torch.Tensor: ...
    def gamma(self, alpha: torch.Tensor) -> torch.Tensor: ...


class Posterior(NamedTuple):
    """Diagonal Gaussian over latents: mean and logvar [N,z,*s].

    inside: cells (bool, broadcasts) that are not known to be 0, as mean is elsewhere; None: all.
    """

    mean: torch.Tensor
    logvar: torch.Tensor
    inside: torch.Tensor | None = None

    @classmethod
    def from_moments(cls, mean: torch.Tensor, std: torch.Tensor) -> "Posterior":
        """The Gaussian of this mean and standard deviation."""
        return cls(mean, 2 * std.log())

    @property
    def std(self) -> torch.Tensor:
        """Standard deviation [N,z,*s]."""
        std = (self.logvar / 2).exp()
        return std if self.inside is None else std * self.inside

    def kl(self) -> torch.Tensor:
        """KL divergence to the unit Gaussian, summed per sample [N] over the cells inside, in nats."""
        kl = self.mean ** 2 + self.logvar.exp() - 1 - self.logvar
        return 0.5 * (kl if self.inside is None else kl * self.inside).flatten(1).sum(1)

    def sample(self, noise: Draws | None) -> torch.Tensor:
        """A draw [N,z,*s]; the mean without noise."""
        if noise is None:
            return self.mean
        return self.mean + self.std * noise.randn(self.mean.shape[1:]).to(self.mean.device)


class PointPosterior(NamedTuple):
    """Latents [N,z,*s] known exactly."""

    mean: torch.Tensor

    @classmethod
    def from_moments(cls, mean: torch.Tensor, std: torch.Tensor) -> "PointPosterior":
        """The point at this mean."""
        return cls(mean)

    @property
    def std(self) -> torch.Tensor:
        """Zeros [N,z,*s]."""
        return torch.zeros_like(self.mean)

    def kl(self) -> torch.Tensor:
        """Zeros [N]: there is no prior to differ from."""
        return self.mean.new_zeros(len(self.mean))

    def sample(self, noise: Draws | None) -> torch.Tensor:
        """The point itself."""
        return self.mean


class GammaPosterior(NamedTuple):
    """Gamma distributions of shape alpha and rate beta [N,z,*s] in the cells `inside` (bool, broadcasts), 0 elsewhere.

    kl_direction "posterior" is KL(posterior || prior), as in a variational bound; "prior" is KL(prior || posterior).
    """

    alpha: torch.Tensor
    beta: torch.Tensor
    inside: torch.Tensor
    prior_alpha: float = PRIOR_ALPHA
    prior_beta: float = PRIOR_BETA
    kl_direction: str = "posterior"
    positive = True  # of its latents

    @classmethod
    def from_moments(cls, mean: torch.Tensor, std: torch.Tensor) -> "GammaPosterior":
        """The gamma distribution of this mean and standard deviation; where that is 0 is not inside."""
        inside = std > 0
        mean, variance = torch.where(inside, mean, 1), torch.where(inside, std, 1).square()
        return cls(mean.square() / variance, mean / variance, inside)

    @property
    def mean(self) -> torch.Tensor:
        """Mean [N,z,*s]."""
        return self.alpha / self.beta * self.inside

    @property
    def std(self) -> torch.Tensor:
        """Standard deviation [N,z,*s]."""
        return self.alpha.sqrt() / self.beta * self.inside

    def kl(self) -> torch.Tensor:
        """KL divergence between posterior and prior, summed over the cells inside [N], in nats."""
        own = self.alpha, self.beta
        prior = self.alpha.new_tensor(self.prior_alpha), self.alpha.new_tensor(self.prior_beta)
        kl = gamma_kl(*own, *prior) if self.kl_direction == "posterior" else gamma_kl(*prior, *own)
        return (kl * self.inside).flatten(1).sum(1)

    def sample(self, noise: Draws | None) -> torch.Tensor:
        """A draw [N,z,*s] with gradients to alpha and beta; the mean without noise."""
        return self.mean if noise is None else noise.gamma(self.alpha) / self.beta * self.inside


def gamma_kl(alpha: torch.Tensor, beta: torch.Tensor, other_alpha: torch.Tensor, other_beta: torch.Tensor
             ) -> torch.Tensor:
    """KL(Gamma(alpha, beta) || Gamma(other_alpha, other_beta)), shapes and rates, in nats."""
    return ((alpha - other_alpha) * alpha.digamma() - alpha.lgamma() + other_alpha.lgamma()
            + other_alpha * (beta.log() - other_beta.log()) + alpha * (other_beta - beta) / beta)


AnyPosterior = Posterior | PointPosterior | GammaPosterior
POSTERIORS = {"gaussian": Posterior, "point": PointPosterior, "gamma": GammaPosterior}


def posterior_class(kind: str) -> type[AnyPosterior]:
    """The class behind a network's `posterior`, for from_moments."""
    check_choice("posterior", kind, POSTERIORS)
    return POSTERIORS[kind]
