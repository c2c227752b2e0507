"""Features of a network that has learned nothing: convolutions with fixed random weights."""

from collections.abc import Sequence

import torch
from torch import nn

from edm3d.networks.layers import CONVS

WIDTHS = (16, 32, 64)
SEED = 20221


class RandomFeatures(nn.Module):
    """Strided convolutions of 3 voxels with weights of a fixed seed; images [N,C,*S] to features [N,2*sum(WIDTHS)].

    Features: mean and standard deviation over space of every layer's channels. Distances of such features tell whether
    sets differ (Sutherland et al. 2018; Kynkaanniemi et al. 2023), and compare within one report alone.
    """

    def __init__(self, channels: int, spatial_dims: int, widths: Sequence[int] = WIDTHS):
        super().__init__()
        conv, ins = CONVS[spatial_dims], (channels, *widths)
        self.layers = nn.ModuleList(conv(i, o, 3, stride=2, padding=1) for i, o in zip(ins, widths, strict=False))
        generator = torch.Generator().manual_seed(SEED)
        with torch.no_grad():
            for layer in self.layers:
                fan_in = layer.weight[0].numel()
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * (2 / fan_in) ** 0.5)
                layer.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features [N,d] float32 of images in [-1,1]."""
        found = []
        for layer in self.layers:
            x = torch.relu(layer(x))
            flat = x.flatten(2)
            found += [flat.mean(2), flat.std(2, correction=0)]
        return torch.cat(found, dim=1)
