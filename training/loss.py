"""Losses of diffusion as pure functions of networks and tensors, with values per sample and element, unreduced."""

from math import inf
from typing import NamedTuple

import torch

from edm3d.networks.conditioning import Condition
from edm3d.networks.precond import OBJECTIVES
from edm3d.samplers.noise import GlobalNoise, Noise
from edm3d.training.noise_laws import LogNormal, LogUniform, NoiseLaw, VPUniform
from edm3d.utils.checks import check_choice, check_least, check_positive

POWERS = {"l1": 1, "l2": 2}
WEIGHTS = ("none", "min_snr", "p2")


class DiffusionLoss(NamedTuple):
    """Weighted errors [N,C,*S] and the noise levels [N] they were taken at."""

    loss: torch.Tensor
    sigma: torch.Tensor


class WeightedError:
    """weight(sigma) |D(y + n; sigma) - y|^power at noise levels that a law draws: the form of all diffusion losses.

    strata: the global batch size, for noise levels that cover the law evenly in every batch; None draws each by itself.
    Levels that the law's tails have outside the network's range are moved to its ends.
    """

    norm = "l2"

    def __init__(self, law: NoiseLaw, strata: int | None = None):
        if strata is not None and strata < 1:
            raise ValueError(f"strata={strata}: wanted 1 or more (the global batch size), or none")
        self.law, self.strata = law, strata

    def weight(self, sigma: torch.Tensor, net: object = None) -> torch.Tensor:
        """Weight of the error of D at noise levels sigma; net is asked for what it knows of it."""
        raise NotImplementedError

    def __call__(self, net: torch.nn.Module, images: torch.Tensor, condition: Condition | None = None,
                 noise: Noise | None = None, augment_labels: torch.Tensor | None = None) -> DiffusionLoss:
        """Loss of net(x, sigma, condition[, augment_labels]) on clean images y [N,C,*S].

        noise None draws from torch's global generator: first the levels, then the noise.
        """
        noise = GlobalNoise(images) if noise is None else noise
        sigma = self.draw_sigma(noise.for_purpose("sigma"), images)
        sigma = sigma.clamp(getattr(net, "sigma_min", 0), getattr(net, "sigma_max", inf))
        n = noise.for_purpose("noise").randn_like(images) * sigma
        told = () if augment_labels is None else (augment_labels,)
        D_x = net(images + n, sigma.flatten(), condition, *told)
        error = D_x - images
        error = error.abs() if self.norm == "l1" else error.square()
        return DiffusionLoss(self.weight(sigma, net) * error, sigma.flatten())

    def draw_sigma(self, noise: Noise, images: torch.Tensor) -> torch.Tensor:
        """Noise levels [N,1,..] for images [N,C,*S]."""
        shape = (1,) * (images.ndim - 1)
        if self.strata is None:
            return self.law.draw(noise, shape).to(images.device)
        return self.law.draw_stratified(noise, shape, self.strata).to(images.device)

    def level_range(self) -> tuple[float, float]:
        """Noise levels between which 99.8 % of the training happens, the rest evenly on both sides."""
        ends = self.law.sigma(torch.tensor([0.001, 0.999], dtype=torch.float64))
        return float(ends.min()), float(ends.max())


class EDMLoss(WeightedError):
    """Log-normal noise levels and the weight 1 / c_out^2, which makes the loss 1 at the start (Table 1, "Ours").

    Images have standard deviation sigma_data.
    """

    def __init__(self, P_mean: float = -1.2, P_std: float = 1.2, sigma_data: float = 0.5, strata: int | None = None):
        check_positive({"sigma_data": sigma_data})
        super().__init__(LogNormal(P_mean, P_std), strata)
        self.sigma_data = sigma_data

    def weight(self, sigma: torch.Tensor, net: object = None) -> torch.Tensor:
        return (sigma ** 2 + self.sigma_data ** 2) / (sigma * self.sigma_data) ** 2


class DenoisingLoss(WeightedError):
    """Error of a network's own target, x0, epsilon or v, as the DDPM family counts it, in L1 or L2.

    objective None: the one that the network names, epsilon where it names none. The target F follows from D_x
    linearly: |F - target| = |D_x - x0| / |c_out|, c_out being 1, sigma and sigma / sqrt(1 + sigma^2). weight=min_snr
    weighs that error by min(SNR, min_snr_gamma), over SNR for epsilon and over SNR + 1 for v (Hang et al. 2023),
    weight=p2 by (p2_k + SNR)^-p2_gamma (Choi et al. 2022); SNR = 1 / sigma^2.
    """

    def __init__(self, law: NoiseLaw, objective: str | None = None, norm: str = "l2", weight: str = "none",
                 min_snr_gamma: float = 5, p2_gamma: float = 1, p2_k: float = 1, strata: int | None = None):
        if objective is not None:
            check_choice("objective", objective, OBJECTIVES)
        check_choice("norm", norm, POWERS)
        check_choice("weight", weight, WEIGHTS)
        check_positive({"min_snr_gamma": min_snr_gamma, "p2_k": p2_k})
        check_least(0, {"p2_gamma": p2_gamma})
        super().__init__(law, strata)
        self.objective, self.norm, self.weighting = objective, norm, weight
        self.min_snr_gamma, self.p2_gamma, self.p2_k = min_snr_gamma, p2_gamma, p2_k

    def weight(self, sigma: torch.Tensor, net: object = None) -> torch.Tensor:
        objective = self.objective or getattr(net, "objective", None) or "epsilon"
        return self.target_weight(1 / sigma ** 2, objective) / scale_of(objective, sigma) ** POWERS[self.norm]

    def target_weight(self, snr: torch.Tensor, objective: str) -> torch.Tensor:
        """Weight of the error of the target `objective` at signal-to-noise ratios snr."""
        if self.weighting == "p2":
            return (self.p2_k + snr) ** -self.p2_gamma
        if self.weighting == "min_snr":
            return snr.clamp(max=self.min_snr_gamma) / {"x0": 1, "epsilon": snr, "v": snr + 1}[objective]
        return torch.ones_like(snr)


def scale_of(objective: str, sigma: torch.Tensor) -> torch.Tensor:
    """|c_out|: how far D_x moves when the output of a network with this target moves by 1."""
    if objective == "x0":
        return torch.ones_like(sigma)
    return sigma if objective == "epsilon" else sigma / (1 + sigma ** 2).sqrt()


class VPLoss(DenoisingLoss):
    """Error of epsilon at uniform times of the variance-preserving SDE (Table 1, "VP"): the weight is 1 / sigma^2."""

    def __init__(self, beta_d: float = 19.9, beta_min: float = 0.1, epsilon_t: float = 1e-5,
                 strata: int | None = None):
        super().__init__(VPUniform(beta_d, beta_min, epsilon_t), "epsilon", strata=strata)


class VELoss(DenoisingLoss):
    """Error of epsilon at log-uniform noise levels (Table 1, "VE"): the weight is 1 / sigma^2."""

    def __init__(self, sigma_min: float = 0.02, sigma_max: float = 100, strata: int | None = None):
        super().__init__(LogUniform(sigma_min, sigma_max), "epsilon", strata=strata)


# the losses that usually go with a preconditioner, by the name that it has in configs/precond and they in configs/loss
USUAL = {"edm": EDMLoss, "vp": VPLoss, "ve": VELoss, "iddpm": DenoisingLoss, "ddpm": DenoisingLoss}
