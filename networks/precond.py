"""Preconditioning: from a raw network F_x to a denoiser D_x (Karras et al. 2022, Table 1)."""

from math import inf

import torch
from torch import nn

from networks.conditioning import Condition


class EDMPrecond(nn.Module):
    """D_x = c_skip x + c_out F(c_in x; c_noise); x [N,C,*S], sigma [N] or a number; returns the dtype of x.

    The raw network `model` runs in its own parameters' dtype (or autocast's). Table 1, column "Ours".
    """

    def __init__(self, model: nn.Module, sigma_data: float = 0.5, sigma_min: float = 0, sigma_max: float = inf):
        super().__init__()
        self.model, self.sigma_data, self.sigma_min, self.sigma_max = model, sigma_data, sigma_min, sigma_max

    @property
    def label_dim(self) -> int:
        """Number of classes the network takes, 0 = none."""
        return getattr(self.model, "label_dim", 0)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, condition: Condition | None = None,
                augment_labels: torch.Tensor | None = None) -> torch.Tensor:
        dtype = next(self.model.parameters()).dtype
        calc = torch.promote_types(x.dtype, torch.float32)
        sigma = torch.as_tensor(sigma, device=x.device).to(calc).expand(len(x))
        column = sigma.reshape(-1, *[1] * (x.ndim - 1))
        c_skip = self.sigma_data ** 2 / (column ** 2 + self.sigma_data ** 2)
        c_out = column * self.sigma_data / (column ** 2 + self.sigma_data ** 2).sqrt()
        c_in = 1 / (self.sigma_data ** 2 + column ** 2).sqrt()
        c_noise = sigma.log() / 4
        F_x = self.model((c_in * x).to(dtype), c_noise.to(dtype), condition, augment_labels)
        return (c_skip * x + c_out * F_x.to(calc)).to(x.dtype)

    def round_sigma(self, sigma: torch.Tensor) -> torch.Tensor:
        """Nearest noise level that the network knows: any."""
        return torch.as_tensor(sigma)
