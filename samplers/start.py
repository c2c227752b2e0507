"""Samplers that start at a lower noise level, from what a network expects the image to be: its regression mean.

"Come-Closer-Diffuse-Faster" (Chung, Sim and Ye 2022): of an image that is known roughly, the steps at high noise
levels can be left out, as all that they find out is the rough image.
"""

from collections.abc import Callable

import torch

from edm3d.networks.conditioning import Condition
from edm3d.samplers.denoiser import Denoiser, Wrapper

MEAN_LEVEL = 80  # where EDM's samplers start (Karras et al. 2022, Table 1)


class First(Wrapper):
    """A denoiser that says 0 and keeps what it was asked first."""

    def __init__(self, net: Denoiser):
        super().__init__(net)
        self.asked: tuple[torch.Tensor, float] | None = None

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: Condition | None = None,
                 augment_labels: torch.Tensor | None = None) -> torch.Tensor:
        if self.asked is None:
            self.asked = x, float(sigma)
        return torch.zeros_like(x)


def first_level(sampler: Callable[..., torch.Tensor], net: Denoiser) -> float:
    """The noise level that a sampler scales its latents by, found out by running it on a denoiser that says 0.

    What the denoiser is asked first is latents times that level, also where a sampler's own state is scaled; churn
    raises the level of the call, and not of the latents. ValueError for a sampler that starts in another way.
    """
    first = First(net)
    sampler(first, torch.tensor([0.0, 1.0, -1.0]).reshape(3, 1, 1), randn_like=torch.zeros_like)
    x, sigma = first.asked
    zero, level, minus = x.flatten().tolist()
    if not (zero == 0 and minus == -level and 0 < level <= sigma * (1 + 1e-6)):
        raise ValueError("does not start at its latents times a noise level")
    return level


def mean_level(net: Denoiser) -> float:
    """The noise level at which D is taken for the mean: 80, or the nearest below that a network knows.

    For sigma -> infinity x says nothing of the image any more, and D(x; sigma) = E[image | condition]. At 80 what is
    left is x s^2 / (s^2 + 80^2) for data of standard deviation s: 0.003 of the noise's at 0.5. Networks see still
    higher levels seldom or never in training, and are used at 80, where samplers start.
    """
    return float(net.round_sigma(torch.tensor(min(MEAN_LEVEL, float(net.sigma_max)), dtype=torch.float64)))


@torch.no_grad()
def regression_mean(net: Denoiser, noise: torch.Tensor, condition: Condition | None = None) -> torch.Tensor:
    """E[image | condition] [N,C,*S], float64, of unit normal noise [N,C,*S]: D(level noise; level) at mean_level.

    The network is shown noise, as it was in training, and not the 0 that lies in its middle.
    """
    level = mean_level(net)
    sigma = torch.tensor(level, dtype=torch.float64)
    return net(level * noise.to(torch.float64), sigma, condition).to(torch.float64)


def latents_around(mean: torch.Tensor, noise: torch.Tensor, level: float) -> torch.Tensor:
    """Latents [N,C,*S] that a sampler whose first noise level this is scales to mean + level noise, float64."""
    return noise.to(torch.float64) + mean / level
