"""Preconditioning: from a raw network F_x to a denoiser D_x, after Karras et al. 2022, Table 1.

Classes carry the paper's names of the columns of Table 1; DDPMPrecond is for the networks of the DDPM family.
"""

from math import inf

import torch
from torch import nn

from edm3d.networks.conditioning import Condition, takes_of, with_dropout
from edm3d.networks.schedules import check_vp, ddpm_table, iddpm_table, vp_sigma, vp_time
from edm3d.utils.checks import check_choice, check_count, check_positive

SLACK = 1.05      # noise levels may leave a network's range by this factor, for rounding
CHURN = 2 ** 0.5  # the most that a sampler's churn raises a level
OBJECTIVES = ("epsilon", "x0", "v")


class Precond(nn.Module):
    """D_x = c_skip x + c_out F(c_in x; c_noise); x [N,C,*S], sigma [N] or a number; returns the dtype of x.

    The raw network `model` runs in its own parameters' dtype (or autocast's), the rest in that of x, at least float32.
    takes is what the model takes of a condition, by part, nothing where it does not say; label_dropout is the share of
    images whose class is hidden in training; estimate [N,C,*S], of the image, is for a model with self_condition. Noise
    levels further outside sigma_min and sigma_max than rounding and churn take them (SLACK, headroom) are refused where
    looking at them costs nothing: on the CPU, uncompiled.
    """

    usual: str | None = None  # its name in configs/precond, and that of the loss that usually goes with it
    noise_table: torch.Tensor | None = None  # falling noise levels [M] > 0, float64, of networks that know only those
    headroom = SLACK * CHURN  # how far, as a factor, noise levels may be above the range

    def __init__(self, model: nn.Module, sigma_min: float, sigma_max: float, label_dropout: float):
        super().__init__()
        if not 0 <= sigma_min < sigma_max:
            raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}: wanted 0 <= sigma_min < sigma_max")
        self.model, self.sigma_min, self.sigma_max = model, sigma_min, sigma_max
        self.takes = with_dropout(takes_of(model), class_labels=label_dropout)

    @property
    def augment_dim(self) -> int:
        """Width of the augmentation labels the network takes, 0 = none."""
        return getattr(self.model, "augment_dim", 0)

    @property
    def grid_factor(self) -> tuple[int, ...] | None:
        """Voxels of a volume per voxel of x and axis, None for networks that do not say."""
        return getattr(self.model, "grid_factor", None)

    @property
    def factor(self) -> tuple[int, ...] | None:
        """What sizes must divide by, per axis, None for networks that do not say."""
        return getattr(self.model, "factor", None)

    @property
    def receptive_field(self) -> tuple[int, ...] | None:
        """Voxels to each side, per axis, that an output depends on, None for all of them or where it is not known."""
        return getattr(self.model, "receptive_field", None)

    @property
    def self_condition(self) -> bool:
        """Whether the network takes an estimate of the image, in training and sampling its own last one."""
        return getattr(self.model, "self_condition", False)

    def coefficients(self, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """c_skip, c_out, c_in and c_noise [N] at noise levels sigma [N]."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: Condition | None = None,
                augment_labels: torch.Tensor | None = None, estimate: torch.Tensor | None = None) -> torch.Tensor:
        dtype = next(self.model.parameters()).dtype
        calc = torch.promote_types(x.dtype, torch.float32)
        sigma = torch.as_tensor(sigma, dtype=calc)
        self.check_input(sigma, len(x))
        *factors, c_noise = self.coefficients(sigma.to(x.device).reshape(-1).expand(len(x)))
        c_skip, c_out, c_in = (c.reshape(-1, *[1] * (x.ndim - 1)) for c in factors)
        c_noise = c_noise.to(torch.promote_types(dtype, torch.float32))
        told = () if estimate is None else (estimate,)
        F_x = self.image_part(self.model((c_in * x).to(dtype), c_noise, condition, augment_labels, *told), x.shape[1])
        if F_x.shape != x.shape:  # it would broadcast
            raise ValueError(f"{type(self).__name__}: the model gives {list(F_x.shape)} for images {list(x.shape)}, "
                             f"wanted the same; out_channels of the model should be {x.shape[1]}")
        return (c_skip * x + c_out * F_x.to(calc)).to(x.dtype)

    def image_part(self, F_x: torch.Tensor, channels: int) -> torch.Tensor:
        """The raw output's channels that are about the image: all."""
        return F_x

    def round_sigma(self, sigma: torch.Tensor | float) -> torch.Tensor:
        """Nearest noise level that the network knows: any."""
        return torch.as_tensor(sigma)

    def check_input(self, sigma: torch.Tensor, images: int) -> None:
        """ValueError for no images, and for noise levels that do not fit them or the network."""
        if torch.compiler.is_compiling():
            return
        if not images:
            raise ValueError(f"{type(self).__name__}: got no images, wanted a batch of one or more")
        if sigma.numel() not in (1, images):
            raise ValueError(f"sigma: got {sigma.numel()} noise levels for {images} images, wanted one for each or one")
        if sigma.device.type != "cpu":
            return
        low, high = float(sigma.min()), float(sigma.max())
        if not (low > 0 and self.sigma_min / SLACK <= low and high <= self.sigma_max * self.headroom and high < inf):
            wanted = f"between {self.sigma_min:g} and {self.sigma_max:g}, the range of the network"
            if self.sigma_max == inf:
                wanted = f"finite and above {self.sigma_min:g}"
            got = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            raise ValueError(f"{type(self).__name__}: got sigma {got}, wanted noise levels {wanted}")


class EDMPrecond(Precond):
    """Table 1, column "Ours"."""

    usual = "edm"

    def __init__(self, model: nn.Module, sigma_data: float = 0.5, sigma_min: float = 0, sigma_max: float = inf,
                 label_dropout: float = 0):
        super().__init__(model, sigma_min, sigma_max, label_dropout)
        check_positive({"sigma_data": sigma_data})
        self.sigma_data = sigma_data

    def coefficients(self, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        variance = sigma ** 2 + self.sigma_data ** 2
        c_out = sigma * self.sigma_data / variance.sqrt()
        return self.sigma_data ** 2 / variance, c_out, 1 / variance.sqrt(), sigma.log() / 4


class VPPrecond(Precond):
    """Table 1, column "VP": the network is told the time at which the SDE of beta_d and beta_min has this noise.

    M times from epsilon_t to 1 were there in training (Song et al. 2021: continuous, M = 1000 scales the time).
    """

    usual = "vp"

    def __init__(self, model: nn.Module, beta_d: float = 19.9, beta_min: float = 0.1, M: int = 1000,
                 epsilon_t: float = 1e-5, label_dropout: float = 0):
        check_vp(beta_d, beta_min, epsilon_t)
        check_count(2, {"M": M})
        ends = torch.tensor([epsilon_t, 1], dtype=torch.float32, device="cpu")
        super().__init__(model, *vp_sigma(ends, beta_d, beta_min).tolist(), label_dropout)
        self.beta_d, self.beta_min, self.M = beta_d, beta_min, M

    def coefficients(self, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        c_noise = (self.M - 1) * vp_time(sigma, self.beta_d, self.beta_min)
        return torch.ones_like(sigma), -sigma, 1 / (sigma ** 2 + 1).sqrt(), c_noise


class VEPrecond(Precond):
    """Table 1, column "VE"."""

    usual = "ve"

    def __init__(self, model: nn.Module, sigma_min: float = 0.02, sigma_max: float = 100, label_dropout: float = 0):
        super().__init__(model, sigma_min, sigma_max, label_dropout)

    def coefficients(self, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        return torch.ones_like(sigma), sigma, torch.ones_like(sigma), (sigma / 2).log()


class TablePrecond(Precond):
    """Networks that know a table of noise levels only: the buffer `u`, falling.

    The buffer follows casts of this module, so that a network in half precision is made by casting `model` alone.
    """

    headroom = SLACK  # churn goes to levels of the table

    def __init__(self, model: nn.Module, u: torch.Tensor, sigma_min: float, sigma_max: float, label_dropout: float):
        super().__init__(model, sigma_min, sigma_max, label_dropout)
        self.register_buffer("u", u)

    @property
    def noise_table(self) -> torch.Tensor:
        """Falling noise levels [M] > 0 of the training, float64."""
        return self.u[self.u > 0].to(torch.float64)

    def index(self, sigma: torch.Tensor) -> torch.Tensor:
        """Where in `u` the level nearest to each of sigma [*] stands, int64 [*]."""
        return (sigma.unsqueeze(-1) - self.u.to(sigma.device)).abs().argmin(-1)

    def round_sigma(self, sigma: torch.Tensor | float) -> torch.Tensor:
        """Nearest noise level of the table, in the dtype of sigma."""
        sigma = torch.as_tensor(sigma)
        return self.u.to(sigma.device)[self.index(sigma)].to(sigma.dtype)


class iDDPMPrecond(TablePrecond):
    """Table 1, column "iDDPM" (Nichol and Dhariwal 2021): u [M+1] ends in 0. Uses the first C output channels."""

    usual = "iddpm"

    def __init__(self, model: nn.Module, C_1: float = 0.001, C_2: float = 0.008, M: int = 1000,
                 label_dropout: float = 0):
        with torch.device("cpu"):  # the range is known also where the network is built without memory
            u = iddpm_table(M, C_1, C_2, dtype=torch.float32)
        super().__init__(model, u, float(u[M - 1]), float(u[0]), label_dropout)

    def coefficients(self, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        c_noise = (len(self.u) - 2 - self.index(sigma)).to(sigma.dtype)
        return torch.ones_like(sigma), -sigma, 1 / (sigma ** 2 + 1).sqrt(), c_noise

    def image_part(self, F_x: torch.Tensor, channels: int) -> torch.Tensor:
        """The first half where the network also gives a variance."""
        return F_x[:, :channels]


class DDPMPrecond(TablePrecond):
    """Networks of the DDPM family, which predict epsilon, x0 or v at the steps of a beta schedule.

    Such a network sees x_t = alpha x with alpha = 1 / sqrt(1 + sigma^2) and the number t of the step, counted from 0 at
    the least noise; v = alpha epsilon - sqrt(1 - alpha^2) x0 (Ho et al. 2020; Salimans and Ho 2022).
    """

    usual = "ddpm"

    def __init__(self, model: nn.Module, schedule: str = "linear", num_steps: int = 1000, beta_start: float = 1e-4,
                 beta_end: float = 0.02, objective: str = "epsilon", label_dropout: float = 0,
                 cosine_s: float = 0.008):
        check_choice("objective", objective, OBJECTIVES)
        with torch.device("cpu"):
            u = ddpm_table(schedule, num_steps, beta_start, beta_end, cosine_s).flip(0)
        super().__init__(model, u, float(u[-1]), float(u[0]), label_dropout)
        self.objective = objective

    def coefficients(self, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        alpha = 1 / (sigma ** 2 + 1).sqrt()
        c_noise = (len(self.u) - 1 - self.index(sigma)).to(sigma.dtype)
        if self.objective == "epsilon":
            return torch.ones_like(sigma), -sigma, alpha, c_noise
        if self.objective == "x0":
            return torch.zeros_like(sigma), torch.ones_like(sigma), alpha, c_noise
        return alpha ** 2, -sigma * alpha, alpha, c_noise
