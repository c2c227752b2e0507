"""Self-conditioning (Chen, Zhang and Hinton 2023): a network that is shown what it last made of the same images."""

import torch

from edm3d.networks.conditioning import Condition
from edm3d.samplers.denoiser import Denoiser, Wrapper


class ShownItsEstimate(Wrapper):
    """A denoiser for one run of a sampler, told the image it gave at the call before; nothing at the first."""

    self_condition = False  # nobody else needs to tell it

    def __init__(self, net: Denoiser):
        super().__init__(net)
        self.estimate: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: Condition | None = None,
                 augment_labels: torch.Tensor | None = None) -> torch.Tensor:
        denoised = self.net(x, sigma, condition, augment_labels, self.estimate)
        self.estimate = denoised.detach()
        return denoised
