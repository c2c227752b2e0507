"""The ADM UNet (Dhariwal and Nichol 2021) as Karras et al. 2022 use it, for 1, 2 and 3 spatial dimensions."""

from collections.abc import Sequence
from math import prod, sqrt

import torch
from torch import nn
from torch.nn.functional import silu

from networks.conditioning import Condition
from networks.layers import (
    attention,
    check_divides,
    conv,
    down,
    group_norm,
    linear,
    per_level,
    timestep_embedding,
    up,
)

INIT = sqrt(1 / 3)  # start of ADM's hidden layers, as a factor on Kaiming's


class UNetBlock(nn.Module):
    """Residual block with scale-shift embedding, optional resampling and optional self-attention.

    x [N,in_channels,*S], emb [N,emb_channels] -> [N,out_channels,*S'], S' = S / stride (way='down'), S * stride ('up').
    """

    def __init__(self, dims: int, in_channels: int, out_channels: int, emb_channels: int, *, kernel: Sequence[int],
                 stride: Sequence[int] | None = None, way: str = "same", heads: int = 0, dropout: float = 0,
                 eps: float = 1e-5):
        super().__init__()
        assert way in ("same", "down", "up")
        self.stride, self.way, self.heads, self.dropout = stride, way, heads, dropout
        self.norm0 = group_norm(in_channels, eps)
        self.conv0 = conv(dims, in_channels, out_channels, kernel, init=INIT)
        self.affine = linear(emb_channels, out_channels * 2, init=INIT)
        self.norm1 = group_norm(out_channels, eps)
        self.conv1 = conv(dims, out_channels, out_channels, kernel, init=0)
        self.skip = conv(dims, in_channels, out_channels, 1, init=INIT) if in_channels != out_channels else None
        if heads:
            self.norm2 = group_norm(out_channels, eps)
            self.qkv = conv(dims, out_channels, out_channels * 3, 1, init=INIT)
            self.proj = conv(dims, out_channels, out_channels, 1, init=0)

    def resample(self, x: torch.Tensor) -> torch.Tensor:
        """The block's change of size."""
        return {"same": lambda: x, "down": lambda: down(x, self.stride), "up": lambda: up(x, self.stride)}[self.way]()

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        h = self.conv0(self.resample(silu(self.norm0(x))))
        scale, shift = self.affine(emb).reshape(*emb.shape[:1], -1, *[1] * (x.ndim - 2)).chunk(2, dim=1)
        h = silu(torch.addcmul(shift, self.norm1(h), scale + 1))
        h = self.conv1(nn.functional.dropout(h, self.dropout, self.training))
        x = self.resample(x)
        x = h + (x if self.skip is None else self.skip(x))
        if self.heads:
            x = x + self.proj(attention(self.qkv(self.norm2(x)), self.heads))
        return x


class ADMUNet(nn.Module):
    """F_x = net(x, noise_labels, condition, augment_labels); x [N,in_channels,*S], noise_labels [N].

    channel_mult gives the levels; strides and kernel_size are one number, or one entry (number or per axis) per level
    transition and per level. attention_levels are counted from 0, the full size. Blocks narrower than
    channels_per_head have no attention. label_dim is the number of classes (0 = none), augment_dim the width of the
    augmentation labels.
    """

    def __init__(self, in_channels: int, out_channels: int, spatial_dims: int = 3, label_dim: int = 0,
                 augment_dim: int = 0, model_channels: int = 192, channel_mult: Sequence[int] = (1, 2, 3, 4),
                 channel_mult_emb: int = 4, num_blocks: int = 3, attention_levels: Sequence[int] = (1, 2, 3),
                 strides: int | Sequence = 2, kernel_size: int | Sequence = 3, channels_per_head: int = 64,
                 dropout: float = 0.1):
        super().__init__()
        levels = len(channel_mult)
        for width in {model_channels * m for m in channel_mult}:
            if width >= channels_per_head and width % (width // channels_per_head):
                raise ValueError(f"channels_per_head={channels_per_head}: {width} channels do not divide into "
                                 f"{width // channels_per_head} heads; choose a divisor of {width}")
        bad = [a for a in attention_levels if not 0 <= a < levels]
        if bad:
            raise ValueError(f"attention_levels={list(attention_levels)}: level {bad[0]} is not one of 0..{levels - 1}")
        self.in_channels, self.spatial_dims, self.label_dim, self.augment_dim = (
            in_channels, spatial_dims, label_dim, augment_dim)
        self.model_channels = model_channels
        self.strides = per_level(strides, levels - 1, spatial_dims, "strides")
        kernels = per_level(kernel_size, levels, spatial_dims, "kernel_size")
        emb = model_channels * channel_mult_emb
        self.map_layer0 = linear(model_channels, emb, init=INIT)
        self.map_layer1 = linear(emb, emb, init=INIT)
        self.map_label = linear(label_dim, emb, bias=False, init=sqrt(1 / 3)) if label_dim else None
        self.map_augment = linear(augment_dim, model_channels, bias=False, init=0) if augment_dim else None

        def block(level: int, cin: int, cout: int, attend: bool, stride: Sequence[int] | None = None,
                  way: str = "same") -> UNetBlock:
            return UNetBlock(spatial_dims, cin, cout, emb, kernel=kernels[level], stride=stride, way=way,
                             heads=cout // channels_per_head if attend else 0, dropout=dropout)

        width = [model_channels * m for m in channel_mult]
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        self.enc["level0_conv"] = conv(spatial_dims, in_channels, width[0], kernels[0], init=INIT)
        skips, c = [width[0]], width[0]
        for level in range(levels):
            if level:
                self.enc[f"level{level}_down"] = block(level, c, c, False, self.strides[level - 1], "down")
                skips.append(c)
            for i in range(num_blocks):
                self.enc[f"level{level}_block{i}"] = block(level, c, width[level], level in attention_levels)
                c = width[level]
                skips.append(c)
        for level in reversed(range(levels)):
            if level == levels - 1:
                self.dec[f"level{level}_in0"] = block(level, c, c, True)
                self.dec[f"level{level}_in1"] = block(level, c, c, False)
            else:
                self.dec[f"level{level}_up"] = block(level, c, c, False, self.strides[level], "up")
            for i in range(num_blocks + 1):
                self.dec[f"level{level}_block{i}"] = block(level, c + skips.pop(), width[level],
                                                           level in attention_levels)
                c = width[level]
        self.out_norm = group_norm(c)
        self.out_conv = conv(spatial_dims, c, out_channels, kernels[0], init=0)

    @property
    def factor(self) -> tuple[int, ...]:
        """What the size must divide by, per axis."""
        return tuple(prod(s[axis] for s in self.strides) for axis in range(self.spatial_dims))

    def embed(self, noise_labels: torch.Tensor, condition: Condition, augment_labels: torch.Tensor | None,
              dtype: torch.dtype) -> torch.Tensor:
        """Embedding [N,E] of the noise level, augmentation and class."""
        emb = timestep_embedding(noise_labels, self.model_channels).to(dtype)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels.to(dtype))
        emb = self.map_layer1(silu(self.map_layer0(emb)))
        if self.map_label is not None and condition.class_labels is not None:
            emb = emb + self.map_label(condition.class_labels.to(dtype))
        return silu(emb)

    def forward(self, x: torch.Tensor, noise_labels: torch.Tensor, condition: Condition | None = None,
                augment_labels: torch.Tensor | None = None) -> torch.Tensor:
        condition = condition or Condition()
        self.check_input(x, condition, augment_labels)
        emb = self.embed(noise_labels, condition, augment_labels, x.dtype)
        skips = []
        for layer in self.enc.values():
            x = layer(x, emb) if isinstance(layer, UNetBlock) else layer(x)
            skips.append(x)
        for name, layer in self.dec.items():
            x = layer(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, emb)
        return self.out_conv(silu(self.out_norm(x)))

    def check_input(self, x: torch.Tensor, condition: Condition, augment_labels: torch.Tensor | None) -> None:
        """ValueError when an input is not what the network was built for."""
        if x.shape[1] != self.in_channels:
            raise ValueError(f"ADMUNet: got {x.shape[1]} channels, in_channels is {self.in_channels}")
        check_divides(x.shape[2:], self.factor, "ADMUNet")
        for part in condition.parts():
            if part != "class_labels":
                raise ValueError(f"ADMUNet: got a condition {part!r} that it was not built for")
        labels = condition.class_labels
        if labels is not None and labels.shape[1] != self.label_dim:
            raise ValueError(f"ADMUNet: got {labels.shape[1]} class labels, label_dim is {self.label_dim}")
        if augment_labels is not None and augment_labels.shape[1] != self.augment_dim:
            raise ValueError(f"ADMUNet: got {augment_labels.shape[1]} augment labels, "
                             f"augment_dim is {self.augment_dim}")
