"""The UNets of Karras et al. 2022, for 1, 2 and 3 spatial dimensions.

ADM (Dhariwal and Nichol 2021), and DDPM++ and NCSN++ (Song et al. 2021), which share all but their blocks' style, the
embedding of the noise level and the ways in and out.
"""

from collections.abc import Sequence
from math import prod, sqrt

import torch
from torch import nn
from torch.nn.functional import silu

from edm3d.networks.attribute_embedding import AttributeEmbedding, AttributeTokens
from edm3d.networks.codecs import cell_of, to_cells, to_voxels
from edm3d.networks.conditioning import NOTHING, Condition
from edm3d.networks.grids import image_channels
from edm3d.networks.layers import (
    NORMS,
    FourierEmbedding,
    add_margin,
    check_filter,
    class_embedding,
    conv,
    down,
    linear,
    shrink,
    timestep_embedding,
    up,
)
from edm3d.networks.parts import PARTS
from edm3d.networks.reach import Walk
from edm3d.networks.slice_attention import check_attention
from edm3d.networks.spade import MapFeatures
from edm3d.networks.told import ToldArguments, check_input, check_told
from edm3d.networks.unet_blocks import ADM, SONG, Levels, Style, UNetBlock, plan_levels, plan_widths
from edm3d.utils.checks import check_choice, check_count


class UNet(nn.Module):
    """What the UNets share: levels of blocks down and up again.

    F_x = net(x, noise_labels, condition, augment_labels); x [N,in_channels,*S], noise_labels [N]. With self_condition
    there is a further input, an estimate of the image [N,in_channels,*S], zeros for none (Chen, Zhang and Hinton 2023).
    A family says how noise, class, attributes and augmentation are embedded (`embed`) and what becomes of each decoder
    level (`read_out`). What it can be told is in docs/conditions.md: attributes by the embedding or as tokens that all
    blocks attend to which attend at all, a map by the norms of decoder and bottleneck, images as further inputs. With a
    codec (networks/codecs.py) the levels are those of cells of 2^d voxels; x and the output stay voxels.
    """

    decoder = "standard"  # the way that images take beside the features

    def __init__(self, style: Style, levels: Levels, *, in_channels: int, out_channels: int, spatial_dims: int,
                 told: ToldArguments, augment_dim: int, noise_channels: int, emb_channels: int, stem_channels: int,
                 num_blocks: int, channels_per_head: int | None, filter: Sequence[float], dropout: float,
                 map_label: nn.Module | None, attributes_to: int, self_condition: bool, codec: str, norm: str,
                 bottleneck_attention: bool, attention: str):
        super().__init__()
        check_count(1, {"in_channels": in_channels, "out_channels": out_channels, "num_blocks": num_blocks})
        check_count(0, {"augment_dim": augment_dim})
        check_ranges(dropout, noise_channels)
        check_choice("norm", norm, NORMS)
        check_attention(attention, spatial_dims)
        widths, strides, kernels, attends = levels
        self.in_channels, self.spatial_dims, self.label_dim, self.augment_dim = (
            in_channels, spatial_dims, told.label_dim, augment_dim)
        self.told, self.takes, self.grid_factor = told, told.takes(), told.factor(spatial_dims)
        self.num_blocks, self.strides, self.filter = num_blocks, strides, check_filter(filter, strides)
        self.codec, self.norm, self.kernels = codec, norm, kernels
        self.cell = cell_of(codec, spatial_dims)
        self.factor = tuple(prod(each) for each in zip(self.cell, *strides))  # what sizes divide by
        self.noise_channels, self.self_condition = noise_channels, self_condition
        full_cell = [f * c for f, c in zip(self.grid_factor, self.cell)]  # of level 0, in voxels of a volume
        self.seen_channels = (in_channels * (2 if self_condition else 1) * prod(self.cell)
                              + told.image_channels(full_cell))
        self.given_channels = out_channels * prod(self.cell)
        self.map_layer0 = linear(noise_channels, emb_channels, init=style.init, glorot=style.glorot)
        self.map_layer1 = linear(emb_channels, emb_channels, init=style.init, glorot=style.glorot)
        self.map_label = map_label
        self.map_augment = linear(augment_dim, noise_channels, bias=False, init=0) if augment_dim else None
        tokens = AttributeTokens(told.attribute_dim, emb_channels, told.attribute_mean, told.attribute_std) \
            if told.attribute_dim else None
        self.attribute_tokens = tokens if told.attribute_mode == "tokens" else None
        self.map_attributes = AttributeEmbedding(tokens, emb_channels, attributes_to) \
            if tokens is not None and self.attribute_tokens is None else None
        self.map_features = MapFeatures(spatial_dims, told.semantic_dim, told.semantic_hidden, told.semantic_grid,
                                        full_cell, strides, kernels) if told.semantic_dim else None

        def block(level: int, cin: int, cout: int, attend: bool, stride: Sequence[int] = (), way: str = "same",
                  encoder: bool = False) -> UNetBlock:
            heads = (cout // channels_per_head if channels_per_head else 1) if attend else 0
            mapped = told.semantic_dim and (told.semantic_everywhere or not encoder)
            return UNetBlock(style, spatial_dims, cin, cout, emb_channels, kernel=kernels[level], stride=stride,
                             way=way, filter=self.filter, heads=heads, dropout=dropout,
                             map_channels=told.semantic_hidden if mapped else 0, norm=norm, attends=attention,
                             token_channels=emb_channels if self.attribute_tokens is not None else 0)

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        self.enc["level0_conv"] = conv(spatial_dims, self.seen_channels, stem_channels, kernels[0], init=style.init,
                                       glorot=style.glorot)
        skips, c = [stem_channels], stem_channels
        for level, width in enumerate(widths):
            if level:
                self.enc[f"level{level}_down"] = block(level, c, c, False, strides[level - 1], "down", True)
                skips.append(c)
            for i in range(num_blocks):
                self.enc[f"level{level}_block{i}"] = block(level, c, width, level in attends, encoder=True)
                c = width
                skips.append(c)
        for level, width in reversed(list(enumerate(widths))):
            if level == len(widths) - 1:
                self.dec[f"level{level}_in0"] = block(level, c, c, bottleneck_attention)
                self.dec[f"level{level}_in1"] = block(level, c, c, False)
            else:
                self.dec[f"level{level}_up"] = block(level, c, c, False, strides[level], "up")
            for i in range(num_blocks + 1):
                attend = level in attends and (i == num_blocks or not style.attend_last)
                self.dec[f"level{level}_block{i}"] = block(level, c + skips.pop(), width, attend)
                c = width

    def forward(self, x: torch.Tensor, noise_labels: torch.Tensor, condition: Condition | None = None,
                augment_labels: torch.Tensor | None = None, estimate: torch.Tensor | None = None) -> torch.Tensor:
        condition = NOTHING if condition is None else condition
        check_input(self, x, condition, augment_labels)
        check_told(self, self.told, x, condition)
        if self.self_condition:
            x = torch.cat([x, torch.zeros_like(x) if estimate is None else estimate.to(x.dtype)], dim=1)
        elif estimate is not None:
            raise ValueError(f"{type(self).__name__}: got an estimate of the image, self_condition is false")
        condition, x = self.whole(condition, x), to_cells(self.codec, x)
        if condition.images is not None:
            seen = image_channels(condition.images, x.shape[2:], self.told.image_grid == "fold", x.dtype)
            x = torch.cat([x, seen], dim=1)
        noise_labels = noise_labels.to(torch.promote_types(noise_labels.dtype, torch.float32))
        emb = self.embed(noise_labels, condition, augment_labels, x.dtype)
        maps = None if condition.semantic is None else self.map_features(condition.semantic, x.dtype)
        tokens = None if self.attribute_tokens is None else self.attribute_tokens(condition.attributes)
        features = self.encode(x, emb, maps if self.told.semantic_everywhere else None, tokens)
        return to_voxels(self.codec, self.decode(features, emb, maps, tokens))

    @property
    def receptive_field(self) -> tuple[int, ...] | None:
        """Voxels to each side, per axis, of x and of what lies on its grid, that an output depends on.

        None where anything attends or a norm has statistics over space: then it depends on all. Whether there is a
        condition image at all (networks/grids.py) is seen from everywhere.
        """
        blocks = [*self.enc.values(), *self.dec.values()]
        if self.norm != "voxel" or any(getattr(block, "heads", 0) for block in blocks):
            return None
        margin = len(self.filter) // 2 - 1
        return tuple(Walk([k[axis] // 2 for k in self.kernels], [s[axis] for s in self.strides], margin,
                          self.num_blocks, self.decoder).receptive_field(cell)
                     for axis, cell in enumerate(self.cell))

    def whole(self, condition: Condition, x: torch.Tensor) -> Condition:
        """A condition with a row for each image of what else than classes the network takes, nulls where it has none.
        """
        found, full = {}, [s * f for s, f in zip(x.shape[2:], self.grid_factor, strict=True)]
        for name, part in self.takes.items():
            if name != "class_labels":
                kind, rows = PARTS[name], condition.get(name)
                if rows is None:
                    dtype = torch.int16 if name == "semantic" else torch.float32
                    rows = torch.full((1, *kind.shape(part.width, full)), kind.null(part.width), dtype=dtype,
                                      device=x.device)
                found[name] = rows.expand(len(x), *rows.shape[1:])
        return condition.replace(**found) if found else condition

    def encode(self, x: torch.Tensor, emb: torch.Tensor, maps: list[torch.Tensor] | None = None,
               tokens: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Features after every layer of the encoder; maps: features of a map at every level, where it sees them."""
        image, x = x, self.enc["level0_conv"](x)
        features, maps = [x], maps or [None] * (len(self.strides) + 1)
        for level in range(len(self.strides) + 1):
            if level:
                x = self.enc[f"level{level}_down"](x, emb, maps[level - 1], maps[level], tokens)
                x, image = self.read_in(level, x, image)
                features.append(x)
            for i in range(self.num_blocks):
                x = self.enc[f"level{level}_block{i}"](x, emb, maps[level], maps[level], tokens)
                features.append(x)
        return features

    def decode(self, features: list[torch.Tensor], emb: torch.Tensor, maps: list[torch.Tensor] | None = None,
               tokens: torch.Tensor | None = None) -> torch.Tensor:
        """Image that the decoder makes of the encoder's features."""
        x, image, last = features[-1], None, len(self.strides)
        maps = maps or [None] * (last + 1)
        for level in reversed(range(last + 1)):
            for way in ("up",) if level < last else ("in0", "in1"):
                x = self.dec[f"level{level}_{way}"](x, emb, maps[min(level + 1, last)], maps[level], tokens)
            for i in range(self.num_blocks + 1):
                x = self.dec[f"level{level}_block{i}"](torch.cat([x, features.pop()], dim=1), emb, maps[level],
                                                       maps[level], tokens)
            image = self.read_out(level, x, image)
        return image

    def read_in(self, level: int, x: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features at the start of an encoder level, and what goes beside them to the next: here nothing is added."""
        return x, image

    def read_out(self, level: int, x: torch.Tensor, image: torch.Tensor | None) -> torch.Tensor | None:
        """Image after a decoder level, made of its features and of the image after the level below (or None)."""
        raise NotImplementedError

    def embed(self, noise_labels: torch.Tensor, condition: Condition, augment_labels: torch.Tensor | None,
              dtype: torch.dtype) -> torch.Tensor:
        """Embedding [N,E] of noise level, class, attributes and augmentation."""
        raise NotImplementedError


def check_ranges(dropout: float, noise_channels: int) -> None:
    """ValueError for a dropout that is no probability, and a noise level of too few or an odd number of channels."""
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout={dropout}: wanted a probability, 0..1")
    if noise_channels % 2 or noise_channels < 4:
        raise ValueError("model_channels (times channel_mult_noise): wanted an even number of 4 or more, "
                         f"got {noise_channels}")


class ADMUNet(UNet):
    """The ADM UNet (Dhariwal and Nichol 2021); F_x = net(x, noise_labels, condition, augment_labels).

    channel_mult gives the levels; strides and kernel_size are one number, or one entry (number or per axis) per level
    transition and per level. Attention goes by attention_levels, counted from 0, the full size, or by
    attention_resolutions: a level of an image of image_size attends when its largest axis is among them. With neither,
    levels 1, 2 and 3 attend, those narrower than channels_per_head left out; None is one head of any width. label_dim
    is the number of classes (0 = none), augment_dim the width of the augmentation labels. self_condition: see UNet. The
    arguments from attribute_dim to grid_factor are of further conditions (docs/conditions.md). With a codec the levels
    are those of its cells (image_size stays that of x); norm "voxel", with no level and no bottleneck that attends,
    makes a network that sees so far and no further (receptive_field). attention is over the whole volume, within
    slices across the first axis, or within them and then across them at each position, with their order (slices_depth).
    """

    def __init__(self, in_channels: int, out_channels: int, spatial_dims: int = 3, label_dim: int | str = 0,
                 augment_dim: int = 0, model_channels: int = 192, channel_mult: Sequence[int] = (1, 2, 3, 4),
                 channel_mult_emb: int = 4, num_blocks: int = 3, attention_levels: Sequence[int] | None = None,
                 strides: int | Sequence = 2, kernel_size: int | Sequence = 3, channels_per_head: int | None = 64,
                 dropout: float = 0.1, attention_resolutions: Sequence[int] | None = None,
                 image_size: int | Sequence[int] | None = None, self_condition: bool = False,
                 attribute_dim: int | str = 0, attribute_mode: str = "embedding",
                 attribute_mean: Sequence[float] | None = None, attribute_std: Sequence[float] | None = None,
                 attribute_dropout: float = 0, attribute_gaps: float = 0, semantic_dim: int | str = 0,
                 semantic_dropout: float = 0, semantic_hidden: int = 128, semantic_grid: str = "fold",
                 semantic_everywhere: bool = False, image_dim: int | str = 0, image_dropout: float = 0,
                 image_grid: str = "fold", grid_factor: int | Sequence[int] | None = None, codec: str = "none",
                 norm: str = "group", bottleneck_attention: bool = True, attention: str = "volume"):
        told = ToldArguments(label_dim, attribute_dim, attribute_mode, attribute_mean, attribute_std, attribute_dropout,
                             attribute_gaps, semantic_dim, semantic_dropout, semantic_hidden, semantic_grid,
                             semantic_everywhere, image_dim, image_dropout, image_grid, grid_factor)
        told.check()
        widths, emb = plan_widths(model_channels, channel_mult, channel_mult_emb)
        levels = plan_levels(spatial_dims, widths, strides, kernel_size, attention_levels, attention_resolutions,
                             image_size, channels_per_head, (1, 2, 3), codec, bottleneck_attention)
        super().__init__(
            ADM, levels, in_channels=in_channels, out_channels=out_channels, spatial_dims=spatial_dims,
            told=told, augment_dim=augment_dim, noise_channels=model_channels, emb_channels=emb,
            stem_channels=widths[0], num_blocks=num_blocks, channels_per_head=channels_per_head, filter=(1, 1),
            dropout=dropout, map_label=class_embedding(label_dim, emb) if label_dim > 0 else None,
            attributes_to=emb, self_condition=self_condition, codec=codec, norm=norm,
            bottleneck_attention=bottleneck_attention, attention=attention)
        self.out_norm = NORMS[norm](widths[0], ADM.eps)
        self.out_conv = conv(spatial_dims, widths[0], self.given_channels, levels.kernels[0], init=0)

    def embed(self, noise_labels: torch.Tensor, condition: Condition, augment_labels: torch.Tensor | None,
              dtype: torch.dtype) -> torch.Tensor:
        emb = timestep_embedding(noise_labels, self.noise_channels).to(dtype)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels.to(dtype))
        emb = self.map_layer1(silu(self.map_layer0(emb)))
        if self.map_label is not None and condition.class_labels is not None:
            emb = emb + self.map_label(condition.class_labels.to(dtype))
        if self.map_attributes is not None:
            emb = emb + self.map_attributes(condition.attributes)
        return silu(emb)

    def read_out(self, level: int, x: torch.Tensor, image: torch.Tensor | None) -> torch.Tensor | None:
        return self.out_conv(silu(self.out_norm(x))) if level == 0 else None


class SongUNet(UNet):
    """DDPM++ and NCSN++ (Song et al. 2021); F_x = net(x, noise_labels, condition, augment_labels).

    DDPM++ is the default; NCSN++ has embedding='fourier', channel_mult_noise=2, encoder='residual' and
    resample_filter=(1, 3, 3, 1). The image goes along with the encoder by one step per level, filtered, convolved and
    added ('residual'), or is itself filtered down and added to each level ('skip'); the 'skip' decoder adds an image
    at every level to the one below, filtered up. What ADMUNet has too means the same; level 1 attends by default, in
    the decoder the last block of a level only.
    """

    def __init__(self, in_channels: int, out_channels: int, spatial_dims: int = 3, label_dim: int | str = 0,
                 augment_dim: int = 0, model_channels: int = 128, channel_mult: Sequence[int] = (1, 2, 2, 2),
                 channel_mult_emb: int = 4, num_blocks: int = 4, attention_levels: Sequence[int] | None = None,
                 strides: int | Sequence = 2, kernel_size: int | Sequence = 3, channels_per_head: int | None = None,
                 dropout: float = 0.1, attention_resolutions: Sequence[int] | None = None,
                 image_size: int | Sequence[int] | None = None, embedding: str = "positional",
                 channel_mult_noise: int = 1, encoder: str = "standard", decoder: str = "standard",
                 resample_filter: Sequence[float] = (1, 1), self_condition: bool = False,
                 attribute_dim: int | str = 0, attribute_mode: str = "embedding",
                 attribute_mean: Sequence[float] | None = None, attribute_std: Sequence[float] | None = None,
                 attribute_dropout: float = 0, attribute_gaps: float = 0, semantic_dim: int | str = 0,
                 semantic_dropout: float = 0, semantic_hidden: int = 128, semantic_grid: str = "fold",
                 semantic_everywhere: bool = False, image_dim: int | str = 0, image_dropout: float = 0,
                 image_grid: str = "fold", grid_factor: int | Sequence[int] | None = None, codec: str = "none",
                 norm: str = "group", bottleneck_attention: bool = True, attention: str = "volume"):
        told = ToldArguments(label_dim, attribute_dim, attribute_mode, attribute_mean, attribute_std, attribute_dropout,
                             attribute_gaps, semantic_dim, semantic_dropout, semantic_hidden, semantic_grid,
                             semantic_everywhere, image_dim, image_dropout, image_grid, grid_factor)
        told.check()
        check_choice("embedding", embedding, ("positional", "fourier"))
        check_choice("encoder", encoder, ("standard", "residual", "skip"))
        check_choice("decoder", decoder, ("standard", "skip"))
        widths, emb = plan_widths(model_channels, channel_mult, channel_mult_emb)
        levels = plan_levels(spatial_dims, widths, strides, kernel_size, attention_levels, attention_resolutions,
                             image_size, channels_per_head, (1,), codec, bottleneck_attention)
        noise_channels = model_channels * channel_mult_noise
        map_label = linear(label_dim, noise_channels, init=SONG.init, glorot=True) if label_dim > 0 else None
        super().__init__(
            SONG, levels, in_channels=in_channels, out_channels=out_channels, spatial_dims=spatial_dims,
            told=told, augment_dim=augment_dim, noise_channels=noise_channels, emb_channels=emb,
            stem_channels=model_channels, num_blocks=num_blocks, channels_per_head=channels_per_head,
            filter=resample_filter, dropout=dropout, map_label=map_label, attributes_to=noise_channels,
            self_condition=self_condition, codec=codec, norm=norm, bottleneck_attention=bottleneck_attention,
            attention=attention)
        self.encoder, self.decoder = encoder, decoder
        self.map_noise = FourierEmbedding(noise_channels) if embedding == "fourier" else None
        for level, (above, kernel) in enumerate(zip(widths, levels.kernels[1:]), start=1):
            if encoder == "residual":
                image_channels = widths[level - 2] if level > 1 else self.seen_channels
                self.enc[f"level{level}_aux_residual"] = conv(spatial_dims, image_channels, above, kernel,
                                                              init=SONG.init, glorot=True)
            elif encoder == "skip":
                self.enc[f"level{level}_aux_skip"] = conv(spatial_dims, self.seen_channels, above, 1, init=SONG.init,
                                                          glorot=True)
        for level, (width, kernel) in enumerate(zip(widths, levels.kernels)):
            if decoder == "skip" or level == 0:
                self.dec[f"level{level}_aux_norm"] = NORMS[norm](width, SONG.eps)
                self.dec[f"level{level}_aux_conv"] = conv(spatial_dims, width, self.given_channels, kernel, init=0)

    def embed(self, noise_labels: torch.Tensor, condition: Condition, augment_labels: torch.Tensor | None,
              dtype: torch.dtype) -> torch.Tensor:
        if self.map_noise is None:
            waves = timestep_embedding(noise_labels, self.noise_channels, endpoint=True)
        else:
            waves = self.map_noise(noise_labels)
        emb = torch.cat(waves.chunk(2, dim=1)[::-1], dim=1).to(dtype)  # sines first
        if self.map_label is not None:
            labels = condition.class_labels
            labels = emb.new_zeros(1, self.label_dim) if labels is None else labels.to(dtype)
            emb = emb + self.map_label(labels * sqrt(self.label_dim))
        if self.map_attributes is not None:
            emb = emb + self.map_attributes(condition.attributes)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels.to(dtype))
        return silu(self.map_layer1(silu(self.map_layer0(emb))))

    def read_in(self, level: int, x: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        stride = self.strides[level - 1]
        if self.encoder == "residual":
            image = self.enc[f"level{level}_aux_residual"](add_margin(image, stride, self.filter))
            x = (x + shrink(image, stride, self.filter)) * SONG.skip_scale
            return x, x
        if self.encoder == "skip":
            image = down(image, stride, self.filter)
            x = x + self.enc[f"level{level}_aux_skip"](image)
        return x, image

    def read_out(self, level: int, x: torch.Tensor, image: torch.Tensor | None) -> torch.Tensor | None:
        if f"level{level}_aux_conv" not in self.dec:
            return None
        out = self.dec[f"level{level}_aux_conv"](silu(self.dec[f"level{level}_aux_norm"](x)))
        return out if image is None else up(image, self.strides[level], self.filter) + out
