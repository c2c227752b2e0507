"""What a first stage is trained by: weighted terms per image, each of which may change with the images seen."""

from collections.abc import Callable, Sequence
from math import inf, prod

import torch
from torch.nn.functional import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    cross_entropy,
    l1_loss,
    mse_loss,
)

from edm3d.networks.autoencoder import Reconstruction
from edm3d.samplers.noise import Noise
from edm3d.training.perceptual import PerceptualDistance
from edm3d.training.schedule import check_schedule, highest, scheduled
from edm3d.utils.checks import check_choice

POOLS = {1: adaptive_avg_pool1d, 2: adaptive_avg_pool2d, 3: adaptive_avg_pool3d}
Weight = float | Sequence[Sequence[float]]


class AutoencoderLoss:
    """Weighted sum of terms; a weight is a number or points [kimg, number] (training/schedule.py), 0 leaves a term out.

    l1, l2, ce: means over voxels; dice: 1 - soft Dice, mean over classes but the first; kl: nats per volume, or per
    voxel with kl_reduction=voxel; commitment and codebook: mean squared distances of vector quantisation (van den Oord
    et al. 2017); perceptual: training/perceptual.py; latent_mse: mean squared difference between latents and the image,
    mean over its channels, at the latents' size, the image from 0 to 1 where latents are positive (gamma).
    kl_capacity: nats per latent element that the posterior is to hold, a number or points as well: the kl term is then
    |KL - capacity| (Burgess et al. 2018).
    """

    def __init__(self, l1_weight: Weight = 1, l2_weight: Weight = 0, ce_weight: Weight = 1, dice_weight: Weight = 0,
                 kl_weight: Weight = 1e-6, commitment_weight: Weight = 0.25, codebook_weight: Weight = 1,
                 perceptual_weight: Weight = 0, latent_mse_weight: Weight = 0, kl_reduction: str = "volume",
                 kl_capacity: Weight | None = None, perceptual: PerceptualDistance | None = None):
        self.weights = {"l1": l1_weight, "l2": l2_weight, "ce": ce_weight, "dice": dice_weight, "kl": kl_weight,
                        "commitment": commitment_weight, "codebook": codebook_weight, "perceptual": perceptual_weight,
                        "latent_mse": latent_mse_weight}
        for name, weight in self.weights.items():
            check_schedule(f"{name}_weight", weight)
        if kl_capacity is not None:
            check_schedule("kl_capacity", kl_capacity)
        check_choice("kl_reduction", kl_reduction, ("volume", "voxel"))
        self.kl_reduction, self.kl_capacity, self.perceptual = kl_reduction, kl_capacity, perceptual
        self.weights = {name: weight for name, weight in self.weights.items() if highest(weight) > 0}
        if "perceptual" in self.weights and perceptual is None:
            raise ValueError("perceptual_weight: there is no training.loss.perceptual to weigh; use loss=autoencoder")

    def open(self, size: Sequence[int]) -> None:
        """Read the files of the terms that have any, for images of a size [*S]."""
        if "perceptual" in self.weights:
            self.perceptual.open(size)

    def __call__(self, out: Reconstruction, image: torch.Tensor, label: torch.Tensor | None, kimg: float = inf,
                 noise: Noise | None = None) -> dict[str, torch.Tensor]:
        """Weighted terms [N] by name, of those that ever count for such an autoencoder; 0 while a weight is.

        kimg: thousands of images seen, inf for the weights at the end. noise: draws the slices of `perceptual`.
        """
        terms = {}
        for name, value in self.values(out, image, label, kimg, noise).items():
            weight = scheduled(self.weights[name], kimg)
            terms[name] = weight * value() if weight else image.new_zeros(len(image), dtype=torch.float32)
        return terms

    def values(self, out: Reconstruction, image: torch.Tensor, label: torch.Tensor | None, kimg: float,
               noise: Noise | None) -> dict[str, Callable[[], torch.Tensor]]:
        """What gives the terms [N], without their weights."""
        found = {"l1": lambda: mean(l1_loss(out.image, image, reduction="none")),
                 "l2": lambda: mean(mse_loss(out.image, image, reduction="none"))}
        if out.logits is not None:
            found["ce"] = lambda: mean(cross_entropy(out.logits, label.long(), reduction="none"))
            found["dice"] = lambda: soft_dice(out.logits, label)
        if out.codes is None:
            found["kl"] = lambda: self.kl(out, kimg)
        else:
            found["commitment"] = lambda: out.codes.commitment
            if getattr(out.codes, "codebook", None) is not None:
                found["codebook"] = lambda: out.codes.codebook
        found["perceptual"] = lambda: self.perceptual(out.image, image, noise)
        positive = getattr(out.posterior, "positive", False)
        found["latent_mse"] = lambda: latent_mse(out.z, (image + 1) / 2 if positive else image)
        return {name: value for name, value in found.items() if name in self.weights}

    def kl(self, out: Reconstruction, kimg: float) -> torch.Tensor:
        """KL [N] of the posterior, or its distance from the capacity, per volume or per voxel."""
        kl = out.posterior.kl()
        if self.kl_capacity is not None:
            elements = (out.posterior.std > 0).flatten(1).sum(1)  # a masked posterior says nothing outside its mask
            kl = (kl - scheduled(self.kl_capacity, kimg) * elements).abs()
        return kl / prod(out.image.shape[2:]) if self.kl_reduction == "voxel" else kl


def mean(x: torch.Tensor) -> torch.Tensor:
    """Means [N] of values [N,...]."""
    return x.flatten(1).mean(1)


def soft_dice(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """1 - soft Dice [N] of logits [N,K,*S] and label maps [N,*S], mean over classes but the first, the background."""
    from monai.losses import DiceLoss  # here, since importing MONAI takes seconds
    dice = DiceLoss(include_background=False, softmax=True, to_onehot_y=True, reduction="none")
    return dice(logits, label.unsqueeze(1)).flatten(1).mean(1)


def latent_mse(z: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Mean squared difference [N] between latents [N,z,*s] and images [N,C,*S], each block of voxels by its mean."""
    small = POOLS[z.ndim - 2](image.mean(1, keepdim=True), z.shape[2:])
    return mean((z.float() - small).square())
