"""Noise laws: how the noise levels of training are distributed. A law is a monotone function sigma(u) of uniform u."""

from collections.abc import Sequence
from math import inf

import torch

from edm3d.networks.schedules import check_vp, ddpm_table, iddpm_table, vp_sigma
from edm3d.samplers.noise import Noise
from edm3d.utils.checks import check_positive
from edm3d.utils.tensors import tensor_on


class NoiseLaw:
    """A distribution of noise levels."""

    def sigma(self, u: torch.Tensor) -> torch.Tensor:
        """Noise levels of uniform numbers u in (0,1), in shape and dtype of u."""
        raise NotImplementedError

    def draw(self, noise: Noise, shape: Sequence[int]) -> torch.Tensor:
        """Independent noise levels [N,*shape], one number of `noise` each."""
        return self.sigma(noise.rand(shape))

    def draw_stratified(self, noise: Noise, shape: Sequence[int], strata: int) -> torch.Tensor:
        """Noise levels [N,*shape], the image with key p from the stratum p mod strata of equally probable ones.

        Keys are positions in the data stream: any `strata` consecutive images take every stratum once, on whatever
        rank and in whatever round they are.
        """
        column = [-1, *[1] * len(shape)]
        jitter = noise.rand(shape)
        stratum = tensor_on(jitter.device, [key % strata for key in noise.keys], torch.float64).reshape(column)
        inside = jitter.double() + 2 ** -25  # multiples of 2^-24 in [0,1) become numbers in (0,1)
        return self.sigma((stratum + inside) / strata).to(jitter.dtype)


class LogNormal(NoiseLaw):
    """log(sigma) is normal with mean P_mean and standard deviation P_std (Karras et al. 2022, Table 1, "Ours")."""

    def __init__(self, P_mean: float = -1.2, P_std: float = 1.2):
        check_positive({"P_std": P_std})
        self.P_mean, self.P_std = P_mean, P_std

    def sigma(self, u: torch.Tensor) -> torch.Tensor:
        return self.level(torch.special.ndtri(u))

    def draw(self, noise: Noise, shape: Sequence[int]) -> torch.Tensor:
        return self.level(noise.randn(shape))

    def level(self, normal: torch.Tensor) -> torch.Tensor:
        """Noise levels of unit normal numbers."""
        return (normal * self.P_std + self.P_mean).exp()


class VPUniform(NoiseLaw):
    """The time of the variance-preserving SDE is uniform between epsilon_t and 1 (Table 1, "VP"); u runs backwards."""

    def __init__(self, beta_d: float = 19.9, beta_min: float = 0.1, epsilon_t: float = 1e-5):
        check_vp(beta_d, beta_min, epsilon_t)
        self.beta_d, self.beta_min, self.epsilon_t = beta_d, beta_min, epsilon_t

    def sigma(self, u: torch.Tensor) -> torch.Tensor:
        return vp_sigma(1 + u * (self.epsilon_t - 1), self.beta_d, self.beta_min)


class LogUniform(NoiseLaw):
    """log(sigma) is uniform (Table 1, "VE")."""

    def __init__(self, sigma_min: float = 0.02, sigma_max: float = 100):
        check_positive({"sigma_min": sigma_min})
        if not sigma_min < sigma_max < inf:
            raise ValueError(f"sigma_max={sigma_max}: wanted more than sigma_min={sigma_min}, and finite")
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def sigma(self, u: torch.Tensor) -> torch.Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** u


class EqualSteps(NoiseLaw):
    """Each of a number of noise levels [M], rising, is equally probable."""

    def __init__(self, levels: torch.Tensor):
        self.levels = levels

    def sigma(self, u: torch.Tensor) -> torch.Tensor:
        step = (u * len(self.levels)).long().clamp(max=len(self.levels) - 1)
        return self.levels.to(u.device, u.dtype, non_blocking=True)[step]


class Table(EqualSteps):
    """The steps of a DDPM schedule; arguments as of networks.schedules.ddpm_table."""

    def __init__(self, schedule: str = "linear", num_steps: int = 1000, beta_start: float = 1e-4,
                 beta_end: float = 0.02, cosine_s: float = 0.008):
        super().__init__(ddpm_table(schedule, num_steps, beta_start, beta_end, cosine_s))


class IDDPMTable(EqualSteps):
    """The steps of improved DDPM (Table 1, "iDDPM"), in float32 as iDDPMPrecond has them; arguments as there."""

    def __init__(self, M: int = 1000, C_1: float = 0.001, C_2: float = 0.008):
        super().__init__(iddpm_table(M, C_1, C_2, dtype=torch.float32)[:-1].flip(0))
