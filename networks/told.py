"""What a UNet is told besides the noisy image: the arguments that say so, and the checks of what then comes."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import nn

from edm3d.networks.conditioning import Condition, Part, with_dropout
from edm3d.networks.grids import count_image_channels
from edm3d.networks.layers import check_divides, per_axis
from edm3d.utils.checks import check_choice, check_count

MOST_CLASSES = 256  # of a semantic map


class ToldArguments(NamedTuple):
    """Arguments of a UNet about its condition (docs/conditions.md); widths of 0 are of parts that it does not take."""

    label_dim: int = 0
    attribute_dim: int = 0
    attribute_mode: str = "embedding"
    attribute_mean: Sequence[float] | None = None
    attribute_std: Sequence[float] | None = None
    attribute_dropout: float = 0
    attribute_gaps: float = 0
    semantic_dim: int = 0
    semantic_dropout: float = 0
    semantic_hidden: int = 128
    semantic_grid: str = "fold"
    semantic_everywhere: bool = False
    image_dim: int = 0
    image_dropout: float = 0
    image_grid: str = "fold"
    grid_factor: int | Sequence[int] | None = None

    def check(self) -> None:
        """ValueError for arguments that make no sense, by name."""
        widths = {name: getattr(self, name) for name in ("label_dim", "attribute_dim", "semantic_dim", "image_dim")}
        for name, width in widths.items():
            if width == "auto":
                raise ValueError(f"{name}='auto': training finds the width in its data; here wanted a number")
        check_count(0, widths)
        if self.semantic_dim > MOST_CLASSES:
            raise ValueError(f"semantic_dim={self.semantic_dim}: maps are uint8 in all files, so that there are "
                             f"{MOST_CLASSES} classes at most")
        check_count(1, {"semantic_hidden": self.semantic_hidden})
        check_choice("attribute_mode", self.attribute_mode, ("embedding", "tokens"))
        check_choice("semantic_grid", self.semantic_grid, ("fold", "nearest"))
        check_choice("image_grid", self.image_grid, ("fold", "mean"))
        if not 0 <= self.attribute_gaps < 1:
            raise ValueError(f"attribute_gaps={self.attribute_gaps}: wanted a probability, 0..1 without 1: a network "
                             "that never sees an attribute learns none")
        if self.attribute_gaps and not self.attribute_dim:
            raise ValueError(f"attribute_gaps={self.attribute_gaps}: there is no attribute to hide, attribute_dim of "
                             "the model is 0")

    def takes(self) -> dict[str, Part]:
        """What the network takes of a condition, by part."""
        parts = {"class_labels": Part(self.label_dim), "attributes": Part(self.attribute_dim, gaps=self.attribute_gaps),
                 "semantic": Part(self.semantic_dim), "images": Part(self.image_dim)}
        return with_dropout({name: part for name, part in parts.items() if part.width},
                            attributes=self.attribute_dropout, semantic=self.semantic_dropout,
                            images=self.image_dropout)

    def factor(self, dims: int) -> tuple[int, ...]:
        """Voxels of a volume per cell of the images that the network is given, and axis."""
        return per_axis(1 if self.grid_factor is None else self.grid_factor, dims, "grid_factor")

    def image_channels(self, cell: Sequence[int]) -> int:
        """Channels that condition images add to the input of a network whose cells have so many voxels per axis."""
        return count_image_channels(self.image_dim, cell, self.image_grid == "fold") if self.image_dim else 0


def check_input(net: nn.Module, x: torch.Tensor, condition: Condition, augment_labels: torch.Tensor | None) -> None:
    """ValueError when an input is not what a network was built for, by its factor (one per axis), in_channels,
    label_dim and augment_dim.
    """
    name = type(net).__name__
    check_divides(x.shape[2:], net.factor, name)
    if x.shape[1] != net.in_channels:
        raise ValueError(f"{name}: got {x.shape[1]} channels, in_channels is {net.in_channels}")
    if not isinstance(condition, Condition):
        raise ValueError(f"{name}: got a {type(condition).__name__} as condition, wanted a Condition, as in "
                         "Condition(class_labels=...)")
    for part in condition:
        if part not in net.takes and part != "class_labels":
            raise ValueError(f"{name}: got a condition {part!r} that it was not built for")
    for what, key, labels, width, instead in (
            ("class", "label_dim", condition.class_labels, net.label_dim, "leave them away"),
            ("augment", "augment_dim", augment_labels, net.augment_dim, "choose augment=none")):
        if labels is None:
            continue
        if not width:
            raise ValueError(f"{name}: got {what} labels, {key} is 0 and it takes none; {instead}")
        if labels.ndim != 2 or len(labels) not in (1, len(x)):
            raise ValueError(f"{name}: got {what} labels of shape {tuple(labels.shape)}, wanted ({len(x)}, {width})")
        if labels.shape[1] != width:
            raise ValueError(f"{name}: got {labels.shape[1]} {what} labels, {key} is {width}")


def check_told(net: nn.Module, told: ToldArguments, x: torch.Tensor, condition: Condition) -> None:
    """ValueError when attributes, a map or images are not such as a network with `told` and grid_factor takes of x.

    Classes of a map are looked at where that costs nothing: on the CPU, uncompiled.
    """
    name, size = type(net).__name__, tuple(x.shape[2:])
    full = tuple(s * f for s, f in zip(size, net.grid_factor, strict=True))
    scaled = f"grid_factor={list(net.grid_factor)} times the network's {list(size)}"
    attributes, semantic, images = condition.attributes, condition.semantic, condition.images
    for part in condition:
        if len(condition[part]) not in (1, len(x)):
            raise ValueError(f"{name}: got {len(condition[part])} rows of the condition {part!r} for {len(x)} images")
    if attributes is not None and attributes.shape[1:] != (told.attribute_dim,):
        raise ValueError(f"{name}: got attributes of shape {tuple(attributes.shape)}, wanted "
                         f"({len(x)}, {told.attribute_dim}), as attribute_dim is {told.attribute_dim}")
    if semantic is not None:
        if tuple(semantic.shape[1:]) != full:
            raise ValueError(f"{name}: got a semantic map of {list(semantic.shape[1:])}, wanted {list(full)}: {scaled}")
        if semantic.is_floating_point() or semantic.dtype == torch.bool:
            raise ValueError(f"{name}: got a semantic map of {semantic.dtype}, wanted whole numbers")
        if semantic.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = semantic.aminmax()
            if not (low >= 0 and high <= told.semantic_dim):
                raise ValueError(f"{name}: got a semantic map of classes {int(low)} to {int(high)}, wanted 0 to "
                                 f"{told.semantic_dim - 1}, as semantic_dim is {told.semantic_dim}, and "
                                 f"{told.semantic_dim} for none known")
    if images is not None:
        if images.ndim != x.ndim or images.shape[1] != told.image_dim:
            raise ValueError(f"{name}: got condition images of shape {tuple(images.shape)}, wanted {told.image_dim} "
                             f"channels, as image_dim is, of {list(full)}")
        own = told.image_grid == "mean" or prod(net.grid_factor) == 1
        if tuple(images.shape[2:]) not in ((full, size) if own else (full,)):
            note = "" if own else "; image_grid=fold needs the voxels of each cell"
            raise ValueError(f"{name}: got condition images of {list(images.shape[2:])}, wanted {list(full)}: "
                             f"{scaled}{note}")
