"""MONAI's diffusion UNet as the raw network of a preconditioner."""

from collections.abc import Sequence

import torch
from torch import nn

from networks.conditioning import Condition
from networks.layers import check_divides


class MonaiUNet(nn.Module):
    """F_x = net(x, noise_labels, condition) by `unet`, a monai.networks.nets.DiffusionModelUNet.

    Its sinusoidal embedding takes the steps 0..999 of DDPM, which it was made for, as well as EDM's log(sigma) / 4.
    label_dim: number of classes; unet.num_class_embeds is one more, for no class. image_size is checked where given.
    """

    def __init__(self, unet: nn.Module, label_dim: int = 0, image_size: Sequence[int] | None = None):
        super().__init__()
        embeds, wanted = unet.num_class_embeds, label_dim + 1 if label_dim else None
        if embeds != wanted:
            raise ValueError(f"unet.num_class_embeds={embeds or 'null'}, label_dim={label_dim}: wanted "
                             f"unet.num_class_embeds={wanted or 'null'}{', one more for no class' if wanted else ''}")
        if unet.with_conditioning:
            raise ValueError("unet.with_conditioning=true: there is no context here to attend to; classes go by "
                             "label_dim and unet.num_class_embeds")
        groups = unet.out[0].num_groups
        if all(width == groups for width in unet.block_out_channels):
            raise ValueError(f"unet.channels={list(unet.block_out_channels)}, unet.norm_num_groups={groups}: with one "
                             "channel per group the norms take out the noise level that is added to every channel; "
                             "lower unet.norm_num_groups")
        self.factor = 2 ** (len(unet.block_out_channels) - 1)  # every level but the last halves all axes
        if image_size is not None:
            self.check_size(image_size)
        self.unet, self.label_dim = unet, label_dim

    def check_size(self, size: Sequence[int]) -> None:
        """ValueError naming the nearest sizes where one does not halve evenly, which MONAI finds out too late."""
        check_divides(size, [self.factor] * len(size), type(self).__name__)

    def forward(self, x: torch.Tensor, noise_labels: torch.Tensor, condition: Condition | None = None,
                augment_labels: torch.Tensor | None = None) -> torch.Tensor:
        """x [N,C,*S], noise_labels [N]; classes are one-hot [N,label_dim], zeros for none."""
        self.check_size(x.shape[2:])
        if augment_labels is not None:
            raise ValueError("MonaiUNet: got augmentation labels, which it has no input for; choose augment=none")
        condition = Condition() if condition is None else condition
        if others := [part for part in condition.parts() if part != "class_labels" or not self.label_dim]:
            raise ValueError(f"MonaiUNet: got a condition {others[0]!r} that it was not built for")
        classes = self.class_numbers(condition.class_labels, x) if self.label_dim else None
        return self.unet(x, noise_labels, class_labels=classes)

    def class_numbers(self, labels: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
        """Number of each image's class [N] int64, label_dim for none."""
        if labels is None:
            return torch.full((len(x),), self.label_dim, device=x.device)
        if labels.shape[-1] != self.label_dim:
            raise ValueError(f"MonaiUNet: got {labels.shape[-1]} class labels, label_dim is {self.label_dim}")
        return torch.where(labels.any(-1), labels.argmax(-1), self.label_dim).expand(len(x))
