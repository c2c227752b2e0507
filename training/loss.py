"""Losses as pure functions of networks and tensors; each gives values per sample and element, unreduced."""

from typing import NamedTuple, Protocol

import torch
from torch.nn.functional import cross_entropy, l1_loss

from networks.autoencoder import Reconstruction
from networks.conditioning import Condition


class Noise(Protocol):
    """A source of random numbers for a batch, one generator per image (samplers.noise.ImageGenerators)."""

    def for_purpose(self, purpose: str) -> "Noise": ...
    def randn(self, shape: tuple[int, ...]) -> torch.Tensor: ...
    def rand(self, shape: tuple[int, ...]) -> torch.Tensor: ...


class DiffusionLoss(NamedTuple):
    """Weighted squared errors [N,C,*S] and the noise levels [N] they were taken at."""

    loss: torch.Tensor
    sigma: torch.Tensor


class EDMLoss:
    """Denoising loss with log-normal noise levels and the weight that makes it unit at the start (Table 1, "Ours")."""

    def __init__(self, P_mean: float = -1.2, P_std: float = 1.2, sigma_data: float = 0.5):
        self.P_mean, self.P_std, self.sigma_data = P_mean, P_std, sigma_data

    def __call__(self, net: torch.nn.Module, images: torch.Tensor, condition: Condition | None = None,
                 noise: Noise | None = None) -> DiffusionLoss:
        """images [N,C,*S] with standard deviation sigma_data."""
        shape = (1,) * (images.ndim - 1)
        sigma = (noise.for_purpose("sigma").randn(shape).to(images.device) * self.P_std + self.P_mean).exp()
        weight = (sigma ** 2 + self.sigma_data ** 2) / (sigma * self.sigma_data) ** 2
        n = noise.for_purpose("noise").randn(images.shape[1:]).to(images.device) * sigma
        D_x = net(images + n, sigma.flatten(), condition)
        return DiffusionLoss(weight * (D_x - images) ** 2, sigma.flatten())


class AutoencoderLoss:
    """Weighted sum of L1 (image) and cross-entropy (label map), both means over voxels, and KL, in nats per volume."""

    def __init__(self, l1_weight: float = 1, ce_weight: float = 1, kl_weight: float = 1e-6):
        self.l1_weight, self.ce_weight, self.kl_weight = l1_weight, ce_weight, kl_weight

    def __call__(self, out: Reconstruction, image: torch.Tensor, label: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Weighted terms [N] by name: `l1`, `ce` (with labels), `kl`."""
        terms = {"l1": self.l1_weight * l1_loss(out.image, image, reduction="none").flatten(1).mean(1)}
        if out.logits is not None:
            terms["ce"] = self.ce_weight * cross_entropy(out.logits, label.long(), reduction="none").flatten(1).mean(1)
        terms["kl"] = self.kl_weight * out.posterior.kl()
        return terms
