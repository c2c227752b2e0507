"""Self-conditioning (Chen, Zhang and Hinton 2023): a network that is shown what it last made of the same images."""

import torch

from networks.conditioning import Condition
from samplers.edm import Denoiser


class ShownItsEstimate:
    """A denoiser for one run of a sampler, told the image it gave at the call before; nothing at the first."""

    def __init__(self, net: Denoiser):
        self.net, self.estimate = net, None
        self.sigma_min, self.sigma_max, self.round_sigma = net.sigma_min, net.sigma_max, net.round_sigma
        self.noise_table, self.label_dim = net.noise_table, net.label_dim

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: Condition | None = None,
                 augment_labels: torch.Tensor | None = None) -> torch.Tensor:
        """D [N,C,*S] of x [N,C,*S] at sigma [N] or a number."""
        self.estimate = self.net(x, sigma, condition, augment_labels, self.estimate)
        return self.estimate
