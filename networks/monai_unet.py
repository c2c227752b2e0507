"""MONAI's diffusion UNet as the raw network of a preconditioner."""

from collections.abc import Sequence

import torch
from torch import nn

from edm3d.networks.conditioning import NOTHING, Condition, Part
from edm3d.networks.layers import check_divides
from edm3d.networks.told import check_input


class MonaiUNet(nn.Module):
    """F_x = net(x, noise_labels, condition) by `unet`, a monai.networks.nets.DiffusionModelUNet.

    Its sinusoidal embedding takes the steps 0..999 of DDPM, which it was made for, as well as EDM's log(sigma) / 4.
    label_dim: number of classes; unet.num_class_embeds is one more, for no class. image_size is checked where given.
    Class labels are one-hot, zeros for none; others are refused where looking at them costs nothing, on the CPU,
    uncompiled.
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
        self.in_channels, self.label_dim, self.augment_dim = unet.in_channels, label_dim, 0
        self.takes = {"class_labels": Part(label_dim)} if label_dim else {}
        dims = unet.conv_in.conv.weight.ndim - 2
        self.factor = (2 ** (len(unet.block_out_channels) - 1),) * dims  # every level but the last halves all axes
        if image_size is not None:
            check_divides(image_size, self.factor, type(self).__name__)
        self.unet = unet

    def forward(self, x: torch.Tensor, noise_labels: torch.Tensor, condition: Condition | None = None,
                augment_labels: torch.Tensor | None = None) -> torch.Tensor:
        """x [N,C,*S], noise_labels [N]; MONAI finds sizes that do not halve evenly too late, hence the check."""
        condition = NOTHING if condition is None else condition
        check_input(self, x, condition, augment_labels)
        classes = self.class_numbers(condition.class_labels, x) if self.label_dim else None
        return self.unet(x, noise_labels, class_labels=classes)

    def class_numbers(self, labels: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
        """Number of each image's class [N] int64, label_dim for none, of labels [N,label_dim] or [1,label_dim]."""
        if labels is None:
            return torch.full((len(x),), self.label_dim, device=x.device)
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            hard = ((labels == 0) | (labels == 1)).all(-1) & (labels.sum(-1) <= 1)
            if not hard.all():
                raise ValueError(f"MonaiUNet: got class labels {labels[~hard][0].tolist()}, wanted one-hot rows or "
                                 "zeros: it knows classes by their number")
        return torch.where(labels.any(-1), labels.argmax(-1), self.label_dim).expand(len(x))
