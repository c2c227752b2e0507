"""What samplers call, D(x, sigma), and what stands between them and a network."""

from collections.abc import Callable
from functools import cached_property

import torch

from edm3d.networks.conditioning import Condition, Part, takes_of

Denoiser = Callable[..., torch.Tensor]


class Wrapper:
    """A denoiser made of another, `net`: it knows the same noise levels and takes the same, where it does not say else.

    D = wrapper(x, sigma, condition, augment_labels); x [N,C,*S], sigma [N] or a number.
    """

    def __init__(self, net: Denoiser):
        self.net = net

    @cached_property
    def sigma_min(self) -> float:
        """Least noise level."""
        return self.net.sigma_min

    @cached_property
    def sigma_max(self) -> float:
        """Greatest noise level."""
        return self.net.sigma_max

    @cached_property
    def noise_table(self) -> torch.Tensor | None:
        """Falling noise levels [M] > 0 of those that know no others, None = any."""
        return getattr(self.net, "noise_table", None)

    @cached_property
    def takes(self) -> dict[str, Part]:
        """What is taken of a condition, by part."""
        return takes_of(self.net)

    @cached_property
    def self_condition(self) -> bool:
        """Whether an estimate of the image is taken, as a fifth argument."""
        return getattr(self.net, "self_condition", False)

    @cached_property
    def objective(self) -> str | None:
        """What the network predicts, where it says so."""
        return getattr(self.net, "objective", None)

    def round_sigma(self, sigma: torch.Tensor | float) -> torch.Tensor:
        """Nearest noise level that is known."""
        return self.net.round_sigma(sigma)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: Condition | None = None,
                 augment_labels: torch.Tensor | None = None) -> torch.Tensor:
        """D [N,C,*S] of x [N,C,*S] at sigma [N] or a number."""
        raise NotImplementedError
